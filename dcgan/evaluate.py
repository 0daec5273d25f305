"""`dcgan-evaluate`: how good is a generator? Also `python -m dcgan.evaluate`."""

from __future__ import annotations

import typer

from dcgan.cli import SETTINGS, PlainArguments, command
from dcgan.options import EvaluateOptions
from pipeline.errors import plain_errors

app = typer.Typer()


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: dcgan-evaluate runs/0001 --faces. With FID, KID and Inception score, from"
    " a file: dcgan-evaluate runs/0001 --weights weights-inception-2015-12-05-6726825d.pth.",
)
@command
def evaluate(options: EvaluateOptions) -> None:
    """Compare a generator with real images, and these with each other.

    Into a run's folder it writes pictures of neighbours, and adds the numbers to metrics.jsonl.
    """
    from dcgan.metrics import evaluation  # torch and all that: only once there is work for it

    raise typer.Exit(evaluation.evaluate(options))


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
