"""`dcgan-evaluate`: how good is a run's generator? Also `python -m dcgan.evaluate`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dcgan.commandline import SETTINGS, tell_progress
from dcgan.version import VersionOption
from pipeline.cores import limit_torch_threads
from pipeline.errors import UserError, plain, told_plainly
from pipeline.files import writing

if TYPE_CHECKING:
    import torch

    from dcgan.judging.fidelity import Inception
    from dcgan.judging.metrics import Measured, Provenance, Reals, Swd
    from dcgan.models import Generator
    from dcgan.run import RunFolder

app = typer.Typer()

LEAST = 16
"""Images a side: below that no distance says anything."""


@app.command(
    context_settings=SETTINGS,
    epilog="For example: dcgan-evaluate runs/0001. With FID and KID, from a file of weights:"
    " dcgan-evaluate runs/0001 --weights pt_inception-2015-12-05-6726825d.pth.",
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of dcgan-train.")],
    shards: Annotated[
        str | None,
        typer.Option(
            help="Set to compare with, or 'synthetic' for noise.", show_default="the run's own"
        ),
    ] = None,
    raw_net: Annotated[
        bool, typer.Option("--raw-net", help="Judge the net as trained, not its moving average.")
    ] = False,
    n: Annotated[
        int,
        typer.Option("--n", help="Images a side for the sliced Wasserstein distance, 16 or more."),
    ] = 2048,
    fid: Annotated[
        bool,
        typer.Option("--fid", help="Also FID and KID; downloads Inception's weights (95 MB) once."),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Also FID and KID, with the weights in this file: nothing is downloaded."
        ),
    ] = None,
    fid_n: Annotated[
        int,
        typer.Option(
            "--fid-n",
            help="Images a side for FID and KID, 16 or more.",
            show_default="50,000, or half of the set",
        ),
    ] = 50_000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode images.", show_default="one a core, up to 8; 4 for a GPU"
        ),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Compare a run's generator with real images, and these with each other.

    Writes neighbours.png into the run folder, and adds the numbers to its metrics.jsonl.
    """
    for flag, value in (("--n", n), ("--fid-n", fid_n)):
        if value < LEAST:
            raise UserError(flag, str(value), f"{LEAST} or more", "leave it out for its default")
    if workers is not None and not 1 <= workers <= 1024:
        raise UserError("--workers", str(workers), "from 1 to 1024", "leave it out")
    from dcgan.environment import pick_device
    from dcgan.models import load_generator
    from dcgan.run import RunFolder

    folder = RunFolder.open(run)
    shards = shards or _shards_of(folder)
    limit_torch_threads()
    chosen = pick_device(device)
    path = folder.generator_to_sample(raw_net)
    net = load_generator(path).to(chosen)
    inception = None
    if fid or weights is not None:
        from dcgan.judging.fidelity import Inception

        inception = Inception(weights, chosen)  # before minutes are spent on the rest
    setting = _Setting(shards, net, chosen, workers)
    seen = _Seen(folder, path.name)
    print_facts(
        {
            "net": f"{path}, after {seen.nimg:,} images",
            "reals": f"{shards}, {setting.reals(n).recipe}",
        }
    )
    swd = setting.swd(n)
    seen.record(swd)
    print_swd(swd)
    rows = setting.neighbours(n, seen.picture)
    if inception is not None:
        rows += setting.fidelity(inception, fid_n)
    for measured in rows:
        seen.record(measured)
    print_rest(rows)
    picture = f"{seen.picture}: samples, and the real images nearest to each"
    print_facts({"picture": picture, "numbers": str(folder.metrics)})


class _Setting:
    """One net beside one set."""

    def __init__(
        self, shards: str, net: Generator, device: torch.device, workers: int | None
    ) -> None:
        self._net = net
        size, channels = net.options["--image-size"], net.options["--channels"]
        self._set = (shards, size, channels, device, workers)

    def reals(self, n: int) -> Reals:
        from dcgan.judging.metrics import Reals

        return Reals(*self._set, 2 * n)

    def swd(self, n: int) -> Swd:
        from dcgan.judging.metrics import Judge

        tell_progress("sliced Wasserstein distance")
        return Judge(self.reals(n), n).judge(self._net)

    def neighbours(self, n: int, picture: Path) -> list[Measured]:
        from dcgan.judging import neighbours

        tell_progress("nearest real neighbours")
        found = neighbours.find(self._net, self.reals(n))
        with _writing(picture):
            found.save(picture)
        if found.measured is None:
            tell_progress("most real images occur twice: the distance to them has no measure")
        return [] if found.measured is None else [found.measured]

    def fidelity(self, inception: Inception, n: int) -> list[Measured]:
        from dcgan.judging import fidelity

        tell_progress("FID and KID: each image goes through Inception at 299×299")
        return fidelity.measure(self._net, self.reals(n), inception, n)


