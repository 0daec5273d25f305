"""Labels of a shard set: as webdataset and numpy read them, checked, and served by every loader."""

import functools
import gc
import io
import json
import shutil
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import CLASSES, SyntheticLoader
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source
from pipeline.shards.labels import LabelTable, counts_of, labels_file, labels_of_rows, read_labels
from pipeline.shards.manifest import LABELS, MANIFEST, Labels, Recipe
from pipeline.shards.shard_set import Folder, ShardSet
from pipeline.verify import verify
from tests.fuzzing import changed_bytes, some, survives
from tests.loaders import keys
from tests.needs import take, within
from tests.packing_runs import in_process, run_here, tree, without_workers
from tests.pictures import names_in, numbered_pictures, numbers, pack_pictures, write_pictures
from tools.check_shards import main as check_shards
from tools.make_shards import main as make_shards

__all__ = ["in_process"]  # a fixture

COUNT = 23
BAD = 5
"""A picture that is none, and so is not in the set."""

CLASSES_OF = LabelTable("classes", ("a", "b", "c"), (np.arange(COUNT) % 3).astype(np.int32))
BITS = np.arange(COUNT)[:, None] >> np.arange(10) & 1 > 0
ATTRIBUTES_OF = LabelTable("attributes", (*"abcdefghi", "é, no"), BITS)
"""More than a byte of them."""

TABLES = {"classes": CLASSES_OF, "attributes": ATTRIBUTES_OF}
KEPT = [key for key in range(COUNT) if key != BAD]


def label_of(key, kind):
    return key % 3 if kind == "classes" else [key >> bit & 1 for bit in range(10)]


@pytest.fixture(scope="module")
def pack_labelled(tmp_path_factory):
    """The set of a table, in a store: packed once."""
    pictures = numbered_pictures(COUNT) | {f"{BAD:03d}.jpg": b"no picture"}

    @functools.cache
    def make(kind, store="original"):
        recipe = Recipe(store="raw", crop="centre", size=32, filter="bilinear")
        options = {"per_shard": 8, "max_rejects": 1} | (
            {"recipe": recipe} if store == "raw" else {}
        )
        return pack_pictures(
            tmp_path_factory.mktemp(kind), pictures, labels=TABLES[kind], **options
        )

    return make


@pytest.fixture(scope="module")
def sets(pack_labelled):
    return {kind: pack_labelled(kind) for kind in TABLES}


@pytest.fixture
def of_kind(kind, pack_labelled):
    """The set of a table in the store that this way of loading is for."""
    return lambda table: pack_labelled(table, "raw" if kind.startswith("raw") else "original")


@pytest.fixture
def spare(sets, tmp_path):
    """The set of classes, to be altered at will."""
    return ShardSet.open(shutil.copytree(sets["classes"].folder, tmp_path / "spare"))


def reseal(folder, data):
    """Have the manifest vouch for other contents of `labels.npy`."""
    (folder / LABELS).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["labels"]["sha256"] = digest(data)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return ShardSet.open(folder)


# The set


def test_a_class_of_which_no_image_is_left_is_refused(tmp_path):
    pictures = numbered_pictures(4) | {"003.jpg": b"no picture"}
    table = LabelTable("classes", ("a", "b"), np.array([0, 0, 0, 1], np.int32))
    with pytest.raises(UserError, match=r"1 of 2 classes, the first b") as caught:
        pack_pictures(tmp_path, pictures, labels=table, max_rejects=1)
    assert "rejects.csv" in caught.value.remedy


def test_a_set_without_its_labels_does_not_open(spare):
    (spare.folder / LABELS).unlink()
    with pytest.raises(UserError, match=r"labels\.npy"):
        ShardSet.open(spare.folder)


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "extension"), [("classes", "cls"), ("attributes", "json")])
def test_webdataset_and_numpy_read_the_labels_that_were_packed(sets, kind, extension):
    shards = sets[kind]
    urls = [str(tar) for tar in shards.tars]
    found = {
        int(sample["__key__"]): sample[extension]
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()
    }
    gc.collect()  # webdataset leaves closing its files to the collector, which warns of each
    wanted = {key: label_of(key, kind) for key in KEPT}
    names = TABLES[kind].names
    assert found == (
        wanted if kind == "classes" else
        {key: dict(zip(names, bits, strict=True)) for key, bits in wanted.items()}
    )  # fmt: skip
    stored = np.load(shards.folder / LABELS, allow_pickle=False)
    assert (stored.dtype, len(stored)) == ({"classes": "i4", "attributes": "u1"}[kind], len(KEPT))
    unpacked = stored if kind == "classes" else np.unpackbits(stored, axis=1, count=len(names))
    assert unpacked.tolist() == read_labels(shards).values.tolist() == list(wanted.values())
    manifest = shards.manifest
    assert (manifest.format, manifest.labels.kind, manifest.labels.names) == (2, kind, names)
    assert manifest.labels.counts == counts_of(unpacked, len(names))


