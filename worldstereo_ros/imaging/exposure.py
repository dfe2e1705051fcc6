"""Exposure and white balance differences between views, estimated from common surface points.

A gain multiplies brightness (exposure) and may multiply the three channels a little differently (white balance). Gains
are bounded, and a view gets one only if it brings the colours of its overlaps closer together: few common points, gloss
and clipped highlights can suggest a gain that does the opposite. Clipped pixels get the brightness alone, because the
colour of what is brighter than white is unknown: white times (1.2, 0.9, 1.2) would be magenta.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldstereo_ros.imaging.overlap import Overlap

MIN_POINTS = 20  # unclipped points for a pair of views to count
MIN_LEVEL, MAX_LEVEL = 6, 249  # colours outside are clipped and do not depend on exposure
MAX_GAIN = 2.0  # of the brightness, up or down
MAX_BALANCE = 1.15  # of a channel relative to the brightness, up or down
PRIOR_WEIGHT = 100.0  # weight of gain 1, in common points
BALANCE_PRIOR_WEIGHT = 400.0  # weight of equal channels: one object can suggest any balance
CLIP_START, CLIP_END = 235.0, 252.0  # brightest channel of a pixel: its colour begins to be, and is, unreliable
MAX_CHECKED = 100  # common points of a pair that decide what a view keeps of its gain
MAX_ROUNDS = 10  # over all views, of choosing how much of its gain each one keeps


def align_exposure(count: int, overlaps: Mapping[tuple[int, int], Overlap]) -> np.ndarray:
    """Estimates a gain per view and colour channel that makes common surface points equally bright.

    `apply_gain(image, gain)` has the common exposure. The gain between two views is the median of the colour ratios of
    their common points, which is robust against gloss and wrong depth. All pairs are solved jointly by least squares
    with a prior of gain 1, which is stronger for the differences between channels than for the brightness. There is no
    offset: fitted together with the gain it follows gloss and the mix of surfaces, and turns dark colours grey.

    Then each view keeps as much of its gain as lowers `colour_error` on the overlaps it takes part in, given the gains
    of the others: all of it, its brightness alone, or none.

    Args:
        count: number of views.
        overlaps: (i, j) -> overlap of views i and j, see `imaging.overlap.measure_overlap`.

    Returns:
        (count, 3) float64 gains. The geometric mean over the channels of a view is between 1 / MAX_GAIN and MAX_GAIN,
        each channel within a factor of MAX_BALANCE of it, and the colour error summed over all common points is no
        larger than without gains.
    """
    ratios = []
    for (i, j), common in overlaps.items():
        clipped = (common.colours.min(axis=(1, 2)) <= MIN_LEVEL) | (common.colours.max(axis=(1, 2)) >= MAX_LEVEL)
        colours = common.colours[~clipped]
        if len(colours) >= MIN_POINTS:
            ratios.append((i, j, len(colours), np.median(np.log(colours[:, 1] / colours[:, 0]), axis=0)))
    if not ratios:
        return np.ones((count, 3))
    brightness = solve_pairwise_offsets(count, [(i, j, n, float(ratio.mean())) for i, j, n, ratio in ratios])
    balance = [
        solve_pairwise_offsets(
            count, [(i, j, n, float(ratio[channel] - ratio.mean())) for i, j, n, ratio in ratios], BALANCE_PRIOR_WEIGHT
        )
        for channel in range(3)
    ]
    log_gains = brightness[:, None] + np.stack(balance, axis=1)
    return _keep_useful(bounded_gains(np.exp(log_gains)), overlaps)


def bounded_gains(gains: np.ndarray) -> np.ndarray:
    """Limits the brightness of gains (N, 3) to MAX_GAIN, and each channel to MAX_BALANCE times the brightness.

    The limits on the channels keep their geometric mean, so that a limited gain does not change in brightness.
    """
    logs = np.log(gains)
    brightness = logs.mean(axis=1, keepdims=True)
    balance = logs - brightness
    excess = np.abs(balance).max(axis=1, keepdims=True) / np.log(MAX_BALANCE)
    limit = np.log(MAX_GAIN)
    return np.exp(np.clip(brightness, -limit, limit) + balance / np.maximum(excess, 1))


def apply_gain(colours: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Multiplies colours by a gain; the closer to clipping, the more by its brightness alone.

    Args:
        colours: (..., 3) RGB in 0..255.
        gain: (3,), or any shape that broadcasts to `colours`.

    Returns:
        (..., 3) of the type of `colours` if that is floating, else float32; not limited to 255.
    """
    colours, gain = np.asarray(colours), np.asarray(gain)
    if not np.issubdtype(colours.dtype, np.floating):
        colours = colours.astype(np.float32)
    # Reductions over an axis of three are slow in NumPy.
    neutral = np.cbrt(gain[..., :1] * gain[..., 1:2] * gain[..., 2:])
    brightest = np.maximum(np.maximum(colours[..., :1], colours[..., 1:2]), colours[..., 2:])
    clipped = np.clip((brightest - CLIP_START) / (CLIP_END - CLIP_START), 0, 1)
    return colours * (gain + clipped * (neutral - gain)).astype(colours.dtype)


