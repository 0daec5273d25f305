"""The run folder: every output's name, in one place."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError

NUMBERED = Path("runs")
"""Where runs go that were given no name."""


class RunFolder:
    """Where a run writes. `nimg` is the number of real images seen so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "env.json"
        self.log = path / "log.txt"
        self.stats = path / "stats.jsonl"
        self.losses_csv = path / "losses.csv"
        self.losses_png = path / "losses.png"
        self.reals = path / "reals.png"
        self.fakes_init = path / "fakes_init.png"
        self.generator = path / "netG.pt"
        self.discriminator = path / "netD.pt"
        self.generator_average = path / "netG_ema.pt"
        self.samples = path / "samples"
        self.nets = path / "nets"

    def fakes(self, nimg: int) -> Path:
        """The grid of fixed noise after `nimg` images."""
        return self.samples / f"fakes-{nimg:09d}.png"

    def generator_at(self, nimg: int) -> Path:
        return self.nets / f"netG-{nimg:09d}.pt"

    def discriminator_at(self, nimg: int) -> Path:
        return self.nets / f"netD-{nimg:09d}.pt"

    @classmethod
    def create(cls, name: str | None) -> RunFolder:
        """Make a new run folder.

        Args:
            name: its path; None for the next free number below `runs/`.

        Raises:
            UserError: it holds something already, or cannot be made.
        """
        path = Path(name) if name is not None else _next_number()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"--run {path}",
                "a folder with files in it" if path.is_dir() else "a file",
                "a new or empty folder",
                "choose another --run, or leave it out to have the run numbered",
            )
        run = cls(path)
        try:
            for folder in (run.samples, run.nets):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--run {path}", str(error.strerror), "a folder that can be made", "choose another"
            ) from None
        return run


def _next_number() -> Path:
    numbers = (int(path.name) for path in NUMBERED.glob("*") if path.name.isdecimal())
    return NUMBERED / f"{max(numbers, default=0) + 1:04d}"
