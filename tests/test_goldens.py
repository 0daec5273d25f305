"""What no version may change and no processor decides: `tests/goldens`.

`python -m tests.test_goldens --write` writes them anew, but for what must stay where it is there:
JPEGs, whose bytes depend on the encoder, and a run of each version of the checkpoint, with which
later versions must go on.
"""

import base64
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from typer.main import get_command

from dcgan.training.state import VERSION as STATE
from pipeline.shards.manifest import make_recipe
from pipeline.shards.order import Schedule
from pipeline.shards.shard_set import ShardSet
from tests.pictures import contents, encode, pack_pictures, smooth
from tests.running import (
    ROOT,
    new_trainer,
    read_losses,
    read_stats,
    stopped_after,
    tiny,
    train_here,
)
from tests.test_schedule import shard_set
from tests.test_start import COMMANDS

GOLDENS = ROOT / "tests" / "goldens"
JPEGS, CURRENT = GOLDENS / "jpegs.json", GOLDENS / f"run-of-state-{STATE}"

RUN: dict[str, Any] = {"batch_size": 16, "nz": 4, "ngf": 2, "ndf": 2, "mirror": True}
RUN |= {"shards": "set", "log_every": 4, "sample_every": 4, "ema_nimg": 10_000}
STOPPED = 5
"""Within a tick, and within an epoch of two steps."""


def order_of_batches() -> dict[str, str]:
    """The rows of all ranks' batches: shape and SHA-256."""
    found = {}
    celeba = [4096] * 49 + [1895]  # longer than the window
    runs = [([8] * 5 + [3], 8, 1), ([8] * 5 + [3], 4, 2), ([100, 1, 40, 259], 16, 3)]
    for sizes, batch_size, ranks in [*runs, (celeba, 128, 1)]:
        shards = shard_set(sizes)
        for seed, epoch in ((0, 0), (0, 1), (999, 0), (999, 7)):
            each = [Schedule.of(shards, batch_size, seed, rank, ranks) for rank in range(ranks)]
            rows = np.array([list(schedule.batches(epoch)) for schedule in each], dtype="<i8")
            name = f"{len(shards)} images, {ranks}×{batch_size}, seed {seed}, epoch {epoch}"
            found[name] = f"{rows.shape} {digest(rows.tobytes())}"
    return found


