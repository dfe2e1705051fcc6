"""Matches images with camera_info and depth by stamp, and converts them to views.

Matching reads stamps and headers only. The worker decodes the pixels, and only of observations that reach it.
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
from worldstereo_ros.ros.node.tf_buffer import TIME_JUMP_NS
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

MAX_DEPTH_UPSCALE = 8.0  # of a depth image to the size of its image; beyond, a depth pixel covers whole objects
MAX_ASPECT_ERROR = 0.01  # relative difference of the aspect ratios of an image and its depth
MAX_PENDING = 16  # images, camera_infos and depth images that wait for each other; the newest are kept


@dataclass(frozen=True)
class Observation:
    """An image of a sensor with its pose, not decoded yet.

    Attributes:
        image: the image. info: its camera; None for a panorama. depth: registered to the image, or None.
        world_from_camera: (4, 4), optical axes.
        stamp_ns: stamp of the image.
        topic: topic of the image, for error messages.
        needs_depth: rejects a depth image without a valid pixel instead of estimating depth.
        rectified: the image is rectified, so P of its camera_info holds.
        depth_unit: metres per stored value of the depth image; None = by its encoding.
        accepted_at: `time.monotonic()` of its creation.
    """

    image: Image | CompressedImage
    info: CameraInfo | None
    depth: Image | None
    world_from_camera: np.ndarray
    stamp_ns: int
    topic: str
    needs_depth: bool = True
    rectified: bool = False
    depth_unit: float | None = None
    accepted_at: float = field(default_factory=time.monotonic)

    def remember(self, world: WorldModel) -> None:
        """Inserts it into the memories: one view of a camera, several of a panorama.

        Raises:
            ValueError: it is not usable; the message says why.
        """
        if self.info is not None:
            world.observe(self.view(self.info))
            return
        from worldstereo_ros.panorama.imagine import observe_panorama

        image = messages.image_array(self.image)
        observe_panorama(world, image, world_from_camera=self.world_from_camera, stamp_ns=self.stamp_ns)

    def view(self, info: CameraInfo) -> View:
        """Decodes and undistorts a camera image and its depth. Raises ValueError as `remember`."""
        image = messages.image_array(self.image)
        calibration = calibration_from_info(info, rectified=self.rectified)
        camera = calibration.camera
        check_sizes(camera, image.shape[1], image.shape[0])
        depth = None
        if self.depth is not None:
            depth = _resize_depth(messages.depth_array(self.depth, self.depth_unit), camera)
        if self.needs_depth and depth is not None and not (depth > 0).any():
            raise InputError(
                "The depth image has no valid pixel (all are 0, NaN, infinite or out of range). Check that the depth "
                "camera is on and not too close, or set `depth_model` to estimate depth instead."
            )
        image, depth = calibration.undistort(image, depth)
        return View(image, calibration.undistorted_camera, self.world_from_camera, depth=depth, stamp_ns=self.stamp_ns)


def check_sizes(camera: Camera, width: int, height: int) -> None:
    """Raises ValueError if a camera_info is of another image size."""
    if (camera.width, camera.height) != (width, height):
        raise InputError(
            f"The image is {width}x{height} but its camera_info is for {camera.width}x{camera.height}. Use the "
            "camera_info of the same stream (after a resize node: the one that node publishes)."
        )


def check_depth_size(camera: Camera, width: int, height: int) -> None:
    """Raises ValueError if a depth image has another aspect ratio than its image, or is very much smaller."""
    aspect = camera.width / camera.height
    rounded = abs(width - height * aspect) <= 1 or abs(height - width / aspect) <= 1
    if not rounded and abs(width / height / aspect - 1) > MAX_ASPECT_ERROR:
        raise InputError(
            f"The depth is {width}x{height} and the image {camera.width}x{camera.height}; the depth must be registered "
            "to the image (aligned_depth_to_color, depth_image_proc register)."
        )
    scale = max(camera.width / width, camera.height / height)
    if scale > MAX_DEPTH_UPSCALE:
        raise InputError(
            f"The depth is {width}x{height} and the image {camera.width}x{camera.height}, {scale:.3g} times as large; "
            f"at most {MAX_DEPTH_UPSCALE:g} times is accepted. Publish depth of a higher resolution, or smaller images."
        )


def _resize_depth(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Resizes depth to the camera's image size. Raises ValueError as `check_depth_size`."""
    height, width = depth.shape
    if (width, height) == (camera.width, camera.height):
        return depth
    check_depth_size(camera, width, height)
    import cv2

    return cv2.resize(depth, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST_EXACT)


@dataclass
class SyncedFrame:
    """An image with its camera_info and depth, without its pose yet.

    Attributes:
        received_at: `time.monotonic()` when the image arrived.
        handed_on: it was handed on to what does not wait for its pose.
    """

    image: Image | CompressedImage
    info: CameraInfo | None
    depth: Image | None
    topic: str
    stamp_ns: int
    received_at: float
    handed_on: bool = False


