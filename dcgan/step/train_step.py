"""The whole step, from pixels to a row of statistics, without the host in between.

::

    pixels uint8 ─ flip ─ normalise ─┐
                       noise, draws ─┼─ AdversarialStep ─ average of G ─ row of statistics
               labels ─ drawn labels ┘

All three modes run this code. "eager" calls it; "compiled" has torch.compile make fewer and larger
kernels of the nets and losses; "graph" records the compiled step once and repeats it in one launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

from dcgan.step import STATISTICS
from dcgan.step.adversarial import AdversarialStep, no_sync
from dcgan.step.augment import DRAWS
from dcgan.step.ema import EMA
from dcgan.step.graph import capture
from dcgan.step.one_graph import compile_whole, seen_as_compiled
from dcgan.step.precision import Choice
from dcgan.step.statistics import StepRows
from dcgan.step.tuning import UNTUNED, Tuning
from pipeline.files import cache_folder
from pipeline.images.pixels import to_signed

AUTO = {
    "cuda": Choice("graph", "one launch a step, whatever the host is doing"),
    "cpu": Choice("eager", "faster than compiled code on a CPU"),
}
"""What `--step auto` chooses for each type of device; eager for any other type.

On two cores with AMX, bf16 at the default sizes takes 392 ms eager and 520 ms compiled (medians of
three rounds of `dcgan-profile step --compiled`), because compiled code does not use the matrix
products of dcgan/nets/forms.py. On an H100 a step takes 2.20 ms as a graph, but 10.4 ms eager and
12.8 ms compiled without a graph, because there the host is slower than the device.
"""

PARTS = ("augment", "generate", "discriminate", "loss_d", "loss_g")
"""What is compiled of an `AdversarialStep`, if not the whole."""

ELSEWHERE = "on another rank"

Log: TypeAlias = Callable[[str], object]
"""Takes a line for the user."""


def choose_step(asked: str, device: torch.device) -> Choice:
    """Resolve `--step` to eager, compiled or graph."""
    if asked != "auto":
        return Choice(asked, "as asked for")
    return AUTO.get(device.type, Choice("eager", f"other modes are untested on {device.type}"))


class WholeStep:
    """One update of D and one of G from a batch of stored pixels, with everything around them.

    All tensors that it reads or writes keep their addresses, so that it can be captured.

    Args:
        update: the maths; its nets are on the device.
        shape: (B, S, S, C), the shape of the batches.
        nz: length of the latents.
        random: a generator on the device, for the noise, the flips and the augmentation.
        rows: the table for the statistics.
        mirror: whether to flip every image with probability one half.
        ema: the moving average of the generator, if any.
        label_table: for conditional nets, the labels of the whole set, (n,) int64 or (n, k)
            float32 on the device. Each generated image has those of a row drawn from it.

    Attributes:
        inputs: the static buffers of a batch: pixels, and labels if the nets are conditional.
        is_one_graph: whether `prepare` has compiled the update as one graph.
    """

    def __init__(
        self,
        update: AdversarialStep,
        shape: tuple[int, int, int, int],
        nz: int,
        random: torch.Generator,
        rows: StepRows,
        mirror: bool = False,
        ema: EMA | None = None,
        label_table: torch.Tensor | None = None,
    ) -> None:
        self.update, self.random, self.rows = update, random, rows
        self.mirror, self.ema = mirror, ema
        device = random.device
        self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.noise = torch.zeros(shape[0], nz, 1, 1, device=device)
        self.flips = torch.zeros(shape[0], 1, 1, 1, device=device)
        self.draws = torch.zeros(3, DRAWS, shape[0], device=device)
        self.statistics = torch.zeros(len(STATISTICS), device=device)
        self.label_table = label_table
        self.inputs, self.labels = [self.pixels], list[torch.Tensor]()
        if label_table is not None:
            self.rows_drawn = torch.zeros(shape[0], dtype=torch.int64, device=device)
            self.labels = [label_table[self.rows_drawn] for _ in ("real", "generated")]
            self.inputs.append(self.labels[0])
        self.is_one_graph = False
        self._compute: Callable[[], object] = self.compute
        self._run: Callable[[], object] = self.body

    def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
        """Do one step.

        Args:
            batch: (B, S, S, C) uint8 pixels and, if the nets are conditional, labels, (B,) int64
                or (B, k) float32; not modified.

        Returns:
            (5,) on the device, in the order of `STATISTICS`; the next step overwrites it.
        """
        found, wanted = (
            [(each.shape, each.dtype) for each in some] for some in (batch, self.inputs)
        )
        assert found == wanted, f"a batch of {found}, not {wanted}"
        for buffer, given in zip(self.inputs, batch, strict=True):
            buffer.copy_(given, non_blocking=True)
        return self.run()

    @property
    def nets(self) -> list[nn.Module]:
        """G, D and, where there is one, the average of G."""
        update, average = self.update, [] if self.ema is None else [self.ema.net]
        return [update.generator, update.discriminator, *average]

    def run(self) -> torch.Tensor:
        """Do one step on the content of `inputs`; the result is that of a call."""
        self._run()
        return self.statistics

    def body(self) -> None:
        """Do what a CUDA graph captures: a step on the content of `inputs`."""
        self.draw()
        self._compute()

    def draw(self) -> None:
        """Draw the noise, and what decides on the flips, the augmentation and the labels."""
        self.noise.normal_(generator=self.random)
        if self.mirror:
            self.flips.uniform_(generator=self.random)
        if self.update.augment is not None:
            self.draws.uniform_(generator=self.random)
        if self.label_table is not None:
            self.rows_drawn.random_(0, len(self.label_table), generator=self.random)
            torch.index_select(self.label_table, 0, self.rows_drawn, out=self.labels[1])

    def compute(self) -> None:
        """Do all the rest of a step, which is compiled as a whole if that is asked for."""
        pixels = self._flipped() if self.mirror else self.pixels
        real = to_signed(pixels, torch.bfloat16 if self.update.bf16 else torch.float32)
        self.statistics.copy_(self.update(real, self.noise, self.draws, *self.labels))
        if self.ema is not None:
            self.ema.update(self.update.updates_of_g())
        self.rows.write(self.statistics)

    def _flipped(self) -> torch.Tensor:
        return torch.where(self.flips < 0.5, self.pixels.flip(2), self.pixels)

    def prepare(
        self,
        mode: str,
        log: Log,
        all_agree: Callable[[bool], bool] = bool,
        tuning: Tuning = UNTUNED,
    ) -> str:
        """Prepare to run in a mode or, if it fails, in the next simpler one; before the first step.

        Args:
            mode: eager, compiled or graph.
            log: called with a line about what takes long or fails.
            all_agree: returns whether all ranks succeeded, because all must run in the same mode.
            tuning: the forms of the layers, and how to compile. If compiling the update as a whole
                fails, it is compiled in parts; `is_one_graph` tells which it is.

        Returns:
            The mode that the step will run in.
        """
        tuning.apply(self.update)
        if mode == "eager":
            return mode
        one_graph, alone = tuning.one_graph, self.update.reduce_gradients is no_sync
        if one_graph and not alone:
            log("the update cannot be one compiled graph: several ranks reduce gradients within it")
        with tuning.compiling():
            self.is_one_graph = one_graph and alone and self._compile(True, log, all_agree)
            compiled = self.is_one_graph or self._compile(False, log, all_agree)
            if mode == "graph" and self._capture(log, all_agree):
                return mode
        return "compiled" if compiled else "eager"

    def _compile(self, whole: bool, log: Log, all_agree: Callable[[bool], bool]) -> bool:
        """Compile the update, whole or in parts, and do a step; if that fails on any rank, undo it.

        The arguments are those of `prepare`.
        """
        what, instead = ("step as one graph", "with its parts") if whole else ("step", "without it")
        parts = {name: part for name in PARTS if (part := getattr(self.update, name)) is not None}
        began = time.perf_counter()
        log(f"compiling the {what}: up to a minute, unless it was compiled here before")
        try:
            if whole:
                with self.preserved_state():
                    self.body()  # makes Adam's state
                with self.preserved_state(), seen_as_compiled(self.update):
                    self._compute = compile_whole(self.compute, self._tensors())
            else:
                for name, part in parts.items():
                    compiled = torch.compile(part, fullgraph=True, dynamic=False)
                    setattr(self.update, name, compiled)
            with self.preserved_state():
                self.body()
            failure = None
        except Exception as error:  # a compiler can raise anything; without it we are only slower
            failure = _describe(error)
        if all_agree(failure is None):
            log(f"compiled in {time.perf_counter() - began:.1f} s")
            return True
        self._compute = self.compute
        for name, part in parts.items():
            setattr(self.update, name, part)
        log(f"torch.compile failed, continuing {instead}: {failure or ELSEWHERE}")
        return False

    def _capture(self, log: Log, all_agree: Callable[[bool], bool]) -> bool:
        for attempt in ("first", "second"):
            failure, run = None, self._run
            try:
                run = capture(self.body, self.random, self.preserved_state)
            except Exception as error:
                failure = _describe(error)
            if all_agree(failure is None):
                self._run = run
                return True
            log(f"capture of the CUDA graph failed, {attempt} attempt: {failure or ELSEWHERE}")
        return False

    @contextmanager
    def preserved_state(self) -> Iterator[None]:
        """Undo, in place, what steps inside do to nets, optimisers, rows and random numbers.

        Meanwhile gradients are not reduced, because other ranks may do fewer or more such steps.
        """
        reduce, self.update.reduce_gradients = self.update.reduce_gradients, no_sync
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        random = self.random.get_state()
        try:
            yield
        finally:
            self.update.reduce_gradients = reduce
            known = {id(tensor) for tensor, _ in before}
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
                for tensor in self.state():
                    if id(tensor) not in known:
                        tensor.zero_()  # Adam's state, created meanwhile, begins as zeros
            self.random.set_state(random)
            for net in (self.update.generator, self.update.discriminator):
                net.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a step changes, random numbers included; waits for the device."""
        update, ema = self.update, self.ema
        return {
            "generator": update.generator.state_dict(),
            "discriminator": update.discriminator.state_dict(),
            "average": None if ema is None else ema.net.state_dict(),
            "optimizer_d": update.optimizer_d.state_dict()["state"],
            "optimizer_g": update.optimizer_g.state_dict()["state"],
            "random": self.random.get_state(),
            "rows": self.rows.untaken(),
        }

    def load_state_dict(self, state: dict[str, Any], same_random: bool) -> None:
        """Load a state. Call this before `prepare`, because optimisers get new tensors.

        Args:
            state: a result of `state_dict`. If it has no average, the average begins with the net.
            same_random: whether to continue with the state's random numbers.
        """
        update = self.update
        update.generator.load_state_dict(state["generator"])
        update.discriminator.load_state_dict(state["discriminator"])
        if self.ema is not None:
            self.ema.net.load_state_dict(state["average"] or state["generator"])
        # Only the state, not the optimisers' options: those are the run's present ones
        optimizers = {"optimizer_d": update.optimizer_d, "optimizer_g": update.optimizer_g}
        for name, optimizer in optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name], "param_groups": groups})
        if same_random:
            self.random.set_state(state["random"])
        self.rows.restore(state["rows"])

    def digest(self) -> str:
        """Return the SHA-256 of what must be the same on all ranks; waits for the device.

        That is the weights and Adam's state. BatchNorm's running statistics come from each rank's
        own batches, and training does not use them.
        """
        update, found = self.update, hashlib.sha256()
        tensors = [*update.generator.parameters(), *update.discriminator.parameters()]
        for optimizer in (update.optimizer_d, update.optimizer_g):
            tensors += chain.from_iterable(state.values() for state in optimizer.state.values())
        for tensor in tensors:
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def is_finite(self) -> bool:
        """Return whether all numbers of the state are finite; waits for the device."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.state())

    def _tensors(self) -> list[torch.Tensor]:
        """Return all tensors that `compute` reads or writes, each one once."""
        optimizers = self.update.optimizer_d, self.update.optimizer_g
        rates = (group["lr"] for optimizer in optimizers for group in optimizer.param_groups)
        tensors = chain(
            (self.pixels, self.noise, self.flips, self.draws, *self.labels, self.statistics),
            self.state(),
            (rate for rate in rates if isinstance(rate, torch.Tensor)),
        )
        return list({id(tensor): tensor for tensor in tensors}.values())

    def state(self) -> Iterator[torch.Tensor]:
        """Yield all tensors that a step changes, except the random numbers."""
        update = self.update
        yield from chain.from_iterable(chain(net.parameters(), net.buffers()) for net in self.nets)
        for optimizer in (update.optimizer_d, update.optimizer_g):
            yield from chain.from_iterable(state.values() for state in optimizer.state.values())
        yield from (self.rows.rows, self.rows.place)


def keep_compiled_code() -> None:
    """Make torch.compile cache its code in a folder that lasts.

    By default it uses the folder for temporary files, which a reboot may empty
    (docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html). Call this before the
    first optimiser is created: that loads Dynamo, which chooses and creates its folder at once. If
    there is no home folder to write to, as in many containers, torch's default is kept.
    """
    with contextlib.suppress(OSError, RuntimeError):  # the latter where nobody knows a home
        folder = cache_folder() / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _describe(error: Exception) -> str:
    # Two lines, because Inductor's first line says only that it failed
    reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
