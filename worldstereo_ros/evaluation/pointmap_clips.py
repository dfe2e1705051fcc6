"""A clip with its truth, as the evaluation of point maps compares it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera


@dataclass(frozen=True)
class PointmapClip:
    """Frames of one camera with the truth.

    Attributes:
        sequence: name of what it is a clip of.
        name: of the clip.
        images: (F, H, W, 3) uint8.
        camera: intrinsics.
        poses: (F, 4, 4) world_from_camera.
        depth: (F, H, W) metres, 0 = unknown; None if there is none.
        moving: (F, H, W) bool; None if unknown.
        flow: (F, H, W, 3) displacement to the next frame in the axes of the first camera, metres; None if unknown.
    """

    sequence: str
    name: str
    images: np.ndarray
    camera: Camera
    poses: np.ndarray
    depth: np.ndarray | None = None
    moving: np.ndarray | None = None
    flow: np.ndarray | None = None
