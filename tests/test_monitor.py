"""Alarms: on the tutorial's own log, on made-up histories and grids, and across interruptions."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan.training.monitor import SATURATED_STEPS, Alarm, Monitor, spread
from dcgan.training.state import MonitorState
from tests.pictures import smooth

Rows = npt.NDArray[np.float32]

TUTORIAL = """
2.0937 5.2060 0.5704 0.6680 0.0090
0.2073 12.9653 0.9337 0.0000 0.0000
0.0364 34.5761 0.9917 0.0000 0.0000
0.0078 39.3111 0.9947 0.0000 0.0000
0.0029 38.7681 0.9974 0.0000 0.0000
1.2861 13.3356 0.8851 0.2970 0.0035
1.2933 6.7655 0.8533 0.5591 0.0020
0.7473 3.2617 0.5798 0.0514 0.0483
0.5454 4.0144 0.8082 0.2346 0.0310
1.1872 3.2918 0.4389 0.0360 0.0858
0.7546 4.7428 0.9072 0.4049 0.0178
0.3514 3.7726 0.8937 0.1709 0.0394
0.4400 4.1662 0.7768 0.1069 0.0284
0.3275 4.3374 0.8452 0.0852 0.0214
0.7711 5.0677 0.9103 0.3848 0.0190
0.5346 5.7441 0.8971 0.2969 0.0064
0.5027 2.5982 0.6897 0.0431 0.1196
0.4479 4.8790 0.7407 0.0456 0.0200
0.9812 5.8792 0.8895 0.4801 0.0070
0.5154 3.4813 0.7722 0.1549 0.0449
0.8468 6.6179 0.8914 0.4262 0.0030
0.4425 3.9902 0.8307 0.1872 0.0270
0.6800 4.3945 0.8244 0.3022 0.0223
0.7227 2.2669 0.6177 0.0625 0.1613
0.4061 5.7088 0.9269 0.2367 0.0071
0.8514 3.8994 0.7686 0.3573 0.0330
0.5323 3.0046 0.7102 0.0742 0.1138
0.5793 4.6804 0.8722 0.2877 0.0169
0.6849 5.4391 0.8974 0.3630 0.0100
1.1515 6.0096 0.8054 0.5186 0.0049
0.4771 3.3768 0.8590 0.2357 0.0541
0.6947 5.9660 0.8989 0.3671 0.0064
1.4315 6.2042 0.9535 0.6480 0.0051
0.9149 5.6209 0.9476 0.5069 0.0088
1.3208 4.7094 0.9466 0.5988 0.0158
"""
"""The log printed in the PyTorch DCGAN tutorial: all lines of the first epoch, and of the second
those with the surest D. Loss_D, Loss_G, D(x), D(G(z)) before and after D's update."""

LINE_STEPS = 50
"""What a line of it stands for: the steps up to the next."""

FINE = (0.5, 3.0, 0.85, 0.2, 0.05)
SURE = (0.003, 38.0, 0.997, 0.0001, 0.0)
BROKEN = (math.nan, 3.0, 0.85, 0.2, 0.05)


def history(*parts: tuple[tuple[float, ...], int]) -> Rows:
    """Rows, each part's so many times."""
    return np.concatenate([np.full((count, 5), row, dtype=np.float32) for row, count in parts])


def tutorial() -> Rows:
    lines = [tuple(float(word) for word in line.split()) for line in TUTORIAL.split("\n") if line]
    assert len(lines) == 35
    return history(*((line, LINE_STEPS) for line in lines))


def told(alarms: list[Alarm]) -> list[tuple[str, int]]:
    return [(alarm.kind, alarm.step) for alarm in alarms]


def in_ticks(rows: Rows, borders: list[int], health: Monitor) -> list[Alarm]:
    """Look at rows in ticks that end at `borders`."""
    edges = sorted({0, len(rows), *(border for border in borders if border < len(rows))})
    looks = (health.look_at_steps(begin + 1, rows[begin:end]) for begin, end in pairwise(edges))
    return [alarm for alarms in looks for alarm in alarms]


def test_the_tutorials_saturation_is_told_and_nothing_else_of_its_log():
    # Its lines 100, 150 and 200, counted from 0, are saturated: steps 101 to 250, counted from 1
    assert told(Monitor().look_at_steps(1, tutorial())) == [("saturation", 200)]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(FINE, 7), (SURE, SATURATED_STEPS - 1), (FINE, 1)], []),
        ([(FINE, 7), (SURE, 5 * SATURATED_STEPS)], [107]),
        ([(SURE, 150), (FINE, 1), (SURE, 99), (FINE, 1), (SURE, 100)], [100, 351]),
    ],
)
def test_saturation_is_told_once_at_the_hundredth_step_and_again_after_it_has_ended(
    parts, expected
):
    assert [alarm.step for alarm in Monitor().look_at_steps(1, history(*parts))] == expected


@pytest.mark.parametrize(
    "row",
    [
        pytest.param((0.003, 38.0, 0.985, 0.0001, 0.0), id="D is not sure of the real ones"),
        pytest.param((0.003, 38.0, 0.997, 0.02, 0.0), id="nor of new fakes, only of learnt ones"),
    ],
)
def test_a_nearly_sure_discriminator_is_no_alarm(row):
    assert Monitor().look_at_steps(1, history((row, 300))) == []


@pytest.mark.parametrize(("column", "value"), [(0, math.nan), (2, math.inf), (4, -math.inf)])
def test_non_finite_values_are_told_where_they_begin(column, value):
    rows = history((FINE, 40))
    rows[20:30, column] = value
    rows[35, column] = value
    alarms = Monitor().look_at_steps(101, rows)
    assert told(alarms) == [("non-finite", 121), ("non-finite", 136)]
    assert "--on-trouble rollback" in alarms[0].message


