"""The model card: what a run knows, in the form in which hubs read it.

The front matter is YAML as huggingface.co/docs/hub/model-cards describes it. Whatever comes from a
run's files or from the command line is text in it: a name can add no markup, link, key or script.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import jinja2

from dcgan.exporting.onnx_net import Difference
from dcgan.metrics import NAMES
from dcgan.nets.models import Generator, count_parameters
from dcgan.options import ExportOptions, RunLabels, TrainConfig
from dcgan.reporting import words
from dcgan.reporting.read import Metric, RunRecord
from dcgan.sampling.labels import each_label
from pipeline.errors import plain
from pipeline.images.size import shown_size

_MARKUP = re.compile(r"[\\`*_\[\]<>|~$@:&#]|\.(?!\d)|(?<!\d)\.")
"""What may be markup in Markdown wherever it stands; of GitHub's, too, which makes links of bare
addresses, `www.` and names behind `@`."""

_OF_A_HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
"""An owner and a data set."""


OF_A_MACHINE = frozenset(("precision", "step", "tune", "device"))
"""Options that say how a step is computed, and nothing to those who take the net."""


class _Ready(str):
    """Markdown or code of our own, to which `_text` adds nothing."""

    __slots__ = ()


def title_of(net: Generator, options: ExportOptions) -> str:
    """Name a net as a card's heading does."""
    of = f" trained on {options.data_name}" if options.data_name else ""
    return f"DCGAN generator{of}, {shown_size(net.image_size)}"


def version_of(package: str) -> str:
    """The version of a package, whatever its distribution is called: onnxruntime has several."""
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def card(
    net: Generator,
    file: str,
    nimg: int,
    labels: RunLabels | None,
    record: RunRecord,
    options: ExportOptions,
    difference: Difference,
    digests: Mapping[str, str],
    software: str,
) -> str:
    """Write the card of a net whose file in the run is called `file`.

    It has seen `nimg` real images; `digests` are the SHA-256 of the folder's other files, by name,
    and `software` wrote these.
    """
    environment = jinja2.Environment(  # noqa: S701  # for HTML; `_text` is for Markdown
        loader=jinja2.PackageLoader("dcgan.exporting", "assets"),
        undefined=jinja2.StrictUndefined,
        finalize=_text,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    name, metrics = options.data_name, _last(record.metrics, file)
    by_label = any(each.label is not None for each in metrics)
    return environment.get_template("card.md").render(
        license=_Ready(json.dumps(plain(options.license or "unknown"))),
        hub_data=_Ready(json.dumps(name)) if name and _OF_A_HUB.fullmatch(name) else None,
        title=title_of(net, options),
        size=shown_size(net.image_size),
        channels=net.options["--channels"],
        nz=net.options["--nz"],
        parameters=f"{count_parameters(net):,}",
        averaged=file == record.folder.generator_average.name,
        labels=labels and labels.describe(),
        kind=labels and labels.kind,
        example=labels and _Ready(ascii(each_label(labels.space)[0].name)),
        label_count=labels and len(labels.names),
        data_name=name,
        data_license=options.data_license,
        nimg=words.count(nimg),
        batch=words.plain(record.config.get("batch_size")),
        unfinished=record.status not in ("Training finished", "unknown"),
        options=_Ready(_options_of(record.config)),
        metrics=[_row(each, by_label) for each in metrics],
        by_label=by_label,
        made=[*dict.fromkeys(map(_made, metrics))],
        versions={name: version_of(name) for name in ("torch", "onnxruntime")},
        difference={"images": f"{difference.images:.1e}", "levels": difference.levels},
        digests={_Ready(name): each for name, each in digests.items()},
        page="playground.html" in digests,
        software=software,
        command=_Ready(_command(record.name, options)),
    )


def _text(value: object) -> str:
    """Escape what Markdown would take for markup; nothing has more than a report shows of it."""
    if isinstance(value, _Ready):
        return value
    return _MARKUP.sub(r"\\\g<0>", plain(words.short(value)))


def _options_of(config: Mapping[str, Any]) -> str:
    """The options that decide what a step computes, as they are typed; of paths, the last part."""
    lines = []
    for name in TrainConfig.model_fields:
        value = config.get(name)
        decides = TrainConfig.on_resume(name) in ("same", "fixed") and name not in OF_A_MACHINE
        if decides and value not in (None, False):
            value = PurePath(value).name if name in ("netG", "netD") else value
            word = "" if value is True else f" {shlex.quote(words.plain(value))}"
            lines.append(plain(f"{TrainConfig.flag(name)}{word}"))
    return "\n".join(lines)


def _last(metrics: list[Metric], file: str) -> list[Metric]:
    """Each metric of a net after most images."""
    ordered = sorted(metrics, key=lambda each: each.nimg)
    own = {(each.metric, each.label): each for each in ordered if each.net == file}
    return [*own.values()][: words.MOST_ROWS]


def _row(each: Metric, by_label: bool) -> tuple[str, ...]:
    name, *numbers = (
        NAMES.get(each.metric, each.metric),
        words.number(each.value),
        words.number(each.floor),
        words.count(each.n),
        words.count(each.nimg),
    )
    return (name, *([each.label or ""] if by_label else []), *numbers)


def _made(each: Metric) -> tuple[str, str]:
    """A metric, and how it was measured."""
    digest = f", digest {each.digest}" if each.digest else ""
    unlike = "" if each.comparable else ", not comparable with published numbers"
    how = f"{each.recipe}; {each.extractor}{digest}{unlike}"
    return NAMES.get(each.metric, each.metric), how


def _command(run: str, options: ExportOptions) -> str:
    """The command without the reader's paths."""
    said = ("license", "data_name", "data_license")
    given = [(options.flag(name), getattr(options, name)) for name in said]
    texts = [words.short(word) for pair in given if pair[1] is not None for word in pair]
    raw = ["--raw-net"] if options.raw_net else []
    return plain(shlex.join(["dcgan-export", run, *raw, *texts]))
