"""`--version`, the same for every command."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

PACKAGE = "dcgan-shards"


def version() -> str:
    """Of the installed package; "unknown" where the code runs without one."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


def _tell(asked: bool) -> None:
    if asked:
        typer.echo(f"{PACKAGE} {version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_tell, is_eager=True, help="Print the version, and end."),
]
"""For a command's parameter `version: VersionOption = False`, which nothing else reads."""
