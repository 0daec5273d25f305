"""What every command line has in common, and what it answers to the ancestors' options."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperCommand

from pipeline.errors import UserError

SETTINGS: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
"""Of each command: argparse, and so pytorch/examples, answers to -h."""

_PACK = "pack the images first, python tools/make_shards.py FOLDER --out shards"

FORMER = {
    "--batchSize": "--batch-size",
    "--imageSize": "--image-size",
    "--niter": "--epochs",
    "--manualSeed": "--seed",
    "--outf": "--run",
    "--nc": "--channels",
    "--dataroot": f"--shards: {_PACK}",
    "--dataset": f"--shards: {_PACK}; for noise, --shards synthetic",
    "--classes": "--classes of tools/make_shards.py: pack those sub-folders alone",
    "--cuda": "--device: leave it out, and a GPU is taken where there is one",
    "--accel": "--device: leave it out, and a GPU is taken where there is one",
    "--mps": "--device: write --device mps",
    "--ngpu": "one process a GPU: torchrun --nproc-per-node 2 -m -- dcgan.train …;"
    " for none, --device cpu",
}
"""Options of pytorch/examples/dcgan/main.py, now or once, that are called otherwise here: what is
wanted instead and, unless it is to be put in the place of the other, what to do."""


def tell_progress(line: str) -> None:
    """Say what a command is at, beside its output."""
    sys.stderr.write(f"… {line}\n")
    sys.stderr.flush()


class FormerOptions(TyperCommand):
    """A command that tells those who come from pytorch/examples what their options are called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UserError: an ancestor's option is on it.
        """
        for word in args:
            name = word.partition("=")[0]
            if name in FORMER:
                ours, _, remedy = FORMER[name].partition(": ")
                remedy = remedy or f"write {ours} in its place"
                raise UserError(name, "an option of pytorch/examples", ours, remedy)
        return super().parse_args(ctx, args)
