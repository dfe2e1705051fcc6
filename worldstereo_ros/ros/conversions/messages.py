"""Between messages and numpy: images, cameras, poses, paths.

The generated setters copy nothing when they are given an `array.array` and check every element when they are given
anything else, so every large field is assigned as an `array.array` (`bytes_field`).
"""

from __future__ import annotations

import array
import functools

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, TransformStamped
from nav_msgs.msg import Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.imaging import codecs
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.utils.errors import InputError

_PIXEL_BYTES = {
    "rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "16UC1": 2, "mono16": 2, "32FC1": 4,
}  # fmt: skip


# --- small ones ---------------------------------------------------------------------------------------------------


def bytes_field(data: np.ndarray) -> array.array:
    """The bytes of an array as the `array.array` that a message field takes without a check of every element."""
    out = array.array("B")
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.size:  # an empty array has no buffer to cast
        out.frombytes(flat.view(np.uint8).data)
    return out


def nanoseconds(stamp: Time) -> int:
    """A stamp as nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_message(stamp_ns: int) -> Time:
    """Nanoseconds as a stamp; negative ones become 0."""
    seconds, rest = divmod(max(int(stamp_ns), 0), 1_000_000_000)
    return Time(sec=min(seconds, 2**31 - 1), nanosec=rest)


def pose_matrix(pose: Pose) -> np.ndarray:
    """(4, 4) float64 of a pose. Raises ValueError where a number is not finite or the quaternion is not of length 1."""
    p, q = pose.position, pose.orientation
    return pose_from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def pose_message(matrix: np.ndarray) -> Pose:
    """A pose message of a rigid (4, 4) matrix."""
    t, q = quaternion_from_pose(matrix)
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in t)
    pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = (float(v) for v in q)
    return pose


def transform_message(matrix: np.ndarray, header: Header, child_frame: str) -> TransformStamped:
    """`parent_from_child` as a transform message; the header's frame is the parent."""
    t, q = quaternion_from_pose(matrix)
    message = TransformStamped(header=header, child_frame_id=child_frame)
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = (float(v) for v in t)
    turn.x, turn.y, turn.z, turn.w = (float(v) for v in q)
    return message


def path_matrices(path: Path) -> tuple[list[str], np.ndarray]:
    """The frame of every pose and the poses (N, 4, 4) of a path. A pose without a frame is in the path's.

    Raises:
        ValueError: empty, a pose that is none, or no frame named.
    """
    if not path.poses:
        raise InputError("The path is empty; at least one pose was expected.")
    frames, matrices = [], np.empty((len(path.poses), 4, 4))
    for index, stamped in enumerate(path.poses):
        frame = stamped.header.frame_id or path.header.frame_id
        if not frame:
            raise InputError(f"Pose {index} of the path names no frame, nor does the path; set header.frame_id.")
        frames.append(frame)
        try:
            matrices[index] = pose_matrix(stamped.pose)
        except ValueError as error:
            raise InputError(f"Pose {index} of the path cannot be used. {error}") from None
    return frames, matrices


# --- images in ----------------------------------------------------------------------------------------------------


def check_image(message: Image, encodings: tuple[str, ...], max_pixels: int) -> None:
    """Refuses an image from its fields alone, without touching the pixels: cheap enough for a callback.

    Raises:
        ImageError: unknown encoding, no pixels, too many, a step too short, or data of another length.
    """
    if message.encoding not in encodings:
        raise ImageError(
            f"The image has encoding '{message.encoding[:32]}'; one of {', '.join(encodings)} was expected. "
            "Is this the right topic?"
        )
    width, height, step = message.width, message.height, message.step
    if width * height == 0:
        raise ImageError(f"The image is {width}x{height}; at least one pixel was expected.")
    if width * height > max_pixels:
        raise ImageError(
            f"The image is {width}x{height}; more than {max_pixels} pixels are refused (parameter `max_image_pixels`)."
        )
    row = width * _PIXEL_BYTES[message.encoding]
    if step < row:
        raise ImageError(
            f"The image's step is {step} bytes; {width} pixels of {message.encoding} need {row} bytes a row."
        )
    size = len(message.data)
    if not (height - 1) * step + row <= size <= height * step:
        raise ImageError(
            f"The image's data has {size} bytes; {height} rows of step {step} are {height * step}. "
            "The message was cut off or its sizes are wrong."
        )


