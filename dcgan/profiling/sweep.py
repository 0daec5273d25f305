"""`dcgan-profile sweep`: which settings of the loader suit this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from rich.table import Table

from dcgan.options import MeasuringSet
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import ours
from dcgan.profiling.measuring import Contender, Round, Spread, figures, spreads
from dcgan.profiling.report import Bars, Report, cells, make_table, publish, times
from pipeline.loading.loader import why_not_dali
from pipeline.loading.options import MAX_WORKERS
from pipeline.machine import usable_cores

DEFAULT, TOGETHER = "the default", "the best together"
AGAIN = "the default again"
"""A twin of the default: how far its rate strays from the default's is the noise."""

PREFETCHES = (1, 2, 3, 4, 6)
SHARES = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)

ADVICE = {
    "workers": "dcgan-train --workers {:g}",
    "prefetch": "PREFETCH = {:g} in pipeline/loading/dali.py",
    "decoder_share": "DECODER_SHARE = {:g} in pipeline/loading/dali.py",
}
"""How to set what is swept. The batch size is not here: it is a choice of the training's."""

Setting: TypeAlias = dict[str, float]
"""What is swept, by name: `workers`, `batch_size`, `prefetch`, `decoder_share`."""


@dataclass(frozen=True)
class Race:
    """The rounds of some settings, and what they gain over the default."""

    title: str
    noise: float
    """How far the twin's rate was from the default's, at most; 0.1 for a tenth."""
    gains: Mapping[str, Spread]
    """Times the default's rate."""
    rounds: Mapping[str, Sequence[Round]]

    def exceeds_noise(self, name: str) -> bool:
        return self.gains[name].median - 1 > self.noise

    def rates(self) -> dict[str, Spread]:
        """Images a second."""
        return spreads(figures(self.rounds, "img_per_s"))


def profile(options: MeasuringSet) -> None:
    """Change one setting at a time, then try the best of each together."""
    bench = Bench(options)
    default, candidates, lines = _plan(bench)
    best, races = default, []
    for field, values in candidates.items():
        standard, name = default[field], field.replace("_", " ")
        others = {f"{value:g}": value for value in values if value != standard}
        settings = {shown: default | {field: value} for shown, value in others.items()}
        race = _race(bench, f"{name} (default {standard:g})", default, settings)
        races.append(race)
        chosen, reason = choose(field, standard, race)
        lines.append(reason)
        if chosen is not None:
            best = best | {field: others[chosen]}
    if best != default:
        race = _race(bench, "The best together", default, {TOGETHER: best})
        races.append(race)
        if not race.exceeds_noise(TOGETHER):
            best = default
            lines.append("Together they bring nothing beyond the noise.")
    advice = [
        f"set      {ADVICE[field].format(value)}"
        for field, value in best.items()
        if value != default[field]
    ]
    lines += advice or ["set      nothing: the defaults are as fast as anything tried."]
    report = Report(
        "sweep",
        bench.device,
        bench.facts(),
        [_table(race) for race in races],
        lines,
        [Bars(race.title, "images a second", race.rates()) for race in races],
        bench.data() | {"default": default, "best": best, "sweeps": races},
    )
    publish(report, options)


def _plan(bench: Bench) -> tuple[Setting, dict[str, Sequence[float]], list[str]]:
    """The default, the values to try of each setting, and in words what cannot be varied here."""
    c = bench.conditions
    sizes = {max(1, c.batch_size // 2), c.batch_size, 2 * c.batch_size}
    fitting = sorted(size for size in sizes if size <= len(bench.shards))
    cores = usable_cores()
    threads = sorted({1, 2, cores, cores + 1, min(2 * cores, 2 * MAX_WORKERS)})
    default: Setting = {
        "workers": c.threads,
        "batch_size": c.batch_size,
        "prefetch": 0,
        "decoder_share": 0.0,
    }
    if bench.shards.manifest.recipe.store == "raw":
        why = "A raw set has no decoder: only the batch size can be varied."
        return default, {"batch_size": fitting}, [why]
    if obstacle := why_not_dali(c.device):
        why = f"prefetch depth and decoder share: DALI's, not in use here ({obstacle})."
        return default, {"workers": threads, "batch_size": fitting}, [why]
    from pipeline.loading.dali import DECODER_SHARE, PREFETCH

    default |= {"prefetch": PREFETCH, "decoder_share": DECODER_SHARE}
    candidates: dict[str, Sequence[float]] = {"workers": threads, "prefetch": PREFETCHES}
    if c.device.type != "cuda":
        return default, candidates | {"batch_size": fitting}, ["decoder share: not on a CPU."]
    return default, candidates | {"decoder_share": SHARES, "batch_size": fitting}, []


def _race(bench: Bench, title: str, default: Setting, others: Mapping[str, Setting]) -> Race:
    """Let settings take rounds beside the default and its twin."""
    settings = {DEFAULT: default, AGAIN: default, **others}
    taken = bench.measure(_contender(bench, name, setting) for name, setting in settings.items())
    rate = figures(taken, "img_per_s")
    gain = {name: each / rate[DEFAULT] for name, each in rate.items()}
    noise = float(np.abs(gain[AGAIN] - 1).max())
    return Race(title, noise, spreads(gain), taken)


def _contender(bench: Bench, name: str, setting: Setting) -> Contender:
    workers, batch_size, prefetch = (
        int(setting[field]) for field in ("workers", "batch_size", "prefetch")
    )
    conditions = replace(bench.conditions, workers=workers, batch_size=batch_size)
    if not prefetch:  # not DALI's: the loader's own choice of a decoder
        return ours(name, bench.shards, conditions)
    from pipeline.loading.dali import DaliDecoder

    decoder = DaliDecoder(bench.shards, conditions, prefetch, setting["decoder_share"])
    return ours(name, bench.shards, conditions, decoder, prefetch)


def choose(field: str, standard: float, race: Race) -> tuple[str | None, str]:
    """The value to take, None to keep the default's; and why.

    Args:
        field: what was varied.
        standard: its default.
        race: of other values, by what they are called.
    """
    name, noise = field.replace("_", " "), f"{race.noise:.0%}"
    others = {each: gain for each, gain in race.gains.items() if each not in (DEFAULT, AGAIN)}
    if not others:
        return None, f"{name}: nothing else to try."
    best = max(others, key=lambda each: others[each].median)
    gain = f"{others[best].median - 1:+.0%}"
    if field not in ADVICE:
        return None, (
            f"{name}: the fastest other is {best} ({gain}, noise {noise});"
            " it is a choice of the training's, not the loader's."
        )
    if not race.exceeds_noise(best):
        return None, (
            f"{name}: keep {standard:g}; the best other, {best}, gains {gain},"
            f" and the noise is {noise}."
        )
    return best, f"{name}: {best} gains {gain}, beyond the {noise}."


def _table(race: Race) -> Table:
    rows = [
        {"setting": name, **cells("img/s", rate), "× the default": times(race.gains[name])}
        for name, rate in race.rates().items()
    ]
    return make_table(rows, f"{race.title}; noise {race.noise:.0%}")
