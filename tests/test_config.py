"""What a run is asked to do: the defaults, what is refused, and when it ends."""

import json

import pytest

from dcgan.options import DEFAULT_EPOCHS, TrainConfig
from pipeline.errors import UserError
from tests.running import assert_four_parts


def test_defaults_are_the_best_recipe_and_the_tutorials_for_all_else():
    config = TrainConfig(shards="shards")
    assert (config.batch_size, config.image_size, config.channels) == (16, 64, 3)
    assert (config.nz, config.ngf, config.ndf) == (100, 64, 64)
    assert (config.lr, config.beta1, config.seed, DEFAULT_EPOCHS) == (4e-4, 0.5, 999, 5)
    assert (config.log_every, config.sample_every) == (50, 500)


BOUNDS = [  # of each kind of option: taken, and refused
    ("batch_size", (1, 10**12), (0, -1, 10**12 + 1)),
    ("workers", (1, 1024, None), (0, 1025)),
    ("seed", (0, 2**63 - 1), (-1, 2**63)),
    ("lr", (1e-9, 0.999), (0.0, -1e-4, 1.0, float("nan"), float("inf"))),
    ("beta1", (0.0, 0.999), (-0.1, 1.0, float("nan"))),
]


@pytest.mark.parametrize(("field", "taken", "refused"), BOUNDS)
def test_what_no_run_could_use_is_refused_and_the_bounds_are_taken(field, taken, refused):
    for value in refused:
        with pytest.raises(UserError) as refusal:
            TrainConfig(shards="shards", **{field: value})
        assert refusal.value.where == "--" + field.replace("_", "-")
        assert_four_parts(refusal.value, str(value))
    for value in taken:
        assert getattr(TrainConfig(shards="shards", **{field: value}), field) == value


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 5 * 7),
        ({"epochs": 2}, 14),
        ({"max_steps": 3}, 3),
        ({"max_steps": 100}, 100),  # as many epochs as it takes
        ({"epochs": 2, "max_steps": 3}, 3),
        ({"epochs": 2, "max_steps": 100}, 14),
        ({"epochs": 2, "max_steps": 100, "dry_run": True}, 1),
    ],
)
def test_steps_until_the_end(options, steps):
    assert TrainConfig(shards="shards", **options).total_steps(steps_per_epoch=7) == steps


def test_json_gives_the_same_options_back():
    config = TrainConfig(shards="shards", run="here", max_steps=3, netG="netG.pt", dry_run=True)
    assert TrainConfig(**json.loads(json.dumps(config.to_json()))) == config