class _Seen:
    """Where the numbers of one net are written down."""

    def __init__(self, run: RunFolder, net: str) -> None:
        from dcgan.run import read_lines

        self._run, self._net = run, net
        self.picture = run.neighbours
        ticks = [tick.get("nimg") for tick in read_lines(run.stats)]
        counts = [nimg for nimg in ticks if isinstance(nimg, int)]
        self.nimg = counts[-1] if counts else 0

    def record(self, measured: Measured) -> None:
        from dcgan.run import append_line

        with _writing(self._run.metrics):
            append_line(self._run.metrics, measured.record(self.nimg, self._net))


def _writing(path: Path) -> AbstractContextManager[None]:
    wanted = "a run folder that can be written, and room in it"
    return writing(path, wanted, "make room, then give the same command again")


def print_facts(facts: dict[str, str]) -> None:
    """Print a line each, the name first; facts may have names from a file in them."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name, fact in facts.items():
        console.print(f"{name:<9}{plain(fact)}")


def print_swd(swd: Swd) -> None:
    """Print the distances of a generator with a scale in each column, the floor below."""
    table = _table()
    table.add_column("", no_wrap=True)
    for side in swd.scales:
        table.add_column(f"{side}×{side}", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True, style="bold")
    floor = 0.0 if swd.floor is None else swd.floor
    rows = {
        "generated against real": [*swd.scales.values(), swd.value],
        "real against real, the floor": [*swd.floor_scales.values(), floor],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    _print(f"Sliced Wasserstein distance × 10³, n = {swd.n:,}", table)


def print_rest(measured: list[Measured]) -> None:
    """Print the other numbers, each beside its floor, and what may be said of it."""
    if not measured:
        return
    table = _table()
    table.add_column("", no_wrap=True)
    for column in ("value", "floor", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in measured:
        floor = "" if each.floor is None else f"{each.floor:.4g}"
        table.add_row(
            _NAMES[each.metric], f"{each.value:.4g}", floor, f"{each.n:,}", _note(each.source)
        )
    _print("Other numbers", table)


def _note(source: Provenance) -> str:
    if source.digest is None:
        return "of samples, as a multiple of real images'; below 1: blur, near 0: copies"
    known = "published" if source.comparable else "unknown, not comparable with published numbers"
    return f"weights {source.digest[:8]}: {known}"


def _table() -> Table:
    return Table(box=None, pad_edge=False)


def _print(title: str, table: Table) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    # No narrower, whatever the screen: figures are not to be broken
    wide = Console(width=max(console.width, LEAST_COLUMNS), highlight=False, markup=False)
    console.print(f"\n{title}")
    wide.print(table)


LEAST_COLUMNS = 140
"""Of the terminal, for tables."""

_NAMES = {
    "fid": "FID",
    "kid": "KID",
    "neighbours": "distance to nearest real",
}


def _shards_of(run: RunFolder) -> str:
    from pipeline.manifest import ShardSet
    from pipeline.opening import SYNTHETIC

    options = run.options()
    name, known = options.get("shards"), options.get("shard_set")
    if name == SYNTHETIC:
        return SYNTHETIC
    wanted, found = "the set that the run was trained on", "which is no folder here"
    remedy = "name a shard set: --shards FOLDER"
    if isinstance(name, str) and Path(name).is_dir():
        fingerprint = ShardSet.open(Path(name)).fingerprint
        if known in (None, fingerprint):  # None: of a run from before it was written down
            return name
        found = f"which is set {fingerprint} by now"
        wanted += f", {known}"
        remedy += f"; this one, if you mean it: --shards {name}"
    raise UserError(run.config, f"shards {name}, {found}", wanted, remedy)


def main() -> None:
    """Run the command line."""
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
