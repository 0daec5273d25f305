"""The demo faces: the same bytes for the same seed, and no touch to anyone else's folder."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.errors import UserError
from pipeline.images.demo_faces import Face, draw, encode
from tests.running import assert_four_parts
from tools.make_demo_faces import IMAGES, RECORD, app

TOOL = Path(__file__).parents[1] / "tools" / "make_demo_faces.py"


def make(out: Path, count: int, *options: str) -> str:
    """Run the tool in this process; give what it printed."""
    result = CliRunner().invoke(app, [str(out), "--count", str(count), *options])
    if result.exception is not None:
        raise result.exception
    return result.output


def files(out: Path) -> dict[str, bytes]:
    """Read all images of a set by name."""
    return {path.name: path.read_bytes() for path in sorted((out / IMAGES).iterdir())}


def folder_of(path: Path, entries: dict[str, bytes]) -> Path:
    """Lay out files by their paths in a folder."""
    for name, data in entries.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a set of 60 faces, two tasks for one worker; no test may write to it."""
    out = tmp_path_factory.mktemp("drawn") / "faces"
    make(out, 60, "--workers", "1")
    return out


# The pictures


def test_names_and_format_are_celebas(drawn):
    images = files(drawn)
    assert list(images) == [f"{number:06d}.jpg" for number in range(1, 61)]
    for data in images.values():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (178, 218))


def test_a_face_depends_on_its_seed_and_number_alone(drawn):
    images = files(drawn)
    for number in (60, 7, 51, 1):  # in another order, process and count
        assert encode(Face(0, number)) == images[f"{number:06d}.jpg"]
    assert encode(Face(1, 7)) != images["000007.jpg"]


def test_workers_and_count_change_no_face(drawn, tmp_path):
    make(tmp_path / "more", 101, "--workers", "2")
    more, fewer = files(tmp_path / "more"), files(drawn)
    assert len(more) == 101
    assert {name: more[name] for name in fewer} == fewer


def test_no_two_faces_are_alike(drawn):
    small = [
        np.asarray(Image.open(io.BytesIO(data)).resize((16, 20)), np.float64)
        for data in files(drawn).values()
    ]
    for k, face in enumerate(small):
        nearest = min(np.abs(face - other).mean() for other in small[:k] + small[k + 1 :])
        assert nearest > 3  # of 255 levels, after all that is fine has been averaged away


def test_eyes_stand_where_celebas_do():
    faces = np.mean([np.asarray(draw(Face(0, k)), float)[..., 2] for k in range(1, 61)], 0)
    for x in (69, 108):
        around = faces[100:125, x - 14 : x + 15]  # in blue skin is dark and the eye is white
        weight = np.maximum(around - np.median(around), 0)
        rows, columns = np.mgrid[100:125, x - 14 : x + 15]
        centre = np.average(columns, weights=weight), np.average(rows, weights=weight)
        assert centre == pytest.approx((x, 112), abs=3)


def test_every_trait_is_drawn():
    faces = [Face(0, number) for number in range(1, 1001)]
    for trait, kinds in {
        "style": {"bald", "short", "curly", "bun", "long", "wavy", "bob"},
        "fringe": {"swept", "straight", "parted", "high"},
        "beard": {"none", "stubble", "moustache", "full"},
        "glasses": {"none", "round", "square"},
        "hat": {"none", "beanie", "cap"},
    }.items():
        assert {getattr(face, trait) for face in faces} == kinds
        for kind in kinds:  # the same face with and without looks otherwise
            face, other = Face(0, 2), Face(0, 2)
            setattr(face, trait, kind)
            setattr(other, trait, min(kinds - {kind}))
            assert draw(face).tobytes() != draw(other).tobytes(), (trait, kind)


# The folder


def test_a_complete_set_is_accepted_and_left_alone(drawn):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert "already" in make(drawn, 60)
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


@pytest.mark.parametrize("options", [(60, "--seed", "1"), (61,)])
def test_another_set_is_refused(drawn, options):
    with pytest.raises(UserError, match="another set"):
        make(drawn, *options)
    assert len(files(drawn)) == 60


