"""`make gpu-report`: whatever a part does, the others are carried out, and a report is left."""

import json
import time
from dataclasses import replace

import psutil
import pytest
import torch

from dcgan.profiling.step import build_ours, make_pixels
from tests.gpu_report import parts
from tests.gpu_report.__main__ import DATA, PAGE, make_parts, report, unpack
from tests.gpu_report.kernels import by_kind, kind_of, record, table
from tests.gpu_report.parts import INTERRUPTED, NOT_REACHED, Part, carry_out
from tests.running import ROOT, tiny

SLOW = "import time\nprint('begun')\ntime.sleep(60)"


def part(name, code, seconds=30.0, **more):
    """A part that runs so much Python."""
    return Part(name, ("-c", code), seconds, **({"json": False} | more))


@pytest.fixture
def told(tmp_path):
    """Make a report of these parts; each one's entry in the JSON, by name, and the page."""

    def make(*all_parts, minutes=6.0):
        report(all_parts, tmp_path, tmp_path, minutes)
        data = json.loads((tmp_path / DATA).read_text())
        return {each["name"]: each for each in data["parts"]}, (tmp_path / PAGE).read_text()

    return make


def test_what_fails_or_cannot_run_does_not_stop_the_next(told):
    found, page = told(
        part("broken", "print('before')\n1 / 0"),
        part("later", "import sys\nprint('│ No such option: --tune │')\nsys.exit(2)"),
        part("absent", "", obstacle="no GPU"),
        part("measured", "import sys; open(sys.argv[2], 'w').write('{\"ms\": 2.5}')", json=True),
    )
    assert {name: each["outcome"] for name, each in found.items()} == {
        "broken": "failed with status 1",
        "later": "could not run: No such option: --tune",
        "absent": "could not run: no GPU",
        "measured": "ok",
    }
    assert "ZeroDivisionError" in found["broken"]["printed"]
    assert "ZeroDivisionError" in page
    assert found["measured"]["found"] == {"ms": 2.5}
    assert found["broken"]["found"] is None
    assert "| absent | could not run: no GPU |" in page


