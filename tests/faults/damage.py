"""Files that lose their end, a bit, or themselves, before a command or under it."""

import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.harm import cut, flip
from tests.faults.lab import FailedError, Lab, line
from tests.faults.runs import (
    CLEAR,
    EXACT,
    LOG_EVERY,
    STATUS,
    STEPS,
    UNHARMED,
    Training,
    half_done,
    intact,
    sealed,
    small_set,
    tool,
    whole,
)

Harm = Callable[[Path, Lab], None]


def cut_off(path: Path, lab: Lab) -> None:
    cut(path, lab.random)


def cut_short(path: Path, lab: Lab) -> None:
    """Within the images: a small tar ends in kilobytes of zeros."""
    cut(path, lab.random, 0.25)


def flip_bit(path: Path, lab: Lab) -> None:
    flip(path, lab.random)


def flip_in_row(path: Path, lab: Lab) -> None:
    """In a table of samples, anywhere but in a name of the source: nothing else tells those."""
    table = path.read_bytes()
    row = lab.random.choice(table.splitlines(keepends=True)[1:])
    first, end = table.index(row), table.index(row) + row.rindex(b",")
    key_and_shard = (first, first + row.index(b",", row.index(b",") + 1))
    flip(path, lab.random, *lab.random.choice((key_and_shard, (end, first + len(row)))))


def remove(path: Path, lab: Lab) -> None:
    path.unlink()


# Shards


def _spare(lab: Lab) -> Path:
    """A set to be harmed."""
    return Path(shutil.copytree(small_set(lab), lab.folder / "set"))


def _harm_under_training(lab: Lab, harm: Harm, cache: str) -> str:
    """A shard, at a random line: the set fits in memory, so training may not notice."""
    whole(lab)
    shards = _spare(lab)
    training = Training(lab, shards, cache=cache)
    tar = lab.random.choice(sorted(shards.glob("*.tar")))
    told = lab.random.randint(1, STEPS // LOG_EVERY // 2)
    ended = training.go(line(STATUS, told), lambda running: harm(tar, lab)).plain()
    intact(training.run, least=told * LOG_EVERY)
    if ended.status:
        ended.refused(str(tar))
    shutil.copy(small_set(lab) / tar.name, tar)
    training.go_to_the_end()
    return CLEAR if ended.status else UNHARMED


def _flip_in_sample(lab: Lab) -> str:
    shards = _spare(lab)
    tar = lab.random.choice(sorted(shards.glob("*.tar")))
    with tarfile.open(tar) as archive:
        member = lab.random.choice(archive.getmembers())
    flip(tar, lab.random, member.offset_data, member.offset_data + member.size)
    lab.faults += 1
    key = member.name.partition(".")[0]
    lab.run(*tool("check_shards.py", shards)).refused(f"{tar.stem}: sample {key} ")
    return "named: shard and sample"


def _harm_set(lab: Lab, pattern: str, harm: Harm) -> str:
    shards = _spare(lab)
    path = lab.random.choice(sorted(shards.glob(pattern)))
    harm(path, lab)
    lab.faults += 1
    lab.run(*tool("check_shards.py", shards)).refused(path.stem)
    return "named: the file"


# Run folders


def _harm_checkpoint(lab: Lab, ending: str, harm: Harm) -> str:
    """The newest one: the run goes on from the one before."""
    whole(lab)
    training = half_done(lab)
    newest = max(training.run.checkpoints.glob(f"*{ending}"))
    harm(newest, lab)
    lab.faults += 1
    training.go_to_the_end()
    return EXACT


def _harm_each_checkpoint(lab: Lab) -> str:
    """Nothing to go on from: said, and nothing touched."""
    training = half_done(lab)
    paths = sorted(training.run.checkpoints.glob("*.pt"))
    for path in paths:
        lab.random.choice((cut_off, flip_bit))(path, lab)
        lab.faults += 1
    before = [path.read_bytes() for path in paths]
    training.go().refused(str(training.run.checkpoints))
    if before != [path.read_bytes() for path in paths]:
        raise FailedError("a refused command changed the checkpoints")
    return "clear error"


def _harm_records(lab: Lab, name: str, harm: Harm) -> str:
    """What can be told is told again; a line that is damaged is lost, and no other."""
    whole(lab)
    training = half_done(lab)
    harm(training.run.path / name, lab)
    lab.faults += 1
    training.go_to_the_end(stats=name != "stats.jsonl")
    return EXACT


def _harm_options(lab: Lab, harm: Harm) -> str:
    whole(lab)
    training = half_done(lab)
    path = training.run.config
    unharmed = path.read_bytes()
    harm(path, lab)
    lab.faults += 1
    steps = sealed(training.run)
    ended = training.go().plain()
    if ended.status:
        ended.refused(str(training.run.path))
        if sealed(training.run) != steps:
            ended.fail("a refused command changed the checkpoints")
        path.write_bytes(unharmed)
    training.go_to_the_end()
    return CLEAR if ended.status else EXACT


CASES = (
    *(
        Case(
            f"shard {how} under training, --cache {cache}",
            partial(_harm_under_training, harm=harm, cache=cache),
            1,
        )
        for harm, how in ((remove, "removed"), (cut_short, "truncated"))
        for cache in ("off", "host")
    ),
    Case("bit flipped in a sample", _flip_in_sample, 20),
    *(
        Case(fault, partial(_harm_set, pattern=pattern, harm=harm), times)
        for fault, pattern, harm, times in (
            ("bit flipped in an index", "*.idx", flip_bit, 10),
            ("bit flipped in the manifest", "manifest.json", flip_bit, 10),
            ("bit flipped in the table of samples", "samples.csv", flip_in_row, 10),
            ("bit flipped in the labels", "labels.npy", flip_bit, 10),
            ("shard cut off", "*.tar", cut_off, 5),
            ("index cut off", "*.idx", cut_off, 5),
            ("manifest cut off", "manifest.json", cut_off, 5),
            ("labels cut off", "labels.npy", cut_off, 5),
        )
    ),
    *(
        Case(
            f"newest checkpoint's {ending[1:]} {how}",
            partial(_harm_checkpoint, ending=ending, harm=harm),
            1,
        )
        for ending in (".pt", ".json")
        for harm, how in (
            (cut_off, "cut off"),
            (flip_bit, "with a flipped bit"),
            (remove, "removed"),
        )
    ),
    Case("each checkpoint harmed", _harm_each_checkpoint, 2),
    *(
        Case(f"{name} {how}", partial(_harm_records, name=name, harm=harm), 1)
        for name in ("stats.jsonl", "losses.csv")
        for harm, how in ((cut_off, "cut off"), (flip_bit, "with a flipped bit"))
    ),
    Case("config.json cut off", partial(_harm_options, harm=cut_off), 1),
    Case("config.json with a flipped bit", partial(_harm_options, harm=flip_bit), 2),
)
