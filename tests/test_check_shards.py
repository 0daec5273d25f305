"""The checking command: what it shows of a set, its pictures, and how it ends."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from pipeline.verify import CELL, COLUMNS, GAP, ROWS, samples
from tests.packing_runs import four_parts, pack_folder, run_here, run_tool, without_workers
from tests.pictures import decode, encode, names_in, numbered_pictures, smooth
from tests.pictures import write_pictures as write
from tools.check_shards import main

SCREEN = 25
"""Lines."""


@pytest.fixture
def check(monkeypatch, tmp_path):
    """The command in an empty folder: exit status, and lines of stdout and stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments):
        status, out, err = run_here(main, *arguments)
        return status, out.splitlines(), err.splitlines()

    return run


def make(folder, files, **options):
    write(folder / "pictures", files)
    with without_workers():
        pack_folder(folder / "pictures", folder / "set", max_rejects=1, **options)
    return folder / "set"


@pytest.fixture
def numbered_set(tmp_path):
    return make(tmp_path, numbered_pictures(12), per_shard=5)


def test_what_it_says_of_a_whole_set(tmp_path, check):
    files = numbered_pictures(11) | {"wide.png": encode(smooth(50, 20), "PNG"), "x.gif": b"GIF"}
    folder = make(tmp_path, files, per_shard=5, seed=4)
    status, out, err = check(folder)
    assert (status, err) == (0, [])
    assert [re.sub(r"[\d.]+ (MB|kB)", r"… \1", line) for line in out] == [
        "images  12, decoded when packed",
        "shards  3, … MB, … kB an image",
        "recipe  --store original --crop none, seed 4",
        "size    32×32: 11 (91.7%)",
        "size    50×20: 1 (8.3%)",
        "reject  1 not an image: see rejects.csv",
        "all is as it was packed",
    ]
    total = sum(tar.stat().st_size for tar in folder.glob("*.tar"))
    assert f"{total / 1e6:,.1f} MB" in out[1]


@pytest.mark.parametrize("decoding", [[], ["--decode"]])
def test_a_set_that_was_not_decoded_says_so(tmp_path, check, decoding):
    folder = make(tmp_path, numbered_pictures(3), recipe=Recipe(checked=False))
    said = "each decoded" if decoding else "never decoded: --no-check"
    assert check(folder, *decoding)[1][0] == f"images  3, {said}"


def test_decoding_finds_what_was_packed_unchecked(tmp_path, check):
    files = numbered_pictures(3) | {"cut.jpg": encode(smooth(32, 32))[:-40]}
    folder = make(tmp_path, files, recipe=Recipe(checked=False))
    assert check(folder)[0] == 0
    status, _, err = check(folder, "--decode")
    assert status == 1
    assert "shard-000000: sample 00000003 does not decode: damaged" in "\n".join(err)


def test_a_very_mixed_set_fits_one_screen(tmp_path, check):
    kinds = {
        "a": b"",
        "b": b"<html>",
        "c": encode(smooth(9, 9))[:-9],
        "d": encode(smooth(9, 9), "PNG")[:-30],
        "e": encode(smooth(9, 9), "GIF")[:20],
        "f": encode(Image.new("F", (4, 4)), "TIFF"),
    }
    bad = {f"{name}-{number}.jpg": data for name, data in kinds.items() for number in range(5)}
    sizes = {f"{w}.{h}.jpg": encode(smooth(w, h)) for w in range(8, 16) for h in range(8, 16)}
    folder = make(tmp_path, bad | sizes, per_shard=2)
    status, out, err = check(folder, "--decode", "--sheet", tmp_path / "sheet.png")
    assert status == 0, err
    assert len(out) <= SCREEN
    assert "59 other sizes; in all widths 8–15 and heights 8–15" in "\n".join(out)
    for tar in folder.glob("*.tar"):  # now every shard has a fault
        data = bytearray(tar.read_bytes())
        data[600] ^= 1
        tar.write_bytes(data)
    status, out, err = check(folder)
    assert status == 1
    assert len(out) + len(err) <= SCREEN
    assert "faults, of which the first 8:" in err[1]


