"""The loader taken apart: contenders that stop after reading, after decoding, and so on.

Each does what the one before does and one thing more, with the loader's own parts and in the
loader's own threads; the last one is the loader.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from dcgan.profiling.contenders import ours
from dcgan.profiling.measuring import Contender
from pipeline.loading.decoders import BATCHES_AHEAD, RawDecoder, ThreadDecoder
from pipeline.loading.loader import CLOSING_PATIENCE, READY, Prefetcher, open_decoder
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded, Reader
from pipeline.shards.manifest import ShardSet
from pipeline.shards.order import Schedule


def cumulative(shards: ShardSet, conditions: LoaderOptions) -> list[Contender]:
    """All stages in order, named `read`, `decode`, `resize`, `normalise` and, on CUDA, `copy`.

    Where one part of the loader decodes and resizes in one go, there is no `resize`.
    """
    stages = [_fed("read", _encoded(shards, conditions), conditions)]
    fit = "decode"
    if _decodes_apart(shards, conditions):
        stages.append(_fed("decode", _decoded(shards, conditions), conditions))
        fit = "resize"
    pixels = replace(conditions, dtype=torch.uint8)
    if conditions.device.type != "cuda":  # nothing to copy: batches are made where they are used
        stages.append(ours(fit, shards, pixels))
        return [*stages, ours("normalise", shards, conditions)]
    for name, form in ((fit, pixels), ("normalise", conditions)):
        stages.append(_fed(name, _undelivered(shards, form), conditions))
    return [*stages, ours("copy", shards, conditions)]


def copy_ms(shards: ShardSet, conditions: LoaderOptions, batches: int) -> list[float]:
    """Milliseconds that the device takes to copy a float batch, by its own clock; CUDA only."""
    decoder = open_decoder(shards, conditions)
    decoded = decoder.decode(_encoded(shards, conditions))
    pairs = []
    for _ in range(batches):
        batch = next(decoded)
        # The stream has nothing else to do: between the two is the copy alone
        began, ended = (_event() for _ in range(2))
        began.record()
        decoder.deliver(batch, None)
        ended.record()
        pairs.append((began, ended))
    torch.cuda.synchronize(conditions.device)
    decoded.close()
    return [began.elapsed_time(ended) for began, ended in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _fed(name: str, items: Generator[Any, None, None], conditions: LoaderOptions) -> Contender:
    """Run a generator in a thread of its own, as the loader runs its decoder."""
    feeder = Prefetcher(items, READY, name)

    def batches() -> Generator[Any, None, None]:
        while True:
            yield feeder.take(conditions.data_timeout)

    ahead = READY + 1 + BATCHES_AHEAD
    return Contender(
        name, batches(), conditions.batch_size, ahead, lambda: feeder.close(CLOSING_PATIENCE)
    )


def _encoded(shards: ShardSet, conditions: LoaderOptions) -> Generator[list[Encoded], None, None]:
    """The samples of one batch after another, as the loader reads them."""
    reader = Reader(shards)
    schedule = Schedule.of(shards, conditions.batch_size, conditions.seed)
    try:
        for epoch in count():
            for rows in schedule.batches(epoch):
                yield reader.read(rows)
    finally:
        reader.close()


def _decodes_apart(shards: ShardSet, conditions: LoaderOptions) -> bool:
    return not isinstance(open_decoder(shards, conditions), RawDecoder | ThreadDecoder)


def _decoded(shards: ShardSet, conditions: LoaderOptions) -> Generator[Any, None, None]:
    """Decoded images of their own sizes, in DALI's memory."""
    from pipeline.loading.dali import build_graph

    encoded = _encoded(shards, conditions)
    graph = build_graph(shards, lambda: next(encoded), conditions, "decode")
    graph.build()
    while True:
        yield graph.run()


def _undelivered(shards: ShardSet, conditions: LoaderOptions) -> Generator[Any, None, None]:
    """What the loader's decoder makes, left where it is made."""
    yield from open_decoder(shards, conditions).decode(_encoded(shards, conditions))
