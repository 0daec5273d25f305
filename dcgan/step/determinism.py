"""The same bits from the same run: what `--deterministic` asks of torch and its libraries.

Source: docs.pytorch.org/docs/stable/notes/randomness.html.
"""

from __future__ import annotations

import os

import torch

MAX_THREADS = 1024
"""Many more, and the system refuses them, which ends the process."""

WORKSPACE = ":4096:8"
"""cuBLAS adds in an order of its own unless its workspace is of this form, or the smaller and
slower `:16:8` (docs.nvidia.com/cuda/cublas, "Results reproducibility")."""


def set_determinism(threads: int) -> None:
    """Have this process compute in one order only; before its first work on a GPU.

    On a CPU sums are divided among threads, and rounded accordingly: a run that goes on takes as
    many as it began with, whatever the machine has by now.

    Args:
        threads: that the run began with; 0 for as many as torch would take.
    """
    # Read when a GPU multiplies its first matrices; what somebody has set is known to be right
    # or refused by torch
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.use_deterministic_algorithms(True)
    # Trials by time may choose another kernel in the next process
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # No kernel here reads what none has written: filling it with NaN first would cost and show
    # nothing
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Also as many as it has anyway: being told turns off MKL's own choice of fewer
    torch.set_num_threads(threads or torch.get_num_threads())
