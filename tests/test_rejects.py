"""What packing makes of odd files and bad ones: the same on every run, listed, and counted."""

import tarfile

import pytest

from pipeline.errors import UserError
from pipeline.packing.pack import Packing, pack
from pipeline.packing.shard import Work, write_shard
from pipeline.packing.sources.open import open_source
from pipeline.shards.manifest import MANIFEST, PROGRESS, REJECTS, SAMPLES, Recipe
from pipeline.shards.order import permutation
from pipeline.shards.shard_set import ShardSet
from tests.odd_files import ODD, Converted, Rejected, Untouched
from tests.packing_runs import in_process, without_workers
from tests.pictures import contents, encode, names_in, rows_of, smooth, stored, write_pictures

__all__ = ["in_process"]  # a fixture

PICTURES = {f"{n:02d}.jpg": encode(smooth(20 + n, 24, seed=n)) for n in range(18)}
JPEG = PICTURES["00.jpg"]
FATES = (Untouched, Converted, Rejected)


def names_of(source):
    return [member.name for member in source.members()]


def samples_of(folder):
    """Every stored sample: name → bytes."""
    return dict(sample for shard in stored(ShardSet.open(folder)) for sample in shard)


# Odd files, all of them


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder of all odd files, and names that no suffix list knows are not missed."""
    return open_source(
        write_pictures(
            tmp_path_factory.mktemp("odd"), {name: data for name, (data, _) in ODD.items()}
        )
    )


RECIPES = {
    "original": Recipe(),
    "unchecked": Recipe(checked=False),
    "jpeg": Recipe(store="jpeg", crop="centre", size=32, filter="bilinear", quality=90),
    "raw": Recipe(store="raw", crop="centre", size=16, filter="bilinear"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_odd_files_give_the_same_bytes_in_worker_processes(odd, tmp_path, recipe):
    assert len(odd.members()) == len(ODD)
    with without_workers():
        pack(odd, odd.members(), tmp_path / "0", Packing(recipe, per_shard=9, max_rejects=1))
    first = contents(tmp_path / "0")
    assert {MANIFEST, SAMPLES, REJECTS, "shard-000000.tar", "shard-000008.idx"} <= set(first)
    workers = 2 if recipe.store == "original" else 1  # the others import torch
    options = Packing(recipe, per_shard=9, max_rejects=1, workers=workers)
    pack(odd, odd.members(), tmp_path / "1", options)
    assert contents(tmp_path / "1") == first


@pytest.mark.usefixtures("in_process")
def test_each_odd_file_meets_its_fate(odd, tmp_path):
    packed = pack(odd, odd.members(), tmp_path, Packing(per_shard=9, max_rejects=1))
    fates = {fate: [n for n, case in ODD.items() if isinstance(case[1], fate)] for fate in FATES}
    assert packed.converted == len(fates[Converted])
    assert packed.manifest.samples == len(fates[Untouched]) + len(fates[Converted])
    assert packed.manifest.rejected == len(fates[Rejected]) == sum(packed.rejected.values())
    samples, names = samples_of(tmp_path), names_of(odd)
    for name in fates[Untouched]:
        assert samples[f"{names.index(name):08d}.jpg"] == ODD[name][0]
    header, *rows = rows_of(tmp_path / REJECTS)
    assert header == ["source", "reason", "bytes"]
    assert sorted(name for name, *_ in rows) == sorted(fates[Rejected])
    for name, reason, size in rows:
        data, fate = ODD[name]
        assert reason.startswith(fate.kind)  # type: ignore[union-attr]
        assert int(size) == len(data)
    assert set(packed.rejected) == {ODD[name][1].kind for name in fates[Rejected]}  # type: ignore[union-attr]


@pytest.mark.usefixtures("in_process")
def test_a_reject_leaves_its_shard_shorter_and_moves_nothing_else(tmp_path):
    broken = {"05.jpg": PICTURES["05.jpg"][:-20], "06.jpg": b""}
    sets = []
    for name, files in {"whole": PICTURES, "broken": PICTURES | broken}.items():
        source = open_source(write_pictures(tmp_path / name, files))
        out = tmp_path / f"{name}-set"
        pack(source, source.members(), out, Packing(per_shard=5, max_rejects=1))
        sets.append(stored(ShardSet.open(out)))
    whole, shorter = sets
    lost = {f"{rank:08d}.jpg" for rank in (5, 6)}
    assert shorter == [[sample for sample in shard if sample[0] not in lost] for shard in whole]
    assert sum(map(len, shorter)) == 16


@pytest.mark.usefixtures("in_process")
def test_a_shard_of_rejects_alone_has_no_tar(tmp_path):
    order = permutation(9, 0).tolist()
    bad = {f"{rank}.jpg": b"no image" for rank in order[3:6]}
    source = open_source(
        write_pictures(
            tmp_path / "in",
            dict(list(PICTURES.items())[:0])
            | {f"{rank}.jpg": PICTURES["00.jpg"] for rank in range(9)}
            | bad,
        )
    )
    packed = pack(source, source.members(), tmp_path / "out", Packing(per_shard=3, max_rejects=1))
    assert [shard.name for shard in packed.manifest.shards] == ["shard-000000", "shard-000002"]
    assert [shard.samples for shard in packed.manifest.shards] == [3, 3]
    assert "shard-000001.tar" not in names_in(tmp_path / "out")
    assert packed.rejected == {"not an image": 3}
    assert len(ShardSet.open(tmp_path / "out")) == 6


@pytest.mark.usefixtures("in_process")
def test_names_that_are_not_utf8_come_back_from_the_tables(tmp_path):
    names = {b"caf\xe9.jpg": PICTURES["00.jpg"], b'a,"b"\n.jpg': b"no image"}
    (tmp_path / "in").mkdir()
    for name, data in names.items():
        (tmp_path / "in" / name.decode(errors="surrogateescape")).write_bytes(data)
    source = open_source(tmp_path / "in")
    pack(source, source.members(), tmp_path / "out", Packing(max_rejects=1))
    assert rows_of(tmp_path / "out" / SAMPLES)[1][2] == "caf\udce9.jpg"
    assert rows_of(tmp_path / "out" / REJECTS)[1][0] == 'a,"b"\n.jpg'


# Too many rejects, and none allowed


def with_bad(folder, bad, good=20):
    pictures = {f"{number:03d}.jpg": PICTURES["00.jpg"] for number in range(good)}
    rejects = {f"x{number:03d}.jpg": PICTURES["01.jpg"][:-20] for number in range(bad)}
    return open_source(write_pictures(folder, pictures | rejects))


@pytest.mark.parametrize(
    ("bad", "share", "passes"),
    [(0, 0.0, True), (1, 0.0, False), (5, 0.2, True), (5, 0.19, False)],
)
@pytest.mark.usefixtures("in_process")
def test_the_share_of_rejects_is_of_all_images(tmp_path, bad, share, passes):
    source = with_bad(tmp_path / "in", bad)
    options = Packing(per_shard=4, max_rejects=share)
    if passes:
        packed = pack(source, source.members(), tmp_path / "out", options)
        assert packed.manifest.rejected == bad
        return
    with pytest.raises(UserError) as error:
        pack(source, source.members(), tmp_path / "out", options)
    assert error.value.where == f"--max-rejects {share}"
    found = f"{bad} of {20 + bad} images are rejected already: {bad} damaged JPEG"
    assert error.value.found == found
    reason = "damaged JPEG (Premature end of JPEG file)"
    assert error.value.listed == tuple(f"x{number:03d}.jpg: {reason}" for number in range(bad))
    assert "the same command goes on" in error.value.remedy
    with pytest.raises(UserError, match="an unfinished set"):
        ShardSet.open(tmp_path / "out")
    allowed = pack(source, source.members(), tmp_path / "out", Packing(per_shard=4, max_rejects=1))
    assert allowed.manifest.rejected == bad  # another share does not make it another set


def test_a_shard_that_is_stopped_leaves_its_rejects_to_be_told(tmp_path):
    source = with_bad(tmp_path / "in", bad=3)
    (tmp_path / PROGRESS).mkdir()
    work = Work(source, tmp_path, Packing(), 5)
    writing = write_shard(work, (0, list(enumerate(source.members()))))
    next(writing)
    writing.close()
    assert names_in(tmp_path / PROGRESS) == ["shard-000000.rejects.csv"]
    assert len(rows_of(tmp_path / PROGRESS / "shard-000000.rejects.csv")) == 3


@pytest.mark.usefixtures("in_process")
def test_strict_names_the_first_reject(tmp_path):
    broken = {"05.jpg": PICTURES["05.jpg"][:-20]}
    source = open_source(write_pictures(tmp_path / "in", PICTURES | broken))
    out, options = tmp_path / "out", Packing(per_shard=2, strict=True)
    with pytest.raises(UserError) as error:
        pack(source, source.members(), out, options)
    assert error.value.where == f"{tmp_path / 'in'}: 05.jpg"
    assert error.value.found == "damaged JPEG (Premature end of JPEG file)"
    assert not [name for name in names_in(out) if name.endswith(".partial")]
    with pytest.raises(UserError, match="an unfinished set"):
        ShardSet.open(out)


@pytest.mark.usefixtures("in_process")
def test_where_every_image_is_rejected_there_is_no_set(tmp_path):
    source = open_source(write_pictures(tmp_path / "in", {"a.jpg": b"", "b.jpg": JPEG[:-2]}))
    with pytest.raises(UserError) as error:
        pack(source, source.members(), tmp_path / "out", Packing(max_rejects=1))
    assert error.value.found == "every image was rejected: 1 damaged JPEG, 1 not an image"
    assert MANIFEST not in names_in(tmp_path / "out")


@pytest.mark.usefixtures("in_process")
def test_members_that_the_source_cannot_give_back_are_rejects(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in PICTURES.items():
            (tmp_path / name).write_bytes(data)
            archive.add(tmp_path / name, name)
    source = open_source(path)
    (*rest, last) = source.members()
    huge = last._replace(size=1 << 30)
    packed = pack(source, [*rest, huge], tmp_path / "out", Packing(max_rejects=0.1))
    assert packed.rejected == {"unreadable": 1}
    (row,) = rows_of(tmp_path / "out" / REJECTS)[1:]
    assert row == [
        last.name,
        "unreadable (a file of 1,073,741,824 bytes, over 268,435,456)",
        str(1 << 30),
    ]
