"""Makes the pictures of the README and the guides from a run on the drawn faces: `make pictures`.

How a net learns, as a strip of grids, what `dcgan-sample --arithmetic` draws, and the run's report
and its page that draws, as Chromium shows them. All are WebP, for a repository keeps every version
of a picture.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dcgan.rundir.folder import RunFolder
from dcgan.sampling.pictures import COLUMNS, INK, PADDING, PAPER, open_picture

CELLS = 4
"""Of a grid's eight rows and columns: larger faces say more than more of them."""

ABOVE, GAP = 36, 14
"""Pixels above the grids, for their headings, and between them."""

WIDTH, HEIGHT = 1100, 1450
"""Pixels of the report that are shown."""

SUM = "tool=arithmetic&seeds=4,5,53,62;12,19,37,42;25,41,46,63&start=0&count=64"
SUM_HEIGHT, DRAWN = 950, 6.0
"""What the page that draws shows, pixels of it, and seconds after which it has drawn."""


def save_strip(run: RunFolder, out: Path) -> None:
    """Put the same latents, untrained to trained, beside real images."""
    config = json.loads(run.config.read_text())
    grids = run.grids()
    chosen = [grids[len(grids) // 5 - 1], grids[len(grids) // 2 - 1], grids[-1]]
    panels = [("untrained", run.fakes_init)]
    panels += [(f"{nimg // config['batch_size']:,} steps", path) for nimg, path in chosen]
    panels += [("learned from", run.reals)]
    grids_shown = [_corner(path) for _, path in panels]
    width = sum(grid.width + GAP for grid in grids_shown) - GAP
    strip = Image.new("RGB", (width, ABOVE + grids_shown[0].height), PAPER)
    draw, font, left = ImageDraw.Draw(strip), ImageFont.load_default(size=20), 0
    for (heading, _), grid in zip(panels, grids_shown, strict=True):
        draw.text((left + PADDING, ABOVE - 12), heading, INK, font, anchor="ls")
        strip.paste(grid, (left, ABOVE))
        left += grid.width + GAP
    strip.save(out, quality=88, method=6)


def _corner(grid: Path) -> Image.Image:
    """The first cells of a grid; of one with two rows, as many real images as a batch, all."""
    picture = open_picture(grid)
    side = (picture.width - PADDING) // COLUMNS * CELLS + PADDING
    corner = picture.crop((0, 0, side, side))
    if picture.height < side:
        corner.paste(
            picture.crop((side - PADDING, 0, picture.width, picture.height)), (0, side // 2)
        )
    return corner


def save_page(page: Path, fragment: str, out: Path, height: int = HEIGHT, wait: float = 0) -> None:
    """Show a page in Chromium, at that part of it or in that state, after `wait` seconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": height})
        tab.goto(f"{page.absolute().as_uri()}#{fragment}")
        tab.wait_for_load_state("networkidle")
        time.sleep(wait)
        shot = tab.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").save(out, quality=85, method=6)


def main() -> None:
    """Read a run that was exported with its page, and the picture of a sum; write to a folder."""
    run, total, folder = RunFolder(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    save_strip(run, folder / "progress.webp")
    open_picture(total).save(folder / "arithmetic.webp", quality=88, method=6)
    save_page(run.report, "samples", folder / "report.webp")
    save_page(run.export / "playground.html", SUM, folder / "playground.webp", SUM_HEIGHT, DRAWN)


if __name__ == "__main__":
    main()
