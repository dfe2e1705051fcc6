"""Which seeds are for what. The one place that says so: a world is its kind and its seed, nothing else."""

from __future__ import annotations

from worldstereo_ros.utils.errors import InputError

TRAINING = range(0, 1_000_000_000)
VALIDATION = range(1_000_000_000, 1_100_000_000)
TEST = range(1_100_000_000, 1_200_000_000)
DEMO = range(1_200_000_000, 1_200_001_000)
"""Worlds for demos and for the tests of this package: no model is trained, chosen or measured on them."""

SPLITS: dict[str, range] = {"training": TRAINING, "validation": VALIDATION, "test": TEST, "demo": DEMO}


def seed_of(split: str, index: int) -> int:
    """The seed of world `index` of a split.

    Args:
        split: "training", "validation", "test" or "demo".
        index: which world, from 0.

    Raises:
        ValueError: for a split that does not exist, or an index outside it.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}. Choose one of {', '.join(SPLITS)}.")
    seeds = SPLITS[split]
    if not 0 <= index < len(seeds):
        raise InputError(f"World {index} is outside the {split} split, which has {len(seeds)} worlds.")
    return seeds[index]