class Synchronizer:
    """Matches images with camera_info and depth by stamp: the same stamp, else the nearest within a tolerance.

    An image waits for both until a timeout. Then the nearest camera_info of the same frame_id is used, since intrinsics
    seldom change; depth is never replaced.

    Attributes:
        tolerance_ns: largest difference of two stamps that match.
        timeout: seconds an image waits.
        depth_policy: "required" (an image without depth is rejected), "optional", "auto" (optional until the first
            depth image arrives, required from then on) or "ignored".
    """

    def __init__(self) -> None:
        self.tolerance_ns = 20_000_000
        self.timeout = 0.3
        self.depth_policy = "optional"
        self._images: deque[SyncedFrame] = deque()
        self._infos: deque[tuple[int, CameraInfo]] = deque(maxlen=MAX_PENDING)
        self._depths: deque[tuple[int, Image]] = deque(maxlen=MAX_PENDING)
        self._last_info: dict[str, CameraInfo] = {}

    @property
    def pending(self) -> tuple[int, int, int]:
        """Numbers of images, camera_infos and depth images that are kept."""
        return len(self._images), len(self._infos), len(self._depths)

    def add_image(self, image: Image | CompressedImage, topic: str, now: float) -> SyncedFrame | None:
        """Adds an image and returns the oldest one if it had to be dropped because too many wait."""
        stamp_ns = messages.nanoseconds(image.header.stamp)
        self._images.append(SyncedFrame(image, None, None, topic, stamp_ns, now))
        return self._images.popleft() if len(self._images) > MAX_PENDING else None

    def add_info(self, info: CameraInfo) -> None:
        """Adds a camera_info."""
        self._infos.append((messages.nanoseconds(info.header.stamp), info))
        if len(self._last_info) > MAX_PENDING:
            self._last_info.clear()
        self._last_info[info.header.frame_id] = info

    def add_depth(self, depth: Image) -> None:
        """Adds a depth image."""
        self._depths.append((messages.nanoseconds(depth.header.stamp), depth))

    def discard_after(self, stamp_ns: int) -> None:
        """Removes messages with later stamps, after time jumped back to `stamp_ns`."""
        latest = stamp_ns + TIME_JUMP_NS
        self._images = deque(frame for frame in self._images if frame.stamp_ns <= latest)
        self._infos = deque((entry for entry in self._infos if entry[0] <= latest), maxlen=MAX_PENDING)
        self._depths = deque((entry for entry in self._depths if entry[0] <= latest), maxlen=MAX_PENDING)

    def drop_images(self) -> None:
        """Removes the images that wait; camera_infos and depth images stay for those that follow."""
        self._images.clear()

    def clear(self) -> None:
        """Removes all messages."""
        self._images.clear()
        self._infos.clear()
        self._depths.clear()
        self._last_info.clear()

    def pop_ready(self, now: float) -> tuple[list[SyncedFrame], list[tuple[SyncedFrame, str]]]:
        """Removes and returns the images that are matched or timed out, oldest first.

        Args:
            now: `time.monotonic()`.

        Returns:
            (matched frames, rejected frames with the reason).
        """
        ready: list[SyncedFrame] = []
        rejected: list[tuple[SyncedFrame, str]] = []
        for frame in list(self._images):
            timed_out = now - frame.received_at >= self.timeout
            frame.info = self._match(self._infos, frame.stamp_ns, timed_out)
            ignored = self.depth_policy == "ignored"
            frame.depth = None if ignored else self._match(self._depths, frame.stamp_ns, timed_out)
            if frame.info is None and timed_out:
                frame.info = self._nearest_info(frame)
            if frame.info is not None and (frame.depth is not None or ignored):
                ready.append(frame)
            elif not timed_out:
                continue
            elif frame.info is None:
                rejected.append((frame, self._no_info_reason(frame)))
            elif self.depth_policy == "required" or (self.depth_policy == "auto" and self._depths):
                rejected.append((frame, self._no_depth_reason(frame)))
            else:
                ready.append(frame)
            self._images.remove(frame)
        return ready, rejected

    def _match(self, entries: deque, stamp_ns: int, timed_out: bool):
        if not entries:
            return None
        nearest, message = min(entries, key=lambda entry: abs(entry[0] - stamp_ns))
        if nearest == stamp_ns:
            return message
        # The nearest one is used only once an exact match can no longer arrive.
        exact_missed = timed_out or entries[-1][0] > stamp_ns
        return message if exact_missed and abs(nearest - stamp_ns) <= self.tolerance_ns else None

    def _nearest_info(self, frame: SyncedFrame) -> CameraInfo | None:
        """The camera_info of the same frame_id that is nearest in time, else the last one, such as one without stamp.

        The last one alone would give an image that was taken before a zoom the intrinsics after it.
        """
        frame_id = frame.image.header.frame_id
        stamped = [(stamp, info) for stamp, info in self._infos if stamp and info.header.frame_id == frame_id]
        if not stamped or not frame.stamp_ns:
            return self._last_info.get(frame_id)
        return min(stamped, key=lambda entry: abs(entry[0] - frame.stamp_ns))[1]

    def _no_info_reason(self, frame: SyncedFrame) -> str:
        if not self._infos:
            return "No camera_info received, so the intrinsics of the image are unknown."
        return (
            f"No camera_info has a stamp within {self.tolerance_ns / 1e6:g} ms of the image or its frame_id "
            f"'{frame.image.header.frame_id}'."
        )

    def _no_depth_reason(self, frame: SyncedFrame) -> str:
        if not self._depths:
            return "No depth image received, but `depth_source` is 'sensor'; publish depth or set another source."
        gap = min(abs(stamp - frame.stamp_ns) for stamp, _ in self._depths) / 1e6
        return (
            f"No depth image has a stamp within {self.tolerance_ns / 1e6:g} ms of the image (the nearest is {gap:.1f} "
            "ms off); increase `sync_tolerance` if the streams are not synchronised."
        )
