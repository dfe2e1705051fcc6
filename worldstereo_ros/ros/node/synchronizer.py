"""From messages to seeds: joins image, camera_info and depth by stamp, and decodes what is used.

The joining looks only at stamps and headers; the pixels are decoded by the worker, and only those of seeds that get
there.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.tf_buffer import SET_BACK_NS
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

KEPT = 16  # images, infos and depths that wait for each other; bounded, newest kept


@dataclass(frozen=True)
class Observation:
    """A picture that a sensor took, with the place it was taken from, not decoded yet.

    Attributes:
        image: the picture. info: its camera; None for a panorama. depth: registered to the picture, or None.
        world_from_camera: (4, 4), optical axes.
        stamp_ns: of the image.
        topic: the topic of the image, for messages to people.
        needs_depth: a depth image in which nothing is known is refused, instead of a guess in its place.
        accepted_at: `time.monotonic()` when it was handed on.
    """

    image: Image | CompressedImage
    info: CameraInfo | None
    depth: Image | None
    world_from_camera: np.ndarray
    stamp_ns: int
    topic: str
    needs_depth: bool = True
    accepted_at: float = field(default_factory=time.monotonic)

    def remember(self, world: WorldModel) -> None:
        """Puts it into memory: one view of a camera, several of a panorama.

        Raises:
            ValueError: it cannot be used; the message says why.
        """
        if self.info is not None:
            world.observe(self.view(self.info))
            return
        from worldstereo_ros.panorama.imagine import observe_panorama

        image = messages.image_array(self.image)
        observe_panorama(world, image, world_from_camera=self.world_from_camera, stamp_ns=self.stamp_ns)

    def view(self, info: CameraInfo) -> View:
        """The view of a camera. Raises ValueError as above."""
        image = messages.image_array(self.image)
        calibration = calibration_from_info(info)
        camera = calibration.camera
        check_sizes(camera, image.shape[1], image.shape[0])
        depth = None if self.depth is None else _fitted(messages.depth_array(self.depth), camera)
        if self.needs_depth and depth is not None and not (depth > 0).any():
            raise InputError(
                "The depth image that came with the image knows no pixel (all 0, NaN, infinite or out of range); is "
                "the depth camera on, and not too near? To guess depth in its place, name a depth_model."
            )
        image, depth = calibration.undistort(image, depth)
        return View(image, camera, self.world_from_camera, depth=depth, stamp_ns=self.stamp_ns)


def check_sizes(camera: Camera, width: int, height: int) -> None:
    """Raises ValueError where a camera_info speaks of another image size."""
    if (camera.width, camera.height) != (width, height):
        raise InputError(
            f"The image is {width}x{height} but its camera_info speaks of {camera.width}x{camera.height}. Take the "
            "camera_info of the same stream (after a resize node: the one it publishes)."
        )


def _fitted(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Depth on the image's grid; another size is accepted where the shape is the same."""
    height, width = depth.shape
    if (width, height) == (camera.width, camera.height):
        return depth
    if abs(width / height - camera.width / camera.height) > 0.01:
        raise InputError(
            f"The depth is {width}x{height} and the image {camera.width}x{camera.height}; the depth must be registered "
            "to the image (aligned_depth_to_color, depth_image_proc register)."
        )
    import cv2

    return cv2.resize(depth, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST_EXACT)


@dataclass
class SyncedFrame:
    """An image with what belongs to it, waiting for its pose."""

    image: Image | CompressedImage
    info: CameraInfo | None
    depth: Image | None
    topic: str
    stamp_ns: int
    since: float


