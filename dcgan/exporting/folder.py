"""The exported folder: what is in it, and how it takes an earlier one's place as a whole."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dcgan.cli import PACKAGE, version
from dcgan.exporting.card import card, title_of, version_of
from dcgan.exporting.onnx_net import OPSET, Difference, difference, to_onnx
from dcgan.nets.models import Generator
from dcgan.nets.weights import labels_beside, load_generator
from dcgan.options import ExportOptions, RunLabels
from dcgan.reporting.read import read_run
from dcgan.rundir.folder import EXPORTED, MODEL_TYPE, RunFolder, is_export, write_object
from dcgan.sampling.generate import generate
from dcgan.sampling.labels import fixed_grid
from dcgan.sampling.pictures import save_grid
from pipeline.errors import UserError, first_line
from pipeline.files import PARTIAL, file_digest, locked, write_whole, writing

if TYPE_CHECKING:
    from dcgan.exporting.playground import WebRuntime

CONFIG, ONNX, SAMPLES, PAGE, CARD = (
    "config.json", "netG.onnx", "samples.png", "playground.html", "README.md",
)  # fmt: skip
FILES = frozenset((EXPORTED, CONFIG, ONNX, SAMPLES, PAGE, CARD))

FORMAT = 1

EARLIER = ".earlier"
"""What an earlier folder's name ends in while the new one takes its place."""

EXTRA = ("onnx", "onnxscript", "onnxruntime", "safetensors")

MOST_LEVELS = 1
"""By which onnxruntime's pixels may differ from torch's: sums in another order, then rounded."""


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    sizes: dict[str, int]
    """Bytes, by name."""
    difference: Difference
    measured: bool
    """Whether the card has a metric."""
    no_page: str
    """How to have a page, too; empty where there is one."""


def export_run(options: ExportOptions, log: Callable[[str], None]) -> Exported:
    """Write the folder, whole or not at all; what takes seconds is logged.

    Raises:
        UserError: a package is absent; there is no run, or no net in it that can be exported; the
            folder holds something else, or cannot be written; onnxruntime draws other pictures.
    """
    _require_extra()
    run = RunFolder.open(options.run)
    named = options.out or run.export
    where = f"--out {named}" if options.out else str(named)
    target = Path(os.path.realpath(named))
    _require_place(target, where, run)
    from safetensors.torch import save

    runtime, no_page = _web_runtime(options.web_runtime)
    source = run.generator_to_sample(options.raw_net)
    record, nimg, net = read_run(options.run), run.nimg_of_nets(), load_generator(source)
    labels = _labels_of(source, net)
    software = f"{PACKAGE} {version()}"
    wanted, remedy = "a folder that can be written", "make room, or choose another with --out"
    with writing(where, wanted, remedy), _replacing(target, where) as folder:
        write_object(folder / CONFIG, _config(net, labels, software))
        write_whole(folder / EXPORTED, save(net.state_dict(), {"format": "pt"}))
        log(f"{ONNX}: exporting, and drawing 64 seeds with onnxruntime and with torch")
        found = _write_onnx(folder / ONNX, net)
        names, noise, rows = fixed_grid(net.options["--nz"], labels)
        save_grid(generate(net, noise, rows), folder / SAMPLES, names=names)
        if runtime is not None:
            from dcgan.exporting.playground import playground_page

            log(PAGE)
            model, title = (folder / ONNX).read_bytes(), title_of(net, options)
            page = playground_page(model, net, labels, title, runtime)
            write_whole(folder / PAGE, page.encode(errors="replace"))
        digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        text = card(net, source.name, nimg, labels, record, options, found, digests, software)
        write_whole(folder / CARD, text.encode(errors="replace"))
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    measured = any(each.net == source.name for each in record.metrics)
    return Exported(named, sizes, found, measured, no_page)


def _require_extra() -> None:
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                "dcgan-export",
                f"no package {name} that can be imported ({first_line(error)})",
                "the packages that write and check its files",
                "pip install 'dcgan-shards[export]'",
            ) from None