def image_array(message: Image | CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises ImageError."""
    if isinstance(message, CompressedImage):
        return codecs.decode_compressed(memoryview(message.data))
    return codecs.decode_colour(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def depth_array(message: Image) -> np.ndarray:
    """(H, W) float32 metres, 0 = unknown. Raises ImageError."""
    return codecs.decode_depth(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


# --- cameras ------------------------------------------------------------------------------------------------------


def info_message(camera: Camera, header: Header) -> CameraInfo:
    """A CameraInfo without distortion."""
    info = CameraInfo(header=header, height=camera.height, width=camera.width, distortion_model="plumb_bob")
    info.d = [0.0] * 5
    info.k = camera.matrix.reshape(-1)
    info.r = np.eye(3).reshape(-1)
    info.p = np.hstack([camera.matrix, np.zeros((3, 1))]).reshape(-1)
    return info


# --- images out ---------------------------------------------------------------------------------------------------


def colour_message(image: np.ndarray, header: Header) -> Image:
    """rgb8 of (H, W, 3) uint8, or mono8 of (H, W) uint8."""
    return _image(header, *codecs.encode_colour(image))


def depth_message(depth: np.ndarray, header: Header) -> Image:
    """32FC1 of (H, W) float32 metres; 0 (unknown) is sent as NaN."""
    return _image(header, *codecs.encode_depth(depth))


def mask_message(mask: np.ndarray, header: Header) -> Image:
    """mono8 of (H, W) bool: 255 = True."""
    return colour_message(mask.astype(np.uint8) * np.uint8(255), header)


def confidence_message(confidence: np.ndarray | None, header: Header) -> Image:
    """mono8 of (H, W) float32 in 0..1: 255 = 1; an empty image where it is not known."""
    if confidence is None:
        return Image(header=header, encoding="mono8")
    return colour_message(np.rint(np.clip(confidence, 0, 1) * np.float32(255)).astype(np.uint8), header)


def confidence_array(message: Image) -> np.ndarray | None:
    """(H, W) float32 in 0..1 of a mono8 image; None of an empty one. Raises ImageError."""
    if message.width * message.height == 0:
        return None
    grey = image_array(message)
    return grey.reshape(*grey.shape[:2], -1)[..., 0].astype(np.float32) / 255


def _image(header: Header, encoding: str, height: int, width: int, step: int, data: np.ndarray) -> Image:
    message = Image(header=header, height=height, width=width, encoding=encoding, step=step)
    message.data = bytes_field(data)
    return message


def view_depth(view: ImaginedView) -> np.ndarray:
    """The view's depth; all unknown where the pipeline gave none."""
    if view.depth is None:
        return np.zeros((view.camera.height, view.camera.width), dtype=np.float32)
    return view.depth


class Pictures:
    """The messages of one view, each made when it is first asked for: several topics share them."""

    def __init__(self, view: ImaginedView, header: Header) -> None:
        self._view, self._header = view, header

    @functools.cached_property
    def image(self) -> Image:
        """rgb8."""
        return colour_message(self._view.image, self._header)

    @functools.cached_property
    def depth(self) -> Image:
        """32FC1."""
        return depth_message(view_depth(self._view), self._header)

    @functools.cached_property
    def observed(self) -> Image:
        """mono8."""
        return mask_message(self._view.observed_mask, self._header)

    @functools.cached_property
    def confidence(self) -> Image:
        """mono8, empty where the view says nothing."""
        return confidence_message(self._view.confidence, self._header)

    @functools.cached_property
    def camera_info(self) -> CameraInfo:
        """Without distortion."""
        return info_message(self._view.camera, self._header)


def view_message(
    view: ImaginedView, header: Header, world_frame: str, pictures: Pictures | None = None
) -> ImaginedViewMessage:
    """All of a view in one message; `header` is that of its pictures, which may have been made already."""
    pictures = pictures or Pictures(view, header)
    message = ImaginedViewMessage(header=header, observation_stamp=time_message(view.stamp_ns))
    message.pose.header = Header(stamp=header.stamp, frame_id=world_frame)
    message.pose.pose = pose_message(view.world_from_camera)
    message.camera_info = pictures.camera_info
    message.image, message.depth, message.observed = pictures.image, pictures.depth, pictures.observed
    message.coverage = view.coverage
    message.observed_fraction = view.observed_fraction
    message.index, message.count = view.index, view.count
    message.confidence = pictures.confidence
    return message
