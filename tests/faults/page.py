"""The page on reliability."""

from collections.abc import Sequence

from tests.faults.lab import LIMIT
from tests.faults.rows import Row, summary, table

PAGE = """\
# Reliability

What happens to training, packing and evaluation when they are killed, the disk fills up, or files
are damaged. The table is made by `make reliability`, which injects each fault into the real
commands, with tiny nets on a CPU, and demands what is said here; `make test-all` repeats it.

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
- **NaN stays out of checkpoints.** A run that meets it stops, or goes back three times at most.

## What is not

- A loss of power. Files are flushed to the disk before they take their names, but folders are not:
  a name may be an older file's again, or missing. The checkpoint before is there then.
- Bits that change in the images while a run reads them: JPEGs that no longer decode are an error, a
  changed pixel is not noticed. `check_shards.py` tells.
- Lines of `stats.jsonl` that were damaged on the disk; those around them stay.
- A second Ctrl-C or SIGTERM ends a run at once: what came after its last checkpoint is done again.

## What was injected

Each kind is injected at random moments, into random files, at random bytes; seed {seed}. Times are
single faults; a command is often killed three times in succession. Seconds are those of all
commands that one injection took, the one that goes on to the end among them.

{table}

**{summary}.** Each command had {limit} seconds, after which it would have counted as hanging.
"""


def page(rows: Sequence[Row], seed: int) -> str:
    """Markdown, with the table of what came of the cases."""
    told = "\n".join(table(rows))
    return PAGE.format(seed=seed, table=told, summary=summary(rows), limit=LIMIT)
