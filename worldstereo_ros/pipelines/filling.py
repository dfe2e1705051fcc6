"""Filling holes smoothly, from the background first."""

from __future__ import annotations

import cv2
import numpy as np

BACKGROUND = 2.0  # a surface twice as far counts 2^2 times as much in a fill


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
        weight: (H, W) float32 >= 0, 0 = unknown. Relative weights bias the fill (see `background_weight`).
        prior: (H, W, C) float32, what to expect far from everything known, or None.
        prior_weight: how soon the prior takes over; 0 = never while anything is known.
        keep: (H, W) bool, pixels returned unchanged; None = those with weight.

    Returns:
        (H, W, C) float32.
    """
    channels = values.shape[2]
    known = (weight > 0).astype(np.float32)
    packed = np.concatenate([values * weight[..., None], weight[..., None], known[..., None]], axis=2)
    if prior is None:
        prior = np.broadcast_to(np.float32(0), values.shape)
        prior_weight = 0.0
    levels, priors = [packed], [prior.astype(np.float32, copy=False)]
    while min(levels[-1].shape[:2]) > 2:
        levels.append(_halve(levels[-1]))
        priors.append(_halve(priors[-1]))
    filled = None
    for level in range(len(levels) - 1, -1, -1):
        here, expected = levels[level], priors[level]
        mean = here[..., :channels] / np.maximum(here[..., channels : channels + 1], 1e-12)
        share = np.minimum(1, here[..., channels + 1 :] * 2)
        if filled is None:
            top = here[..., channels + 1 :]
            total = top + prior_weight
            filled = np.where(total > 0, (mean * top + expected * prior_weight) / np.maximum(total, 1e-12), expected)
            continue
        shape = (here.shape[1], here.shape[0])
        coarse = cv2.resize(filled, shape, interpolation=cv2.INTER_LINEAR).reshape((*here.shape[:2], channels))
        if prior_weight > 0:
            parent = cv2.resize(priors[level + 1], shape, interpolation=cv2.INTER_LINEAR)
            coarse = coarse + (expected - parent.reshape(coarse.shape))
        filled = mean * share + coarse * (1 - share)
    if keep is None:
        keep = weight > 0
    return np.where(keep[..., None], values, filled)


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
    """(H, W) float32 weights for a fill: what lies behind fills the gap that what lies before has left open."""
    if not known.any():
        return np.zeros(depth.shape, np.float32)
    middle = max(float(np.median(depth[known])), 1e-6)
    return np.where(known, np.clip(depth / middle, 0.05, 20) ** BACKGROUND, 0).astype(np.float32)
