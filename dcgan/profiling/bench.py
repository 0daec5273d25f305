"""What every profiling command begins with: the set, the device, and the means to measure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dcgan.options import MeasuringSet
from dcgan.profiling.measuring import AHEAD_FACTOR, Contender, Round, Told, measure
from dcgan.profiling.variants import first_shards
from dcgan.rundir.environment import describe_environment, pick_device
from pipeline.loading.options import LoaderOptions
from pipeline.machine import limit_torch_threads
from pipeline.shards.manifest import ShardSet
from pipeline.shards.order import steps_per_epoch

SHOWN_PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "webdataset",
)


class Bench:
    """A shard set under conditions, ready to be measured.

    Args:
        options: of the command.

    Raises:
        UserError: no usable set, one too small for a batch, or no such device.
    """

    def __init__(self, options: MeasuringSet) -> None:
        self.options = options
        limit_torch_threads()
        self.device = pick_device(options.device)
        self.shards = first_shards(ShardSet.open(options.shards), options.images)
        self.shards.require_size(options.image_size)
        steps_per_epoch(len(self.shards), options.batch_size)
        self.conditions = LoaderOptions(
            options.batch_size,
            options.image_size,
            device=self.device,
            seed=options.seed,
            workers=options.workers,
        )
        self.workers = self.conditions.threads
        self.environment = describe_environment(self.device)

    def measure(self, contenders: Sequence[Contender]) -> dict[str, list[Round]]:
        """Let contenders take their rounds, with a bar on a terminal."""
        with progress() as told:
            return measure(contenders, self.options.rounds, self.options.seconds, self.device, told)

    def facts(self) -> dict[str, str]:
        """Lines for people: device, versions, n."""
        manifest, options = self.shards.manifest, self.options
        size = "×".join(map(str, manifest.largest_image))
        whole = ShardSet.open(options.shards)
        part = "" if len(whole) == len(self.shards) else f", of {len(whole):,}"
        return machine(self.environment, SHOWN_PACKAGES) | {
            "images": f"{len(self.shards):,}{part}, of {size} pixels at most, in {options.shards}"
            f" ({manifest.recipe.told()})",
            "batches": f"of {options.batch_size}, {options.image_size}×{options.image_size} pixels,"
            f" {self.workers} workers",
            "rounds": f"{options.rounds} each, in turn, of at least {options.seconds:g} s and"
            f" {AHEAD_FACTOR} times what is read ahead",
        }

    def data(self) -> dict[str, Any]:
        """For programs: the same."""
        return {
            "options": self.options.to_json(),
            "environment": self.environment | {"torch_threads": torch.get_num_threads()},
            "set": {
                "images": len(self.shards),
                "recipe": self.shards.manifest.recipe.told(),
                "largest_image": list(self.shards.manifest.largest_image),
            },
            "workers": self.workers,
        }


def machine(environment: Mapping[str, Any], shown: Sequence[str]) -> dict[str, str]:
    """Lines for people on device and versions."""
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in shown if name in packages]
    return {
        "device": f"{environment['device']}: {environment['device_name']},"
        f" {environment['cpus']} CPUs",
        "versions": f"Python {environment['python']}, " + ", ".join(versions),
    }


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, however that comes."""
    with tempfile.TemporaryDirectory(prefix="dcgan-profile-") as folder:
        yield Path(folder)


def say(text: str) -> None:
    """One line on what is being done, on a terminal only."""
    console = Console(highlight=False, markup=False, stderr=True)
    if console.is_terminal:
        console.print(text)


@contextmanager
def progress() -> Iterator[Told]:
    """Show how far a measurement is, on a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        # A bar that moves by itself uses the CPU that is being measured
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, refresh=True)