def test_a_flipped_bit_ends_with_1_and_names_shard_and_sample(numbered_set, check):
    tar = numbered_set / "shard-000001.tar"
    key = next(samples(tar))[0]
    data = bytearray(tar.read_bytes())
    data[700] ^= 4
    tar.write_bytes(data)
    status, out, err = check(numbered_set, "--sheet", "sheet.png")
    assert status == 1
    assert err[:3] == [
        f"error: {numbered_set}",
        "  found   1 fault:",
        f"          shard-000001: sample {key} has changed (CRC-32)",
    ]
    assert [line[:9].rstrip() for line in err[3:]] == ["  wanted", "  do"]
    assert "all is as it was packed" not in out
    assert names_in(numbered_set.parent / "work") == []  # no sheet of a damaged set


def test_as_a_process_it_ends_with_1_too(numbered_set):
    (numbered_set / "samples.csv").unlink()
    assert "samples.csv" in run_tool("check_shards.py", numbered_set, status=1)


RECIPES = {
    "original": Recipe(),
    "jpeg": Recipe(store="jpeg", crop="none", size=24, filter="bilinear", quality=90),
    "raw": Recipe(store="raw", crop="centre", size=16, filter="bilinear"),
}


@pytest.mark.parametrize("store", list(RECIPES))
@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_the_sheet_shows_the_first_samples(tmp_path, check, store, kind):
    files = numbered_pictures(70)
    if kind == "grey":
        files = {name: encode(Image.new("L", (40, 30), 3 * k)) for k, name in enumerate(files)}
    folder = make(tmp_path, files, recipe=RECIPES[store])
    status, out, err = check(folder, "--sheet", "sheet.png")
    assert (status, err) == (0, [])
    assert "sheet   sheet.png" in out
    with Image.open("sheet.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        sheet = np.asarray(image)
    assert sheet.shape == ((CELL + GAP) * ROWS + GAP, (CELL + GAP) * COLUMNS + GAP, 3)
    keys = [key for key, _ in samples(ShardSet.open(folder).tars[0])]
    pictures = list(files.values())
    for place in (0, 1, COLUMNS, ROWS * COLUMNS - 1):
        top, left = (GAP + (CELL + GAP) * step for step in divmod(place, COLUMNS))
        cell = sheet[top : top + CELL, left : left + CELL].astype(int)
        colour = decode(pictures[int(keys[place])])[15, 15].astype(int)
        assert abs(cell - colour).max() <= 4
    assert not sheet[:GAP].any()


def test_a_sheet_of_few_samples_is_black_elsewhere(numbered_set, check):
    assert check(numbered_set, "--sheet", "sheet.png")[0] == 0
    sheet = np.asarray(Image.open("sheet.png"))
    assert sheet[GAP : CELL + GAP, GAP : CELL + GAP].all()
    assert not sheet[CELL * 2 :].any()


def test_a_sheet_that_cannot_be_saved_is_told_plainly(numbered_set, check):
    status, _, err = check(numbered_set, "--sheet", "no/such/folder/sheet.png")
    assert status == 1
    assert four_parts("\n".join(err))[1] == "no folder no/such/folder"
    Path("folder.png").mkdir()
    status, _, err = check(numbered_set, "--sheet", "folder.png")
    assert status == 1
    assert four_parts("\n".join(err))[1] == "Is a directory"


def test_a_sheet_that_is_no_png_is_refused_before_anything_is_read(numbered_set, check):
    status, out, err = check(numbered_set, "--sheet", "sheet.jpg")
    assert (status, out) == (1, [])
    assert four_parts("\n".join(err))[1] == "no name of a PNG"


def test_an_unfinished_set_is_called_so(numbered_set, check):
    (numbered_set / "manifest.json").unlink()
    status, _, err = check(numbered_set)
    assert status == 1
    assert four_parts("\n".join(err))[1] == "shards but no manifest.json: an unfinished set"
