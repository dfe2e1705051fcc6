"""Writes posed RGB-D views to a bag, with the topics of an RGB-D camera driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging import codecs
from worldstereo_ros.io.bags.files import BagError, BagWriter
from worldstereo_ros.io.bags.topics import CAMERA_INFO, IMAGE, TF

NANOSECONDS = 1_000_000_000


def write_views(
    path: str | Path,
    views: Iterable[View],
    *,
    namespace: str = "/camera",
    world_frame: str = "map",
    camera_frame: str = "camera_optical_frame",
    storage: str = "mcap",
) -> int:
    """Writes views as a bag that `read_views`, `ros2 bag play` and Foxglove open.

    Args:
        path: folder of the bag, which must not exist.
        views: views in the order of their stamps. Only measured depth is written; pixels whose depth is estimated or
            imagined have depth 0. No depth message is written for views without depth.
        namespace: namespace of the topics `image`, `depth` (32FC1, metres) and `camera_info`.
        world_frame: parent frame of the transforms on `/tf`.
        camera_frame: child frame of the transforms and frame_id of the images.
        storage: "mcap" or "sqlite3".

    Returns:
        The number of written views.

    Raises:
        BagError: the folder exists or cannot be written, or lengths of a view are not in metres, as those of messages
            are.
    """
    writer = BagWriter(path, storage=storage)
    try:
        with writer:
            return _write(writer, views, namespace, world_frame, camera_frame)
    except BaseException:  # interrupted, too: half a bag would pass for the whole
        shutil.rmtree(writer.path, ignore_errors=True)
        raise


def _write(bag: BagWriter, views: Iterable[View], namespace: str, world_frame: str, camera_frame: str) -> int:
    count = 0
    topics = {name: f"{namespace}/{name}" for name in ("image", "depth", "camera_info")}
    for name, topic in topics.items():
        bag.add_topic(topic, CAMERA_INFO if name == "camera_info" else IMAGE)
    bag.add_topic("/tf", TF)
    for view in views:
        if not view.metric:
            raise BagError("The unit of the views is arbitrary (`metric` is false); messages are in metres.")
        stamp_ns = view.stamp_ns
        header = bag_header(bag, stamp_ns, camera_frame)
        bag.write("/tf", bag_transform(bag, stamp_ns, world_frame, camera_frame, view.world_from_camera), stamp_ns)
        bag.write(topics["camera_info"], bag_camera_info(bag, header, view.camera), stamp_ns)
        if view.depth is not None:
            # A reader of the bag takes all depth as measured, as that of a camera driver.
            measured = np.where(view.observed_mask, view.depth, np.float32(0))
            bag.write(topics["depth"], bag_image(bag, header, codecs.encode_depth(measured)), stamp_ns)
        bag.write(topics["image"], bag_image(bag, header, codecs.encode_colour(view.image)), stamp_ns)
        count += 1
    return count


def bag_header(bag: BagWriter, stamp_ns: int, frame: str):
    """A std_msgs/Header."""
    seconds, nanoseconds = divmod(stamp_ns, NANOSECONDS)
    stamp = bag.message("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return bag.message("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def bag_image(bag: BagWriter, header, encoded: tuple[str, int, int, int, np.ndarray]):
    """A sensor_msgs/Image of what `imaging.codecs` encoded."""
    encoding, height, width, step, data = encoded
    return bag.message(
        IMAGE, header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=step, data=data
    )


def bag_camera_info(bag: BagWriter, header, camera: Camera):
    """A sensor_msgs/CameraInfo without distortion."""
    K = np.asarray(camera.matrix, dtype=np.float64)
    roi = bag.message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return bag.message(
        CAMERA_INFO, header=header, height=camera.height, width=camera.width, distortion_model="plumb_bob",
        d=np.zeros(5), k=K.ravel(), r=np.eye(3).ravel(), p=np.hstack([K, np.zeros((3, 1))]).ravel(),
        binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def bag_transform(bag: BagWriter, stamp_ns: int, parent: str, child: str, parent_from_child: np.ndarray):
    """A tf2_msgs/TFMessage of one transform (4, 4)."""
    (x, y, z), (qx, qy, qz, qw) = (part.tolist() for part in quaternion_from_pose(parent_from_child))
    transform = bag.message(
        "geometry_msgs/msg/Transform",
        translation=bag.message("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
        rotation=bag.message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )
    stamped = bag.message(
        "geometry_msgs/msg/TransformStamped",
        header=bag_header(bag, stamp_ns, parent), child_frame_id=child, transform=transform,
    )  # fmt: skip
    return bag.message(TF, transforms=[stamped])
