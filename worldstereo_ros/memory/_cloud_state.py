"""The state of a saved cloud: array names and types, upgrade of old versions, validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance, as_provenance
from worldstereo_ros.utils.errors import InputError

# name -> (dtype, shape of one point); all arrays of a state have the same length.
ARRAYS = {
    "points": (np.float32, (3,)),
    "colours": (np.uint8, (3,)),
    "fine_colours": (np.uint16, (3,)),  # colours * 256: a running mean in uint8 would stop changing
    "provenance": (np.uint8, ()),  # values of `Provenance`
    "weight": (np.float32, ()),
    "stamp_ns": (np.int64, ()),
    "spacing": (np.float32, ()),
    "keys": (np.int64, ()),  # packed voxel coordinates
    "turns": (np.int64, ()),  # number of the last insertion that updated the point
    "confidence": (np.uint16, ()),  # mean confidence of its pixels, times CONFIDENCE_LEVELS
    "depth_confidence": (np.uint16, ()),  # the same for the confidence of their depth
}
CONFIDENCE_LEVELS = 65535
MAX_POINTS = 100_000_000
DEFAULT_POINTS = 2_000_000  # of a memory without another limit
OPTIONAL_SETTINGS = ("max_radius", "max_age")  # None is saved as NaN
SETTINGS = ("voxel_size", "max_points", *OPTIONAL_SETTINGS, "edge_tolerance", "max_weight", "carve")
SCALARS = ("last_ns", "turn")


def upgrade_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state of any map version with the names of the current version.

    Version 1 named the fusion weight `confidence` and the confidence `certainty`. If `certainty` is missing, the
    confidence is 1 for observed points and 0 for others. Versions 1 and 2 had a mask `observed`, which was also True
    for points whose distance a model estimated; they cannot be told apart and stay observed. Their confidence of depth
    is 1 for observed points and 0 for others.
    """
    upgraded = dict(state)
    if "max_confidence" in state:
        renamed = {"confidence": "weight", "certainty": "confidence", "max_confidence": "max_weight"}
        upgraded = {renamed.get(name, name): value for name, value in state.items()}
    if "provenance" in upgraded or "observed" not in upgraded:
        return upgraded
    observed = np.asarray(upgraded.pop("observed"))
    if observed.dtype != np.bool_:
        raise InputError(f"The saved cloud's observed is {observed.dtype}; bool was expected.")
    upgraded["provenance"] = as_provenance(observed, observed.shape)
    levels = np.where(observed, CONFIDENCE_LEVELS, 0).astype(np.uint16)
    upgraded.setdefault("confidence", levels)
    upgraded.setdefault("depth_confidence", levels)
    return upgraded


def validate_state(state: dict[str, np.ndarray]) -> tuple[dict[str, Any], int]:
    """Validates the state of a saved cloud.

    Returns:
        (settings as keyword arguments of `CloudMemory`, number of points).

    Raises:
        InputError: an array is missing, has a wrong type or shape, contradicts another, or holds invalid numbers.
    """
    missing = [name for name in (*SETTINGS, *ARRAYS, *SCALARS, "camera_centre") if name not in state]
    if missing:
        raise InputError(f"The saved cloud lacks {', '.join(missing)}.")
    settings: dict[str, Any] = {}
    for name in (*SETTINGS, *SCALARS):
        value = np.asarray(state[name]).reshape(-1)
        if value.size != 1 or value.dtype.kind not in "fiub":
            raise InputError(
                f"The saved cloud's {name} has {value.size} values of {value.dtype}; one number was expected."
            )
        if name in SETTINGS:
            unset = bool(np.isnan(value[0]))
            if unset and name not in OPTIONAL_SETTINGS:
                raise InputError(f"The saved cloud's {name} is NaN; a number was expected.")
            settings[name] = None if unset else float(value[0])
    count = np.asarray(state["keys"]).size
    for name, (dtype, shape) in ARRAYS.items():
        array = np.asarray(state[name])
        if array.dtype != dtype or array.shape != (count, *shape):
            expected = f"{np.dtype(dtype)} {(count, *shape)}"
            raise InputError(f"The saved cloud's {name} is {array.dtype} {array.shape}; {expected} was expected.")
    if count > settings["max_points"]:
        raise InputError(f"The saved cloud has {count} points; its budget max_points is {settings['max_points']:.0f}.")
    classes = state["provenance"]
    if count and not (classes.min() >= Provenance.IMAGINED and classes.max() <= Provenance.OBSERVED):
        raise InputError("The saved cloud has a provenance that is not 1 (imagined), 2 (estimated) or 3 (observed).")
    positive = (state["weight"] > 0).all() and (state["spacing"] > 0).all()
    if not (positive and np.isfinite(state["points"]).all() and (state["keys"] >= 0).all()):
        raise InputError("The saved cloud has invalid points, weights, spacings or voxel keys.")
    settings["max_points"] = int(min(settings["max_points"], 2**62))
    return settings, count


def choose_settings(saved: dict[str, Any], count: int, like: object | None) -> tuple[dict[str, Any], bool]:
    """Chooses the settings of a memory that is restored from a file.

    A file may claim a budget of 100 million points, for which gigabytes would be allocated, so that its own budget only
    counts up to DEFAULT_POINTS or the number of its points.

    Args:
        saved: settings in the file.
        count: number of points in the file.
        like: a memory whose settings apply instead, or None.

    Returns:
        (settings as keyword arguments of `CloudMemory`, whether the points fit as they are).
    """
    if like is None:
        budget = saved["max_points"]
        if budget <= MAX_POINTS:  # the memory rejects others
            budget = min(budget, max(count, DEFAULT_POINTS))
        return {**saved, "max_points": budget}, True
    settings = {name: getattr(like, name) for name in SETTINGS}
    return settings, count <= settings["max_points"] and saved["voxel_size"] == settings["voxel_size"]


def last_camera(state: dict[str, np.ndarray]) -> tuple[np.ndarray | None, int]:
    """Returns (centre (3,) of the last camera in metres or None, stamp of the last view in nanoseconds)."""
    centre = np.asarray(state["camera_centre"], np.float64).reshape(-1)
    known = centre.shape == (3,) and bool(np.isfinite(centre).all())
    return (centre.copy() if known else None), int(np.asarray(state["last_ns"]).reshape(-1)[0])


def points_that_fit(state: dict[str, np.ndarray], max_points: int, voxel_size: float) -> dict[str, np.ndarray]:
    """Returns the points of a state for a memory of other settings, as arguments of `CloudMemory.insert_points`.

    They are in the order of their last update. Of more than `max_points`, the least recently updated ones of the lowest
    classes are left out, as they would be evicted.

    Args:
        state: valid, of the current version.
        max_points: number of points of the memory.
        voxel_size: metres, of the memory.
    """
    order = np.lexsort((state["turns"], state["provenance"]))[-max_points:]
    order = order[np.argsort(state["turns"][order], kind="stable")]
    names = ("points", "colours", "provenance", "weight", "stamp_ns")
    points = {name: state[name][order] for name in names}
    points["spacing"] = np.maximum(state["spacing"][order], np.float32(voxel_size))
    for name in ("confidence", "depth_confidence"):
        points[name] = np.minimum(state[name][order] * np.float32(1 / CONFIDENCE_LEVELS), np.float32(1))
    return points
