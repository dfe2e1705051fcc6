"""Smooth hole filling by push-pull pyramids, and seamless blending of colours."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.utils.jit import compiled

BACKGROUND_POWER = 4.0  # a surface twice as far has 2^4 times the weight in a fill
BACKGROUND_REACH_PX = 32  # a surface loses weight to farther surfaces within this distance


def push_pull(
    values: np.ndarray,
    weight: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    prior_weight: float = 0.0,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Fills pixels without weight from weighted pixels around them (push-pull).

    Builds an image pyramid of weighted means (Burt and Adelson's filter). From coarse to fine, each pixel takes the
    mean of its level as far as that level has weight, and the coarser value for the rest. The result is smooth, without
    streaks and new edges.

    Args:
        values: (H, W, C) float32.
        weight: (H, W) float32 in 0..1, 0 = unknown (see `background_weight`).
        prior: (H, W, C) or (C,) float32, value far from all known pixels; None = the mean of the known pixels.
        prior_weight: weight of the prior in each level; 0 = use the prior only if no pixel is known.
        keep: (H, W) bool, pixels returned unchanged; None = all pixels with weight.

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
    if prior_weight == 0 and top.any():  # pixels of the top level without weight take the mean of the others
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
def _keep(values, mask, out):
    """Copies (H, W, C) values to `out` where the (H, W) bool mask is set."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if mask[y, x]:
                for c in range(out.shape[2]):
                    out[y, x, c] = values[y, x, c]


@compiled
def _weigh(values, weight, out):
    """Writes (H, W, C) values times their (H, W) weight, and the weight as last channel, to (H, W, C + 1)."""
    channels = values.shape[2]
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            w = weight[y, x]
            for c in range(channels):
                out[y, x, c] = values[y, x, c] * w
            out[y, x, channels] = w


@compiled
def _blend(level, coarse):
    """Blends the means of a level over the coarser values (H, W, C), in place, as far as the level has weight."""
    channels = coarse.shape[2]
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            w = level[y, x, channels]
            total = max(w, np.float32(1e-12))
            share = min(np.float32(1.0), w * np.float32(2.0))
            rest = np.float32(1.0) - share
            for c in range(channels):
                coarse[y, x, c] = level[y, x, c] / total * share + coarse[y, x, c] * rest


def match_colours(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, *, fade: float = 0.05) -> np.ndarray:
    """Matches the colours of an image to a partial reference, without a seam at its border.

    The difference to the reference is interpolated smoothly over the rest of the image and fades with distance (a
    membrane as in Poisson image editing, Perez et al. 2003, computed by `push_pull`).

    Args:
        image: (H, W, 3) uint8 RGB.
        reference: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True where `reference` is valid.
        fade: how soon the correction fades with distance: `prior_weight` of `push_pull`.

    Returns:
        (H, W, 3) float32, not clipped.
    """
    base = image.astype(np.float32)
    if not mask.any():
        return base
    weight = mask.astype(np.float32)
    difference = np.zeros(base.shape, np.float32)
    _subtract(image, reference, mask, difference)
    difference = cv2.blur(difference, (9, 9))
    # Local means, so that different texture at the border of the mask does not extend into streaks.
    _divide(difference, cv2.blur(weight, (9, 9)))
    return np.add(base, push_pull(difference, weight, prior=np.zeros(3, np.float32), prior_weight=fade), out=base)


def feather(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, width: float) -> np.ndarray:
    """Composites a partial reference over an image with a feathered border.

    Args:
        image: (H, W, 3) float32 RGB, of any range.
        reference: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True where `reference` is valid.
        width: width of the transition outside the mask, pixels.

    Returns:
        (H, W, 3) uint8 RGB, the reference where the mask is set.
    """
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    out = np.empty(reference.shape, np.uint8)
    _feather(image, np.ascontiguousarray(reference), distance, np.float32(width), out)
    return out


@compiled
def _subtract(image, reference, mask, out):
    """Writes reference - image, both (H, W, 3) uint8, to the float32 `out` where the mask is set."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if mask[y, x]:
                for c in range(3):
                    out[y, x, c] = np.float32(reference[y, x, c]) - np.float32(image[y, x, c])


@compiled
def _divide(sums, weight):
    """Divides (H, W, 3) sums by their (H, W) weight, in place."""
    for y in range(sums.shape[0]):
        for x in range(sums.shape[1]):
            total = max(weight[y, x], np.float32(1e-6))
            for c in range(3):
                sums[y, x, c] /= total


@compiled
def _feather(image, reference, distance, width, out):
    """The loop of `feather`; `distance` (H, W) is the distance to the mask in pixels, 0 inside."""
    zero, one = np.float32(0.0), np.float32(1.0)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            share = min(max(one - distance[y, x] / width, zero), one)
            rest = one - share
            for c in range(3):
                value = np.rint(share * np.float32(reference[y, x, c]) + rest * image[y, x, c])
                out[y, x, c] = np.uint8(min(max(value, zero), np.float32(255.0)))


def _halve(array: np.ndarray) -> np.ndarray:
    """Halves the size of an (H, W, C) array with a Gaussian filter."""
    out = cv2.pyrDown(np.ascontiguousarray(array), borderType=cv2.BORDER_REFLECT_101)
    return out if out.ndim == 3 else out[..., None]


def fill_depth(depth: np.ndarray) -> np.ndarray:
    """Fills holes of a depth image smoothly in inverse depth, from the background surfaces around them.

    Args:
        depth: (H, W) metres, 0 = hole.

    Returns:
        (H, W) float32 metres without holes; all zeros if there is no depth at all.
    """
    known = depth > 0
    if known.all() or not known.any():
        return depth.astype(np.float32)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    filled = push_pull(inverse[..., None], background_weight(depth, known))[..., 0]
    return np.where(known, depth, 1 / np.maximum(filled, 1e-3)).astype(np.float32)


def background_weight(depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights for `push_pull` that fill holes from the background: disocclusions show what is behind.

    The weight is the depth relative to the largest depth within `BACKGROUND_REACH_PX`, to the `BACKGROUND_POWER`.

    Args:
        depth: (H, W) metres.
        known: (H, W) bool, True where the depth is valid.

    Returns:
        (H, W) float32 in 0..1, 0 where unknown.
    """
    scale = 4
    depth = np.where(known, depth, 0).astype(np.float32)
    size = (max(1, depth.shape[1] // scale), max(1, depth.shape[0] // scale))
    reach = 2 * (BACKGROUND_REACH_PX // scale) + 1
    # Downsampled by the maximum, so that thin background is kept.
    largest = cv2.resize(cv2.dilate(depth, np.ones((scale, scale), np.uint8)), size, interpolation=cv2.INTER_NEAREST)
    largest = cv2.dilate(largest, np.ones((reach, reach), np.uint8))
    largest = cv2.resize(largest, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    ratio = np.minimum(1, depth / np.maximum(largest, 1e-12))
    return np.where(known, np.maximum(ratio, 0.03) ** BACKGROUND_POWER, 0).astype(np.float32)
