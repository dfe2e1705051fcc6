"""Converts images, cameras, poses, paths and imagined views between messages and numpy.

The generated setters of a message take an `array.array` without a copy and check every element of any other type, so
every large field is assigned as an `array.array` (`bytes_field`).
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

from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.imaging import codecs
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions.rotations import pose_from_quaternion, poses_from_quaternions, quaternion_from_pose
from worldstereo_ros.utils.errors import InputError

MAX_BYTES_PER_PIXEL = 16  # of a message, for the largest image that is accepted; pixels have at most 8
MIN_ACCEPTED_BYTES = 2**20

# --- stamps, poses, paths ---


def bytes_field(data: np.ndarray) -> array.array:
    """Copies the bytes of an array into an `array.array`, the type that message fields take without a check."""
    out = array.array("B")
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.size:  # an empty array has no buffer to cast
        out.frombytes(flat.view(np.uint8).data)
    return out


def nanoseconds(stamp: Time) -> int:
    """Converts a stamp to nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_message(stamp_ns: int) -> Time:
    """Converts nanoseconds to a stamp, clamped to the range of the message: 0 to 2^31 - 1 seconds."""
    seconds, rest = divmod(max(int(stamp_ns), 0), 1_000_000_000)
    return Time(sec=min(seconds, 2**31 - 1), nanosec=rest)


def pose_matrix(pose: Pose) -> np.ndarray:
    """Converts a pose message to a (4, 4) float64 matrix.

    Raises:
        ValueError: a number is not finite, or the quaternion's length is not within 1 % of one.
    """
    p, q = pose.position, pose.orientation
    return pose_from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def pose_message(matrix: np.ndarray) -> Pose:
    """Converts a rigid (4, 4) matrix to a pose message."""
    t, q = quaternion_from_pose(matrix)
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in t)
    pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = (float(v) for v in q)
    return pose


def transform_message(matrix: np.ndarray, header: Header, child_frame: str) -> TransformStamped:
    """Converts `parent_from_child` (4, 4) to a transform message; the parent is the header's frame_id."""
    t, q = quaternion_from_pose(matrix)
    message = TransformStamped(header=header, child_frame_id=child_frame)
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = (float(v) for v in t)
    rotation.x, rotation.y, rotation.z, rotation.w = (float(v) for v in q)
    return message


def path_matrices(path: Path) -> tuple[list[str], np.ndarray]:
    """Converts a path message to its frames and poses.

    Returns:
        (frame_id of each pose, that of the path where a pose has none; poses (N, 4, 4) float64).

    Raises:
        ValueError: the path is empty, a pose is invalid, or a pose and the path have no frame_id.
    """
    if not path.poses:
        raise InputError("The path is empty; at least one pose was expected.")
    frames, numbers = [], np.empty((len(path.poses), 7))
    for index, stamped in enumerate(path.poses):
        frame = stamped.header.frame_id or path.header.frame_id
        if not frame:
            raise InputError(f"Pose {index} of the path has no frame_id and neither has the path; set header.frame_id.")
        frames.append(frame)
        p, q = stamped.pose.position, stamped.pose.orientation
        numbers[index] = p.x, p.y, p.z, q.x, q.y, q.z, q.w
    try:
        return frames, poses_from_quaternions(numbers[:, :3], numbers[:, 3:])
    except ValueError:
        for index, stamped in enumerate(path.poses):  # which one it is
            try:
                pose_matrix(stamped.pose)
            except ValueError as error:
                raise InputError(f"Pose {index} of the path is invalid. {error}") from None
        raise


# --- images: messages to numpy ---


def check_image(message: Image, max_pixels: int, *, depth: bool = False) -> None:
    """Checks the fields of an image without reading its pixels, which is cheap enough for a callback.

    Args:
        message: the image.
        max_pixels: largest width * height that is accepted.
        depth: a depth image is expected instead of a colour image.

    Raises:
        ImageError: unknown encoding, no pixels, too many pixels, a step too short, or data of the wrong length, or far
            more than the pixels have.
    """
    _check_pixels(message.width, message.height, max_pixels)
    _check_bytes(len(message.data), max_pixels)
    codecs.check_fields(message.encoding, message.height, message.width, message.step, len(message.data), depth=depth)


