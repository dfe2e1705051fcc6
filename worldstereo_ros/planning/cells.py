"""States of cells, the robot that needs the space, and the calibrated probabilities that follow from evidence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import bundled_file

CALIBRATION_FILE = "occupancy.json"
MIN_RESOLUTION_M, MAX_RESOLUTION_M = 0.01, 1.0


class CellState(IntEnum):
    """State of a cell or a voxel, and who says so: a sensor (observed), a depth model (estimated), imagination."""

    UNKNOWN = 0
    IMAGINED_FREE = 1
    IMAGINED_OCCUPIED = 2
    ESTIMATED = 3
    OBSERVED_FREE = 4
    OBSERVED_OCCUPIED = 5


@dataclass(frozen=True)
class RobotShape:
    """The space that a robot needs: an upright cylinder that stands on the floor.

    Attributes:
        radius: metres.
        height: metres. What is higher above the floor does not obstruct the robot (an overhang).
        max_step: height that the robot drives over, metres.
        max_slope: slope of the floor that the robot climbs, radians.
    """

    radius: float = 0.2
    height: float = 0.6
    max_step: float = 0.1
    max_slope: float = math.radians(20)

    def __post_init__(self) -> None:
        for name, most in {"radius": 10.0, "height": 10.0, "max_step": 2.0, "max_slope": 1.5}.items():
            value = getattr(self, name)
            if not 0 < value <= most:
                raise InputError(f"The robot's {name} is {value}; more than 0 and at most {most:g} was expected.")
        if self.max_step >= self.height:
            raise InputError(f"The robot drives over {self.max_step:g} m, but is {self.height:g} m high.")


@dataclass(frozen=True)
class CellCalibration:
    """Probabilities that cells are occupied, fitted on worlds with ground truth (`scripts/fit_occupancy.py`).

    Attributes:
        observed_free, observed_occupied: of cells that a sensor saw free and occupied.
        unknown: of cells without evidence.
        estimated, imagined: (a, b, c) of the logistic model a + b hit + c free, where `hit` is the highest confidence
            of depth that ends in the cell, and `free` the mean confidence of depth that passes through it.
        completed: (a, b) of the logistic model a + b logit(p) of what the network of completions says (`completion`).
        completed_called: P(occupied) above which a completed cell is called occupied: that of the largest overlap of
            called and occupied cells.
    """

    observed_free: float
    observed_occupied: float
    unknown: float
    estimated: tuple[float, float, float]
    imagined: tuple[float, float, float]
    completed: tuple[float, float]
    completed_called: float


@cache
def load_calibration() -> CellCalibration:
    """The calibration of the package."""
    values = json.loads(bundled_file(CALIBRATION_FILE).read_text(encoding="utf-8"))
    read: dict[str, Any] = {}
    for field in fields(CellCalibration):
        value = values[field.name]
        read[field.name] = tuple(value) if isinstance(value, list) else value
    return CellCalibration(**read)


def probability(model: tuple[float, float, float], hit: np.ndarray, free: np.ndarray) -> np.ndarray:
    """P(occupied), float32, of evidence in 0..1 by a logistic model; arrays of one shape."""
    offset, of_hit, of_free = model
    return (1 / (1 + np.exp(-(offset + of_hit * hit + of_free * free)))).astype(np.float32)


def check_resolution(resolution: float) -> None:
    """Raises InputError if an edge of cells, in metres, is out of range."""
    if not MIN_RESOLUTION_M <= resolution <= MAX_RESOLUTION_M:
        raise InputError(
            f"The resolution is {resolution} m; between {MIN_RESOLUTION_M} and {MAX_RESOLUTION_M:g} was expected."
        )
