"""Reads posed RGB-D views from bags, without ROS.

A message that is damaged or invalid is left out; how many were, and why, is logged once at the end.
"""

from __future__ import annotations

import bisect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration, is_rectified
from worldstereo_ros.geometry.depth_units import parse_depth_unit
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.bags.decoding import decode_colour, decode_depth
from worldstereo_ros.io.bags.files import Bag, BagError, BagWriter
from worldstereo_ros.io.bags.image_poses import PoseOptions, image_poses, known_poses
from worldstereo_ros.io.bags.index import BagIndex, build_index
from worldstereo_ros.io.bags.left_out import LeftOut
from worldstereo_ros.io.bags.paths import read_path
from worldstereo_ros.io.bags.topics import (
    CAMERA_INFO,
    COMPRESSED,
    IMAGE,
    ODOMETRY,
    POSE,
    POSE_COVARIANCE,
    camera_info_beside,
    find_depth_topic,
    find_topics,
)
from worldstereo_ros.io.bags.video_stream import VideoStream, open_video
from worldstereo_ros.io.bags.video_types import DECODED_TYPES
from worldstereo_ros.utils.errors import InputError

__all__ = [
    "Bag",
    "BagError",
    "BagWriter",
    "camera_info_beside",
    "find_topics",
    "read_images",
    "read_path",
    "read_views",
]

logger = logging.getLogger(__name__)


def read_views(path: str | Path, image_topic: str = "", **options: Any) -> Iterator[View]:
    """Reads posed RGB-D views from a bag, in recorded order.

    An image is paired with the depth image of the nearest stamp; if there is a depth topic, images without depth
    within `tolerance` are left out. The pose comes from `pose_topic` or, without one, from the transforms between
    `world_frame` and the image's frame, interpolated at the image's stamp; images without a pose are left out. From a
    bag without any pose and transform only the first image is read, at the origin. Each image is seen with the
    camera_info of its time. What is left out is counted and logged at the end.

    Args:
        path: folder or file of the bag; a folder of the files of a split recording is one bag.
        image_topic: colour topic (Image, CompressedImage, or H.264 or H.265 video of `video_types.DECODED_TYPES`);
            "" = detected, with its depth topic, by `find_topics`.
        depth_topic: topic of depth registered to the image (Image of 16UC1 mm or 32FC1 m, or compressedDepth);
            "" = no depth.
        camera_info_topic: "" = `camera_info` beside the image topic.
        pose_topic: PoseStamped or PoseWithCovarianceStamped (pose of the camera's optical frame, or of `base_frame`),
            or Odometry (pose of its child frame); "" = transforms.
        world_frame: frame of the returned poses; "" = that of the pose topic, or the root above the image's frame.
        base_frame: frame of a PoseStamped, if it is not the camera's; transforms give the pose of the camera.
        tolerance: largest difference between stamps that belong together, seconds.
        max_views: maximum number of views, evenly spaced; 0 = all. The next one takes the place of an invalid one.
        rectified: "true", "false", or "auto" = by the topic's name, see `geometry.calibration.is_rectified`.
        camera_axes: "optical", "body", or "auto", see `geometry.camera_axes.resolve_camera_axes`.
        depth_unit: see `geometry.depth_units.parse_depth_unit`.

    Yields:
        Views with their stamps, undistorted.

    Raises:
        BagError: the bag is damaged, a topic is missing or of another type, or no image has all that it needs.
        InputError: an option is invalid.
    """
    return (view for view, _ in _read(path, image_topic, None, **options))


def read_images(
    path: str | Path, image_topic: str = "", *, on_unposed: Callable[[str], None] | None = None, **options: Any
) -> Iterator[tuple[View, bool]]:
    """Reads images from a bag as `read_views` does, also those without a pose.

    Args:
        path, image_topic, options: as for `read_views`.
        on_unposed: called once with a sentence, if some images or all have no pose.

    Yields:
        (view, whether its pose is known; otherwise it is at the origin).

    Raises:
        BagError, InputError: see `read_views`.
    """
    return _read(path, image_topic, on_unposed or (lambda reason: None), **options)


