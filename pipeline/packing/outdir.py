"""The output folder of packing: whose it is, what an earlier run left, and the swap of sets."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import PARTIAL, locked, write_new, write_whole, writing
from pipeline.images.size import sides
from pipeline.packing.plan import Entry, Plan, differences, plan_json
from pipeline.packing.shard import Work
from pipeline.shards.manifest import (
    LABELS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PROGRESS,
    REJECTS,
    SAMPLES,
    Manifest,
    Recipe,
)

NEW = ".new"
"""Sub-folder in which `--overwrite` builds the next set."""

PLAN = "plan.json"
"""In the progress folder: the source and the options of the set."""

LOCK = ".packing.lock"
"""Held by the process that packs; removed when it ends, unless it was killed."""

PART_LOCK = "part-{}-of-{}.lock"
"""In the progress folder: held by the process that packs this part; removed as well."""

MOMENT = 60.0
"""Seconds that a part waits while others of its set begin, each of which takes milliseconds."""

NOT_CONTENT = frozenset(("README.md", ".gitignore", LOCK))
"""Files that may stand in an output folder though it counts as empty."""

OURS = re.compile(
    rf"(shard-\d{{6}}\.(tar|idx)|{'|'.join(map(re.escape, (SAMPLES, REJECTS, LABELS, MANIFEST)))})"
    rf"({re.escape(PARTIAL)})?"
)
"""Files of a set, finished or not."""

TAR_OVERHEAD = 1024
"""Bytes a member costs beyond its own: a 512-byte header, and padding to 512."""


class HeldError(UserError):
    """Another process packs there at the moment."""


@contextmanager
def held(out: Path, flag: str = "--out") -> Iterator[None]:
    """Make an output folder and hold it for this process alone; a killed one lets go of it too.

    Raises:
        HeldError: another process has it, or packs a part of its set.
        UserError: it cannot be made; it names the flag.
    """
    with _locked(out, flag):
        for lock in sorted((out / PROGRESS).glob(PART_LOCK.format("*", "*"))):
            with locked(lock, _part_held(out, flag, lock.stem)):
                pass
        yield


@contextmanager
def held_part(out: Path, plan: Plan, number: int) -> Iterator[None]:
    """Hold one part of the set that is made in a folder, whose other parts others may hold.

    The folder as a whole is held for a moment, in which the plan is compared, or written.

    Raises:
        HeldError: another process has the part, or the whole folder.
        UserError: as `claim` does.
    """
    name = PART_LOCK.format(number, plan["parts"])
    with ExitStack() as stack:
        with _locked(out, "--out", MOMENT):
            claim(out, plan, overwrite=False)
            (out / PROGRESS).mkdir(exist_ok=True)
            write_new(out / PROGRESS / PLAN, plan_json(plan))
            claim(out, plan, overwrite=False)  # where locks do not hold, another plan came first
            lock = out / PROGRESS / name
            stack.enter_context(locked(lock, _part_held(out, "--out", lock.stem)))
        stack.callback(_forget, lock)
        yield


@contextmanager
def _locked(out: Path, flag: str, patience: float = 0.0) -> Iterator[None]:
    if out.exists() and not out.is_dir():
        raise UserError(f"{flag} {out}", "a file", "a folder", f"choose another {flag}")
    refusal = HeldError(
        f"{flag} {out}",
        "a folder that another process is packing into",
        "a folder that nobody packs into at the moment",
        f"wait for its end, or choose another {flag}",
    )
    with ExitStack() as stack:
        with writing(f"{flag} {out}", "a folder that can be written"):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / LOCK, refusal, patience))
        # While it is held: filelock, from 3.21 on, sees whether what it has locked still has a name
        stack.callback(_forget, out / LOCK)
        yield


def _part_held(out: Path, flag: str, part: str) -> HeldError:
    return HeldError(
        f"{flag} {out}",
        f"{part}, which another process is packing into it",
        "a part that nobody packs at the moment",
        "wait for its end",
    )


def _forget(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink(missing_ok=True)


def keep_plan(target: Path, plan: Plan) -> None:
    """Write the plan of a set that is to be made in a folder, which is ours."""
    (target / PROGRESS).mkdir(parents=True, exist_ok=True)
    write_whole(target / PROGRESS / PLAN, plan_json(plan))


def claim(out: Path, plan: Plan, *, overwrite: bool) -> Path:
    """Find out whether a set may be made in `out`, and make the folder.

    Returns:
        The folder to build in: `out`, or its `.new` where a complete set is to be replaced.

    Raises:
        UserError: `out` holds something else, a complete set, or an unfinished one of another plan.
    """
    held = {entry.name for entry in out.iterdir()} - NOT_CONTENT if out.exists() else set()
    foreign = sorted(
        name for name in held if name not in (PROGRESS, NEW) and not OURS.fullmatch(name)
    )
    manifest = _json_object(out / MANIFEST)
    if LABELS in held and MANIFEST in held and "labels" not in manifest:
        foreign.append(LABELS)  # somebody's own, beside a set that has none
    # Other programs use a manifest's name too
    is_manifest = {"format", "recipe", "shards"} <= manifest.keys()
    ours = not held or PROGRESS in held or NEW in held or is_manifest
    # A damaged set, or a copy that lacks its manifest: --overwrite gives it up
    ours = ours or (overwrite and any(name.endswith(".idx") for name in held))
    complete = MANIFEST in held and not (out / PROGRESS / PLAN).exists()
    if foreign or not ours:
        others = foreign or sorted(held)
        raise UserError(
            f"--out {out}",
            f"{len(others)} other entries: {', '.join(others[:5])}",
            "a new or empty folder",
            "choose another --out",
        )
    if complete and not overwrite:
        shutil.rmtree(out / PROGRESS, ignore_errors=True)  # emptied by a run that was cut off
        raise UserError(
            f"--out {out}",
            "a complete shard set",
            "a new or empty folder",
            "use it as it is, or choose another --out; without parts, --overwrite replaces it",
        )
    replacing_set = NEW in held or (MANIFEST in held and overwrite)
    target = out / NEW if replacing_set else out
    _require_same_plan(target, plan, overwrite)
    with writing(f"--out {out}", "a folder that can be written"):
        target.mkdir(parents=True, exist_ok=True)
    return target


def _json_object(path: Path) -> dict[str, object]:
    """What a file of JSON holds; empty if it is no object, or longer than any of ours."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_same_plan(target: Path, plan: Plan, overwrite: bool) -> None:
    differing = differences(kept_plan(target), plan)
    if differing is None:
        return
    if overwrite:
        empty_progress(target)
        return
    anew = "delete it to start anew" if plan.get("parts") else "start anew with --overwrite"
    again = f"repeat the command that was cut off, choose another --out, or {anew}"
    raise UserError(f"--out {target}", *differing, again)


