"""One run as one page: what stands in it, and how it becomes a file that needs no other."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from dcgan.cli import version
from dcgan.metrics import NAMES
from dcgan.reporting import charts
from dcgan.reporting.images import MOST_GRIDS, Packed, pack_pictures
from dcgan.reporting.read import Metric, RunRecord
from dcgan.reporting.words import MOST_ROWS, count, duration, flat, number, percent, short
from dcgan.rundir.curves import MOST_POINTS, spread

LIMIT = 15_000_000
"""Bytes of a page, at most."""

MOST_SCALES = 10
"""Scales that a cell of a table names; images of 1024 pixels have seven."""


def run_page(record: RunRecord, beside: Path | None = None) -> str:
    """Write the report of a run, as HTML with links from the folder `beside`, or the run's."""
    folder = record.folder
    grids = folder.grids()
    chosen = spread(grids, MOST_GRIDS)
    values = run_values(record)
    values["playground"] = _link(folder.export / "playground.html", beside or folder.path)
    if len(chosen) < len(grids):
        values["left_out"] = f"{len(chosen)} of {len(grids):,} grids, evenly chosen."

    def page(packed: Packed) -> str:
        pictures = packed.pictures
        shown = [
            {"label": f"{nimg:,} images", "picture": pictures[path]}
            for nimg, path in chosen
            if path in pictures
        ]
        return render(
            "run.html",
            {
                **values,
                "grids": shown,
                "reals": pictures.get(folder.reals),
                "neighbours": pictures.get(folder.neighbours),
                "notes": [short(note) for note in [*record.notes, *packed.notes]][:MOST_ROWS],
            },
        )

    return within_limit(page, [folder.reals, folder.neighbours, *(path for _, path in chosen)])


def _link(page: Path, beside: Path) -> str:
    """The way from a folder to a page, as a link has it; empty where there is no such page."""
    way = os.path.relpath(page.resolve(), beside.resolve()) if page.is_file() else ""
    return quote(os.fsencode(way))


def within_limit(page: Callable[[Packed], str], paths: list[Path]) -> str:
    """Fill a page, made by `page`, with pictures that are as large as the limit allows."""
    bare = len(page(Packed({}, [])).encode(errors="replace"))
    words = 1_000 * (len(paths) + 1)  # around each picture, and its remark
    return page(pack_pictures(paths, LIMIT - bare - words))


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of `assets`; whatever comes from files is escaped.

    Of its values, `figures` are charts by name.
    """
    assets = resources.files("dcgan.reporting") / "assets"
    script = (assets / "page.js").read_text(encoding="utf-8")
    library = plotly_script() if values["figures"] else ""
    return (
        templates("dcgan.reporting")
        .get_template(template)
        .render(
            **values,
            version=version(),
            policy=_policy(script, library),
            # Ours, and plotly's: nothing that a run's files hold
            style=Markup((assets / "style.css").read_text(encoding="utf-8")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            plotly=Markup(library),  # noqa: S704
            written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        )
    )


def templates(package: str) -> jinja2.Environment:
    """The HTML templates among a package's assets; whatever they are filled with is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def plotly_script() -> str:
    """Plotly's own, from the installed package."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text


def _policy(*scripts: str) -> str:
    """A policy under which nothing is loaded from anywhere, and no script runs but these.

    Plotly writes its style sheet itself, hence `unsafe-inline` there.
    """
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts if script)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def run_values(record: RunRecord) -> dict[str, Any]:
    """Gather what the template of a run needs, apart from pictures and notes."""
    whole = [metric for metric in record.metrics if metric.label is None]
    metrics, alarms = whole[-MOST_ROWS:], record.alarms[-MOST_ROWS:]
    last = {(each.metric, each.net): place for place, each in enumerate(metrics)}.values()
    earlier = [each for place, each in enumerate(metrics) if place not in last]
    return {
        "name": short(record.name),
        "status": short(record.status),
        "tone": _tone(record.status),
        "tiles": _tiles(record),
        "figures": _figures(record),
        "curves": _about_curves(record),
        "options": flat(record.options),
        "environment": flat(record.environment),
        "latest": [metric_row(metrics[place]) for place in last],
        "metrics": [metric_row(metric) for metric in reversed(earlier)],
        "metrics_cut": _cut(len(metrics), len(whole)),
        "by_label": _by_label(record),
        "conditional": record.config.get("conditional") is True,
        "alarms": [
            tuple(map(short, (a.kind, count(a.step), count(a.nimg), a.message, a.action)))
            for a in reversed(alarms)
        ],
        "alarms_cut": _cut(len(alarms), len(record.alarms)),
        "left_out": "",
        "playground": "",
    }


def _tone(status: str) -> str:
    if status == "Training finished":
        return "good"
    return "bad" if status.startswith("Training broke off") else "warn"


def _figures(record: RunRecord) -> dict[str, charts.Figure]:
    """The charts for which there is something to draw."""
    figures = {}
    if record.steps.size or record.ticks:
        figures = {"losses": charts.losses(record), "probabilities": charts.probabilities(record)}
    if record.ticks:
        figures["pace"] = charts.pace(record)
    measured = record.measured("swd")
    if len(measured) > 1:
        figures["swd"] = charts.swd(measured)
    return figures


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The summary: what, how much, and a word on it."""
    tick = record.ticks[-1] if record.ticks else None
    when = "at the last status line" if tick else "of the last step"

    def last(name: str, digits: int = 4) -> str:
        value = getattr(tick, name) if tick else record.curves[name][-1:].sum()
        return number(value if tick or record.steps.size else None, digits)

    best = record.best("swd")
    epochs = None if tick is None else tick.epoch
    return [
        ("Images seen", count(record.nimg), "" if epochs is None else f"{epochs:,} epochs done"),
        ("Steps", count(record.steps_done), ""),
        ("Time in steps", duration(record.seconds), ""),
        ("Images a second", number(record.median("img_per_s"), 3), "median of the status lines"),
        ("Data wait", percent(record.median("data_wait_pct")), "median of the status lines"),
        ("Loss_D", last("loss_d"), when),
        ("Loss_G", last("loss_g"), when),
        ("D(x)", last("d_x", 3), when),
        ("D(G(z))", last("d_gz1", 3), when),
        (
            "Best SWD",
            number(best.value if best else None),
            f"after {best.nimg:,} images" if best else "not measured",
        ),
    ]


