"""An earlier commit and this tree, side by side: `python -m tests.across_versions`.

Both run the same commands on the same pictures, on the CPU, each in a folder of its own, and what
they leave there must be equal to the bit. This tree also goes on with a run that the earlier commit
began. Not compared are times, and words for people. Exits with 1 if anything else differs that
`EXPECTED` does not list.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.pictures import encode, noisy, numbered, smooth, write_pictures
from tests.running import ROOT, TINY, flags
from tests.versions import CommandError, Tree, checkout, differences

BEFORE = "a597516"

EXPECTED: dict[str, dict[str, str]] = {
    BEFORE: {
        "here/set?/manifest.json": "it holds the digests of samples.csv and rejects.csv since",
        "*/fakes_init.png": "it shows the average, with BatchNorm fitted, as later pictures do",
        "*/reals*.png": "they show as many real images as a grid has, not the first batch alone",
        "*.pt#watch/reals_spread": "it is measured on those",
        "*metrics.jsonl#*": "all real images are compared with, where up to 15 were left out",
        "*.json#swd": "likewise",
        "*/neighbours.png": "likewise",
        "here/drawn/walk.gif": "small pictures are enlarged",
    }
}
"""By earlier commit, what is meant to differ from it: patterns for the names that differences are
told under, each with its reason."""

MOST_TOLD = 8
"""Differences in a case; the first is what counts."""

STEPS, STOPPED = 18, 7
"""Of a run, and of one that is to go on; an epoch is five."""

Words = tuple[object, ...]


Compared = tuple[Path, Path, tuple[str, ...]]
"""A folder of the earlier commit's, one of this tree's, and patterns for the files to compare."""


class Trees:
    """The earlier commit, this tree, and this tree as the heir of what the earlier commit began.

    Args:
        before: the earlier commit's code.
        work: an empty folder.
    """

    def __init__(self, before: Path, work: Path) -> None:
        self.work = work
        self.before = Tree(before, work / "before")
        self.here, self.heir = Tree(ROOT, work / "here"), Tree(ROOT, work / "heir")
        for tree in (self.before, self.here, self.heir):
            tree.folder.mkdir()
            # What is installed may be another checkout
            (tree.folder / "where.py").write_text("import dcgan, pipeline; print(dcgan, pipeline)")
            assert tree.run("where").count(f"from '{tree.code}/") == 2
        write_pictures(work / "pictures", pictures())

    def both(self, *words: object, status: int = 0) -> None:
        """Run a command in both trees, at the same time."""
        with ThreadPoolExecutor(2) as pool:
            trees = (self.before, self.here)
            for running in [pool.submit(tree.run, *words, status=status) for tree in trees]:
                running.result()

    def copy(self, name: str, copy: str) -> None:
        """Copy what both have under a name."""
        for tree in (self.before, self.here):
            shutil.copytree(tree.folder / name, tree.folder / copy)

    def made(self, name: str, *patterns: str, heir: bool = False) -> Compared:
        """What the earlier commit and this tree left under a name; or the heir, instead of it."""
        other = self.heir if heir else self.here
        return self.before.folder / name, other.folder / name, patterns or ("*",)

    def training(self, run: str, store: str, **options: Any) -> Words:
        """A command that trains, on a set of 43 images that the earlier commit packs."""
        shards = Path("../sets") / store
        if store != "synthetic" and not (self.here.folder / shards).exists():
            size = () if store == "original" else ("--size", 32)
            out = ("--out", shards, "--per-shard", 8, "--workers", 1)
            source = "../pictures/sub"
            self.before.run("tools/make_shards.py", source, "--store", store, *size, *out)
        chosen = TINY | {"max_steps": STEPS, "log_every": 4, "sample_every": 8} | options
        where = {"run": run, "shards": store if store == "synthetic" else shards}
        return ("dcgan.train", *flags(**where, **chosen))

    def train_in_colour(self) -> Words:
        """Train the run that several cases look at, once; gives the command."""
        words = self.training("colour", "original", evaluate_every=8, step="auto")
        if not (self.here.folder / "colour").exists():
            self.both(*words)
        return words


def pictures() -> dict[str, bytes]:
    """43 to train on, in `sub`; beside them what is converted, cropped or refused."""
    odd = {
        "tall.jpg": encode(smooth(70, 90)),
        "wide.jpg": encode(noisy(100, 64, seed=3), quality=75),
        "grey.jpg": encode(smooth(64, 64, seed=1)[:, :, 0]),
        "pixels.png": encode(noisy(66, 80, seed=2), "PNG"),
        "broken.jpg": encode(noisy(64, 64))[:900],
    }
    plain = {f"sub/{number:02d}.jpg": numbered(5 * number) for number in range(40)}
    large = {f"sub/large-{k}.jpg": encode(smooth(60 + k, 50, seed=k)) for k in range(3)}
    return plain | large | {f"odd/{name}": data for name, data in odd.items()}


# The cases


def packing(trees: Trees) -> Iterator[Compared]:
    ways: tuple[Words, ...] = (
        ("--store", "original"),
        ("--store", "original", "--crop", 48, "--seed", 5, "--classes", "odd"),
        ("--store", "jpeg", "--size", 32, "--quality", 80),
        ("--store", "raw", "--size", 32, "--limit", 20),
        ("--store", "raw", "--size", 24, "--crop", 30, "--no-check"),
    )
    for number, words in enumerate(ways):
        more = ("--out", f"set{number}", "--per-shard", 8, "--workers", 1, "--max-rejects", 0.5)
        trees.both("tools/make_shards.py", "../pictures", *words, *more)
        yield trees.made(f"set{number}")


def colour(trees: Trees) -> Iterator[Compared]:
    trees.train_in_colour()
    yield trees.made("colour")


def grey(trees: Trees) -> Iterator[Compared]:
    options: dict[str, Any] = {"channels": 1, "cache": "off", "ema_nimg": 0, "deterministic": True}
    options |= {"label_smoothing": 0.1, "lr_d": 1e-4, "beta1": 0.4, "seed": 7}
    trees.both(*trees.training("grey", "jpeg", **options))
    yield trees.made("grey")


def alarms(trees: Trees) -> Iterator[Compared]:
    """D saturates for a hundred steps; the run goes back three times, and stops."""
    options: dict[str, Any] = {"on_trouble": "rollback", "checkpoint_every": 0, "log_every": 1}
    options |= {"lr_d": 0.02, "lr_g": 1e-6, "ema_nimg": 0, "max_steps": 120, "sample_every": 100}
    trees.both(*trees.training("alarms", "synthetic", **options), status=1)
    assert (trees.before.folder / "alarms/alarms.jsonl").read_text().count("rollback") == 3
    yield trees.made("alarms")


def resumed(trees: Trees) -> Iterator[Compared]:
    """Stopped within the second epoch, and finished; the heir finishes the earlier commit's."""
    options: dict[str, Any] = {"precision": "bf16", "mirror": True, "cache": "host"}
    trees.both(*trees.training("resumed", "raw", **options, max_steps=STOPPED))
    trees.copy("resumed", "stopped")
    yield trees.made("stopped")
    shutil.copytree(trees.before.folder / "stopped", trees.heir.folder / "resumed")
    words = trees.training("resumed", "raw", **options)
    trees.both(*words)
    yield trees.made("resumed")
    trees.heir.run(*words)
    yield trees.made("resumed", heir=True)