def _read(
    path: str | Path,
    image_topic: str,
    on_unposed: Callable[[str], None] | None,
    *,
    depth_topic: str = "",
    camera_info_topic: str = "",
    pose_topic: str = "",
    world_frame: str = "",
    base_frame: str = "",
    tolerance: float = 0.03,
    max_views: int = 0,
    rectified: str = "auto",
    camera_axes: str = "auto",
    depth_unit: str = "auto",
) -> Iterator[tuple[View, bool]]:
    """See `read_images`; without `on_unposed` only images with poses, see `read_views`."""
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"The tolerance is {tolerance} s; a number of at least 0 was expected.")
    tolerance_ns = round(tolerance * 1e9)
    metres_per_count = parse_depth_unit(depth_unit)
    path, left_out = Path(path), LeftOut()
    with Bag(path) as bag:
        if not image_topic:
            image_topic, found = find_topics(bag)
            depth_topic = depth_topic or found
        elif not depth_topic and (unused := find_depth_topic(bag, image_topic)):
            logger.warning(
                "The depth on '%s' is registered to the images on '%s', and is not used: where the image topic is "
                "named, name it, too (--depth-topic).",
                unused,
                image_topic,
            )
        info_topic = camera_info_topic or camera_info_beside(image_topic)
        bag.require(image_topic, (IMAGE, COMPRESSED, *DECODED_TYPES), "colour image")
        bag.require(info_topic, (CAMERA_INFO,), "camera_info")
        if depth_topic == image_topic:
            raise BagError(f"'{image_topic}' is given as both the colour and the depth topic.")
        if depth_topic:
            bag.require(depth_topic, (IMAGE, COMPRESSED), "depth image")
        if pose_topic:
            bag.require(pose_topic, (POSE, POSE_COVARIANCE, ODOMETRY), "pose")
        rectified_images = is_rectified(rectified, image_topic)
        try:
            index = build_index(
                bag, image_topic, depth_topic, info_topic, pose_topic, left_out, rectified=rectified_images
            )
            _log_rectified(rectified_images, rectified, image_topic, index)
            pairs: dict[int, int | None] = dict.fromkeys(range(len(index.images)))
            if depth_topic:
                pairs = {**_nearest(index.images, index.depths, tolerance_ns)}
                _check_pairs(pairs, index, image_topic, depth_topic, tolerance, left_out)
            options = PoseOptions(bag.topics.get(pose_topic, ""), world_frame, base_frame, camera_axes, tolerance_ns)
            if on_unposed is None:
                poses = known = image_poses(index, sorted(pairs), image_topic, options, left_out)
            else:
                known, reason = known_poses(index, sorted(pairs), image_topic, options)
                poses = {i: known.get(i, np.eye(4)) for i in pairs}
                if reason:
                    on_unposed(reason)
            with ExitStack() as stack:
                video = None
                if bag.topics[image_topic] in DECODED_TYPES:
                    video = stack.enter_context(open_video(bag, image_topic))
                reader = _ViewReader(bag, image_topic, depth_topic, index, poses, metres_per_count, left_out, video)
                for i, view in reader.read({i: pairs[i] for i in sorted(poses)}, max_views):
                    yield view, i in known
        finally:
            left_out.log(logger)


def _log_rectified(rectified: bool, setting: str, image_topic: str, index: BagIndex) -> None:
    """Says how the images are seen, where raw and rectified images would be seen differently."""
    if not any(calibration.coefficients.size for calibration in index.calibrations.calibrations):
        return
    if not rectified:
        logger.info("The images on '%s' are taken as raw: their distortion is removed.", image_topic)
    elif setting == "auto":
        logger.warning(
            "The images on '%s' are rectified by the name of the topic: they are seen with P of their camera_info, and "
            "no distortion is removed. If they are raw, say so (--rectified false).",
            image_topic,
        )


def _check_pairs(
    pairs: dict[int, int | None],
    index: BagIndex,
    image_topic: str,
    depth_topic: str,
    tolerance: float,
    left_out: LeftOut,
) -> None:
    """Counts the images without depth; raises BagError if all are."""
    lone = [i for i in range(len(index.images)) if i not in pairs]
    if not lone:
        return
    gaps_ns = [min((abs(index.images[i] - depth) for depth in index.depths), default=0) for i in lone[:100]]
    if not pairs:
        raise BagError(
            f"No image on '{image_topic}' has a depth image on '{depth_topic}' within {tolerance:g} s; the nearest is "
            f"{min(gaps_ns) / 1e9:.3f} s away. Check that both are stamped by one clock, or increase the tolerance "
            "(--tolerance)."
        )
    for i in lone:
        at = index.images[i] / 1e9
        left_out.add(
            "images",
            image_topic,
            f"The image at {at:.3f} s has no depth on '{depth_topic}' within {tolerance:g} s; --tolerance sets more.",
            kind="depth",
        )


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


