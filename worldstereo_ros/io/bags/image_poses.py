"""Poses of the images of a bag, from a pose topic or from transforms."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL, has_robot_frame, resolve_camera_axes
from worldstereo_ros.geometry.pose_tracks import PoseTrack, TransformTree, UnknownPoseError
from worldstereo_ros.io.bags.files import BagError
from worldstereo_ros.io.bags.index import BagIndex
from worldstereo_ros.io.bags.left_out import LeftOut
from worldstereo_ros.io.bags.topics import ODOMETRY

logger = logging.getLogger(__name__)

MAX_LISTED_FRAMES = 12  # in error messages
SAME_POSE_TOLERANCE = 1e-9  # metres, and of the entries of the rotation
BODY_OPTION = "--camera-axes"


@dataclass(frozen=True)
class PoseOptions:
    """Where the poses of the images come from; see `io.bags.views.read_views`.

    Attributes:
        pose_type: message type of the pose topic; "" = transforms.
        world_frame, base_frame, camera_axes: as there.
        tolerance_ns: how far from a sample it is used.
    """

    pose_type: str = ""
    world_frame: str = ""
    base_frame: str = ""
    camera_axes: str = "auto"
    tolerance_ns: int = 30_000_000


def image_poses(
    index: BagIndex, images: Sequence[int], image_topic: str, options: PoseOptions, left_out: LeftOut
) -> dict[int, np.ndarray]:
    """Looks up the poses of images.

    Args:
        index: first pass over the bag.
        images: positions of the images, at least one.
        image_topic: their topic, for messages.
        options: where the poses come from.
        left_out: counts the images without a pose.

    Returns:
        position -> (4, 4) world_from_camera, OpenCV axes, of the images that have one. From a bag without any pose and
        transform the first image, at the origin.

    Raises:
        BagError: no image has a pose; the message says why.
    """
    tree = index.tree
    if not index.poses and not tree.frames:
        if options.world_frame:
            raise BagError(f"The bag has no transforms, so there is no frame '{options.world_frame}'.")
        if len(images) > 1:
            logger.warning(
                "The bag has neither poses nor transforms: of %d images only the first is used, at the origin.",
                len(images),
            )
        return {images[0]: np.eye(4)}
    frames = Counter(index.frames[i] for i in images)
    needs_tree = not index.poses or bool(_pose_child(index, options))
    if needs_tree:
        _require_frames(tree, frames, image_topic)
    world = options.world_frame or _common_root(index, images)
    poses: dict[int, np.ndarray] = {}
    track = PoseTrack.from_samples(index.poses) if index.poses else None
    for i in images:
        try:
            poses[i] = _frame_pose(index, track, i, world, options)
        except UnknownPoseError as error:
            left_out.add("images", image_topic, f"Its pose is unknown: {error}", kind="pose")
    if not poses:
        raise BagError(f"No image has a pose. Of the first image: {left_out.first_reason(image_topic)}")
    for frame in frames:
        members = [i for i in poses if index.frames[i] == frame]
        chain = _chain(tree, frame, world, index.images[members[0]]) if members else []
        z_up = has_robot_frame([*chain, index.pose_child, options.base_frame])
        stacked = np.stack([poses[i] for i in members]) if members else np.zeros((0, 4, 4))
        is_body, warning = resolve_camera_axes(options.camera_axes, frame, stacked, z_up=z_up, remedy=BODY_OPTION)
        if warning:
            logger.warning(warning)
        if is_body:
            poses |= {i: poses[i] @ BODY_FROM_OPTICAL for i in members}
    _warn_of_standstill(list(poses.values()), image_topic)
    return poses


def known_poses(
    index: BagIndex, images: Sequence[int], image_topic: str, options: PoseOptions
) -> tuple[dict[int, np.ndarray], str]:
    """Looks up the poses of images that can be used without one.

    Poses that are missing or say nothing are no error, unless an option names where they should come from.

    Args:
        index, images, image_topic, options: as for `image_poses`.

    Returns:
        (position -> (4, 4) world_from_camera of the images that have one, why the others have none, as a sentence, or
        "" if all have one).

    Raises:
        BagError: the poses that the options name cannot be had.
    """
    named = bool(options.pose_type or options.world_frame or options.base_frame)
    if not named and not index.tree.frames:
        return {}, "The bag has neither poses nor transforms."
    left_out = LeftOut()
    try:
        poses = image_poses(index, images, image_topic, options, left_out)
    except BagError as error:
        if named:
            raise
        return {}, str(error)
    if not named and _stands_still(list(poses.values())):
        return {}, "All transforms of the camera are the same, so its motion is not in the recording."
    return poses, "" if len(poses) == len(images) else left_out.first_reason(image_topic)


def _common_root(index: BagIndex, images: Sequence[int]) -> str:
    """The world of most images: a frame may be attached to another root later, which is another world."""
    if index.poses:
        return index.pose_frame
    roots: Counter[str] = Counter()
    for i in images:
        try:
            roots[index.tree.root(index.frames[i], index.images[i])] += 1
        except UnknownPoseError:
            continue
    return roots.most_common(1)[0][0] if roots else ""


def _pose_child(index: BagIndex, options: PoseOptions) -> str:
    """The frame whose poses the pose topic gives; "" = the camera's."""
    return (index.pose_child or options.base_frame) if options.pose_type == ODOMETRY else options.base_frame


