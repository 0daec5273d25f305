"""The words of `--fit`: how an image comes to a size of another shape.

- `crop`: it is resized until it covers the size, and its middle is taken: torchvision's Resize and
  CenterCrop.
- `pad`: it is resized until it fits inside, and the rest is filled: Resize and Pad. `pad` fills
  with black, `pad:#ffffff` with a colour, `pad:edge` with the pixels at the image's edge.
- `stretch`: each side is resized by itself.
"""

from __future__ import annotations

import re

from pipeline.errors import UserError

CROP, PAD, STRETCH = "crop", "pad", "stretch"

PATTERN = r"^(crop|stretch|pad(:edge|:#[0-9a-f]{6})?)$"
"""What `parse_fit` returns."""

COLOURS = {"black": "000000", "grey": "808080", "gray": "808080", "white": "ffffff"}


def parse_fit(written: object) -> str | None:
    """Read a fit as it is typed, and return it in its one form; None stays None.

    Raises:
        UserError: it is none.
    """
    if written is None:
        return None
    text = str(written).lower()
    fit, _, filling = text.partition(":")
    colour = COLOURS.get(filling, filling.removeprefix("#"))
    if fit == PAD and re.fullmatch("[0-9a-f]{6}", colour):
        return PAD if colour == COLOURS["black"] else f"{PAD}:#{colour}"
    if re.match(PATTERN, text):
        return text
    raise UserError(
        "--fit",
        str(written) or "nothing",
        "crop, stretch or pad, or with what to pad: pad:edge, pad:white, pad:#1f2e3d",
        "correct it, or leave --fit out",
    )


def padding_of(fit: str) -> tuple[int, int, int] | None:
    """The colour that a fit pads with, in RGB levels; None for pixels of the edge."""
    assert fit.startswith(PAD), fit
    filling = fit.partition(":")[2] or "#" + COLOURS["black"]
    if filling == "edge":
        return None
    red, green, blue = bytes.fromhex(filling.removeprefix("#"))
    return red, green, blue
