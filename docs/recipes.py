"""Compare recipes at equal images seen, and write the tables of recipes.md: `make recipes`.

Each recipe is trained with each seed by `dcgan-train`, to one budget after the other, and measured
there by `dcgan-evaluate`. All that is known of a run is in its folder, so that the same command
goes on where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, NamedTuple

import typer
from PIL import Image, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from dcgan.metrics import NAMES  # noqa: E402
from dcgan.metrics.faces import FaceRecogniser  # noqa: E402
from dcgan.metrics.pretrained import Inception  # noqa: E402
from dcgan.options import EvaluateOptions, TrainConfig  # noqa: E402
from dcgan.rundir.folder import RunFolder, read_lines  # noqa: E402
from dcgan.sampling.pictures import PAPER, open_picture, under_heading  # noqa: E402
from pipeline.errors import UserError, plain_errors  # noqa: E402
from pipeline.files import write_whole  # noqa: E402
from pipeline.shards.shard_set import ShardSet  # noqa: E402

PAGE = ROOT / "docs/recipes.md"
BEGIN, END = "<!-- made by make recipes -->\n", "<!-- until here -->\n"

YARDSTICK: dict[str, Any] = {"batch_size": 64, "lr": 2e-4, "ngf": 32, "ndf": 32}
"""What all recipes begin with: a quarter of the default nets' products, so that a CPU suffices."""

DEFAULT = {name: TrainConfig.model_fields[name].default for name in ("batch_size", "lr")}

RECIPES: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "default": DEFAULT,
    "batch-32": {"batch_size": 32},
    "batch-16": {"batch_size": 16},
    "lr-8e-4": {"lr": 8e-4},
    "batch-32-lr-4e-4": {"batch_size": 32, "lr": 4e-4},
    "diffaugment": {"augment": "diff"},
    "default-diffaugment": DEFAULT | {"augment": "diff"},
    "tutorial-wide": {"batch_size": 128, "ngf": 64, "ndf": 64},
    "default-wide": DEFAULT | {"ngf": 64, "ndf": 64},
}
"""What each recipe changes."""

METRICS = "swd", "faces", "fid"

BUDGET = 1000
"""What budgets are multiples of: a run may see a part of a batch more."""

OUT_OF_TIME = 75
"""Exit status of a run that `--max-time` ended."""


def main(
    shards: Annotated[Path, typer.Argument(help="Shard set to train on.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs, of every set.")] = Path("recipes"),
    recipes: Annotated[
        str, typer.Option(help=f"Recipes, with commas: {', '.join(RECIPES)}.")
    ] = "tutorial,default",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "1,2,3",
    budgets: Annotated[
        str, typer.Option(help="Images seen at which nets are measured, with commas.")
    ] = "32000,64000,96000",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    minutes: Annotated[float, typer.Option(help="Minutes after which to stop.")] = 60.0,
    n: Annotated[int, typer.Option(help="Samples for SWD.")] = 1000,
    faces: Annotated[int, typer.Option(help="Samples for faces; 0 for sets of no faces.")] = 200,
    weights: Annotated[
        Path | None, typer.Option(help="InceptionV3's weights, to measure FID too.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also show samples of the first seeds side by side here.")
    ] = None,
) -> None:
    """Train recipes × seeds to equal numbers of images, measure them, and write docs/recipes.md."""
    ends = time.monotonic() + 60 * minutes
    names, points = recipes.split(","), sorted(_numbers("--budgets", budgets))
    if unknown := [name for name in names if name not in RECIPES]:
        known = ", ".join(RECIPES)
        raise UserError("--recipes", ", ".join(unknown), f"some of {known}", "correct it")
    if not all(point > 0 and point % BUDGET == 0 for point in points):
        raise UserError("--budgets", budgets, f"multiples of {BUDGET:,}", "correct it")
    ShardSet.open(shards)
    judges = ["--n", n, *(["--faces", "--faces-n", faces] if faces else [])]
    judges += [] if weights is None else ["--weights", weights]
    wanted = {"swd", *(["faces"] if faces else []), *([] if weights is None else ["fid"])}
    _require_judges(n, faces, weights)
    for seed in _numbers("--seeds", seeds):
        for name in names:
            run = RunFolder(out / shards.resolve().name / f"{name}-{seed}")
            options = YARDSTICK | RECIPES[name] | {"image_size": size, "seed": seed}
            for budget in points:
                if not wanted <= _measured(run, budget).keys():
                    if not _train(shards, run, options, budget, ends - time.monotonic()):
                        typer.echo("out of time; the same command goes on")
                        write(out)
                        return
                    _call("evaluate", run.path, *judges)
    write(out)
    if picture is not None:
        folder = out / shards.resolve().name
        first = _numbers("--seeds", seeds)[0]
        save_picture({name: RunFolder(folder / f"{name}-{first}") for name in names}, picture)


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(flag, text, "whole numbers, with commas", "correct it") from None


def _require_judges(n: int, faces: int, weights: Path | None) -> None:
    """Refuse what could not be measured, before hours of training."""
    EvaluateOptions(net=ROOT, n=n, **({"faces_n": faces} if faces else {}))
    if faces:
        FaceRecogniser()
    if weights is not None:
        Inception(weights, torch.device("cpu"))


