"""`dcgan-evaluate`: how good is a run's generator? Also `python -m dcgan.evaluate`."""

from __future__ import annotations

import typer

from dcgan.cli import SETTINGS, PlainArguments, command
from dcgan.options import EvaluateOptions
from pipeline.errors import plain_errors

app = typer.Typer()


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: dcgan-evaluate runs/0001. With FID and KID, from a file of weights:"
    " dcgan-evaluate runs/0001 --weights pt_inception-2015-12-05-6726825d.pth.",
)
@command
def evaluate(options: EvaluateOptions) -> None:
    """Compare a run's generator with real images, and these with each other.

    Writes neighbours.png into the run folder, and adds the numbers to its metrics.jsonl.
    """
    from dcgan.metrics import evaluation  # torch and all that: only once there is work for it

    evaluation.evaluate(options)


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
