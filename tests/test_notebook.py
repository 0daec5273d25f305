"""docs/dcgan_faces.ipynb: stripped, made of commands that there are, and it runs to its end."""

import base64
import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from tests.markdown import BIN, links_in, parse, simple_commands
from tests.running import ROOT

FILE = ROOT / "docs/dcgan_faces.ipynb"

SMALL = {
    "dataroot": "faces",
    "count": 64,
    "image_size": 32,
    "nz": 8,
    "ngf": 4,
    "ndf": 4,
    "max_steps": 4,
    "sample_every": 2,
    "run": "runs/faces",
}
"""What makes it take seconds."""


def read() -> Any:
    return nbformat.read(FILE, as_version=4)


def texts(kind: str) -> list[str]:
    return [cell.source for cell in read().cells if cell.cell_type == kind]


def parameters(notebook: Any) -> Any:
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def test_it_is_as_jupyter_writes_it_without_what_a_run_leaves():
    notebook = read()
    nbformat.validate(notebook)
    assert FILE.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
    left = [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert not left
    assert not re.search(r"[\"'(` ]/\w", "\n".join(texts("code") + texts("markdown")))


def test_it_has_the_tutorials_headings_and_its_links_lead_somewhere():
    text = "\n".join(texts("markdown"))
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        *("Generative Adversarial Networks", "Inputs", "Data", "Implementation", "Results"),
        *("More from the generator", "Where to Go Next"),
    ]
    found = links_in(text)
    assert len(found) > 3
    assert all((FILE.parent / name).is_file() for name in found)


def test_its_commands_are_such_as_their_programs_take():
    values: dict[str, Any] = {}
    exec(parameters(read()).source, values)
    assert set(SMALL) == set(values) - {"__builtins__"}
    code = "\n".join(texts("code")).replace("\\\n", " ")
    lines = re.findall(r"^ *!(.+)$", code, re.MULTILINE)
    lines += re.findall(r"`!([^`]+)`", "\n".join(texts("markdown")))
    assert len(lines) > 5
    for line in lines:
        (words,) = simple_commands(re.sub(r"\{(\w+)\}", lambda name: str(values[name[1]]), line))
        match words:
            case ["python", "-m", "dcgan_tools.make_demo_faces", *rest]:
                parse("tools/make_demo_faces.py", rest)
            case [name, *rest]:
                parse(name, rest)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = read()
    parameters(notebook).source = "\n".join(f"{name} = {value!r}" for name, value in SMALL.items())
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    printed = "".join(each.text for each in outputs if each.output_type == "stream")
    assert "error" not in printed  # a command's failure ends no cell
    for said in ("64 faces", "packed", "Discriminator(", "Training finished: 4 steps"):
        assert said in printed
    shown = [data for each in outputs for data in each.get("data", {}).items()]
    assert Counter(kind for kind, _ in shown if kind.startswith("image/")) == {
        "image/png": 5,
        "image/gif": 2,
    }
    *_, walk, arithmetic = (_picture(data) for kind, data in shown if kind.startswith("image/"))
    assert getattr(walk, "n_frames", 1) == 60
    assert arithmetic.width > 4 * 32
    assert {path.name for path in Path(tmp_path / "runs/faces").iterdir()} > {"netG_ema.pt"}


def _picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))
