"""The options of every command, each declared once: a field of a class below.

A field has the type, the bounds and the default of an option; its `Option` has the help text. From
these follow the command line (`dcgan.cli.command`), the checks, the content of `config.json`, and
what may differ when a run resumes. The module imports nothing heavy, so that `--help` and errors
appear at once.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.errors import UserError
from pipeline.images.fit import parse_fit
from pipeline.images.labels import MAX_CLASSES, LabelSpace
from pipeline.images.size import ImageSize, parse_size, plain_size
from pipeline.loading.options import LoaderOptions
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.shards.shard_set import is_url

BATCH_SIZE = 16
"""What `dcgan-train` takes, and `dcgan-profile` measures, by default."""

DEFAULT_EPOCHS = 5
"""The tutorial's default, used if neither `--epochs` nor `--max-steps` is given."""

Resume = Literal["same", "fixed", "content", "free"]
"""The value that an option must have when a run resumes.

- `same`: its old value, unless `--allow-change` is given.
- `fixed`: its old value in any case, because it decides the shapes of the nets or the batches.
- `content`: any name of the same data.
- `free`: any value, because it does not change what a step computes.
"""


@dataclass(frozen=True)
class Option:
    """How the command line shows an option and reads it."""

    help: str
    panel: str | None = None
    """The heading in `--help` under which the option is listed."""
    default: str | None = None
    """A description of the default, if its value would not explain itself."""
    flag: str | None = None
    """The flag, if it differs from the field's name; `--a/--no-a` for a pair."""
    argument: str | None = None
    """The name in `--help` of a positional argument, which has no flag."""
    written: type | None = None
    """The type on the command line, if that accepts more than the field's type."""
    resume: Resume = "same"


_BOUNDS = {
    "greater_than_equal": "{ge:,} or more",
    "greater_than": "more than {gt:,}",
    "less_than_equal": "at most {le:,}",
    "less_than": "less than {lt:,}",
    "string_too_short": "{min_length} character or more",
    "byte_size": "a size, as in 20GB or 500MB",
    "byte_size_unit": "a size, as in 20GB or 500MB",
}
"""What was wanted, for each of pydantic's error types."""


class Options(BaseModel):
    """The checked options of a command.

    Raises:
        UserError: a value is invalid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._refusal(error) from None

    @classmethod
    def _refusal(cls, error: ValidationError) -> UserError:
        fault = error.errors(include_url=False)[0]
        if isinstance(raised := fault.get("ctx", {}).get("error"), UserError):
            return raised
        wanted = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if fault["type"] in _BOUNDS:
            wanted = _BOUNDS[fault["type"]].format_map(fault.get("ctx", {}))
        given = "" if fault["type"] == "missing" else str(fault["input"])
        where, value = cls.flag(str(fault["loc"][0])), given or "nothing"
        return UserError(where, value, wanted, "correct it, or leave it out")

    @classmethod
    def flag(cls, name: str) -> str:
        """Return the flag of a field as it is typed."""
        option = option_of(cls.model_fields[name])
        if option is not None and option.argument is not None:
            return option.argument
        declared = option.flag if option is not None else None
        return (declared or f"--{name.replace('_', '-')}").partition("/")[0]

    def replace(self, **changes: Any) -> Self:
        """Copy the options with some changes, and check them again."""
        return type(self)(**(dict(self) | changes))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values by name."""
        return self.model_dump(mode="json")


def option_of(field: FieldInfo) -> Option | None:
    """Return the `Option` of a field, or None if no command line sets it."""
    return next((each for each in field.metadata if isinstance(each, Option)), None)


def require_place(flag: str, path: Path) -> None:
    """Refuse an output file that could not be written.

    Raises:
        UserError: the path is a folder, or its folder does not exist.
    """
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise UserError(
            f"{flag} {path}", found, "a file in a folder that exists", "choose another name"
        )


