"""What all command lines share: options from a class, `--version`, progress."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand

from dcgan.options import HELP, STORE, Options, choices, option_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "dcgan-shards"

SETTINGS: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
"""The context settings of each command. `-h` works as in argparse, and so in pytorch/examples."""


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version() -> str:
    """Return the version of this package, or "unknown" if it is not installed."""
    return installed(PACKAGE) or "unknown"


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PACKAGE} {version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version, and end."
    ),
]
"""The type of a command's parameter `version`, which nothing else reads."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command line for a function from the class of its parameter `options`.

    The function's other parameters are typer's. `--version` is added.
    """
    hints = get_type_hints(function, include_extras=True)
    declared: type[Options] = hints["options"]

    def run(version: bool = False, **values: Any) -> None:
        own = {name: values.pop(name) for name in declared.model_fields if name in values}
        function(declared(**own), **values)

    others = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "options"
    ]
    asked = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VersionOption
    )
    parameters = [*_parameters(declared), *others, asked]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__, run.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    return run


def _parameters(declared: type[Options]) -> Iterator[inspect.Parameter]:
    types = get_type_hints(declared)  # without bounds: the class checks them
    for name, field in declared.model_fields.items():
        option = option_of(field)
        if option is None:
            continue
        words = choices(types[name])
        text = option.help.replace("[", r"\[")  # else rich takes an extra's name for markup
        kind = option.written or (str if words else types[name])
        if option.argument is not None:
            info = typer.Argument(metavar=option.argument, help=text, show_default=False)
        else:
            info = typer.Option(
                option.flag or f"--{name.replace('_', '-')}",
                help=text,
                show_default=option.default or True,
                rich_help_panel=option.panel,
                autocompletion=_completing(words) if words else None,
            )
        default = inspect.Parameter.empty if field.is_required() else field.default
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=str(default) if kind is str and isinstance(default, int) else default,
            annotation=Annotated[kind, info],
        )


def _completing(words: tuple[str, ...]) -> Callable[[], list[str]]:
    return lambda: [*words]


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
"""Options that pytorch/examples/dcgan/main.py has or had, and that have other names here. The value
is the name here and, if that cannot simply replace the old one, a remedy after a colon."""


def tell_progress(line: str) -> None:
    """Print on stderr what a command is doing."""
    sys.stderr.write(f"… {line}\n")
    sys.stderr.flush()


@contextmanager
def progress(
    console: Console, label: str, total: int, done: int = 0, moving: bool = True
) -> Iterator[Callable[[], None]]:
    """Show a bar below other lines on a terminal, and nothing in a pipe.

    Args:
        console: where other lines are printed meanwhile.
        label: a word before the bar.
        total: steps of the whole.
        done: steps of it that are done.
        moving: draw it ten times a second, with the time that is left. Otherwise it is drawn at
            each step alone, and takes no CPU time from what is being measured in between.

    Yields:
        A function that moves the bar by one step.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        *([TimeRemainingColumn()] if moving else []),
        console=console,
        transient=True,
        auto_refresh=moving,
        disable=console.quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.update(task, advance=1, refresh=not moving)


OF_ALL_COMMANDS = {"version", "install_completion", "show_completion", "help"}
LAST_PANELS = {STORE: 1, HELP: 2}

_SECRET = re.compile(r"://([^/?#]*@|[^?]*\?)")
"""A user or a query in a URL."""


class Command(TyperCommand):
    """A command that takes no URL with what may be a password."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UserError: there is such a URL in it, which would be shown by whatever refuses it, and
                be kept in `env.json`.
        """
        for before, word in zip(["", *args], args, strict=False):
            if _SECRET.search(word):
                flag = (word if word.startswith("-") else before).partition("=")[0]
                raise UserError(
                    flag if flag.startswith("-") else "an argument",
                    "a URL with a user, a password or a query",
                    "a URL without them, since URLs are shown and kept",
                    "leave them out: credentials go where the store's tools look",
                )
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters in the order of `--help`, with those that few need at the end."""
        params: list[Any] = super().get_params(ctx)
        for each in params:
            if each.name in OF_ALL_COMMANDS:
                each.rich_help_panel = HELP
        return sorted(params, key=lambda each: LAST_PANELS.get(each.rich_help_panel, 0))


class PlainArguments(Command):
    """A command whose help calls its arguments by their names alone."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for each in self.params:
            if isinstance(each, TyperArgument):  # typer would say <list[Path]>
                each.display_type_rich = lambda ctx: None  # type: ignore[method-assign]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line; typer puts braces around what is required."""
        return [
            piece.removeprefix("{").partition("}")[0] for piece in super().collect_usage_pieces(ctx)
        ]


class FormerOptions(Command):
    """A command that explains the options of pytorch/examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UserError: it has an option of pytorch/examples.
        """
        for word in args:
            name = word.partition("=")[0]
            if name in FORMER:
                ours, _, remedy = FORMER[name].partition(": ")
                remedy = remedy or f"write {ours} in its place"
                raise UserError(name, "an option of pytorch/examples", ours, remedy)
        return super().parse_args(ctx, args)
