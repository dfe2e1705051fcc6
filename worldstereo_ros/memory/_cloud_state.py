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