def _train(
    shards: Path, run: RunFolder, options: dict[str, Any], budget: int, seconds: float
) -> bool:
    """Train a run up to a number of images; false if the time was not enough."""
    steps = -(-budget // options["batch_size"])
    given = options | {"max_steps": steps, "max_time": max(seconds, 0) / 60}
    words = [word for name, value in given.items() for word in _words(name, value)]
    return _call("train", "--shards", shards, "--run", run.path, *words) != OUT_OF_TIME


def _words(name: str, value: Any) -> list[str]:
    flag = TrainConfig.flag(name)
    return [flag] if value is True else [flag, str(value)]


def _call(command: str, *words: object) -> int:
    done = subprocess.run([sys.executable, "-m", f"dcgan.{command}", *map(str, words)], check=False)
    if done.returncode not in (0, OUT_OF_TIME):
        raise UserError(f"dcgan-{command}", f"status {done.returncode}", "success", "see above")
    return done.returncode


def _measured(run: RunFolder, budget: int) -> dict[str, dict[str, Any]]:
    """Return what was measured of the average at a budget, on the run's own set, by metric."""
    options = run.options() if run.config.exists() else {}
    return {
        line["metric"]: line
        for line in read_lines(run.metrics)
        if budget <= line["nimg"] < budget + options["batch_size"]
        and (line["net"], line["shards"]) == (run.generator_average.name, options["shard_set"])
    }


def _minutes(run: RunFolder, budget: int) -> float:
    """Return how long a run has trained, up to a budget."""
    ticks = read_lines(run.stats)
    steps = [tick["step"] for tick in ticks]
    return (
        sum(
            (step - before) * tick["step_ms"]
            for step, before, tick in zip(steps, [0, *steps], ticks, strict=False)
            if (step - 1) * tick["nimg"] / step < budget
        )
        / 60_000
    )


# The page


class Runs(NamedTuple):
    """Runs on one set at one size, by recipe."""

    reals: str
    by_recipe: dict[str, list[RunFolder]]


def write(out: Path) -> None:
    """Write a table for each set and size into the page, between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    try:
        tables = [_section(runs) for runs in _groups(out)]
    except (KeyError, TypeError, ValueError, OSError) as error:
        found = f"a run that cannot be read ({type(error).__name__}: {error})"
        wanted, remedy = "runs as this command makes them", "restore it, or move it away"
        raise UserError(f"--out {out}", found, wanted, remedy) from error
    if not tables:
        return
    page = before + BEGIN + "\n\n".join(["", *tables, ""]) + END + rest.partition(END)[2]
    write_whole(PAGE, page.encode())
    typer.echo(f"written to {PAGE}")


def save_picture(runs: dict[str, RunFolder], path: Path) -> None:
    """Put the last grids of several runs side by side, each below its recipe's name."""
    font, gap = ImageFont.load_default(size=20), 14
    panels = [
        under_heading(open_picture(run.grids()[-1][1]), name, font) for name, run in runs.items()
    ]
    width = sum(panel.width + gap for panel in panels) - gap
    sheet = Image.new("RGB", (width, max(panel.height for panel in panels)), PAPER)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    sheet.save(path, quality=88)


def _groups(out: Path) -> list[Runs]:
    found: dict[tuple[Any, ...], Runs] = {}
    for config in sorted(out.glob("*/*/config.json")):
        run = RunFolder(config.parent)
        lines = read_lines(run.metrics)
        if lines:
            options, images = run.options(), lines[-1]["recipe"]
            total = len(ShardSet.open(Path(options["shards"])))
            key = lines[-1]["shards"], options["image_size"], options["precision"]
            runs = found.setdefault(key, Runs(f"{total:,} images, {images}", {}))
            runs.by_recipe.setdefault(config.parent.name.rpartition("-")[0], []).append(run)
    return list(found.values())


def _section(runs: Runs) -> str:
    """A line of facts, and a table with a row for each budget and recipe."""
    every = [run for group in runs.by_recipe.values() for run in group]
    lines = [line for run in every for line in read_lines(run.metrics)]
    metrics = [metric for metric in METRICS if any(line["metric"] == metric for line in lines)]
    floors = {line["metric"]: f"{line['floor']:.3g} (n = {line['n']:,})" for line in lines}
    real = ", ".join(f"{NAMES[metric]} {floors[metric]}" for metric in metrics)
    machine = json.loads(every[0].environment.read_text())
    facts = (
        f"{runs.reals}. {every[0].options()['precision']}, {machine['device_name']}, cores used:"
        f" {machine['cpus']}. Real against real: {real}."
    )
    heads = ["images seen", "recipe", "seeds", "minutes", *map(NAMES.__getitem__, metrics)]
    rows = [heads, ["---:", "---", "---:", "---:", *["---:"] * len(metrics)]]
    for budget in sorted({BUDGET * round(line["nimg"] / BUDGET) for line in lines}):
        for recipe, group in runs.by_recipe.items():
            found = [(run, _measured(run, budget)) for run in group]
            found = [(run, measured) for run, measured in found if measured]
            if found:
                minutes = _spread([_minutes(run, budget) for run, _ in found])
                values = [
                    _spread([each[metric]["value"] for _, each in found if metric in each])
                    for metric in metrics
                ]
                rows.append([f"{budget:,}", recipe, str(len(found)), minutes, *values])
    return facts + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: Sequence[float]) -> str:
    """Return the mean, and the least and the largest value if there are several."""
    if not values:
        return "–"
    middle, least, largest = map(_rounded, (mean(values), min(values), max(values)))
    return middle + (f" ({least}–{largest})" if len(values) > 1 else "")


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    with plain_errors():
        typer.run(main)