class _ViewReader:
    """The second pass over a bag: decodes images with their depth images, and replaces those that are invalid."""

    def __init__(
        self,
        bag: Bag,
        image_topic: str,
        depth_topic: str,
        index: BagIndex,
        poses: dict[int, np.ndarray],
        metres_per_count: float | None,
        left_out: LeftOut,
        video: VideoStream | None,
    ) -> None:
        self._video = video  # decodes the images, if they are frames of a video
        self._bag, self._index, self._poses, self._left_out = bag, index, poses, left_out
        self._image_topic, self._depth_topic, self._metres_per_count = image_topic, depth_topic, metres_per_count

    def read(self, pairs: dict[int, int | None], max_views: int) -> Iterator[tuple[int, View]]:
        """Yields at most `max_views` images (position, view) with their depth; raises BagError if there is none."""
        candidates = sorted(pairs)
        selected = set(candidates)
        if 0 < max_views < len(candidates):
            selected = {candidates[round(i)] for i in np.linspace(0, len(candidates) - 1, max_views)}
        self._pairs, self._position = pairs, {self._image_topic: -1, self._depth_topic: -1}
        self._users = Counter(pairs[i] for i in selected)  # selected images of each depth image
        images: dict[int, Any] = {}
        depths: dict[int | None, Any] = {}
        count = 0
        for topic, _, raw in self._bag.messages({self._image_topic, self._depth_topic} - {""}):
            self._position[topic] += 1
            at = self._position[topic]
            if topic == self._image_topic and at in selected:
                images[at] = self._decode(topic, raw)
            elif topic == self._depth_topic and self._users[at]:
                depths[at] = self._decode(topic, raw)
            for i in sorted(images):
                partner = pairs[i]
                if partner is not None and partner > self._position[self._depth_topic]:
                    break  # later images wait, to keep the recorded order
                view = self._view(i, images.pop(i), None if partner is None else depths.get(partner), partner)
                self._users[partner] -= 1
                if not self._users[partner]:
                    depths.pop(partner, None)
                if view is not None:
                    count += 1
                    yield i, view
                elif (other := self._next_after(i, candidates, selected)) is not None:
                    selected.add(other)
                    self._users[pairs[other]] += 1
        if not count:
            reason = self._left_out.first_reason(self._image_topic, self._depth_topic)
            raise BagError(f"No image on '{self._image_topic}' in {self._bag.path} can be used. {reason}")

    def _next_after(self, i: int, candidates: list[int], selected: set[int]) -> int | None:
        """The next image that is not selected and still to come, and whose depth image is."""
        for j in candidates[bisect.bisect_right(candidates, i) :]:
            depth = self._pairs[j]
            depth_to_come = depth is None or depth > self._position[self._depth_topic]
            if j not in selected and j > self._position[self._image_topic] and depth_to_come:
                return j
        return None

    def _decode(self, topic: str, raw: memoryview) -> Any:
        try:
            return self._bag.decode(topic, raw)
        except BagError as error:
            self._left_out.add("messages", topic, str(error))
            return None

    def _view(self, i: int, image_message: Any, depth_message: Any, partner: int | None) -> View | None:
        """Decodes and undistorts one view; None if it is invalid."""
        stamp_ns, topic, what = self._index.images[i], self._image_topic, "images"
        if image_message is None or (partner is not None and depth_message is None):
            return None  # a damaged message, which is counted already
        try:
            image, depth = self._video.frame(i) if self._video else decode_colour(image_message), None
            height, width = image.shape[:2]
            calibration = self._index.calibrations.at(stamp_ns, width, height)
            _check_size(image, calibration, "camera_info")
            if depth_message is not None:
                topic, what = self._depth_topic, "depth images"
                depth = decode_depth(depth_message, self._metres_per_count)
                _check_size(depth, calibration, "colour image")
            image, depth = calibration.undistort(image, depth)
        except (ImageError, InputError) as error:
            self._left_out.add(what, topic, f"The message on '{topic}' at {stamp_ns / 1e9:.3f} s is invalid. {error}")
            return None
        return View(image, calibration.undistorted_camera, self._poses[i], depth, stamp_ns=stamp_ns)


def _check_size(array: np.ndarray, calibration: CameraCalibration, what: str) -> None:
    height, width = array.shape[:2]
    camera = calibration.camera
    if (width, height) != (camera.width, camera.height):
        raise ImageError(
            f"Its size is {width}x{height}; the {what} has {camera.width}x{camera.height}. "
            "Record depth registered to the colour image, and the camera_info of that image."
        )