LEADER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.{handling})
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
print("begun", child.pid)
time.sleep(60)
"""


@pytest.mark.parametrize("handling", ["default_int_handler", "SIG_IGN"])
def test_a_part_that_overruns_is_killed_with_its_children_and_told(handling, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GRACE", 0.2)
    result = carry_out(part("slow", LEADER.format(handling=handling)), 1.0, tmp_path)
    assert result.outcome == "cut off after 1 s"
    assert result.failed
    assert result.seconds < 10
    assert (result.status == -9) == (handling == "SIG_IGN")
    begun, child = result.printed.split()[:2]
    assert begun == "begun"
    end = time.monotonic() + 10
    while psutil.pid_exists(int(child)) and psutil.Process(int(child)).status() != "zombie":
        assert time.monotonic() < end, "a child was left running"
        time.sleep(0.02)


def test_an_interrupted_report_keeps_what_it_had(told):
    interrupt = f"import os, signal\nos.kill(os.getppid(), signal.SIGINT)\n{SLOW}"
    found, page = told(part("done", "print('told')"), part("half", interrupt), part("never", ""))
    outcomes = [each["outcome"] for each in found.values()]
    assert outcomes == ["ok", INTERRUPTED, NOT_REACHED]
    assert "told" in found["done"]["printed"]
    assert "## done: ok" in page
    assert f"| never | {NOT_REACHED} |" in page


def test_the_report_is_written_after_each_part(told, tmp_path, monkeypatch):
    def carry_out_or_die(each, limit, work):
        assert each.name == "done", "killed"
        return carry_out(each, limit, work)

    monkeypatch.setattr("tests.gpu_report.__main__.carry_out", carry_out_or_die)
    with pytest.raises(AssertionError, match="killed"):
        told(part("done", "print('told')"), part("half", ""))
    left = json.loads((tmp_path / DATA).read_text())["parts"]
    assert [each["outcome"] for each in left] == ["ok", NOT_REACHED]
    assert "## done: ok" in (tmp_path / PAGE).read_text()


def test_the_whole_has_a_limit(told, monkeypatch):
    monkeypatch.setattr("tests.gpu_report.__main__.LEAST_SECONDS", 0.5)
    found, _ = told(part("slow", SLOW), part("never", ""), minutes=(parts.GRACE + 0.9) / 60)
    assert [each["outcome"] for each in found.values()] == ["cut off after 1 s", NOT_REACHED]


def test_the_steps_of_two_versions_stand_side_by_side(told):
    def measured(name, **steps):
        turns = {step: [{"step_ms": ms} for ms in taken] for step, taken in steps.items()}
        found = json.dumps({"turns": turns})
        return part(name, f"import sys; open(sys.argv[2], 'w').write({found!r})", json=True)

    old = measured("the step of v1", graph=[3, 9, 2], eager=[5])
    new = measured("the step", graph=[2, 1, 7], other=[1])
    _, page = told(old, new)
    assert [line for line in page.splitlines() if line.startswith("| graph")] == [
        "| graph | 3.000 | 2.000 | 1.50 |"
    ]
    assert "| eager |" not in page
    for one in (old, new):
        assert "last release" not in told(one)[1]


def test_no_folder_and_no_machine_is_named(told, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/quentin")
    monkeypatch.setattr("platform.node", lambda: "barbarella")
    names = f"/home/quentin /home/quentin/net.pt events.1.barbarella.7 {tmp_path}/x {ROOT}/dcgan/y"
    code = f"import sys; print({names!r}); open(sys.argv[2], 'w').write({json.dumps([names])!r})"
    found, page = told(part("talks", code, json=True))
    assert found["talks"]["found"] == ["~ …/net.pt events.1.….7 …/x dcgan/y"]
    for word in ("quentin", "barbarella", str(tmp_path), str(ROOT)):
        assert word not in page + json.dumps(found)


def test_a_commit_is_unpacked_or_its_absence_told(tmp_path, monkeypatch):
    assert "no commit f00" in unpack("f00", tmp_path)
    if not unpack("HEAD", tmp_path / "code"):
        assert (tmp_path / "code/dcgan/profile.py").is_file()
    monkeypatch.setenv("PATH", "")
    assert "no git" in unpack("HEAD", tmp_path)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_steps_kernels_are_listed(device, tmp_path):
    config = tiny(tmp_path).replace(batch_size=4, precision="fp32")
    place = torch.device(device)
    begin, step = build_ours(config, "eager", make_pixels(config, place), place)
    begin()
    kernels = record(step, place)
    assert len(kernels) > 50
    assert all(spent >= 0 for _, spent in kernels)
    assert sum(count for count, _ in by_kind(kernels).values()) == len(kernels)
    lines = list(table(kernels))
    assert lines[0].startswith(f"{len(kernels)} kernels, ")
    longest, _ = max(kernels, key=lambda kernel: kernel[1])
    assert longest[:110] in lines[lines.index("The longest:") + 1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_poi_fused__to_copy_3", "cast"),
        ("triton_red_fused__native_batch_norm_legit_7", "reduction"),
        ("triton_poi_fused_leaky_relu_1", "pointwise"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16", "convolution, gradient of the input"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "product"),
        ("void at::native::multi_tensor_apply_kernel<>", "many tensors at once"),
        ("void at::native::elementwise_kernel<>", "other of ATen"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name) == kind


@pytest.mark.slow
def test_the_whole_is_rehearsed_on_a_cpu(told, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    all_parts = [replace(each, seconds=300) for each in make_parts(tmp_path, "no GPU")]
    found, page = told(*all_parts, minutes=60)
    outcomes = {name: each["outcome"] for name, each in found.items()}
    assert {name for name in outcomes if outcomes[name] == "could not run: no GPU"} == {
        "tests that need a GPU",
        "kernels of a replay",
    }
    done = [name for name in outcomes if outcomes[name] == "ok"]
    assert done[:3] == ["drawing", "packing", "dcgan-doctor --verify"]
    assert done[-3:] == ["the step", "loaders", "killed and resumed"]
    assert all(each["outcome"].startswith(("ok", "could not run")) for each in found.values()), page
    assert found["the step"]["found"]["turns"]
    assert found["killed and resumed"]["found"]["differences"] == {}
    assert str(tmp_path) not in page
