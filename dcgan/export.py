"""`dcgan-export`: a trained net as a folder for others. Also `python -m dcgan.export`."""

from __future__ import annotations

import shlex

import typer
from rich.console import Console

from dcgan.cli import SETTINGS, PlainArguments, command, tell_progress
from dcgan.options import ExportOptions
from pipeline.errors import plain, plain_errors

app = typer.Typer()
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: dcgan-export runs/0001 --license other --data-name CelebA"
    " --data-license 'non-commercial research only'.",
)
@command
def export(options: ExportOptions) -> None:
    """Write a trained net as a folder: safetensors, ONNX, a model card, a page that draws.

    Nothing is uploaded.
    """
    from dcgan.exporting.folder import export_run
    from pipeline.machine import limit_torch_threads

    limit_torch_threads()
    done = export_run(options, tell_progress)
    for name, size in done.sizes.items():
        console.print(f"{name:<17}{size:>13,} bytes")
    console.print(
        f"onnxruntime and torch differ by at most {done.difference.images:.1e} in images from -1"
        f" to 1, and by {done.difference.levels} of 255 levels in pixels"
    )
    if not done.measured:
        run = shlex.quote(plain(str(options.run)))
        console.print(f"no metrics in the card. For some: dcgan-evaluate {run}, then export again")
    if done.no_page:
        console.print(f"no page: {done.no_page}")
    folder = plain(str(done.folder))
    console.print(f"export   {folder}")
    console.print(f"upload   hf upload USER/NAME {shlex.quote(folder)}")


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
