"""`dcgan-train`: the command line of a training run; also `python -m dcgan.train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dcgan.cli import SETTINGS, FormerOptions, command
from dcgan.options import MOST, PRESETS, TrainConfig
from dcgan.rundir.folder import RunFolder
from pipeline.errors import UserError, plain_errors

app = typer.Typer()

Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Preset of options: {', '.join(PRESETS)}. Options given here override it.",
        autocompletion=lambda: [*PRESETS],
        rich_help_panel=MOST,
    ),
]


@app.command(
    cls=FormerOptions,
    context_settings=SETTINGS,
    epilog="First: python tools/make_shards.py celeba/ --out shards."
    " Then: dcgan-train --shards shards --run runs/0001; afterwards: dcgan-sample runs/0001.",
)
@command
def train(options: TrainConfig, context: typer.Context, preset: Preset = None) -> None:
    """Train a DCGAN on a shard set, or resume a run."""
    options = options.replace(**_preset(preset, context), **_seed(options, context))
    # Torch is imported only when there is something to train
    with Console(quiet="RANK" in os.environ).status("loading torch"):
        from dcgan.training import session

    raise typer.Exit(session.train(options))


def _preset(name: str | None, context: typer.Context) -> dict[str, Any]:
    """Return the options of a preset, without those that were given on the command line."""
    if name is not None and name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"--preset {name}", "no such preset", f"one of {known}", "choose one")
    preset = PRESETS.get(name or "", {})
    sources = {option: context.get_parameter_source(option) for option in preset}
    given = {option for option, source in sources.items() if source and source.name != "DEFAULT"}
    return {option: value for option, value in preset.items() if option not in given}


def _seed(options: TrainConfig, context: typer.Context) -> dict[str, int]:
    """With `--seed random`, return the seed of a run that is resumed."""
    if context.params["seed"] == "random" and options.run is not None:
        run = RunFolder(Path(options.run))
        kept = run.options().get("seed") if run.config.is_file() else None
        return {"seed": kept} if isinstance(kept, int) else {}
    return {}


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