def terminated(trees: Trees) -> Iterator[Compared]:
    """By SIGTERM, at whatever step that came; then finished, as the run that was left in peace."""
    words = trees.train_in_colour()
    trees.heir.run(*words, stop=True)
    trees.heir.run(*words)
    nimg = [f"{steps * TINY['batch_size']:09d}" for steps in (8, 16, STEPS)]
    grids = [f"samples/fakes-{each}.png" for each in nimg]
    kept = ("net*.pt", "losses.*", "stats.jsonl", "metrics.jsonl", "reals.png", "fakes_init.png")
    yield trees.made("colour", *kept, *grids, f"checkpoints/{nimg[-1]}.pt", heir=True)


def ranks(trees: Trees) -> Iterator[Compared]:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    # Without the dashes torchrun takes --run for one of its own options
    words = trees.training("ranks", "raw", mirror=True)
    trees.both(*torchrun, "--log-dir", "torchrun", "-m", "--", *words)
    yield trees.made("ranks")


def sample(trees: Trees) -> Iterator[Compared]:
    trees.train_in_colour()
    for tree in (trees.before, trees.here):
        (tree.folder / "drawn").mkdir()
    each = ("--seeds", "0-3,70", "--each", "drawn")
    walk = ("--interpolate", "12:34", "--frames", 5, "--out", "drawn/walk.gif", "--raw-net")
    for words in (each, walk):
        trees.both("dcgan.sample", "colour", *words)
    yield trees.made("drawn")


