"""Converts stereo pairs to messages."""

from __future__ import annotations

import array

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.conversions.messages import bytes_field, info_message
from worldstereo_ros.utils.errors import InputError

DISPARITY_STEP_PX = 1e-3  # `delta_d`: disparities are computed from depth, not counted in fractions of pixels


def right_info_message(camera: Camera, base: float, header: Header) -> CameraInfo:
    """CameraInfo of the right camera of a pair, in the frame of the left one: P[3] is -fx * base (pixels times metres).

    Args:
        camera: intrinsics of the right eye.
        base: distance of the eyes, metres.
        header: stamp and optical frame of the left eye.
    """
    info = info_message(camera, header)
    info.p[3] = -camera.fx * base
    return info


def base_from_info(info: CameraInfo) -> float:
    """Distance of the eyes in metres, of the CameraInfo of the right one. Raises InputError if it has none."""
    base = -info.p[3] / info.p[0] if info.p[0] else 0.0
    if not (np.isfinite(base) and base > 0):
        raise InputError(f"P of the right camera_info gives the base {base}; a number above 0 was expected.")
    return float(base)


def disparity_message(
    disparity: np.ndarray, focal_length: float, base: float, most: float, header: Header
) -> DisparityImage:
    """Converts disparities to a DisparityImage: depth = f * t / disparity.

    Args:
        disparity: (H, W) float32 pixels of the left eye; below 0 = unknown.
        focal_length: pixels.
        base: distance of the eyes, metres.
        most: largest disparity that can occur, pixels.
        header: of the left eye.
    """
    height, width = disparity.shape
    image = Image(header=header, height=height, width=width, encoding="32FC1", step=4 * width)
    image.data = bytes_field(disparity.astype("<f4", copy=False))
    message = DisparityImage(header=header, image=image, f=float(focal_length), t=float(base))
    message.valid_window = RegionOfInterest(width=width, height=height)
    message.min_disparity, message.max_disparity, message.delta_d = 0.0, float(most), DISPARITY_STEP_PX
    return message


def jpeg_message(image: np.ndarray, quality: int, header: Header) -> CompressedImage:
    """Converts (H, W, 3) uint8 RGB to a JPEG, as image_transport's plugin `compressed` describes it.

    Args:
        image: the image.
        quality: 1 to 100.
        header: of the image.

    Raises:
        InputError: OpenCV cannot encode it.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    if not encoded:
        raise InputError(f"An image of {image.shape[1]}x{image.shape[0]} cannot be encoded as JPEG.")
    message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    message.data = array.array("B", data.tobytes())
    return message
