"""What Inductor would generate for an H100, on a machine without one.

Graphs are traced on the CPU and then given fake CUDA tensors; Inductor lowers, fuses and schedules
them by an H100's properties and writes its code. Triton compiles none of it, and nothing runs. So
kernels, and the bytes that they move, can be counted on any machine.

This stands on torch's private parts: a tool for whoever changes the step, and no
dependency of anything else. `pretend` patches torch for good, so it belongs in a process of its
own: `python -m tests.count_kernels`.
"""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    gcnArchName="",
    is_integrated=False,
)

TORCH = "2.14."
"""The version whose parts these are."""

CUDA = torch.device("cuda", 0)


class Kernel(NamedTuple):
    """A kernel of the device, or several that one call launches."""

    name: str
    launches: int
    bytes: int
    """Read and written, each buffer once."""


class LoweredError(Exception):
    """No error: Inductor has written its code; what would follow needs a GPU."""


def pretend() -> None:
    """Have torch and Inductor see an H100. There is no way back."""
    from torch._dynamo import device_interface
    from torch._inductor import config
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._inductor.graph import GraphLowering
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "get_device_name": H100.name,
        "_lazy_init": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "is_initialized": False,
        "is_current_stream_capturing": False,
        "synchronize": None,
        "is_bf16_supported": True,
        "current_stream": SimpleNamespace(cuda_stream=0, device=CUDA),
        "mem_get_info": (70 << 30, 80 << 30),
    }
    _answer(torch.cuda, answers)
    _answer(torch.cuda.random, {"get_rng_state": answers["get_rng_state"], "set_rng_state": None})
    _answer(torch.accelerator, {"is_available": False})
    _answer(torch._C, {"_cuda_getCurrentRawStream": 0})
    interface = {"get_compute_capability": 90, "get_raw_stream": 0, "is_triton_capable": True}
    same = "is_available", "get_device_properties", "current_device", "device_count", "synchronize"
    interface |= {name: answers[name] for name in same} | {"raise_if_triton_unavailable": None}
    _answer(device_interface.CudaInterface, interface, staticmethod)
    worker = {name: answers[name] for name in ("get_device_properties", "current_device")}
    _answer(device_interface.CudaInterface.Worker, worker, staticmethod)
    _answer(_triton, {"has_triton": True, "has_triton_package": True})
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_device_capability=lambda index=0: (9, 0),
        get_current_stream=lambda index=0: 0,
        is_active=lambda: True,
        utils=SimpleNamespace(
            get_device_properties=lambda index: {
                "max_shared_mem": H100.shared_memory_per_block_optin,
                "multiprocessor_count": H100.multi_processor_count,
                "warpSize": H100.warp_size,
            }
        ),
    )
    driver.set_active(target)
    # cuDNN's answer for inputs in channels_last
    torch._C._conv_determine_backend_memory_format = _layout_of_cudnn
    # These look at example tensors on the device, for patterns that no net here has
    for module in (fuse_attention, pad_mm, misc_patterns):
        for name in [name for name in vars(module) if name.endswith("_init")]:
            _answer(module, {name: None})
    config.force_disable_caches = True
    config.compile_threads = 1
    GraphLowering._compile_to_module = _note  # type: ignore[assignment, method-assign]


def _answer(where: Any, answers: dict[str, Any], kind: Any = lambda function: function) -> None:
    for name, answer in answers.items():
        setattr(where, name, kind(lambda *_, answer=answer, **__: answer))


def _layout_of_cudnn(
    input: torch.Tensor, weight: torch.Tensor, backend: Any
) -> torch.memory_format:
    layout = torch.channels_last
    both = input, weight
    last = input.dim() == 4 and any(each.is_contiguous(memory_format=layout) for each in both)
    return layout if last else torch.contiguous_format


# Lowering


def lower(graph: torch.fx.GraphModule, examples: list[Any], **options: Any) -> list[Kernel]:
    """Lower a graph of ATen calls, traced on the CPU, for the pretended GPU.

    Args:
        graph: functional but for writes to its inputs at its end, as AOTAutograd leaves it.
        examples: its inputs; only shapes, strides and types count.
        options: of the compilation: `is_backward`, `is_inference`.
    """
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.utils import BoxedBool

    kwargs = {"cudagraphs": BoxedBool(False), "graph_id": 0, "static_input_idxs": (), **options}
    _notes.clear()
    graph, inputs = _on_cuda(graph, examples)
    try:
        with DebugContext():
            compile_fx._InProcessFxCompile().codegen_and_compile(graph, inputs, (), kwargs)  # type: ignore[arg-type]
    except LoweredError:
        return [*_notes]
    raise AssertionError("Inductor wrote no code")


_notes: list[Kernel] = []