def check_compressed_image(message: CompressedImage, max_pixels: int) -> None:
    """Checks the format and the header of a compressed image without decoding its pixels.

    Args:
        message: the image.
        max_pixels: largest width * height that is accepted.

    Raises:
        ImageError: no data, not an image of `codecs.IMAGE_FORMATS`, depth by its format, too many pixels, or too much
            data for them.
    """
    _check_bytes(len(message.data), max_pixels)
    if not len(message.data):
        raise ImageError("The compressed image has no data.")
    if codecs.holds_depth(message.format):
        raise ImageError(
            f"The compressed image holds depth (format '{message.format[:64]}'), not colour. Is this the depth topic?"
        )
    _check_pixels(*codecs.compressed_size(memoryview(message.data)), max_pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"The image is {width}x{height}; at most {max_pixels} pixels are accepted (parameter `max_image_pixels`)."
        )


def _check_bytes(size: int, max_pixels: int) -> None:
    """Rows may be padded and files have other content, but images that wait must not hold gigabytes of it."""
    largest = max(MAX_BYTES_PER_PIXEL * max_pixels, MIN_ACCEPTED_BYTES)
    if size > largest:
        raise ImageError(
            f"The image has {size} bytes; at most {largest} are accepted for {max_pixels} pixels (parameter "
            "`max_image_pixels`). Publish it without the padding of its rows."
        )


