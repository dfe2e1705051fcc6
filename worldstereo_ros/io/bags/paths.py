"""Reads paths (`nav_msgs/Path`) from bags as poses of the camera, without ROS."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL, has_robot_frame, resolve_camera_axes
from worldstereo_ros.geometry.path_headings import headings_along, without_headings
from worldstereo_ros.geometry.pose_tracks import TransformTree, UnknownPoseError
from worldstereo_ros.io.bags.decoding import pose_matrix, read_frame_id, read_stamp
from worldstereo_ros.io.bags.files import Bag, BagError
from worldstereo_ros.io.bags.index import read_transforms
from worldstereo_ros.io.bags.left_out import LeftOut
from worldstereo_ros.io.bags.topics import ODOMETRY, PATH, find_topics
from worldstereo_ros.utils.errors import InputError

logger = logging.getLogger(__name__)

POSE_FRAME_CHOICES = ("base", "camera")
HEADING_CHOICES = ("auto", "pose", "tangent")
BASE_NAMES = ("base_link", "base_footprint")  # whose poses planners plan, in order of preference
TOLERANCE_NS = 1_000_000_000  # a path may be stamped before or after the transforms around it


@dataclass(frozen=True)
class _Recorded:
    """A path as it was recorded: its poses, the frame of each, and its stamp."""

    poses: list[Any]
    frames: list[str]
    stamp_ns: int


def read_path(
    path: str | Path,
    topic: str,
    *,
    image_topic: str = "",
    pose_topic: str = "",
    world_frame: str = "",
    base_frame: str = "",
    camera_frame: str = "",
    pose_frame: str = "base",
    heading: str = "auto",
    camera_axes: str = "auto",
) -> np.ndarray:
    """Reads the last non-empty path of a `nav_msgs/Path` topic as poses of the camera.

    The poses are transformed to the world that `read_views` returns poses in, by the same arguments, and from the
    robot's base to the camera.

    Args:
        path: folder or file of the bag.
        topic: topic of the path.
        image_topic: topic of the images, whose frame is the camera's; "" = detected as by `read_views`.
        pose_topic: topic of the camera's poses, if `read_views` reads one; its frame is the world.
        world_frame: frame of the returned poses; "" = that of the pose topic, or the root above the camera's frame.
        base_frame: frame that the poses belong to; "" = child frame of an Odometry `pose_topic`, base_link,
            base_footprint, or the topmost frame that the camera is fixed to.
        camera_frame: frame of the camera; "" = that of the images.
        pose_frame: "base", or "camera" if the poses are those of the camera's optical axes.
        heading: "auto" = along the path where its planner left all orientations at the identity; "pose" = as recorded;
            "tangent" = along the path.
        camera_axes: as for `read_views`.

    Returns:
        (N, 4, 4) world_from_camera, OpenCV axes. Invalid poses are left out, counted and logged.

    Raises:
        BagError: the topic does not exist, has no poses, or a frame is not connected by transforms.
        InputError: an option is invalid.
    """
    for name, value, choices in (("pose_frame", pose_frame, POSE_FRAME_CHOICES), ("heading", heading, HEADING_CHOICES)):
        if value not in choices:
            raise InputError(f"{name} is '{value}'; one of {', '.join(choices)} was expected.")
    path, left_out = Path(path), LeftOut()
    try:
        with Bag(path) as bag:
            bag.require(topic, (PATH,), "path")
            tree = read_transforms(bag, left_out)
            recorded = _last_path(bag, topic, left_out)
            child = ""
            if pose_topic:
                pose_world, child = _frames_of_poses(bag, pose_topic)
                world_frame = world_frame or pose_world
            if not camera_frame:
                camera_frame = _first_frame(bag, image_topic or find_topics(bag)[0])
        stamp_ns = recorded.stamp_ns
        world = world_frame or (tree.root(camera_frame, stamp_ns) if tree.has(camera_frame) else "")
        kept, poses = _to_world(tree, recorded, world, topic, left_out)
        orientations = [recorded.poses[i].orientation for i in kept]
        poses = _with_headings(poses, orientations, heading, pose_frame, topic)
        if pose_frame == "camera":
            return poses
        base = base_frame or child or _base_of(tree, camera_frame, stamp_ns)
        return poses @ _base_from_camera(tree, base, camera_frame, world, stamp_ns, camera_axes)
    except UnknownPoseError as error:
        raise BagError(f"The path on '{topic}' cannot be transformed to the camera. {error}") from error
    finally:
        left_out.log(logger)


def _last_path(bag: Bag, topic: str, left_out: LeftOut) -> _Recorded:
    """The last path with poses. Raises BagError if there is none."""
    last: _Recorded | None = None
    for _, recorded_ns, raw in bag.messages([topic]):
        try:
            message = bag.decode(topic, raw)
        except BagError as error:
            left_out.add("paths", topic, str(error))
            continue
        if message.poses:
            of_path = read_frame_id(raw)
            frames = [stamped.header.frame_id or of_path for stamped in message.poses]
            last = _Recorded([stamped.pose for stamped in message.poses], frames, read_stamp(raw, recorded_ns))
    if last is None:
        reason = left_out.first_reason(topic)
        raise BagError(f"The paths on '{topic}' in {bag.path} have no poses. {reason}".rstrip())
    return last


def _frames_of_poses(bag: Bag, topic: str) -> tuple[str, str]:
    """(frame of the poses, frame whose poses they are or "") of the first message of a pose topic."""
    for _, _, raw in bag.messages([topic]):
        child = bag.decode(topic, raw).child_frame_id if bag.topics[topic] == ODOMETRY else ""
        return read_frame_id(raw), child
    return "", ""


def _first_frame(bag: Bag, topic: str) -> str:
    return next((read_frame_id(raw) for _, _, raw in bag.messages([topic])), "")


def _to_world(
    tree: TransformTree, recorded: _Recorded, world: str, topic: str, left_out: LeftOut
) -> tuple[list[int], np.ndarray]:
    """(indices of the valid poses, their (N, 4, 4) poses in the world). Raises BagError if none is valid."""
    transforms: dict[str, np.ndarray] = {}
    kept, poses = [], []
    for i, (pose, frame) in enumerate(zip(recorded.poses, recorded.frames, strict=True)):
        try:
            q = pose.orientation
            if not any((q.x, q.y, q.z, q.w)):
                q.w = 1.0  # no heading: planners that set none leave zeros or the identity
            matrix = pose_matrix(pose.position, q)
        except InputError as error:
            left_out.add("poses", topic, str(error))
            continue
        if frame not in transforms:
            same = not world or frame.strip("/") == world.strip("/")
            transforms[frame] = np.eye(4) if same else tree.lookup(world, frame, recorded.stamp_ns, TOLERANCE_NS)
        kept.append(i)
        poses.append(transforms[frame] @ matrix)
    if not poses:
        raise BagError(f"The path on '{topic}' has no valid pose. {left_out.first_reason(topic)}")
    return kept, np.stack(poses)


def _with_headings(poses: np.ndarray, orientations: list[Any], heading: str, pose_frame: str, topic: str) -> np.ndarray:
    """The poses, those without a heading turned along the path."""
    if heading == "pose" or (heading == "auto" and pose_frame == "camera"):
        return poses
    quaternions = np.array([(q.x, q.y, q.z, q.w) for q in orientations])
    turned = np.ones(len(poses), bool) if heading == "tangent" else without_headings(quaternions, poses[:, :3, 3])
    along = headings_along(poses[:, :3, 3]) if turned.any() else None
    if along is None:
        return poses
    if pose_frame == "camera":
        along = along @ BODY_FROM_OPTICAL[:3, :3]
    if heading == "auto":
        logger.warning(
            "The poses on '%s' have no headings (their orientations are 0 0 0 1), so the views look along the path. To "
            "look as the poses say, use --path-heading pose.",
            topic,
        )
    poses = poses.copy()
    poses[turned, :3, :3] = along[turned]
    return poses


def _base_of(tree: TransformTree, camera_frame: str, stamp_ns: int) -> str:
    """The frame whose poses planners plan: a base by name, else the topmost frame that the camera is fixed to."""
    if not tree.has(camera_frame):
        raise UnknownPoseError(
            f"Its poses are of the robot's base, and TF has no frame '{camera_frame}' of the images to reach the "
            "camera by. Record /tf_static; if the poses are those of the camera, say so (--path-pose-frame camera)."
        )
    chain = tree.ancestors(camera_frame, stamp_ns)
    for name in BASE_NAMES:
        for frame in chain:
            if frame.rsplit("/", 1)[-1] == name:
                return frame
    fixed = chain[0]
    for frame, parent in pairwise(chain):
        if not tree.is_static(frame):
            break
        fixed = parent
    return fixed


def _base_from_camera(
    tree: TransformTree, base: str, camera_frame: str, world: str, stamp_ns: int, camera_axes: str
) -> np.ndarray:
    """(4, 4) pose of the camera's optical axes in the base."""
    pose = tree.lookup(base, camera_frame, stamp_ns, TOLERANCE_NS)
    # Whether the frame has body axes is decided in the base, where z is up, as the paths of planners are.
    chain = tree.ancestors(camera_frame, stamp_ns) if tree.has(camera_frame) else []
    z_up = has_robot_frame([base, world, *chain])
    is_body, _ = resolve_camera_axes(camera_axes, camera_frame, pose, z_up=z_up, remedy="--camera-axes")
    return pose @ BODY_FROM_OPTICAL if is_body else pose
