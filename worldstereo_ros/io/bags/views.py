"""Posed RGB-D views and paths from recordings, without ROS; writing is in `bagfiles.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import Calibration, calibration_from_info
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
    """What the first pass over a recording finds."""

    images: list[int] = field(default_factory=list)  # stamps, nanoseconds
    depths: list[int] = field(default_factory=list)
    frame: str = ""  # of the pictures
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
    wanted: int = 0,
) -> Iterator[View]:
    """Posed RGB-D views of a recording, in the order taken.

    Depth goes to a picture when its stamp is the nearest and within `tolerance`; pictures without are left out where
    there is a depth topic. The pose comes from `pose_topic`, else from the transforms (`world_frame` to the frame of
    the picture), interpolated at the picture's stamp; pictures without are left out. Of a recording without poses and
    transforms only the first picture is given, at the origin: nothing says where the others were taken.

    Args:
        path: folder or file of the recording.
        image_topic: Image or CompressedImage, colour; "" = found, with its depth, by `find_topics`.
        depth_topic: Image (16UC1 mm, 32FC1 m) or compressedDepth, registered to the picture; "" = no depth.
        camera_info_topic: "" = `camera_info` beside the image topic.
        pose_topic: PoseStamped, PoseWithCovarianceStamped (of the camera's optical frame, or of `base_frame`) or
            Odometry (of its child frame); "" = transforms.
        world_frame: root of the poses taken from transforms; "" = the topmost frame above the picture's.
        base_frame: what a PoseStamped is the pose of, where that is not the camera; transforms lead to the camera.
        tolerance: seconds between stamps that belong together.
        wanted: at most so many views, evenly spaced; 0 = all.

    Yields:
        Views with their stamps; images straightened where the camera_info has distortion.

    Raises:
        BagError: damaged, a topic is missing or of another type, sizes disagree, or no picture has all it needs.
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
            raise BagError(f"'{image_topic}' was given as both the colour and the depth image.")
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
                    f"No picture on '{image_topic}' has a depth image on '{depth_topic}' within {tolerance:g} s. "
                    "Are both stamped by one clock? A larger tolerance may help."
                )
        poses = _poses(index, sorted(pairs), bag.topics.get(pose_topic, ""), world_frame, base_frame, tolerance_ns)
        chosen = sorted(poses)
        if 0 < wanted < len(chosen):
            chosen = [chosen[round(i)] for i in np.linspace(0, len(chosen) - 1, wanted)]
        yield from _load(bag, image_topic, depth_topic, index, {i: pairs[i] for i in chosen}, poses, calibration)


def _index(bag: Bag, image_topic: str, depth_topic: str, info_topic: str, pose_topic: str) -> _Index:
    index = _Index()
    transforms = [name for name, kind in bag.topics.items() if kind == TF]
    for topic, recorded, raw in bag.messages({image_topic, depth_topic, info_topic, pose_topic, *transforms} - {""}):
        if topic == image_topic:
            index.images.append(_stamp(raw, recorded))
            index.frame = index.frame or _frame(raw)
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
    """The header's stamp, which every stamped message begins with; where it is zero, when it was recorded."""
    if len(raw) < 12:
        return recorded_ns
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 1_000_000_000 + nanoseconds or recorded_ns


def _frame(raw: memoryview) -> str:
    """The header's frame, which follows the stamp."""
    if len(raw) < 16:
        return ""
    (length,) = struct.unpack_from("<I" if raw[1] & 1 else ">I", raw, 12)
    return bytes(raw[16 : 16 + min(length, 256)]).rstrip(b"\0").decode("utf-8", "replace")


def _matrix(position: Any, orientation: Any, topic: str) -> np.ndarray:
    try:
        return pose_from_quaternion(
            (position.x, position.y, position.z), (orientation.x, orientation.y, orientation.z, orientation.w)
        )
    except ValueError as error:
        raise BagError(f"A message on '{topic}' cannot be used. {error}") from error


def _nearest(stamps: list[int], others: list[int], tolerance_ns: int) -> dict[int, int]:
    """Position in `stamps` -> position in `others` of the nearest one, where that is within the tolerance."""
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
    index: _Index, images: list[int], pose_type: str, world: str, base: str, tolerance_ns: int
) -> dict[int, np.ndarray]:
    """World_from_camera of the pictures whose pose is known.

    Raises:
        BagError: of none; the sentence says why.
    """
    if not index.poses and (not index.tree.frames or (not world and index.frame not in index.tree.frames)):
        return {images[0]: np.eye(4)}
    track = PoseTrack.from_samples(index.poses) if index.poses else None
    of = (index.pose_child or base) if pose_type == ODOMETRY else base
    poses: dict[int, np.ndarray] = {}
    problem = ""
    for i in images:
        stamp_ns = index.images[i]
        try:
            if track is None:
                root = world or index.tree.root(index.frame)
                poses[i] = index.tree.lookup(root, index.frame, stamp_ns, tolerance_ns)
            else:
                to_camera = index.tree.lookup(of, index.frame, stamp_ns, tolerance_ns) if of else np.eye(4)
                poses[i] = track.at(stamp_ns, tolerance_ns) @ to_camera
        except UnknownPoseError as error:
            problem = problem or str(error)
    if not poses:
        raise BagError(f"No picture has a pose. Of the first one: {problem}")
    return poses


