"""The repository's Markdown pages, taken apart: their blocks, commands, headings and links."""

import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from typer.main import get_command

from tests.running import ROOT

BIN = Path(sys.executable).parent

GUIDES = ("quickstart", "packing", "loader", "step", "training", "sampling")
"""Pages of docs/ whose blocks run."""

TINY = {"dcgan-train": "--batch-size 8 --max-steps 2"}
"""What makes a command of a page take seconds."""
TINY["torchrun"] = f"{TINY['dcgan-train']} --device cpu"

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
KEYWORDS = ("while", "do", "if", "then")
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every Markdown file of the project; in a source archive, too, where git knows none."""
    found = [*ROOT.glob("*.md"), *(ROOT / "shards").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in found if "_build" not in page.parts)


def name_of(page: Path) -> str:
    """A page as a test's report names it."""
    return page.relative_to(ROOT).as_posix()


def guide(name: str) -> Path:
    """A page of docs/."""
    return ROOT / f"docs/{name}.md"


def blocks(page: Path, *languages: str) -> list[str]:
    """The text of a page's fenced blocks in these languages."""
    found = FENCED.findall(page.read_text())
    return [text for language, text in found if language in languages]


def lines(page: Path, *languages: str) -> list[str]:
    """The command lines in those blocks."""
    text = "".join(blocks(page, *languages)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: the headings as GitHub writes them (and MyST, after it)."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures but those on the web."""
    return links_in(prose(page))


def links_in(text: str) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands that a shell line is made of, each as its words."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|()"):
            if command:
                yield command
            command = []
        elif command or word not in KEYWORDS:
            command.append(word)


@functools.cache
def program(name: str) -> Any:
    """A command of ours as typer builds it: `dcgan-train`, or `tools/make_shards.py`."""
    if name.startswith("dcgan-"):
        assert name in SCRIPTS, f"no command {name}"
        app = importlib.import_module(SCRIPTS[name].partition(":")[0]).app
    else:
        spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        app = module.app
    assert isinstance(app, typer.Typer)
    return get_command(app)


EVERYWHERE = {"--help", "--version", "--install-completion", "--show-completion"}
"""Options that every command has."""


def parse(name: str, words: list[str]) -> None:
    """Have a command's own parser read its arguments; raises what it raises."""
    command = program(name)
    if hasattr(command, "commands"):
        assert words, f"{name} without a sub-command"
        command, words = command.commands[words[0]], words[1:]
    # Done at once, for completion to the shell of whoever runs the tests; other tests have them
    if not EVERYWHERE & set(words):
        command.make_context(name, list(words))


def make_celeba_zip(path: Path, count: int = 16) -> None:
    """An archive like CelebA's, of plain pictures."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            picture = io.BytesIO()
            Image.new("RGB", (178, 218), (16 * number, 128, 99)).save(picture, "JPEG")
            archive.writestr(f"img_align_celeba/{number + 1:06d}.jpg", picture.getvalue())


TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "boolean": (bool,),
    "object of numbers": (dict,),
}
"""What docs/records.md calls them."""


def documented(file: str) -> dict[str, str]:
    """By key, what docs/records.md says of its type in `stats.jsonl` or `metrics.jsonl`."""
    section = re.split(r"^## ", guide("records").read_text(), flags=re.MULTILINE)
    (table,) = (text for text in section if text.startswith(f"{file}\n"))
    return dict(re.findall(r"^\| `(\w+)` \| ([\w ,]+) \|.*\|.*\|$", table, re.MULTILINE))


def assert_as_documented(record: dict[str, Any], file: str) -> None:
    """Compare a line of a run with docs/records.md."""
    keys = documented(file)
    needed = {key for key, said in keys.items() if not said.endswith(", or absent")}
    assert needed <= set(record) <= set(keys)
    for key, value in record.items():
        kind, _, null = keys[key].removesuffix(", or absent").partition(" or ")
        if not (null and value is None):
            assert type(value) in TYPES[kind], f"{key}: {value!r} is no {kind}"


def shell(command: str, folder: Path) -> str:
    """What a command of a page prints, run as a user would."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # several wait for each other wherever the machine is busy
    }
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
