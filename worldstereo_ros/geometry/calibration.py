"""What a `sensor_msgs/CameraInfo` says, without ROS: works with any object that has its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.utils.errors import InputError

# distortion_model -> numbers of coefficients that OpenCV takes
_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True)
class Calibration:
    """A camera and the distortion of its pictures.

    Attributes:
        camera: of the pictures once they are straight; equal to the one of the raw pictures but for the distortion.
        coefficients: of the lens; empty where the pictures are straight already.
        model: of the distortion, as ROS names it.
    """

    camera: Camera
    coefficients: np.ndarray
    model: str

    def straighten(self, image: np.ndarray, depth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Picture and depth as a pinhole camera sees them; depth takes the nearest pixel, it is never blended."""
        if not self.coefficients.size:
            return image, depth
        import cv2

        K, size = self.camera.matrix, (self.camera.width, self.camera.height)
        if self.model == "equidistant":
            maps = cv2.fisheye.initUndistortRectifyMap(K, self.coefficients, np.eye(3), K, size, cv2.CV_32FC1)
        else:
            maps = cv2.initUndistortRectifyMap(K, self.coefficients, None, K, size, cv2.CV_32FC1)
        image = cv2.remap(image, *maps, cv2.INTER_LINEAR)
        if depth is not None:
            depth = cv2.remap(depth, *maps, cv2.INTER_NEAREST)
        return image, depth


def calibration_from_info(info: Any) -> Calibration:
    """From the fields of a CameraInfo: width, height, k, d, distortion_model, roi, binning_x, binning_y.

    Raises:
        ValueError: uncalibrated (zeros), not finite, or a distortion that is not known.
    """
    K = np.asarray(info.k, dtype=np.float64).reshape(3, 3)
    if K[0, 0] == 0:  # how CameraInfo says so
        raise InputError(
            "The camera_info has K[0] = 0: the camera is not calibrated. Calibrate it (camera_calibration) or give the "
            "driver its calibration file."
        )
    camera = Camera.from_matrix(K, info.width, info.height)
    roi = info.roi
    if roi.width and roi.height:
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    if max(info.binning_x, info.binning_y) > 1:
        camera = camera.resized(camera.width // max(info.binning_x, 1), camera.height // max(info.binning_y, 1))
    coefficients = np.asarray(info.d, dtype=np.float64)
    if not np.isfinite(coefficients).all():
        raise InputError("The camera_info has a distortion coefficient that is not finite.")
    if not coefficients.any():
        return Calibration(camera, np.zeros(0), "")
    model = info.distortion_model or "plumb_bob"
    if coefficients.size not in _MODELS.get(model, ()):
        raise InputError(
            f"The camera_info has distortion '{model}' with {coefficients.size} coefficients; known are "
            f"{', '.join(_MODELS)}. Rectify the pictures before (image_proc)."
        )
    return Calibration(camera, coefficients, model)
