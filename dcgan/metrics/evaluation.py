"""A run's generator beside real images: each metric, on the terminal and in the run folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dcgan.cli import tell_progress
from dcgan.metrics import faces, fidelity, neighbours
from dcgan.metrics.faces import FaceRecogniser
from dcgan.metrics.pretrained import Inception, Vgg16
from dcgan.metrics.reals import BATCH, Measured, Provenance, Reals
from dcgan.metrics.swd import Swd, SwdMetric
from dcgan.nets.weights import load_generator
from dcgan.options import EvaluateOptions
from dcgan.rundir.environment import pick_device
from dcgan.rundir.folder import RunFolder, append_line, read_lines
from pipeline.errors import UserError, plain
from pipeline.files import writing
from pipeline.loading.open import SYNTHETIC
from pipeline.loading.options import LoaderOptions
from pipeline.machine import limit_torch_threads
from pipeline.shards.manifest import ShardSet


def evaluate(options: EvaluateOptions) -> None:
    """Measure a run's generator, print the numbers and add them to its `metrics.jsonl`.

    Raises:
        UserError: no run, no net, or no set to compare with.
    """
    limit_torch_threads()
    folder = RunFolder.open(options.run)
    shards = _shards_of(folder) if options.shards is None else options.shards
    device = pick_device(options.device)
    path = folder.generator_to_sample(options.raw_net)
    net = load_generator(path).to(device)
    recogniser = FaceRecogniser() if options.faces else None
    inception = None
    if options.fid or options.weights is not None:
        inception = Inception(options.weights, device)  # before minutes are spent on the rest
    vgg = None
    if options.precision_recall or options.vgg_weights is not None:
        vgg = Vgg16(options.vgg_weights, device)
    size, channels = net.options["--image-size"], net.options["--channels"]
    loader = LoaderOptions(BATCH, size, channels, device=device, workers=options.workers)
    reals = Reals(shards, loader, 2 * options.n)
    nimg = next((tick["nimg"] for tick in reversed(read_lines(folder.stats)) if "nimg" in tick), 0)
    print_facts({"net": f"{path}, after {nimg:,} images", "reals": f"{shards}, {reals.recipe}"})

    def record(measured: Measured) -> None:
        with _writing(folder.metrics):
            append_line(folder.metrics, measured.record(nimg, path.name))

    tell_progress("sliced Wasserstein distance")
    swd = SwdMetric(reals, options.n).measure(net)
    record(swd)
    print_swd(swd)

    tell_progress("nearest real neighbours")
    found = neighbours.find(net, reals)
    with _writing(folder.neighbours):
        found.save(folder.neighbours)
    facts = {"picture": f"{folder.neighbours}: samples, and the real images nearest to each"}
    rest = [found.measured] if found.measured is not None else []
    if not rest:
        tell_progress("most real images occur twice: the distance to them has no measure")
    if recogniser is not None:
        tell_progress("faces: each image goes through dlib's recogniser")
        reals = Reals(shards, loader, faces.reals_for(options.faces_n))
        alike = faces.measure(net, reals, recogniser, options.faces_n)
        with _writing(folder.neighbours_faces):
            alike.most_alike.save(folder.neighbours_faces)
        rest += [alike.distance, alike.persons]
        seeds = ", ".join(map(str, alike.seeds))
        facts["persons"] = f"{folder.neighbours_faces}: the same, of faces; seeds {seeds}"
    if inception is not None:
        tell_progress("FID, KID, Inception score: each image goes through InceptionV3 at 299×299")
        reals = Reals(shards, loader, 2 * options.fid_n)
        rest += fidelity.measure_fid(net, reals, inception, options.fid_n)
    if vgg is not None:
        tell_progress("precision and recall: each image goes through VGG16 at 224×224")
        reals = Reals(shards, loader, 2 * options.fid_n)
        rest += fidelity.measure_precision(net, reals, vgg, options.fid_n)
    for measured in rest:
        record(measured)
    print_rest(rest)
    print_facts(facts | {"numbers": str(folder.metrics)})


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
    rows = {
        "generated against real": [*swd.scales.values(), swd.value],
        "real against real, the floor": [*swd.floor_scales.values(), swd.floor],
    }
    _print_table(
        f"Sliced Wasserstein distance × 10³, n = {swd.n:,}",
        ["", *(f"{side}×{side}" for side in swd.scales), "mean"],
        [[name, *(f"{value:.2f}" for value in values)] for name, values in rows.items()],
    )


def print_rest(measured: list[Measured]) -> None:
    """Print the other numbers, each beside that of real images, and what it means."""
    rows = [
        [
            NAMES[each.metric],
            f"{each.value:.4g}",
            f"{each.floor:.4g}",
            f"{each.n:,}",
            _note(each.source),
        ]
        for each in measured
    ]
    if rows:
        _print_table("Other numbers", ["", "generated", "real", "n", ""], rows)


def _note(source: Provenance) -> str:
    if source.digest is None:
        return "of samples, as a multiple of real images'; below 1: blur, near 0: copies"
    known = "published" if source.comparable else "unknown, not comparable with published numbers"
    net = source.extractor.partition(",")[0]
    return f"{net}, weights {source.digest[:8]}: {known}"


NAMES = {
    "fid": "FID",
    "kid": "KID",
    "isc": "Inception score, higher is better",
    "precision": "precision, higher is better",
    "recall": "recall, higher is better",
    "neighbours": "distance to nearest real",
    "faces": "faces: kernel distance × 10³",
    "persons": "faces: distance to nearest real",
}
"""What people read for each metric."""


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    wide = Console(width=max(console.width, LEAST_COLUMNS), highlight=False, markup=False)
    console.print(f"\n{title}")
    wide.print(table)


LEAST_COLUMNS = 140
"""Least width of a table in characters: figures must not be broken."""


def _shards_of(folder: RunFolder) -> str:
    options = folder.options()
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
    raise UserError(folder.config, f"shards {name}, {found}", wanted, remedy)
