"""docs/many-gpus.md: its numbers are what its lines come to."""

import re

import pytest

from dcgan.nets.models import Discriminator, Generator, count_parameters
from pipeline.remote.threads import PARALLEL
from tests.running import ROOT

PAGE = (ROOT / "docs" / "many-gpus.md").read_text()
FIGURES = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)
COMPUTED = re.findall(
    r"^\| `(\w+)` \| [^|]+ \| `([^`]+)` \| (\S+) \| (\S+) \|$", PAGE, re.MULTILINE
)


@pytest.mark.parametrize("gpus", [8, 64])
def test_each_number_is_what_its_line_comes_to(gpus):
    assert (len(FIGURES), len(COMPUTED)) == (19, 23)
    values = {name: eval(line) for name, line in FIGURES} | {"N": gpus, "M": gpus // 8}
    for name, line, of_8, of_64 in COMPUTED:
        values[name] = eval(line, {}, values)
        assert f"{values[name]:.3g}" == (of_8 if gpus == 8 else of_64), name


def test_what_the_code_knows_is_as_the_code_has_it():
    figures = {name: eval(line) for name, line in FIGURES}
    assert figures["g"] == 4 * count_parameters(Generator(64, 100, 64))
    assert figures["d"] == 4 * count_parameters(Discriminator(64, 64))
    assert figures["fetches"] == PARALLEL