def choices(annotation: object) -> tuple[str, ...]:
    """Return the values of a `Literal`; an empty tuple for any other type."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


# Types and options that several commands share

Count = Annotated[int, Field(ge=1, le=10**12)]
"""A count, bounded so that the product of two fits into a C integer."""

Threads = Annotated[int, Field(ge=1, le=1024)]
"""A number of threads. The system refuses to start many more, which would end the process."""

Size = Annotated[
    ImageSize, BeforeValidator(parse_size), PlainSerializer(plain_size, when_used="json")
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Images16 = Annotated[int, Field(ge=16, le=10**7)]
"""Images on each side of a metric: fewer make it meaningless, many more do not fit into memory."""

StepSize = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Minutes = Annotated[float, Field(ge=0, le=10**6)]

MOST, RUN, DATA, NETS = "What most need", "The run", "The data", "The nets"
UPDATES, OUTPUT, MEASURING = "The updates", "The output", "The measuring"
MACHINE, WHAT, WHERE, WHICH = "The machine", "What to draw", "Where to", "Which net"
STORE, HELP = "A set in a store", "Help"
"""Panels that `--help` shows below all others."""

DEVICE = "Device to compute on: auto, cpu, cuda, cuda:N or mps."
THREADS = "one per core, up to 8; 4 for a GPU"
SIZE = "Side in pixels, or width × height, as in 96 or 64x96."


def _drawn(seed: object) -> object:
    try:
        return secrets.randbelow(10_000) if seed == "random" else int(str(seed))
    except ValueError:
        raise ValueError("a whole number, or random") from None


def _hubs_license(name: str | None) -> str | None:
    # The names at huggingface.co/docs/hub/repositories-licenses are of this form
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name):
        raise ValueError("a hub's name of a licence, as in mit, cc-by-4.0 or other")
    return name


class SetOptions(Options):
    """The options of a command that reads a shard set, wherever that is."""

    _may_be_known: ClassVar[bool] = False
    """Whether a set that no option names may be known all the same."""

    shards: Annotated[
        str | None, Field(min_length=1), Option("Folder or URL of a shard set.", DATA)
    ]
    endpoint: Annotated[
        str | None,
        Option(
            "URL at which the set's store answers, if it is not its provider's own.",
            STORE,
            "the provider's own",
            resume="free",
        ),
    ] = None
    shard_cache: Annotated[
        Path | None,
        Option(
            "Folder to keep what is fetched of a set in a store.",
            STORE,
            "in the user's cache folder",
            resume="free",
        ),
    ] = None
    shard_cache_size: Annotated[
        ByteSize | None,
        Option(
            "Most that this folder may hold, as in 20GB or 500MB.",
            STORE,
            "half of what is free there",
            written=str,
            resume="free",
        ),
    ] = None

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        """Refuse what names no set's place before it is written down, or repeated in an error.

        A URL may hold a password; the refusals do not show it.
        """
        if self.shards is None and self._may_be_known:
            return self
        if self.shards is not None and is_url(self.shards):
            Address.parse(self.shards, self.endpoint, self.flag("shards"))
            return self
        remote = {
            name: getattr(self, name) for name in ("endpoint", "shard_cache", "shard_cache_size")
        }
        given = [self.flag(name) for name, value in remote.items() if value is not None]
        if given:
            flag = self.flag("shards")
            raise UserError(
                " and ".join(given),
                f"no {flag}" if self.shards is None else f"{flag} {self.shards}, which is no URL",
                "a set in a store, as in s3://bucket/set",
                f"leave {' and '.join(given)} out, or give the set's URL",
            )
        return self

    @property
    def access(self) -> Access:
        """How the set is reached."""
        return Access(self.endpoint, self.shard_cache, self.shard_cache_size)


# Training


LABELS_SHOWN = 8
"""Names in a line of the log."""


class RunLabels(BaseModel):
    """The names of a run's labels, and examples of attributes.

    With them samples can be asked for by name, wherever the run's folder is, without its set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classes", "attributes"]
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """Of the classes by number, or of the attributes."""
    rows: Annotated[tuple[str, ...], Field(max_length=MAX_CLASSES)] = ()
    """For attributes, those of some images of the set: a 0 or 1 for each name."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names that differ")
        if bool(self.rows) != (self.kind == "attributes"):
            raise ValueError("rows for attributes, and for these only")
        for row in self.rows:
            if len(row) != len(self.names) or set(row) - {"0", "1"}:
                raise ValueError("a 0 or 1 for each name in each row")
        return self

    def describe(self) -> str:
        """Describe them in a line."""
        more = ", …" if len(self.names) > LABELS_SHOWN else ""
        return f"{len(self.names):,} {self.kind}: {', '.join(self.names[:LABELS_SHOWN])}{more}"

    @property
    def space(self) -> LabelSpace:
        """The labels as nets and loaders take them."""
        return LabelSpace(self.kind, self.names)


class TrainConfig(SetOptions):
    """The options of `dcgan-train`.

    The defaults are the PyTorch DCGAN tutorial's, but for what gave better faces: the batch size
    and the step size (docs/recipes.md), and a moving average of the generator. bf16, where the
    hardware has it, is faster.
    """

    shards: Annotated[
        str,
        Field(min_length=1),
        Option(
            "Folder or URL of a shard set, made by tools/make_shards.py; or 'synthetic' for noise.",
            MOST,
            resume="content",
        ),
    ]
    run: Annotated[
        str | None,
        Option(
            "Run folder to write, or to resume; by default runs/0001, runs/0002 and so on.",
            MOST,
            resume="free",
        ),
    ] = None
    epochs: Annotated[
        Count | None,
        Option(
            "Passes over the set.",
            MOST,
            f"{DEFAULT_EPOCHS}, or as many as --max-steps needs",
            resume="free",
        ),
    ] = None
    max_steps: Annotated[
        Count | None,
        Option("End after this many steps, unless --epochs ends earlier.", MOST, resume="free"),
    ] = None
    max_time: Annotated[
        Minutes | None,
        Option("Save and end after this many minutes, with exit status 75.", RUN, resume="free"),
    ] = None
    allow_change: Annotated[
        bool,
        Option(
            "Resume a run with other options, or another number of processes, than before.",
            RUN,
            resume="free",
        ),
    ] = False
    batch_size: Annotated[
        Count, Option("Images in a step, over all processes.", MOST, resume="fixed")
    ] = BATCH_SIZE
    image_size: Annotated[Size, Option(SIZE, MOST, written=str, resume="fixed")] = 64
    fit: Annotated[
        str | None,
        BeforeValidator(parse_fit),
        Option(
            "How images of another shape are fitted: crop, stretch, pad, pad:edge or pad:COLOUR.",
            DATA,
            "as the set says, else crop",
        ),
    ] = None
    channels: Annotated[int, Option("3 for colour, 1 for grey.", DATA, resume="fixed")] = 3
    nz: Annotated[Count, Option("Length of a latent.", NETS, resume="fixed")] = 100
    ngf: Annotated[Count, Option("Width of the generator.", MOST, resume="fixed")] = 64
    ndf: Annotated[Count, Option("Width of the discriminator.", MOST, resume="fixed")] = 64
    conditional: Annotated[
        bool,
        Option(
            "Train on the set's labels too, so that samples can be asked for by label.",
            NETS,
            resume="fixed",
        ),
    ] = False
    lr: Annotated[StepSize, Option("Adam's step size.", MOST)] = 4e-4
    lr_d: Annotated[
        StepSize | None, Option("Adam's step size for the discriminator.", UPDATES, "as --lr")
    ] = None
    lr_g: Annotated[
        StepSize | None, Option("Adam's step size for the generator.", UPDATES, "as --lr")
    ] = None
    beta1: Annotated[float, Field(ge=0, lt=1), Option("Adam's first decay rate.", UPDATES)] = 0.5
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5),
        Option("Amount to subtract from the label 1 of real images; often 0.1.", UPDATES),
    ] = 0.0
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16"],
        Option(
            "Number format of the nets: auto (bf16 if the hardware has it), fp32, tf32 or bf16.",
            MACHINE,
        ),
    ] = "auto"
    step: Annotated[
        Literal["auto", "eager", "compiled", "graph"],
        Option(
            "How the step runs: auto (graph on CUDA, else eager), eager, compiled or graph.",
            MACHINE,
        ),
    ] = "auto"
    tune: Annotated[
        Literal["auto", "off"],
        Option(
            "How the step is computed: auto (on CUDA as is fastest, timed at the first start of a"
            " run of 20,000 steps or more; on a CPU by a fixed table), or off (by PyTorch's"
            " convolutions).",
            MACHINE,
        ),
    ] = "auto"
    mirror: Annotated[
        bool,
        Option("Flip each image with probability one half.", DATA, flag="--mirror/--no-mirror"),
    ] = False
    augment: Annotated[
        Literal["none", "diff"],
        Option("What changes the images that D sees: none, or diff (DiffAugment).", UPDATES),
    ] = "none"
    ema_nimg: Annotated[
        int,
        Field(ge=0, le=10**12),
        Option("Half-life, in images, of the generator's moving average; 0 turns it off.", NETS),
    ] = 10_000
    """Karras et al. 2018 (section 6.1) average over 10,000 images."""
    seed: Annotated[
        Seed, BeforeValidator(_drawn), Option("Seed: a number, or 'random'.", RUN, written=str)
    ] = 999
    device: Annotated[str, Option(DEVICE, MACHINE)] = "auto"
    workers: Annotated[
        Threads | None, Option("Threads that decode images.", MACHINE, THREADS, resume="free")
    ] = None
    cache: Annotated[
        Literal["device", "host", "auto", "off"],
        Option(
            "Where to keep the decoded set after the first epoch: device, host, auto or off.",
            MACHINE,
            resume="free",
        ),
    ] = "auto"
    data_timeout: Annotated[
        float,
        Field(ge=1, le=10**9),
        Option("Seconds to wait for a batch before giving up.", MACHINE, resume="free"),
    ] = LoaderOptions.data_timeout
    netG: Annotated[  # noqa: N815  # the spelling of pytorch/examples
        str | None, Option("Start the generator with this file's weights.", NETS)
    ] = None
    netD: Annotated[  # noqa: N815
        str | None, Option("Start the discriminator with this file's weights.", NETS)
    ] = None
    deterministic: Annotated[
        bool,
        Option(
            "Give the same bits every time, even on a GPU, where this is slower.",
            MACHINE,
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Option("Do one step, write all files, and end.", RUN, resume="free"),
    ] = False
    log_every: Annotated[Count, Option("Steps between status lines.", OUTPUT, resume="free")] = 50
    sample_every: Annotated[Count, Option("Steps between sample grids.", OUTPUT, resume="free")] = (
        500
    )
    checkpoint_every: Annotated[
        Minutes, Option("Minutes between checkpoints; 0 for every step.", OUTPUT, resume="free")
    ] = 5.0
    keep: Annotated[
        Count, Option("Newest checkpoints to keep, besides the best.", OUTPUT, resume="free")
    ] = 2
    evaluate_every: Annotated[
        Count | None,
        Option(
            "Steps between measurements of the sliced Wasserstein distance.",
            OUTPUT,
            "none",
            resume="free",
        ),
    ] = None
    on_trouble: Annotated[
        Literal["warn", "rollback", "stop"],
        Option("What to do at an alarm: warn, rollback or stop.", OUTPUT, resume="free"),
    ] = "warn"
    ranks: int = 1
    """Number of processes that torchrun started. No command line sets it."""
    tuning: dict[str, Any] | None = None
    """The resolved `tune`, a `dcgan.step.tuning.Tuning`. No command line sets it."""
    labels: RunLabels | None = None
    """Those of the set, if the run is conditional. No command line sets it."""

    def differences(self, saved: dict[str, Any]) -> dict[str, str]:
        """Compare with the options of a run that is resumed, as far as they must be the same.

        Args:
            saved: the result of `to_json`, perhaps of another version.

        Returns:
            A short description of each difference, by the name of the option.
        """
        return {
            name: f"{self.flag(name)} {_in_words(value)} (was {_in_words(saved[name])})"
            for name, value in self.to_json().items()
            if name in saved and saved[name] != value and self.on_resume(name) in ("same", "fixed")
        }

    @classmethod
    def on_resume(cls, name: str) -> Resume:
        """Return what this option must be when a run resumes."""
        option = option_of(cls.model_fields[name])
        return "free" if option is None else option.resume

    def total_steps(self, steps_per_epoch: int, ahead: int = 0) -> int:
        """Return the number of steps after which the run ends by itself.

        Args:
            steps_per_epoch: steps in each epoch to come.
            ahead: as in `Plan`.
        """
        if self.dry_run:
            return 1
        limits = [self.max_steps] if self.max_steps is not None else []
        if self.epochs is not None or not limits:
            epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
            limits.append(max(1, epochs * steps_per_epoch - ahead))
        return min(limits)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {"batch_size": 128, "lr": 2e-4, "ema_nimg": 0, "precision": "fp32"},
    "32": {"image_size": 32},
    "64": {"image_size": 64},
    "128": {"image_size": 128, "ngf": 32, "ndf": 16},
    "256": {
        "image_size": 256,
        "ngf": 16,
        "ndf": 8,
        "ema_nimg": 2_500,
        "lr_d": 2e-4,
        "label_smoothing": 0.1,
        "augment": "diff",
    },
}
"""The options that each `--preset` sets. Options on the command line override them.