def _frame_pose(index: BagIndex, track: PoseTrack | None, i: int, world: str, options: PoseOptions) -> np.ndarray:
    """(4, 4) pose of the frame of an image in the world. Raises UnknownPoseError."""
    stamp_ns, frame, tolerance_ns = index.images[i], index.frames[i], options.tolerance_ns
    if track is None:
        return index.tree.lookup(world, frame, stamp_ns, tolerance_ns)
    pose = track.at(stamp_ns, tolerance_ns)
    child = _pose_child(index, options)
    if child:
        pose = pose @ index.tree.lookup(child, frame, stamp_ns, tolerance_ns)
    if options.world_frame and index.pose_frame and options.world_frame.strip("/") != index.pose_frame.strip("/"):
        pose = index.tree.lookup(options.world_frame, index.pose_frame, stamp_ns, tolerance_ns) @ pose
    return pose


def _require_frames(tree: TransformTree, frames: Counter[str], image_topic: str) -> None:
    """Raises BagError if no image is of a frame that the transforms know."""
    if any(tree.has(frame) for frame in frames):
        return
    frame = frames.most_common(1)[0][0]
    if not frame:
        raise BagError(
            f"The images on '{image_topic}' have no frame_id, so their poses cannot be looked up in TF. Record it, or "
            "name a topic of camera poses (--pose-topic)."
        )
    known = tree.frames
    listed = ", ".join(known[:MAX_LISTED_FRAMES]) + (", ..." if len(known) > MAX_LISTED_FRAMES else "")
    raise BagError(
        f"There is no frame '{frame}' in TF, which the images on '{image_topic}' are stamped with, so their poses are "
        f"unknown; its frames are {listed or 'none'}. If the recording is split, /tf_static is in its first file: give "
        "the folder of all files. Otherwise record /tf_static, or name a topic of camera poses (--pose-topic)."
    )


def _chain(tree: TransformTree, frame: str, world: str, stamp_ns: int) -> list[str]:
    """Frames between a camera and the world, both included; empty without transforms."""
    if not tree.has(frame):
        return [world]
    ancestors = tree.ancestors(frame, stamp_ns)
    end = ancestors.index(world.lstrip("/")) + 1 if world.lstrip("/") in ancestors else len(ancestors)
    return ancestors[:end]


def _stands_still(poses: list[np.ndarray]) -> bool:
    return len(poses) > 1 and float(np.abs(np.stack(poses) - poses[0]).max()) <= SAME_POSE_TOLERANCE


def _warn_of_standstill(poses: list[np.ndarray], image_topic: str) -> None:
    if _stands_still(poses):
        logger.warning(
            "All %d images on '%s' have the same pose. If the camera moved, its motion is not in the recording's TF: "
            "name a topic of poses (--pose-topic).",
            len(poses),
            image_topic,
        )
