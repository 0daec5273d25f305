"""The kernels of one replay of the captured step, by kind and by name."""

import json as json_format
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from dcgan.options import TrainConfig
from dcgan.profiling.measuring import synchronise
from dcgan.profiling.step import Act, build_ours, make_pixels
from dcgan.rundir.environment import describe_environment
from dcgan.step.precision import choose_precision
from dcgan.step.train_step import keep_compiled_code

WARM_UPS, LONGEST = 5, 24

KINDS = {
    "triton_poi_fused__to_copy": "cast",
    "triton_red": "reduction",
    "triton_per": "reduction",
    "triton_for": "many tensors at once",
    "triton": "pointwise",
    "multi_tensor": "many tensors at once",
    "dgrad": "convolution, gradient of the input",
    "wgrad": "convolution, gradient of the weight",
    "fprop": "convolution",
    "xmma": "convolution or product",
    "cutlass": "convolution or product",
    "splitk": "product, sum of its parts",
    "gemm": "product",
    "gemv": "product",
    "nvjet": "product",
    "nhwc": "change of layout",
    "nchw": "change of layout",
    "cudnn": "other of cuDNN",
    "memcpy": "copy",
    "memset": "fill",
}
"""What a kernel does, by the first of these that is in its name: a library's own, and its to change
(Triton's begin as torch/_inductor/codegen/triton.py says)."""

Kernels = list[tuple[str, float]]
"""Names and microseconds, in order."""


def kind_of(name: str) -> str:
    return next((kind for word, kind in KINDS.items() if word in name.lower()), "other of ATen")


def by_kind(kernels: Kernels) -> dict[str, tuple[int, float]]:
    """How many of each kind, and their microseconds; what takes longest comes first."""
    found = defaultdict(list)
    for name, spent in kernels:
        found[kind_of(name)].append(spent)
    sums = {kind: (len(spent), sum(spent)) for kind, spent in found.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def record(step: Act, device: torch.device) -> Kernels:
    """The kernels of one step; on a CPU its ATen calls, with those inside them."""
    on_cuda = device.type == "cuda"
    for _ in range(WARM_UPS):
        step()
    synchronise(device)
    # Of a graph's replay, too, each kernel is seen
    # (docs.nvidia.com/cupti: CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
        step()
        synchronise(device)
    where = "CUDA" if on_cuda else "CPU"
    events = [event for event in seen.events() or () if event.device_type.name == where]
    events.sort(key=lambda event: event.time_range.start)
    return [(event.name, event.time_range.elapsed_us()) for event in events]


def table(kernels: Kernels) -> Iterator[str]:
    """Lines for people."""
    yield f"{len(kernels)} kernels, {sum(spent for _, spent in kernels):,.0f} µs:"
    for kind, (count, spent) in by_kind(kernels).items():
        yield f"{spent:9,.1f} µs {count:5}  {kind}"
    yield "The longest:"
    for name, spent in sorted(kernels, key=lambda kernel: -kernel[1])[:LONGEST]:
        yield f"{spent:9,.1f} µs        {name:.110}"


def main(json: Annotated[Path, typer.Option()]) -> None:
    """Print and write the kernels of a step with default options, on CUDA."""
    keep_compiled_code()
    device, config = torch.device("cuda"), TrainConfig(shards="synthetic")
    precision = choose_precision(config.precision, device).name
    config = config.replace(precision=precision)
    begin, step = build_ours(config, "graph", make_pixels(config, device), device)
    begin()
    kernels = record(step, device)
    print("\n".join(table(kernels)))
    found = {"precision": precision, "kinds": by_kind(kernels), "kernels": kernels}
    found |= {"environment": describe_environment(device)}
    json.write_text(json_format.dumps(found))


if __name__ == "__main__":
    typer.run(main)
