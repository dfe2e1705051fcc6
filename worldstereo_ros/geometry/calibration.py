"""Camera calibration from the fields of a `sensor_msgs/CameraInfo`, without ROS.

A `CameraInfo` describes two cameras: K and D the lens, which raw images are seen with, and P the pinhole camera of the
rectified images. Which of them an image was seen with is not written in either message; by the convention of
image_pipeline it is in the topic's name (`image_rect_color`), see `is_rectified`. The rotation R and the fourth column
of P (stereo pairs) are not applied: a rectified image belongs to the frame of its header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.windows import largest_window
from worldstereo_ros.utils.errors import InputError

RECTIFIED_CHOICES = ("auto", "true", "false")
MIN_VALID_SHARE = 0.1  # of an image's pixels, which an undistorted image must keep
MAX_SKEW_PX = 1.0  # shift between the top and the bottom row that the pinhole camera ignores

# distortion_model -> numbers of coefficients that OpenCV accepts
_DISTORTION_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


def is_rectified(setting: str, topic: str) -> bool:
    """Returns whether the images of a topic are rectified, so that P of their camera_info holds and no distortion.

    Args:
        setting: "true" or "false"; "auto" = by the name: `rect` or `rectified` as a word between slashes and
            underscores, as in /cam/image_rect_color (image_proc) or /zed/rgb/color/rect/image.
        topic: name of the image topic.

    Raises:
        InputError: the setting is not one of `RECTIFIED_CHOICES`.
    """
    if setting not in RECTIFIED_CHOICES:
        raise InputError(f"rectified is '{setting}'; one of {', '.join(RECTIFIED_CHOICES)} was expected.")
    return setting == "true" or (setting == "auto" and bool(re.search(r"(^|[/_])rect(ified)?($|[/_])", topic.lower())))


@dataclass(frozen=True)
class CameraCalibration:
    """Intrinsics and lens distortion of a camera.

    Attributes:
        camera: intrinsics of the images as they come, with the distortion left out; their size is that of the images.
        coefficients: (K,) float64 distortion coefficients in OpenCV's order; empty if the images have no distortion.
        model: distortion model as ROS names it (plumb_bob, rational_polynomial, equidistant); "" without distortion.
        raw_camera: of rectified images the intrinsics of the raw images that they were made of, None if unknown;
            `coefficients` and `model` are the distortion of the raw images then.
        rotation: 9 numbers, row by row, of the rotation from raw to rectified axes; used with `raw_camera` alone.
    """

    camera: Camera
    coefficients: np.ndarray
    model: str
    raw_camera: Camera | None = None
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)

    @property
    def distorted(self) -> bool:
        """Whether the images themselves have distortion."""
        return bool(self.coefficients.size) and self.raw_camera is None

    @cached_property
    def valid_window(self) -> tuple[slice, slice]:
        """Rows and columns of the largest part of an undistorted image in which every pixel was measured.

        Undistortion leaves pixels that the lens did not see, along straight or curved borders, and pixels that a
        distortion polynomial shows twice, beyond the radius up to which it describes the lens.

        Raises:
            InputError: the window has less than `MIN_VALID_SHARE` of the pixels: the coefficients fit no lens.
        """
        whole = slice(0, self.camera.height), slice(0, self.camera.width)
        if not self.coefficients.size:
            return whole
        rows, columns = _valid_window(*self._map_arguments)
        kept = (rows.stop - rows.start) * (columns.stop - columns.start)
        if kept < MIN_VALID_SHARE * self.camera.width * self.camera.height:
            if not self.distorted:  # the images are rectified whatever the camera_info says of the raw ones
                return whole
            raise InputError(
                f"Undistorted with the camera_info ({self.model}, {self.coefficients.tolist()}), {kept} of the "
                f"{self.camera.width}x{self.camera.height} pixels are valid: it is not the camera_info of this lens."
            )
        return rows, columns

    @property
    def undistorted_camera(self) -> Camera:
        """Intrinsics of the images that `undistort` returns, which may be smaller. Raises InputError."""
        rows, columns = self.valid_window
        if (rows, columns) == (slice(0, self.camera.height), slice(0, self.camera.width)):
            return self.camera
        return self.camera.cropped(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)

    def undistort(self, image: np.ndarray, depth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Removes the lens distortion, and the borders that were not measured, from an image and its registered depth.

        Args:
            image: (H, W, 3) uint8 RGB, interpolated linearly.
            depth: (H, W) float32 metres or None. It takes the nearest pixel, so that depths are never blended.

        Returns:
            (image, depth) of `undistorted_camera`; the inputs themselves if there is nothing to remove.

        Raises:
            InputError: the calibration leaves no valid image, see `valid_window`.
        """
        rows, columns = self.valid_window
        if self.distorted:
            import cv2

            maps = _undistortion_maps(*self._map_arguments)
            image = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            if depth is not None:
                depth = cv2.remap(depth, *maps, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        if (rows.stop - rows.start, columns.stop - columns.start) != image.shape[:2]:
            image = np.ascontiguousarray(image[rows, columns])
            depth = None if depth is None else np.ascontiguousarray(depth[rows, columns])
        return image, depth

    @property
    def _map_arguments(self) -> tuple[Camera, Camera, tuple[float, ...], str, tuple[float, ...]]:
        coefficients = tuple(self.coefficients.tolist())
        return self.camera, self.raw_camera or self.camera, coefficients, self.model, self.rotation


def calibration_from_info(info: Any, *, rectified: bool = False) -> CameraCalibration:
    """Reads the calibration from a `sensor_msgs/CameraInfo`.

    Args:
        info: an object with the fields width, height, k, d, p, distortion_model, roi, binning_x and binning_y.
        rectified: the images are rectified, see `is_rectified`: P holds, and no distortion is removed. K is used where
            P is not filled in and there is no distortion, so that both are the same camera.

    Raises:
        InputError: the camera is not calibrated (K or P is zero), its matrix is no pinhole camera, a number is not
            finite, or the distortion model is unsupported.
    """
    K = np.asarray(info.k, dtype=np.float64).reshape(3, 3)
    coefficients = _coefficients(info)
    if rectified:
        P = np.asarray(info.p, dtype=np.float64).reshape(3, 4)[:, :3]
        if P[0, 0] == 0 and coefficients.size:
            raise InputError(
                "The images are rectified, but the camera_info has P[0] = 0, so their intrinsics are unknown. Give the "
                "driver a calibration file with a projection matrix, or declare the images raw (rectified: false)."
            )
        if P[0, 0] != 0:
            raw_camera = None
            if coefficients.size and K[0, 0] > 0 and _is_supported(info.distortion_model, coefficients):
                raw_camera = _image_camera(K, info, "K")
            known = coefficients if raw_camera is not None else np.zeros(0)
            model = (info.distortion_model or "plumb_bob") if known.size else ""
            return CameraCalibration(_image_camera(P, info, "P"), known, model, raw_camera, _rotation(info))
    if K[0, 0] == 0:  # how CameraInfo marks an uncalibrated camera
        raise InputError(
            "The camera_info has K[0] = 0: the camera is not calibrated. Calibrate it (camera_calibration) or give the "
            "driver its calibration file."
        )
    camera = _image_camera(K, info, "K")
    if not coefficients.size and info.distortion_model != "equidistant":
        return CameraCalibration(camera, coefficients, "")
    if not _is_supported(info.distortion_model, coefficients):
        raise InputError(
            f"The camera_info has distortion model '{info.distortion_model}' with {coefficients.size} coefficients; "
            f"supported models are {', '.join(_DISTORTION_MODELS)}. Rectify the images first (image_proc)."
        )
    return CameraCalibration(camera, coefficients, info.distortion_model or "plumb_bob")


def _coefficients(info: Any) -> np.ndarray:
    """The distortion coefficients of a camera_info; empty if its lens has no distortion.

    Only of polynomials around a pinhole camera zeros mean none: an equidistant lens of zeros is a fisheye. Zeros at the
    end, which drivers with a field of fixed size append, are left out where the model has fewer coefficients.
    """
    coefficients = np.asarray(info.d, dtype=np.float64).reshape(-1)
    if not np.isfinite(coefficients).all():
        raise InputError("The camera_info has a distortion coefficient that is not finite.")
    model = info.distortion_model or "plumb_bob"
    if not coefficients.any() and model != "equidistant":
        return np.zeros(0)
    used = int(np.nonzero(coefficients)[0].max(initial=-1)) + 1
    sizes = _DISTORTION_MODELS.get(model, ())
    if coefficients.size not in sizes:
        size = next((size for size in sizes if used <= size < coefficients.size), coefficients.size)
        return coefficients[:size]
    return coefficients


def _is_supported(model: str, coefficients: np.ndarray) -> bool:
    return coefficients.size in _DISTORTION_MODELS.get(model or "plumb_bob", ())


def _image_camera(matrix: np.ndarray, info: Any, name: str) -> Camera:
    """The camera of the published images: of a full-size matrix (3, 3), its region of interest and binning."""
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[2], (0, 0, 1)) or matrix[1, 0] != 0:
        raise InputError(
            f"The camera_info has {name} = {matrix.tolist()}; [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] of "
            "finite numbers was expected."
        )
    camera = Camera.from_matrix(matrix, info.width, info.height)
    if abs(matrix[0, 1]) * camera.height > MAX_SKEW_PX * camera.fy:
        raise InputError(
            f"The camera_info has a skew of {matrix[0, 1]:g} in {name}; cameras with skewed pixels are not supported. "
            "Rectify the images first (image_proc)."
        )
    roi = info.roi
    if roi.width and roi.height:
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    by_x, by_y = max(info.binning_x, 1), max(info.binning_y, 1)
    if max(by_x, by_y) == 1:
        return camera
    # Pixels that do not fill a bin at the right and below are dropped; the bins are no larger for it.
    cx, cy = (camera.cx + 0.5) / by_x - 0.5, (camera.cy + 0.5) / by_y - 0.5
    return Camera(camera.width // by_x, camera.height // by_y, camera.fx / by_x, camera.fy / by_y, cx, cy)


def _rotation(info: Any) -> tuple[float, ...]:
    """The rectification matrix R of a camera_info, the identity if it is not filled in."""
    R = np.asarray(info.r, dtype=np.float64).reshape(3, 3)
    is_rotation = np.isfinite(R).all() and np.abs(R @ R.T - np.eye(3)).max() < 1e-2
    return tuple((R if is_rotation else np.eye(3)).reshape(-1).tolist())


@lru_cache(maxsize=4)
def _undistortion_maps(
    camera: Camera, raw_camera: Camera, coefficients: tuple[float, ...], model: str, rotation: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) float32 each: column and row in the raw image of every pixel of `camera`; shared, not to be changed."""
    import cv2

    D, R, size = np.array(coefficients), np.array(rotation, float).reshape(3, 3), (camera.width, camera.height)
    create = cv2.fisheye.initUndistortRectifyMap if model == "equidistant" else cv2.initUndistortRectifyMap
    return create(raw_camera.matrix, D, R, camera.matrix, size, cv2.CV_32FC1)


@lru_cache(maxsize=4)
def _valid_window(
    camera: Camera, raw_camera: Camera, coefficients: tuple[float, ...], model: str, rotation: tuple[float, ...]
) -> tuple[slice, slice]:
    """The largest rectangle of undistorted pixels inside the raw image, where the distortion maps one to one."""
    import cv2

    x, y = _undistortion_maps(camera, raw_camera, coefficients, model, rotation)
    inside = (x >= -0.5) & (x <= raw_camera.width - 0.5) & (y >= -0.5) & (y <= raw_camera.height - 0.5)
    if min(x.shape) > 1:
        (x_row, x_column), (y_row, y_column) = np.gradient(x), np.gradient(y)
        inside &= x_column * y_row - x_row * y_column > 0  # where it is negative the image is mirrored
    # Beyond a mirrored ring the determinant may be positive again: only what is connected to the centre is valid.
    count, labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    if count > 2:
        rows, columns = np.nonzero(inside)
        centre = np.hypot(columns - camera.cx, rows - camera.cy).argmin()
        inside = labels == labels[rows[centre], columns[centre]]
    return largest_window(inside)
