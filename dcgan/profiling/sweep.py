"""`dcgan-profile sweep`: which settings of the loader suit this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dcgan.options import MeasuringSet
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import ours
from dcgan.profiling.measuring import Contender, Spread, rates, ratios
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, span, times
from pipeline.loading.loader import why_not_dali
from pipeline.loading.options import MAX_WORKERS, LoaderOptions
from pipeline.machine import usable_cores
from pipeline.shards.manifest import ShardSet

AGAIN = "the default again"
"""A twin of the default: how far its rate strays from the default's is the noise."""

PREFETCHES = (1, 2, 3, 4, 6)
SHARES = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True)
class Setting:
    """What is swept; the defaults of the loader are the default."""

    workers: int
    batch_size: int
    prefetch: int
    decoder_share: float


@dataclass(frozen=True)
class Factor:
    """A field of `Setting`, and the values to try."""

    field: str
    values: tuple[float, ...]
    advice: str | None
    """How to set it, with a place for the value; None where it is a choice of the training's."""


@dataclass(frozen=True)
class Swept:
    """The rates of one factor's values, or of the best together, beside the default's."""

    title: str
    rates: dict[str, Spread]
    gains: dict[str, Spread]
    """Times the default's rate."""
    noise: float
    """How far the twin's rate was from the default's, at most; 0.1 for a tenth."""
    rounds: dict[str, Any]

    def exceeds_noise(self, name: str) -> bool:
        return self.gains[name].median - 1 > self.noise


def profile(options: MeasuringSet) -> Report:
    """Change one factor at a time, then try the best of each together."""
    bench = Bench(options)
    default, factors, unswept = _plan(bench)
    best, swept, lines = default, [], list(unswept)
    for factor in factors:
        found = _sweep_factor(bench, default, factor)
        swept.append(found)
        value, reason = _best(factor, default, found)
        lines.append(reason)
        if factor.advice is not None:
            best = _changed(best, factor, value)
    if best != default:
        found = _race(bench, "The best together", default, {"the best together": best})
        swept.append(found)
        if not found.exceeds_noise("the best together"):
            best = default
            lines.append("Together they bring nothing beyond the noise.")
    lines += _advice(default, best, factors)
    return Report(
        "sweep",
        bench.facts(),
        [_table(each) for each in swept],
        lines,
        [Bars(each.title, "images a second", each.rates) for each in swept],
        bench.data()
        | {
            "default": asdict(default),
            "best": asdict(best),
            "sweeps": [
                {
                    "title": each.title,
                    "noise": each.noise,
                    "gains": {name: vars(gain) for name, gain in each.gains.items()},
                    "rounds": each.rounds,
                }
                for each in swept
            ],
        },
    )


