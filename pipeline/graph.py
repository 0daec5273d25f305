"""The DALI graph: read → decode → resize and crop → normalise, one definition for CPU and GPU.

With `device="cuda"` the decoder is DALI's `mixed` one (encoded bytes on the host, pixels on the
device) and everything after it runs on the device; with `"cpu"` all of it runs on the host.
"""

from __future__ import annotations

from typing import Any, Literal

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline

from pipeline.manifest import ShardSet
from pipeline.pixels import MEAN, STD

SHUFFLE_BUFFER = 4096
"""Samples that the reader picks from at random. As many as one shard holds by default, so that an
epoch mixes whole shards; 30 MB of CelebA, and filled in a tenth of a second."""

PREFETCH = 3
"""Batches prepared ahead: two hide the decoder's jitter, the third its pause at an epoch's end."""

MEMORY_PADDING = 1 << 20
"""Bytes that each GPU decoder thread sets aside. DALI's defaults (16 MiB and more) are meant for
photographs; a megabyte holds a decoded face of 178×218 nine times. Not measured on a GPU."""


def build_graph(
    shards: ShardSet,
    *,
    batch_size: int,
    image_size: int,
    channels: int,
    device: Literal["cpu", "cuda"],
    device_id: int | None,
    seed: int,
    workers: int,
    normalised: bool,
    rank: int,
    num_ranks: int,
) -> Pipeline:
    """Define the graph over a rank's share of a shard set.

    An epoch of the reader is ceil(ceil(n / ranks) / batch_size) batches, the last one padded;
    `Loader` passes on the full ones only.

    Args:
        shards: an opened set: `ShardSet.open` has compared its tars with their indexes.
        batch_size: images in a batch, on this rank.
        image_size: side of the square that comes out, in pixels.
        channels: 3 for RGB, 1 for luma.
        device: where decoding and everything after it runs.
        device_id: the CUDA device's number; None for the CPU.
        seed: of the order of shards and of samples.
        workers: host threads.
        normalised: float in [-1, 1] if true, uint8 otherwise.
        rank: whose share.
        num_ranks: how many shares.

    Returns:
        A pipeline with one output, (batch_size, image_size, image_size, channels).
    """
    graph = Pipeline(
        batch_size=batch_size,
        num_threads=workers,
        device_id=device_id,
        seed=seed,
        prefetch_queue_depth=PREFETCH,
    )
    with graph:
        encoded = _read(shards, seed, rank, num_ranks)
        images = fn.decoders.image(
            encoded,
            name="decode",
            device="mixed" if device == "cuda" else "cpu",
            output_type=types.RGB if channels == 3 else types.GRAY,
            # libjpeg's own chroma upsampling; the GPU decoder's default differs from it
            jpeg_fancy_upsampling=True,
            **_gpu_decoder_memory(shards) if device == "cuda" else {},
        )
        roi_start, roi_end = _centre_square(encoded, image_size)
        images = fn.resize(
            images,
            name="resize",
            size=[image_size, image_size],
            roi_start=roi_start,
            roi_end=roi_end,
            interp_type=types.INTERP_TRIANGULAR,
            # With the default (True) the result is seven times further from Pillow's
            subpixel_scale=False,
        )
        graph.set_outputs(_normalise(images, channels) if normalised else images)
    return graph


def _read(shards: ShardSet, seed: int, rank: int, num_ranks: int) -> Any:
    return fn.readers.webdataset(
        name="read",
        paths=[str(path) for path in shards.tars],
        index_paths=[str(path) for path in shards.indexes],
        ext=["jpg"],
        missing_component_behavior="error",
        random_shuffle=True,
        initial_fill=SHUFFLE_BUFFER,
        shuffle_after_epoch=True,
        shuffle_after_epoch_seed=seed,  # not the pipeline's own: all ranks must agree on it
        pad_last_batch=True,
        shard_id=rank,
        num_shards=num_ranks,
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


def _gpu_decoder_memory(shards: ShardSet) -> dict[str, int]:
    width, height = shards.manifest.largest_image
    return {
        "preallocate_width_hint": width,
        "preallocate_height_hint": height,
        "device_memory_padding": MEMORY_PADDING,
        "host_memory_padding": MEMORY_PADDING,
    }


def _centre_square(encoded: Any, image_size: int) -> tuple[Any, Any]:
    """Where torchvision's Resize(S) + CenterCrop(S) would look, in pixels of the stored image.

    Integer for integer: Resize makes the shorter side S and truncates the longer one; CenterCrop
    rounds half of what is left to even. One resize of that region is then the same as a resize of
    the whole image followed by a crop, and touches fewer pixels.

    Returns:
        (top, left) and (bottom, right).
    """
    shape = fn.peek_image_shape(encoded, name="shape", dtype=types.INT32)
    height, width = shape[0], shape[1]
    shorter = dali_math.min(height, width)
    ends = [_span(side, image_size * side // shorter, image_size) for side in (height, width)]
    return fn.stack(*(start for start, _ in ends)), fn.stack(*(end for _, end in ends))


def _span(side: Any, resized: Any, image_size: int) -> tuple[Any, Any]:
    """Start and end, in pixels of `side`, of the middle `image_size` of `resized`."""
    spare = resized - image_size
    odd = spare & 1
    # round(spare / 2), halves to even, as Python's round does: 1 → 0, 3 → 2, 5 → 2, 7 → 4
    offset = (1 - odd) * (spare // 2) + odd * 2 * ((spare + 1) // 4)
    scale = fn.cast(side, dtype=types.FLOAT) / fn.cast(resized, dtype=types.FLOAT)
    start = fn.cast(offset, dtype=types.FLOAT) * scale
    return start, start + image_size * scale
