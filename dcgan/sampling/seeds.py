"""Seeds as people write them: lists and ranges, their sums, and the stops of a walk."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import UserError

MAX_SEED = 2**63 - 1
"""As of `dcgan-train --seed`; torch's generators take no more than twice that."""


def parse_seeds(text: str) -> list[range]:
    """Read `3,7,10-12`.

    Returns:
        Ranges in the order given, none of them empty, however long.

    Raises:
        UserError: it is not of that form.
    """
    return [_range(part.strip(), text) for part in text.split(",")]


def format_seeds(seeds: Sequence[range]) -> str:
    """Write them as `parse_seeds` reads them."""
    return ",".join(
        f"{part[0]}-{part[-1]}" if part.stop - part.start > 1 else f"{part[0]}" for part in seeds
    )


def count(seeds: Sequence[range]) -> int:
    """Count them; `len` is too small for the longest range."""
    return sum(part.stop - part.start for part in seeds)


def parse_stops(text: str) -> list[int]:
    """Read `12:34:56`.

    Raises:
        UserError: it is not of that form.
    """
    parts = text.split(":")
    seeds = [int(part) for part in parts if re.fullmatch(r"\s*\d{1,19}\s*", part, re.ASCII)]
    if len(seeds) < max(2, len(parts)) or max(seeds) > MAX_SEED:
        raise UserError(
            f"--interpolate {text}",
            "no walk from seed to seed",
            "two seeds or more, below 2^63, with colons between",
            "for example --interpolate 12:34",
        )
    return seeds


def parse_arithmetic(text: str) -> list[tuple[int, list[range]]]:
    """Read `3,17,40 - 5,9 + 12,60`: a minus sign without spaces around it belongs to a range.

    Returns:
        For each term its sign, 1 or -1, and its seeds; two terms or more.

    Raises:
        UserError: it is not of that form.
    """
    first, *rest = re.split(r"\s+([+-])\s+", text)
    signs, found = ["+", *rest[::2]], "one term"
    try:
        terms = [parse_seeds(seeds) for seeds in (first, *rest[1::2])]
    except UserError as error:
        terms, found = [], error.found
    if len(terms) < 2:
        raise UserError(
            f"--arithmetic {text}",
            found,
            "two lists of seeds or more, as for --seeds, and between them + or - with a space on"
            " both sides",
            "for example --arithmetic '3,17,40 - 5,9 + 12,60', or with ranges '0-3 - 8-9 + 5'",
        )
    return [(1 if sign == "+" else -1, seeds) for sign, seeds in zip(signs, terms, strict=True)]


def _range(part: str, text: str) -> range:
    found = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last or last > MAX_SEED:
        raise UserError(
            f"--seeds {text}",
            f"{part!r} among them",
            "seeds and ranges from low to high, from 0 and below 2^63, with commas between",
            "for example --seeds 0-63 or --seeds 3,7,10-12",
        )
    return range(first, last + 1)
