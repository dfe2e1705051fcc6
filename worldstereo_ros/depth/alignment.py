"""Depth brought to the scale of what is known: robust scale and shift, and completion of holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.imaging.codecs import MAX_DEPTH_M, clean_depth
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.utils.errors import WorldStereoError

LEAST_KNOWN = 200  # pixels, to bring an estimate to the scale of memory


class DepthError(WorldStereoError, ValueError):
    """Depth that cannot be had. The message is a sentence: what came, what was expected, what to do."""


@dataclass(frozen=True)
class Alignment:
    """Depth brought to the scale of references.

    Attributes:
        depth: (H, W) float32 metres, 0 = unknown (also where the aligned inverse depth is not positive).
        scale, shift: 1 / depth = scale * disparity + shift, in 1 / metres.
        inlier_fraction: of the references, 0..1.
        references: number of pixels that were compared.
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
    """Scale and shift in disparity that bring a prediction to reference depth, by RANSAC and least squares.

    Monocular predictions are right up to two numbers there (Ranftl et al., MiDaS, 2020). Errors are relative: a
    reference fits where the aligned inverse depth is within `tolerance` of its own, so near and far count alike.
    Where the references lie at (nearly) one disparity, only the scale can be found.

    Args:
        predicted: (H, W); inverse depth in any unit (kind "disparity") or depth, any scale, 0 = unknown ("depth").
        reference: (H, W) metres, 0 = unknown: a sparse sensor, or the memory rendered at the same pose.
        kind: what `predicted` holds.
        tolerance: relative error of an inlier.
        min_references: pixels known in both that are needed.
        min_inliers: fraction of them that must agree.
        hypotheses: pairs of references tried.
        seed: of the draws; equal seeds give equal results.

    Raises:
        DepthError: shapes differ, too few references, or too few that agree.
    """
    if kind not in ("disparity", "depth"):
        raise DepthError(f"The kind '{kind}' is not known; 'disparity' or 'depth' was expected.")
    if predicted.shape != reference.shape:
        raise DepthError(f"The prediction is {predicted.shape} and the reference {reference.shape}; equal is needed.")
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = predicted.astype(np.float64) if kind == "disparity" else 1.0 / predicted.astype(np.float64)
        target = 1.0 / reference.astype(np.float64)
    usable = np.isfinite(disparity) & (predicted > 0 if kind == "depth" else True)
    both = usable & np.isfinite(target) & (reference > 0)
    x, y = disparity[both], target[both]
    if x.size < min_references:
        raise DepthError(
            f"Only {x.size} pixels have both a prediction and a reference; {min_references} are needed to find a scale."
        )
    scale, shift, inlier = _fit(x, y, tolerance, hypotheses, np.random.default_rng(seed))
    fraction = float(inlier.mean())
    if fraction < min_inliers or not scale > 0:
        raise DepthError(
            f"Only {fraction:.0%} of {x.size} references agree with one scale and shift; {min_inliers:.0%} are needed. "
            "The picture and the reference may not show the same place."
        )
    aligned = scale * disparity + shift
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(usable & (aligned > 0), 1.0 / aligned, 0)
    return Alignment(clean_depth(depth), scale, shift, fraction, int(x.size))


def _fit(
    x: np.ndarray, y: np.ndarray, tolerance: float, hypotheses: int, rng: np.random.Generator
) -> tuple[float, float, np.ndarray]:
    """(scale, shift, inliers) of y = scale x + shift with scale > 0 and relative errors."""
    rows = rng.permutation(x.size)[:4000]  # enough to rank hypotheses by; the refinement takes all
    sx, sy = x[rows], y[rows]
    low, high = np.percentile(x, (5, 95))
    first, second = rng.integers(0, sx.size, (2, hypotheses))
    spread = high - low
    scales, shifts = np.zeros(0), np.zeros(0)
    if spread > 1e-3 * max(abs(low), abs(high)):
        # Pairs too close together fix the scale badly.
        apart = np.abs(sx[first] - sx[second]) > 0.1 * spread
        first, second = first[apart], second[apart]
        scales = (sy[first] - sy[second]) / (sx[first] - sx[second])
        shifts = sy[first] - scales * sx[first]
    # Scale alone is a hypothesis too: it is all that one distance can tell.
    alone = rng.integers(0, sx.size, 50)
    alone = alone[sx[alone] > 0]
    scales = np.concatenate([scales, sy[alone] / sx[alone]])
    shifts = np.concatenate([shifts, np.zeros(len(alone))])
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
    """Least squares of the relative error, centred so that large disparities cost no precision."""
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


def align_to_known(depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Depth of an estimator, in the scale of what memory already holds of the place.

    Args:
        depth: (H, W) metres, right up to scale and shift in disparity.
        known: (H, W) metres of the memory rendered at the same pose, 0 = hole.

    Returns:
        (H, W) float32 metres; `depth` unchanged where too little is known, or too little of it agrees, to say better.
    """
    try:
        return align_depth(depth, known, kind="depth", min_references=200, tolerance=0.08).depth
    except DepthError:
        return clean_depth(depth)


def complete_depth(known: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """Depth that is known in part, gone on with in the shape that an estimator sees.

    The difference of the logarithms on the known part, the scale among it, is spread smoothly over the rest: far from
    what is known it is its mean, and no step is at the border. (`align_to_known` before it does not do better, at ten
    times the price.)

    Args:
        known: (H, W) metres of the memory rendered at the pose, 0 = hole.
        estimated: (H, W) metres of the painted picture, 0 = nothing there.

    Returns:
        (H, W) float32 metres; known pixels unchanged. Where the estimator sees nothing, and everywhere where too little
        is known to compare it with, `fill_depth` of what is known.

    Raises:
        DepthError: the shapes differ.
    """
    if known.shape != estimated.shape:
        raise DepthError(f"Known depth is {known.shape} and the estimate {estimated.shape}; equal is needed.")
    shown = known > 0
    filled = fill_depth(known)
    both = shown & (estimated > 0)
    if both.sum() < LEAST_KNOWN:
        return filled
    logs = np.log(np.where(estimated > 0, estimated, 1)).astype(np.float32)
    off = np.where(both, np.log(np.where(shown, known, 1)) - logs, 0).astype(np.float32)
    spread = push_pull(off[..., None], both.astype(np.float32))[..., 0]
    gone_on = np.clip(np.exp(logs + spread), 0, MAX_DEPTH_M)
    return np.where(shown, known, np.where(estimated > 0, gone_on, filled)).astype(np.float32)
