"""`dcgan-profile`: where the time goes, measured; also `python -m dcgan.profile`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dcgan.commandline import SETTINGS
from dcgan.profiling.options import Options, StepOptions
from dcgan.profiling.report import publish
from dcgan.version import VersionOption
from pipeline.errors import told_plainly

app = typer.Typer(
    no_args_is_help=True,
    context_settings=SETTINGS,
    epilog="For example: dcgan-profile train --shards shards/, which says whether data or step"
    " bounds. Options stand behind the command: dcgan-profile train --help has them.",
)

DATA, NETS, MEASURING, OUTPUT = "The data", "The nets", "The measuring", "The output"

Shards = Annotated[
    Path, typer.Option(help="Folder made by tools/make_shards.py.", rich_help_panel=DATA)
]
Images = Annotated[
    int,
    typer.Option(
        help="Images to measure with: whole shards, until they hold so many.", rich_help_panel=DATA
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.", rich_help_panel=DATA)]
ImageSize = Annotated[int, typer.Option(help="Side in pixels, 8 to 4,096.", rich_help_panel=DATA)]
NetsSize = Annotated[
    int, typer.Option(help="Side in pixels: 32, 64, 128 or 256.", rich_help_panel=DATA)
]
Ngf = Annotated[int, typer.Option(help="Width of the generator.", rich_help_panel=NETS)]
Ndf = Annotated[int, typer.Option(help="Width of the discriminator.", rich_help_panel=NETS)]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads of ours, processes of others.",
        show_default="one a core, up to 8; 4 for a GPU",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[int, typer.Option(help="Of the order of images.", rich_help_panel=DATA)]
Rounds = Annotated[
    int, typer.Option(help="Turns that each contender has.", rich_help_panel=MEASURING)
]
Seconds = Annotated[
    float, typer.Option(help="Seconds that a turn takes, at least.", rich_help_panel=MEASURING)
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MEASURING)
]
Json = Annotated[
    Path | None,
    typer.Option(help="Write every round's numbers to this file.", rich_help_panel=OUTPUT),
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw the result to this PNG.", rich_help_panel=OUTPUT)
]

IMAGES = 8192
"""Two shards of the default size: more than the page cache needs to be warm, and written out and
packed anew in seconds."""


@app.callback()
def profile(version: VersionOption = False) -> None:
    """Measure loaders and training on this machine, in alternating rounds."""


@app.command()
def loader(
    shards: Shards,
    images: Images = IMAGES,
    batch_size: BatchSize = 128,
    image_size: ImageSize = 64,
    workers: Workers = None,
    seed: Seed = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    device: Device = "auto",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The loader alone: rate, CPU time, memory, and how soon the first batch comes."""
    options = Options(
        shards, rounds, seconds, images, workers, batch_size, image_size, device, seed, json, plot
    )
    with _stoppable():
        # torch and all that: only once there is work for it
        from dcgan.profiling.loader import profile

        publish(profile(options), json, plot)


@app.command()
def stages(
    shards: Shards,
    images: Images = IMAGES,
    batch_size: BatchSize = 128,
    image_size: ImageSize = 64,
    workers: Workers = None,
    seed: Seed = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 1.0,
    device: Device = "auto",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Read, decode, resize, normalise, copy: which one bounds, and what would remove it."""
    options = Options(
        shards, rounds, seconds, images, workers, batch_size, image_size, device, seed, json, plot
    )
    with _stoppable():
        from dcgan.profiling.stages import profile

        publish(profile(options), json, plot)


@app.command()
def compare(
    shards: Shards,
    images: Images = IMAGES,
    batch_size: BatchSize = 128,
    image_size: ImageSize = 64,
    workers: Workers = None,
    seed: Seed = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 1.0,
    device: Device = "auto",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The same images through the tutorial's loader, webdataset, plain DALI, and ours."""
    options = Options(
        shards, rounds, seconds, images, workers, batch_size, image_size, device, seed, json, plot
    )
    with _stoppable():
        from dcgan.profiling.compare import profile

        publish(profile(options), json, plot)


@app.command()
def sweep(
    shards: Shards,
    images: Images = IMAGES,
    batch_size: BatchSize = 128,
    image_size: ImageSize = 64,
    workers: Workers = None,
    seed: Seed = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 1.0,
    device: Device = "auto",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Threads, prefetch depth, batch size, decoder share: what suits this machine."""
    options = Options(
        shards, rounds, seconds, images, workers, batch_size, image_size, device, seed, json, plot
    )
    with _stoppable():
        from dcgan.profiling.sweep import profile

        publish(profile(options), json, plot)


@app.command()
def train(
    shards: Shards,
    images: Images = IMAGES,
    batch_size: BatchSize = 128,
    image_size: NetsSize = 64,
    ngf: Ngf = 64,
    ndf: Ndf = 64,
    workers: Workers = None,
    seed: Seed = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 4.0,
    device: Device = "auto",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The step with free data, the loader alone, and both together: which is the bottleneck."""
    options = Options(
        shards, rounds, seconds, images, workers, batch_size, image_size, device, seed, json, plot
    )
    with _stoppable():
        from dcgan.profiling.train import profile

        publish(profile(options, ngf, ndf), json, plot)


@app.command()
def step(
    batch_size: BatchSize = 128,
    image_size: NetsSize = 64,
    channels: Annotated[
        int, typer.Option(help="3 for colour, 1 for grey.", rich_help_panel=DATA)
    ] = 3,
    nz: Annotated[int, typer.Option(help="Length of a latent.", rich_help_panel=NETS)] = 100,
    ngf: Ngf = 64,
    ndf: Ndf = 64,
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    device: Device = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Measure compiled code without CUDA too, where that takes minutes.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The step alone, on noise: the tutorial's, and ours eager, compiled and as a graph."""
    options = StepOptions(
        batch_size,
        image_size,
        channels,
        nz,
        ngf,
        ndf,
        rounds,
        seconds,
        device,
        compiled,
        json,
        plot,
    )
    with _stoppable():
        from dcgan.profiling.step import profile

        publish(profile(options), json, plot)


@contextmanager
def _stoppable() -> Iterator[None]:
    """On Ctrl-C, end with its status once all is put away."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; nothing was left behind", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line."""
    # As Ctrl-C: temporary folders and worker processes are put away
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
