"""The page on reliability."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

from pipeline.machine import usable_cores
from tests.faults.lab import LIMIT
from tests.faults.rows import Row, summary, table

PAGE = """\
# Reliability

What becomes of training, packing, evaluation, reports and samples when they are killed, or one of
two processes that train together is, when the disk fills up, a folder turns out to be read-only, or
files are damaged. A harness injects each fault into the real commands, run as a user runs them,
with tiny nets on a CPU, and compares what they leave with what an undisturbed run leaves, byte for
byte. The table below is its output.

## What is guaranteed

- **Killed at any moment, the same command goes on.** A run ends with the bytes of one that was
  never interrupted: nets, moving average, `losses.csv`, curves, the last grid, and `stats.jsonl`
  but for the pace. What was done since the last checkpoint is done again. Packing goes on with the
  shards that are finished, and ends with the same set; an evaluation begins again, and comes to the
  same numbers.
- **A checkpoint is whole, or it does not count.** The newest one that agrees with its `.json` is
  gone on from. One that cannot be written leaves those before it as they were.
- **A set is complete, or it is no set.** The manifest is written last, and names the size of each
  shard and the digest of each index; opening a set compares them. `check_shards.py` reads every
  byte, and names the shard and the sample.
- **Errors are told plainly**: where, what was found, what was wanted, what to do; exit status 1.
- **Nothing hangs, and nothing is left behind**: no process, no file in the folder for temporary
  files, no shared memory; files whose name ends in `.partial` are gone after the next clean end.
- **Of several processes that train together, none trains on alone.** If one is killed, the others
  end within a minute, and the same command goes on to the same bytes; `torchrun --max-restarts`
  gives it by itself.
- **NaN stays out of checkpoints.** A run that meets it stops, or goes back three times at most.

## What is not

- A loss of power. Files are flushed to the disk before they take their names, but folders are not:
  a name may be an older file's again, or missing. The checkpoint before is there then.
- Bits that change in the images while a run reads them: JPEGs that no longer decode are an error, a
  changed pixel is not noticed. `check_shards.py` tells.
- Lines of `stats.jsonl` that were damaged on the disk; those around them stay.
- A second Ctrl-C or SIGTERM ends a run at once: what came after its last checkpoint is done again.
- Ctrl-C in the first moments, while Python itself still starts, shows Python's own traceback;
  nothing has been written by then.
- Bits that change in a finished shard while packing is interrupted: packing compares its size and
  the index's digest before it goes on, and `check_shards.py` reads the rest.
- One of several processes that lives but does not answer: the others wait for it for half an hour.
- GPUs: nothing here ran on one.

## What was injected

Each kind is injected at random moments, into random files, at random bytes. "Times" counts single
faults: a command is often killed up to three times in succession, and a moment that comes after
its end is no fault. "Seconds" are those of the longest injection, with all commands that belong to
it: the one that is harmed, and the one that goes on to the end.

{table}

**{summary}.** Each command had {limit} seconds, after which it would have counted as hanging;
after each one, no process, temporary file or shared memory of its own was left.

Made on {machine}, with seed {seed}.

## How to repeat it

`make reliability` injects all of it and writes this page, in {minutes:.0f} minutes here; `make
test-all` injects it too. It takes Linux, and the right to mount file systems in a name space of
its own: where that is missing, full disks and read-only folders are listed as not possible.
`python -m tests.faults --quick` takes each kind once or a few times, `--seed` chooses other moments
and places, and `--only "disk full"` one kind. A fault that is not survived is printed with the
command that injects it again.
"""


def page(rows: Sequence[Row], seed: int) -> str:
    """Markdown, with the table of what came of the cases."""
    return PAGE.format(
        seed=seed,
        table="\n".join(table(rows)),
        summary=summary(rows),
        limit=LIMIT,
        machine=_machine(),
        minutes=max(1, sum(row.total_seconds for row in rows) / 60),
    )


def _machine() -> str:
    """Of which kind it is."""
    cores = f"{usable_cores()} cores ({platform.machine()})"
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return f"{platform.system()} with {cores}, {versions}"
