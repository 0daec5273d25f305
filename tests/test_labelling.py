"""`--labels`: from what it says to the label of each image, or to an error that helps."""

import json
import os
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.packing.labelling import label
from pipeline.packing.sources.folder import FolderSource
from pipeline.packing.sources.open import open_source
from pipeline.shards.labels import LabelTable
from tests.fuzzing import changed_bytes, changed_json, some, survives
from tests.pictures import write_pictures

TWO = ["a/1.jpg", "b/2.jpg"]


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Labels in words by image: of a source with these images, and perhaps a file beside it."""
    monkeypatch.chdir(tmp_path)

    def run(names, asked, text=None, most=None):
        source = open_source(write_pictures(tmp_path / "src", dict.fromkeys(names, b"")))
        if text is not None:
            (tmp_path / asked).write_bytes(text if isinstance(text, bytes) else text.encode())
        members = source.members()[:most]
        labelling = label(source, members, asked)
        return labelling and in_words(labelling.table, members)

    return run


def in_words(table, members):
    kind, names, values = table
    if kind == "classes":
        words = [names[number] for number in values]
    else:
        words = [[name for name, has in zip(names, row, strict=True) if has] for row in values]
    return dict(zip((member.name for member in members), words, strict=True))


@pytest.mark.parametrize(
    "classes",
    [
        {"cats/1.jpg": "cats", "dogs/1.jpg": "dogs", "dogs/old/2.jpg": "dogs"},
        {"data/all/-x/1.jpg": "-x", "data/all/é, ü z/1.jpg": "é, ü z"},  # a folder around all
        {"train/b/1.jpg": "b", "Test/a/1.jpg": "a", "train/a/1.jpg": "a"},  # no classes: splits
        {"train/1.jpg": "train", "car/1.jpg": "car"},  # but vehicles are
    ],
)
def test_the_first_folders_that_differ_are_classes(labelled, classes):
    assert labelled(classes, "folders") == classes


CLASSES = {"a/1.jpg": "dog", "b/2.jpg": "cat, big"}
ATTRIBUTES = {"a/1.jpg": ["S"], "b/2.jpg": ["M", "S"]}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("x.csv", 'file,class\na/1.jpg,dog\nb/2.jpg,"cat, big"\n', CLASSES),
        ("x.csv", '\ufeffb/2.jpg,"cat, big"\r\na/1.jpg, dog\r\n', CLASSES),
        ("x.csv", "a/1.jpg;dog\nb/2.jpg;cat, big\n\n", CLASSES),
        ("x.tsv", "id\tbreed\n1\tdog\n2\tcat, big\n", CLASSES),  # ids without a suffix
        ("x.csv", "1.jpg,dog\n.\\elsewhere\\2.jpg,'cat'\n", CLASSES | {"b/2.jpg": "'cat'"}),
        ("x.csv", "id,M,S\na/1.jpg,0,1\nb/2.jpg,1,1\n", ATTRIBUTES),
        ("x.csv", "id,M,S\na/1.jpg,-1,1\nb/2.jpg,1,1\n", ATTRIBUTES),
        ("x.csv", "a/1.jpg,0,1\nb/2.jpg,1,1\n", {"a/1.jpg": ["attribute-2"],
            "b/2.jpg": ["attribute-1", "attribute-2"]}),
        ("x.json", {"labels": [["a/1.jpg", 10], ["b/2.jpg", 9]]},
            {"a/1.jpg": "10", "b/2.jpg": "9"}),
        ("x.json", {"labels": [["a/1.jpg", [0.0, 1.0]], ["b/2.jpg", [1.0, 0.0]]]},
            {"a/1.jpg": ["attribute-2"], "b/2.jpg": ["attribute-1"]}),
        ("x.JSON", {"a/1.jpg": "dog", "b/2.jpg": "cat, big"}, CLASSES),
        ("x.json", {"a/1.jpg": {"M": False, "S": True}, "b/2.jpg": {"S": 1, "M": 1}}, ATTRIBUTES),
    ],
)  # fmt: skip
def test_a_file_labels_images_by_their_names(labelled, name, text, wanted):
    assert labelled(TWO, name, text if isinstance(text, str) else json.dumps(text)) == wanted


def test_whole_numbers_are_in_their_order_and_a_class_without_images_is_left_out(tmp_path):
    source = open_source(write_pictures(tmp_path, dict.fromkeys(["1.jpg", "2.jpg", "3.jpg"], b"")))
    path = tmp_path / "x.csv"
    path.write_text("1.jpg,10\n2.jpg,9\n3.jpg,8\n")
    labelling = label(source, source.members()[:2], str(path))
    assert labelling is not None
    table, left_out = labelling
    assert (table.names, table.values.tolist(), left_out) == (("9", "10"), [1, 0], ("8",))


def test_names_may_begin_below_the_folders_that_all_files_share(labelled):
    files = {"shells/a/1.jpg": "", "shells/b/1.jpg": ""}
    wanted = {"shells/a/1.jpg": "dog", "shells/b/1.jpg": "cat"}
    assert labelled(files, "x.csv", "a/1.jpg,dog\nb/1.jpg,cat\n") == wanted


def test_a_name_may_be_spelled_in_another_form_of_unicode(labelled):
    name = "é.jpg"
    assert normalize("NFC", name) != normalize("NFD", name)
    assert labelled([normalize("NFD", name)], "x.csv", f"{normalize('NFC', name)},dog")


def test_celebas_own_list_labels_each_edition(labelled, tmp_path):
    (tmp_path / "list_attr_celeba.txt").write_text(
        "3\nM S Y\n1.jpg 1 -1 1\n2.jpg -1 1 1\n3.jpg 1 1 1\n"
    )
    images = ["img/1.png", "img/2.jpg"]
    assert labelled(images, "celeba:S,M") == {"img/1.png": ["M"], "img/2.jpg": ["S"]}
    assert labelled(images, "celeba") == {"img/1.png": ["M", "Y"], "img/2.jpg": ["S", "Y"]}
    for asked, said in (("celeba:Z", "an attribute 'Z'"), ("celeba:S,S", "'S' twice")):
        with pytest.raises(UserError, match=said):
            labelled(images, asked)


def test_a_source_may_have_labels_of_its_own(labelled, monkeypatch):
    own = LabelTable("classes", ("x", "y"), np.array([1, 1], np.int32))
    monkeypatch.setattr(FolderSource, "labels", lambda self, members: own)
    assert labelled(TWO, None) == {"a/1.jpg": "y", "b/2.jpg": "y"}
    assert labelled(TWO, "folders") == {"a/1.jpg": "a", "b/2.jpg": "b"}
    assert labelled(TWO, "none") is None


REFUSED = {
    "missing": ("a/1.jpg,dog\n", "1 labels for 2 images: 1 images without a label, the first b/2"),
    "others": ("a/1.jpg,x\nb/2.jpg,x\nc/3.jpg,x", "3 labels .*: 1 labels without .* first c/3"),
    "both": ("x/a.jpg,dog\nb/2.jpg,x", "1 images without .*a/1.jpg; 1 labels without .*x/a"),
    "twice": ("a/1.jpg,dog\nb/2.jpg,x\na/1.jpg,cat\n", "named more than once, the first a/1.jpg"),
    "page": ("<!DOCTYPE html><title>Sign in</title>", r"a web page of 37 bytes \(Sign in\)"),
    "empty": ("", "an empty file"),
    "pointer": ("version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "zip": (b"PK\3\4\0\0\xff\xff", "an archive"),
    "utf-16": ("a/1.jpg,dog\nb/2.jpg,x\n".encode("utf-16"), "no text in UTF-8"),
    "names": ("a/1.jpg\nb/2.jpg\n", "line 1 has a name alone"),
    "ragged": ("a/1.jpg,1,0\nb/2.jpg,1\n", "line 2 has 2 cells, where the first has 3"),
    "measured": ("a/1.jpg,0.5\nb/2.jpg,3\n", "numbers that are no classes, for example 0.5"),
    "nan": ("a/1.jpg,nan\nb/2.jpg,3\n", "numbers that are no classes, for example nan"),
    "words": ("n,A,B\na/1.jpg,1,red\nb/2.jpg,1,0\n", "2 columns, with the value 'red'"),
    "unknown": ("n,A,B\na/1.jpg,1,-1\nb/2.jpg,0,1\n", "both 0 and -1"),
    "column": ("n,A,A\na/1.jpg,1,0\nb/2.jpg,1,0\n", "'A' twice"),
    "comma": ('n,"A,B",C\na/1.jpg,1,0\nb/2.jpg,1,0\n', "an attribute with a comma"),
    "nameless": ("a/1.jpg,dog\nb/2.jpg,\n", "a class that is empty"),
    "controls": ("a/1.jpg,dog\nb/2.jpg,\x1b[2J\n", "a class with characters that cannot be shown"),
    "long": (f"a/1.jpg,dog\nb/2.jpg,{'x' * 999}\n", "a class of 999 characters"),
    "json-deep": ('{"labels":' + "[" * 100_000, "no table of labels"),
    "json-null": ('{"labels": null}', "its labels are null: the images have none"),
    "json-nan": ('{"labels": [["a/1.jpg", NaN], ["b/2.jpg", 1]]}', "NaN is no label"),
    "json-mixed": ('{"a/1.jpg": 1, "b/2.jpg": "x"}', "entry 2 has a label of another kind"),
    "json-twice": ('{"a/1.jpg": 1, "b/2.jpg": 2, "a/1.jpg": 2}', "more than once, the first a/1"),
    "json-cut": ('{"labels": [["a/1.jpg", 1]', "no table of labels"),
    "json-other": ('{"message": "not found"}', "2 images without a label"),
    "json-floats": ('{"a/1.jpg": [0.5, 2], "b/2.jpg": [1, 2]}', "2 columns, with the value '0.5'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_label_the_images_is_refused(labelled, case):
    text, said = REFUSED[case]
    with pytest.raises(UserError, match=said):
        labelled(TWO, "x.json" if case.startswith("json") else "x.csv", text)


def test_a_last_part_that_two_images_have_names_neither(labelled):
    images = ["a/1.jpg", "b/1.jpg"]
    with pytest.raises(UserError, match=r"2 images without a label.*; 1 labels without an image"):
        labelled(images, "x.csv", "1.jpg,dog\n")
    found = labelled(images, "x.csv", "1.jpg,dog\nb/1.jpg,cat\n")  # where b's is named, it does
    assert found == {"a/1.jpg": "dog", "b/1.jpg": "cat"}


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["1.jpg", "a/2.jpg"], "folders", "1 images beside the folders a, the first 1.jpg"),
        (["a/1.jpg", "a/2.jpg"], "folders", "no folders that tell classes apart: 2 images"),
        (["a/1.jpg", "b\x1b/2.jpg"], "folders", "characters that cannot be shown"),
        (TWO, "folder", "no such file"),
        (TWO, "src", "a folder"),
        (TWO, "/dev/zero", "no file"),
        (TWO, "celeba", "no list_attr_celeba.txt"),
    ],
)
def test_what_tells_no_labels_is_refused(labelled, names, asked, said):
    with pytest.raises(UserError, match=said):
        labelled(names, asked)


def test_a_column_of_numbers_and_a_huge_file_are_refused(labelled, monkeypatch):
    text = "a/1.jpg,1700\nb/2.jpg,2040\n"
    monkeypatch.setattr("pipeline.packing.labelling.MAX_CLASSES", 1)
    with pytest.raises(UserError, match="2 classes for 2 images"):
        labelled(TWO, "x.csv", text)
    os.truncate("x.csv", 1 << 40)
    with pytest.raises(UserError, match="a file of 1,099,511,627,776 bytes"):
        labelled(TWO, "x.csv")


@given(data=st.data())
@some(1)
def test_any_file_labels_or_is_refused(tmp_path, data):
    source = open_source(write_pictures(tmp_path / "src", dict.fromkeys(TWO, b"")))
    if data.draw(st.booleans()):
        path, text = (
            tmp_path / "x.json",
            data.draw(
                changed_json({"labels": [["a/1.jpg", 1], ["b/2.jpg", 0]], "a/1.jpg": {"A": 1}})
            ).encode(errors="surrogatepass"),
        )
    else:
        path, text = (
            tmp_path / "x.csv",
            data.draw(changed_bytes(b"n,A,B\na/1.jpg,1,0\nb/2.jpg,0,0")),
        )
    path.write_bytes(text)
    survives("file of labels", lambda: label(source, source.members(), str(path)), UserError)
