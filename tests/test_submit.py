"""Files for queues: their shell runs, and starts what torchrun and dcgan-train take."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.markdown import parse
from tests.running import ROOT

SUBMIT = ROOT / "docs/submit"

STANDING_IN = {
    "torchrun": 'printf "%s\\n" "$@"',
    "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
    "srun": 'shift; exec "$@"',
}
"""For each program of a cluster, what a shell does in its place."""

SLURM = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "4",
}
SKYPILOT = {
    "SKYPILOT_NODE_IPS": "node1\nnode2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "4",
}


def started(script: str, folder: Path, variables: dict[str, str]) -> list[str]:
    """The words that the second of two nodes gives to torchrun."""
    for name, does in STANDING_IN.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def read(name: str) -> Any:
    return yaml.safe_load((SUBMIT / name).read_text())


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        ((SUBMIT / "train.sbatch").read_text(), SLURM),
        (read("skypilot.yaml")["run"], SKYPILOT),
    ],
    ids=["slurm", "skypilot"],
)
def test_a_shell_starts_the_ranks_of_its_node(tmp_path, script, variables):
    found = get_args_parser().parse_args(started(script, tmp_path, variables))
    assert (found.nnodes, found.node_rank, found.nproc_per_node) == ("2", 1, "4")
    assert (found.master_addr, found.master_port) == ("node1", 29400)
    # Others keep torchrun waiting for a quarter of an hour when a host is gone
    assert found.rdzv_backend == "static"
    assert (found.training_script, found.module) == ("dcgan.train", True)
    parse("dcgan-train", found.training_script_args)


def test_a_trainjob_starts_the_ranks_of_its_node(monkeypatch):
    spec = read("trainjob.yaml")["spec"]
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)  # as the runtime does
    found = get_args_parser().parse_args(spec["trainer"]["args"])
    assert (found.nnodes, found.node_rank, found.rdzv_backend) == ("2", 1, "static")
    parse("dcgan-train", found.training_script_args)
    (override,) = spec["podTemplateOverrides"]
    mounted = {each["name"] for each in override["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in override["spec"]["volumes"]}
