"""What a training run was asked to do. Loads nothing heavy: `--help` and the checks are instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pipeline.errors import UserError
from pipeline.feeder import DATA_TIMEOUT

DEFAULT_EMA_NIMG = 10_000
"""Karras et al. 2018 (section 6.1) average over 10,000 images."""

DEFAULT_EPOCHS = 5
"""The tutorial's; it counts where neither `--epochs` nor `--max-steps` is given."""


@dataclass(frozen=True)
class TrainConfig:
    """All options of `dcgan-train`, checked; the defaults are the PyTorch DCGAN tutorial's.

    Raises:
        UserError: a value that no run could use.
    """

    shards: str
    """Folder of a shard set, or `synthetic`."""
    run: str | None = None
    """Run folder; None for the next free number below `runs/`."""
    batch_size: int = 128
    """Images in a step, of all ranks together."""
    image_size: int = 64
    """Side of the images, in pixels."""
    channels: int = 3
    """3 for RGB, 1 for grey."""
    nz: int = 100
    """Length of the latent."""
    ngf: int = 64
    """Depth of the generator's last hidden map."""
    ndf: int = 64
    """Depth of the discriminator's first hidden map."""
    epochs: int | None = None
    """None for as many as `max_steps` takes, or else `DEFAULT_EPOCHS`."""
    max_steps: int | None = None
    """The run ends here if the epochs have not ended it before."""
    lr: float = 2e-4
    """Of both optimisers (Radford et al. 2016, section 4)."""
    lr_d: float | None = None
    """Of the discriminator's; None for `lr`."""
    lr_g: float | None = None
    """Of the generator's; None for `lr`."""
    beta1: float = 0.5
    """Adam's first decay rate (ibid.)."""
    label_smoothing: float = 0.0
    """What the label of real images falls short of 1."""
    seed: int = 999
    """Of the weights, the noise and the order of images."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    workers: int | None = None
    """Threads that decode; None for one a core, at most 8, or 4 for a GPU."""
    cache: str = "auto"
    """Where the decoded set is kept from the second epoch on: device, host, auto or off."""
    data_timeout: float = DATA_TIMEOUT
    """Seconds without a batch after which the run gives up."""
    precision: str = "auto"
    """auto, fp32, tf32 or bf16: what the nets compute in; weights and losses stay fp32."""
    step: str = "auto"
    """auto, eager, compiled or graph: how the step runs."""
    mirror: bool = False
    """Flip every image with probability one half."""
    ema_nimg: int = DEFAULT_EMA_NIMG
    """Half-life in images of the generator's moving average; 0 for none."""
    netG: str | None = None  # noqa: N815  # the ancestors' spelling
    """State dict to start the generator from."""
    netD: str | None = None  # noqa: N815
    """State dict to start the discriminator from."""
    deterministic: bool = False
    """Take only kernels that give the same bits each time, and keep the number of threads."""
    dry_run: bool = False
    """One step, all files, and end."""
    log_every: int = 50
    """Steps in a tick."""
    sample_every: int = 500
    """Steps between two sample grids."""
    checkpoint_every: float = 5.0
    """Minutes between two checkpoints; 0 for one after each step."""
    keep: int = 2
    """Newest checkpoints that stay, beside the best one."""
    max_time: float | None = None
    """Minutes after which the run saves and ends."""
    on_trouble: str = "warn"
    """warn, rollback or stop: what an alarm leads to."""
    evaluate_every: int | None = None
    """Steps between two measurements of the sliced Wasserstein distance; None for none."""
    allow_change: bool = False
    """Go on with a run under other options than it began with."""
    ranks: int = 1
    """Processes that train together; no option, but what torchrun started."""

    FREE: ClassVar[frozenset[str]] = frozenset(
        {
            *("run", "workers", "cache", "data_timeout", "epochs", "max_steps", "max_time"),
            *("dry_run", "log_every", "sample_every", "checkpoint_every", "keep"),
            *("evaluate_every", "on_trouble", "allow_change"),
            "ranks",  # which `Past.check` looks at
        }
    )
    """May differ when a run goes on: they change nothing of what a step computes."""

    BY_CONTENT: ClassVar[frozenset[str]] = frozenset({"shards"})
    """May be spelled otherwise then: `go_on` looks at what they lead to."""

    FIXED: ClassVar[frozenset[str]] = frozenset(
        {"batch_size", "image_size", "channels", "nz", "ngf", "ndf"}
    )
    """May never differ then: other nets, or another count of images."""

    def __post_init__(self) -> None:
        for field, (holds, wanted) in _CHECKS.items():
            value = getattr(self, field)
            if value is not None and not holds(value):
                raise UserError(_flag(field), str(value), wanted, "correct it, or leave it out")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps until the run ends by itself."""
        if self.dry_run:
            return 1
        limits = [self.max_steps] if self.max_steps is not None else []
        if self.epochs is not None:
            limits.append(self.epochs * steps_per_epoch)
        return min(limits, default=DEFAULT_EPOCHS * steps_per_epoch)

    def differences(self, saved: dict[str, Any]) -> dict[str, str]:
        """Compare with the options of a run that goes on, as far as they count by their words.

        Args:
            saved: as `to_json` gave them, perhaps in another version.

        Returns:
            For each option that differs, by its name here, a few words.
        """
        return {
            name: f"{_flag(name)} {_said(value)} (was {_said(saved[name])})"
            for name, value in self.to_json().items()
            if name in saved and name not in self.FREE | self.BY_CONTENT and saved[name] != value
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, for `config.json`."""
        return asdict(self)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


_COUNTS = (
    *("batch_size", "nz", "ngf", "ndf", "epochs", "max_steps"),
    *("log_every", "sample_every", "keep", "evaluate_every"),
)
TROUBLE = ("warn", "rollback", "stop")
CACHES = ("device", "host", "auto", "off")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
STEPS = ("auto", "eager", "compiled", "graph")

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # Bounded, so that no product of theirs leaves the range of a C integer or of a time
    **dict.fromkeys(_COUNTS, (lambda value: 1 <= value <= 10**12, "from 1 to 10^12")),
    # Many more, and the system refuses the threads, which ends the process
    "workers": (lambda value: 1 <= value <= 1024, "from 1 to 1024"),
    "cache": (
        lambda value: value in CACHES,
        "device, host, auto or off",
    ),
    "data_timeout": (lambda value: 1 <= value <= 10**9, "from 1 s to 10^9 s"),
    "seed": (lambda value: 0 <= value < 2**63, "0 or more, below 2^63"),
    **dict.fromkeys(("lr", "lr_d", "lr_g"), (lambda value: 0 < value < 1, "between 0 and 1")),
    "label_smoothing": (lambda value: 0 <= value < 0.5, "0 or more, below 0.5"),
    "checkpoint_every": (lambda value: 0 <= value <= 10**6, "from 0 to 10^6 minutes"),
    "max_time": (lambda value: 0 <= value <= 10**6, "from 0 to 10^6 minutes"),
    "on_trouble": (lambda value: value in TROUBLE, f"one of {', '.join(TROUBLE)}"),
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "step": (lambda value: value in STEPS, f"one of {', '.join(STEPS)}"),
    "ema_nimg": (lambda value: 0 <= value <= 10**12, "from 0 to 10^12"),
    "beta1": (lambda value: 0 <= value < 1, "0 or more, below 1"),
}