PARTS = st.lists(st.tuples(st.sampled_from([FINE, SURE, BROKEN]), st.integers(1, 250)), min_size=1)
BORDERS = st.lists(st.integers(1, 1000), max_size=30)


@settings(max_examples=40)
@given(parts=PARTS, borders=BORDERS)
def test_tick_borders_make_no_difference(parts, borders):
    rows = history(*parts)
    whole = Monitor().look_at_steps(1, rows)
    assert in_ticks(rows, borders, Monitor()) == whole
    assert told(whole) == told_literally(rows)


def told_literally(rows: Rows) -> list[tuple[str, int]]:
    """By the definition, from each step's past alone."""
    sure: npt.NDArray[np.bool_] = np.all(rows == np.array(SURE, np.float32), axis=1)
    broken: npt.NDArray[np.bool_] = np.any(np.isnan(rows), axis=1)
    found = []
    for step in range(1, len(rows) + 1):
        if broken[step - 1] and not broken[: step - 1][-1:].any():
            found.append(("non-finite", step))
        past = sure[max(0, step - SATURATED_STEPS) : step]
        before = sure[: step - SATURATED_STEPS][-1:]
        if step >= SATURATED_STEPS and past.all() and not before.any():
            found.append(("saturation", step))
    return found


@settings(max_examples=40)
@given(parts=PARTS, place=st.integers(0, 1000))
def test_a_resumed_run_is_told_what_an_uninterrupted_one_is(parts, place):
    rows = history(*parts)
    first, second = Monitor(), Monitor()
    alarms = in_ticks(rows[:place], [], first) if place else []
    second.restore(MonitorState.model_validate_json(first.state().model_dump_json()))
    if place < len(rows):
        alarms += second.look_at_steps(place + 1, rows[place:])
    assert alarms == Monitor().look_at_steps(1, rows)


def varied(count: int = 64, size: int = 32) -> torch.Tensor:
    """Pictures as unlike each other as blurred photographs."""
    return torch.from_numpy(np.stack([smooth(size, size, seed) for seed in range(count)]))


def around(centres: torch.Tensor, noise: float = 6.0, count: int = 64) -> torch.Tensor:
    """Samples that are all near one of few pictures."""
    images = centres.repeat(-(-count // len(centres)), 1, 1, 1)[:count].float()
    random = torch.Generator().manual_seed(0)
    noisy = images + noise * torch.randn(images.shape, generator=random)
    return noisy.clamp(0, 255).to(torch.uint8)


def grey(level: int = 127) -> torch.Tensor:
    return torch.full((64, 32, 32, 3), level, dtype=torch.uint8)


REALS = spread(varied())
FALLEN = [
    pytest.param(grey(), id="one colour"),
    pytest.param(around(varied(1)), id="one picture"),
    pytest.param(around(varied(16)), id="sixteen pictures"),
    pytest.param(torch.cat([varied(24), around(varied(1), count=40)]), id="most of them one"),
]


def look(grids: list[torch.Tensor], reals: float | None, health: Monitor | None = None):
    """The steps at which a collapse is told; grid k, from 1, is drawn at step 10·k."""
    health = Monitor() if health is None else health
    health.reals_spread = reals
    looks = [health.look_at_grid(10 * k, grid) for k, grid in enumerate(grids, 1)]
    assert {alarm.kind for alarms in looks for alarm in alarms} <= {"collapse"}
    return [alarm.step for alarms in looks for alarm in alarms]


def test_spread_is_the_distance_to_the_nearest_other_image():
    levels = torch.tensor([0, 10, 30, 60, 100], dtype=torch.uint8)
    images = levels.reshape(5, 1, 1, 1).expand(5, 32, 32, 3)
    assert spread(images) == pytest.approx(20)  # of 10, 10, 20, 30, 40
    assert spread(images[..., :1]) == pytest.approx(20)  # grey images alike
    images = images.clone()
    images[:, ::2] += 1  # the same half a level, everywhere
    assert spread(images) == pytest.approx(20)


@pytest.mark.parametrize("fallen", FALLEN)
@pytest.mark.parametrize("reals", [REALS, None])
def test_collapse_is_told_once_at_the_second_grid(fallen, reals):
    assert look([varied(), varied(), fallen, fallen, fallen, fallen], reals) == [40]


def test_collapse_is_told_again_after_it_has_ended_but_not_for_one_grid():
    assert look([varied(), grey(), grey(), varied(), grey(), grey()], REALS) == [30, 60]
    assert look([varied(), grey(), varied(), grey(), varied()], REALS) == []


@pytest.mark.parametrize("reals", [REALS, None])
def test_an_untrained_generator_has_not_collapsed(reals):
    # As trained ones began: nearly grey, then a little varied, then hardly at all for a while
    slow = [around(grey()[:1], noise) for noise in (0.5, 8, 2, 2, 1, 1)]
    assert look(slow, reals) == []
    assert look([*slow, varied(), varied()], reals) == []


def test_a_jumble_that_settles_to_the_spread_of_faces_is_no_collapse():
    squares = torch.randint(0, 2, (64, 4, 4, 3), generator=torch.Generator().manual_seed(0)) * 255
    jumble = squares.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    assert spread(jumble) > 2.5 * REALS, "no jumble"
    assert look([jumble, jumble, varied(), varied()], REALS) == []


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_resumed_run_is_told_the_same_collapse(place):
    grids, first, second = [varied(), grey(), grey(), grey(), varied()], Monitor(), Monitor()
    before = look(grids[:place], REALS, first)
    second.restore(MonitorState.model_validate_json(first.state().model_dump_json()))
    after = [step + 10 * place for step in look(grids[place:], REALS, second)]
    assert before + after == [30]
