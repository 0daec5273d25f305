"""CelebA's own lists, as its authors and as Kaggle publish them."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing.selection import ATTRIBUTES, PARTITION, in_split, with_attributes
from pipeline.packing.sources.base import Member

IMAGES = [f"{number:06d}.jpg" for number in range(1, 7)]
MEMBERS = [Member(f"img_align_celeba/{name}", 1) for name in IMAGES]
SPLIT_OF = ["0", "0", "0", "1", "2", "2"]
SMILING = ["1", "-1", "1", "1", "-1", "1"]
MALE = ["-1", "-1", "1", "-1", "1", "1"]

TXT = {
    PARTITION: "".join(f"{name} {split}\n" for name, split in zip(IMAGES, SPLIT_OF, strict=True)),
    ATTRIBUTES: "6\nSmiling Male \n"
    + "".join(f"{n} {s:>2} {m:>2}\n" for n, s, m in zip(IMAGES, SMILING, MALE, strict=True)),
}
CSV = {
    PARTITION: "image_id,partition\n"
    + "".join(f"{name},{split}\n" for name, split in zip(IMAGES, SPLIT_OF, strict=True)),
    ATTRIBUTES: "image_id,Smiling,Male\n"
    + "".join(f"{n},{s},{m}\n" for n, s, m in zip(IMAGES, SMILING, MALE, strict=True)),
}
LISTS = {"txt": TXT, "csv": CSV}


def write_lists(folder: Path, form: str, change=lambda text: text) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in LISTS[form].items():
        (folder / f"{stem}.{form}").write_bytes(change(text).encode())


def chosen(source, split=None, where=None, members=MEMBERS):
    if split is not None:
        members = in_split(members, source, split)
    if where is not None:
        members = with_attributes(members, source, where)
    return [int(Path(member.name).stem) for member in members]


@pytest.fixture
def celeba(tmp_path):
    """A folder of images with the lists beside it; the images themselves are not looked at."""
    write_lists(tmp_path / "celeba", "txt")
    images = tmp_path / "celeba" / "img_align_celeba"
    images.mkdir()
    return images


SELECTIONS = {
    # split, where → numbers of images
    "all": (None, None, [1, 2, 3, 4, 5, 6]),
    "train": ("train", None, [1, 2, 3]),
    "valid": ("valid", None, [4]),
    "test": ("test", None, [5, 6]),
    "smiling": (None, "Smiling=1", [1, 3, 4, 6]),
    "not-smiling": (None, "Smiling=-1", [2, 5]),
    "two-conditions": (None, "Smiling=1,Male=-1", [1, 4]),
    "spaces": (None, " Male = -1 , Smiling = 1 ", [1, 4]),
    "both": ("train", "Smiling=1,Male=-1", [1]),
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize(("split", "where", "expected"), SELECTIONS.values(), ids=SELECTIONS)
def test_selections(tmp_path, form, split, where, expected):
    write_lists(tmp_path, form)
    assert chosen(tmp_path / "img_align_celeba.zip", split, where) == expected


LOOKS = {
    "both": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    "empty-line-at-the-end": lambda text: text + "\n",
    "no-line-end": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("change", LOOKS.values(), ids=LOOKS)
def test_what_editors_and_browsers_do_to_a_list_does_no_harm(tmp_path, form, change):
    write_lists(tmp_path, form, change)
    assert chosen(tmp_path / "celeba.zip", "train", "Smiling=1,Male=-1") == [1]


def test_lists_lie_beside_the_archive_or_in_or_beside_the_folder(tmp_path, celeba):
    assert chosen(celeba, "test") == [5, 6]  # beside the folder of images
    assert chosen(celeba.parent, "test") == [5, 6]  # in the folder named
    assert chosen(celeba.parent / "img_align_celeba.zip", "test") == [5, 6]
    with pytest.raises(UserError):
        chosen(tmp_path / "elsewhere" / "a.zip", "test")


def test_a_relative_source_finds_the_lists_beside_it(celeba, monkeypatch):
    monkeypatch.chdir(celeba.parent)
    assert chosen(Path("img_align_celeba"), "valid") == [4]
    assert chosen(Path("img_align_celeba.zip"), "valid") == [4]
    monkeypatch.chdir(celeba)
    assert chosen(Path(), "valid") == [4]


def test_images_that_were_left_out_of_the_source_are_not_missed(celeba):
    assert chosen(celeba, "train", members=MEMBERS[1:4]) == [2, 3]


FAULTS = {
    # split, where → where, words of `found`, words of `wanted`
    "unknown-split": ("dev", None, "--split dev", "unknown split", "train, valid, test"),
    "unknown-attribute": (None, "Smile=1", "--where Smile=1", "'Smile'", "Smiling, Male"),
    "no-value": (None, "Male", "--where Male", "'Male'", "Name=1 or Name=-1"),
    "nothing-left": (
        "valid",
        "Male=1",
        "--where Male=1",
        "none of 1 images",
        "a selection with images in it",
    ),
}


@pytest.mark.parametrize(("split", "where", "flag", "found", "wanted"), FAULTS.values(), ids=FAULTS)
def test_faulty_selections_are_told(celeba, split, where, flag, found, wanted):
    with pytest.raises(UserError) as error:
        chosen(celeba, split, where)
    assert error.value.where == flag
    assert found in error.value.found
    assert wanted in error.value.wanted


@pytest.mark.parametrize(("split", "where"), [("train", None), (None, "Male=1")], ids=["s", "w"])
def test_a_missing_list_is_named_with_the_places_that_were_searched(tmp_path, split, where):
    images = tmp_path / "celeba" / "images"
    images.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        chosen(images, split, where)
    stem = PARTITION if split else ATTRIBUTES
    assert error.value.found == f"no {stem}.txt or {stem}.csv"
    assert str(images) in error.value.wanted
    assert str(images.parent) in error.value.wanted


def test_the_png_edition_is_matched_by_number(celeba):
    pngs = [Member(f"img_align_celeba_png/{Path(name).stem}.png", 1) for name in IMAGES]
    assert chosen(celeba, "train", "Smiling=1", members=pngs) == [1, 3]
    with pytest.raises(UserError, match=r"does not name, the first 1\.png"):  # CelebA-HQ's numbers
        chosen(celeba, "train", members=[Member("1.png", 1)])


def test_images_that_a_list_does_not_name_are_an_error(celeba):
    strangers = [Member("a/cat.jpg", 1), Member("a/dog.jpg", 1)]
    with pytest.raises(UserError) as error:
        chosen(celeba, "train", members=[*MEMBERS, *strangers])
    assert error.value.found == "2 images that the list does not name, the first a/cat.jpg"


DAMAGED = {
    "ragged.csv": "image_id,partition\n000001.jpg,0,1\n",
    "header-only.csv": "image_id,partition\n",
    "empty.csv": "",
    "not-text.txt": "\udcff\udcfe",
    "web-page.txt": "<!doctype html>\n<html><body class=x>Quota exceeded</body></html>\n",
    "another-table.csv": "image_id,lefteye_x\n" + "".join(f"{name},5\n" for name in IMAGES),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_list_is_named(tmp_path, name):
    path = tmp_path / f"{PARTITION}{Path(name).suffix}"
    path.write_bytes(DAMAGED[name].encode(errors="surrogateescape"))
    with pytest.raises(UserError) as error:
        chosen(tmp_path / "a.zip", "train")
    assert error.value.where == str(path)
    assert error.value.wanted == "the list as published"


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_that_is_a_web_page_is_told_as_one(tmp_path, suffix):
    path = tmp_path / f"{ATTRIBUTES}.{suffix}"
    page = DAMAGED["web-page.txt"]
    path.write_text(page)
    with pytest.raises(UserError) as error:
        chosen(tmp_path / "a.zip", where="Smiling=1")
    assert error.value.where == str(path)
    assert error.value.found == f"a web page of {len(page)} bytes"
    assert "tomorrow" in error.value.remedy


def test_a_damaged_attribute_list_is_named(tmp_path):
    for name, text in {
        "list_attr_celeba.txt": "2\nSmiling Male\n000001.jpg 1\n",
        "list_attr_celeba.csv": "",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as error:
            chosen(tmp_path / "a.zip", where="Smiling=1")
        assert error.value.where == str(tmp_path / name)
        (tmp_path / name).unlink()
