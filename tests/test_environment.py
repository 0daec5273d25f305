"""The device that is taken, and what env.json tells of the machine."""

import json
import platform
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from dcgan.rundir import environment
from dcgan.rundir.environment import describe_environment, pick_device
from pipeline.errors import UserError
from tests.running import ROOT, assert_four_parts


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, False, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_device_that_is_taken(monkeypatch, gpus, mps, name, device):
    machine(monkeypatch, gpus, mps)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "name", "said"),
    [
        (0, "cuda", ["no such device here", "auto, cpu", "nvidia-smi"]),
        (2, "cuda:2", ["no such device here", "auto, cuda, cuda:0, cuda:1, cpu"]),
        (0, "CPU", ["an unknown device", "auto, cpu"]),
        (0, "", ["an unknown device", "auto, cpu"]),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, gpus, name, said):
    machine(monkeypatch, gpus)
    with pytest.raises(UserError) as refusal:
        pick_device(name)
    assert_four_parts(refusal.value, f"--device {name}", *said)


def test_the_environment_is_plain_json_and_true(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dcgan-train", "--shards", "x"])
    told = json.loads(json.dumps(describe_environment(torch.device("cpu"))))
    assert told["command"] == ["dcgan-train", "--shards", "x"]
    assert told["python"] == platform.python_version()
    assert (told["device"], told["cuda"]) == ("cpu", None)
    assert told["device_name"]
    assert told["cpus"] >= 1
    for package in ("torch", "torchvision", "webdataset", "numpy", "pillow"):
        assert told["packages"][package] == metadata.version(package)
    assert None not in told["packages"].values()


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not run from a git checkout")
def test_the_commit_is_that_of_this_checkout():
    told = describe_environment(torch.device("cpu"))
    assert told["git_commit"] == git(ROOT, "rev-parse", "HEAD")


def test_no_commit_is_claimed_from_a_repository_around_the_installation(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    installed = tmp_path / "venv" / "site-packages" / "dcgan"
    installed.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(installed / "environment.py"))
    assert describe_environment(torch.device("cpu"))["git_commit"] is None


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_environment(torch.device("cpu"))["git_commit"] is None
