"""Packing on Ray: a simulated cluster that loses a node, and what is told when there is none."""

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.packing_runs import finished_shards, four_parts, run_here, tree, waited
from tests.pictures import encode, smooth, write_pictures
from tools.make_shards import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures that take a core some 20 ms each."""
    data, folder = encode(smooth(1500, 1200, 1)), tmp_path_factory.mktemp("pictures")
    return write_pictures(folder / "pictures", {f"{n:03d}.jpg": data for n in range(240)})


@pytest.fixture
def _own_ray(monkeypatch):
    """Ray listens on loopback alone, and leaves nothing at home or in /tmp."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: it holds sockets
        for name, value in {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": folder,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_own_ray")
@pytest.mark.filterwarnings("ignore:::ray")
def test_a_cluster_that_loses_a_node_makes_the_set_of_one_machine(pictures, tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    words = (pictures, "--store", "raw", "--per-shard", 10, "--out")
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        nodes = [cluster.add_node(**node) for _ in range(2)]
        out, killed = tmp_path / "set", []

        def kill_one():
            if waited(lambda: finished_shards(out) >= 4, 60):
                killed.append(finished_shards(out))
                cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill_one)
        killer.start()
        status, printed, err = run_here(main, *words, out, "--ray", cluster.address)
        killer.join()
    finally:
        cluster.shutdown()
    assert (status, err) == (0, ""), printed
    assert 4 <= killed[0] < 20, "it was killed while there was a lot to do"
    assert run_here(main, *words, tmp_path / "whole")[0] == 0
    assert tree(out) == tree(tmp_path / "whole")


def test_what_contradicts_itself_or_is_not_there_is_told(pictures, monkeypatch):
    def refused(*words):
        status, _, err = run_here(main, pictures, *words)
        assert status == 1
        return four_parts(err)

    assert refused("--ray", "local", "--part", "0/2")[:2] == ["--part", "--ray"]
    assert refused("--finish", "--overwrite")[:2] == ["--finish", "--overwrite"]
    assert refused("--ray", "10.0.0.1:6379", "--workers", 2)[:2] == ["--ray", "--workers"]
    monkeypatch.setitem(sys.modules, "ray", None)
    where, found, _, do = refused("--ray", "local", "--out", pictures.parent / "set")
    assert (where, found) == ("--ray local", "no package ray")
    assert "dcgan-shards[ray]" in do
