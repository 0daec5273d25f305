"""The settings of torch and its libraries under `--deterministic`, for equal bits in each run.

Source: docs.pytorch.org/docs/stable/notes/randomness.html.
"""

from __future__ import annotations

import os

import torch

MAX_THREADS = 1024
"""Threads at most. The system refuses to start many more, which would end the process."""

WORKSPACE = ":4096:8"
"""With this form of workspace, cuBLAS always adds in the same order. `:16:8` is smaller, and slower
(docs.nvidia.com/cuda/cublas, "Results reproducibility")."""


def set_determinism(threads: int) -> None:
    """Make this process compute in a fixed order. Call this before its first work on a GPU.

    On a CPU, sums are divided among threads and rounded accordingly. Therefore a resumed run uses
    as many threads as it began with, whatever machine it is on; 0 stands for torch's default.
    """
    # cuBLAS reads this when it multiplies its first matrices; torch refuses a value set by the
    # user that is not suitable
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.use_deterministic_algorithms(True)
    # Timing trials may choose another kernel in the next process
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # No kernel here reads uninitialised memory, so filling it with NaN would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Also if the number is unchanged: the call keeps MKL from choosing fewer threads
    torch.set_num_threads(threads or torch.get_num_threads())
