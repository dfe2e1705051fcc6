"""Checks of points that are inserted into the cloud memory, and their confidences as stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance, as_provenance
from worldstereo_ros.memory._cloud_state import CONFIDENCE_LEVELS
from worldstereo_ros.utils.errors import InputError


def checked_columns(
    points: np.ndarray,
    colours: np.ndarray,
    provenance: np.ndarray | int,
    positive: Mapping[str, np.ndarray | float],
    confidences: Mapping[str, np.ndarray | float | None],
    stamp_ns: np.ndarray | int,
) -> dict[str, np.ndarray]:
    """Checks N points with their attributes.

    Args:
        points: (N, 3) numbers.
        colours: (N, 3) uint8.
        provenance: see `geometry.provenance.as_provenance`.
        positive: attributes by name, (N,) or a scalar, which must be positive.
        confidences: attributes by name, (N,) or a scalar in 0..1, or None.
        stamp_ns: (N,) nanoseconds, or a scalar.

    Returns:
        The attributes by name, each with one value per point; confidences that are None are left out.

    Raises:
        InputError: a shape, type or value is not as described.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"The points have shape {points.shape}; (N, 3) was expected.")
    count = len(points)
    colours = np.asarray(colours)
    if colours.shape != (count, 3) or colours.dtype != np.uint8:
        raise InputError(f"The colours are {colours.dtype} {colours.shape}; uint8 {(count, 3)} was expected.")
    columns = {"colours": np.ascontiguousarray(colours), "provenance": as_provenance(provenance, (count,))}
    given = {name: value for name, value in confidences.items() if value is not None}
    for name, value in {**positive, **given, "stamp_ns": stamp_ns}.items():
        array = np.asarray(value)
        if array.shape not in ((), (count,)):
            raise InputError(f"The {name} has shape {array.shape}; ({count},) or a scalar was expected.")
        dtype = np.int64 if name == "stamp_ns" else np.float32
        columns[name] = np.ascontiguousarray(np.broadcast_to(array, (count,)), dtype=dtype)
    for name in positive:
        if not (np.isfinite(columns[name]) & (columns[name] > 0)).all():
            raise InputError(f"The {name} has values that are not positive numbers.")
    for name in given:
        if not ((columns[name] >= 0) & (columns[name] <= 1)).all():
            raise InputError(f"The {name} has values that are not in 0..1.")
    return columns


def confidence_levels(confidence: np.ndarray | None, provenance: np.ndarray, certain: Provenance) -> np.ndarray:
    """Returns (N,) or (1,) uint16 levels of a (...) confidence in 0..1.

    None means 1 for points of the class `certain` or a higher one, and 0 for others.
    """
    if confidence is None:
        known = provenance >= certain
        if known.all():
            return np.array([CONFIDENCE_LEVELS], np.uint16)
        return np.where(known.reshape(-1), np.uint16(CONFIDENCE_LEVELS), np.uint16(0))
    # NaN counts as confidence 0.
    level = np.nan_to_num(np.asarray(confidence, np.float32).reshape(-1))
    return (np.clip(level, 0, 1) * np.float32(CONFIDENCE_LEVELS) + np.float32(0.5)).astype(np.uint16)
