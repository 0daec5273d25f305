"""Ranks that meet: what they agree on, what becomes of a failure, and gradients that they share."""

import os
import shutil
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcgan.distributed import ALONE, GradientReduction, LostRankError, Ranks
from dcgan.rundir.environment import own_device
from dcgan.rundir.folder import RunFolder
from dcgan.rundir.log import Log
from dcgan.step.adversarial import AdversarialStep
from dcgan.training import session
from dcgan.training.build import build
from dcgan.training.monitor import Alarm, Monitor
from dcgan.training.signals import StopRequest
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from tests.fault_store import FaultStore
from tests.ranks import end, in_ranks, leave, start
from tests.reference.shared_step import shared_step
from tests.running import assert_four_parts, read_stats, tiny
from tests.steps import batch, nets

STEPS, COUNT = 10, 2


def _error(ranks: Ranks, does: Any) -> str:
    """The words of an error that all ranks are to have."""
    with pytest.raises(Exception) as caught, ranks.together():  # noqa: PT011
        does()
    return f"{type(caught.value).__name__}: {caught.value}"


def _fail_on(rank: int, ranks: Ranks, error: Exception) -> None:
    if ranks.rank == rank:
        raise error


def _unpicklable() -> Exception:
    error = ValueError("with a lock in it")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


def meetings(ranks: Ranks) -> dict[str, Any]:
    """Everything that ranks can agree on; in a process of each."""
    mine = ranks.rank
    found: dict[str, Any] = {
        "any": ranks.any(mine == 0, mine == 1, False),
        "all": (ranks.all(True), ranks.all(mine == 0)),
        "same": ranks.same({"from": mine}),
        "gathered": ranks.gather(torch.full((3,), mine, dtype=torch.uint8)),
        "mean": ranks.mean(np.full((2, 5), mine, np.float32)),
        "first": ranks.first(lambda: "done by the first"),
        "first here": ranks.first_here(time.monotonic),
        "here": ranks.local_ranks,
    }
    with ranks.together():
        found["quiet"] = True
    refusal = UserError("--shards x", "nothing", "something", "look")
    found["second fails"] = _error(ranks, lambda: _fail_on(1, ranks, refusal))
    found["first fails"] = _error(ranks, lambda: _fail_on(0, ranks, refusal))
    found["any error"] = _error(ranks, lambda: _fail_on(1, ranks, _unpicklable()))
    found["still there"] = (ranks.complete, ranks.any(True))
    ranks.require_same("weights", lambda: "equal", "nothing")
    with pytest.raises(UserError) as caught:
        ranks.require_same("weights", lambda: f"of {mine}", "do this")
    found["differing"] = str(caught.value)
    found["tells"] = (ranks.reports(caught.value), ranks.reports(refusal))
    ranks.complete = True  # for what else is to be tried
    return found


def _gradients(ranks: Ranks) -> tuple[torch.Tensor, ...]:
    net = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Conv2d(4, 2, 1, bias=False))
    net.to(torch.float64).to(memory_format=torch.channels_last)
    share = GradientReduction(ranks, net)
    for parameter in net.parameters():
        ramp = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
        parameter.grad = torch.empty_like(parameter).copy_(ramp * (1 + 2 * ranks.rank))
    share(net)
    return tuple(p.grad for p in net.parameters() if p.grad is not None)


def ten_steps(ranks: Ranks) -> dict[str, torch.Tensor]:
    """This rank's part of ten steps in float64."""
    ranks.connect(torch.device("cpu"))
    gradients = _gradients(ranks)
    update = AdversarialStep(*nets(torch.float64))
    update.reduce_gradients = GradientReduction(ranks, update.generator, update.discriminator)
    statistics = [update(*batch(COUNT * k + ranks.rank, torch.float64)) for k in range(STEPS)]
    return {
        "statistics": torch.stack(statistics),
        **{f"G.{name}": each.detach() for name, each in update.generator.named_parameters()},
        **{f"D.{name}": each.detach() for name, each in update.discriminator.named_parameters()},
        **{f"gradient {place}": each for place, each in enumerate(gradients)},
    }


