"""Seeds and walks as people write them."""

import pytest

from dcgan.sampling.seeds import (
    count,
    format_seeds,
    parse_arithmetic,
    parse_seeds,
    parse_stops,
)
from pipeline.errors import UserError
from tests.running import assert_four_parts


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-999", list(range(1000))),
        ("3,7,10-12", [3, 7, 10, 11, 12]),
        (" 5 , 4-4", [5, 4]),
        ("3,3", [3, 3]),
        ("007", [7]),
    ],
)
def test_seeds(text, seeds):
    found = parse_seeds(text)
    assert [seed for run in found for seed in run] == seeds
    assert count(found) == len(seeds)
    assert [seed for run in parse_seeds(format_seeds(found)) for seed in run] == seeds


def test_all_the_seeds_there_are():
    found = parse_seeds(f"0-{2**63 - 1}")
    assert count(found) == 2**63
    assert format_seeds(found) == f"0-{2**63 - 1}"


@pytest.mark.parametrize("text", ["", "x", "5-3", "-1", "1,,2", "²", f"{2**63}", "9" * 5000])
def test_what_are_no_seeds(text):
    with pytest.raises(UserError) as error:
        parse_seeds(text)
    assert_four_parts(error.value, "--seeds", "3,7,10-12")


@pytest.mark.parametrize("text", ["1", "1:", "1:x", f"1:{2**63}"])
def test_what_is_no_walk(text):
    with pytest.raises(UserError) as error:
        parse_stops(text)
    assert_four_parts(error.value, "--interpolate", "12:34")


def test_stops():
    assert parse_stops("12:34: 12") == [12, 34, 12]


def test_a_minus_between_spaces_is_no_range():
    found = parse_arithmetic("3,17-19  - 5 + 0-1\t- 2")
    assert [(sign, format_seeds(seeds)) for sign, seeds in found] == [
        (1, "3,17-19"),
        (-1, "5"),
        (1, "0-1"),
        (-1, "2"),
    ]


@pytest.mark.parametrize(
    "text", ["", "3", "3-5", "3 -5 + 1", "3 - ", "- 3 + 4", "+ 3", "1 * 2", "1+2 - 3", "1 - - 3"]
)
def test_what_is_no_sum(text):
    with pytest.raises(UserError) as error:
        parse_arithmetic(text)
    assert_four_parts(error.value, f"--arithmetic {text}", "space on both sides")
