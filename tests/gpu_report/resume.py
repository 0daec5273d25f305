"""A run that is killed (SIGKILL) and resumed, beside one that nothing happens to."""

import json as json_format
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dcgan.rundir.folder import RunFolder
from tests.running import TINY, flags, read_stats
from tests.versions import differences

STEPS, LOG_EVERY = 24, 4
NIMG = STEPS * TINY["batch_size"]
COMPARED = ("net*.pt", "losses.csv", f"checkpoints/{NIMG:09d}.pt", f"samples/fakes-{NIMG:09d}.png")
LEAST_FILES = 6
"""That match: two nets and an average, and one of each of the others."""

OPTIONS = {name: TINY[name] for name in ("batch_size", "image_size", "nz", "ngf", "ndf")}
OPTIONS |= {"max_steps": STEPS, "log_every": LOG_EVERY, "checkpoint_every": 0}


def train(run: RunFolder, shards: Path, lines: int | None = None) -> None:
    """Train to the end; or until so many status lines are told, when SIGKILL comes."""
    words = flags(shards=shards, run=run.path, deterministic=True, **OPTIONS)
    command = [sys.executable, "-m", "dcgan.train", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while lines is not None and process.poll() is None:
            if run.stats.exists() and run.stats.read_bytes().count(b"\n") >= lines:
                process.kill()
            time.sleep(0.001)
    killed = process.returncode < 0
    assert killed == (lines is not None), f"status {process.returncode}"
    print(f"{run.path.name}: {read_stats(run)[-1]['step']} of {STEPS} steps", flush=True)


def main(shards: Path, work: Path, json: Annotated[Path, typer.Option()]) -> None:
    """Compare what both leave, bit for bit; exits with 1 where that differs."""
    whole, broken = RunFolder(work / "unbroken"), RunFolder(work / "killed")
    train(whole, shards)
    train(broken, shards, lines=STEPS // LOG_EVERY // 2)
    train(broken, shards)
    resumed = "resumed  after" in (broken.path / "log.txt").read_text()
    files, found = differences(whole.path, broken.path, *COMPARED)
    told = "equal to the bit" if not found else "not equal: " + ", ".join(found)
    print(f"resumed from a checkpoint: {resumed}; {files} files are {told}")
    json.write_text(json_format.dumps({"resumed": resumed, "files": files, "differences": found}))
    raise typer.Exit(0 if resumed and files >= LEAST_FILES and not found else 1)


if __name__ == "__main__":
    typer.run(main)