def kept_plan(folder: Path) -> Plan | None:
    """The plan of the unfinished set in a folder, if there is one."""
    path = folder / PROGRESS / PLAN
    return _json_object(path) if path.is_file() else None


def empty_progress(folder: Path) -> None:
    """Forget what was finished: records before the rows they vouch for, and the plan last of all.

    The sub-folder stays, as the sign that the shards beside it are ours.
    """
    for entry in sorted((folder / PROGRESS).iterdir(), key=_vouches_for):
        entry.unlink()


def _vouches_for(entry: Path) -> int:
    return 2 if entry.name == PLAN else 0 if entry.suffix == ".json" else 1


def require_space(work: Work, left: Iterable[list[Entry]], flag: str) -> None:
    """Compare what is still to be written with the disk's free space.

    Raises:
        UserError: it does not fit; it names the flag.
    """
    recipe = work.packing.recipe
    pixels = 3 * math.prod(sides(recipe.size)) if recipe.size else None
    overhead = TAR_OVERHEAD * (1 if work.labels is None else 2)  # a label is a member, too
    needed = sum(
        _at_least(member.size, pixels, recipe) + overhead
        for entries in left
        for _, member in entries
    )
    free = shutil.disk_usage(work.out).free
    if free < needed:
        raise UserError(
            f"{flag} {work.out}",
            f"{free / 1e9:.2f} GB free",
            f"{needed / 1e9:.2f} GB for these images",
            f"free some space, choose another {flag}, or pack fewer images with --limit",
        )


def _at_least(size: int, pixels: int | None, recipe: Recipe) -> int:
    """Bytes that a file of `size` bytes takes at least: a false alarm is worse than none."""
    if pixels is None:
        return max(size, 0)
    return pixels if recipe.store == "raw" else min(max(size, 0), pixels)


def swap_in(target: Path, out: Path, manifest: Manifest) -> None:
    """Move a complete set into `out`, file by file, the manifest last; drop the leftovers.

    Between the first and the last of these moves `out` has no manifest, and readers call it
    unfinished; the same packing command finishes it.
    """
    _drop_leftovers(target, manifest)
    if target == out:
        empty_progress(out)
        (out / PROGRESS).rmdir()
        return
    shutil.rmtree(out / PROGRESS, ignore_errors=True)
    (out / MANIFEST).unlink(missing_ok=True)
    for entry in sorted(target.iterdir()):
        if entry.name not in (PROGRESS, MANIFEST):
            entry.replace(out / entry.name)
    _drop_leftovers(out, manifest)
    (target / MANIFEST).replace(out / MANIFEST)
    empty_progress(target)
    shutil.rmtree(target)


def _drop_leftovers(folder: Path, manifest: Manifest) -> None:
    """Delete files of an interrupted run or of the set before that are not this set's."""
    kept = {MANIFEST, *manifest.digests}
    for entry in list(folder.iterdir()):
        if OURS.fullmatch(entry.name) and entry.name not in kept:
            entry.unlink()
