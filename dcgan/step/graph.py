"""A CUDA graph of the whole step.

[notes] docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
[graph] docs.pytorch.org/docs/stable/generated/torch.cuda.graph.html
[cuda] docs.nvidia.com/cuda/cuda-runtime-api, cudaStreamBeginCapture and cudaStreamCaptureMode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

WARM_UPS = 3
"""Steps before the capture, as in [notes]: kernels are chosen and memory is taken in them."""


def capture(
    body: Callable[[], object],
    random: torch.Generator,
    preserved_state: Callable[[], AbstractContextManager[None]],
) -> Callable[[], None]:
    """Record what a call of `body` does on the device, without doing it.

    Args:
        body: does the same to the same tensors each time, and asks the host for nothing.
        random: the one generator that it draws from.
        preserved_state: undoes, in place, what one call of `body` inside it does.

    Returns:
        What does it again, on the current stream, in one launch.
    """
    # On the stream of the capture: autograd ties each parameter's gradient to the stream that it
    # first saw it on, and refuses another one in a capture ([notes], "Whole-network capture").
    stream = torch.cuda.Stream(random.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(random.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            with preserved_state():  # each: there may be room for the results of one step only
                body()
    # `preserved_state` has dropped the gradients: the capture takes new ones from the graph's own
    # memory, where each replay writes them anew ([notes]: "sets grads to None before capture").
    torch.cuda.current_stream(random.device).wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    # Each replay then draws where the last one ended (CUDAGraph.register_generator_state); torch
    # does this by itself for the default generator only.
    graph.register_generator_state(random)
    # thread_local: DALI's threads may go on calling CUDA meanwhile; by default any call of theirs
    # that is unsafe during a capture ends it ([cuda], [graph] `capture_error_mode`).
    with (
        _drawing_again_after_a_failure(random),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        body()
    return graph.replay


@contextmanager
def _drawing_again_after_a_failure(random: torch.Generator) -> Iterator[None]:
    """Give generators back the state that a capture takes away.

    One that breaks off leaves them waiting for the graph, and every later draw is refused ("Offset
    increment outside graph capture"; seen with torch 2.11). The default one takes part unasked.
    """
    generators = random, torch.cuda.default_generators[torch.cuda.current_device()]
    before = [generator.clone_state() for generator in generators]
    try:
        yield
    except BaseException:
        for generator, state in zip(generators, before, strict=True):
            generator.graphsafe_set_state(state)
        raise
