"""Filling holes smoothly, from the background first."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.utils.jit import compiled

BACKGROUND = 4.0  # a surface twice as far counts 2^4 times as much in a fill
AROUND = 32  # pixels: what lies behind pushes aside what lies before as far as this


def push_pull(
    values: np.ndarray,
    weight: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    prior_weight: float = 0.0,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Fills pixels without weight from those that have some, near ones counting most.

    An image pyramid of weighted means (Burt and Adelson's filter) is built upwards; on the way down every pixel takes
    its own level's mean as far as that level has weight, and the coarser level's for the rest. The result is smooth:
    it has no streaks and invents no edges.

    Args:
        values: (H, W, C) float32.
        weight: (H, W) float32 in 0..1, 0 = unknown. A pixel with less gives way to others (see `background_weight`).
        prior: (H, W, C) or (C,) float32, what to expect far from everything known; None: the mean of what is known.
        prior_weight: how soon the prior takes over; 0 = never while anything is known.
        keep: (H, W) bool, pixels returned unchanged; None = those with weight.

    Returns:
        (H, W, C) float32.
    """
    values = np.ascontiguousarray(values, np.float32)
    weight = np.ascontiguousarray(weight, np.float32)
    channels = values.shape[2]
    if prior is None:
        prior, prior_weight = np.zeros(channels, np.float32), 0.0
    varies = prior.ndim == 3
    levels, priors = [np.empty((*weight.shape, channels + 1), np.float32)], [prior.astype(np.float32, copy=False)]
    _weigh(values, weight, levels[0])
    while min(levels[-1].shape[:2]) > 2:
        levels.append(_halve(levels[-1]))
        if varies:
            priors.append(_halve(priors[-1]))
    top, expected = levels[-1][..., channels:], priors[-1]
    if prior_weight == 0 and top.any():  # a pixel of the top that has no weight takes the mean of those that do
        expected = levels[-1][..., :channels].sum(axis=(0, 1)) / top.sum()
    mean, total = levels[-1][..., :channels] / np.maximum(top, 1e-12), top + prior_weight
    filled = np.where(total > 0, (mean * top + expected * prior_weight) / np.maximum(total, 1e-12), expected)
    filled = filled.astype(np.float32, copy=False)
    for level in range(len(levels) - 2, -1, -1):
        here = levels[level]
        shape = (here.shape[1], here.shape[0])
        coarse = cv2.resize(filled, shape, interpolation=cv2.INTER_LINEAR).reshape((*here.shape[:2], channels))
        if varies and prior_weight > 0:
            parent = cv2.resize(priors[level + 1], shape, interpolation=cv2.INTER_LINEAR)
            coarse += priors[level] - parent.reshape(coarse.shape)
        _blend(here, coarse)
        filled = coarse
    _keep(values, weight > 0 if keep is None else keep, filled)
    return filled


