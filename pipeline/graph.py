"""The DALI graph: read → decode → resize and crop → normalise, one definition for CPU and GPU.

With `device="cuda"` the decoder is DALI's `mixed` one (encoded bytes on the host, pixels on the
device) and everything after it runs on the device; with `"cpu"` all of it runs on the host.
"""

from __future__ import annotations

from typing import Any, Literal

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline

from pipeline.manifest import Recipe, ShardSet
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
        stored = _read(shards, seed, rank, num_ranks)
        if shards.manifest.recipe.store == "raw":
            images = _view(stored, shards, channels, on_gpu=device == "cuda")
            shape = images.shape(dtype=types.INT32)
        else:
            images = _decode(stored, shards, channels, device)
            # Of the encoded bytes: known on the host, before the GPU has decoded anything
            shape = fn.peek_image_shape(stored, name="shape", dtype=types.INT32)
        roi_start, roi_end = _seen(shape[0], shape[1], shards.manifest.recipe, image_size)
        images = fn.resize(
            images,
            name="resize",
            size=[image_size, image_size],
            roi_start=roi_start,
            roi_end=roi_end,
            interp_type=types.INTERP_TRIANGULAR,  # antialiased, as Pillow's BILINEAR is
        )
        graph.set_outputs(_normalise(images, channels) if normalised else images)
    return graph


def _read(shards: ShardSet, seed: int, rank: int, num_ranks: int) -> Any:
    return fn.readers.webdataset(
        name="read",
        paths=[str(path) for path in shards.tars],
        index_paths=[str(path) for path in shards.indexes],
        ext=[shards.manifest.recipe.extension],
        missing_component_behavior="error",
        random_shuffle=True,
        initial_fill=SHUFFLE_BUFFER,
        shuffle_after_epoch=True,
        shuffle_after_epoch_seed=seed,  # not the pipeline's own: all ranks must agree on it
        pad_last_batch=True,
        shard_id=rank,
        num_shards=num_ranks,
    )


def _decode(stored: Any, shards: ShardSet, channels: int, device: str) -> Any:
    return fn.decoders.image(
        stored,
        name="decode",
        device="mixed" if device == "cuda" else "cpu",
        output_type=types.RGB if channels == 3 else types.GRAY,
        # libjpeg's own chroma upsampling; the GPU decoder's default differs from it
        jpeg_fancy_upsampling=True,
        **_gpu_decoder_memory(shards) if device == "cuda" else {},
    )


def _view(stored: Any, shards: ShardSet, channels: int, *, on_gpu: bool) -> Any:
    """Take the bytes of a raw store for the pixels that they are."""
    size = shards.manifest.recipe.size
    images = fn.reshape(stored, name="view", shape=[size, size, 3], layout="HWC")
    if on_gpu:
        images = images.gpu()
    if channels == 3:
        return images
    return fn.color_space_conversion(
        images, name="grey", image_type=types.RGB, output_type=types.GRAY
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


def _seen(height: Any, width: Any, recipe: Recipe, image_size: int) -> tuple[Any, Any]:
    """The region to resize, in pixels of the stored image: `geometry`, in DALI's expressions.

    One resize of that region is the same as a resize of the whole image and then a crop, and
    touches fewer pixels.

    Returns:
        (top, left) and (bottom, right).
    """
    if recipe.store == "original" and isinstance(recipe.crop, int):
        spans = [_middle(side, recipe.crop) for side in (height, width)]
    else:
        shorter = dali_math.min(height, width)
        resized = [image_size * side // shorter for side in (height, width)]
        spans = [
            _span(side, new, image_size) for side, new in zip((height, width), resized, strict=True)
        ]
    return fn.stack(*(start for start, _ in spans)), fn.stack(*(end for _, end in spans))


def _middle(side: Any, crop: int) -> tuple[Any, Any]:
    start = fn.cast(_half_to_even(side - crop), dtype=types.FLOAT)
    return start, start + crop


def _span(side: Any, resized: Any, image_size: int) -> tuple[Any, Any]:
    """Start and end, in pixels of `side`, of the middle `image_size` of `resized`."""
    scale = fn.cast(side, dtype=types.FLOAT) / fn.cast(resized, dtype=types.FLOAT)
    start = fn.cast(_half_to_even(resized - image_size), dtype=types.FLOAT) * scale
    return start, start + image_size * scale


def _half_to_even(spare: Any) -> Any:
    """Python's round(spare / 2) for integers of 0 and more: 1 → 0, 3 → 2, 5 → 2, 7 → 4."""
    odd = spare & 1
    return (1 - odd) * (spare // 2) + odd * 2 * ((spare + 1) // 4)
