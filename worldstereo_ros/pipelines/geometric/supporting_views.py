"""Supporting views: remembered observations as evidence for what a view may call observed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.depth_noise import depth_noise

# Growth of the error of a view that cannot be checked against others, per metre and per radian from it.
ASSUMED_ERROR_PER_M, ASSUMED_ERROR_PER_RAD = np.radians(0.4), 0.01
MIN_ERROR_RAD = np.radians(0.1)
# Beside an observation its registration error does not matter: the camera is placed relative to it. The error counts in
# full from this distance or this rotation on.
FULL_ERROR_M, FULL_ERROR_RAD = 0.1, np.radians(5)
NOISE_DOUBT, EXCESS_NOISE_DOUBT, MAX_NOISE = 1.0, 8.0, 0.55  # per tolerance of noise, and above MAX_NOISE


@dataclass(frozen=True)
class SupportingView:
    """A remembered view as evidence for what was observed.

    Attributes:
        view: the view, with depth.
        measured: (h, w) uint8, 1 where a sensor measured the depth.
        registration_error: radians.
        checked: whether the error was measured against other views; else it is assumed.
        doubt: (h, w) float32, the result of `sensor_doubt`; None: none.
    """

    view: View
    measured: np.ndarray
    registration_error: float
    checked: bool = True
    doubt: np.ndarray | None = None

    def error_at(self, world_from_camera: np.ndarray) -> float:
        """Registration error relative to a camera at `world_from_camera` (4, 4), radians."""
        distance, angle = self._motion_to(world_from_camera)
        error = self.registration_error
        if not self.checked:
            error += ASSUMED_ERROR_PER_M * distance + ASSUMED_ERROR_PER_RAD * angle
        return max(MIN_ERROR_RAD, error * self.remoteness(world_from_camera))

    def remoteness(self, world_from_camera: np.ndarray) -> float:
        """0 where the view was taken, 1 from where its registration error counts in full."""
        distance, angle = self._motion_to(world_from_camera)
        return min(1.0, distance / FULL_ERROR_M + angle / FULL_ERROR_RAD)

    def _motion_to(self, world_from_camera: np.ndarray) -> tuple[float, float]:
        """Distance in metres and rotation in radians from the view to a camera."""
        relative = invert_pose(self.view.world_from_camera) @ world_from_camera
        cosine = (float(np.trace(relative[:3, :3])) - 1) / 2
        return float(np.linalg.norm(relative[:3, 3])), math.acos(min(1.0, max(-1.0, cosine)))


def sensor_doubt(depth: np.ndarray) -> np.ndarray:
    """Doubt about depth (h, w) in metres, 0 = unknown, because of its noise; (h, w) float32."""
    noise = depth_noise(depth)
    return NOISE_DOUBT * noise + EXCESS_NOISE_DOUBT * np.maximum(noise - np.float32(MAX_NOISE), 0)
