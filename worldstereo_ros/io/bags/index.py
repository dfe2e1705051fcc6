"""The first pass over a bag: stamps, poses, transforms and calibrations, but no images."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration, calibration_from_info
from worldstereo_ros.geometry.pose_tracks import TransformTree
from worldstereo_ros.io.bags.decoding import pose_matrix, read_frame_id, read_stamp
from worldstereo_ros.io.bags.files import Bag, BagError
from worldstereo_ros.io.bags.left_out import LeftOut
from worldstereo_ros.io.bags.topics import POSE, TF
from worldstereo_ros.utils.errors import InputError


@dataclass
class Calibrations:
    """The camera_info of a recording where it changes: each holds until the next one.

    Attributes:
        stamps_ns: ascending stamps of the changes.
        calibrations: the calibration from each of them on.
    """

    stamps_ns: list[int] = field(default_factory=list)
    calibrations: list[CameraCalibration] = field(default_factory=list)

    def add(self, stamp_ns: int, calibration: CameraCalibration) -> None:
        """Adds one, in any order of stamps."""
        at = bisect.bisect_right(self.stamps_ns, stamp_ns)
        self.stamps_ns.insert(at, stamp_ns)
        self.calibrations.insert(at, calibration)

    def at(self, stamp_ns: int, width: int, height: int) -> CameraCalibration:
        """Returns the calibration of an image: that of its time or, if that has another size, the nearest of its size.

        The result has another size than the image only if all have.
        """
        now = max(bisect.bisect_right(self.stamps_ns, stamp_ns) - 1, 0)
        fitting = [i for i, c in enumerate(self.calibrations) if (c.camera.width, c.camera.height) == (width, height)]
        if now in fitting or not fitting:
            return self.calibrations[now]
        return self.calibrations[min(fitting, key=lambda i: abs(self.stamps_ns[i] - stamp_ns))]


@dataclass
class BagIndex:
    """Result of the first pass over a bag.

    Attributes:
        images, depths: stamps of the images in nanoseconds, in recorded order.
        frames: frame_id of each image.
        calibrations: of the images.
        poses: (stamp in nanoseconds, (4, 4) pose) of the pose topic.
        pose_frame, pose_child: the frame of these poses, and the frame whose poses they are; "" if not stated.
        tree: all transforms.
    """

    images: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    calibrations: Calibrations = field(default_factory=Calibrations)
    poses: list[tuple[int, np.ndarray]] = field(default_factory=list)
    pose_frame: str = ""
    pose_child: str = ""
    tree: TransformTree = field(default_factory=TransformTree)


def build_index(
    bag: Bag,
    image_topic: str,
    depth_topic: str,
    info_topic: str,
    pose_topic: str,
    left_out: LeftOut,
    *,
    rectified: bool = False,
) -> BagIndex:
    """Reads all stamps, poses, transforms and calibrations; what is damaged or invalid is left out.

    Args:
        bag: open bag.
        image_topic, depth_topic, info_topic, pose_topic: topics; "" = none.
        left_out: counts what is left out.
        rectified: the images are rectified, see `calibration_from_info`.

    Raises:
        BagError: the bag ends in damage, or there is no usable camera_info or pose on the topics given.
    """
    index = BagIndex()
    frames: dict[str, str] = {}  # one string for all images of a frame
    newest_info = None
    for topic, recorded, raw in bag.messages(
        {image_topic, depth_topic, info_topic, pose_topic, *tf_topics(bag)} - {""}
    ):
        if topic == image_topic:
            index.images.append(read_stamp(raw, recorded))
            frame = read_frame_id(raw)
            index.frames.append(frames.setdefault(frame, frame))
        if topic == depth_topic:
            index.depths.append(read_stamp(raw, recorded))
        try:
            if topic == info_topic:
                info = bag.decode(topic, raw)
                fields = _calibration_fields(info)
                if fields != newest_info:
                    calibration = calibration_from_info(info, rectified=rectified)
                    index.calibrations.add(read_stamp(raw, recorded), calibration)
                    newest_info = fields
            if topic == pose_topic:
                message = bag.decode(topic, raw)
                pose = message.pose if bag.topics[topic] == POSE else message.pose.pose
                index.poses.append((read_stamp(raw, recorded), pose_matrix(pose.position, pose.orientation)))
                index.pose_frame = index.pose_frame or message.header.frame_id
                index.pose_child = index.pose_child or getattr(message, "child_frame_id", "")
        except (BagError, InputError) as error:
            left_out.add("camera_infos" if topic == info_topic else "poses", topic, str(error))
        if bag.topics[topic] == TF:
            add_transforms(index.tree, bag, topic, raw, left_out)
    if not index.calibrations.calibrations:
        raise BagError(f"'{info_topic}' in {bag.path} cannot be used. {left_out.first_reason(info_topic)}")
    if pose_topic and not index.poses:
        raise BagError(f"'{pose_topic}' in {bag.path} has no valid pose. {left_out.first_reason(pose_topic)}")
    return index


def tf_topics(bag: Bag) -> list[str]:
    """Returns the topics of transforms of an open bag."""
    return [name for name, kind in bag.topics.items() if kind == TF]


def read_transforms(bag: Bag, left_out: LeftOut) -> TransformTree:
    """Reads all transforms of an open bag; invalid ones are left out."""
    tree = TransformTree()
    for topic, _, raw in bag.messages(tf_topics(bag)):
        add_transforms(tree, bag, topic, raw, left_out)
    return tree


def add_transforms(tree: TransformTree, bag: Bag, topic: str, raw: memoryview, left_out: LeftOut) -> None:
    """Adds the transforms of a message to a tree.

    A transform that is not finite, or whose quaternion is no rotation, is left out; the others of its message are not.
    """
    try:
        transforms = bag.decode(topic, raw).transforms
    except BagError as error:
        left_out.add("messages", topic, str(error))
        return
    for t in transforms:
        stamp_ns = t.header.stamp.sec * 1_000_000_000 + t.header.stamp.nanosec
        try:
            matrix = pose_matrix(t.transform.translation, t.transform.rotation)
            tree.add(t.header.frame_id, t.child_frame_id, stamp_ns, matrix, static=topic.endswith("tf_static"))
        except InputError as error:
            left_out.add("transforms", topic, f"'{t.child_frame_id}' in '{t.header.frame_id}': {error}")


def _calibration_fields(info: Any) -> tuple[Any, ...]:
    """What a calibration depends on, to compare two camera_infos."""
    roi = info.roi
    numbers: Iterable[Any] = (info.k, info.d, info.p, info.r)
    return (
        info.width, info.height, info.distortion_model, info.binning_x, info.binning_y,
        roi.x_offset, roi.y_offset, roi.width, roi.height, *(np.asarray(array).tobytes() for array in numbers),
    )  # fmt: skip
