"""A generator beside real images: each metric, on the terminal and in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from dcgan.cli import tell_progress
from dcgan.distributed import Ranks
from dcgan.metrics import by_label, faces, fidelity, neighbours
from dcgan.metrics.by_label import OfLabel, beside_others
from dcgan.metrics.faces import FaceRecogniser
from dcgan.metrics.neighbours import Neighbours
from dcgan.metrics.pretrained import Inception, Vgg16
from dcgan.metrics.reals import BATCH, Extractor, Measured, Reals
from dcgan.metrics.sharing import draw
from dcgan.metrics.swd import Swd, SwdMetric
from dcgan.metrics.tables import print_by_label, print_facts, print_rest, print_swd
from dcgan.nets.weights import load_generator, weights_in
from dcgan.options import LABELS_SHOWN, EvaluateOptions
from dcgan.rundir.environment import own_device, pick_device
from dcgan.rundir.folder import RunFolder, append_line
from dcgan.sampling.labels import Label, each_label, usual_labels
from pipeline.errors import UserError
from pipeline.files import file_digest, writing
from pipeline.images.fit import parse_fit
from pipeline.images.labels import LabelSpace
from pipeline.loading.open import SYNTHETIC
from pipeline.loading.options import LoaderOptions
from pipeline.machine import limit_torch_threads
from pipeline.remote.open import open_set
from pipeline.shards.shard_set import ShardSet, is_url

E = TypeVar("E", bound=Extractor)

Extractors: TypeAlias = tuple[FaceRecogniser | None, Inception | None, Vgg16 | None]

MOST_LABELS = 100
"""Labels that --per-label measures, each in passes over its own images."""

LEAST = 16
"""Images a side, at least, of a label's numbers: as of `--n`."""


def evaluate(options: EvaluateOptions) -> int:
    """Measure a generator and print the numbers; a run's go into its `metrics.jsonl`, too.

    Under torchrun, the ranks share the work, and the first one prints and writes.

    Returns:
        The exit status: 0, or 1 after an error that another rank reports.

    Raises:
        UserError: no run, no net, or no set to compare with.
    """
    limit_torch_threads()
    with Ranks.joined() as ranks:
        try:
            with ranks.together():
                evaluation = Evaluation(options, ranks)
            evaluation.run()
        except UserError as error:
            if ranks.reports(error):
                raise
            return 1
    return 0