class Synchronizer:
    """Joins images with camera_info and depth by stamp: the same stamp, else the nearest within a tolerance.

    An image waits for both for a limited time. A camera_info of the same frame may then stand in, as cameras seldom
    change theirs; a depth may not.

    Attributes:
        tolerance_ns: the most that two stamps may differ. wait: seconds an image waits.
        depth: "wanted" (taken where it comes), "needed" (an image without is given up), "tried" (wanted until some
            comes, needed from then on) or "ignored".
    """

    def __init__(self) -> None:
        self.tolerance_ns = 20_000_000
        self.wait = 0.3
        self.depth = "wanted"
        self._images: deque[SyncedFrame] = deque()
        self._infos: deque[tuple[int, CameraInfo]] = deque(maxlen=KEPT)
        self._depths: deque[tuple[int, Image]] = deque(maxlen=KEPT)
        self._last_info: dict[str, CameraInfo] = {}

    def add_image(self, image: Image | CompressedImage, topic: str, now: float) -> SyncedFrame | None:
        """Takes an image; returns one that had to be given up because too many wait."""
        stamp = messages.nanoseconds(image.header.stamp)
        self._images.append(SyncedFrame(image, None, None, topic, stamp, now))
        return self._images.popleft() if len(self._images) > KEPT else None

    def add_info(self, info: CameraInfo) -> None:
        """Takes a camera_info."""
        self._infos.append((messages.nanoseconds(info.header.stamp), info))
        if len(self._last_info) > KEPT:
            self._last_info.clear()
        self._last_info[info.header.frame_id] = info

    def add_depth(self, depth: Image) -> None:
        """Takes a depth image."""
        self._depths.append((messages.nanoseconds(depth.header.stamp), depth))

    def forget_after(self, stamp_ns: int) -> None:
        """Time was set back to this: what is later is forgotten; what already came of the new time is kept."""
        latest = stamp_ns + SET_BACK_NS
        self._images = deque(item for item in self._images if item.stamp_ns <= latest)
        self._infos = deque((entry for entry in self._infos if entry[0] <= latest), maxlen=KEPT)
        self._depths = deque((entry for entry in self._depths if entry[0] <= latest), maxlen=KEPT)

    def clear(self) -> None:
        """Forgets everything."""
        self._images.clear()
        self._infos.clear()
        self._depths.clear()
        self._last_info.clear()

    def joined(self, now: float) -> tuple[list[SyncedFrame], list[tuple[SyncedFrame, str]]]:
        """(images that are complete, images that were given up and the sentence that says why), oldest first."""
        done: list[SyncedFrame] = []
        given_up: list[tuple[SyncedFrame, str]] = []
        for item in list(self._images):
            late = now - item.since >= self.wait
            item.info = self._match(self._infos, item.stamp_ns, late)
            item.depth = None if self.depth == "ignored" else self._match(self._depths, item.stamp_ns, late)
            if item.info is None and late:
                item.info = self._last_info.get(item.image.header.frame_id)
            if item.info is not None and (item.depth is not None or self.depth == "ignored"):
                done.append(item)
            elif not late:
                continue
            elif item.info is None:
                given_up.append((item, self._no_info(item)))
            elif self.depth == "needed" or (self.depth == "tried" and self._depths):
                given_up.append((item, self._no_depth(item)))
            else:
                done.append(item)
            self._images.remove(item)
        return done, given_up

    def _match(self, kept: deque, stamp_ns: int, late: bool):
        if not kept:
            return None
        nearest, message = min(kept, key=lambda entry: abs(entry[0] - stamp_ns))
        if nearest == stamp_ns:
            return message
        # One close by is taken once the right one cannot come any more.
        passed = late or kept[-1][0] > stamp_ns
        return message if passed and abs(nearest - stamp_ns) <= self.tolerance_ns else None

    def _no_info(self, item: SyncedFrame) -> str:
        if not self._infos:
            return "No camera_info has come, so the image says nothing about where its pixels lie."
        return (
            f"No camera_info has a stamp within {self.tolerance_ns / 1e6:g} ms of the image's, or its frame "
            f"'{item.image.header.frame_id}'."
        )

    def _no_depth(self, item: SyncedFrame) -> str:
        if not self._depths:
            return "No depth has come, and `depth_source` is 'sensor'; publish it or set another source."
        gap = min(abs(stamp - item.stamp_ns) for stamp, _ in self._depths) / 1e6
        return (
            f"No depth came within {self.tolerance_ns / 1e6:g} ms of the image's stamp (the nearest is {gap:.1f} ms "
            "off); set `sync_tolerance` higher if the sensor's streams are not synchronised."
        )