64 is the default, the best of what docs/recipes.md compares at equal images seen: many small steps.

From 128 pixels on, a discriminator as wide as the generator wins at once: on CelebA's faces, with
both at 64 (128 pixels) or both at 32 (256), Loss_G stayed above 16 for 250 steps, and every seed
gave the same texture. At 128 pixels, half the width is enough, and the steps of 64 give faces. At
256 pixels, D wins with these steps too, within a thousand of them. There, it takes all of this: D
has half the generator's step size (two step sizes: Heusel et al. 2017, arXiv:1706.08500), one-sided
label smoothing, and sees augmented images.
"""


# Measuring

TurnSeconds = Annotated[
    float, Field(ge=0, le=3600), Option("Minimum seconds of each turn.", MEASURING)
]


class Measuring(Options):
    """The options that all commands of `dcgan-profile` share."""

    batch_size: Annotated[
        int,
        Field(ge=1, le=10**6),
        Option("Images in a batch: as many as dcgan-train's default; the tutorial has 128.", DATA),
    ] = BATCH_SIZE
    image_size: Annotated[Size, Option(SIZE, DATA, written=str)] = 64
    rounds: Annotated[int, Field(ge=1, le=1000), Option("Turns of each contender.", MEASURING)] = 5
    seconds: TurnSeconds = 1.0
    device: Annotated[str, Option(DEVICE, MEASURING)] = "auto"
    json_file: Annotated[
        Path | None, Option("Write every round's numbers to this file.", OUTPUT, flag="--json")
    ] = None
    plot_file: Annotated[
        Path | None, Option("Draw the result to this PNG.", OUTPUT, flag="--plot")
    ] = None

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        """Refuse output files now that could not be written after minutes of measuring."""
        for flag, path in (("--json", self.json_file), ("--plot", self.plot_file)):
            if path is not None:
                require_place(flag, path)
        plot = self.plot_file
        if plot is not None and plot.suffix.lower() != ".png":
            raise UserError(
                f"--plot {plot}", "another kind of file", "a PNG", "end its name in .png"
            )
        return self


class MeasuringSet(Measuring, SetOptions):
    """The options of those commands of `dcgan-profile` that read a shard set."""

    shards: Annotated[str, Field(min_length=1), Option("Folder or URL of a shard set.", DATA)]
    images: Annotated[
        Count,
        Option("Images to measure with: whole shards, until they hold this many.", DATA),
    ] = 8192
    """Two shards of the default size. They warm the page cache, and are written out and packed
    again within seconds."""
    workers: Annotated[
        Threads | None, Option("Threads of our loader, processes of others.", DATA, THREADS)
    ] = None
    seed: Annotated[Seed, Option("Seed of the order of images.", DATA)] = 0

    @model_validator(mode="after")
    def _is_a_set(self) -> Self:
        if self.shards == "synthetic" and not Path(self.shards).exists():
            raise UserError(
                "--shards synthetic",
                "noise, which no loader reads",
                "a shard set",
                "pack one with tools/make_shards.py; dcgan-profile step needs none",
            )
        return self


class MeasuringStore(MeasuringSet):
    """The options of `dcgan-profile store`."""

    images: Annotated[
        Count,
        Option("Images to measure with: whole shards, until they hold this many.", DATA, "all"),
    ] = 10**12
    rounds: Annotated[int, Field(ge=1, le=1000), Option("Turns of each contender.", MEASURING)] = 3


class MeasuringNets(Measuring):
    """The options of those commands of `dcgan-profile` that take steps."""

    seconds: TurnSeconds = 4.0
    ngf: Annotated[Count, Option("Width of the generator.", NETS)] = 64
    ndf: Annotated[Count, Option("Width of the discriminator.", NETS)] = 64


class MeasuringStep(MeasuringNets):
    """The options of `dcgan-profile step`, which needs no images."""

    seconds: TurnSeconds = 2.0
    channels: Annotated[int, Option("3 for colour, 1 for grey.", DATA)] = 3
    nz: Annotated[Count, Option("Length of a latent.", NETS)] = 100
    compiled: Annotated[
        bool,
        Option(
            "Measure compiled code even without CUDA: a minute or two more.",
            MEASURING,
            flag="--compiled",
        ),
    ] = False
    tune: Annotated[
        bool,
        Option(
            "Time every form of every layer and every change of the step, and print both tables;"
            " on CUDA, replace the choice that is stored.",
            MEASURING,
            flag="--tune",
        ),
    ] = False


class MeasuringTraining(MeasuringNets, MeasuringSet):
    """The options of `dcgan-profile train`."""


# Commands on runs and machines

Net = Annotated[
    Path,
    Option(
        "A run folder, a folder of dcgan-export, or the weights of a generator, of"
        " pytorch/examples too.",
        argument="RUN|netG.pt",
    ),
]


class EvaluateOptions(SetOptions):
    """The options of `dcgan-evaluate`."""

    _may_be_known = True  # a run names its own

    net: Net
    shards: Annotated[
        str | None,
        Field(min_length=1),
        Option(
            "Folder or URL of the set to compare with, or 'synthetic' for noise.",
            DATA,
            "the run's own",
        ),
    ] = None
    raw_net: Annotated[bool, Option("Measure the net as trained, not its moving average.")] = False
    n: Annotated[
        Images16,
        Option("Images a side for the sliced Wasserstein distance, 16 or more."),
    ] = 2048
    per_label: Annotated[
        bool,
        Option(
            "Also measure each class, or each value of an attribute, of a conditional net by"
            " itself.",
        ),
    ] = False
    faces: Annotated[
        bool,
        Option(
            "Also measure what a recogniser of human faces sees; needs dcgan-shards[faces].",
        ),
    ] = False
    faces_n: Annotated[
        Images16,
        Option("Samples for --faces, 16 or more, beside eight times as many real images."),
    ] = 256
    fid: Annotated[
        bool,
        Option(
            "Also compute FID, KID and Inception score; downloads InceptionV3's weights (95 MB).",
        ),
    ] = False
    weights: Annotated[
        Path | None,
        Option("As --fid, with InceptionV3's weights from this file."),
    ] = None
    precision_recall: Annotated[
        bool,
        Option(
            "Also compute precision and recall; downloads VGG16's weights (553 MB).",
        ),
    ] = False
    vgg_weights: Annotated[
        Path | None,
        Option("As --precision-recall, with VGG16's weights from this file."),
    ] = None
    fid_n: Annotated[
        Images16,
        Option(
            "Images a side for --fid and --precision-recall, 16 or more.",
            default="50,000, or half of the set",
        ),
    ] = 50_000
    device: Annotated[str, Option(DEVICE)] = "auto"
    workers: Annotated[Threads | None, Option("Threads that decode images.", default=THREADS)] = (
        None
    )


class SampleOptions(Options):
    """The options of `dcgan-sample`."""

    net: Net
    seeds: Annotated[
        str | None,
        Option("Which images, as in 0-999 or 3,7,10-12.", WHAT, default="0-63; 0-7 of each label"),
    ] = None
    out: Annotated[
        Path | None,
        Option(
            "File to write: a PNG with all images, or a walk's .gif or .webp.",
            WHERE,
            "samples.png, unless --each is given; a walk needs a name",
        ),
    ] = None
    each: Annotated[Path | None, Option("Write one PNG an image into this folder.", WHERE)] = None
    latents: Annotated[
        Path | None, Option("Draw the latents in this .npy file instead, one a row.", WHAT)
    ] = None
    arithmetic: Annotated[
        str | None,
        Option(
            "Add and subtract mean latents of seeds instead, as in '3,17,40 - 5,9 + 12,60'.", WHAT
        ),
    ] = None
    save_latents: Annotated[
        Path | None, Option("Write the latents of what is drawn into this .npy file.", WHERE)
    ] = None
    label: Annotated[
        str | None,
        Option(
            "What to draw with a conditional net, as in cats or Smiling=1,Male=-1; in a walk also"
            " from label to label, as in cats:dogs.",
            WHAT,
            "a row of the grid for each label",
        ),
    ] = None
    interpolate: Annotated[
        str | None, Option("Walk from seed to seed instead, as in 12:34 or 12:34:56.", WHAT)
    ] = None
    frames: Annotated[int | None, Option("Images in the whole walk.", WHAT, "60")] = None
    raw_net: Annotated[bool, Option("Take the net as trained, not its moving average.", WHICH)] = (
        False
    )
    device: Annotated[str, Option(DEVICE, WHICH)] = "auto"


class ExportOptions(Options):
    """The options of `dcgan-export`."""

    run: Annotated[Path, Option("A run folder.", argument="RUN")]
    out: Annotated[Path | None, Option("Folder to write.", default="export in the run")] = None
    raw_net: Annotated[bool, Option("Take the net as trained, not its moving average.")] = False
    license: Annotated[
        str | None,
        BeforeValidator(_hubs_license),
        Option(
            "Licence of the net, for the card, as a hub names it: mit, cc-by-4.0 or other.",
            default="unknown",
        ),
    ] = None
    data_name: Annotated[
        str | None,
        Option("Name of the data set, for the card: in words, or as a hub's owner/name."),
    ] = None
    data_license: Annotated[str | None, Option("Licence of the data set, for the card.")] = None
    web_runtime: Annotated[
        Path | None,
        Option(
            "Folder in which npm has installed onnxruntime-web, for the page.",
            default="in the user's cache folder",
        ),
    ] = None


class ReportOptions(Options):
    """The options of `dcgan-report`."""

    runs: Annotated[list[Path], Option("Run folders; several are compared.", argument="RUN...")]
    out: Annotated[
        Path | None,
        Option("Name of the page; by default report.html in the run, or ./comparison.html."),
    ] = None


class CheckOptions(SetOptions):
    """The options of `tools/check_shards.py`."""

    shards: Annotated[
        str,
        Field(min_length=1),
        Option("Folder or URL of a shard set.", DATA, argument="SHARDS"),
    ]
    decode: Annotated[bool, Option("Decode every image, too.")] = False
    sheet: Annotated[Path | None, Option("Save a contact sheet of 64 samples here, as PNG.")] = None


class DoctorOptions(SetOptions):
    """The options of `dcgan-doctor`."""

    shards: Annotated[
        str | None,
        Field(min_length=1),
        Option("Folder or URL of a shard set: also open it, and read one batch.", DATA),
    ] = None
    verify: Annotated[
        bool,
        Option("Also compare the fast paths with the plain ones on the device."),
    ] = False
    device: Annotated[str, Option(DEVICE)] = "auto"
    json_file: Annotated[
        str | None,
        Option("Write the report to this file, or to standard output for '-'.", flag="--json"),
    ] = None
