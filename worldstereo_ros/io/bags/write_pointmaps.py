"""Writes what point maps say of a video to a bag: images, estimated depth, what moves, the path and transforms."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging import codecs
from worldstereo_ros.io.bags.files import BagWriter
from worldstereo_ros.io.bags.topics import CAMERA_INFO, IMAGE, PATH, POSE, TF
from worldstereo_ros.io.bags.write_views import bag_camera_info, bag_header, bag_image, bag_transform

IMAGE_TOPIC, INFO_TOPIC = "/camera/color/image_rect", "/camera/color/camera_info"
DEPTH_TOPIC, DEPTH_INFO_TOPIC = "/pointmaps/depth", "/pointmaps/camera_info"
DYNAMIC_TOPIC, PATH_TOPIC = "/pointmaps/dynamic", "/pointmaps/path"
CAMERA_FRAME = "camera_optical_frame"
# Depth has a frame of its own, at the same place, so that no reader pairs it with the images as if a sensor had
# measured it.
ESTIMATED_FRAME = "camera_estimated_optical_frame"
METRIC_WORLD, OTHER_WORLD = "map", "map_unscaled"
FIRST_STAMP_NS = 1_000_000_000  # of videos that begin at 0, which messages take as no stamp


def write_pointmap_bag(path: str | Path, frames: Iterable[tuple[View, np.ndarray]], *, metric: bool) -> int:
    """Writes frames as a bag that `ros2 bag play`, RViz and Foxglove open.

    Args:
        path: folder of the bag, which must not exist.
        frames: (view with depth, (H, W) bool: what moves), in the order of their stamps.
        metric: lengths are metres. If not, the frame of the poses is `map_unscaled`, and all lengths are in its unit.

    Returns:
        The number of frames.

    Raises:
        BagError: the folder exists or cannot be written.
    """
    writer = BagWriter(path)
    try:
        with writer:
            return _write(writer, frames, METRIC_WORLD if metric else OTHER_WORLD)
    except BaseException:  # interrupted, too: half a bag would pass for the whole
        shutil.rmtree(writer.path, ignore_errors=True)
        raise


def _write(bag: BagWriter, frames: Iterable[tuple[View, np.ndarray]], world: str) -> int:
    for topic in (IMAGE_TOPIC, DEPTH_TOPIC, DYNAMIC_TOPIC):
        bag.add_topic(topic, IMAGE)
    for topic, kind in ((INFO_TOPIC, CAMERA_INFO), (DEPTH_INFO_TOPIC, CAMERA_INFO), (PATH_TOPIC, PATH), ("/tf", TF)):
        bag.add_topic(topic, kind)
    path: list[Any] = []
    shift = stamp_ns = 0
    for view, dynamic in frames:
        if not path and view.stamp_ns <= 0:
            shift = FIRST_STAMP_NS - view.stamp_ns
        stamp_ns = view.stamp_ns + shift
        assert view.depth is not None
        header, estimated = bag_header(bag, stamp_ns, CAMERA_FRAME), bag_header(bag, stamp_ns, ESTIMATED_FRAME)
        for frame in (CAMERA_FRAME, ESTIMATED_FRAME):
            bag.write("/tf", bag_transform(bag, stamp_ns, world, frame, view.world_from_camera), stamp_ns)
        bag.write(INFO_TOPIC, bag_camera_info(bag, header, view.camera), stamp_ns)
        bag.write(IMAGE_TOPIC, bag_image(bag, header, codecs.encode_colour(view.image)), stamp_ns)
        bag.write(DEPTH_INFO_TOPIC, bag_camera_info(bag, estimated, view.camera), stamp_ns)
        bag.write(DEPTH_TOPIC, bag_image(bag, estimated, codecs.encode_depth(view.depth)), stamp_ns)
        moves = dynamic.astype(np.uint8) * np.uint8(255)
        bag.write(DYNAMIC_TOPIC, bag_image(bag, estimated, codecs.encode_colour(moves)), stamp_ns)
        path.append(_pose(bag, stamp_ns, world, view.world_from_camera))
    if path:
        header = bag_header(bag, stamp_ns, world)
        bag.write(PATH_TOPIC, bag.message(PATH, header=header, poses=path), stamp_ns)
    return len(path)


def _pose(bag: BagWriter, stamp_ns: int, frame: str, world_from_camera: np.ndarray):
    (x, y, z), (qx, qy, qz, qw) = (part.tolist() for part in quaternion_from_pose(world_from_camera))
    pose = bag.message(
        "geometry_msgs/msg/Pose",
        position=bag.message("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=bag.message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )
    return bag.message(POSE, header=bag_header(bag, stamp_ns, frame), pose=pose)
