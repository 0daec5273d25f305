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
"""Steps before the capture, as in [notes]; they choose kernels and allocate memory."""


def capture(
    body: Callable[[], object],
    random: torch.Generator,
    preserved_state: Callable[[], AbstractContextManager[None]],
) -> Callable[[], None]:
    """Record what a call of `body` does on the device, without doing it.

    Args:
        body: does the same to the same tensors in each call, and reads nothing on the host.
        random: the only generator that `body` draws from.
        preserved_state: a context that undoes, in place, what one call of `body` inside it does.

    Returns:
        A function that repeats the call on the current stream, in one launch.
    """
    # Warm up on the stream of the capture: autograd ties each parameter's gradient to the stream
    # that it first saw it on, and refuses another in a capture ([notes], "Whole-network capture").
    stream = torch.cuda.Stream(random.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(random.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            with preserved_state():  # around each call: the rows may have space for one step only
                body()
    # `preserved_state` has dropped the gradients. The capture allocates new ones in the graph's own
    # memory, where each replay writes them again ([notes]: "sets grads to None before capture").
    torch.cuda.current_stream(random.device).wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    # Then each replay continues the random numbers of the last one
    # (CUDAGraph.register_generator_state). Torch does this only for the default generator itself.
    graph.register_generator_state(random)
    # thread_local: DALI's threads may call CUDA meanwhile. By default any of their calls that is
    # unsafe during a capture would end it ([cuda], [graph] `capture_error_mode`).
    with (
        _drawing_again_after_a_failure(random),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        body()
    return graph.replay


@contextmanager
def _drawing_again_after_a_failure(random: torch.Generator) -> Iterator[None]:
    """Restore the generators' states if a capture fails.

    A failed capture leaves the generators waiting for the graph, and every later draw is refused
    ("Offset increment outside graph capture"; seen with torch 2.11). The default generator always
    takes part in a capture.
    """
    stream = torch.cuda.current_stream(random.device)
    generators = random, torch.cuda.default_generators[torch.cuda.current_device()]
    before = [generator.clone_state() for generator in generators]
    try:
        yield
    except BaseException:
        for generator, state in zip(generators, before, strict=True):
            generator.graphsafe_set_state(state)
        torch.cuda.set_stream(stream)  # torch leaves that of the capture, if ending it fails too
        raise
