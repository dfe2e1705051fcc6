"""Photographs as their source gives them, before they are copied and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration


@dataclass(frozen=True)
class RawPhotograph:
    """A photograph as its source gives it.

    Attributes:
        name: unique name for the user.
        load: returns its pixels, (H, W, 3) uint8 RGB: upright, or as stored where a calibration refers to those.
        original_size: (width, height) of the photograph.
        calibration: intrinsics and distortion of this size; None if unknown.
        focal_ratio: focal length by EXIF over the diagonal of the image; None if unknown.
        world_from_camera: (4, 4) pose, or None.
        load_depth: returns measured depth (H, W) float32 in the unit of the poses; None if there is none.
        stamp_ns: time in nanoseconds, 0 if unknown.
        camera_key: photographs of one key share their intrinsics.
    """

    name: str
    load: Callable[[], np.ndarray]
    original_size: tuple[int, int]
    calibration: CameraCalibration | None = None
    focal_ratio: float | None = None
    world_from_camera: np.ndarray | None = None
    load_depth: Callable[[], np.ndarray] | None = None
    stamp_ns: int = 0
    camera_key: str = ""


@dataclass
class PhotographSource:
    """Photographs of one source.

    Attributes:
        kind: photographs, video, bag, colmap, nerfstudio, or posed sequence.
        files: files that the photographs come from, for the fingerprint of a run.
        photographs: generator of the photographs, used once.
        metric: lengths of poses and depth are metres.
        ordered: they were taken one after the other in this order.
        left_out: photographs that cannot be used: name -> reason. Grows while `photographs` is used.
        notes: sentences for the user about what was chosen or assumed. Grows, too.
    """

    kind: str
    files: list[Path]
    photographs: Iterator[RawPhotograph] = field(default_factory=lambda: iter(()))
    metric: bool = False
    ordered: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GivenPhotographs:
    """Photographs that a caller opened, in place of a path.

    Attributes:
        name: says how they were made, for the fingerprint of a run.
        source: the photographs.
        estimator: depth estimator that fills holes; None = that of the settings.
    """

    name: str
    source: PhotographSource
    estimator: Any = None


def constant(array: Any) -> Callable[[], Any]:
    """A reader that returns an array that is there already."""
    return lambda: array
