"""Images and grids of images as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pipeline.errors import UserError, plain
from pipeline.files import replacing

if TYPE_CHECKING:
    import torch  # a command that only counts cells starts without it

COLUMNS, ROWS = 8, 8
"""Cells of the grids that training writes."""

PADDING = 2
"""Black pixels between the images of a grid, as torchvision's `make_grid` has them."""

INK, PAPER = (0, 0, 0), (255, 255, 255)

MINUS = "\N{MINUS SIGN}"
"""As wide as a plus sign, which a hyphen is not."""

MARGIN, LONGEST_NAME = 6, 24
"""Pixels around the names of rows, and characters of a name that are shown."""


def save_grid(
    images: torch.Tensor,
    path: Path,
    columns: int = COLUMNS,
    texts: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Lay images, (N, S, S, C) uint8 on the CPU, C 1 or 3, out in rows of a PNG.

    It holds `texts` by keyword; `names` of the rows are written on white to the left of them.
    """
    from torchvision.utils import make_grid

    grid = make_grid(images.permute(0, 3, 1, 2), nrow=columns, padding=PADDING)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    if names is not None:
        picture = _beside_names(picture, names)
    _save_png(picture, path, texts)


def save_arithmetic(
    terms: Sequence[Sequence[torch.Tensor]],
    results: Sequence[torch.Tensor],
    operators: Sequence[str],
    path: Path,
    texts: Mapping[str, str],
) -> None:
    """Show a sum as figure 7 of Radford et al. 2016 does: each term's images above their mean's.

    Args:
        terms: the images of each, (H, W, C) uint8 on the CPU, C 1 or 3.
        results: the image of each term's mean, and last that of the sum.
        operators: `+`, `-` or `=` between each two of `results`.
        path: of the PNG.
        texts: for the PNG to hold, by keyword.
    """
    height, width, _ = results[0].shape
    side = min(height, width)
    margin, between = max(8, side // 4), max(24, side * 5 // 8)
    across = [*map(columns_of_term, map(len, terms)), 1]
    rows = max(-(-len(term) // columns) for term, columns in zip(terms, across, strict=False))
    lengths = [columns * (width + PADDING) - PADDING for columns in across]
    below = margin + rows * (height + PADDING) - PADDING + margin
    size = (2 * margin + sum(lengths) + between * len(operators), below + height + margin)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(max(20, side // 2), MINUS)
    left = margin
    for place, (length, result) in enumerate(zip(lengths, results, strict=True)):
        images = terms[place] if place < len(terms) else ()
        top = below - margin + PADDING - -(-len(images) // across[place]) * (height + PADDING)
        for number, image in enumerate(images):
            row, column = divmod(number, across[place])
            corner = (left + column * (width + PADDING), top + row * (height + PADDING))
            sheet.paste(as_picture(image), corner)
        sheet.paste(as_picture(result), (left + (length - width) // 2, below))
        left += length + between
        if place < len(operators):
            middle, sign = (left - between / 2, below + height / 2), operators[place]
            draw.text(middle, sign.replace("-", MINUS), fill=INK, font=font, anchor="mm")
    _save_png(sheet, path, texts)


def columns_of_term(images: int) -> int:
    """Return in how many columns `save_arithmetic` shows a term's images: at most `ROWS` high."""
    return -(-images // ROWS)


def _beside_names(grid: Image.Image, names: Sequence[str]) -> Image.Image:
    """Write the names of a grid's rows beside them, as far as they are short."""
    pitch = (grid.height - PADDING) / len(names)
    told = map(plain, names)
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in told]
    font = _font(max(9, min(14, int(pitch) - 2 * PADDING)), "".join(shown))
    width = MARGIN + max(int(font.getlength(name)) for name in shown) + MARGIN
    sheet = Image.new("RGB", (width + grid.width, grid.height), PAPER)
    sheet.paste(grid, (width, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(shown):
        middle = PADDING / 2 + (row + 0.5) * pitch
        draw.text((width - MARGIN, middle), name, fill=INK, font=font, anchor="rm")
    return sheet


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's font, which has ASCII alone, or one with the letters of most of Europe."""
    if text.isascii():
        return ImageFont.load_default(size=size)
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def save_image(image: torch.Tensor, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Save one image, (S, S, C) uint8 on the CPU, as a PNG, grey or RGB, with texts by keyword."""
    _save_png(as_picture(image), path, texts)


def as_picture(image: torch.Tensor) -> Image.Image:
    """Make a Pillow image, grey or RGB, from (S, S, C) uint8 on the CPU, C 1 or 3."""
    return Image.fromarray(image.squeeze(-1).numpy())


def save_reals_vs_fakes(reals: Path, fakes: Path, out: Path) -> None:
    """Put the grids of real and of generated images side by side, under headings, all PNGs.

    Raises:
        UserError: a grid that cannot be read.
    """
    grids = (open_picture(reals), open_picture(fakes))
    font = ImageFont.load_default(size=max(14, min(grid.width for grid in grids) // 20))
    panels = [
        under_heading(grid, heading, font)
        for grid, heading in zip(grids, ("Real images", "Fake images"), strict=True)
    ]
    gap = 20
    width = sum(panel.width for panel in panels) + gap
    sheet = Image.new("RGB", (width, max(panel.height for panel in panels)), PAPER)
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (panels[0].width + gap, 0))
    _save_png(sheet, out)


def under_heading(
    picture: Image.Image, heading: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """Put a line of text above a picture, both at the left, on as much white as they need."""
    left, top, right, bottom = (int(place) for place in font.getbbox(heading))
    margin = max(4, (bottom - top) // 2)
    above = bottom + 2 * margin
    width = max(picture.width, right + 2 * margin)
    panel = Image.new("RGB", (width, above + picture.height), PAPER)
    ImageDraw.Draw(panel).text((margin - left, margin), heading, fill=INK, font=font)
    panel.paste(picture, (0, above))
    return panel


def open_picture(path: Path) -> Image.Image:
    """Read a picture whole, as RGB.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:  # ours; Pillow knows some 40
            return picture.convert("RGB")
    except Exception as error:  # Pillow's readers raise many kinds on a damaged file
        found = "no such file" if isinstance(error, FileNotFoundError) else f"not readable: {error}"
        raise UserError(
            path, found, "a picture that the run wrote", "delete it, or restore it from a copy"
        ) from error


def _save_png(picture: Image.Image, path: Path, texts: Mapping[str, str] | None = None) -> None:
    info = PngInfo()
    for keyword, text in (texts or {}).items():
        info.add_text(keyword, text)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info)
