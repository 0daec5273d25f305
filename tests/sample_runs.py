"""Run folders to sample."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcgan.nets.models import Generator
from dcgan.nets.weights import save_weights
from dcgan.rundir.folder import RunFolder
from tests.pictures import Pixels
from tests.test_generate import trained

SIDE = 32


def make_run(path: Path) -> tuple[RunFolder, Generator, Generator]:
    """A run folder with a moving average, the net as it was trained, and the average."""
    run = RunFolder(path)
    path.mkdir()
    run.config.write_text("{}")
    raw, average = trained(SIDE, 4), trained(SIDE, 4)
    with torch.no_grad():
        average.get_parameter("main.0.weight").mul_(0.5)
    save_weights(raw, run.generator)
    save_weights(average, run.generator_average)
    return run, raw, average


def pixels(path: Path) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(picture)
