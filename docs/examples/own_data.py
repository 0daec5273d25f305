"""Own data set: pack images straight from Python, and train on them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import plain_errors
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.base import ImageFiles, Listing, Member
from pipeline.shards.manifest import make_recipe

FOLDER = Path("own-data")


class ArraySource(ImageFiles):
    """The images of a .npy file, (N, H, W, 3) uint8. Worker processes are sent its path alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        images = np.load(path, mmap_mode="r")
        members = [Member(f"{place:08d}.png", images[0].nbytes) for place in range(len(images))]
        self.listing = Listing(members)

    def read(self, member: Member) -> bytes:
        """Return one image as the bytes of a PNG file, which is lossless."""
        image = np.load(self.path, mmap_mode="r")[int(member.name[:8])]
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()


def draw_discs(count: int, side: int = 32) -> npt.NDArray[np.uint8]:
    """Draw stand-ins for your data: bright discs on dark ground, (count, side, side, 3) uint8."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    down, across = random.uniform(0.3, 0.7, (2, count, 1, 1)) * side
    inside = (rows - down) ** 2 + (columns - across) ** 2 < (side / 4) ** 2
    colours = random.integers(128, 256, (count, 1, 1, 3))
    return np.where(inside[..., None], colours, 30).astype(np.uint8)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    np.save(FOLDER / "images.npy", draw_discs(500))
    source = ArraySource(FOLDER / "images.npy")
    recipe = make_recipe("raw", 32, None, None, checked=True)  # like make_shards.py's options
    packing = Packing(recipe, overwrite=True, workers=2)
    packed = pack(source, source.members(), FOLDER / "shards", packing)
    print(f"{packed.manifest.samples} images in {FOLDER / 'shards'}")
    options = "--image-size 32 --batch-size 16 --ngf 16 --ndf 16 --max-steps 20 --log-every 10"
    train = f"-m dcgan.train --shards {FOLDER}/shards --run {FOLDER}/run --device cpu {options}"
    subprocess.run([sys.executable, *train.split()], check=True)


if __name__ == "__main__":  # packing's processes import this file
    with plain_errors():
        main()
