"""The README's pictures: the right grids in the right order, and a page as a browser shows it."""

import json
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from dcgan.rundir.folder import RunFolder
from docs.pictures import HEIGHT, WIDTH, save_page, save_strip
from tests.needs import require

SIDE = 8 * 10 + 2
"""Of a grid whose images are 8 pixels wide."""


def save_plain(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), colour).save(path)


def colours_of(strip):
    """Along the strip's middle, without the paper."""
    with Image.open(strip) as picture:
        row = np.asarray(picture)[picture.height * 3 // 4] > 127
    colours = [tuple(map(int, colour)) for colour, _ in groupby(row.tolist())]
    return [colour for colour in colours if colour != (1, 1, 1)]


def test_the_strip_goes_from_untrained_to_trained_and_ends_with_real_images(tmp_path):
    run = RunFolder(tmp_path / "run")
    save_plain(run.fakes_init, "black")
    save_plain(run.reals, "yellow")
    run.config.write_text(json.dumps({"batch_size": 64}))
    for number in range(1, 11):
        shown = {2: "red", 5: "lime", 10: "blue"}
        save_plain(run.fakes(6400 * number), shown.get(number, "magenta"))
    save_strip(run, tmp_path / "strip.webp")
    assert colours_of(tmp_path / "strip.webp") == [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
    ]


def test_a_page_is_shown_from_the_section_on(tmp_path):
    require("chromium")
    page = tmp_path / "page.html"
    bands = (
        f"<div id={name} style='height:{HEIGHT}px;background:{name}'></div>"
        for name in ("blue", "red", "blue")
    )
    page.write_text("<body style='margin:0'>" + "".join(bands))
    save_page(page, "red", tmp_path / "page.webp")
    with Image.open(tmp_path / "page.webp") as shown:
        assert shown.size == (WIDTH, HEIGHT)
        for place in ((20, 20), (500, HEIGHT - 20)):
            assert shown.getpixel(place) == pytest.approx((255, 0, 0), abs=12)
