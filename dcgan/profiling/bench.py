"""What the profiling commands on a shard set begin with: the set, the device, the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dcgan.options import MeasuringSet
from dcgan.profiling.contenders import first_shards
from dcgan.profiling.measuring import AHEAD_FACTOR, Contender, Round, measure
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

TEMPORARY = "dcgan-profile-"
"""Prefix of the names of temporary folders."""


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
        self.whole = ShardSet.open(options.shards)
        self.shards = first_shards(self.whole, options.images)
        self.shards.require_size(options.image_size)
        steps_per_epoch(len(self.shards), options.batch_size)
        self.conditions = LoaderOptions(
            options.batch_size,
            options.image_size,
            device=self.device,
            seed=options.seed,
            workers=options.workers,
        )
        self.environment = describe_environment(self.device)

    def measure(self, contenders: Iterable[Contender]) -> dict[str, list[Round]]:
        """Let contenders take their rounds in turn; each is closed at the end."""
        with ExitStack() as stack:
            opened = []
            for contender in contenders:
                stack.callback(contender.close)
                opened.append(contender)
            return measure(opened, self.options.rounds, self.options.seconds, self.device)

    def facts(self) -> dict[str, str]:
        """Lines for people: device, versions, n."""
        manifest, options = self.shards.manifest, self.options
        size = "×".join(map(str, manifest.largest_image))
        part = "" if self.whole == self.shards else f", of {len(self.whole):,}"
        return machine(self.environment, SHOWN_PACKAGES) | {
            "images": f"{len(self.shards):,}{part}, of {size} pixels at most, in {options.shards}"
            f" ({manifest.recipe.describe()})",
            "batches": f"of {options.batch_size}, {options.image_size}×{options.image_size} pixels,"
            f" {self.conditions.threads} workers",
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
                "recipe": self.shards.manifest.recipe.describe(),
                "largest_image": list(self.shards.manifest.largest_image),
            },
            "workers": self.conditions.threads,
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
