"""The whole step: pixels in, a row of statistics out, and nothing of the host in between.

::

    pixels uint8 ─ flip ─ normalise ─┐
                              noise ─┴─ AdversarialStep ─ average of G ─ row of statistics

The three modes run this same code: eager calls it, compiled has torch.compile make fewer and
larger kernels of the nets, and graph records that once and repeats it as a single launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from dcgan.step.adversarial import STATISTICS, AdversarialStep, no_sync
from dcgan.step.ema import EMA
from dcgan.step.graph import capture
from dcgan.step.precision import Choice
from dcgan.step.statistics import StepRows
from pipeline.files import cache_folder
from pipeline.images.pixels import to_signed

AUTO = {
    "cuda": Choice("graph", "one launch a step, whatever the host is doing"),
    "cpu": Choice("eager", "faster here than compiled code, which has no matrix products"),
}
"""For each type of device what `--step auto` takes; eager on any other.

On two cores with AMX, bf16 at the default sizes takes 392 ms eager and 520 ms compiled (medians of
three rounds of `dcgan-profile step --compiled`). On an H100 a step takes 2.20 ms as a graph, but
10.4 ms eager and 12.8 ms compiled without one: there the host is the slower of the two.
"""


ELSEWHERE = "on another rank"


def choose_step(asked: str, device: torch.device) -> Choice:
    """Resolve `--step` to eager, compiled or graph."""
    if asked != "auto":
        return Choice(asked, "as asked for")
    return AUTO.get(device.type, Choice("eager", f"nothing else was tried on {device.type}"))


class WholeStep:
    """One update of D and one of G from a batch of stored pixels, with all that belongs to it.

    Every tensor that it reads or writes stays where it is, so that it can be captured.

    Args:
        update: the maths; its nets are on the device.
        shape: (B, S, S, C) of the batches.
        nz: length of the latent.
        random: a generator of the device, for the noise and the flips.
        rows: takes the statistics.
        mirror: flip every image with probability one half.
        ema: of the generator, if there is to be one.
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
    ) -> None:
        self.update, self.random, self.rows = update, random, rows
        self.mirror, self.ema = mirror, ema
        device = random.device
        self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.noise = torch.zeros(shape[0], nz, 1, 1, device=device)
        self.statistics = torch.zeros(len(STATISTICS), device=device)
        self._run: Callable[[], object] = self.body

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Do one step.

        Args:
            pixels: (B, S, S, C) uint8; read only.

        Returns:
            (5,) on the device, in the order of `STATISTICS`; the next step overwrites it.
        """
        found, wanted = (pixels.shape, pixels.dtype), (self.pixels.shape, self.pixels.dtype)
        assert found == wanted, f"a batch of {found}, not {wanted}"
        self.pixels.copy_(pixels, non_blocking=True)
        return self.run()

    def run(self) -> torch.Tensor:
        """Do one step on what `pixels` holds; returns as a call does."""
        self._run()
        return self.statistics

    def body(self) -> None:
        """Do what a graph captures."""
        self.noise.normal_(generator=self.random)
        pixels = self._flipped() if self.mirror else self.pixels
        real = to_signed(pixels, torch.bfloat16 if self.update.bf16 else torch.float32)
        self.statistics.copy_(self.update(real, self.noise))
        if self.ema is not None:
            self.ema.update(self.update.updates_of_g())
        self.rows.write(self.statistics)

    def _flipped(self) -> torch.Tensor:
        shape = (len(self.pixels), 1, 1, 1)
        draws = torch.rand(shape, generator=self.random, device=self.pixels.device)
        return torch.where(draws < 0.5, self.pixels.flip(2), self.pixels)

    def prepare(
        self, mode: str, log: Callable[[str], object], all_agree: Callable[[bool], bool] = bool
    ) -> str:
        """Get ready to run in a mode, or else in the next simpler one; training starts afterwards.

        Args:
            mode: eager, compiled or graph.
            log: takes a line on what takes long and on what does not work.
            all_agree: whether what works here works on all ranks: a graph on some of them and
                none on others would not meet.

        Returns:
            The mode that the step will run in.
        """
        if mode == "eager":
            return mode
        compiled = self._compile(log, all_agree)
        if mode == "graph" and self._capture(log, all_agree):
            return mode
        return "compiled" if compiled else "eager"

    def _compile(self, log: Callable[[str], object], all_agree: Callable[[bool], bool]) -> bool:
        update = self.update
        parts = update.generate, update.discriminate, update.loss_d, update.loss_g
        began = time.perf_counter()
        log("compiling the step: up to a minute, unless it was compiled here before")
        try:
            update.generate, update.discriminate, update.loss_d, update.loss_g = (
                torch.compile(part, fullgraph=True, dynamic=False) for part in parts
            )
            with self.preserved_state():
                self.body()
            failure = None
        except Exception as error:  # whatever a compiler can fail with: without it, we are slower
            failure = _describe(error)
        if all_agree(failure is None):
            log(f"compiled in {time.perf_counter() - began:.1f} s")
            return True
        update.generate, update.discriminate, update.loss_d, update.loss_g = parts
        log(f"torch.compile failed, going on without it: {failure or ELSEWHERE}")
        return False

    def _capture(self, log: Callable[[str], object], all_agree: Callable[[bool], bool]) -> bool:
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
        """Undo, in place, whatever steps inside do to nets, optimisers, rows and random numbers.

        Gradients are not reduced meanwhile: other ranks may do fewer such steps, or more.
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
                        tensor.zero_()  # Adam's state, made meanwhile: it begins as zeros
            self.random.set_state(random)
            for net in (self.update.generator, self.update.discriminator):
                net.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """All that a step changes for good, the random numbers too; waits for the device."""
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
        """Go on from a state; before `prepare`, since optimisers get new tensors.

        Args:
            state: of `state_dict`. One without an average has it begin at the net itself.
            same_random: go on with the state's random numbers; else with other ones.
        """
        update = self.update
        update.generator.load_state_dict(state["generator"])
        update.discriminator.load_state_dict(state["discriminator"])
        if self.ema is not None:
            self.ema.net.load_state_dict(state["average"] or state["generator"])
        # Without their options: the run's own hold, which may be other ones by now
        optimizers = {"optimizer_d": update.optimizer_d, "optimizer_g": update.optimizer_g}
        for name, optimizer in optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name], "param_groups": groups})
        if same_random:
            self.random.set_state(state["random"])
        self.rows.restore(state["rows"])

    def digest(self) -> str:
        """Sha256 of what must be the same on all ranks; waits for the device.

        That is the weights and Adam's state. BatchNorm's statistics are those of each rank's own
        batches, and nothing is trained with them.
        """
        update, found = self.update, hashlib.sha256()
        tensors = [*update.generator.parameters(), *update.discriminator.parameters()]
        for optimizer in (update.optimizer_d, update.optimizer_g):
            tensors += chain.from_iterable(state.values() for state in optimizer.state.values())
        for tensor in tensors:
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def is_finite(self) -> bool:
        """Whether every number is one; waits for the device."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.state())

    def state(self) -> Iterator[torch.Tensor]:
        """The tensors among it."""
        update = self.update
        nets = [update.generator, update.discriminator]
        nets += [self.ema.net] if self.ema is not None else []
        yield from chain.from_iterable(chain(net.parameters(), net.buffers()) for net in nets)
        for optimizer in (update.optimizer_d, update.optimizer_g):
            yield from chain.from_iterable(state.values() for state in optimizer.state.values())
        yield from (self.rows.rows, self.rows.place)


def keep_compiled_code() -> None:
    """Have torch.compile keep its code where the next run finds it.

    By default that is the folder for temporary files, which a restart may empty
    (docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html). To be called before
    the first optimiser is made: that loads Dynamo, which settles on a folder at once, and makes it.
    Where there is no home to write to, as in many containers, the folder stays torch's own.
    """
    with contextlib.suppress(OSError, RuntimeError):  # the latter where nobody knows a home
        folder = cache_folder() / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _describe(error: Exception) -> str:
    # Two lines: Inductor's first one says no more than that it failed
    reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
