"""Alignment of depth to a metric reference by robust scale and shift, and depth completion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.imaging.codecs import MAX_DEPTH_M, clean_depth
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.utils.errors import WorldStereoError

MIN_KNOWN_PX = 200  # known pixels needed to align an estimate to memory
MAX_RANSAC_SAMPLES = 4000  # references that rank the hypotheses; the refinement uses all


class DepthError(WorldStereoError, ValueError):
    """Depth is unavailable, or cannot be aligned."""


@dataclass(frozen=True)
class Alignment:
    """Depth aligned to a reference.

    Attributes:
        depth: (H, W) float32 metres, 0 = unknown (also where the aligned inverse depth is not positive).
        scale, shift: 1 / depth = scale * disparity + shift, in 1 / metres.
        inlier_fraction: fraction of the reference pixels that agree, 0..1.
        references: number of reference pixels.
    """

    depth: np.ndarray
    scale: float
    shift: float
    inlier_fraction: float
    references: int


def align_depth(
    predicted: np.ndarray,
    reference: np.ndarray,
    *,
    kind: str = "disparity",
    tolerance: float = 0.05,
    min_references: int = 50,
    min_inliers: float = 0.2,
    hypotheses: int = 400,
    seed: int = 0,
) -> Alignment:
    """Aligns a prediction to reference depth by scale and shift in disparity (RANSAC and least squares).

    Monocular predictions are correct up to scale and shift in disparity (Ranftl et al., MiDaS, 2020). Errors are
    relative, so that near and far pixels count alike. If the references have (nearly) one disparity, only the scale is
    estimated.

    Args:
        predicted: (H, W) inverse depth of any unit (kind "disparity"), or depth of any scale, 0 = unknown ("depth").
        reference: (H, W) metres, 0 = unknown: a sparse sensor, or the memory rendered at the same pose.
        kind: "disparity" or "depth", the content of `predicted`.
        tolerance: largest relative error in inverse depth of an inlier.
        min_references: minimum number of pixels with prediction and reference.
        min_inliers: minimum fraction of inliers.
        hypotheses: number of RANSAC hypotheses.
        seed: random seed; equal seeds give equal results.

    Raises:
        DepthError: the shapes differ, there are too few references, or too few inliers.
    """
    if kind not in ("disparity", "depth"):
        raise DepthError(f"The kind '{kind}' is unknown; 'disparity' or 'depth' was expected.")
    if predicted.shape != reference.shape:
        raise DepthError(
            f"The prediction has shape {predicted.shape}, the reference {reference.shape}; equal shapes were expected."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = predicted.astype(np.float64) if kind == "disparity" else 1.0 / predicted.astype(np.float64)
        target = 1.0 / reference.astype(np.float64)
    usable = np.isfinite(disparity) & (predicted > 0 if kind == "depth" else True)
    both = usable & np.isfinite(target) & (reference > 0)
    x, y = disparity[both], target[both]
    if x.size < min_references:
        raise DepthError(
            f"Only {x.size} pixels have both a prediction and a reference; at least {min_references} were expected."
        )
    scale, shift, inlier = _fit(x, y, tolerance, hypotheses, np.random.default_rng(seed))
    fraction = float(inlier.mean())
    if fraction < min_inliers or not scale > 0:
        raise DepthError(
            f"Only {fraction:.0%} of {x.size} references agree with one scale and shift; at least {min_inliers:.0%} "
            "were expected. Check that the image and the reference show the same place."
        )
    aligned = scale * disparity + shift
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(usable & (aligned > 0), 1.0 / aligned, 0)
    return Alignment(clean_depth(depth), scale, shift, fraction, int(x.size))


def _fit(
    x: np.ndarray, y: np.ndarray, tolerance: float, hypotheses: int, rng: np.random.Generator
) -> tuple[float, float, np.ndarray]:
    """Fits y = scale x + shift with scale > 0 and relative errors; returns (scale, shift, inlier mask)."""
    rows = rng.permutation(x.size)[:MAX_RANSAC_SAMPLES]
    sx, sy = x[rows], y[rows]
    low, high = np.percentile(x, (5, 95))
    first, second = rng.integers(0, sx.size, (2, hypotheses))
    spread = high - low
    scales, shifts = np.zeros(0), np.zeros(0)
    if spread > 1e-3 * max(abs(low), abs(high)):
        # Pairs of similar disparity do not determine the scale.
        distinct = np.abs(sx[first] - sx[second]) > 0.1 * spread
        first, second = first[distinct], second[distinct]
        scales = (sy[first] - sy[second]) / (sx[first] - sx[second])
        shifts = sy[first] - scales * sx[first]
    # Hypotheses of scale without shift, all that references at one distance determine.
    single = rng.integers(0, sx.size, 50)
    single = single[sx[single] > 0]
    scales = np.concatenate([scales, sy[single] / sx[single]])
    shifts = np.concatenate([shifts, np.zeros(len(single))])
    positive = scales > 0
    scales, shifts = scales[positive], shifts[positive]
    if not len(scales):
        return 0.0, 0.0, np.zeros(x.size, dtype=bool)
    error = np.abs(scales[:, None] * sx + shifts[:, None] - sy) / sy
    best = int(np.minimum(error, tolerance).mean(axis=1).argmin())
    scale, shift = float(scales[best]), float(shifts[best])
    inlier = np.abs(scale * x + shift - y) <= tolerance * y
    for _ in range(5):
        refined = _least_squares(x[inlier], y[inlier], scale_only=shift == 0.0)
        if refined is None or not refined[0] > 0:
            break
        new = np.abs(refined[0] * x + refined[1] - y) <= tolerance * y
        if new.sum() < inlier.sum():
            break
        (scale, shift), unchanged, inlier = refined, bool((new == inlier).all()), new
        if unchanged:
            break
    return scale, shift, inlier


def _least_squares(x: np.ndarray, y: np.ndarray, *, scale_only: bool) -> tuple[float, float] | None:
    """Least squares of the relative error; centred, which keeps the precision for large disparities."""
    if x.size < 2:
        return None
    weight = 1 / y**2
    if scale_only:
        return float((weight * x * y).sum() / (weight * x * x).sum()), 0.0
    mx, my = np.average(x, weights=weight), np.average(y, weights=weight)
    variance = (weight * (x - mx) ** 2).sum()
    if not variance > 0:
        return None
    scale = float((weight * (x - mx) * (y - my)).sum() / variance)
    return scale, float(my - scale * mx)


def align_to_memory(depth: np.ndarray, memory_depth: np.ndarray) -> np.ndarray:
    """Aligns estimated depth to the scale of the memory.

    Args:
        depth: (H, W) metres, correct up to scale and shift in disparity.
        memory_depth: (H, W) metres of the memory rendered at the same pose, 0 = hole.

    Returns:
        (H, W) float32 metres; `depth` without alignment if too little of the memory is visible or agrees.
    """
    try:
        return align_depth(depth, memory_depth, kind="depth", min_references=MIN_KNOWN_PX, tolerance=0.08).depth
    except DepthError:
        return clean_depth(depth)


def complete_depth(known: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """Completes partial depth with the shape of estimated depth.

    The difference of the logarithms on known pixels, which includes the scale, is extrapolated smoothly over the other
    pixels: there is no step at the border, and far from known pixels the mean difference applies. (`align_to_memory`
    before this step does not improve the result and takes ten times as long.)

    Args:
        known: (H, W) metres of the memory rendered at the pose, 0 = hole.
        estimated: (H, W) metres estimated from the generated image, 0 = unknown.

    Returns:
        (H, W) float32 metres; known pixels unchanged. Where the estimate is unknown, or everywhere if too few pixels
        are known, `fill_depth` of the known depth.

    Raises:
        DepthError: the shapes differ.
    """
    if known.shape != estimated.shape:
        raise DepthError(
            f"The known depth has shape {known.shape}, the estimate {estimated.shape}; equal shapes were expected."
        )
    known_mask = known > 0
    filled = fill_depth(known)
    both = known_mask & (estimated > 0)
    if both.sum() < MIN_KNOWN_PX:
        return filled
    logs = np.log(np.where(estimated > 0, estimated, 1)).astype(np.float32)
    difference = np.where(both, np.log(np.where(known_mask, known, 1)) - logs, 0).astype(np.float32)
    offset = push_pull(difference[..., None], both.astype(np.float32))[..., 0]
    completed = np.clip(np.exp(logs + offset), 0, MAX_DEPTH_M)
    return np.where(known_mask, known, np.where(estimated > 0, completed, filled)).astype(np.float32)
