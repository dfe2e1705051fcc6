"""Reads posed RGB-D views and paths from bags, without ROS."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration, calibration_from_info
from worldstereo_ros.geometry.pose_tracks import PoseTrack, TransformTree, UnknownPoseError
from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging import codecs
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.bags.files import Bag, BagError, BagWriter
from worldstereo_ros.io.bags.topics import (
    CAMERA_INFO,
    COMPRESSED,
    IMAGE,
    ODOMETRY,
    PATH,
    POSE,
    POSE_COVARIANCE,
    TF,
    camera_info_beside,
    find_topics,
)

__all__ = ["Bag", "BagError", "BagWriter", "camera_info_beside", "find_topics", "read_path", "read_views"]


@dataclass
class _Index:
    """Result of the first pass over a bag: stamps, poses and transforms."""

    images: list[int] = field(default_factory=list)  # stamps, nanoseconds
    depths: list[int] = field(default_factory=list)
    frame: str = ""  # frame_id of the images
    info: Any = None
    poses: list[tuple[int, np.ndarray]] = field(default_factory=list)
    pose_child: str = ""
    tree: TransformTree = field(default_factory=TransformTree)


def read_views(
    path: str | Path,
    image_topic: str = "",
    *,
    depth_topic: str = "",
    camera_info_topic: str = "",
    pose_topic: str = "",
    world_frame: str = "",
    base_frame: str = "",
    tolerance: float = 0.03,
    max_views: int = 0,
) -> Iterator[View]:
    """Reads posed RGB-D views from a bag, in recorded order.

    An image is paired with the depth image of the nearest stamp; if there is a depth topic, images without depth
    within `tolerance` are skipped. The pose comes from `pose_topic` or, without one, from the transforms between
    `world_frame` and the image's frame, interpolated at the image's stamp; images without a pose are skipped. From a
    bag without poses and transforms only the first image is read, at the origin.

    Args:
        path: folder or file of the bag.
        image_topic: colour topic (Image or CompressedImage); "" = detected, with its depth topic, by `find_topics`.
        depth_topic: topic of depth registered to the image (Image of 16UC1 mm or 32FC1 m, or compressedDepth);
            "" = no depth.
        camera_info_topic: "" = `camera_info` beside the image topic.
        pose_topic: PoseStamped or PoseWithCovarianceStamped (pose of the camera's optical frame, or of `base_frame`),
            or Odometry (pose of its child frame); "" = transforms.
        world_frame: frame of the returned poses from transforms; "" = the root above the image's frame.
        base_frame: frame of a PoseStamped, if it is not the camera's; transforms give the pose of the camera.
        tolerance: largest difference between stamps that belong together, seconds.
        max_views: maximum number of views, evenly spaced; 0 = all.

    Yields:
        Views with their stamps, undistorted.

    Raises:
        BagError: the bag is damaged, a topic is missing or of another type, sizes contradict each other, or no image
            has depth and pose.
    """
    path = Path(path)
    tolerance_ns = round(tolerance * 1e9)
    with Bag(path) as bag:
        if not image_topic:
            image_topic, found = find_topics(bag)
            depth_topic = depth_topic or found
        info_topic = camera_info_topic or camera_info_beside(image_topic)
        bag.require(image_topic, (IMAGE, COMPRESSED), "colour image")
        bag.require(info_topic, (CAMERA_INFO,), "camera_info")
        if depth_topic == image_topic:
            raise BagError(f"'{image_topic}' is given as both the colour and the depth topic.")
        if depth_topic:
            bag.require(depth_topic, (IMAGE, COMPRESSED), "depth image")
        if pose_topic:
            bag.require(pose_topic, (POSE, POSE_COVARIANCE, ODOMETRY), "pose")
        index = _index(bag, image_topic, depth_topic, info_topic, pose_topic)
        try:
            calibration = calibration_from_info(index.info)
        except ValueError as error:
            raise BagError(f"'{info_topic}' in {path} cannot be used. {error}") from error
        pairs: dict[int, int | None] = dict.fromkeys(range(len(index.images)))
        if depth_topic:
            pairs = {**_nearest(index.images, index.depths, tolerance_ns)}
            if not pairs:
                raise BagError(
                    f"No image on '{image_topic}' has a depth image on '{depth_topic}' within {tolerance:g} s. "
                    "Check that both are stamped by one clock, or increase the tolerance."
                )
        poses = _poses(index, sorted(pairs), bag.topics.get(pose_topic, ""), world_frame, base_frame, tolerance_ns)
        selected = sorted(poses)
        if 0 < max_views < len(selected):
            selected = [selected[round(i)] for i in np.linspace(0, len(selected) - 1, max_views)]
        yield from _load(bag, image_topic, depth_topic, index, {i: pairs[i] for i in selected}, poses, calibration)


def _index(bag: Bag, image_topic: str, depth_topic: str, info_topic: str, pose_topic: str) -> _Index:
    """The first pass over a bag: reads all stamps, poses and transforms, but no images."""
    index = _Index()
    transforms = [name for name, kind in bag.topics.items() if kind == TF]
    for topic, recorded, raw in bag.messages({image_topic, depth_topic, info_topic, pose_topic, *transforms} - {""}):
        if topic == image_topic:
            index.images.append(_stamp(raw, recorded))
            index.frame = index.frame or _frame_id(raw)
        if topic == depth_topic:
            index.depths.append(_stamp(raw, recorded))
        if topic == info_topic and index.info is None:
            index.info = bag.decode(topic, raw)
        if topic == pose_topic:
            message = bag.decode(topic, raw)
            pose = message.pose if bag.topics[topic] == POSE else message.pose.pose
            index.poses.append((_stamp(raw, recorded), _matrix(pose.position, pose.orientation, topic)))
            index.pose_child = getattr(message, "child_frame_id", "")
        if topic in transforms:
            _add_transforms(index.tree, bag.decode(topic, raw), topic)
    return index


def _add_transforms(tree: TransformTree, message: Any, topic: str) -> None:
    for t in message.transforms:
        stamp_ns = t.header.stamp.sec * 1_000_000_000 + t.header.stamp.nanosec
        matrix = _matrix(t.transform.translation, t.transform.rotation, topic)
        tree.add(t.header.frame_id, t.child_frame_id, stamp_ns, matrix, static=topic.endswith("tf_static"))


def _stamp(raw: memoryview, recorded_ns: int) -> int:
    """Reads the stamp of the header, the first field of a message; the receive time if it is zero."""
    if len(raw) < 12:
        return recorded_ns
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 1_000_000_000 + nanoseconds or recorded_ns


def _frame_id(raw: memoryview) -> str:
    """Reads the frame_id of the header, which follows the stamp."""
    if len(raw) < 16:
        return ""
    (length,) = struct.unpack_from("<I" if raw[1] & 1 else ">I", raw, 12)
    return bytes(raw[16 : 16 + min(length, 256)]).rstrip(b"\0").decode("utf-8", "replace")


def _matrix(position: Any, orientation: Any, topic: str) -> np.ndarray:
    """Converts position and orientation to a (4, 4) matrix; raises BagError."""
    try:
        return pose_from_quaternion(
            (position.x, position.y, position.z), (orientation.x, orientation.y, orientation.z, orientation.w)
        )
    except ValueError as error:
        raise BagError(f"A message on '{topic}' is invalid. {error}") from error


def _nearest(stamps: list[int], others: list[int], tolerance_ns: int) -> dict[int, int]:
    """Maps positions in `stamps` to the position of the nearest stamp in `others`, if within the tolerance."""
    order = np.argsort(others, kind="stable")
    ascending = np.array(others, dtype=np.int64)[order]
    pairs = {}
    for i, stamp in enumerate(stamps):
        right = int(np.searchsorted(ascending, stamp))
        near = [j for j in (right - 1, right) if 0 <= j < len(ascending)]
        best = min(near, key=lambda j: abs(int(ascending[j]) - stamp), default=None)
        if best is not None and abs(int(ascending[best]) - stamp) <= tolerance_ns:
            pairs[i] = int(order[best])
    return pairs


def _poses(
    index: _Index, images: list[int], pose_type: str, world_frame: str, base_frame: str, tolerance_ns: int
) -> dict[int, np.ndarray]:
    """Returns (4, 4) world_from_camera of the images with a known pose.

    Raises:
        BagError: no image has a pose; the message says why.
    """
    if not index.poses and (not index.tree.frames or (not world_frame and index.frame not in index.tree.frames)):
        return {images[0]: np.eye(4)}
    track = PoseTrack.from_samples(index.poses) if index.poses else None
    pose_frame = (index.pose_child or base_frame) if pose_type == ODOMETRY else base_frame
    poses: dict[int, np.ndarray] = {}
    problem = ""
    for i in images:
        stamp_ns = index.images[i]
        try:
            if track is None:
                root = world_frame or index.tree.root(index.frame)
                poses[i] = index.tree.lookup(root, index.frame, stamp_ns, tolerance_ns)
            else:
                frame_from_camera = np.eye(4)
                if pose_frame:
                    frame_from_camera = index.tree.lookup(pose_frame, index.frame, stamp_ns, tolerance_ns)
                poses[i] = track.at(stamp_ns, tolerance_ns) @ frame_from_camera
        except UnknownPoseError as error:
            problem = problem or str(error)
    if not poses:
        raise BagError(f"No image has a pose. For the first image: {problem}")
    return poses


def _load(
    bag: Bag,
    image_topic: str,
    depth_topic: str,
    index: _Index,
    pairs: dict[int, int | None],
    poses: dict[int, np.ndarray],
    calibration: CameraCalibration,
) -> Iterator[View]:
    """The second pass over a bag: decodes the images in `pairs` with their depth images."""
    waiting_images: dict[int, set[int]] = {}
    for image, depth in pairs.items():
        if depth is not None:
            waiting_images.setdefault(depth, set()).add(image)
    positions = {image_topic: -1, depth_topic: -1}
    images: dict[int, Any] = {}
    depths: dict[int, Any] = {}
    for topic, _, raw in bag.messages({image_topic, depth_topic} - {""}):
        positions[topic] += 1
        if topic == image_topic and positions[topic] in pairs:
            images[positions[topic]] = bag.decode(topic, raw)
        elif topic == depth_topic and positions[topic] in waiting_images:
            depths[positions[topic]] = bag.decode(topic, raw)
        for i in sorted(images):
            partner = pairs[i]
            if partner is not None and partner not in depths:
                break  # later images wait, to keep the recorded order
            message = images.pop(i)
            yield _view(
                message,
                None if partner is None else depths[partner],
                poses[i],
                index.images[i],
                calibration,
                image_topic,
                depth_topic,
            )
            if partner is not None:
                waiting_images[partner].discard(i)
                if not waiting_images[partner]:
                    del depths[partner]


def _view(
    image_message: Any,
    depth_message: Any,
    pose: np.ndarray,
    stamp_ns: int,
    calibration: CameraCalibration,
    image_topic: str,
    depth_topic: str,
) -> View:
    """Decodes and undistorts one view; raises BagError."""
    topic = image_topic
    try:
        image, depth = _decode_colour(image_message), None
        _check_size(image, calibration, "camera_info")
        if depth_message is not None:
            topic = depth_topic
            depth = _decode_depth(depth_message)
            _check_size(depth, calibration, "colour image")
    except ImageError as error:
        raise BagError(f"The message on '{topic}' at {stamp_ns / 1e9:.3f} s is invalid. {error}") from error
    image, depth = calibration.undistort(image, depth)
    return View(image, calibration.camera, pose, depth, stamp_ns=stamp_ns)


def _check_size(array: np.ndarray, calibration: CameraCalibration, what: str) -> None:
    height, width = array.shape[:2]
    camera = calibration.camera
    if (width, height) != (camera.width, camera.height):
        raise ImageError(
            f"Its size is {width}x{height}; the {what} has {camera.width}x{camera.height}. "
            "Record depth registered to the colour image, and the camera_info of that image."
        )


def _decode_colour(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed(message.data)
    return codecs.decode_colour(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def _decode_depth(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed_depth(message.data, message.format)
    return codecs.decode_depth(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


# --- paths -----------------------------------------------------------------------------------------------------------


def read_path(
    path: str | Path, topic: str, *, world_frame: str = "", base_frame: str = "", camera_frame: str = ""
) -> np.ndarray:
    """Reads the last non-empty path of a `nav_msgs/Path` topic.

    Args:
        path: folder or file of the bag.
        topic: topic of the path.
        world_frame: frame of the returned poses; "" = the frame of the path.
        base_frame: frame that the poses belong to, if it is not the camera's; used together with `camera_frame`.
        camera_frame: optical frame of the camera.

    Returns:
        (N, 4, 4) world_from_camera, OpenCV axes.

    Raises:
        BagError: the topic does not exist, has no poses, or a frame is not connected by transforms.
    """
    path = Path(path)
    with Bag(path) as bag:
        bag.require(topic, (PATH,), "path")
        last_path, frame, tree = None, "", TransformTree()
        transforms = [name for name, kind in bag.topics.items() if kind == TF]
        for name, recorded, raw in bag.messages([topic, *transforms]):
            message = bag.decode(name, raw)
            if name != topic:
                _add_transforms(tree, message, name)
            elif message.poses:
                last_path, frame, stamp_ns = message, _frame_id(raw), _stamp(raw, recorded)
    if last_path is None:
        raise BagError(f"The paths on '{topic}' in {path} have no poses.")
    poses = np.stack([_matrix(p.pose.position, p.pose.orientation, topic) for p in last_path.poses])
    tolerance_ns = 1_000_000_000  # a path may be stamped before or after the transforms around it
    try:
        if world_frame and world_frame != frame:
            poses = tree.lookup(world_frame, frame, stamp_ns, tolerance_ns) @ poses
        if base_frame and camera_frame:
            poses = poses @ tree.lookup(base_frame, camera_frame, stamp_ns, tolerance_ns)
    except UnknownPoseError as error:
        raise BagError(f"The path on '{topic}' cannot be transformed to the camera. {error}") from error
    return poses
