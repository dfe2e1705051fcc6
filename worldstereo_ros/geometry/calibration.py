"""Camera calibration from the fields of a `sensor_msgs/CameraInfo`, without ROS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.utils.errors import InputError

# distortion_model -> numbers of coefficients that OpenCV accepts
_DISTORTION_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True)
class CameraCalibration:
    """Intrinsics and lens distortion of a camera.

    Attributes:
        camera: intrinsics of the undistorted images; equal to those of the raw images.
        coefficients: (K,) float64 distortion coefficients in OpenCV's order; empty if the images have no distortion.
        model: distortion model as ROS names it (plumb_bob, rational_polynomial, equidistant); "" without distortion.
    """

    camera: Camera
    coefficients: np.ndarray
    model: str

    def undistort(self, image: np.ndarray, depth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Removes the lens distortion from an image and its registered depth.

        Args:
            image: (H, W, 3) uint8 RGB, interpolated linearly.
            depth: (H, W) float32 metres or None. It takes the nearest pixel, so that depths are never blended.

        Returns:
            (image, depth), the inputs themselves if there is no distortion.
        """
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


def calibration_from_info(info: Any) -> CameraCalibration:
    """Reads the calibration from a `sensor_msgs/CameraInfo`.

    Args:
        info: an object with the fields width, height, k, d, distortion_model, roi, binning_x and binning_y.

    Raises:
        InputError: the camera is not calibrated (K is zero), a number is not finite, or the distortion model is
            unsupported.
    """
    K = np.asarray(info.k, dtype=np.float64).reshape(3, 3)
    if K[0, 0] == 0:  # how CameraInfo marks an uncalibrated camera
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
        return CameraCalibration(camera, np.zeros(0), "")
    model = info.distortion_model or "plumb_bob"
    if coefficients.size not in _DISTORTION_MODELS.get(model, ()):
        raise InputError(
            f"The camera_info has distortion model '{model}' with {coefficients.size} coefficients; supported models "
            f"are {', '.join(_DISTORTION_MODELS)}. Rectify the images first (image_proc)."
        )
    return CameraCalibration(camera, coefficients, model)
