"""The README is true: its blocks run, its options exist, its links lead somewhere."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from dcgan.train import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent

NOT_RUN = {
    "source": "the tests run in an environment already",
    "make demo": "test_demo does, among the slow tests",
    "pip ": "changes the environment that the tests run in",
    "dcgan-evaluate runs/0001 --weights": "needs the published weights; test_fidelity makes some",
    "dcgan-doctor --verify": "compiles for a minute; test_doctor_verify does the rest",
}
TINY = {"dcgan-train": "--batch-size 8 --max-steps 2"}
TINY["torchrun"] = f"{TINY['dcgan-train']} --device cpu"


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


def make_celeba_zip(path, count=16):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            picture = io.BytesIO()
            Image.new("RGB", (178, 218), (16 * number, 128, 99)).save(picture, "JPEG")
            archive.writestr(f"img_align_celeba/{number + 1:06d}.jpg", picture.getvalue())


def shell(command, folder):
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


def test_blocks_run_in_order_in_one_folder(tmp_path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    make_celeba_zip(tmp_path / "img_align_celeba.zip")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    run = [line for line in commands if not line.startswith(tuple(NOT_RUN))]
    assert any("make_shards.py" in line for line in run)
    assert sum(line.startswith("dcgan-train") for line in run) == 3
    output = ""
    for line in run:
        output += shell(f"{line} {TINY.get(line.split()[0], '')}", tmp_path)
    (printed,) = blocks("text")
    assert _form(printed) in {_form(line) for line in output.splitlines()}
    for block in blocks("python"):
        shell(f"{sys.executable} - <<'EOF'\n{block}\nEOF", tmp_path)
    with Image.open(tmp_path / "face.png") as face:
        assert face.size == (64, 64)


def _form(line):
    """A status line without its numbers."""
    return re.sub(r"[\d:,.]*\d", "0", line.strip())


def test_commands_left_out_stand_in_the_readme():
    commands = "\n".join(blocks("bash"))
    assert all(command in commands for command in NOT_RUN)


def test_every_option_of_training_is_in_the_table_of_parameters():
    table = README[README.index("## Parameters") : README.index("## The run folder")]
    ours = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    named = set(re.findall(r"--[A-Za-z-]+\w", ours)) - {"--classes"}
    options = {name for option in get_command(app).params for name in option.opts}
    assert named == options - {"--help", "--install-completion", "--show-completion"}


@pytest.mark.parametrize("page", ["README.md", "shards/README.md"])
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


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
    assert len(samples) == 15
    assert (tmp_path / "clone/demo/run/report.html").exists()
