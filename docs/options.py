"""Write options.md, the reference of all options, from the commands themselves."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PAGE = ROOT / "docs/options.md"

COMMANDS = ("train", "sample", "evaluate", "report", "export", "profile", "doctor")
TOOLS = ("make_shards", "check_shards", "make_demo_faces")

HEAD = """# All options

Each command's options, with their defaults, as `--help` shows them. `make docs` writes this page.
"""

RESUMING = {
    "same": "the same, or `--allow-change`",
    "fixed": "the same",
    "content": "the same set, at any path",
    "free": "any",
}
"""The value that an option must have when a run resumes, for each `dcgan.options.Resume`."""


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for name in COMMANDS:
        module = importlib.import_module(f"dcgan.{name}")
        command = typer.main.get_command(module.app)
        for sub, each in (getattr(command, "commands", None) or {"": command}).items():
            parts.append(_section(f"dcgan-{name} {sub}".strip(), each, name == "train"))
    for name in TOOLS:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        parts.append(_section(f"tools/{name}.py", typer.main.get_command(module.app), False))
    return "\n".join(parts)


def _section(name: str, command: Any, resumes: bool) -> str:
    heads = ["option", "default", "meaning", *(["when a run resumes"] if resumes else [])]
    rows = [heads, ["---"] * len(heads), *_rows(command, resumes)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## {name}\n\n{(command.help or '').splitlines()[0]}\n\n{table}\n"


def _rows(command: Any, resumes: bool) -> Iterator[list[str]]:
    from dcgan.options import TrainConfig

    for each in sorted(command.params, key=lambda each: each.param_type_name != "argument"):
        if each.name in ("version", "install_completion", "show_completion"):
            continue
        argument = each.param_type_name == "argument"
        names = [each.metavar or each.name] if argument else [*each.opts, *each.secondary_opts]
        text = (each.help or "").replace("\\[", "[")  # as it is escaped for the terminal
        row = [", ".join(f"`{name}`" for name in names), _default(each), text]
        if resumes:
            field = TrainConfig.model_fields.get(each.name)
            row.append("" if field is None else RESUMING[TrainConfig.on_resume(each.name)])
        yield [cell.replace("|", "\\|") for cell in row]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(shown := getattr(parameter, "show_default", None), str):
        return shown
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    if isinstance(parameter.default, float):
        return f"{parameter.default:g}"
    return "" if parameter.default is None else str(parameter.default)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
