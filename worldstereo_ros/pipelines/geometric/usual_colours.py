"""The usual colour of a surface: that of most of it. The mean of a wall and its door is the colour of neither."""

from __future__ import annotations

import numpy as np

SCALES = (60.0, 40.0, 25.0, 25.0)  # grey levels, of Cauchy's weights in successive rounds
MIN_USUAL = 0.2  # of the weight of a group that is near the usual colour of all, for this to be that of the group, too


def usual_colour(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(3,) grey levels about which most of the weight lies.

    Args:
        colours: (N, 3) grey levels, N > 0.
        weights: (N,) not negative, not all 0.
    """
    order = np.argsort(colours, axis=0)
    sums = np.cumsum(weights[order], axis=0)
    found = np.array([colours[order[np.searchsorted(sums[:, c], sums[-1, c] / 2), c], c] for c in range(3)])
    for scale in SCALES:
        found = np.average(colours, axis=0, weights=weights * nearness(colours, found, scale) + 1e-12)
    return found


def nearness(colours: np.ndarray, centre: np.ndarray, scale: float = SCALES[-1]) -> np.ndarray:
    """(...) Cauchy's weights of colours (..., 3), 1 at the centre (..., 3) and 1/2 at `scale` grey levels from it."""
    return 1 / (1 + ((colours - centre) ** 2).sum(axis=-1) / scale**2)


def usual_colours_of_rows(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H, 3) usual colour of each row; NaN for a row without weight.

    It is near the usual colour of all where a good part of the row is, else that of most of the row: a wall may have
    another colour at another height.

    Args:
        colours: (H, W, 3) grey levels.
        weights: (H, W) not negative.
    """
    found = np.full((len(colours), 3), np.nan)
    if not (weights > 0).any():
        return found
    centre = usual_colour(colours.reshape(-1, 3), weights.ravel())
    near = weights * nearness(colours, centre)
    total, close = weights.sum(axis=1), near.sum(axis=1)
    found[total > 0] = ((colours * near[..., None]).sum(axis=1) / np.maximum(close, 1e-12)[:, None])[total > 0]
    for row in np.flatnonzero((total > 0) & (close < MIN_USUAL * total)):
        found[row] = usual_colour(colours[row], weights[row])
    return found
