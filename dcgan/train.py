"""`dcgan-train`: the command line of a training run; also `python -m dcgan.train`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dcgan.commandline import SETTINGS, FormerOptions
from dcgan.config import (
    CACHES,
    DEFAULT_EMA_NIMG,
    DEFAULT_EPOCHS,
    PRECISIONS,
    STEPS,
    TROUBLE,
    TrainConfig,
)
from dcgan.presets import PRESETS
from dcgan.run import RunFolder
from dcgan.version import VersionOption
from pipeline.errors import UserError, told_plainly
from pipeline.feeder import DATA_TIMEOUT

app = typer.Typer()

RUN, DATA, NETS, UPDATES, OUTPUT = "The run", "The data", "The nets", "The updates", "The output"


def _one_of(values: Iterable[str], words: str, panel: str) -> Any:
    """An option that takes one of these, and tells the shell so."""
    return typer.Option(help=words, autocompletion=lambda: [*values], rich_help_panel=panel)


@app.command(
    cls=FormerOptions,
    context_settings=SETTINGS,
    epilog="First: python tools/make_shards.py celeba/ --out shards."
    " Then: dcgan-train --shards shards --run runs/0001; afterwards: dcgan-sample runs/0001.",
)
def train(
    context: typer.Context,
    shards: Annotated[
        str,
        typer.Option(
            help="Folder made by tools/make_shards.py, or 'synthetic' for noise.",
            rich_help_panel=DATA,
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option(
            help="Folder to write to, or to go on with; by default runs/0001 and so on.",
            rich_help_panel=RUN,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _one_of(
            PRESETS, f"Options that go together: {', '.join(PRESETS)}; those given here win.", RUN
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the set.",
            show_default=f"{DEFAULT_EPOCHS}, or as --max-steps needs",
            rich_help_panel=RUN,
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(help="Steps to end after, if --epochs does not before.", rich_help_panel=RUN),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Save and end after so many minutes, with exit status 75.", rich_help_panel=RUN
        ),
    ] = None,
    allow_change: Annotated[
        bool,
        typer.Option(
            "--allow-change",
            help="Go on with a run under other options than it began with.",
            rich_help_panel=RUN,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images in a step.", rich_help_panel=DATA)] = 128,
    image_size: Annotated[
        int, typer.Option(help="Side in pixels: 32, 64, 128 or 256.", rich_help_panel=DATA)
    ] = 64,
    channels: Annotated[
        int, typer.Option(help="3 for colour, 1 for grey.", rich_help_panel=DATA)
    ] = 3,
    nz: Annotated[int, typer.Option(help="Length of the latent.", rich_help_panel=NETS)] = 100,
    ngf: Annotated[int, typer.Option(help="Width of the generator.", rich_help_panel=NETS)] = 64,
    ndf: Annotated[
        int, typer.Option(help="Width of the discriminator.", rich_help_panel=NETS)
    ] = 64,
    lr: Annotated[float, typer.Option(help="Adam's step size.", rich_help_panel=UPDATES)] = 2e-4,
    lr_d: Annotated[
        float | None,
        typer.Option(help="The discriminator's.", show_default="--lr's", rich_help_panel=UPDATES),
    ] = None,
    lr_g: Annotated[
        float | None,
        typer.Option(help="The generator's.", show_default="--lr's", rich_help_panel=UPDATES),
    ] = None,
    beta1: Annotated[
        float, typer.Option(help="Adam's first decay rate.", rich_help_panel=UPDATES)
    ] = 0.5,
    label_smoothing: Annotated[
        float,
        typer.Option(
            help="What the label of real images falls short of 1; often 0.1.",
            rich_help_panel=UPDATES,
        ),
    ] = 0.0,
    precision: Annotated[
        str,
        _one_of(PRECISIONS, "Of the nets: auto, fp32, tf32 or bf16.", UPDATES),
    ] = "auto",
    step: Annotated[
        str,
        _one_of(STEPS, "How it runs: auto, eager, compiled or graph.", UPDATES),
    ] = "auto",
    mirror: Annotated[
        bool,
        typer.Option("--mirror/--no-mirror", help="Flip images at random.", rich_help_panel=DATA),
    ] = False,
    ema_nimg: Annotated[
        int,
        typer.Option(
            help="Half-life, in images, of the generator's moving average; 0 for none.",
            rich_help_panel=NETS,
        ),
    ] = DEFAULT_EMA_NIMG,
    seed: Annotated[str, typer.Option(help="A number, or 'random'.", rich_help_panel=RUN)] = "999",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUN)
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode images.",
            show_default="one a core, up to 8; 4 for a GPU",
            rich_help_panel=DATA,
        ),
    ] = None,
    cache: Annotated[
        str,
        _one_of(
            CACHES, "Where the decoded set stays after an epoch: device, host, auto or off.", DATA
        ),
    ] = "auto",
    data_timeout: Annotated[
        float,
        typer.Option(help="Give up after so many seconds without a batch.", rich_help_panel=DATA),
    ] = DATA_TIMEOUT,
    netg: Annotated[
        str | None,
        typer.Option(
            "--netG", help="Start the generator with this file's weights.", rich_help_panel=NETS
        ),
    ] = None,
    netd: Annotated[
        str | None,
        typer.Option(
            "--netD", help="Start the discriminator with this file's weights.", rich_help_panel=NETS
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Give the same bits each time, on a GPU too; slower there.",
            rich_help_panel=RUN,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Do one step, write all files, and end.", rich_help_panel=RUN
        ),
    ] = False,
    log_every: Annotated[
        int, typer.Option(help="Steps between status lines.", rich_help_panel=OUTPUT)
    ] = 50,
    sample_every: Annotated[
        int, typer.Option(help="Steps between sample grids.", rich_help_panel=OUTPUT)
    ] = 500,
    checkpoint_every: Annotated[
        float,
        typer.Option(help="Minutes between checkpoints; 0: each step.", rich_help_panel=OUTPUT),
    ] = 5.0,
    keep: Annotated[
        int,
        typer.Option(help="Newest checkpoints to keep, beside the best.", rich_help_panel=OUTPUT),
    ] = 2,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between measurements of the sliced Wasserstein distance.",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    on_trouble: Annotated[
        str,
        _one_of(TROUBLE, "What an alarm leads to: warn, rollback or stop.", OUTPUT),
    ] = "warn",
    version: VersionOption = False,
) -> None:
    """Train a DCGAN on a shard set, or go on with a run."""
    config = TrainConfig(
        shards=shards,
        run=run,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        nz=nz,
        ngf=ngf,
        ndf=ndf,
        epochs=epochs,
        max_steps=max_steps,
        max_time=max_time,
        allow_change=allow_change,
        lr=lr,
        lr_d=lr_d,
        lr_g=lr_g,
        label_smoothing=label_smoothing,
        beta1=beta1,
        precision=precision,
        step=step,
        mirror=mirror,
        ema_nimg=ema_nimg,
        seed=_seed(seed, run),
        device=device,
        workers=workers,
        cache=cache,
        data_timeout=data_timeout,
        netG=netg,
        netD=netd,
        deterministic=deterministic,
        dry_run=dry_run,
        log_every=log_every,
        sample_every=sample_every,
        checkpoint_every=checkpoint_every,
        keep=keep,
        evaluate_every=evaluate_every,
        on_trouble=on_trouble,
    )
    config = replace(config, **_preset(preset, context))
    from dcgan import session  # torch and all that: only once there is something to train

    raise typer.Exit(session.train(config))


def _preset(name: str | None, context: typer.Context) -> dict[str, Any]:
    """The options of a preset that were not given themselves."""
    if name is not None and name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"--preset {name}", "no such preset", f"one of {known}", "choose one")
    preset = PRESETS.get(name or "", {})
    sources = {option: context.get_parameter_source(option) for option in preset}
    given = {option for option, source in sources.items() if source and source.name != "DEFAULT"}
    return {option: value for option, value in preset.items() if option not in given}


def _seed(text: str, run: str | None) -> int:
    """A seed, or a random one: the same again where a run goes on."""
    if text == "random":
        before = RunFolder(Path(run)) if run is not None else None
        if before is not None and before.config.is_file():
            kept = before.options().get("seed")
            if isinstance(kept, int):
                return kept
        return secrets.randbelow(10_000)
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"--seed {text}", "not a number", "a whole number, or random", "for example --seed 999"
        ) from None


def main() -> None:
    """Run the command line."""
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
