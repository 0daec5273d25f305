"""Metrics: how good a generator's images are."""

NAMES = {
    "swd": "SWD",
    "fid": "FID",
    "kid": "KID",
    "isc": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "neighbours": "distance to nearest real image",
    "faces": "faces",
    "persons": "distance to nearest real face",
    "own_label": "distance to own label",
    "other_label": "distance to nearest other label",
}
"""What people read, by the name in `metrics.jsonl`."""

HIGHER_IS_BETTER = frozenset({"isc", "precision", "recall"})
"""Of the others, less is better; distances to the nearest real image or face end at their floor."""
