"""Between latents: the arc, its ends, and what has no arc."""

import math

import numpy as np
import pytest
import torch

from dcgan.sampling.generate import latents, slerp, walk

NZ = 100


def literal(start, end, share):
    """Turn `start` in the plane that both span; where lengths differ, by White's sum of sines."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (start, end))
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    u, v = a / length_a, b / length_b
    across = v - (u @ v) * u
    across /= np.linalg.norm(across)
    angle = np.arctan2(v @ across, v @ u)
    if np.isclose(length_a, length_b):
        return length_a * (np.cos(share * angle) * u + np.sin(share * angle) * across)
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("share", [0.0, 0.125, 0.9, 1.0])
def test_it_is_the_arc(share):
    raw = latents([12, 34], NZ).reshape(2, NZ).double()
    for start, end in (raw, raw / raw.norm(dim=1, keepdim=True) * 10):
        found = slerp(start, end, share)
        np.testing.assert_allclose(found, literal(start, end, share), atol=1e-12)


def test_between_equal_lengths_the_length_stays_and_the_angle_grows_evenly():
    start, end = torch.nn.functional.normalize(latents([5, 6], NZ).reshape(2, NZ).double()) * 7
    whole = math.acos(float(start @ end) / 49)
    for step in range(11):
        point = slerp(start, end, step / 10)
        assert float(point.norm()) == pytest.approx(7, abs=1e-12)
        assert math.acos(min(1.0, float(start @ point) / 49)) == pytest.approx(
            whole * step / 10, abs=1e-6
        )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "end",
    [
        torch.tensor([3.0, 4.0]),
        torch.tensor([3.0, 4.0]) * (1 + 1e-7),
        torch.tensor([6.0, 8.0]),
        torch.tensor([-3.0, -4.0]),
        torch.tensor([3.0, 4.0 + 1e-6]),
    ],
)
def test_without_an_arc_the_way_is_straight(end, share):
    start = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(slerp(start, end, share), torch.lerp(start, end, share))


@pytest.mark.parametrize(
    ("seeds", "frames", "places"),
    [
        ([12, 34, 56], 60, [0, 30, 59]),
        ([12, 34, 56], 3, [0, 1, 2]),
        ([7, 7], 5, [0, 4]),
    ],
)
@pytest.mark.parametrize("nz", [1, NZ])
def test_each_seed_is_a_frame_to_the_bit(seeds, frames, places, nz):
    found = torch.stack([*walk(seeds, frames, nz)])
    assert found.shape == (frames, nz, 1, 1)
    assert torch.equal(found[places], latents(seeds, nz))
    assert found.isfinite().all()


def test_steps_of_a_leg_are_alike():
    found = torch.stack([*walk([12, 34], 41, NZ)]).flatten(1)
    lengths = (found[1:] - found[:-1]).norm(dim=1)
    assert lengths.max() / lengths.min() < 1.3
    assert found.norm(dim=1).min() > 0.9 * min(found[0].norm(), found[-1].norm())