def _note(lowering: Any) -> None:
    """Stand in the place of what compiles the code, and note its kernels."""
    from torch._inductor.utils import get_fused_kernel_name

    code = lowering.codegen()[0]
    code = getattr(code, "value", code)
    body = code[code.index("def call(") :].split("benchmark_compiled_module")[0]
    # What is launched stands in the code; what it moves, with the scheduler, which does not tell
    # how many launches it takes
    _notes.extend(Kernel(name, 1, 0) for name in re.findall(r"\b(triton_\w+)\.run\(", body))
    for node in lowering.scheduler.nodes:
        inner = getattr(node, "node", None)
        if not node.is_extern():
            name = get_fused_kernel_name(node.get_nodes(), "original_aten")
            _notes.append(Kernel(name, 0, _moved(node, lowering)))
        elif type(inner).__name__ != "MultiOutput":  # one of the results of another
            _notes.append(_extern(inner, int(node.get_read_write_buffers_sizes())))
    raise LoweredError


def _moved(node: Any, lowering: Any) -> int:
    """Count the bytes of what a kernel reads and of what it writes, each buffer once."""
    total = 0
    for way in (node.read_writes.reads, node.read_writes.writes):
        names = {lowering.scheduler.mutation_real_name.get(dep.name, dep.name) for dep in way}
        # Within fused code some are never written, but kept in registers
        for name in names - set(lowering.removed_buffers):
            size = lowering.get_numel(name) * lowering.get_dtype(name).itemsize
            total += int(size)
    return total


def _extern(node: Any, moved: int) -> Kernel:
    name = str(getattr(node, "python_kernel_name", None) or type(node).__name__)
    calls = [origin for origin in node.origins if "convolution_backward" in str(origin.target)]
    if calls:  # of the input and of the weights: a kernel each
        return Kernel("convolution_backward", sum(calls[0].args[-1][:2]), moved)
    return Kernel(name.rpartition(".")[2] or name, 1, moved)


def _on_cuda(
    graph: torch.fx.GraphModule, examples: list[Any]
) -> tuple[torch.fx.GraphModule, list[Any]]:
    """Copy a graph that makes its tensors on the GPU, with fake inputs there."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    graph, mode = copy.deepcopy(graph), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        inputs = [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=CUDA)
            if isinstance(each, torch.Tensor)
            else each
            for each in examples
        ]
    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": CUDA}
    with torch.no_grad():
        FakeTensorProp(graph, mode=mode).propagate_dont_convert_inputs(*inputs)
    graph.recompile()
    return graph, inputs


# A step, and the kernels that it would launch


_compile = torch.compile

STANDARD = {"is_backward": False, "is_inference": False}


class Ledger(TorchDispatchMode):
    """Notes what a GPU would launch while it is entered: eager calls, and those of compiled code.

    An eager call counts as one kernel, one with lists too, if it does not only make a view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._within = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._within and (launches := _launches(func, args)):
            self.kernels.append(Kernel(f"eager {func}", launches, 0))
        return result

    @contextmanager
    def within(self, kernels: list[Kernel]) -> Iterator[None]:
        """Note these, and nothing of what stands in for them."""
        self.kernels += kernels
        self._within = True
        try:
            yield
        finally:
            self._within = False

    def compile(self, part: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Stand in for `torch.compile`; Dynamo refuses to work under a mode like this one."""
        inductors = options.pop("options", {})

        def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
            return self.backend(graph, examples, inductors)

        compiled = _compile(part, backend=backend, **options)

        def call(*arguments: Any) -> Any:
            with _disable_current_modes():
                return compiled(*arguments)

        return call

    def backend(
        self, graph: torch.fx.GraphModule, examples: list[Any], inductors: dict[str, Any]
    ) -> Callable[..., Any]:
        """Compile as Inductor does, for the pretended GPU, with such options of its own."""
        from torch._functorch._aot_autograd.utils import make_boxed_func
        from torch._functorch.aot_autograd import aot_module_simplified
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor import config
        from torch._inductor.compile_fx import _recursive_joint_graph_passes
        from torch._inductor.decomposition import select_decomp_table

        def compile_as(**options: Any) -> Callable[..., Any]:
            def compile_one(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
                if options.get("is_inference"):
                    _recursive_joint_graph_passes(module)
                kernels: list[Kernel] = []

                def run(*given: Any) -> Any:
                    if not kernels:  # not before, because now no other fake tensors are about
                        with config.patch(**inductors):
                            kernels.extend(lower(module, [*given], **STANDARD | options))
                    with self.within(kernels):
                        return module(*given)

                return make_boxed_func(run)

            return compile_one

        def partition(joint: Any, inputs: Any, **options: Any) -> Any:
            _recursive_joint_graph_passes(joint)
            return min_cut_rematerialization_partition(
                joint, inputs, **options | {"compiler": "inductor"}
            )

        return aot_module_simplified(
            graph,
            examples,
            fw_compiler=compile_as(),
            bw_compiler=compile_as(is_backward=True),
            inference_compiler=compile_as(is_inference=True),
            partition_fn=partition,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )


VIEWS = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
    *("empty", "empty_like", "empty_strided", "promote_types", "resize_"),
}
"""ATen calls that launch nothing."""


def _launches(func: Any, args: Any) -> int:
    name = func._schema.name.removeprefix("aten::")
    if name in VIEWS or "profiler" in str(func):
        return 0
    # With a share in a tensor, this one takes the elements of its list one by one
    return len(args[0]) if str(func) == "aten._foreach_lerp_.List" else 1
