"""`dcgan-profile`: where the time goes, measured; also `python -m dcgan.profile`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from dcgan.cli import SETTINGS, Command, VersionOption, command
from dcgan.options import MeasuringSet, MeasuringStep, MeasuringStore, MeasuringTraining
from pipeline.errors import plain_errors

# Each command imports its module when it runs: torch loads only once there is work for it.
# They stand in the order in which an image comes to them; --help and the guides keep to it.

app = typer.Typer(
    no_args_is_help=True,
    context_settings=SETTINGS,
    epilog="For example: dcgan-profile train --shards shards/, which says whether data or step"
    " bounds. Options stand behind the command: dcgan-profile train --help has them.",
)

STOPPED = "stopped; nothing was left behind"


@app.callback()
def profile(version: VersionOption = False) -> None:
    """Measure loaders and training on this machine, in alternating rounds."""


def _measures(function: Callable[[Any], None]) -> Callable[..., Any]:
    """Make a function a command, which Ctrl-C ends with that status, once its files are gone."""

    @wraps(function)
    def stoppable(options: Any) -> None:
        try:
            function(options)
        except KeyboardInterrupt:
            typer.echo(STOPPED, err=True)
            raise typer.Exit(130) from None

    return app.command(cls=Command)(command(stoppable))


@_measures
def loader(options: MeasuringSet) -> None:
    """The loader alone: rate, CPU time, memory, and how soon the first batch comes."""
    from dcgan.profiling.loader import profile

    profile(options)


@_measures
def stages(options: MeasuringSet) -> None:
    """Read, decode, resize, normalise, copy: which one bounds, and what would remove it."""
    from dcgan.profiling.stages import profile

    profile(options)


@_measures
def compare(options: MeasuringSet) -> None:
    """The same images through the tutorial's loader, webdataset, plain DALI, and ours."""
    from dcgan.profiling.compare import profile

    profile(options)


@_measures
def store(options: MeasuringStore) -> None:
    """A set in a store beside the same set in a folder: CPU time, rate, and the first batch."""
    from dcgan.profiling.store import profile

    profile(options)


@_measures
def step(options: MeasuringStep) -> None:
    """The step alone, on noise: the tutorial's, and ours eager, compiled and as a graph."""
    from dcgan.profiling.step import profile

    profile(options)


@_measures
def train(options: MeasuringTraining) -> None:
    """The step with free data, the loader alone, and both together: which is the bottleneck."""
    from dcgan.profiling.train import profile

    profile(options)


def main() -> None:
    """Run the command line."""
    # SIGTERM ends a command as Ctrl-C does: its temporary folders and processes go first
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with plain_errors(STOPPED):
        app()


if __name__ == "__main__":
    main()
