"""Tiny runs of dcgan-train, in this process or in one of their own, and what they wrote."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dcgan.options import TrainConfig
from dcgan.rundir.folder import RunFolder
from dcgan.rundir.log import Log
from dcgan.training.build import build
from dcgan.training.signals import StopRequest
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from pipeline.loading.batches import Batches
from tests.pictures import Pixels

ROOT = Path(__file__).parents[1]
DCGAN_TRAIN = Path(sys.executable).with_name("dcgan-train")

TINY: dict[str, Any] = {
    "batch_size": 8,
    "lr": 2e-4,
    "image_size": 32,
    "nz": 8,
    "ngf": 4,
    "ndf": 4,
    "device": "cpu",
    "workers": 1,
    "precision": "fp32",
    "step": "eager",
}

OF_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
"""Variables that make rich take a pipe for a terminal."""

STATUS = (
    r"\[(\d+)/(\d+)\]\[(\d+)/(\d+)\]"
    r"  Loss_D: ([\d.]+)  Loss_G: ([\d.]+)  D\(x\): ([\d.]+)  D\(G\(z\)\): ([\d.]+) / ([\d.]+)"
    r"  ([\d,]+) img/s  ([\d.]+) ms/step  data wait ([\d.]+)%  (?:\d+ days?, )?(\d+:\d\d:\d\d) left"
)
"""A status line: the ancestors' form, then the pace."""


def tiny(run: Path, **changes: Any) -> TrainConfig:
    """The options of a run of milliseconds, on noise and without an average unless asked for."""
    plain: dict[str, Any] = {"shards": "synthetic", "run": str(run), "ema_nimg": 0}
    return TrainConfig(**(plain | TINY | changes))


def flags(**options: Any) -> list[str]:
    """Options as a command line has them; True stands for a flag without a value."""
    words: list[str] = []
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        words += [] if value is True else [str(value)]
    return words


def new_trainer(config: TrainConfig) -> Trainer:
    return Trainer(build(config, Log()), Log())


def keep_curves(losses: npt.NDArray[np.float32], path: Path) -> None:
    """Stands for `save_losses`, which takes longer than a tiny run: the numbers, not their picture.

    Two such files are the same just where two pictures of all numbers would be.
    """
    path.write_bytes(losses.tobytes())


def run_to_end(trainer: Trainer, stop: StopRequest | None = None) -> Trainer:
    try:
        trainer.run_until(StopRequest() if stop is None else stop)
    finally:
        trainer.log.close()
    return trainer


def train_here(config: TrainConfig) -> Trainer:
    """Train to the end in this process."""
    return run_to_end(new_trainer(config))


def stopped_after(trainer: Trainer, steps: int) -> Trainer:
    """Run until so many steps are done, as a signal stops it."""
    stop, run = StopRequest(), trainer.step.run

    def run_and_count() -> torch.Tensor:
        statistics = run()
        if trainer.steps_done + 1 == steps:
            stop.signal = signal.SIGTERM
        return statistics

    trainer.step.run = run_and_count  # type: ignore[method-assign]
    return run_to_end(trainer, stop)


def environment() -> dict[str, str]:
    """This process's environment, as in a pipe."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_TERMINAL}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_command(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=180
    )


def assert_four_parts(error: UserError, *said: str) -> None:
    """What every error owes its reader, and what this one must mention."""
    parts = (error.where, error.found, error.wanted, error.remedy)
    assert all(part.strip() for part in parts)
    for words in said:
        assert words in str(error)


def cells(path: Path, side: int) -> Pixels:
    """The images of a grid, (N, S, S, 3), row by row; all that lies between them must be black."""
    grid = np.asarray(Image.open(path).convert("RGB")).copy()
    down, across = (length // (side + 2) for length in grid.shape[:2])
    assert grid.shape == (down * (side + 2) + 2, across * (side + 2) + 2, 3)
    found = []
    for row in range(down):
        for column in range(across):
            top, left = (2 + place * (side + 2) for place in (row, column))
            found.append(grid[top : top + side, left : left + side].copy())
            grid[top : top + side, left : left + side] = 0
    assert not grid.any()
    return np.stack(found)


def read_stats(run: RunFolder) -> list[dict[str, Any]]:
    """`stats.jsonl`, read by a parser that takes no NaN or Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    lines = run.stats.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def read_losses(run: RunFolder) -> npt.NDArray[np.float64]:
    """`losses.csv` below its heading, (steps, 6)."""
    heading, *rows = run.losses_csv.read_text().splitlines()
    assert heading == "step,loss_d,loss_g,d_x,d_gz1,d_gz2"
    return np.array([[float(value) for value in row.split(",")] for row in rows]).reshape(-1, 6)


def files_below(folder: Path) -> set[str]:
    """The names of all files; those of TensorBoard's events without time, machine and process."""
    return {path.partition(".tfevents.")[0] for path in _files(folder)}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _files(folder)}


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def expected_files(
    samples: list[int], epochs: list[int], saved: int | None = None, average: bool = False
) -> set[str]:
    """The names in a complete run folder whose grids and epochs stand at these nimg.

    Args:
        samples: of the grids.
        epochs: of the nets.
        saved: of the checkpoint, if that is not the last grid's.
        average: whether the run keeps one of the generator.
    """
    saved = samples[-1] if saved is None else saved
    return {
        *("config.json", "env.json", "log.txt", "stats.jsonl", "losses.csv", "losses.png"),
        *("reals.png", "fakes_init.png", "netG.pt", "netD.pt"),
        *(["netG_ema.pt"] if average else []),
        *(".lock", "progress.gif", "reals-vs-fakes.png", "tensorboard/events.out"),
        *(f"checkpoints/{saved:09d}.{ending}" for ending in ("pt", "json")),
        *(f"samples/fakes-{nimg:09d}.png" for nimg in samples),
        *(f"nets/net{letter}-{nimg:09d}.pt" for letter in "GD" for nimg in epochs),
    }


Served = Callable[[int], object]
"""Called with the number of a batch before that batch is served."""


class CountedBatches(Batches):
    """A loader of plain images: those of batch k are all of level k, so a net's input tells k.

    Args:
        steps_per_epoch: for the trainer's plan.
        before: may raise, as a real loader does.
    """

    def __init__(self, steps_per_epoch: int = 5, before: Served = lambda number: None) -> None:
        identity: dict[str, str | int] = {"shard set": "counted", "rank": 0}
        size: int = TINY["batch_size"]
        super().__init__(size, steps_per_epoch, torch.uint8, identity, "counted batches")
        self.before = before
        self.device = torch.device("cpu")
        self.served = 0
        self.closed = False

    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        self.before(self.served)
        side = TINY["image_size"]
        shape = (self.batch_size, side, side, 3)
        batch = torch.full(shape, self.served, dtype=torch.uint8, device=self.device)
        self.served += 1
        return batch if out is None else out.copy_(batch), torch.arange(self.batch_size)

    def close(self) -> None:
        self.closed = True  # and goes on all the same: a test may train twice

    def _close(self) -> None: ...

    @staticmethod
    def number(real: torch.Tensor) -> int:
        """Which batch this is, normalised as a net gets it."""
        (level,) = real.unique().tolist()
        return round(float(level + 1) * 127.5)
