"""Checkpoints: complete or ignored, and which of them stay."""

import contextlib
import json
import shutil

import pytest
import torch

from dcgan.training.checkpoint import Checkpoints
from pipeline.errors import UserError
from tests.running import assert_four_parts, contents


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path, keep=2, log=said.append)


def state(number):
    return {"number": number, "tensor": torch.full((3,), float(number))}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def newest(checkpoints):
    path, found = checkpoints.newest()
    assert path.suffix == ".pt"
    return found


def test_the_newest_comes_back(checkpoints, tmp_path):
    assert checkpoints.newest() is None
    for nimg in (9, 10, 123_456_789_012):
        checkpoints.save(nimg, state(nimg))
        loaded = newest(checkpoints)
        assert loaded["number"] == nimg
        assert loaded["tensor"].equal(state(nimg)["tensor"])


def test_cut_off_at_any_byte_it_is_passed_over(checkpoints, tmp_path, said):
    checkpoints.save(1, state(1))
    path = checkpoints.save(2, state(2))
    whole = path.read_bytes()
    assert len(whole) > 500
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        assert newest(checkpoints)["number"] == 1, length
    assert len(said) == -(-len(whole) // 3)
    assert set(said) == {f"{path} does not agree with its .json: ignored"}
    path.write_bytes(whole)
    assert newest(checkpoints)["number"] == 2


def test_a_bit_that_changed_is_noticed(checkpoints):
    checkpoints.save(1, state(1))
    path = checkpoints.save(2, state(2))
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert newest(checkpoints)["number"] == 1, place


def test_without_all_of_its_json_it_does_not_exist(checkpoints, said):
    checkpoints.save(1, state(1))
    seal = checkpoints.save(2, state(2)).with_suffix(".json")
    text = seal.read_bytes()
    for broken in (*(text[:length] for length in range(len(text))), b"[]", b"[" * 99_999, b"{}"):
        seal.write_bytes(broken)
        assert newest(checkpoints)["number"] == 1, broken[:80]
    seal.unlink()
    assert newest(checkpoints)["number"] == 1
    seal.write_bytes(text)
    assert newest(checkpoints)["number"] == 2


def test_nothing_whole_at_all_is_an_error(checkpoints, tmp_path):
    path = checkpoints.save(1, state(1))
    seal, data = path.with_suffix(".json"), path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError) as refusal:
        checkpoints.newest()
    assert_four_parts(refusal.value, str(tmp_path), "1 checkpoints, none of them whole")
    path.write_bytes(data)
    seal.unlink()  # killed before the json of the first: there is none
    assert checkpoints.newest() is None


def test_the_last_ones_stay_and_what_killed_processes_left_goes(checkpoints, tmp_path):
    (tmp_path / "000000001.pt.partial").write_bytes(b"half")
    (tmp_path / "000000009.pt").write_bytes(b"whole or not, without its json")
    for nimg in range(2, 6):
        path = checkpoints.save(nimg, state(nimg))
    kept = [f"00000000{n}.{end}" for n in (4, 5) for end in ("json", "pt")]
    assert names(tmp_path) == kept
    assert newest(checkpoints)["number"] == 5
    checkpoints.record_distance(5, 12.5)
    seal = json.loads(path.with_suffix(".json").read_text())
    assert seal["bytes"] == path.stat().st_size
    assert (seal["nimg"], seal["swd"], len(seal["sha256"])) == (5, 12.5, 64)
    copied = Checkpoints(shutil.copytree(tmp_path, tmp_path.with_name("copy")), 2, print)
    assert newest(copied)["number"] == 5


def test_no_code_from_a_checkpoint_runs(checkpoints, tmp_path):
    checkpoints.save(1, state(1))

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    checkpoints.save(2, {"evil": Evil()})  # whole, with its digest
    assert newest(checkpoints)["number"] == 1
    assert not (tmp_path / "pwned").exists()


def test_the_best_one_stays_too(checkpoints, tmp_path):
    for nimg, swd in ((1, 40.0), (2, 20.0), (3, None), (4, 30.0), (5, None), (6, None)):
        checkpoints.save(nimg, state(nimg))
        if swd is not None:
            checkpoints.record_distance(nimg, swd)
    assert [path.stem for path in sorted(tmp_path.glob("*.pt"))] == [
        "000000002",
        "000000005",
        "000000006",
    ]
    assert checkpoints.best() == 20.0
    checkpoints.save(7, state(7))
    checkpoints.record_distance(7, 10.0)
    assert [int(path.stem) for path in sorted(tmp_path.glob("*.pt"))] == [6, 7]
    assert checkpoints.best() == 10.0


def test_later_ones_can_be_forgotten_but_not_all(checkpoints, tmp_path):
    for nimg in (10, 20):
        checkpoints.save(nimg, state(nimg))
    checkpoints.forget_after(15)
    assert newest(checkpoints)["number"] == 10
    checkpoints.forget_after(5)
    assert newest(checkpoints)["number"] == 10


@pytest.mark.parametrize("failing", ["torch.save", "dcgan.training.checkpoint.write_whole"])
def test_a_full_disk_is_told_and_costs_nothing_that_was_there(
    checkpoints, tmp_path, monkeypatch, failing
):
    checkpoints.save(1, state(1))
    before = contents(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(UserError) as told:
            checkpoints.save(2, state(2))
    assert_four_parts(told.value, "000000002.pt", "No space left on device")
    assert newest(checkpoints)["number"] == 1
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("change", ["os.replace", "dcgan.training.checkpoint.write_whole"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_one_that_is_saved_again_under_its_name_is_there_at_every_moment(
    checkpoints, tmp_path, monkeypatch, change, last
):
    """A finished run whose options change has no other."""
    checkpoints.save(5, state(1))
    checkpoints.record_distance(5, 7.5)
    module, _, name = change.rpartition(".")
    owner = __import__(module, fromlist=[name])
    real, calls = getattr(owner, name), []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) >= last:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        checkpoints.save(5, state(2))
    assert newest(checkpoints)["number"] in (1, 2)
    assert checkpoints.best() == 7.5
    checkpoints.save(5, state(3))
    assert newest(checkpoints)["number"] == 3


def test_of_one_that_is_kept_a_cut_one_does_not_take_the_place(tmp_path, said):
    checkpoints = Checkpoints(tmp_path, keep=1, log=said.append)
    checkpoints.save(1, state(1))
    older = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    newer = checkpoints.save(2, state(2))
    newer.write_bytes(newer.read_bytes()[:-40])
    for name, data in older.items():  # as where the cut came before the older one was removed
        (tmp_path / name).write_bytes(data)
    assert newest(checkpoints)["number"] == 1
    checkpoints.save(0, state(0))  # which prunes
    assert newest(checkpoints)["number"] == 1