def test_an_unfinished_set_goes_on_with_the_same_labels_alone(tmp_path, monkeypatch):
    source = open_source(write_pictures(tmp_path / "src", numbered_pictures(6)))
    first = LabelTable("classes", ("a", "b"), np.array([0, 1] * 3, np.int32))
    other = LabelTable("classes", ("a", "b"), np.array([1, 0] * 3, np.int32))

    def packed(name, labels, **options):
        packing = Packing(per_shard=2, **options)
        return pack(source, source.members(), tmp_path / name, packing, labels=labels)

    def cut_off(*_):
        raise UserError("", "", "", "")

    with without_workers():
        packed("whole", first)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.packing.pack.merge", cut_off)
            with pytest.raises(UserError):
                packed("set", first)
        for labels in (other, None):
            with pytest.raises(UserError, match="other options: labels"):
                packed("set", labels)
        assert packed("set", first).resumed == 3
        assert tree(tmp_path / "set") == tree(tmp_path / "whole")
        packed("set", None, overwrite=True)
        assert LABELS not in names_in(tmp_path / "set")
        packed("set", other, overwrite=True)
    assert read_labels(ShardSet.open(tmp_path / "set")).values.tolist() == [1, 0] * 3
    assert names_in(tmp_path / "set") == names_in(tmp_path / "whole")


def test_a_file_of_that_name_beside_a_set_without_labels_is_kept(tmp_path):
    folder = pack_pictures(tmp_path, numbered_pictures(3)).folder
    (folder / LABELS).write_bytes(b"mine")
    status, _, err = run_here(make_shards, tmp_path / "pictures", "--out", folder, "--overwrite")
    assert (status, "1 other entries: labels.npy" in err) == (1, True)
    assert (folder / LABELS).read_bytes() == b"mine"


@pytest.mark.usefixtures("in_process")
def test_the_commands_pack_and_show_classes(tmp_path):
    pictures = numbered_pictures(6)
    write_pictures(
        tmp_path / "src",
        {f"{'ab'[k % 3 > 0]} é/{k}.jpg": pictures[f"{k:03d}.jpg"] for k in range(6)},
    )
    status, out, _ = run_here(make_shards, "src", "--labels", "folders", cwd=tmp_path)
    assert (status, "labels  2 classes: 2 a é, 4 b é\n" in out) == (0, True)
    status, out, _ = run_here(check_shards, "shards", cwd=tmp_path)
    assert status == 0
    assert "labels  2 classes\n        a é: 2 (33.3%)\n        b é: 4 (66.7%)\n" in out


def test_verify_compares_labels_with_the_tars(sets, spare):
    for shards in sets.values():
        assert verify(shards).faults == []
    values = read_labels(spare).values.copy()
    values[[0, 2]] = values[[2, 0]]
    (spare.folder / LABELS).write_bytes(labels_file(values))
    assert verify(spare).faults == ["labels.npy: other contents"]
    faults = sorted(verify(reseal(spare.folder, labels_file(values))).faults)
    assert [fault[:43] for fault in faults] == [
        f"labels.npy: another label for sample {key:08d}"[:43] for key in (0, 2)
    ]
    tar = spare.tars[0]
    data = tar.read_bytes()
    place = data.index(b".cls")
    key = data[place - 8 : place].decode()
    tar.write_bytes(data[: place + 504] + b"7" + data[place + 505 :])
    reseal(spare.folder, (sets["classes"].folder / LABELS).read_bytes())
    faults = verify(ShardSet.open(spare.folder)).faults
    assert faults == [f"shard-000000: sample {key} has another label than in labels.npy"]


def npy(array):
    """A whole file, as numpy would write one that is not ours."""
    path = io.BytesIO()
    np.save(path, array, allow_pickle=True)
    return path.getvalue()


