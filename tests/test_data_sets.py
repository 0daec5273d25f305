"""Data sets as they come: torchvision's, LSUN's, and other people's webdatasets."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.errors import UserError
from pipeline.packing.sources import lsun, torchvision
from pipeline.packing.sources.open import open_source, open_sources
from pipeline.packing.sources.webdataset import key_and_extension
from pipeline.shards.labels import read_labels
from pipeline.shards.shard_set import ShardSet
from tests.archives import changed, tar_of
from tests.data_sets import write_cifar10, write_lsun, write_mnist
from tests.packing_runs import four_parts, in_process, run_here, tree
from tests.pictures import decode, encode, rows_of, smooth, stored, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

JPEG, PNG = encode(smooth(20, 24)), encode(smooth(24, 20, 1), "PNG")


def told(source, *, root=Path("data")):
    """The four parts that a source is refused with, its labels included."""

    def read():
        opened = open_source(source, root=root)
        opened.labels(opened.members())

    with pytest.raises(UserError) as error:
        read()
    fault = error.value
    assert all((fault.where, fault.found, fault.wanted, fault.remedy))
    return fault


def labels_of(source):
    table = source.labels(source.members())
    return table.kind, table.names, table.values.tolist()


# torchvision's


def test_mnist_is_packed_as_its_own_pixels_and_classes(tmp_path, monkeypatch):
    pixels, classes = write_mnist(tmp_path / "data", monkeypatch)["train"]
    status, out, _ = run_here(main, "torchvision:MNIST", cwd=tmp_path)
    assert (status, "packed  20 images of 28×28 pixels" in out) == (0, True)
    shards = ShardSet.open(tmp_path / "shards")
    ((*samples,),) = stored(shards)
    images = {int(name[:8]): data for name, data in samples if name.endswith(".raw")}
    assert len(images) == 20
    for number, data in images.items():
        found = np.frombuffer(data, np.uint8).reshape(28, 28, 3)
        assert np.array_equal(found, pixels[number, :, :, None].repeat(3, axis=2))
    assert shards.manifest.labels is not None
    assert shards.manifest.labels.names[1] == "1 - one"
    assert read_labels(shards).values.tolist() == classes


def test_cifar10_and_its_test_images_are_two_sources(tmp_path, monkeypatch):
    pixels, classes = write_cifar10(tmp_path, monkeypatch)
    both = open_sources(["torchvision:CIFAR10/test", "torchvision:CIFAR10"], tmp_path, tmp_path)
    members = both.members()
    assert [members[0].name, members[-1].name] == ["CIFAR10-test/00000.ppm", "CIFAR10/00019.ppm"]
    worker = pickle.loads(pickle.dumps(both))
    for member, picture in zip(members[4:], pixels, strict=True):
        assert np.array_equal(decode(worker.read(member)), picture)
    _, names, values = labels_of(both)
    assert names[:2] == ("airplane", "automobile")
    assert values[4:] == classes
    assert both.pixels == 32


def test_what_torchvision_would_not_accept_is_refused(tmp_path, monkeypatch):
    root = tmp_path / "data"
    missing = told("torchvision:MNIST", root=root)
    assert "no file" in missing.found
    assert "https://ossci-datasets.s3.amazonaws.com/mnist/train-images" in missing.wanted
    assert f"MNIST as D; D('{root}', download=True)" in missing.remedy
    write_mnist(root, monkeypatch)
    write_cifar10(root, monkeypatch)
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(changed(batch.read_bytes(), 30, 7))
    assert "data_batch_3 has another MD5 sum" in told("torchvision:CIFAR10", root=root).found
    unpacked = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    unpacked.write_bytes(changed(unpacked.read_bytes(), 9, 7))
    assert "other labels unpacked" in told("torchvision:MNIST", root=root).found
    packed = unpacked.with_suffix(".gz")
    packed.write_bytes(packed.read_bytes() + b"x")
    assert "another MD5 sum" in told("torchvision:MNIST", root=root).found
    unpacked.with_name("t10k-images-idx3-ubyte").unlink()
    packed.write_bytes(packed.read_bytes()[:-1])
    assert "not found" in told("torchvision:MNIST", root=root).found
    for name in ("SVHN", "MNIST/valid", ""):
        assert "one of MNIST, FashionMNIST, CIFAR10" in told(f"torchvision:{name}").wanted


def test_every_set_that_is_named_is_torchvisions():
    from torchvision import datasets

    assert all(
        issubclass(getattr(datasets, name), datasets.VisionDataset) for name in torchvision.SETS
    )


# LSUN's


def test_lsun_is_read_by_key_and_nothing_is_written(tmp_path):
    rooms = {f"{number:040x}": encode(smooth(30, 20, number), "WEBP") for number in range(5)}
    bed = write_lsun(tmp_path / "bedroom_train_lmdb", rooms)
    church = write_lsun(tmp_path / "church_outdoor_val_lmdb", {"a": rooms[f"{0:040x}"]})
    before = tree(tmp_path)
    source = open_source(bed)
    worker = pickle.loads(pickle.dumps(source))
    assert {m.name: worker.read(m) for m in source.members()} == {
        f"{key}.webp": data for key, data in rooms.items()
    }
    assert source.labels(source.members()) is None  # one class tells nothing
    worker.close()
    both = open_sources([str(bed), str(church)], tmp_path)
    assert labels_of(both) == ("classes", ("bedroom", "church_outdoor"), [0] * 5 + [1])
    assert tree(tmp_path) == before


def test_a_database_that_is_none_is_refused(tmp_path, monkeypatch):
    folder = write_lsun(tmp_path / "tower_train_lmdb", {"a": JPEG, "b": JPEG * 20})
    whole = (folder / lsun.DATA).read_bytes()
    for data in (b"", b"x" * 9000, whole[:9000], whole[: len(whole) // 2], whole[:-1]):
        (folder / lsun.DATA).write_bytes(data)
        assert "damaged, cut off or none of LMDB's" in told(folder).found
    monkeypatch.setitem(__import__("sys").modules, "lmdb.verify", None)
    assert told(folder).remedy == "pip install 'dcgan-shards[lsun]'"


# Webdatasets of others


def test_keys_are_webdatasets():
    for name in ("a/b.c/0001.jpg", "0001.seg.PNG", "0001", "x/0001.tar.gz", "a.b/c"):
        key, extension = webdataset.tariterators.base_plus_ext(name)
        if key is not None:
            assert key_and_extension(name) == (key, extension.lower())


def wds(kind, *names):
    """The tar of a webdataset: each image, then its label, the length of its name or even."""
    files = {}
    for name in names:
        key = name.partition(".")[0]
        files[name] = PNG if name.endswith("png") else JPEG
        number = len(name)
        bits = b'{"long": %d, "even": %s}' % (number > 5, [b"false", b"true"][number % 2 == 0])
        files[f"{key}.{kind}"] = b"%d\n" % number if kind == "cls" else bits
    return tar_of(files)


def test_a_folder_of_tars_is_one_source_with_its_labels(tmp_path):
    write_pictures(
        tmp_path / "wds", {"0.tar": wds("cls", "b.jpg", "aa.png"), "1.tar": wds("cls", "c.jpg")}
    )
    status, out, _ = run_here(main, "wds", "--out", "by-folder", cwd=tmp_path)
    assert status == 0
    assert "labels  2 classes: 1 6, 2 5" in out
    run_here(main, "wds/{0..1}.tar", "--out", "by-pattern", cwd=tmp_path)
    rows = sorted(rows_of(tmp_path / "by-folder" / "samples.csv")[1:])
    assert [row[2] for row in rows] == ["aa.png", "b.jpg", "c.jpg"]
    assert tree(tmp_path / "by-folder") == tree(tmp_path / "by-pattern")
    source = open_source(tmp_path / "wds")
    assert labels_of(source) == ("classes", ("5", "6"), [1, 0, 0])
    (tmp_path / "wds" / "classnames.txt").write_text("\n".join("abcdefgh"))
    assert labels_of(source) == ("classes", tuple("abcdefgh"), [6, 5, 5])
    (tmp_path / "wds" / "classnames.txt").write_text("a\nb\n")
    assert "class 6, and 2 names" in told(tmp_path / "wds").found


def test_json_of_zeros_and_ones_is_attributes_and_other_json_is_none(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(wds("json", "b.jpg", "aa.jpg"))
    table = labels_of(open_source(path))
    assert table == ("attributes", ("long", "even"), [[True, True], [False, False]])
    for other in (b'{"caption": "a cat"}', b"[1]", b"{}", b"[" * 9999, b'{"a": 2}', b'{"a": 1.0}'):
        path.write_bytes(tar_of({"a.jpg": JPEG, "a.json": other}))
        source = open_source(path)
        assert source.labels(source.members()) is None


FAULTS = {
    "no-label": (
        {"a.jpg": JPEG, "a.cls": b"1", "b.jpg": JPEG},
        "1 of 2 images without a .cls beside them, the first b.jpg",
    ),
    "no-image": (
        {"a.jpg": JPEG, "a.cls": b"1", "b.cls": b"1"},
        "1 .cls without an image beside them, the first b.cls",
    ),
    "no-number": ({"a.jpg": JPEG, "a.cls": b"cat"}, "b'cat'"),
    "pickled": ({"a.jpg": JPEG, "a.cls": pickle.dumps(1)}, r"b'\x80"),
    "other-attributes": (
        {"a.jpg": JPEG, "a.json": b'{"x": 1}', "b.jpg": JPEG, "b.json": b'{"y": 1}'},
        "not the attributes that the image before it has",
    ),
    "huge": ({"a.jpg": JPEG, "a.cls": b"1" * 70_000}, "70,000 bytes"),
}


@pytest.mark.parametrize(("files", "found"), FAULTS.values(), ids=FAULTS)
def test_a_webdataset_without_an_image_or_a_label_is_refused(tmp_path, files, found):
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    fault = told(tmp_path / "a.tar")
    assert found in fault.found
    assert "--labels none" in fault.remedy
    assert run_here(main, "a.tar", "--labels", "none", cwd=tmp_path)[0] == 0


def test_one_name_in_two_tars_is_refused_and_the_remedy_tells_them_apart(tmp_path):
    write_pictures(tmp_path / "wds", dict.fromkeys(["0.tar", "1.tar"], wds("cls", "a.jpg")))
    fault = told(tmp_path / "wds")
    assert fault.found == "a.jpg in 0.tar, and in 1.tar too"
    assert f"{tmp_path}/wds/0.tar {tmp_path}/wds/1.tar" in fault.remedy
    both = open_sources([f"{tmp_path}/wds/{number}.tar" for number in (0, 1)], tmp_path)
    assert [member.name for member in both.members()] == ["0/a.jpg", "1/a.jpg"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("pipe:touch pwned", "a URL"),
        ("pipe:touch pwned {0..1}", "a URL"),
        ("https://example.org/{0..1}.tar", "a URL"),
        ("{0..1}.tar", "no such file"),
        ("{0..1.tar", "braces that do not match"),
        ("{0..9999999}.tar", "a pattern of more than"),
    ],
)
def test_no_url_is_fetched_and_no_command_run(tmp_path, monkeypatch, source, found):
    status, _, err = run_here(main, source, cwd=tmp_path)
    assert status == 1
    assert found in four_parts(err)[1]
    assert not list(tmp_path.iterdir())
