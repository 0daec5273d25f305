"""Sizes of images, width × height wherever they are written, and those that nets can draw."""

from __future__ import annotations

import re

from pipeline.errors import UserError

ImageSize = int | tuple[int, int]
"""The side of a square, or (width, height) of what is none, in pixels."""

LEAST, MOST = 8, 4096
"""Sides of the images that are stored and trained on, in pixels."""

BASES = range(2, 8)
"""Sides of the smallest map of a net, in pixels. A map of 8 is one of 4, doubled."""

DOUBLINGS = range(2, (MOST // BASES[0]).bit_length())
"""How often that map may be doubled."""

_WRITTEN = re.compile(r"([0-9]{1,9})(?:[x×]([0-9]{1,9}))?", re.IGNORECASE)


def image_size(width: int, height: int) -> ImageSize:
    """The size of these sides, in its one form."""
    return width if width == height else (width, height)


def sides(size: ImageSize) -> tuple[int, int]:
    """Width and height, in pixels."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: ImageSize) -> str:
    """A size as it is typed: 64, or 96x64."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def plain_size(size: ImageSize) -> int | str:
    """A size for JSON: squares stay numbers."""
    return size if isinstance(size, int) else size_text(size)


def shown_size(size: ImageSize) -> str:
    """A size for people: 96×64, and 64×64 of a square."""
    return "×".join(map(str, sides(size)))


def parse_size(written: object, flag: str = "--image-size") -> ImageSize:
    """Read a size as it is typed, or as JSON has it.

    Args:
        written: 64, "64", "96x64", "96×64" or (96, 64).
        flag: the option that it is the value of, for the error.

    Raises:
        UserError: it is no size, or a side is out of range.
    """
    pair = written
    if isinstance(written, str) and (found := _WRITTEN.fullmatch(written.strip())):
        pair = int(found[1]), int(found[2] or found[1])
    elif isinstance(written, int) and not isinstance(written, bool):
        pair = written, written
    match pair:
        case (int(width), int(height)) if all(LEAST <= side <= MOST for side in (width, height)):
            return image_size(width, height)
        case (int(), int()):
            wanted = f"sides of {LEAST} to {MOST:,} pixels"
        case _:
            wanted = "a side in pixels, as in 64, or width and height, as in 96x64"
    raise UserError(flag, str(written) or "nothing", wanted, f"correct it, or leave {flag} out")


def base_of(size: ImageSize) -> tuple[int, int, int]:
    """What a net's smallest map must be for it to draw images of a size.

    Both sides are b·2^k with one k, of 2 or more: the smallest with which no b is above 7. Then no
    b may be below 2: 28 = 7·2², 64 = 4·2⁴, 96 = 6·2⁴, 512 = 4·2⁷.

    Returns:
        Width and height of the smallest map, in pixels, and k, how often it is doubled.

    Raises:
        UserError: there is no such map.
    """
    width, height = sides(size)
    doublings = DOUBLINGS[0]
    while max(width, height) >> doublings > BASES[-1]:
        doublings += 1
    base = width >> doublings, height >> doublings
    exact = (base[0] << doublings, base[1] << doublings) == (width, height)
    if not exact or min(base) < BASES[0] or max(width, height) > MOST:
        nearest = " or ".join(size_text(each) for each in _nearest(size))
        raise UserError(
            "--image-size",
            size_text(size),
            f"both sides b·2ᵏ, b from {BASES[0]} to {BASES[-1]}, and one k for both, from 2 on",
            f"use one of the nearest, {nearest}",
        )
    return *base, doublings


def _nearest(size: ImageSize) -> list[ImageSize]:
    """The two sizes that nets can draw and that are nearest; of a square, squares."""
    width, height = sides(size)
    possible = {
        (across << doublings, down << doublings)
        for doublings in DOUBLINGS
        for across in BASES
        for down in BASES
        if (across == down or width != height) and max(across, down) << doublings <= MOST
    }
    apart = sorted(possible, key=lambda each: (abs(each[0] - width) + abs(each[1] - height), each))
    return [image_size(*each) for each in apart[:2]]
