"""How Sphinx builds this folder: Markdown pages by MyST, the reference from the docstrings."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's modules, whatever is installed

_about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
project, release = _about["name"], _about["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

# As deep as pages link to each other's headings; the anchors are GitHub's
myst_heading_anchors = 3

# A docstring's single backticks are code, as everywhere in Markdown
default_role = "code"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__, __next__",
}
autodoc_inherit_docstrings = False  # torch's own are in another form
autodoc_typehints_format = "short"
napoleon_use_rtype = False  # what stands before a colon under Returns is no type either
python_maximum_signature_line_length = 88

# Annotations have short names, and two modules may have the same one
suppress_warnings = ["ref.python"]

LINK = re.compile(r"\]\(([^)#:]+\.md)(#[^)]*)?\)")
FOLDER = re.compile(r"\]\(\.\./((?:pipeline|dcgan)[\w/]*)/\)")

TYPER = re.compile(r"~?\w+\.Annotated\[(.+?), <typer\.models\.\w+ object at 0x\w+>\]")


def _link_outside(app, page, source):
    """Have a link to a Markdown file that is no page lead to a copy, as those to other files do."""
    folder = (Path(app.srcdir) / page).parent

    def rewrite(link):
        inside = (folder / link[1]).resolve().is_relative_to(app.srcdir)
        return link[0] if inside else f"](path:{link[1]})"

    source[0] = FOLDER.sub(_link_package, LINK.sub(rewrite, source[0]))


def _link_package(link):
    """Have a link to the folder of a package lead to its page in the reference."""
    return f"](api/{link[1].replace('/', '.')}.md)"


def _keep_colons(app, what, name, value, options, lines):
    """Napoleon takes what stands before a colon in a variable's first line for its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment has no colon


def _plain_types(app, what, name, value, options, signature, returns):
    """Of what a command's parameter is annotated with, only its type: the rest is for typer."""
    return TYPER.sub(r"\1", signature or "") or None, returns


def _write_reference(app):
    """Write a page of the reference for each package, from the modules that there are."""
    folder = Path(app.srcdir) / "api"
    for older in set(folder.glob("*.md")) - {
        folder / "index.md"
    }:  # perhaps of a package that is gone
        older.unlink()
    for init in sorted(
        path for top in ("pipeline", "dcgan") for path in (ROOT / top).rglob("__init__.py")
    ):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        inside = [path.stem for path in sorted(init.parent.glob("*.py")) if path != init]
        parts = [f"# {package}", _module(package)]
        for module in (f"{package}.{name}" for name in inside):
            parts += [f"## {module}", _module(module)]
        (folder / f"{package}.md").write_text("\n\n".join(parts))


def _module(name):
    return f"```{{eval-rst}}\n.. automodule:: {name}\n```"


def setup(app):
    """Connect them all."""
    app.connect("builder-inited", _write_reference)
    app.connect("source-read", _link_outside)
    app.connect("autodoc-process-signature", _plain_types)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)  # napoleon's is 500