class Evaluation:
    """The measurements of one net, one after the other.

    Args:
        options: of the command.
        ranks: share the work.

    Raises:
        UserError: no run, no net, no set to compare with, or a run that cannot be written to.
    """

    def __init__(self, options: EvaluateOptions, ranks: Ranks) -> None:
        options = options.replace(net=weights_in(options.net))
        self._ranks = ranks
        self._device = own_device(pick_device(options.device), ranks)
        self._folder = None if options.net.is_file() else RunFolder.open(options.net)
        self._options = options if options.shards else _with_own_set(options, self._folder)
        self._shards = _open(self._options)
        if options.shards is None and self._folder is not None:
            _require_same(self._shards, self._folder)
        config = self._folder.options() if self._folder else {}
        self._fit = parse_fit(config.get("fit"))
        self._path = _net_of(options, self._folder)
        self._net = load_generator(self._path).to(self._device)
        if options.per_label and self._net.labels is None:
            raise UserError(
                "--per-label",
                f"{self._path}, which was trained without labels",
                "a net of dcgan-train --conditional",
                "leave --per-label out, or name another net",
            )
        self._record([])  # else what takes minutes would find out that nothing can be written
        self._nimg = self._folder.nimg_of_nets() if self._folder else 0

    def run(self) -> None:
        """Measure all that was asked for; a collective."""
        ranks, net, options = self._ranks, self._net, self._options
        again = "see that no run writes to it, and that all machines have the same file"
        ranks.require_same(f"weights in {self._path}", lambda: file_digest(self._path), again)
        extractors = self._extractors()  # before minutes are spent on the rest
        reals = self._reals(2 * options.n)
        if net.labels is not None:
            self._take_labels(net.labels, reals)
        ranks.require_same("images", lambda: reals.fingerprint, "give --shards the same set")
        nimg = f", after {self._nimg:,} images" if self._folder else ""
        self._print(
            {"net": f"{self._path}{nimg}", "reals": f"{_name(self._shards)}, {reals.recipe}"}
        )

        self._tell("sliced Wasserstein distance")
        fakes = draw(net, reals.at_most(options.n), ranks)
        swd = ranks.first(lambda: SwdMetric(reals, options.n).compare(fakes))
        if swd is not None:
            print_swd(swd)
        self._record([swd] if swd is not None else [])

        rest = self._neighbours(reals) + self._by_extractors(extractors, None)
        self._record(rest)
        print_rest(rest)
        if options.per_label:
            self._measure_labels(extractors)
        written = f"{self._folder.metrics}" if self._folder else "not written: they are no run's"
        self._print({"numbers": written})

    def _take_labels(self, space: LabelSpace, reals: Reals) -> None:
        """Give the net the labels of the set, with their names.

        Raises:
            UserError: the set has others than the net was trained on.
        """
        found, known = reals.label_space, self._folder and self._folder.options().get("labels")
        assert found is not None
        assert reals.label_table is not None
        names = tuple(known["names"]) if isinstance(known, dict) and "names" in known else None
        same = (found.kind, len(found.names)) == (space.kind, len(space.names))
        if not same or names not in (None, found.names):
            raise UserError(
                f"--shards {_name(self._shards)}",
                f"a set with other labels: {len(found.names):,} {found.kind},"
                f" {', '.join(found.names[:LABELS_SHOWN])}",
                f"those that the net was trained on: {len(space.names):,} {space.kind}",
                "name the set that it was trained on, or another with the same labels",
            )
        self._net.labels, self._net.usual_labels = found, usual_labels(reals.label_table)
        self._table = reals.label_table

    def _measure_labels(self, extractors: Extractors) -> None:
        """Measure the images of each label by themselves, as all were; a collective."""
        net, n, ranks = self._net, self._options.n, self._ranks
        assert net.labels is not None
        labels, usual = each_label(net.labels), net.usual_labels
        rows, images = list[list[Measured]](), list[OfLabel]()
        for label in labels[:MOST_LABELS]:
            reals = self._reals(2 * n, label)
            if reals.at_most(n) < LEAST:
                few = f"{reals.total} images; {2 * LEAST} are wanted"
                self._tell(f"{label.name}: left out, with {few}")
                continue
            self._tell(f"{label.name}: {reals.total:,} real images")
            net.usual_labels = label.labels(self._table)
            fakes = draw(net, reals.at_most(n), ranks)
            found, compared = (
                list[Measured](),
                ranks.first(partial(_of_label, label, reals, n, fakes)),
            )
            if compared is not None:
                found.append(compared[0])
                images.append(compared[1])
            found += self._by_extractors(extractors, label)
            rows.append([replace(each, label=label.name) for each in found])
            self._record(rows[-1])
        net.usual_labels = usual
        others = beside_others(images)  # none but on the first rank
        self._record([each for found in others for each in found])
        if ranks.is_first:
            print_by_label([row + found for row, found in zip(rows, others, strict=True)])
            if len(labels) > MOST_LABELS:
                self._tell(f"the first {MOST_LABELS} of {len(labels):,} labels were measured")

    def _by_extractors(self, extractors: Extractors, label: Label | None) -> list[Measured]:
        """Measure with each of the extractors; a collective.

        Args:
            extractors: those that were asked for.
            label: of all images; None for the whole set.
        """
        options, net, ranks = self._options, self._net, self._ranks
        recogniser, inception, vgg = extractors
        found: list[Measured] = []
        if recogniser is not None:
            found += self._faces(recogniser, label)
        if inception is not None:
            self._tell("FID, KID, Inception score: each image goes through InceptionV3 at 299×299")
            reals = self._reals(2 * options.fid_n, label)
            found += fidelity.measure_fid(net, reals, inception, options.fid_n, ranks)
        if vgg is not None:
            self._tell("precision and recall: each image goes through VGG16 at 224×224")
            reals = self._reals(2 * options.fid_n, label)
            found += fidelity.measure_precision(net, reals, vgg, options.fid_n, ranks)
        return found

    def _extractors(self) -> Extractors:
        options, device, weights = self._options, self._device, self._options.weights
        recogniser = self._on_all(FaceRecogniser) if options.faces else None
        inception = vgg = None
        if options.fid or weights is not None:
            inception = self._on_all(lambda: Inception(weights, device))
        if options.precision_recall or options.vgg_weights is not None:
            vgg = self._on_all(lambda: Vgg16(options.vgg_weights, device))
        return recogniser, inception, vgg

    def _on_all(self, load: Callable[[], E]) -> E:
        """Load an extractor, on the first rank before all others: it may download the weights."""
        loaded = self._ranks.first(load)
        with self._ranks.together():
            found = load() if loaded is None else loaded
        remedy = "install or copy the same file on all machines"
        self._ranks.require_same(found.description, lambda: found.digest, remedy)
        return found

    def _reals(self, wanted: int, label: Label | None = None) -> Reals:
        loader = LoaderOptions(
            BATCH,
            self._net.image_size,
            self._net.options["--channels"],
            device=self._device,
            workers=self._options.workers,
            fit=self._fit,
            labels=self._net.labels is not None,
        )
        with self._ranks.together():
            return Reals(self._shards, loader, wanted, label)

    def _neighbours(self, reals: Reals) -> list[Measured]:
        self._tell("nearest real neighbours")
        found = self._ranks.first(lambda: neighbours.find(self._net, reals))
        if self._folder is not None:
            self._save(
                found, self._folder.neighbours, "samples, and the real images nearest to each"
            )
        if found is None:
            return []
        if found.measured is None:
            self._tell("most real images occur twice: the distance to them has no measure")
            return []
        return [found.measured]

    def _faces(self, recogniser: FaceRecogniser, label: Label | None) -> list[Measured]:
        self._tell("faces: each image goes through dlib's recogniser")
        n = self._options.faces_n
        reals = self._reals(faces.reals_for(n), label)
        found = faces.measure(self._net, reals, recogniser, n, self._ranks)
        if label is not None:
            return [] if found is None else [found.distance, found.persons]
        shown = None if found is None else found.most_alike
        if self._folder is not None:
            path = self._folder.neighbours_faces
            self._save(shown, path, "samples whose faces are most like real ones, and these")
        if found is None:
            return []
        self._print({"alike": f"seeds {', '.join(map(str, found.seeds))}: most like a real face"})
        return [found.distance, found.persons]

    def _save(self, found: Neighbours | None, path: Path, what: str) -> None:
        with self._ranks.together(), _writing(path):
            if found is not None:  # on the first rank
                found.save(path)
        self._print({"picture": f"{path}: {what}"})

    def _record(self, measured: list[Measured]) -> None:
        if self._folder is None:
            return
        path = self._folder.metrics
        with self._ranks.together(), _writing(path):
            if self._ranks.is_first:
                path.open("ab").close()
            for each in measured:
                append_line(path, each.record(self._nimg, self._path.name))

    def _tell(self, line: str) -> None:
        if self._ranks.is_first:
            tell_progress(line)

    def _print(self, facts: dict[str, str]) -> None:
        if self._ranks.is_first:
            print_facts(facts)