def image_array(message: Image | CompressedImage) -> np.ndarray:
    """Decodes an image to (H, W, 3) uint8 RGB. Raises ImageError."""
    if isinstance(message, CompressedImage):
        return codecs.decode_compressed(memoryview(message.data), format=message.format)
    return codecs.decode_colour(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def depth_array(message: Image, unit: float | None = None) -> np.ndarray:
    """Decodes a depth image to (H, W) float32 metres, 0 = unknown. Raises ImageError.

    Args:
        message: the image.
        unit: metres per stored value; None = by the encoding (REP 118).
    """
    return codecs.decode_depth(
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
        message.data,
        unit=unit,
    )


# --- cameras ---


def info_message(camera: Camera, header: Header) -> CameraInfo:
    """Converts a camera to a CameraInfo without distortion."""
    info = CameraInfo(header=header, height=camera.height, width=camera.width, distortion_model="plumb_bob")
    info.d = [0.0] * 5
    info.k = camera.matrix.reshape(-1)
    info.r = np.eye(3).reshape(-1)
    info.p = np.hstack([camera.matrix, np.zeros((3, 1))]).reshape(-1)
    return info


# --- images: numpy to messages ---


def colour_message(image: np.ndarray, header: Header) -> Image:
    """Converts (H, W, 3) uint8 to an rgb8 image, or (H, W) uint8 to mono8."""
    return _image(header, *codecs.encode_colour(image))


def depth_message(depth: np.ndarray, header: Header) -> Image:
    """Converts (H, W) float32 metres to a 32FC1 image; 0 (unknown) becomes NaN."""
    return _image(header, *codecs.encode_depth(depth))


def mask_message(mask: np.ndarray, header: Header) -> Image:
    """Converts (H, W) bool to a mono8 image: 255 = True."""
    return colour_message(mask.astype(np.uint8) * np.uint8(255), header)


def confidence_message(confidence: np.ndarray | None, header: Header) -> Image:
    """Converts (H, W) float32 probabilities to a mono8 image: 255 = 1. None becomes an image without pixels."""
    if confidence is None:
        return Image(header=header, encoding="mono8")
    return colour_message(np.rint(np.clip(confidence, 0, 1) * np.float32(255)).astype(np.uint8), header)


def confidence_array(message: Image) -> np.ndarray | None:
    """Converts a mono8 image to (H, W) float32 in 0..1; None if it has no pixels. Raises ImageError."""
    if message.width * message.height == 0:
        return None
    return grey_array(message).astype(np.float32) / 255


def grey_array(message: Image) -> np.ndarray:
    """Converts a mono8 image to (H, W) uint8. Raises ImageError."""
    grey = image_array(message)
    return grey.reshape(*grey.shape[:2], -1)[..., 0]


def _image(header: Header, encoding: str, height: int, width: int, step: int, data: np.ndarray) -> Image:
    message = Image(header=header, height=height, width=width, encoding=encoding, step=step)
    message.data = bytes_field(data)
    return message


def view_depth(view: ImaginedView) -> np.ndarray:
    """(H, W) float32 depth of a view; all 0 (unknown) if the pipeline estimates none."""
    if view.depth is None:
        return np.zeros((view.camera.height, view.camera.width), dtype=np.float32)
    return view.depth


class ViewImages:
    """The image messages of one view, each converted once, on first access: several topics share them."""

    def __init__(self, view: ImaginedView, header: Header) -> None:
        self._view, self._header = view, header

    @functools.cached_property
    def image(self) -> Image:
        """Colour, rgb8."""
        return colour_message(self._view.image, self._header)

    @functools.cached_property
    def depth(self) -> Image:
        """Depth, 32FC1 metres, NaN = unknown."""
        return depth_message(view_depth(self._view), self._header)

    @functools.cached_property
    def observed(self) -> Image:
        """Observed mask, mono8: 255 = observed, else 0."""
        return mask_message(self._view.observed_mask, self._header)

    @functools.cached_property
    def provenance(self) -> Image:
        """Provenance, mono8: values of `Provenance`."""
        return colour_message(self._view.provenance, self._header)

    @functools.cached_property
    def confidence(self) -> Image:
        """Confidence, mono8: 255 = 1; no pixels if the view has no confidence."""
        return confidence_message(self._view.confidence, self._header)

    @functools.cached_property
    def depth_confidence(self) -> Image:
        """Confidence of the depth, mono8: 255 = 1; no pixels if the view has none."""
        return confidence_message(self._view.depth_confidence, self._header)

    @functools.cached_property
    def camera_info(self) -> CameraInfo:
        """Camera of the view, without distortion."""
        return info_message(self._view.camera, self._header)


def view_message(
    view: ImaginedView, header: Header, world_frame: str, images: ViewImages | None = None
) -> ImaginedViewMessage:
    """Converts a view to one message.

    Args:
        view: the view.
        header: stamp and optical frame of its images.
        world_frame: frame of its pose.
        images: its image messages, if converted already.
    """
    images = images or ViewImages(view, header)
    message = ImaginedViewMessage(header=header, observation_stamp=time_message(view.stamp_ns))
    message.pose.header = Header(stamp=header.stamp, frame_id=world_frame)
    message.pose.pose = pose_message(view.world_from_camera)
    message.camera_info = images.camera_info
    message.image, message.depth, message.observed = images.image, images.depth, images.observed
    message.coverage = view.coverage
    message.observed_fraction, message.estimated_fraction = view.observed_fraction, view.estimated_fraction
    message.index, message.count, message.blocked = view.index, view.count, view.blocked
    message.confidence, message.depth_confidence = images.confidence, images.depth_confidence
    message.provenance = images.provenance
    return message


def view_from_message(message: ImaginedViewMessage, conditioning: np.ndarray | None = None) -> ImaginedView:
    """Converts a message of `~/view` to a view, the inverse of `view_message`.

    Args:
        message: the message.
        conditioning: (H, W, 3) uint8 image of `~/conditioning` with the same stamp.

    Raises:
        ValueError: an image, the camera or the pose of the message is invalid.
    """
    provenance = grey_array(message.provenance)
    estimated = provenance == Provenance.ESTIMATED
    return ImaginedView(
        image=image_array(message.image),
        camera=calibration_from_info(message.camera_info).camera,
        world_from_camera=pose_matrix(message.pose.pose),
        depth=depth_array(message.depth),
        observed=provenance == Provenance.OBSERVED,
        stamp_ns=nanoseconds(message.observation_stamp),
        confidence=confidence_array(message.confidence),
        estimated=estimated if estimated.any() else None,
        depth_confidence=confidence_array(message.depth_confidence),
        conditioning=conditioning,
        index=message.index,
        count=message.count,
        blocked=message.blocked,
    )