def metric_row(metric: Metric) -> tuple[str, ...]:
    """A metric's cells: the number, and all that says what it is worth."""
    floors = metric.floor_scales or {}
    scales = [
        f"{name}: {number(value)}" + (f" (floor {number(floors[name])})" if name in floors else "")
        for name, value in list((metric.scales or {}).items())[:MOST_SCALES]
    ]
    digest = f", digest {metric.digest[:12]}" if metric.digest else ""
    unlike = "" if metric.comparable else " · not comparable with published numbers"
    cells = (
        NAMES.get(metric.metric, metric.metric),
        count(metric.nimg),
        metric.net,
        number(metric.value),
        number(metric.floor),
        count(metric.n),
        " · ".join(scales),
        metric.recipe,
        metric.extractor + digest + unlike,
        metric.shards,
    )
    return tuple(map(short, cells))


def _by_label(record: RunRecord) -> list[tuple[str, ...]]:
    """Return the cells of each label's last numbers, in the order of their labels."""
    last = {
        (each.label, each.metric, each.net): each
        for each in record.metrics
        if each.label is not None
    }
    return [(short(label), *metric_row(each)[:6]) for (label, *_), each in last.items()][:MOST_ROWS]


def _about_curves(record: RunRecord) -> str:
    """Describe how the curves were made; empty where there are none."""
    if not record.steps.size:
        return "Means of each tick: losses.csv has no row." if record.ticks else ""
    words = "Every step faint, running means over a fiftieth of the run strong."
    broken = ~np.isfinite(np.stack(list(record.curves.values())))
    if steps := int(broken.any(axis=0).sum()):
        words += f" Steps with a value that is not finite, left blank: {steps:,}."
    if record.steps.size > MOST_POINTS:
        words += (
            f" Of {record.steps.size:,} steps, {MOST_POINTS:,} are drawn: "
            "the lowest and the highest of each stretch, so that no spike is lost."
        )
    return words


def _cut(shown: int, all_: int) -> str:
    return f" The last {shown} of {all_:,}." if shown < all_ else ""
