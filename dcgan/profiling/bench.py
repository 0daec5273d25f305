"""What the profiling commands on a shard set begin with: the set, the device, the conditions.

Tars of a remote set are fetched before anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from dcgan.cli import tell_progress
from dcgan.options import MeasuringSet
from dcgan.profiling.contenders import first_shards
from dcgan.profiling.measuring import AHEAD_FACTOR, Contender, Round, measure
from dcgan.profiling.report import Bars, Report, publish
from dcgan.rundir.environment import pick_device
from pipeline.images.size import shown_size
from pipeline.loading.options import LoaderOptions
from pipeline.machine import limit_torch_threads
from pipeline.remote.files import RemoteFiles
from pipeline.remote.open import open_set
from pipeline.shards.order import steps_per_epoch

TEMPORARY = "dcgan-profile-"
"""Prefix of the names of temporary folders."""


class Bench:
    """A shard set under conditions, ready to be measured.

    Args:
        options: of the command.

    Raises:
        UserError: no usable set, one too small for a batch, one that the shard cache has no room
            for, or no such device.
    """

    def __init__(self, options: MeasuringSet) -> None:
        self.options = options
        limit_torch_threads()
        self.device = pick_device(options.device)
        self.whole = open_set(options.shards, options.access)
        self.shards = first_shards(self.whole, options.images)
        self.shards.require_size(options.image_size)
        steps_per_epoch(len(self.shards), options.batch_size)
        if isinstance(files := self.shards.files, RemoteFiles):
            tell_progress("fetching what the shard cache does not have of these images")
            files.all_at_once(f"{shard.name}.tar" for shard in self.shards.manifest.shards)
        self.conditions = LoaderOptions(
            options.batch_size,
            options.image_size,
            device=self.device,
            seed=options.seed,
            workers=options.workers,
        )

    def measure(self, contenders: Iterable[Contender]) -> dict[str, list[Round]]:
        """Let contenders take their rounds in turn; each is closed at the end."""
        return measure(contenders, self.options.rounds, self.options.seconds, self.device)

    def publish(
        self,
        command: str,
        tables: list[Table],
        conclusions: list[str],
        bars: list[Bars],
        data: Mapping[str, Any],
        **facts: str,
    ) -> None:
        """Publish what a command found, after the conditions; further `facts` come after these."""
        manifest, options = self.shards.manifest, self.options
        size = "×".join(map(str, manifest.largest_image))
        part = "" if self.whole == self.shards else f", of {len(self.whole):,}"
        recipe = manifest.recipe.describe()
        conditions = {
            "images": f"{len(self.shards):,}{part}, of {size} pixels at most, in {options.shards}"
            f" ({recipe})",
            "batches": f"of {options.batch_size}, {shown_size(options.image_size)} pixels,"
            f" {self.conditions.threads} workers",
            "rounds": f"{options.rounds} each, in turn, of at least {options.seconds:g} s and"
            f" {AHEAD_FACTOR} times what is read ahead",
        }
        measured_with = {
            "images": len(self.shards),
            "recipe": recipe,
            "largest_image": list(manifest.largest_image),
        }
        report = Report(
            command,
            self.device,
            conditions | facts,
            tables,
            conclusions,
            bars,
            {"set": measured_with, "workers": self.conditions.threads, **data},
        )
        publish(report, options)
