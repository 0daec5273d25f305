"""Decoding by DALI: the whole graph on a GPU; on a CPU its decoder, and torch's faster resize."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import torch
from nvidia.dali import __version__ as dali_version
from torch.utils.dlpack import from_dlpack

from pipeline.batches import LoaderOptions
from pipeline.decoders import DecodeError, Squares
from pipeline.graph import DECODER_SHARE, PREFETCH, Stage, build_graph
from pipeline.manifest import ShardSet
from pipeline.reader import Encoded


class DaliDecoder:
    """Runs the DALI graph.

    Args:
        shards: a set of JPEGs.
        options: of the loader; on CUDA, the graph normalises float batches too.
        prefetch: batches prepared ahead.
        decoder_share: of images that go to a GPU's JPEG engine.
    """

    def __init__(
        self,
        shards: ShardSet,
        options: LoaderOptions,
        prefetch: int = PREFETCH,
        decoder_share: float = DECODER_SHARE,
    ) -> None:
        self._squares, self._device = Squares.of(shards, options), options.device
        self._on_gpu = self._device.type == "cuda"
        self._encoded: Iterator[list[Encoded]] = iter(())
        self.name = f"dali-{self._device.type}"
        work = "DALI {} decodes and resizes" if self._on_gpu else "DALI {} decodes, torch resizes"
        self.description = f"{work.format(dali_version)}, {options.threads} threads"
        until: Stage = "decode"
        if self._on_gpu:
            until = "normalise" if options.dtype.is_floating_point else "resize"
        self._graph: Any = build_graph(
            shards,
            lambda: next(self._encoded),
            options,
            until,
            prefetch=prefetch,
            decoder_share=decoder_share,
        )
        self._graph.build()

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[Any, None, None]:
        self._encoded = encoded
        try:
            while True:
                # Without a stream this waits for the batch: here, and not in the thread that trains
                (output,) = self._graph.run()
                yield output if self._on_gpu else self._fitted(output)
        except StopIteration:
            return
        except RuntimeError as error:
            # Without the frames of text around it
            reason = str(error).partition("encountered:")[2].strip() or str(error)
            raise DecodeError(reason.splitlines()[0]) from error

    def deliver(self, decoded: Any, out: torch.Tensor | None) -> torch.Tensor:
        if self._on_gpu:
            return self._copied(decoded, out)
        return self._squares.deliver(decoded, out)

    def close(self) -> None:
        self._graph = None  # and its threads with it

    def _fitted(self, output: Any) -> torch.Tensor:
        if not output.is_dense_tensor():  # images of several sizes
            images = (self._squares.fit(from_dlpack(image)) for image in output)
            return self._squares.collect(images, len(output))
        # The dynamic executor never writes again to a batch that somebody holds
        batch = from_dlpack(output.as_tensor())
        if batch.shape[1:3] == 2 * (self._squares.options.image_size,):
            return batch
        return self._squares.collect(self._squares.fit(batch), len(batch))

    def _copied(self, output: Any, out: torch.Tensor | None) -> torch.Tensor:
        """Copy a batch out on the current stream, behind which DALI's buffer waits.

        Exporting it through dlpack instead would leave its release to a background thread of
        DALI's that synchronises the whole device (dali/pipeline/data/dltensor.cc).
        """
        from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

        batch = output.as_tensor()
        if out is None:
            dtype = to_torch_type[batch.dtype]
            out = torch.empty(batch.shape(), dtype=dtype, device=self._device)
        stream = torch.cuda.current_stream(self._device)
        feed_ndarray(batch, out, cuda_stream=stream)
        return out
