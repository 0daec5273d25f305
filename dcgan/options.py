"""The options of every command, each declared once: a field of a class below.

The type, the bounds and the default stand in the field, and its `Option` has the help. From these
follow the command line (`dcgan.cli.command`), what is refused, what `config.json` holds, and what
may differ when a run resumes. Loads nothing heavy, so that `--help` and refusals are instant.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.errors import UserError
from pipeline.loading.options import LoaderOptions

DEFAULT_EPOCHS = 5
"""The tutorial's; it counts where neither `--epochs` nor `--max-steps` is given."""

Resume = Literal["same", "fixed", "content", "free"]
"""What an option must be when a run resumes.

- `same`: what it was, unless `--allow-change` is given.
- `fixed`: what it was: it shapes the nets, or counts the images.
- `content`: the name of something that is the same, wherever it lies by now.
- `free`: anything: it changes nothing of what a step computes.
"""


@dataclass(frozen=True)
class Option:
    """What people read of an option, and how they write it."""

    help: str
    panel: str | None = None
    """The heading that it stands under in `--help`."""
    default: str | None = None
    """Words for a default that would say nothing."""
    flag: str | None = None
    """Where it is not made of the field's name; `--a/--no-a` for a pair."""
    argument: str | None = None
    """The name in `--help` of what is given by its place, without a flag."""
    written: type | None = None
    """What the command line takes, where that is more than the field's type."""
    resume: Resume = "same"


_BOUNDS = {
    "greater_than_equal": "{ge:,} or more",
    "greater_than": "more than {gt:,}",
    "less_than_equal": "at most {le:,}",
    "less_than": "less than {lt:,}",
    "string_too_short": "{min_length} character or more",
}
"""By pydantic's name of a fault, what was wanted."""


class Options(BaseModel):
    """The options of a command, checked.

    Raises:
        UserError: a value that the command could not use.
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
        if isinstance(told := fault.get("ctx", {}).get("error"), UserError):
            return told
        wanted = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if fault["type"] in _BOUNDS:
            wanted = _BOUNDS[fault["type"]].format_map(fault["ctx"])
        where, value = cls.flag(str(fault["loc"][0])), str(fault["input"]) or "nothing"
        return UserError(where, value, wanted, "correct it, or leave it out")

    @classmethod
    def flag(cls, name: str) -> str:
        """The flag of a field, as people write it."""
        option = option_of(cls.model_fields[name])
        if option is not None and option.argument is not None:
            return option.argument
        declared = option.flag if option is not None else None
        return (declared or f"--{name.replace('_', '-')}").partition("/")[0]

    def replace(self, **changes: Any) -> Self:
        """The same options with some changed, checked again."""
        return type(self)(**(dict(self) | changes))

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return self.model_dump(mode="json")


def option_of(field: FieldInfo) -> Option | None:
    """The `Option` of a field; None for one that no command line sets."""
    return next((each for each in field.metadata if isinstance(each, Option)), None)


def require_place(flag: str, path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        UserError: it is a folder, or in none.
    """
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise UserError(
            f"{flag} {path}", found, "a file in a folder that exists", "choose another name"
        )


def choices(annotation: object) -> tuple[str, ...]:
    """The values of a `Literal`; none for any other type."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


# Types and options that several commands share

Count = Annotated[int, Field(ge=1, le=10**12)]
"""Bounded, so that no product of two leaves the range of a C integer."""

Threads = Annotated[int, Field(ge=1, le=1024)]
"""Many more, and the system refuses them, which ends the process."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Images16 = Annotated[int, Field(ge=16, le=10**7)]
"""Of fewer images a side, no distance says anything; many more fit into no memory."""

StepSize = Annotated[float, Field(gt=0, lt=1)]
Minutes = Annotated[float, Field(ge=0, le=10**6)]

RUN, DATA, NETS, UPDATES, OUTPUT = "The run", "The data", "The nets", "The updates", "The output"
MEASURING = "The measuring"

DEVICE = "auto, cpu, cuda, cuda:N or mps."
THREADS = "one a core, up to 8; 4 for a GPU"


def _drawn(seed: object) -> object:
    try:
        return secrets.randbelow(10_000) if seed == "random" else int(str(seed))
    except ValueError:
        raise ValueError("a whole number, or random") from None


# Training