def _require_place(target: Path, where: str, run: RunFolder) -> None:
    """Refuse a place that no folder can take, or that is not ours to replace."""
    found, own = "", Path(os.path.realpath(run.path))
    if target.is_mount():
        found = "a mount point"
    elif target in (Path.cwd(), *Path.cwd().parents):
        found = "the folder that this command was started in, or one above"
    elif own in target.parents and target != own / run.export.name:
        found = "a folder of the run"
    if found:
        raise UserError(where, found, "a folder that can be replaced", "name another with --out")
    _require_ours(target, where)


def _require_ours(folder: Path, where: str) -> None:
    """Refuse a place where anything stands but an export, or the beginning of one."""
    if not folder.is_dir():
        if folder.exists():
            raise UserError(where, "a file", "a folder", "choose another with --out")
        return
    names = {entry.name for entry in folder.iterdir()}
    others = {name.removesuffix(PARTIAL) for name in names} - FILES
    if names and not others and names != {CONFIG + PARTIAL}:  # which is written first
        try:
            others = set() if is_export(folder) else names
        except (OSError, ValueError):
            others = names
    if others:
        raise UserError(
            where,
            f"{len(others)} other entries: {', '.join(sorted(others)[:5])}",
            "a new or empty folder, or one that dcgan-export wrote",
            "choose another with --out, or move them away",
        )


@contextmanager
def _replacing(target: Path, where: str) -> Iterator[Path]:
    """Give a new folder to write into; it becomes `target` on leaving, and goes on an exception.

    An earlier one stays until then. A process that is killed between the two renames leaves it
    under the name of `EARLIER`, from which the next one takes it back.

    Raises:
        UserError: another process writes there, or something else stands in the way.
    """
    partial, earlier = (target.with_name(target.name + ending) for ending in (PARTIAL, EARLIER))
    with _alone(target, where):
        for left in (partial, earlier):
            _require_ours(left, f"{where}, {left.name} beside it")
        if earlier.is_dir() and not target.exists():
            earlier.rename(target)
        for left in (partial, earlier):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            _require_ours(target, where)  # still: seconds have passed
            if target.exists():
                target.rename(earlier)
            partial.rename(target)
        except BaseException:
            if earlier.is_dir() and not target.exists():
                earlier.rename(target)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def _alone(target: Path, where: str) -> Iterator[None]:
    """Keep other processes from writing the same folder."""
    lock = target.with_name(f".{target.name}.lock")
    held = UserError(
        where, "another dcgan-export that writes it", "one at a time", "wait for its end"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, held):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _web_runtime(named: Path | None) -> tuple[WebRuntime | None, str]:
    """Find what a page needs; where none was named and there is none, how to get it."""
    from dcgan.exporting.playground import find_web_runtime

    try:
        return find_web_runtime(named), ""
    except UserError as error:
        if named is not None:
            raise
        return None, f"{error.found}. For one: {error.remedy}"


def _labels_of(source: Path, net: Generator) -> RunLabels | None:
    """The labels of a net, as its run has them; numbers where it does not tell."""
    if net.labels is None:
        return None
    kind, names = net.labels.kind, net.labels.names
    rows = ("0" * len(names),) if kind == "attributes" else ()
    return labels_beside(source, net.labels) or RunLabels(kind=kind, names=names, rows=rows)


def _config(net: Generator, labels: RunLabels | None, software: str) -> dict[str, object]:
    options = {name.strip("-").replace("-", "_"): value for name, value in net.options.items()}
    return {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        **options,
        "labels": labels and labels.model_dump(mode="json"),
        "software": software,
    }


def _write_onnx(path: Path, net: Generator) -> Difference:
    """Write the ONNX net, and compare what is in the file with the net.

    Raises:
        UserError: onnxruntime refuses it, or draws other pictures.
    """
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("torch", *EXTRA[:3]))
    wanted = f"a net of opset {OPSET} that onnxruntime draws with as torch does"
    remedy = f"upgrade what there is, {versions}: pip install -U 'dcgan-shards[export]'"
    try:
        model = to_onnx(net)
        write_whole(path, model)
        found = difference(path.read_bytes(), net)
    except OSError:
        raise
    except Exception as error:  # both raise anything on what they do not support
        raise UserError(ONNX, first_line(error), wanted, remedy) from error
    if found.levels > MOST_LEVELS:
        told = f"pixels that differ from torch's by {found.levels} of 255 levels"
        raise UserError(ONNX, told, f"at most {MOST_LEVELS}", remedy)
    return found