def _plan(bench: Bench) -> tuple[Setting, list[Factor], list[str]]:
    """The default, what can be varied with this set on this machine, and what cannot, in words."""
    c = bench.conditions
    sizes = {max(1, c.batch_size // 2), c.batch_size, 2 * c.batch_size}
    fitting = tuple(sorted(size for size in sizes if size <= len(bench.shards)))
    cores = usable_cores()
    threads = tuple(sorted({1, 2, cores, cores + 1, min(2 * cores, 2 * MAX_WORKERS)}))
    batch = Factor("batch_size", fitting, None)
    workers = Factor("workers", threads, "dcgan-train --workers {:g}")
    setting = Setting(c.threads, c.batch_size, 0, 0.0)
    if bench.shards.manifest.recipe.store == "raw":
        return setting, [batch], ["A raw set has no decoder: only the batch size can be varied."]
    if obstacle := why_not_dali(c.device):
        told = f"prefetch depth and decoder share: DALI's, not in use here ({obstacle})."
        return setting, [workers, batch], [told]
    from pipeline.loading.dali import DECODER_SHARE, PREFETCH

    setting = replace(setting, prefetch=PREFETCH, decoder_share=DECODER_SHARE)
    constant = "{} = {{:g}} in pipeline/loading/dali.py"
    prefetch = Factor("prefetch", PREFETCHES, constant.format("PREFETCH"))
    if c.device.type != "cuda":
        return setting, [workers, prefetch, batch], ["decoder share: not on a CPU."]
    share = Factor("decoder_share", SHARES, constant.format("DECODER_SHARE"))
    return setting, [workers, prefetch, share, batch], []


def _sweep_factor(bench: Bench, default: Setting, factor: Factor) -> Swept:
    standard = getattr(default, factor.field)
    others = {
        f"{value:g}": _changed(default, factor, value)
        for value in factor.values
        if value != standard
    }
    name = factor.field.replace("_", " ")
    return _race(bench, f"{name} (default {standard:g})", default, others)


def _changed(setting: Setting, factor: Factor, value: float) -> Setting:
    change: dict[str, Any] = {factor.field: value}
    return replace(setting, **change)


def _race(bench: Bench, title: str, default: Setting, others: dict[str, Setting]) -> Swept:
    """Let settings take rounds beside the default and its twin."""
    settings = {"the default": default, AGAIN: default, **others}
    taken = bench.measure(
        _contender(name, bench.shards, bench.conditions, setting)
        for name, setting in settings.items()
    )
    rate = {name: rates(rounds) for name, rounds in taken.items()}
    standard = rate["the default"]
    twin = ratios(rate[AGAIN], standard)
    return Swept(
        title,
        {name: Spread.of(values) for name, values in rate.items()},
        {name: ratios(values, standard) for name, values in rate.items()},
        max(abs(twin.low - 1), abs(twin.high - 1)),
        rounds_as_json(taken),
    )


def _contender(
    name: str, shards: ShardSet, conditions: LoaderOptions, setting: Setting
) -> Contender:
    c = replace(conditions, workers=setting.workers, batch_size=setting.batch_size)
    if not setting.prefetch:  # not DALI's: the loader's own choice of a decoder
        return ours(name, shards, c)
    from pipeline.loading.dali import DaliDecoder

    decoder = DaliDecoder(shards, c, setting.prefetch, setting.decoder_share)
    return ours(name, shards, c, decoder, setting.prefetch)


def _best(factor: Factor, default: Setting, found: Swept) -> tuple[float, str]:
    """The value to take, the default's unless another one gains more than the noise; and why."""
    standard = getattr(default, factor.field)
    name = factor.field.replace("_", " ")
    others = [each for each in found.gains if each not in ("the default", AGAIN)]
    if not others:
        return standard, f"{name}: nothing else to try."
    best = max(others, key=lambda each: found.gains[each].median)
    gain = found.gains[best].median - 1
    if factor.advice is None:
        return standard, (
            f"{name}: the fastest other is {best} ({gain:+.0%}, noise {found.noise:.0%});"
            " it is a choice of the training's, not the loader's."
        )
    if not found.exceeds_noise(best):
        return standard, (
            f"{name}: keep {standard:g}; the best other, {best}, gains {gain:+.0%},"
            f" and the noise is {found.noise:.0%}."
        )
    return type(standard)(best), f"{name}: {best} gains {gain:+.0%}, beyond the {found.noise:.0%}."


def _advice(default: Setting, best: Setting, factors: Sequence[Factor]) -> list[str]:
    lines = []
    for factor in factors:
        value = getattr(best, factor.field)
        if factor.advice is not None and value != getattr(default, factor.field):
            lines.append(f"set      {factor.advice.format(value)}")
    return lines or ["set      nothing: the defaults are as fast as anything tried."]


def _table(swept: Swept) -> Table:
    title = f"{swept.title}; noise {swept.noise:.0%}"
    table = Table(title, ("setting", "img/s", "lowest – highest", "× the default"))
    for name, rate in swept.rates.items():
        table.rows.append((name, f"{rate.median:,.0f}", span(rate), times(swept.gains[name])))
    return table
