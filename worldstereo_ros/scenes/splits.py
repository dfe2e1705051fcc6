"""Ranges of scene seeds for training, validation, tests and demos. A world is defined by its kind and seed."""

from __future__ import annotations

from worldstereo_ros.utils.errors import InputError

TRAINING = range(0, 1_000_000_000)
VALIDATION = range(1_000_000_000, 1_100_000_000)
TEST = range(1_100_000_000, 1_200_000_000)
DEMO = range(1_200_000_000, 1_200_001_000)
"""For demos and the tests of this package; not used to train, select or evaluate models."""

SPLITS: dict[str, range] = {"training": TRAINING, "validation": VALIDATION, "test": TEST, "demo": DEMO}


def seed_of(split: str, index: int) -> int:
    """Seed of world `index` of a split.

    Args:
        split: "training", "validation", "test" or "demo".
        index: number of the world, from 0.

    Raises:
        InputError: the split does not exist, or the index is outside it.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    seeds = SPLITS[split]
    if not 0 <= index < len(seeds):
        raise InputError(f"World {index} is outside the {split} split, which has {len(seeds)} worlds.")
    return seeds[index]