def flipped_and_rolled_back(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Trainers of two ranks: one's weights change by themselves; a run goes back after an alarm."""
    found: dict[str, Any] = {}
    config = tiny(folder / "flipped", max_steps=6, checkpoint_every=0, ema_nimg=0)
    trainer = Trainer(build(config, Log(True), ranks), Log(True))
    run = trainer.step.run

    def flip() -> torch.Tensor:
        statistics = run()
        if (ranks.rank, trainer.steps_done) == (1, 2):
            next(trainer.run.generator.parameters()).data[0, 0, 0, 0] += 1e-6
        return statistics

    trainer.step.run = flip  # type: ignore[method-assign]
    with pytest.raises(UserError) as differs:
        trainer.run_until(StopRequest())
    found["differs"], found["tells"] = str(differs.value), ranks.reports(differs.value)

    ranks.complete = True
    judge, alarms = Monitor.look_at_steps, [Alarm("saturation", 8, 7, "D is sure")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Monitor,
            "look_at_steps",
            lambda health, step, rows: (
                [alarms.pop()] if alarms and step == 5 else judge(health, step, rows)
            ),
        )
        options = {"max_steps": 9, "log_every": 4, "checkpoint_every": 0, "keep": 9, "ema_nimg": 0}
        config = tiny(folder / "back", **options, on_trouble="rollback")
        found["status"] = session._train(config, AdversarialStep, ranks, time.monotonic())
    return found


def from_a_store(ranks: Ranks, folder: Path) -> tuple[torch.Tensor, list[str]]:
    """An epoch's batches of a set in a store, as its ranks get them, and what was asked of it."""
    with FaultStore(folder) as store:
        url = ranks.same(f"{store.url}/set")
        cache = {"shards": url, "shard_cache": folder / "cache"}
        config = tiny(folder / "remote", **cache, cache="host")
        trainer = build(config, Log(True), ranks, session._opened(config, ranks))
        batches = trainer.batches
        taken = torch.stack([next(batches).clone() for _ in range(batches.steps_per_epoch)])
        ranks.any(True)  # the other one may still read
        batches.close()
        return taken, [each.name for each in store.requests]


def everything(ranks: Ranks) -> tuple[Any, ...]:
    """Meetings, steps, runs, and a death: the second rank goes, and the first one notices."""
    folder = Path(sys.argv[-1])
    found: tuple[Any, ...] = meetings(ranks), ten_steps(ranks)
    found += flipped_and_rolled_back(ranks, folder), from_a_store(ranks, folder)
    if ranks.rank == 1:
        leave(folder, ranks, found)
        os._exit(9)
    return *found, _without_the_other(ranks)


def _without_the_other(ranks: Ranks) -> dict[str, Any]:
    began = time.monotonic()
    with pytest.raises(LostRankError) as caught:
        ranks.any(True)
    found = {"seconds": time.monotonic() - began, "error": caught.value}
    with pytest.raises(LostRankError):  # and so does each meeting after it
        ranks.gather(torch.zeros(1))
    with ranks.together():
        found["goes on alone"] = ranks.first(lambda: True)
    found["tells"] = ranks.reports(caught.value)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def told(folder, numbered_set):
    shutil.copytree(numbered_set(43, 6, "raw").folder, folder / "set")
    return in_ranks(everything, folder, COUNT, dying=1)


# Meetings


def test_flags_and_values_are_agreed_on(told):
    for rank, (found, *_) in enumerate(told):
        assert found["any"] == (True, True, False)
        assert found["all"] == (True, False)
        assert found["same"] == {"from": 0}
        assert found["gathered"].tolist() == [[0, 0, 0], [1, 1, 1]]
        assert (found["mean"] == 0.5).all()
        assert found["mean"].shape == (2, 5)
        assert found["first"] == ("done by the first" if rank == 0 else None)
        assert found["quiet"]
        assert found["here"] == (0, 1)
    assert told[0][0]["first here"] < told[1][0]["first here"]


def test_what_fails_on_one_rank_fails_on_all_with_the_same_words(told):
    plain = "UserError: --shards x{}\n  found   nothing\n  wanted  something\n  do      look"
    for rank, (found, *_) in enumerate(told):
        assert found["first fails"] == plain.format("")
        # Whose it is needs no name
        assert found["second fails"] == plain.format(" (rank 1)" if rank == 0 else "")
        assert found["still there"] == (True, (True,))
        assert found["tells"] == (rank == 0, True)  # what others do not know, each tells
    assert told[0][0]["any error"] == "RuntimeError: ValueError: with a lock in it"
    assert told[1][0]["any error"] == "ValueError: with a lock in it"


def test_a_rank_that_differs_is_named_on_all(told):
    for found, *_ in told:
        assert found["differing"].splitlines() == [
            "rank 1 of 2",
            "  found   other weights than on rank 0",
            "  wanted  the same weights on all ranks",
            "  do      do this",
        ]


def test_alone_every_meeting_is_over_at_once():
    assert ALONE.any(True, False) == (True, False)
    assert (ALONE.all(True), ALONE.all(False), ALONE.same("x")) == (True, False, "x")
    assert ALONE.gather(torch.tensor([1])).tolist() == [[1]]
    rows = np.ones((2, 5), np.float32)
    assert ALONE.mean(rows) is rows
    ALONE.require_same("weights", lambda: pytest.fail("compared with nobody"), "")
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError("as it is")
    ALONE.separate(KeyError("anything"))
    assert ALONE.complete


def test_a_dead_rank_is_noticed_at_once(told):
    found = told[0][4]
    assert found["seconds"] < 10
    assert_four_parts(found["error"], "rank 0 of 2", "another rank is gone", "last checkpoint")
    assert found["goes on alone"]
    assert found["tells"]


LEAVING = """
import os, torch
from dcgan.distributed import Ranks
with Ranks.joined() as ranks:
    import torch.distributed.nn.functional  # the compiler does
    ranks.connect(torch.device("cpu"))
    ranks.sum_(torch.ones(3))
threads = os.listdir("/proc/self/task")
print(sorted(open(f"/proc/self/task/{thread}/comm").read().strip() for thread in threads))
"""


def test_who_leaves_has_no_thread_of_gloo_left_which_could_abort_the_process_at_its_end():
    for status, said, complained in end(start(2, "-c", LEAVING)):
        assert status == 0, complained
        assert "python" in said
        assert "gloo" not in said


def test_who_started_them_otherwise_is_told(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError) as caught, Ranks.joined():
        pass
    assert_four_parts(caught.value, "rank 0", "MASTER_ADDR", "torchrun", "WORLD_SIZE=2")


@pytest.mark.parametrize("present", [(), ("RANK", "WORLD_SIZE")])
def test_one_process_joins_nobody(monkeypatch, present):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in present:  # a queue sets some of them, too
        monkeypatch.setenv(name, "2")
    with Ranks.joined() as ranks:
        assert (ranks.rank, ranks.count, ranks.is_first) == (0, 1, True)


# A set in a store


def test_the_ranks_of_a_machine_fetch_each_object_once(told, numbered_set):
    shards = numbered_set(43, 6, "raw")
    for rank, (*_, (taken, _), _) in enumerate([(*told[0],), (*told[1], None)]):
        options = LoaderOptions(4, 32, seed=999, dtype=torch.uint8, rank=rank, num_ranks=2)
        with closing(Loader(shards, options)) as loader:
            assert torch.equal(taken, torch.stack([next(loader).clone() for _ in taken]))
    requests = told[0][3][1]
    wanted = {path.name for path in shards.folder.iterdir()} - {"samples.csv"}
    assert sorted(requests) == sorted(f"set/{name}" for name in wanted)
    assert told[1][3][1] == []


@pytest.mark.parametrize(
    ("here", "ranks", "first"), [(2, (4, 5), False), (1, (5,), True), (None, (5,), True)]
)
def test_one_rank_of_a_machine_fetches_for_all(here, ranks, first):
    local = 1 if here in (2, None) else 0
    found = Ranks(5, 6, local, here)
    assert (found.local_ranks, found.is_first_here) == (ranks, first)


# Shares


def test_a_batch_is_shared_evenly_or_refused():
    assert [Ranks(rank, 4).share_of(128) for rank in range(4)] == [32] * 4
    with pytest.raises(UserError) as caught:
        Ranks(0, 3).share_of(128)
    assert_four_parts(caught.value, "--batch-size 128", "3 processes", "--batch-size 129")


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_cannot_be_shared_is_refused(device):
    with pytest.raises(UserError) as caught:
        own_device(torch.device(device), Ranks(0, 2))
    assert_four_parts(caught.value, f"--device {device}", "2 processes", "a GPU of its own")
    assert own_device(torch.device(device), ALONE) == torch.device(device)


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    cuda = torch.device("cuda")
    assert own_device(cuda, Ranks(5, 6, local=1)) == torch.device("cuda", 1)
    assert chosen == [1]
    with pytest.raises(UserError) as caught:
        own_device(cuda, Ranks(2, 3, local=2))
    assert_four_parts(caught.value, "3 processes", "2 GPUs", "--nproc-per-node 2")


# Gradients


def test_gradients_are_averaged_in_their_places(told):
    for _, found, *_ in told:
        for place, shape in enumerate([(4, 3, 4, 4), (4,), (2, 4, 1, 1)]):
            gradient = found[f"gradient {place}"]
            ramp = torch.arange(gradient.numel(), dtype=torch.float64).view(shape)
            assert torch.equal(gradient, ramp * 2)  # of once and three times


def test_two_ranks_do_what_one_process_does_with_both_halves(told):
    generator, discriminator = nets(torch.float64)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for net in (discriminator, generator)
    ]
    losses = [
        shared_step(
            generator,
            discriminator,
            optimizers[0],
            optimizers[1],
            [batch(COUNT * k + rank, torch.float64) for rank in range(COUNT)],
        )
        for k in range(STEPS)
    ]
    wanted = {f"G.{name}": each for name, each in generator.named_parameters()}
    wanted |= {f"D.{name}": each for name, each in discriminator.named_parameters()}
    begun = nets(torch.float64)
    moved = max(
        (a - b).abs().max()
        for a, b in zip(generator.parameters(), begun[0].parameters(), strict=True)
    )
    assert moved > 1e-3
    for _, found, *_ in told:
        for name, each in wanted.items():
            torch.testing.assert_close(found[name], each.detach(), rtol=0, atol=1e-9)
            assert torch.equal(found[name], told[0][1][name])
    mean = torch.stack([found["statistics"] for _, found, *_ in told]).mean(0)[:, :2]
    torch.testing.assert_close(mean, torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-9)


# Runs


def test_weights_that_differ_and_trouble_end_or_turn_back_all_ranks(told, folder):
    first, second = (found for _, _, found, *_ in told)
    assert first["differs"] == second["differs"]
    assert first["differs"].startswith("rank 1 of 2\n  found   other weights than on rank 0")
    assert (first["tells"], second["tells"]) == (True, False)
    kept = sorted(path.stem for path in (folder / "flipped/checkpoints").glob("*.pt"))
    assert kept == [f"{8 * step:09d}" for step in (1, 2)]  # and none of what differs
    assert (first["status"], second["status"]) == (0, 0)
    run = RunFolder(folder / "back")
    assert "Rolling back, 1 of 3 times" in run.log.read_text()
    assert "resumed  after 6 steps" in run.log.read_text()
    assert read_stats(run)[-1]["step"] == 9