@compiled
def _keep(values, kept, out):
    """Writes (H, W, C) values where they are kept, (H, W) bool."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if kept[y, x]:
                for c in range(out.shape[2]):
                    out[y, x, c] = values[y, x, c]


@compiled
def _weigh(values, weight, out):
    """Writes (H, W, C) values times their (H, W) weight, and the weight itself behind them, to (H, W, C + 1)."""
    channels = values.shape[2]
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            w = weight[y, x]
            for c in range(channels):
                out[y, x, c] = values[y, x, c] * w
            out[y, x, channels] = w


@compiled
def _blend(level, coarse):
    """Puts a level's own means, as far as it has weight, in the place of the coarser level's (H, W, C), in place."""
    channels = coarse.shape[2]
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            w = level[y, x, channels]
            total = max(w, np.float32(1e-12))
            share = min(np.float32(1.0), w * np.float32(2.0))
            rest = np.float32(1.0) - share
            for c in range(channels):
                coarse[y, x, c] = level[y, x, c] / total * share + coarse[y, x, c] * rest


def match_colours(picture: np.ndarray, known: np.ndarray, shown: np.ndarray, *, reach: float = 0.05) -> np.ndarray:
    """A picture in the colours of another one that is known in part: no seam, no drift of exposure.

    The difference of the two where both are known is spread smoothly over the rest and fades with distance (a
    membrane, as in Poisson image editing, Perez et al. 2003, here by `push_pull`).

    Args:
        picture: (H, W, 3) uint8.
        known: (H, W, 3) uint8, what is known.
        shown: (H, W) bool, where it is.
        reach: how soon the correction fades, as `push_pull`'s prior_weight.

    Returns:
        (H, W, 3) float32, not clipped.
    """
    base = picture.astype(np.float32)
    if not shown.any():
        return base
    weight = shown.astype(np.float32)
    difference = np.zeros(base.shape, np.float32)
    _differ(picture, known, shown, difference)
    difference = cv2.blur(difference, (9, 9))
    # Means over what is shown nearby, so that texture that differs at the border is not drawn out into streaks.
    _divide(difference, cv2.blur(weight, (9, 9)))
    return np.add(base, push_pull(difference, weight, prior=np.zeros(3, np.float32), prior_weight=reach), out=base)


def feather(picture: np.ndarray, known: np.ndarray, shown: np.ndarray, width: float) -> np.ndarray:
    """What is known where it is shown, faded into a picture beside it.

    Args:
        picture: (H, W, 3) float32, any numbers.
        known: (H, W, 3) uint8.
        shown: (H, W) bool.
        width: pixels over which it fades, outside of what is shown.

    Returns:
        (H, W, 3) uint8.
    """
    away = cv2.distanceTransform((~shown).astype(np.uint8), cv2.DIST_L2, 3)
    out = np.empty(known.shape, np.uint8)
    _fade(picture, np.ascontiguousarray(known), away, np.float32(width), out)
    return out


@compiled
def _differ(picture, known, shown, out):
    """Writes known - picture, both (H, W, 3) uint8, where it is shown; `out` float32."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if shown[y, x]:
                for c in range(3):
                    out[y, x, c] = np.float32(known[y, x, c]) - np.float32(picture[y, x, c])


@compiled
def _divide(sums, weight):
    """Divides (H, W, 3) sums by their (H, W) weight, in place."""
    for y in range(sums.shape[0]):
        for x in range(sums.shape[1]):
            total = max(weight[y, x], np.float32(1e-6))
            for c in range(3):
                sums[y, x, c] /= total


@compiled
def _fade(picture, known, away, width, out):
    """Of `feather`; `away` (H, W) is the distance to what is shown, 0 there."""
    zero, one = np.float32(0.0), np.float32(1.0)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            share = min(max(one - away[y, x] / width, zero), one)
            rest = one - share
            for c in range(3):
                value = np.rint(share * np.float32(known[y, x, c]) + rest * picture[y, x, c])
                out[y, x, c] = np.uint8(min(max(value, zero), np.float32(255.0)))


def _halve(array: np.ndarray) -> np.ndarray:
    out = cv2.pyrDown(np.ascontiguousarray(array), borderType=cv2.BORDER_REFLECT_101)
    return out if out.ndim == 3 else out[..., None]


def fill_depth(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32 depth for every pixel: smooth in inverse depth, background first. All zeros stay zeros."""
    known = depth > 0
    if known.all() or not known.any():
        return depth.astype(np.float32)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    filled = push_pull(inverse[..., None], background_weight(depth, known))[..., 0]
    return np.where(known, depth, 1 / np.maximum(filled, 1e-3)).astype(np.float32)


def background_weight(depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(H, W) float32 in 0..1 for a fill: what lies behind closes the gap that what lies before has left open.

    The depth relative to the largest known one around (`AROUND` pixels), to the power `BACKGROUND`; 0 if not known.
    """
    scale = 4
    depth = np.where(known, depth, 0).astype(np.float32)
    size = (max(1, depth.shape[1] // scale), max(1, depth.shape[0] // scale))
    reach = 2 * (AROUND // scale) + 1
    # Made smaller by the maximum, so that a thin background is not lost.
    largest = cv2.resize(cv2.dilate(depth, np.ones((scale, scale), np.uint8)), size, interpolation=cv2.INTER_NEAREST)
    largest = cv2.dilate(largest, np.ones((reach, reach), np.uint8))
    largest = cv2.resize(largest, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    ratio = np.minimum(1, depth / np.maximum(largest, 1e-12))
    return np.where(known, np.maximum(ratio, 0.03) ** BACKGROUND, 0).astype(np.float32)