def colour_error(colours: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Difference of common points after each view is shown in the exposure of the other one.

    A gain that makes everything dark brings colours closer together without bringing them into agreement; the exposure
    of the two views themselves is the scale that does not reward this.

    Args:
        colours: (N, 2, 3) RGB of the same points in two views, 0..255.
        one, other: (3,) or (N, 3) gains of the two views.

    Returns:
        (N,) mean absolute difference in grey levels, after clipping to 0..255; the mean over both directions.
    """
    shown = np.clip(apply_gain(colours, np.stack([one / other, other / one], axis=-2)), 0, 255)
    return np.abs(shown - colours[:, ::-1]).reshape(-1, 6) @ np.full(6, 1 / 6, shown.dtype)


def solve_pairwise_offsets(
    count: int, differences: list[tuple[int, int, int, float]], prior_weight: float = PRIOR_WEIGHT
) -> np.ndarray:
    """Solves for values with given pairwise differences, by least squares with a prior of 0.

    Args:
        count: number of values.
        differences: (i, j, weight, d) for x[i] - x[j] = d.
        prior_weight: weight of x[i] = 0.

    Returns:
        (count,) float64 values of mean 0.
    """
    normal, right = np.eye(count) * prior_weight, np.zeros(count)
    for i, j, weight, d in differences:
        normal[i, i] += weight
        normal[j, j] += weight
        normal[i, j] -= weight
        normal[j, i] -= weight
        right[i] += weight * d
        right[j] -= weight * d
    x = np.linalg.solve(normal, right)
    return x - x.mean()


# --- internals -------------------------------------------------------------------------------------------------------


def _keep_useful(gains: np.ndarray, overlaps: Mapping[tuple[int, int], Overlap]) -> np.ndarray:
    """(N, 3) gains, of each view as much as lowers the error on its overlaps; see `align_exposure`.

    Coordinate descent: changing one view changes the error of its own overlaps only, so that each step lowers the sum
    over all of them and the choice ends. It looks at some points of each pair, the final check at all of them.
    """
    pairs = [(i, j, common.colours) for (i, j), common in overlaps.items() if len(common.colours)]
    some = [(i, j, colours[:: -(-len(colours) // MAX_CHECKED)]) for i, j, colours in pairs]
    first, second = (np.repeat([pair[side] for pair in some], [len(pair[2]) for pair in some]) for side in (0, 1))
    colours = np.concatenate([pair[2] for pair in some]).astype(np.float32)
    weights = np.concatenate([np.full(len(s[2]), len(p[2]) / len(s[2])) for s, p in zip(some, pairs, strict=True)])
    neutral = np.repeat(np.cbrt(gains.prod(axis=1, keepdims=True)), 3, axis=1)
    ones, kept = np.ones_like(gains), gains.copy()
    own = [np.nonzero((first == view) | (second == view))[0] for view in range(len(gains))]
    for _ in range(MAX_ROUNDS):
        changed = False
        for view, points in enumerate(own):
            # Of equal errors the smaller intervention wins.
            candidates, errors = np.stack([ones[view], neutral[view], gains[view]]), []
            previous = kept[view].copy()
            for candidate in candidates:
                kept[view] = candidate
                error = colour_error(colours[points], kept[first[points]], kept[second[points]])
                errors.append(float(error @ weights[points]))
            kept[view] = candidates[int(np.argmin(errors))]
            changed |= bool((kept[view] != previous).any())
        if not changed:
            break
    totals = [sum(float(colour_error(c, g[i], g[j]).sum()) for i, j, c in pairs) for g in (kept, ones)]
    return kept if totals[0] < totals[1] else ones
