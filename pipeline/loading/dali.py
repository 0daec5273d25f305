"""Decoding by DALI: decode → resize, and crop or pad → normalise, one graph for CPU and GPU.

On a GPU the decoder is DALI's `mixed` one (encoded bytes on the host, pixels on the device) and
everything after it runs on the device; on a CPU all of it runs on the host. There the loader stops
the graph after decoding: torch's resize takes a sixth of DALI's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import torch
from nvidia.dali import __version__ as dali_version
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

from pipeline.images.fit import CROP, PAD, padding_of
from pipeline.images.pixels import MEAN, STD, luma
from pipeline.images.resize import batch_of, centred, fit, resized
from pipeline.images.size import ImageSize, sides
from pipeline.loading.decoders import DecodeError, Decoder
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded
from pipeline.shards.shard_set import ShardSet

PREFETCH = 3
"""Batches prepared ahead: two hide the decoder's jitter, the third the reader's."""

DECODER_SHARE = 0.0
"""Share of the images that a GPU's own JPEG engine decodes, where it has one; its CUDA cores decode
the others. With both at work, DALI's default being 0.65, an image's pixels depend on which of them
it meets: on an H100, 3,550 of 7,872 faces differed between two epochs, by up to 3 levels; with none
or all of them in the engine, no face did. The CUDA cores alone were as fast as both, 20,602 faces
of 178×218 a second beside 20,157, and the engine alone slower, 12,944 (four threads, batches of
128).
"""

MEMORY_PADDING = 1 << 20
"""Bytes that each GPU decoder thread sets aside. DALI's defaults (16 MiB and more) are meant for
photographs; a megabyte holds a decoded face of 178×218 nine times."""

MAX_PREALLOCATED = 1 << 30
"""Bytes of RGB that the hints for a GPU's JPEG engine may stand for, over a batch: they come from
the manifest, which may claim anything. For a larger image, DALI sets more aside then."""

Stage = Literal["decode", "resize", "normalise"]


def build_graph(
    shards: ShardSet,
    source: Callable[[], list[Encoded]],
    options: LoaderOptions,
    until: Stage,
) -> Pipeline:
    """Define the graph over encoded images that come from outside.

    Args:
        shards: a set of JPEGs; tells the crop and the largest image.
        source: called for each batch; raises StopIteration when there are no more.
        options: of the loader; everything from decoding on runs on its device.
        until: the last stage. `decode` gives images of their own sizes, (H, W, C) uint8; `resize`
            images of one size, uint8; `normalise` the same, float in [-1, 1].

    Returns:
        A pipeline with one output, (B, H, W, C) unless `until` says less.
    """
    on_gpu = options.device.type == "cuda"
    graph = Pipeline(
        batch_size=options.batch_size,
        num_threads=options.threads,
        device_id=_device_id(options.device) if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
    )
    with graph:
        encoded = fn.external_source(
            name="encoded", source=source, dtype=types.UINT8, ndim=1, no_copy=True
        )
        images = fn.decoders.image(
            encoded,
            name="decode",
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB if options.channels == 3 else types.GRAY,
            # libjpeg's own chroma upsampling; the GPU decoder's default differs from it
            jpeg_fancy_upsampling=True,
            **(_gpu_decoder(shards, options.batch_size) if on_gpu else {}),
        )
        if until != "decode":
            images = _fit(encoded, images, shards, options)
        if until == "normalise":
            images = _normalise(images, options.channels)
        graph.set_outputs(images)
    return graph


def _device_id(device: torch.device) -> int:
    return device.index if device.index is not None else torch.cuda.current_device()


def _gpu_decoder(shards: ShardSet, batch_size: int) -> dict[str, Any]:
    most = math.isqrt(MAX_PREALLOCATED // (3 * batch_size))
    width, height = (min(side, most) for side in shards.manifest.largest_image)
    return {
        "hw_decoder_load": DECODER_SHARE,
        "preallocate_width_hint": width,
        "preallocate_height_hint": height,
        "device_memory_padding": MEMORY_PADDING,
        "host_memory_padding": MEMORY_PADDING,
    }


def _fit(encoded: Any, images: Any, shards: ShardSet, options: LoaderOptions) -> Any:
    # Read from the encoded bytes: known on the host, before the GPU has decoded anything
    shape = fn.peek_image_shape(encoded, name="shape", dtype=types.INT32)
    how, crop = shards.fit_of(options.fit), shards.manifest.recipe.reader_crop
    size = options.image_size
    start, end = _seen(shape[0], shape[1], size, how, crop)
    width, height = sides(size)
    inside = _contained(shape[0], shape[1], size, crop) if how.startswith(PAD) else None
    small = fn.resize(
        images,
        name="resize",
        size=[height, width] if inside is None else fn.cast(fn.stack(*inside), dtype=types.FLOAT),
        roi_start=start,
        roi_end=end,
        interp_type=types.INTERP_TRIANGULAR,  # antialiased, as Pillow's BILINEAR is
    )
    return small if inside is None else _pad(small, inside, options, padding_of(how))


def _pad(
    images: Any,
    inside: tuple[Any, Any],
    options: LoaderOptions,
    colour: tuple[int, int, int] | None,
) -> Any:
    """Put images of (height, width) `inside` into the middle of the size that is wanted."""
    width, height = sides(options.image_size)
    top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
    if colour is None:
        # Moved by whole pixels; without a value for what lies outside, that is the edge
        away = fn.cast(fn.stack(left, top), dtype=types.FLOAT)
        return fn.warp_affine(
            images,
            matrix=fn.transforms.translation(offset=away),
            name="pad",
            size=[height, width],
            inverse_map=False,
            interp_type=types.INTERP_NN,
        )
    levels = torch.tensor(colour, dtype=torch.uint8)
    return fn.slice(
        images,
        name="pad",
        start=fn.stack(0 - top, 0 - left),
        shape=[height, width],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=(luma(levels) if options.channels == 1 else levels).tolist(),
    )


def _normalise(images: Any, channels: int) -> Any:
    return fn.crop_mirror_normalize(
        images,
        name="normalise",
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[MEAN] * channels,
        std=[STD] * channels,
    )


def _seen(height: Any, width: Any, size: ImageSize, how: str, crop: int | None) -> tuple[Any, Any]:
    """The region to resize, in pixels of the stored image: `resize.py`, in DALI's expressions.

    One resize of that region is the same as a resize of the whole image and then a crop, and
    touches fewer pixels.

    Returns:
        (top, left) and (bottom, right).
    """
    tall, wide = (height, width) if crop is None else (crop, crop)
    across, down = sides(size)
    if how != CROP or (crop is not None and across == down):
        spans = [_span(height, height, tall), _span(width, width, wide)]
    elif crop is None:
        spans = [
            _span(height, dali_math.max(down, across * height // width), down),
            _span(width, dali_math.max(across, down * width // height), across),
        ]
    else:
        covering = resized(crop, crop, size)
        spans = [
            _span_of_part(height, crop, covering[1], down),
            _span_of_part(width, crop, covering[0], across),
        ]
    return fn.stack(*(start for start, _ in spans)), fn.stack(*(end for _, end in spans))


def _contained(height: Any, width: Any, size: ImageSize, crop: int | None) -> tuple[Any, Any]:
    """Height and width of what is to be padded, as `resize.contained` has them."""
    if crop is not None:
        height, width = dali_math.min(height, crop), dali_math.min(width, crop)
    across, down = sides(size)
    tall = dali_math.min(down, across * height // width)
    wide = dali_math.min(across, down * width // height)
    return dali_math.max(1, tall), dali_math.max(1, wide)


def _span(side: Any, resized: Any, kept: Any) -> tuple[Any, Any]:
    """Start and end, in pixels of `side`, of the middle `kept` pixels of `resized`."""
    scale = fn.cast(side, dtype=types.FLOAT) / fn.cast(resized, dtype=types.FLOAT)
    start = fn.cast(_half_to_even(resized - kept), dtype=types.FLOAT) * scale
    return start, start + kept * scale


def _span_of_part(side: Any, part: int, resized: int, kept: int) -> tuple[Any, Any]:
    """Likewise, of the middle `part` pixels of `side`, which are `resized`."""
    start = _span(side, side, part)[0] + centred(resized, kept) * part / resized
    return start, start + kept * part / resized


def _half_to_even(spare: Any) -> Any:
    """Python's round(spare / 2) for integers of 0 and more: 1 → 0, 3 → 2, 5 → 2, 7 → 4."""
    odd = spare & 1
    return (1 - odd) * (spare // 2) + odd * 2 * ((spare + 1) // 4)


class DaliDecoder(Decoder):
    """Runs the DALI graph; on CUDA, it normalises float batches too."""

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        super().__init__(shards, options)
        self._on_gpu = options.device.type == "cuda"
        self._encoded: Iterator[list[Encoded]] = iter(())
        self.name = f"dali-{options.device.type}"
        work = "DALI {} decodes and resizes" if self._on_gpu else "DALI {} decodes, torch resizes"
        self.description = f"{work.format(dali_version)}, {options.threads} threads"
        until: Stage = "decode"
        if self._on_gpu:
            until = "normalise" if options.dtype.is_floating_point else "resize"
        self._graph: Any = build_graph(shards, lambda: next(self._encoded), options, until)
        self._graph.build()

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[Any, None, None]:
        self._encoded = encoded
        try:
            while True:
                # Without a stream this waits for the batch: here, and not in the thread that trains
                (output,) = self._graph.run()
                yield output if self._on_gpu else self._on_cpu(output)
        except StopIteration:
            return
        except RuntimeError as error:
            # Without the frames of text around it
            reason = str(error).partition("encountered:")[2].strip() or str(error)
            raise DecodeError(reason.splitlines()[0]) from error

    def close(self) -> None:
        self._graph = None  # and its threads with it

    def _on_cpu(self, output: Any) -> torch.Tensor:
        """Images of one size, of what the graph has decoded on the CPU."""
        size, how = self._options.image_size, (self._fit, self._crop)
        if not output.is_dense_tensor():  # images of several sizes
            return batch_of((fit(from_dlpack(i), size, *how) for i in output), pinned=False)
        # The dynamic executor never writes again to a batch that somebody holds
        batch = from_dlpack(output.as_tensor())
        if batch.shape[1:3] == sides(size)[::-1]:
            return batch
        return batch_of(fit(batch, size, *how), pinned=False)
