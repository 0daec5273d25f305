"""Options that go together, for `--preset`: per image size, and the ancestors'.

Past 64 pixels D wins early with the tutorial's options; the usual remedies are another step size
for D (Heusel et al. 2017, arXiv:1706.08500) and one-sided label smoothing.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {"ema_nimg": 0, "precision": "fp32"},
    "32": {"image_size": 32},
    "64": {"image_size": 64},
    "128": {"image_size": 128, "batch_size": 64, "lr_d": 1e-4, "label_smoothing": 0.1},
    "256": {
        "image_size": 256,
        "batch_size": 32,
        "ngf": 32,
        "ndf": 32,
        "lr_d": 1e-4,
        "label_smoothing": 0.1,
    },
}
"""By name, what differs from the defaults. What stands on the command line wins."""