def _of_label(label: Label, reals: Reals, n: int, fakes: torch.Tensor) -> tuple[Swd, OfLabel]:
    """A label's SWD, and what `beside_others` takes of its images."""
    metric = SwdMetric(reals, n)
    source = reals.provenance(by_label.RECIPE)
    return metric.compare(fakes), OfLabel(label, fakes, metric.reals, source)


def _net_of(options: EvaluateOptions, folder: RunFolder | None) -> Path:
    if folder is not None:
        return folder.generator_to_sample(options.raw_net)
    if options.raw_net:
        found = f"{options.net}, which is one net"
        raise UserError("--raw-net", found, "a run folder", "leave it out")
    return options.net


def _writing(path: Path) -> AbstractContextManager[None]:
    wanted = "a run folder that can be written, and room in it"
    return writing(path, wanted, "make room, then give the same command again")


def _with_own_set(options: EvaluateOptions, folder: RunFolder | None) -> EvaluateOptions:
    """The options with the set of the run, and with the ways to it that are not given.

    Raises:
        UserError: there is no run, or its set is not where it was.
    """
    if folder is None:
        wanted, remedy = "real images to compare it with", "add --shards FOLDER"
        raise UserError(options.net, "a net without its run", wanted, remedy)
    config = folder.options()
    name = config.get("shards")
    if isinstance(name, str) and is_url(name):
        ways = ("endpoint", "shard_cache", "shard_cache_size")
        own = {way: config.get(way) for way in ways if getattr(options, way) is None}
        try:
            return options.replace(shards=name, **own)
        except UserError as error:
            where = f"{folder.config}: {error.where}"
            raise UserError(where, error.found, error.wanted, error.remedy) from None
    if isinstance(name, str) and (name == SYNTHETIC or Path(name).is_dir()):
        return options.replace(shards=name)
    raise UserError(folder.config, f"shards {name}, which is no folder here", *_own_set_wanted())


def _open(options: EvaluateOptions) -> str | ShardSet:
    name = options.shards
    assert name is not None, "the run's own by now"
    return SYNTHETIC if name == SYNTHETIC else open_set(name, options.access)


def _require_same(shards: str | ShardSet, folder: RunFolder) -> None:
    """Compare a run's set with what it was.

    Raises:
        UserError: its images have changed.
    """
    known = folder.options().get("shard_set")  # None: of a run from before it was written down
    if isinstance(shards, ShardSet) and known not in (None, shards.fingerprint):
        wanted, remedy = _own_set_wanted()
        raise UserError(
            folder.config,
            f"shards {shards.name}, which is set {shards.fingerprint} by now",
            f"{wanted}, {known}",
            f"{remedy}; this one, if you mean it: --shards {shards.name}",
        )


def _own_set_wanted() -> tuple[str, str]:
    return "the set that the run was trained on", "name a shard set: --shards FOLDER"


def _name(shards: str | ShardSet) -> str:
    return shards if isinstance(shards, str) else shards.name