def shard_sets() -> dict[str, Any]:
    """Sets whose bytes no codec has a part in; and what recipes are called."""
    jpegs = {name: base64.b64decode(data) for name, data in json.loads(JPEGS.read_text()).items()}
    recipe = make_recipe("original", None, "40", None, checked=True)
    ways: list[tuple[Any, ...]] = [("jpeg", None, None, None), ("jpeg", 96, "none", 80)]
    ways += [
        ("raw", None, None, None),
        ("raw", 48, "108", None),
        ("original", None, None, None, "crop"),
    ]
    found: dict[str, Any] = {
        "recipes": [make_recipe(*way, checked=True).describe() for way in ways]
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, shards in {
            "original": pack_pictures(Path(folder, "original"), jpegs, per_shard=4),
            "cropped": pack_pictures(Path(folder, "cropped"), jpegs, recipe=recipe, seed=3),
            "raw": pack_raw(Path(folder, "raw")),
        }.items():
            files = {file: digest(data) for file, data in sorted(contents(shards.folder).items())}
            identity = {
                "told": shards.manifest.recipe.describe(),
                "fingerprint": shards.fingerprint,
            }
            found[name] = identity | {"files": files}
    return found


def pack_raw(folder: Path) -> ShardSet:
    """40 images in integers, as large as what is stored: nothing is rounded or resized."""
    y, x, c = np.mgrid[0:32, 0:32, 0:3]
    drawn = [(x * (k % 7) + y * (k % 5) + 60 * c + 6 * k) % 256 for k in range(40)]
    pngs = {f"{k:02d}.png": encode(each.astype(np.uint8), "PNG") for k, each in enumerate(drawn)}
    recipe = make_recipe("raw", 32, None, None, checked=True)
    return pack_pictures(folder, pngs, per_shard=16, recipe=recipe)


def options_of_commands() -> dict[str, dict[str, str]]:
    """By command and flags: the type, and the default or that the option must be given."""
    found = {}
    for module in [*COMMANDS, *(f"tools.{path.stem}" for path in sorted(ROOT.glob("tools/*.py")))]:
        command = get_command(import_module(module).app)
        inner = getattr(command, "commands", {})
        for name, each in {
            "": command,
            **{f" {name}": each for name, each in inner.items()},
        }.items():
            hints = get_type_hints(each.callback)
            found[module + name] = {
                " ".join([*option.opts, *option.secondary_opts]): _described(option, hints)
                for option in each.params
                if option.name in hints  # the others are typer's own
            }
    return found


def _described(option: Any, hints: dict[str, Any]) -> str:
    hint = hints[option.name]
    parts = [part for part in get_args(hint) if part is not types.NoneType] or [hint]
    kind = "|".join(part.__name__ if isinstance(part, type) else str(part) for part in parts)
    several = " …" if option.multiple else ""
    return f"{kind}{several}, " + ("required" if option.required else f"default {option.default}")


WRITTEN: dict[str, Callable[[], Any]] = {
    "order.json": order_of_batches,
    "sets.json": shard_sets,
    "options.json": options_of_commands,
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_as_it_was_written_down(name):
    wanted = json.loads((GOLDENS / name).read_text(encoding="utf-8"))
    assert len(wanted) > 3
    assert json.loads(json.dumps(WRITTEN[name]())) == wanted


@pytest.mark.parametrize("golden", sorted(GOLDENS.glob("run-*")), ids=lambda path: path.name)
@pytest.mark.usefixtures("undrawn")
def test_a_run_of_an_earlier_version_goes_on(golden, tmp_path, monkeypatch):
    assert CURRENT.is_dir()
    monkeypatch.chdir(tmp_path)
    pack_raw(tmp_path)
    shutil.copytree(golden, "run")
    (path,) = Path("run/checkpoints").glob("*.pt")
    saved = torch.load(path, weights_only=True)
    # Nothing is left to do: what it has so far is what it had
    run = train_here(tiny(Path("run"), max_steps=STOPPED, **RUN)).run.folder
    for name, file in (("generator", run.generator), ("discriminator", run.discriminator)):
        net = torch.load(file, weights_only=True)
        assert all(net[key].equal(tensor) for key, tensor in saved["step"][name].items())
    losses = read_losses(run)
    assert losses.shape == (STOPPED, 6)
    run = train_here(tiny(Path("run"), max_steps=9, **RUN)).run.folder
    assert np.array_equal(read_losses(run)[:STOPPED], losses)
    assert np.isfinite(read_losses(run)).all()
    assert [tick["nimg"] for tick in read_stats(run)] == [64, 128, 144]


def write_run() -> None:
    """A run that was stopped, without what going on does not need."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pack_raw(Path(folder))
        config = tiny(Path("run"), max_steps=9, **RUN)
        run = stopped_after(new_trainer(config), STOPPED).run.folder
        for path in (run.config, run.stats, *run.checkpoints.iterdir()):
            kept = CURRENT / path.relative_to(run.path)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)


def write() -> None:
    GOLDENS.mkdir(exist_ok=True)
    drawn = {f"{'ab'[k % 2]}/{k}.jpg": encode(smooth(50 + 3 * k, 60 - 3 * k, k)) for k in range(5)}
    drawn["grey.jpg"] = encode(smooth(48, 48)[:, :, 0])
    if not JPEGS.exists():
        write_json(JPEGS, {name: base64.b64encode(data).decode() for name, data in drawn.items()})
    for name, made in WRITTEN.items():
        write_json(GOLDENS / name, made())
    if not CURRENT.exists():
        write_run()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
