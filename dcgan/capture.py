"""A CUDA graph of the whole step. Nothing here has run where this was written: see the sources.

[notes] docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
[graph] docs.pytorch.org/docs/stable/generated/torch.cuda.graph.html
[cuda] docs.nvidia.com/cuda/cuda-runtime-api, cudaStreamBeginCapture and cudaStreamCaptureMode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

WARM_UPS = 3
"""Steps before the capture, as in [notes]: kernels are chosen and memory is taken in them."""


def capture(
    body: Callable[[], object],
    random: torch.Generator,
    unchanged: Callable[[], AbstractContextManager[None]],
) -> Callable[[], None]:
    """Record what a call of `body` does on the device, without doing it.

    Args:
        body: does the same to the same tensors each time, and asks the host for nothing.
        random: the one generator that it draws from.
        unchanged: undoes, in place, what is done inside it.

    Returns:
        What does it again, on the current stream, in one launch.
    """
    # On the stream of the capture: autograd ties each parameter's gradient to the stream that it
    # first saw it on, and refuses another one in a capture ([notes], "Whole-network capture").
    stream = torch.cuda.Stream(random.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(random.device))
    with torch.cuda.stream(stream), unchanged():
        for _ in range(WARM_UPS):
            body()
    # `unchanged` has dropped the gradients: the capture takes new ones from the graph's own memory,
    # where each replay writes them anew ([notes]: "sets grads to None before capture").
    torch.cuda.current_stream(random.device).wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    # Each replay then draws where the last one ended (CUDAGraph.register_generator_state); torch
    # does this by itself for the default generator only.
    graph.register_generator_state(random)
    # thread_local: DALI's threads may go on calling CUDA meanwhile; by default any call of theirs
    # that is unsafe during a capture ends it ([cuda], [graph] `capture_error_mode`).
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        body()
    return graph.replay
