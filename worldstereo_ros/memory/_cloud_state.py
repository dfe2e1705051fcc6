"""What a saved cloud must look like before any of it is used."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldstereo_ros.utils.errors import InputError

# Of every point; all arrays of a state have the same length.
ARRAYS = {
    "points": (np.float32, (3,)),
    "colours": (np.uint8, (3,)),
    "fine_colours": (np.uint16, (3,)),  # colours * 256: a running mean in whole numbers would stop moving
    "observed": (np.bool_, ()),
    "weight": (np.float32, ()),
    "stamp_ns": (np.int64, ()),
    "spacing": (np.float32, ()),
    "keys": (np.int64, ()),  # the packed voxel
    "turns": (np.int64, ()),  # number of the last insertion that saw the point
    "confidence": (np.uint16, ()),  # CONFIDENCE_LEVELS times the mean confidence of its pixels
}
CONFIDENCE_LEVELS = 65535
OPTIONAL_SETTINGS = ("max_radius", "max_age")  # None is saved as NaN
SETTINGS = ("voxel_size", "max_points", *OPTIONAL_SETTINGS, "edge_tolerance", "max_weight", "carve")
NUMBERS = ("last_ns", "turn")


def upgraded_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state of any version of the map format in today's names.

    Version 1 called the fusion weight `confidence` and the confidence `certainty` (its first maps had none: 1 for what
    was observed, else 0).
    """
    if "max_confidence" not in state:
        return state
    renamed = {"confidence": "weight", "certainty": "confidence", "max_confidence": "max_weight"}
    upgraded = {renamed.get(name, name): value for name, value in state.items()}
    if "confidence" not in upgraded and "observed" in upgraded:
        observed = np.asarray(upgraded["observed"])
        upgraded["confidence"] = np.where(observed, CONFIDENCE_LEVELS, 0).astype(np.uint16)
    return upgraded


def checked_state(state: dict[str, np.ndarray]) -> tuple[dict[str, Any], int]:
    """The settings and the number of points of a saved cloud.

    Raises:
        ValueError: an array is missing, has a wrong type or shape, contradicts another, or holds impossible numbers.
    """
    missing = [name for name in (*SETTINGS, *ARRAYS, *NUMBERS, "camera_centre") if name not in state]
    if missing:
        raise InputError(f"The saved cloud lacks {', '.join(missing)}.")
    settings: dict[str, Any] = {}
    for name in (*SETTINGS, *NUMBERS):
        value = np.asarray(state[name]).reshape(-1)
        if value.size != 1 or value.dtype.kind not in "fiub":
            raise InputError(f"The saved cloud's {name} should be one number.")
        if name in SETTINGS:
            unset = bool(np.isnan(value[0]))
            if unset and name not in OPTIONAL_SETTINGS:
                raise InputError(f"The saved cloud's {name} is not a number.")
            settings[name] = None if unset else float(value[0])
    count = np.asarray(state["keys"]).size
    for name, (dtype, shape) in ARRAYS.items():
        array = np.asarray(state[name])
        if array.dtype != dtype or array.shape != (count, *shape):
            expected = f"{np.dtype(dtype)} {(count, *shape)}"
            raise InputError(f"The saved cloud's {name} is {array.dtype} {array.shape}; {expected} was expected.")
    if count > settings["max_points"]:
        raise InputError(f"The saved cloud has {count} points, over its budget of {settings['max_points']:.0f}.")
    positive = (state["weight"] > 0).all() and (state["spacing"] > 0).all()
    if not (positive and np.isfinite(state["points"]).all() and (state["keys"] >= 0).all()):
        raise InputError("The saved cloud has points, weights or voxels that are not valid numbers.")
    settings["max_points"] = int(min(settings["max_points"], 2**62))
    return settings, count
