"""One run as one page: what stands in it, and how it becomes a file that needs no other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from dcgan.reporting import charts
from dcgan.reporting.images import MOST_GRIDS, Packed, Picture, pack_pictures, spread
from dcgan.reporting.read import Metric, RunRecord
from dcgan.reporting.words import MOST_ROWS, count, duration, flat, number, short

LIMIT = 15_000_000
"""Bytes of a page, at most."""

METRIC_NAMES = {"swd": "SWD", "fid": "FID", "kid": "KID", "neighbours": "neighbours"}

MOST_SCALES = 10
"""Of a sliced Wasserstein distance, named in a cell; images of 1024 pixels have seven."""

RUN_SECTIONS = (
    *(("summary", "Summary"), ("samples", "Samples"), ("curves", "Curves")),
    *(("throughput", "Throughput"), ("metrics", "Metrics"), ("alarms", "Alarms")),
    *(("options", "Options"), ("environment", "Environment")),
)


@dataclass(frozen=True)
class Slide:
    """A place of the slider."""

    label: str
    picture: Picture


def run_page(record: RunRecord, version: str) -> str:
    """The report of a run.

    Args:
        record: of the run.
        version: of this program, to be named in the page.
    """
    folder = record.folder
    grids = folder.grids()
    chosen = spread(grids, MOST_GRIDS)
    reals, neighbours = folder.reals, folder.neighbours
    fixed = _fixed_of_run(record)
    values = {**fixed, "left_out": _left_out(len(chosen), len(grids))}

    def page(packed: Packed) -> str:
        pictures = packed.pictures
        slides = [
            Slide(f"{nimg:,} images", pictures[path]) for nimg, path in chosen if path in pictures
        ]
        # The page's own <img> holds the last one; the script takes it from there
        sources = [slide.picture.src for slide in slides[:-1]] + [""]
        return render(
            "run.html",
            version,
            {
                **values,
                "grids": slides,
                "slides": [
                    {"label": slide.label, "src": src}
                    for slide, src in zip(slides, sources, strict=False)
                ],
                "reals": pictures.get(reals),
                "neighbours": pictures.get(neighbours),
                "notes": [short(note) for note in [*record.notes, *packed.notes]][:MOST_ROWS],
            },
        )

    return within_limit(page, [reals, neighbours, *(path for _, path in chosen)])


def within_limit(page: Callable[[Packed], str], paths: list[Path]) -> str:
    """Fill a page with pictures that are as large as the limit allows.

    Args:
        page: makes it from pictures.
        paths: of the pictures.
    """
    bare = len(page(Packed({}, [])).encode(errors="replace"))
    words = 1_000 * (len(paths) + 1)  # around each picture, and its remark
    return page(pack_pictures(paths, LIMIT - bare - words))


def render(template: str, version: str, values: Mapping[str, Any]) -> str:
    """Fill a template; whatever comes from files is escaped.

    Args:
        template: a file in `assets`.
        version: of this program.
        values: for the template; `figures` are charts by name.
    """
    assets = resources.files("dcgan.reporting") / "assets"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcgan.reporting", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (assets / "page.js").read_text(encoding="utf-8")
    library = plotly_script() if values["figures"] else ""
    return environment.get_template(template).render(
        **values,
        version=version,
        policy=_policy(script, library),
        # Ours, and plotly's: nothing that a run's files hold
        style=Markup((assets / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        plotly=Markup(library),  # noqa: S704
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
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


def _fixed_of_run(record: RunRecord) -> dict[str, Any]:
    """All but the pictures."""
    metrics, alarms = record.metrics[-MOST_ROWS:], record.alarms[-MOST_ROWS:]
    last = {(each.metric, each.net): place for place, each in enumerate(metrics)}
    earlier = [each for place, each in enumerate(metrics) if place not in last.values()]
    return {
        "title": f"{short(record.name)} · DCGAN report",
        "name": short(record.name),
        "status": short(record.status),
        "tone": tone(record.status),
        "sections": RUN_SECTIONS,
        "tiles": _tiles(record),
        "figures": figures_of(record),
        "curves": _said_of_curves(record),
        "options": flat(record.config),
        "environment": flat(record.environment),
        "metrics_head": [
            *("metric", "images", "net", "value", "floor", "n"),
            *("per scale", "recipe", "extractor", "shards"),
        ],
        "latest": [metric_row(metrics[place]) for place in last.values()],
        "metrics": [metric_row(metric) for metric in reversed(earlier)],
        "metrics_cut": _cut(len(metrics), len(record.metrics)),
        "alarms": [
            tuple(map(short, (a.kind, count(a.step), count(a.nimg), a.message, a.action)))
            for a in reversed(alarms)
        ],
        "alarms_cut": _cut(len(alarms), len(record.alarms)),
    }


def tone(status: str) -> str:
    """How a status looks."""
    if status == "Training finished":
        return "good"
    return "bad" if status.startswith("Training broke off") else "warn"


def figures_of(record: RunRecord) -> dict[str, charts.Figure]:
    """A run's charts, those that there is something to draw for."""
    figures = {}
    if record.steps.size or record.ticks:
        figures = {"losses": charts.losses(record), "judgements": charts.judgements(record)}
    if record.ticks:
        figures["pace"] = charts.pace(record)
    measured = record.measured("swd")
    if len(measured) > 1:
        figures["swd"] = charts.swd(measured)
    return figures


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The summary: what, how much, and a word on it."""
    last = {name: _last(record, name) for name in ("loss_d", "loss_g", "d_x", "d_gz1")}
    epochs = record.ticks[-1].epoch if record.ticks else None
    of_last = "at the last tick" if record.ticks else "of the last step"
    tiles = [
        ("Images seen", count(record.nimg), "" if epochs is None else f"{epochs:,} epochs done"),
        ("Steps", count(record.steps_done), ""),
        ("Time in steps", duration(record.seconds), ""),
        ("Images a second", number(record.median("img_per_s"), 3), "median of the ticks"),
        ("Data wait", percent(record.median("data_wait_pct")), "median of the ticks"),
        ("Loss_D", number(last["loss_d"]), of_last),
        ("Loss_G", number(last["loss_g"]), of_last),
        ("D(x)", number(last["d_x"], 3), of_last),
        ("D(G(z))", number(last["d_gz1"], 3), of_last),
    ]
    best = best_of(record, "swd")
    said = "not measured" if best is None else f"after {best.nimg:,} images"
    return [*tiles, ("Best SWD", number(best.value if best else None), said)]


def _last(record: RunRecord, name: str) -> float | None:
    if record.ticks:
        value: float | None = getattr(record.ticks[-1], name)
        return value
    return float(record.curves[name][-1]) if record.steps.size else None


def percent(value: float | None) -> str:
    """With one decimal."""
    return number(None) if value is None else f"{value:.1f} %"


def best_of(record: RunRecord, metric: str) -> Metric | None:
    """The lowest value of a metric."""
    return min(record.measured(metric), key=lambda each: each.value, default=None)


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
        *(METRIC_NAMES.get(metric.metric, metric.metric), count(metric.nimg), metric.net),
        *(number(metric.value), number(metric.floor), count(metric.n)),
        *(" · ".join(scales), metric.recipe, metric.extractor + digest + unlike, metric.shards),
    )
    return tuple(map(short, cells))


def _said_of_curves(record: RunRecord) -> str:
    """How the curves were made; empty where there are none."""
    if not record.steps.size and not record.ticks:
        return ""
    if not record.steps.size:
        return "Means of each tick: losses.csv has no row."
    said = "Every step faint, running means over a fiftieth of the run strong."
    broken = ~np.isfinite(np.stack(list(record.curves.values())))
    if steps := int(broken.any(axis=0).sum()):
        said += f" Steps with a value that is not finite, left blank: {steps:,}."
    if record.steps.size > charts.MOST_POINTS:
        said += (
            f" Of {record.steps.size:,} steps, {charts.MOST_POINTS:,} are drawn: "
            "the lowest and the highest of each stretch, so that no spike is lost."
        )
    return said


def _left_out(shown: int, all_: int) -> str:
    return f"{shown} of {all_:,} grids, evenly chosen." if shown < all_ else ""


def _cut(shown: int, all_: int) -> str:
    return f" The last {shown} of {all_:,}." if shown < all_ else ""