def evaluate(trees: Trees) -> Iterator[Compared]:
    trees.train_in_colour()
    trees.copy("colour", "evaluated")
    trees.both("dcgan.evaluate", "evaluated", "--n", 16, "--workers", 1)
    yield trees.made("evaluated", "metrics.jsonl", "neighbours.png")


Case = Callable[[Trees], Iterator[Compared]]
ALL: tuple[Case, ...] = (
    packing,
    colour,
    grey,
    alarms,
    resumed,
    terminated,
    ranks,
    sample,
    evaluate,
)
CASES = {case.__name__: case for case in ALL}


# The program


def carry_out(case: Case, trees: Trees) -> tuple[int, dict[str, str], str]:
    """Give the number of files compared, what differs by name, and the command that failed."""
    files: int = 0
    found: dict[str, str] = {}
    try:
        for one, other, patterns in case(trees):
            count, unlike = differences(one, other, *patterns)
            assert count, f"nothing to compare in {one} and {other}"
            files += count
            whose = f"{other.parent.name}/{other.name}"
            found |= {f"{whose}/{name}": told for name, told in unlike.items()}
    except CommandError as error:
        return files, found, str(error)
    return files, found, ""


def main(words: list[str] | None = None) -> int:
    """Carry out the cases, tell of each in a line or more; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.across_versions", description=__doc__)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help=f"default: {BEFORE}")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="NAME")
    asked = parser.parse_args(words)
    expected = EXPECTED.get(asked.before, {})
    seen, failed = dict.fromkeys(expected, 0), []
    with checkout(asked.before) as code, tempfile.TemporaryDirectory(prefix="across-") as work:
        trees = Trees(code, Path(work))
        for name in asked.only:
            began = time.monotonic()
            files, found, failure = carry_out(CASES[name], trees)
            lines = failure.splitlines()
            for difference, told in found.items():
                meant = [pattern for pattern in expected if fnmatch(difference, pattern)]
                seen |= {pattern: seen[pattern] + 1 for pattern in meant}
                lines += [] if meant else [f"{difference}: {told}"]
            failed += [name] if lines else []
            verdict = "FAILED" if failure else "DIFFERENT" if lines else "equal"
            print(f"{name:<11} {verdict}: {files} files, {time.monotonic() - began:.0f} s")
            for line in [*lines[:MOST_TOLD], f"… {len(lines)} lines"][: len(lines)]:
                print(f"    {line}", flush=True)
    for pattern, why in expected.items():
        print(f"expected    {pattern}, {seen[pattern]} seen: {why}")
    told = f"not equal: {', '.join(failed)}" if failed else "all equal"
    print(f"\n{len(asked.only)} cases beside {asked.before}: {told}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
