"""Options that go together, for `--preset`: per image size, and the ancestors'.

From 128 pixels on, a discriminator as wide as the generator wins at once: on CelebA's faces, with
both at 64 (128 pixels) or both at 32 (256), Loss_G stayed above 16 for 250 steps, and every seed
gave the same texture. Half the generator's width, half its step size (Heusel et al. 2017,
arXiv:1706.08500, for two of them) and one-sided label smoothing keep it near 4.
"""

from __future__ import annotations

from typing import Any

_CALMED = {"lr_d": 1e-4, "label_smoothing": 0.1}

PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {"ema_nimg": 0, "precision": "fp32"},
    "32": {"image_size": 32},
    "64": {"image_size": 64},
    "128": {
        "image_size": 128,
        "batch_size": 64,
        "ngf": 32,
        "ndf": 16,
        "ema_nimg": 5_000,
        **_CALMED,
    },
    "256": {
        "image_size": 256,
        "batch_size": 32,
        "ngf": 16,
        "ndf": 8,
        "ema_nimg": 2_500,
        **_CALMED,
    },
}
"""By name, what differs from the defaults. What stands on the command line wins."""
