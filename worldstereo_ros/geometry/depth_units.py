"""Units of depth images, and checks whether depth that was read in some unit can be right.

By REP 118, 16UC1 is millimetres and 32FC1 metres, and not every driver keeps to it: RealSense D405 count tenths of a
millimetre, L515 quarters, and some simulators write millimetres as floating point. The file does not say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from worldstereo_ros.geometry.cameras import project, unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError

AUTO_UNIT = "auto"
DEPTH_UNITS_M = {"m": 1.0, "mm": 1e-3, "0.1mm": 1e-4}  # name -> metres

# A robot's camera whose median depth is outside this range is possible, but a wrong unit is more likely.
MIN_MEDIAN_DEPTH_M, MAX_MEDIAN_DEPTH_M = 0.1, 20.0
MIN_PIXELS = 50  # of valid depth, for a statement

# Wrong units that are seen in practice, as factors on the depth.
_FACTORS = (1e-3, 1e-2, 0.1, 0.25, 1.0, 4.0, 10.0, 100.0, 1e3)
_MAX_POINTS = 4000  # of a pair of views
_MIN_OVERLAP = 0.25  # of the points of one view that must be seen in the other
_MIN_RESIDUAL = 0.02  # median relative difference of the depth that noise and errors of the poses may explain
_MAX_RESIDUAL_RATIO = 0.4  # of the differences with another factor and as read, so that the factor is believed
_RESIDUAL_WITHOUT_OVERLAP = 0.1  # counts as the difference of depth as read that sees nothing in common
_MAX_DEPTH_PER_BASELINE = 50.0


def parse_depth_unit(text: str) -> float | None:
    """Returns the metres of one stored value of a depth image; None for "auto", by the image's type.

    Args:
        text: "auto", a name in `DEPTH_UNITS_M`, or a positive number of metres, such as "0.00025".

    Raises:
        InputError: another text.
    """
    text = text.strip()
    if text in (AUTO_UNIT, ""):
        return None
    if text in DEPTH_UNITS_M:
        return DEPTH_UNITS_M[text]
    try:
        metres = float(text)
    except ValueError:
        metres = 0.0
    if not (np.isfinite(metres) and metres > 0):
        raise InputError(
            f"The depth unit is '{text}'; {AUTO_UNIT}, {', '.join(DEPTH_UNITS_M)} or a positive number of metres per "
            "stored value was expected."
        )
    return metres


def implausible_depth(depth: np.ndarray) -> str:
    """Describes what is implausible about depth by its size alone.

    Args:
        depth: (H, W) metres, 0 = unknown.

    Returns:
        A clause such as "its median is 31.2 m"; empty if the depth is plausible, or too little of it is known.
    """
    known = depth[depth > 0]
    if len(known) < MIN_PIXELS:
        return ""
    median = float(np.median(known))
    if MIN_MEDIAN_DEPTH_M <= median <= MAX_MEDIAN_DEPTH_M:
        return ""
    return f"its median is {median:.3g} m"


def motion_depth_factor(first: View, second: View) -> float:
    """Finds the factor on the depth of two views that makes them agree with the motion between them.

    Points of one view are compared with the depth of the other, for the factors of common wrong units. Depth in the
    unit of the poses moves as the camera does; depth that is ten times too far seems to stand still.

    Args:
        first, second: views with depth and poses.

    Returns:
        The factor, 1.0 if the depth agrees as it is, or if the views do not tell (no overlap, or the camera turned
        without moving).
    """
    as_read = _median_residual(first, second, 1.0)
    if as_read is not None and as_read <= _MIN_RESIDUAL:
        return 1.0
    baseline = float(np.linalg.norm(first.world_from_camera[:3, 3] - second.world_from_camera[:3, 3]))
    known: dict[float, float] = {}
    for factor in _FACTORS:
        residual = _median_residual(first, second, factor)
        # Depth that is long against the motion agrees with any of it where the place looks alike, as in a corridor.
        if residual is not None and factor * _median_depth(first) <= _MAX_DEPTH_PER_BASELINE * baseline:
            known[factor] = residual
    if not known:
        return 1.0
    best = min(known, key=lambda factor: known[factor])
    return best if known[best] <= _MAX_RESIDUAL_RATIO * (as_read or _RESIDUAL_WITHOUT_OVERLAP) else 1.0


def check_depth(views: Sequence[View], name: str, remedy: str) -> str:
    """Checks measured depth of views for a wrong unit.

    Args:
        views: views of one recording; those without depth are passed over.
        name: what is measured, for the message, such as "The depth on '/camera/depth'".
        remedy: the option that sets the unit, for the message.

    Returns:
        A warning in one or two sentences; empty if nothing is implausible.
    """
    measured = [v for v in views if v.depth is not None and v.is_observation and not v.estimated_mask.all()]
    factors = [motion_depth_factor(one, other) for one, other in pairwise(measured)]
    factor, count = Counter(factors).most_common(1)[0] if factors else (1.0, 0)
    if factor != 1.0 and count * 2 > len(factors):
        times, way = (1 / factor, "far") if factor < 1 else (factor, "near")
        return (
            f"{name} seems {times:g} times too {way}: it agrees with the motion of the camera if it is multiplied by "
            f"{factor:g}. If so, set its unit ({remedy})."
        )
    in_metres = [view.depth for view in measured if view.depth is not None and view.metric]
    doubts = [text for depth in in_metres if (text := implausible_depth(depth))]
    if len(doubts) * 2 <= len(measured):
        return ""
    if sum(_agrees(one, other) for one, other in pairwise(measured)) * 2 > len(factors):
        return ""  # far outdoors, or close to a small thing
    return f"{name} is implausible: {doubts[0]}. If its unit is another than was assumed, set it ({remedy})."


def _agrees(first: View, second: View) -> bool:
    """Whether the depth of two views agrees as it is with the motion between them, and another unit would not."""
    residual = _median_residual(first, second, 1.0)
    baseline = float(np.linalg.norm(first.world_from_camera[:3, 3] - second.world_from_camera[:3, 3]))
    return (
        residual is not None
        and residual <= _MIN_RESIDUAL
        and _median_depth(first) <= _MAX_DEPTH_PER_BASELINE * baseline
        and all(
            other is None or other * _MAX_RESIDUAL_RATIO >= residual
            for other in (_median_residual(first, second, factor) for factor in _FACTORS if factor != 1.0)
        )
    )


def _median_depth(view: View) -> float:
    known = np.zeros(0) if view.depth is None else view.depth[view.depth > 0]
    return float(np.median(known)) if len(known) else 0.0


def _median_residual(first: View, second: View, factor: float) -> float | None:
    """Median relative difference of the depth of two views at a factor; None if they do not overlap."""
    residuals = [_one_way(first, second, factor), _one_way(second, first, factor)]
    known = [residual for residual in residuals if residual is not None]
    return max(known) if len(known) == 2 else None


def _one_way(source: View, target: View, factor: float) -> float | None:
    assert source.depth is not None
    assert target.depth is not None
    rows, columns = np.nonzero(source.depth > 0)
    if len(rows) < MIN_PIXELS:
        return None
    step = -(-len(rows) // _MAX_POINTS)
    rows, columns = rows[::step], columns[::step]
    depth = source.depth * np.float32(factor)
    points = unproject(depth, source.camera, source.world_from_camera)[rows, columns]
    pixels, z = project(points, target.camera, target.world_from_camera)
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (pixels > -0.5).all(axis=1)
        inside &= (pixels < np.array([target.camera.width, target.camera.height]) - 0.5).all(axis=1)
    x, y = np.rint(pixels[inside]).astype(int).T
    there = target.depth[y, x] * np.float32(factor)
    seen = there > 0
    if seen.sum() < max(MIN_PIXELS, _MIN_OVERLAP * len(rows)):
        return None
    return float(np.median(np.abs(z[inside][seen] - there[seen]) / there[seen]))