def test_an_interrupted_run_is_redone_without_its_remains(drawn, tmp_path):
    images = files(drawn)
    remains = {f"{IMAGES}/{name}": data for name, data in images.items()}
    remains |= {f"{IMAGES}/000001.jpg": images["000001.jpg"][:2000]}  # cut off while writing
    remains |= {f"{IMAGES}/000002.jpg": b"", f"{RECORD}.partial": b"{"}
    out = folder_of(tmp_path / "cut", remains)
    make(out, 5)
    assert files(out) == {name: images[name] for name in sorted(images)[:5]}
    assert [path.name for path in sorted(out.iterdir())] == [RECORD, IMAGES]
    assert json.loads((out / RECORD).read_text())["count"] == 5


def test_a_record_whose_images_are_gone_is_not_believed(tmp_path):
    make(tmp_path / "set", 3)
    (tmp_path / "set" / IMAGES / "000002.jpg").unlink()
    assert "already" not in make(tmp_path / "set", 3)
    assert len(files(tmp_path / "set")) == 3


def test_the_record_comes_last(tmp_path, monkeypatch):
    def killed(path: Path, data: bytes) -> None:
        assert len(files(path.parent)) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.make_demo_faces.write_whole", killed)
    assert CliRunner().invoke(app, [str(tmp_path / "set"), "--count", "3"]).exit_code != 0
    assert len(files(tmp_path / "set")) == 3
    assert not (tmp_path / "set" / RECORD).exists()


def photograph() -> bytes:
    """Encode a photograph that is not ours."""
    file = io.BytesIO()
    Image.new("RGB", (178, 218), "teal").save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("notes.txt", "notes.txt"),
        (f"{IMAGES}/000001.jpg", f"{IMAGES}/000001.jpg"),  # the real CelebA: it lacks our mark
        (f"{IMAGES}/more/1.jpg", f"{IMAGES}/more"),
        (IMAGES, IMAGES),  # a file of that name
    ],
)
def test_a_foreign_folder_is_refused_and_untouched(tmp_path, name, told):
    out, data = tmp_path / "mine", photograph()
    folder_of(out, {name: data})
    with pytest.raises(UserError) as error:
        make(out, 2)
    assert_four_parts(error.value, str(out), f"{told}, which this tool did not write")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == {
        out / name: data
    }


def test_ours_beside_something_foreign_stays_too(drawn, tmp_path):
    ours = {f"{IMAGES}/{name}": data for name, data in files(drawn).items()}
    photo, renamed = {"000061.jpg": photograph()}, {"kept.jpg": files(drawn)["000001.jpg"]}
    for k, foreign in enumerate((photo, renamed)):
        (name, data), out = foreign.popitem(), tmp_path / str(k)
        folder_of(out, ours | {f"{IMAGES}/{name}": data})
        with pytest.raises(UserError, match=name):
            make(out, 2)
        assert len(files(out)) == 61


def test_a_place_that_cannot_be_written_is_told_plainly(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match="drawing failed"):
        make(tmp_path / "file" / "below", 2)


def test_the_command_runs_as_a_file(tmp_path):
    out = tmp_path / "my faces"
    command = [sys.executable, TOOL, out, "--count", "2", "--workers", "3"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert process.stderr == ""
    (line,) = process.stdout.splitlines()  # in a pipe: the summary, no bar
    assert line.startswith("2 faces, 0.0 MB, ")
    assert line.endswith(f"python tools/make_shards.py '{out}'")
    assert files(out) == {f"00000{k}.jpg": encode(Face(0, k)) for k in (1, 2)}


def test_no_worker_outlives_a_killed_parent(tmp_path):
    command = [sys.executable, TOOL, tmp_path / "set", "--count", "999999", "--workers", "2"]
    # Every worker holds the pipe open: it ends when the last of them has
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 30
            while not list(tmp_path.glob(f"set/{IMAGES}/*")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
        process.communicate(timeout=10)
    assert not (tmp_path / "set" / RECORD).exists()
