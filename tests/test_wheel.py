"""What is published installs, answers, trains and packs, without the checkout."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.pictures import numbered_pictures, write_pictures
from tests.running import ROOT, environment, files_below, flags

pytestmark = pytest.mark.slow

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
ASIDE = (".ci/", ".git", ".pre-commit-config.yaml")
"""Tracked files that no archive holds."""


def run(words, folder):
    """A command's standard output, where nothing leads to the checkout."""
    elsewhere = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    words = [str(word) for word in words]
    ended = subprocess.run(
        words, cwd=folder, env=elsewhere, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def tracked():
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source archive, wheel), made of the tracked files alone; the wheel out of the archive."""
    folder = tmp_path_factory.mktemp("build")
    for name in tracked():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    words = ["-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree"]
    run([sys.executable, *words], folder)
    (archive,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def bin_folder(built, tmp_path_factory):
    """Of an environment with the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    inside = {"base": str(folder), "platbase": str(folder)}
    packages = sysconfig.get_path("purelib", "venv", inside)
    words = ["-m", "pip", "--python", folder / "bin/python", "install", "--no-deps", "--no-index"]
    run([sys.executable, *words, built[1]], folder)
    shared = [path for path in sys.path if path.endswith("site-packages")]
    assert shared
    # Lines of a .pth come after the folder they stand in; an editable install's is not read again
    (Path(packages) / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    return folder / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {name for name in tracked() if name.startswith(("pipeline/", "dcgan/", "tools/"))}
    assert names == {name.replace("tools/", "dcgan_tools/") for name in ours}
    assert {"pipeline/py.typed", "dcgan/py.typed", "dcgan/reporting/assets/run.html"} <= names


def test_the_source_archive_is_the_checkout(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if not name.startswith(ASIDE)} <= names
    stray = [name for name in names if name.endswith((".pyc", ".tar", ".pt"))]
    assert not [name for name in stray if not name.startswith("tests/goldens/")]


def test_it_is_the_installed_code_that_runs(bin_folder, tmp_path):
    line = "import dcgan, pipeline; print(dcgan.__file__, pipeline.__file__)"
    for path in run([bin_folder / "python", "-c", line], tmp_path).split():
        assert path.startswith(str(bin_folder.parent))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_command_answers(bin_folder, tmp_path, name):
    assert f"Usage: {name} " in run([bin_folder / name, "--help"], tmp_path)
    assert run([bin_folder / name, "--version"], tmp_path).startswith("dcgan-shards ")
    assert not list(tmp_path.iterdir())


def test_it_packs_checks_trains_and_reports(bin_folder, tmp_path):
    write_pictures(tmp_path / "pictures", numbered_pictures(16))
    run([bin_folder / "dcgan-make-shards", "pictures", "--out", "shards"], tmp_path)
    assert "all is as it was packed" in run([bin_folder / "dcgan-check-shards", "shards"], tmp_path)
    tiny = flags(image_size=32, nz=8, ngf=4, ndf=4, batch_size=4, device="cpu", workers=1)
    for shards in ("synthetic", "shards"):
        words = ["--shards", shards, "--run", f"runs/{shards}", "--max-steps", "2"]
        run([bin_folder / "dcgan-train", *words, *tiny], tmp_path)
        run([bin_folder / "dcgan-report", f"runs/{shards}"], tmp_path)
        assert {"netG.pt", "report.html"} <= files_below(tmp_path / "runs" / shards)
