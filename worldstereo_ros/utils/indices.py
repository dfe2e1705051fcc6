"""Evenly spaced indices into a sequence."""

from __future__ import annotations

import numpy as np


def evenly_spaced_indices(count: int, max_count: int) -> list[int]:
    """At most `max_count` of the indices 0 .. count - 1, evenly spaced, ascending and without repetition.

    The first and the last index are included; a single one is 0.
    """
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, max_count)).round())]
