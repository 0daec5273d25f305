"""The README is true: its blocks run. `test_docs` looks at it as at every page."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcgan.nets.models import Generator
from dcgan.nets.weights import save_weights
from tests.markdown import BIN, TINY, blocks, guide, lines, make_celeba_zip, shell
from tests.running import ROOT

README = ROOT / "README.md"

NOT_RUN = {
    "source": "the tests run in an environment already",
    "make demo": "test_demo does, among the slow tests",
}
MACHINE = ("loader", "step")
"""First words of the lines that tell what the machine has."""

DEMO, MEASURED, _ = blocks(README, "text")
"""The demo's output, a table of the performance page, the folders."""


@pytest.mark.slow
def test_blocks_run_in_order_in_one_folder(tmp_path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    make_celeba_zip(tmp_path / "img_align_celeba.zip")
    run = [line for line in lines(README, "bash") if not line.startswith(tuple(NOT_RUN))]
    assert any("make_shards.py" in line for line in run)
    assert sum(line.startswith("dcgan-train") for line in run) == 2
    output = ""
    for line in run:
        output += shell(f"{line} {TINY.get(line.split()[0], '')}", tmp_path)
    shown = [line for line in DEMO.splitlines() if line.startswith("[")]
    assert shown
    assert {_form(line) for line in shown} <= {_form(line) for line in output.splitlines()}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_snippet_draws_grey_and_colour(tmp_path, monkeypatch, channels):
    monkeypatch.chdir(tmp_path)
    Path("runs/0001").mkdir(parents=True)
    net = Generator(32, nz=7, ngf=2, channels=channels)
    save_weights(net, Path("runs/0001/netG_ema.pt"))
    (block,) = blocks(guide("sampling"), "python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["images"].shape == (16, 32, 32, channels)
    with Image.open("face.png") as face:
        assert (face.mode, face.size) == ("L" if channels == 1 else "RGB", (32, 32))
        assert list(face.tobytes()) == names["images"][0].flatten().tolist()


def _form(line):
    """A status line without its numbers."""
    return re.sub(r"[\d:,.]*\d", "0", line.strip())


def test_figures_are_those_of_the_performance_page():
    text = README.read_text()
    section = text[text.index("## Performance") : text.index("## Questions")]
    page = (ROOT / "docs/performance.md").read_text()
    figures = set(re.findall(r"(?<![\d,.])[\d,.]*\d(?=×|%| img/s| ms)", section))
    assert len(figures) > 10
    assert {figure for figure in figures if figure not in page} == set()
    assert set(MEASURED.splitlines()) <= set(page.splitlines())


@pytest.mark.slow
def test_demo(tmp_path):
    """From a clean clone, with this environment, as far as the pictures."""
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    done = subprocess.run(
        # --old-file: as installed already; to install the clone would change this environment
        ["make", "demo", f"VENV={BIN.parent}", f"--old-file={BIN.parent / '.installed'}"],
        cwd=tmp_path / "clone",
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    samples = sorted((tmp_path / "clone/demo/run/samples").glob("*.png"))
    assert len(samples) == 10
    assert (tmp_path / "clone/demo/run/report.html").exists()
    said = {_form(line) for line in (done.stdout + done.stderr).splitlines()}
    shown = [line for line in DEMO.splitlines() if not line.startswith(MACHINE)]
    assert {_form(line) for line in shown} <= said
