"""Run folders as training leaves them, written directly: for the tests of the report."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcgan.rundir.folder import RunFolder

BATCH = 16
HEADER = "step,loss_d,loss_g,d_x,d_gz1,d_gz2"

CONFIG = {"shards": "faces/", "run": "runs/0001", "batch_size": BATCH, "lr": 0.0002, "epochs": None}
ENVIRONMENT = {"command": ["dcgan-train", "--shards", "my faces/"], "packages": {"torch": "2.14.1"}}


def write_run(
    path: Path,
    steps: int = 120,
    log_every: int = 20,
    grids: int = 4,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> RunFolder:
    """A finished run; grid k of the n is a plain red of level 40 + 20·k in every cell."""
    run = RunFolder(path)
    run.samples.mkdir(parents=True)
    run.config.write_text(json.dumps({**CONFIG, "run": str(path), **(config or {})}))
    run.environment.write_text(json.dumps(ENVIRONMENT))
    random = np.random.default_rng(seed)
    rows = [values_of(step, random) for step in range(1, steps + 1)]
    lines = (",".join(map(str, (step, *row))) for step, row in enumerate(rows, start=1))
    run.losses_csv.write_text("\n".join([HEADER, *lines]) + "\n")
    ticks = range(log_every, steps + 1, log_every)
    write_lines(run.stats, (tick_of(step, rows[step - 1]) for step in ticks))
    ends = [round(steps * (place + 1) / grids) for place in range(grids)]
    for place, step in enumerate(ends):
        save_plain(run.fakes(step * BATCH), (40 + 20 * place) % 256)
    save_plain(run.reals, 200)
    run.log.write_text(f"Starting training\nTraining finished: {steps} steps, in 0:01:00\n")
    return run


def values_of(step: int, random: np.random.Generator) -> tuple[float, ...]:
    decay = math.exp(-step / 60)
    noise = random.normal(0, 0.05, 5)
    level = (0.6 + decay, 2.0 + 6 * decay, 0.75, 0.25, 0.15)
    return tuple((np.array(level) * (1 + noise)).round(6).tolist())


def tick_of(step: int, row: tuple[float, ...]) -> dict[str, Any]:
    names = HEADER.split(",")[1:]
    pace = {"step_ms": 20.0 + step % 7, "img_per_s": 800.0 - step % 50, "data_wait_pct": 1.5}
    times = {"step": step, "epoch": step // 50, "nimg": step * BATCH}
    return {**times, **dict(zip(names, row, strict=True)), **pace}


def metric_of(nimg: int, value: float, **changes: Any) -> dict[str, Any]:
    row = {
        "nimg": nimg,
        "net": "netG_ema.pt",
        "metric": "swd",
        "value": value,
        "floor": 4.0,
        "n": 2048,
        "scales": {"64": value + 1, "32": value - 1},
        "floor_scales": {"64": 4.5},
        "recipe": "swd 1",
        "extractor": "none",
        "digest": None,
        "comparable": True,
        "shards": "faces, 8,000 images",
    }
    return row | changes


def alarm_of(step: int, message: str = "D tells real from fake without effort") -> dict[str, Any]:
    times = {"step": step, "nimg": step * BATCH}
    return {**times, "kind": "saturation", "message": message, "action": "warn"}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_plain(path: Path, level: int, side: int = 68) -> None:
    Image.new("RGB", (side, side), (level, 30, 60)).save(path)


def save_noise(path: Path, side: int, seed: int) -> None:
    """The worst case for any encoder."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)