FOREIGN = {
    "pickle": npy(np.array([{}] * len(KEPT), object)),
    "floats": labels_file(CLASSES_OF.values[KEPT]).replace(b"<i4", b"<f4"),
    "shape": labels_file(np.zeros((len(KEPT), 32), np.int32)),
    "range": labels_file(np.full(len(KEPT), 3)),
    "negative": labels_file(np.full(len(KEPT), -1)),
    "counts": labels_file(np.zeros(len(KEPT))),
    "short": labels_file(np.zeros(3)),
    "empty": b"",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_file_in_place_of_the_labels_is_refused(spare, case):
    shards = reseal(spare.folder, FOREIGN[case])
    with pytest.raises(UserError, match=r"labels.npy\n  found"):
        read_labels(shards)


@given(data=st.data())
@some(0.5)
def test_any_file_of_labels_is_read_or_refused(sets, tmp_path, data):
    labels = sets["classes"].manifest.labels
    changed = data.draw(changed_bytes((sets["classes"].folder / LABELS).read_bytes()))
    (tmp_path / LABELS).write_bytes(changed)
    vouched = labels.model_copy(update={"sha256": digest(changed)})
    shards = ShardSet(
        Folder(tmp_path), sets["classes"].manifest.model_copy(update={"labels": vouched})
    )
    survives("labels.npy", lambda: read_labels(shards), UserError)


def test_a_million_labels_take_little_memory(tmp_path):
    number = 1_000_000
    values = np.arange(number, dtype=np.int32) % 1000
    data = labels_file(values)
    (tmp_path / LABELS).write_bytes(data)

    class Million(ShardSet):
        def __len__(self):
            return number

    labels = Labels(
        kind="classes",
        names=tuple(map(str, range(1000))),
        counts=(1000,) * 1000,
        sha256=digest(data),
    )
    manifest = type("Million", (), {"labels": labels})()
    shards = Million(Folder(tmp_path), manifest)
    order = np.random.default_rng(0).permutation(number)
    tracemalloc.start()
    rows = labels_of_rows(read_labels(shards).values, order)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (rows == order % 1000).all()
    assert peak < 17 << 20


# Loaders


def told(labels, kind):
    return labels.tolist() if kind == "classes" else labels.int().tolist()


@pytest.mark.parametrize("of", TABLES)
def test_every_loader_gives_each_image_its_label(open_batches, of_kind, of):
    shards = of_kind(of)
    batches = open_batches(shards, 4, dtype=torch.uint8, labels=True)
    plain = open_batches(shards, 4, dtype=torch.uint8)
    steps = 2 * batches.steps_per_epoch + 1
    served = take(batches, steps)
    for (images, labels), alone in zip(served, take(plain, steps), strict=True):
        assert images.equal(alone)
        assert told(labels, of) == [label_of(key, of) for key in numbers(images)]
        assert labels.dtype == (torch.int64 if of == "classes" else torch.float32)
    assert batches.label_space.names == TABLES[of].names
    assert told(batches.label_table, of) == [
        label_of(key, of) for key in dict.fromkeys(keys(shards))
    ]
    assert plain.label_table is plain.label_space is None


def test_labels_fit_on_every_rank_after_a_resume_and_in_a_buffer(of_kind, open_batches):
    shards = of_kind("classes")
    images = torch.empty(3, 32, 32, 3, dtype=torch.uint8)
    labels = torch.empty(3, dtype=torch.int64)
    for rank in range(2):
        options = {"dtype": torch.uint8, "labels": True, "rank": rank, "num_ranks": 2}
        first, resumed = (open_batches(shards, 3, **options) for _ in range(2))
        take(first, 1)
        resumed.load_state_dict(first.state_dict())
        for wanted, numbered in take(first, 2 * first.steps_per_epoch):
            within(60, partial(resumed.fill, images, labels))
            assert images.equal(wanted)
            assert labels.tolist() == numbered.tolist() == [n % 3 for n in numbers(images)]


def test_noise_has_classes_that_are_drawn():
    batches = SyntheticLoader(LoaderOptions(4, 16, labels=True, rank=1, num_ranks=2))
    images, labels = next(batches)
    table, space = batches.label_table, batches.label_space
    assert table is not None
    assert space is not None
    assert labels.tolist() == table[16:20].tolist()
    assert len(space.names) == CLASSES > max(labels)
    assert images.equal(next(SyntheticLoader(LoaderOptions(4, 16, rank=1, num_ranks=2))))


def test_a_set_without_labels_gives_none(numbered_set):
    with pytest.raises(UserError, match="a shard set without labels"):
        Loader(numbered_set(12, 5), LoaderOptions(2, 32, labels=True, workers=1))