class TrainConfig(Options):
    """The options of `dcgan-train`; the defaults are the PyTorch DCGAN tutorial's."""

    shards: Annotated[
        str,
        Option(
            "Folder made by tools/make_shards.py, or 'synthetic' for noise.", DATA, resume="content"
        ),
    ]
    run: Annotated[
        str | None,
        Option(
            "Folder to write to, or to go on with; by default runs/0001 and so on.",
            RUN,
            resume="free",
        ),
    ] = None
    epochs: Annotated[
        Count | None,
        Option(
            "Passes over the set.", RUN, f"{DEFAULT_EPOCHS}, or as --max-steps needs", resume="free"
        ),
    ] = None
    max_steps: Annotated[
        Count | None, Option("Steps to end after, if --epochs does not before.", RUN, resume="free")
    ] = None
    max_time: Annotated[
        Minutes | None,
        Option("Save and end after so many minutes, with exit status 75.", RUN, resume="free"),
    ] = None
    allow_change: Annotated[
        bool,
        Option(
            "Go on with a run under other options than it began with.",
            RUN,
            flag="--allow-change",
            resume="free",
        ),
    ] = False
    batch_size: Annotated[
        Count, Option("Images in a step, of all processes together.", DATA, resume="fixed")
    ] = 128
    image_size: Annotated[
        int, Option("Side in pixels: 32, 64, 128 or 256.", DATA, resume="fixed")
    ] = 64
    channels: Annotated[int, Option("3 for colour, 1 for grey.", DATA, resume="fixed")] = 3
    nz: Annotated[Count, Option("Length of the latent.", NETS, resume="fixed")] = 100
    ngf: Annotated[Count, Option("Width of the generator.", NETS, resume="fixed")] = 64
    ndf: Annotated[Count, Option("Width of the discriminator.", NETS, resume="fixed")] = 64
    lr: Annotated[StepSize, Option("Adam's step size.", UPDATES)] = 2e-4
    lr_d: Annotated[StepSize | None, Option("The discriminator's.", UPDATES, "--lr's")] = None
    lr_g: Annotated[StepSize | None, Option("The generator's.", UPDATES, "--lr's")] = None
    beta1: Annotated[float, Field(ge=0, lt=1), Option("Adam's first decay rate.", UPDATES)] = 0.5
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5),
        Option("Subtracted from the label 1 of real images; often 0.1.", UPDATES),
    ] = 0.0
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16"],
        Option(
            "What the nets compute in: auto (bf16 where the hardware has it), fp32, tf32 or bf16.",
            UPDATES,
        ),
    ] = "auto"
    step: Annotated[
        Literal["auto", "eager", "compiled", "graph"],
        Option("How it runs: auto (graph on CUDA, else eager), eager, compiled or graph.", UPDATES),
    ] = "auto"
    mirror: Annotated[
        bool,
        Option("Flip each image with probability one half.", DATA, flag="--mirror/--no-mirror"),
    ] = False
    ema_nimg: Annotated[
        int,
        Field(ge=0, le=10**12),
        Option("Half-life, in images, of the generator's moving average; 0 for none.", NETS),
    ] = 10_000
    """Karras et al. 2018 (section 6.1) average over 10,000 images."""
    seed: Annotated[
        Seed, BeforeValidator(_drawn), Option("A number, or 'random'.", RUN, written=str)
    ] = 999
    device: Annotated[str, Option(DEVICE, RUN)] = "auto"
    workers: Annotated[
        Threads | None, Option("Threads that decode images.", DATA, THREADS, resume="free")
    ] = None
    cache: Annotated[
        Literal["device", "host", "auto", "off"],
        Option(
            "Where the decoded set stays after an epoch: device, host, auto or off.",
            DATA,
            resume="free",
        ),
    ] = "auto"
    data_timeout: Annotated[
        float,
        Field(ge=1, le=10**9),
        Option("Seconds to wait for a batch before giving up.", DATA, resume="free"),
    ] = LoaderOptions.data_timeout
    netG: Annotated[  # noqa: N815  # the ancestors' spelling
        str | None, Option("Start the generator with this file's weights.", NETS, flag="--netG")
    ] = None
    netD: Annotated[  # noqa: N815
        str | None, Option("Start the discriminator with this file's weights.", NETS, flag="--netD")
    ] = None
    deterministic: Annotated[
        bool,
        Option(
            "Give the same bits each time, on a GPU too; slower there.", RUN, flag="--deterministic"
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Option("Do one step, write all files, and end.", RUN, flag="--dry-run", resume="free"),
    ] = False
    log_every: Annotated[Count, Option("Steps between status lines.", OUTPUT, resume="free")] = 50
    sample_every: Annotated[Count, Option("Steps between sample grids.", OUTPUT, resume="free")] = (
        500
    )
    checkpoint_every: Annotated[
        Minutes, Option("Minutes between checkpoints; 0: each step.", OUTPUT, resume="free")
    ] = 5.0
    keep: Annotated[
        Count, Option("Newest checkpoints to keep, beside the best.", OUTPUT, resume="free")
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
        Option("What an alarm leads to: warn, rollback or stop.", OUTPUT, resume="free"),
    ] = "warn"
    ranks: int = 1
    """Processes that train together: what torchrun started, and no option of a command."""

    def differences(self, saved: dict[str, Any]) -> dict[str, str]:
        """Compare with the options of a run that is resumed, as far as they must be the same.

        Args:
            saved: as `to_json` gave them, perhaps in another version.

        Returns:
            For each option that differs, by its name here, a few words.
        """
        return {
            name: f"{self.flag(name)} {_in_words(value)} (was {_in_words(saved[name])})"
            for name, value in self.to_json().items()
            if name in saved and saved[name] != value and self.on_resume(name) in ("same", "fixed")
        }

    @classmethod
    def on_resume(cls, name: str) -> Resume:
        """What this option must be when a run resumes."""
        option = option_of(cls.model_fields[name])
        return "free" if option is None else option.resume

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps until the run ends by itself."""
        if self.dry_run:
            return 1
        limits = [self.max_steps] if self.max_steps is not None else []
        if self.epochs is not None:
            limits.append(self.epochs * steps_per_epoch)
        return min(limits, default=DEFAULT_EPOCHS * steps_per_epoch)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {"ema_nimg": 0, "precision": "fp32"},
    "32": {"image_size": 32},
    "64": {"image_size": 64},
    "128": {
        "image_size": 128,
        "batch_size": 64,
        "ngf": 32,
        "ndf": 16,
        "ema_nimg": 5_000,
        "lr_d": 1e-4,
        "label_smoothing": 0.1,
    },
    "256": {
        "image_size": 256,
        "batch_size": 32,
        "ngf": 16,
        "ndf": 8,
        "ema_nimg": 2_500,
        "lr_d": 1e-4,
        "label_smoothing": 0.1,
    },
}
"""For `--preset`, by name: what differs from the defaults. What stands on the command line wins.

From 128 pixels on, a discriminator as wide as the generator wins at once: on CelebA's faces, with
both at 64 (128 pixels) or both at 32 (256), Loss_G stayed above 16 for 250 steps, and every seed
gave the same texture. Half the generator's width, half its step size (Heusel et al. 2017,
arXiv:1706.08500, for two of them) and one-sided label smoothing keep it near 4.
"""


# Measuring

TurnSeconds = Annotated[
    float, Field(ge=0, le=3600), Option("Seconds that a turn takes, at least.", MEASURING)
]


class Measuring(Options):
    """The options that all commands of `dcgan-profile` share."""

    rounds: Annotated[
        int, Field(ge=1, le=1000), Option("Turns that each contender has.", MEASURING)
    ] = 5
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
        """Refuse now what could not be written after minutes of measuring."""
        for flag, path in (("--json", self.json_file), ("--plot", self.plot_file)):
            if path is not None:
                require_place(flag, path)
        plot = self.plot_file
        if plot is not None and plot.suffix.lower() != ".png":
            raise UserError(
                f"--plot {plot}", "another kind of file", "a PNG", "end its name in .png"
            )
        return self


class MeasuringSet(Measuring):
    """Those of its commands on a shard set."""

    shards: Annotated[Path, Option("Folder made by tools/make_shards.py.", DATA)]
    images: Annotated[
        Count,
        Option("Images to measure with: whole shards, until they hold so many.", DATA),
    ] = 8192
    """Two shards of the default size: more than the page cache needs to be warm, and written out
    and packed anew in seconds."""
    batch_size: Annotated[int, Field(ge=1, le=10**6), Option("Images in a batch.", DATA)] = 128
    image_size: Annotated[
        int, Field(ge=8, le=4096), Option("Side in pixels, 8 to 4,096.", DATA)
    ] = 64
    workers: Annotated[
        Threads | None, Option("Threads of ours, processes of others.", DATA, THREADS)
    ] = None
    seed: Annotated[Seed, Option("Of the order of images.", DATA)] = 0

    @model_validator(mode="after")
    def _is_a_set(self) -> Self:
        if str(self.shards) == "synthetic" and not self.shards.exists():
            raise UserError(
                "--shards synthetic",
                "noise, which no loader reads",
                "a shard set",
                "pack one with tools/make_shards.py; dcgan-profile step needs none",
            )
        return self


class MeasuringLoader(MeasuringSet):
    """Those of `dcgan-profile loader`."""

    seconds: TurnSeconds = 2.0


class MeasuringTraining(MeasuringSet):
    """Those of `dcgan-profile train`."""

    seconds: TurnSeconds = 4.0
    image_size: Annotated[
        int, Field(ge=8, le=4096), Option("Side in pixels: 32, 64, 128 or 256.", DATA)
    ] = 64
    ngf: Annotated[Count, Option("Width of the generator.", NETS)] = 64
    ndf: Annotated[Count, Option("Width of the discriminator.", NETS)] = 64


class MeasuringStep(Measuring):
    """Those of `dcgan-profile step`, which needs no images."""

    seconds: TurnSeconds = 2.0
    batch_size: Annotated[int, Field(ge=1, le=10**6), Option("Images in a batch.", DATA)] = 128
    image_size: Annotated[
        int, Field(ge=8, le=4096), Option("Side in pixels: 32, 64, 128 or 256.", DATA)
    ] = 64
    channels: Annotated[int, Option("3 for colour, 1 for grey.", DATA)] = 3
    nz: Annotated[Count, Option("Length of a latent.", NETS)] = 100
    ngf: Annotated[Count, Option("Width of the generator.", NETS)] = 64
    ndf: Annotated[Count, Option("Width of the discriminator.", NETS)] = 64
    compiled: Annotated[
        bool,
        Option(
            "Measure compiled code without CUDA too, where that takes minutes.",
            MEASURING,
            flag="--compiled",
        ),
    ] = False


# What is made of a run


class EvaluateOptions(Options):
    """The options of `dcgan-evaluate`."""

    run: Annotated[Path, Option("Run folder of dcgan-train.", argument="RUN")]
    shards: Annotated[
        str | None,
        Field(min_length=1),
        Option("Set to compare with, or 'synthetic' for noise.", default="the run's own"),
    ] = None
    raw_net: Annotated[
        bool, Option("Measure the net as trained, not its moving average.", flag="--raw-net")
    ] = False
    n: Annotated[
        Images16,
        Option("Images a side for the sliced Wasserstein distance, 16 or more.", flag="--n"),
    ] = 2048
    fid: Annotated[
        bool,
        Option("Also FID and KID; downloads Inception's weights (95 MB) once.", flag="--fid"),
    ] = False
    weights: Annotated[
        Path | None,
        Option("Also FID and KID, with the weights in this file: nothing is downloaded."),
    ] = None
    fid_n: Annotated[
        Images16,
        Option("Images a side for FID and KID, 16 or more.", default="50,000, or half of the set"),
    ] = 50_000
    device: Annotated[str, Option(DEVICE)] = "auto"
    workers: Annotated[Threads | None, Option("Threads that decode images.", default=THREADS)] = (
        None
    )


class SampleOptions(Options):
    """The options of `dcgan-sample`."""

    net: Annotated[
        Path,
        Option(
            "A run folder, or the weights of a generator, of pytorch/examples too.",
            argument="RUN|netG.pt",
        ),
    ]
    seeds: Annotated[
        str | None, Option("Which images, as in 0-999 or 3,7,10-12.", default="0-63")
    ] = None
    grid: Annotated[
        Path | None,
        Option("Write all into this PNG.", default="samples.png, unless --each is given"),
    ] = None
    each: Annotated[Path | None, Option("Write one PNG a seed into this folder.")] = None
    interpolate: Annotated[
        str | None, Option("Walk from seed to seed instead, as in 12:34 or 12:34:56.")
    ] = None
    frames: Annotated[int | None, Option("Images in the whole walk.", default="60")] = None
    out: Annotated[Path | None, Option("The walk's file, .gif or .webp.")] = None
    raw_net: Annotated[
        bool, Option("Take the net as trained, not its moving average.", flag="--raw-net")
    ] = False
    device: Annotated[str, Option(DEVICE)] = "auto"


class ReportOptions(Options):
    """The options of `dcgan-report`."""

    runs: Annotated[list[Path], Option("Run folders; several are compared.", argument="RUN...")]
    out: Annotated[
        Path | None,
        Option("Name of the page; by default report.html in the run, or ./comparison.html."),
    ] = None


class DoctorOptions(Options):
    """The options of `dcgan-doctor`."""

    shards: Annotated[Path | None, Option("Also open this shard set and read a batch of it.")] = (
        None
    )
    verify: Annotated[
        bool,
        Option(
            "Also prove on the device that fast modes and loaders give the same.", flag="--verify"
        ),
    ] = False
    device: Annotated[str, Option(DEVICE)] = "auto"
    json_file: Annotated[
        str | None,
        Option("Write the report to this file, or to standard output for '-'.", flag="--json"),
    ] = None
