"""`python -m tests.count_kernels` still runs, and one graph needs fewer kernels than the parts."""

import re
import sys

import pytest
import torch

from tests.pretended_gpu import TORCH
from tests.running import ROOT, run_command


@pytest.mark.slow
def test_one_graph_needs_fewer_kernels_and_moves_less():
    if not torch.__version__.startswith(TORCH):
        pytest.skip(f"Inductor is looked into as of torch {TORCH}; this is {torch.__version__}")
    best = "one graph, combo_kernels"
    done = run_command(sys.executable, "-m", "tests.count_kernels", "parts", best, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    sums = re.findall(r"all +(\d+); BatchNorm and activations ([\d.]+) GB", done.stdout)
    (kernels, gigabytes), (fewer, less) = ((int(count), float(moved)) for count, moved in sums)
    assert 200 < kernels < 300
    assert 100 < fewer <= 160
    assert 0.8 < less <= 0.9 < gigabytes