def _load(
    bag: Bag,
    image_topic: str,
    depth_topic: str,
    index: _Index,
    pairs: dict[int, int | None],
    poses: dict[int, np.ndarray],
    calibration: Calibration,
) -> Iterator[View]:
    """The second pass: decodes the pictures in `pairs` with the depth images they go with."""
    users: dict[int, set[int]] = {}
    for image, depth in pairs.items():
        if depth is not None:
            users.setdefault(depth, set()).add(image)
    at = {image_topic: -1, depth_topic: -1}
    images: dict[int, Any] = {}
    depths: dict[int, Any] = {}
    for topic, _, raw in bag.messages({image_topic, depth_topic} - {""}):
        at[topic] += 1
        if topic == image_topic and at[topic] in pairs:
            images[at[topic]] = bag.decode(topic, raw)
        elif topic == depth_topic and at[topic] in users:
            depths[at[topic]] = bag.decode(topic, raw)
        for i in sorted(images):
            partner = pairs[i]
            if partner is not None and partner not in depths:
                break  # in the order taken: later ones wait
            picture = images.pop(i)
            yield _view(
                picture,
                None if partner is None else depths[partner],
                poses[i],
                index.images[i],
                calibration,
                image_topic,
                depth_topic,
            )
            if partner is not None:
                users[partner].discard(i)
                if not users[partner]:
                    del depths[partner]


def _view(
    picture: Any,
    depth: Any,
    pose: np.ndarray,
    stamp_ns: int,
    calibration: Calibration,
    image_topic: str,
    depth_topic: str,
) -> View:
    topic = image_topic
    try:
        image, distances = _colour(picture), None
        _check_size(image, calibration, "camera_info")
        if depth is not None:
            topic = depth_topic
            distances = _depth(depth)
            _check_size(distances, calibration, "colour image")
    except ImageError as error:
        raise BagError(f"The message on '{topic}' at {stamp_ns / 1e9:.3f} s cannot be used. {error}") from error
    image, distances = calibration.undistort(image, distances)
    return View(image, calibration.camera, pose, distances, stamp_ns=stamp_ns)


def _check_size(array: np.ndarray, calibration: Calibration, what: str) -> None:
    height, width = array.shape[:2]
    camera = calibration.camera
    if (width, height) != (camera.width, camera.height):
        raise ImageError(
            f"It is {width}x{height}; the {what} says {camera.width}x{camera.height}. "
            "Record depth registered to the colour image, and the camera_info of that image."
        )


def _colour(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed(message.data)
    return codecs.decode_colour(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def _depth(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed_depth(message.data, message.format)
    return codecs.decode_depth(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


# --- paths -----------------------------------------------------------------------------------------------------------


def read_path(
    path: str | Path, topic: str, *, world_frame: str = "", base_frame: str = "", camera_frame: str = ""
) -> np.ndarray:
    """The newest path with poses on a `nav_msgs/Path` topic.

    Args:
        path: folder or file of the recording.
        topic: of the path.
        world_frame: frame wanted, where the path is in another one; "" = the path's own.
        base_frame: what the poses are of, where not of the camera; with `camera_frame`, transforms lead to the camera.
        camera_frame: optical frame of the camera.

    Returns:
        (N, 4, 4) world_from_camera, OpenCV axes.

    Raises:
        BagError: no such topic, no poses, or a frame that transforms do not reach.
    """
    path = Path(path)
    with Bag(path) as bag:
        bag.require(topic, (PATH,), "path")
        newest, frame, tree = None, "", TransformTree()
        transforms = [name for name, kind in bag.topics.items() if kind == TF]
        for name, recorded, raw in bag.messages([topic, *transforms]):
            message = bag.decode(name, raw)
            if name != topic:
                _add_transforms(tree, message, name)
            elif message.poses:
                newest, frame, stamp_ns = message, _frame(raw), _stamp(raw, recorded)
    if newest is None:
        raise BagError(f"The paths on '{topic}' in {path} have no poses.")
    poses = np.stack([_matrix(p.pose.position, p.pose.orientation, topic) for p in newest.poses])
    tolerance_ns = 1_000_000_000  # a path is planned some time before or after the transforms around it
    try:
        if world_frame and world_frame != frame:
            poses = tree.lookup(world_frame, frame, stamp_ns, tolerance_ns) @ poses
        if base_frame and camera_frame:
            poses = poses @ tree.lookup(base_frame, camera_frame, stamp_ns, tolerance_ns)
    except UnknownPoseError as error:
        raise BagError(f"The path on '{topic}' cannot be brought to the camera. {error}") from error
    return poses
