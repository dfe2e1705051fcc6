"""Fills narrow gaps of measured disparity by the image: depth cameras and matchers leave them along edges.

A pixel takes the disparity of the known pixel near it that is most like it in colour, averaged with those of the same
surface (joint bilateral upsampling, Kopf et al. 2007, with a choice of one surface first, so that no depth between two
surfaces comes about). Gaps are filled from their rim, a pixel each pass.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

PASSES = 3  # gaps up to twice as wide are filled wholly
REACH_PX = 3
COLOUR_SIGMA, PLACE_SIGMA_PX = 12.0, 2.4  # grey levels over all channels; of the weights
SURFACE_RATIO, SURFACE_PX = 0.04, 0.25  # disparities nearer than this are of one surface


def fill_narrow_gaps(
    disparity: np.ndarray, known: np.ndarray, image: np.ndarray, *, threads: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Fills unknown pixels within `PASSES` of known ones.

    Args:
        disparity: (H, W) float32 pixels, 0 = infinitely far.
        known: (H, W) bool.
        image: (H, W, 3) uint8.
        threads: number of threads.

    Returns:
        (disparity, known), with what was filled; wider gaps stay unknown.
    """
    places = np.argwhere(~known).astype(np.int32)
    if len(places) in (0, known.size):
        return disparity, known
    out, order = disparity.astype(np.float32), known.astype(np.uint8)
    far = np.arange(REACH_PX * REACH_PX * 2 + 1, dtype=np.float32)
    settings = np.array([1 / (2 * COLOUR_SIGMA**2), SURFACE_RATIO, SURFACE_PX], np.float32)
    weights = np.exp(-far / np.float32(2 * PLACE_SIGMA_PX**2))
    for step in range(1, PASSES + 1):
        calls = [
            (places[start:stop], step, image, settings, weights, out, order)
            for start, stop in split_range(len(places), threads)
        ]
        run_in_threads(_fill, calls)
        places = places[order[places[:, 0], places[:, 1]] == 0]
        if not len(places):
            break
    return out, order > 0


@compiled
def _fill(places, step, image, settings, weights, disparity, order):
    """One pass.

    Args:
        places: (N, 2) int32 rows and columns of unknown pixels.
        step: number of the pass, from 1.
        image: (H, W, 3) uint8.
        settings: (3,) float32: factor of squared differences of colour, `SURFACE_RATIO`, `SURFACE_PX`.
        weights: (M,) float32 by squared distance.
        disparity: (H, W) float32, updated.
        order: (H, W) uint8, 0 = unknown, else one more than the pass it was filled in; updated.
    """
    height, width = disparity.shape
    side = 2 * REACH_PX + 1
    found = np.zeros(side * side, np.float32)
    values = np.zeros(side * side, np.float32)
    for k in range(len(places)):
        y, x = places[k, 0], places[k, 1]
        rim = False
        for q in range(max(0, y - 1), min(height - 1, y + 1) + 1):
            for p in range(max(0, x - 1), min(width - 1, x + 1) + 1):
                rim = rim or 0 < order[q, p] <= step
        if not rim:
            continue
        count, best, chosen = 0, np.float32(-1.0), np.float32(0.0)
        for q in range(max(0, y - REACH_PX), min(height - 1, y + REACH_PX) + 1):
            for p in range(max(0, x - REACH_PX), min(width - 1, x + REACH_PX) + 1):
                if not 0 < order[q, p] <= step:
                    continue
                difference = np.float32(0.0)
                for c in range(3):
                    off = np.float32(image[q, p, c]) - np.float32(image[y, x, c])
                    difference += off * off
                weight = weights[(q - y) * (q - y) + (p - x) * (p - x)] * np.exp(-difference * settings[0])
                found[count], values[count] = weight, disparity[q, p]
                if weight > best:
                    best, chosen = weight, disparity[q, p]
                count += 1
        limit = max(settings[2], settings[1] * chosen)
        total, share = np.float32(0.0), np.float32(0.0)
        for i in range(count):
            if abs(values[i] - chosen) <= limit:
                total += found[i] * values[i]
                share += found[i]
        disparity[y, x] = total / share if share > np.float32(0.0) else chosen
        order[y, x] = step + 1
