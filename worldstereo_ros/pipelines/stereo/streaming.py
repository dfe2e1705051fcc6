"""Stereo frames of a camera that runs: frames come one by one, with gaps, and the camera may change.

    stream = StereoStream(StereoSettings(base=0.065), estimator)
    pair = stream.push(image, camera, depth, stamp_s)   # depth None: estimated
    pair.left, pair.right, pair.left_camera, pair.right_camera, pair.disparity

Poses are not needed: without them the motion between frames is followed in the images (`GeometryTracker`). With them
that work is saved, and nothing is lost where an image has too few features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.stereo.frame_geometry import GeometryTracker
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import MAX_DISPARITY, StereoSettings
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.stereo.conversion import StereoPipeline

MAX_GAP_S = 1.0  # between two frames; after a longer one nothing is taken over from the frame before
UNKNOWN_DISPARITY = np.float32(-1.0)


@dataclass(frozen=True)
class LeftEye:
    """One frame of the left eye, which is the camera's, with its depth.

    Attributes:
        left: (H, W, 3) uint8 RGB, the camera's image, unchanged but for its size.
        depth: (H, W) float32 metres, 0 = unknown, inf = infinitely far: what the right eye is made of.
        left_camera: intrinsics.
        base: distance of the eyes that the disparities have, metres.
        estimated: a model estimated the depth; no sensor measured it.
        restarted: nothing was taken over from the frame before.
    """

    left: np.ndarray
    depth: np.ndarray
    left_camera: Camera
    base: float
    estimated: bool
    restarted: bool

    @property
    def max_disparity(self) -> float:
        """Largest disparity that is drawn, pixels; what is nearer is drawn at this one."""
        return MAX_DISPARITY * self.left_camera.width

    @property
    def disparity(self) -> np.ndarray:
        """(H, W) float32 pixels in the left eye, as it is drawn: focal length x base / depth; -1 = unknown depth.

        It is `left_camera.fx * base / depth`, up to `max_disparity`, whatever the convergence. Nothing was matched: it
        is the depth that was put in.
        """
        return disparity_of(self.depth, self.left_camera.fx * self.base, self.max_disparity)


@dataclass(frozen=True)
class StereoPair(LeftEye):
    """One frame of both eyes.

    Attributes:
        right: (H, W, 3) uint8 RGB, made.
        source: (H, W) uint8: where each pixel of the right eye comes from (`pipeline.SEEN`, `REMEMBERED`, `PAINTED`).
        right_camera: intrinsics; cx is another one than that of the left eye if the eyes converge.
    """

    right: np.ndarray
    source: np.ndarray
    right_camera: Camera


def disparity_of(depth: np.ndarray, focal_base: float, most: float) -> np.ndarray:
    """Disparity of depth.

    Args:
        depth: (H, W) float32 metres, 0 = unknown, inf = infinitely far.
        focal_base: focal length in pixels times base in metres.
        most: largest disparity, pixels.

    Returns:
        (H, W) float32 pixels; `UNKNOWN_DISPARITY` where the depth is unknown.
    """
    known = depth > 0
    with np.errstate(divide="ignore"):
        disparity = np.minimum(np.float32(focal_base) / depth, np.float32(most))
    return np.where(known, disparity, UNKNOWN_DISPARITY).astype(np.float32, copy=False)


class StereoStream:
    """Makes the right eye of the frames of a running camera. Not thread-safe: use it from one thread.

    It starts over, so that nothing of other frames is drawn into a new one, where the camera or the settings change,
    after a gap, when the time jumps back, and when measured depth takes the place of estimated depth, or given poses
    that of followed ones, or the reverse.

    Args:
        settings: what the pair is to be like; the eye made is the right one.
        estimator: for frames without depth; None: they are refused.
        width: width of each eye, pixels; 0: that of the images.
        make_pipeline: makes the pipeline for a camera.

    Raises:
        InputError: the settings ask for the left eye, or the width is negative.
    """

    def __init__(
        self,
        settings: StereoSettings,
        estimator: DepthEstimator | None,
        *,
        width: int = 0,
        make_pipeline: Callable[[Camera, StereoSettings], StereoPipeline] = GeometricStereo,
    ) -> None:
        if settings.eye != "right":
            raise InputError("The left eye of a running camera is its own image; the eye to make is the right one.")
        if width < 0:
            raise InputError(f"The width is {width}; 0 (that of the images) or a number of pixels was expected.")
        self.settings, self.width = settings, width
        self._estimator, self._make_pipeline = estimator, make_pipeline
        self._pipeline: StereoPipeline | None = None
        self._pipeline_camera: Camera | None = None
        self._stale = False  # what the pipeline remembers is of another shot
        self._tracker: GeometryTracker | None = None
        self._kind: tuple[Camera, bool, bool] | None = None  # camera, measured depth, given poses
        self._stamp_s: float | None = None

    def restart(self) -> None:
        """Forgets all frames."""
        self._tracker, self._stale = None, True

    def left_camera(self, camera: Camera) -> Camera:
        """Intrinsics of the left eye for those of the images."""
        if not self.width or self.width == camera.width:
            return camera
        return camera.resized(self.width, max(1, round(self.width * camera.height / camera.width)))

    def right_camera(self, camera: Camera) -> Camera:
        """Intrinsics of the right eye for those of the images."""
        left = self.left_camera(camera)
        return replace(left, cx=left.cx + self.settings.offset(left.fx))

    def resize(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """The left eye (H, W, 3) of an image of a camera."""
        left = self.left_camera(camera)
        return image if left == camera else resize_image(image, left.width, left.height)

    def push(
        self,
        image: np.ndarray,
        camera: Camera,
        depth: np.ndarray | None = None,
        stamp_s: float | None = None,
        world_from_camera: np.ndarray | None = None,
    ) -> StereoPair:
        """Makes the pair of the next frame.

        Args:
            image: (H, W, 3) uint8 RGB without distortion.
            camera: its intrinsics.
            depth: (H, W) float32 metres, measured, 0 = unknown; None: estimated.
            stamp_s: time of the image, seconds; None: at no gap from the frame before.
            world_from_camera: (4, 4) pose; None: it is unknown, and followed in the images.

        Raises:
            InputError: the image or the depth does not fit the camera, or there is neither depth nor an estimator.
        """
        left, world_from_camera = self._left_eye(image, camera, depth, stamp_s, world_from_camera)
        if self._pipeline is None or self._pipeline_camera != left.left_camera:
            self._pipeline = self._make_pipeline(left.left_camera, self.settings)
            self._pipeline_camera = left.left_camera
        elif self._stale:
            self._pipeline.restart()
        self._stale = False
        frame = self._pipeline.make(left.left, left.depth, world_from_camera)
        return StereoPair(**vars(left), right=frame.image, source=frame.source, right_camera=self.right_camera(camera))

    def left_eye(
        self,
        image: np.ndarray,
        camera: Camera,
        depth: np.ndarray | None = None,
        stamp_s: float | None = None,
        world_from_camera: np.ndarray | None = None,
    ) -> LeftEye:
        """The left eye alone of the next frame, with its depth; arguments and errors as in `push`."""
        left, _ = self._left_eye(image, camera, depth, stamp_s, world_from_camera)
        self._stale = True
        return left

    def _left_eye(
        self,
        image: np.ndarray,
        camera: Camera,
        depth: np.ndarray | None,
        stamp_s: float | None,
        world_from_camera: np.ndarray | None,
    ) -> tuple[LeftEye, np.ndarray | None]:
        """(the left eye, its pose); restarts what must start over."""
        shape = (camera.height, camera.width)
        if image.shape != (*shape, 3) or (depth is not None and depth.shape != shape):
            raise InputError(
                f"The image has shape {image.shape}"
                + ("" if depth is None else f" and the depth {depth.shape}")
                + f"; {(*shape, 3)} and {shape}, the camera's size, were expected."
            )
        left_camera = self.left_camera(camera)
        if left_camera != camera:
            image = self.resize(image, camera)
            if depth is not None:
                size = (left_camera.width, left_camera.height)
                depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
        measured = depth is not None and bool((depth > 0).any())
        before, self._stamp_s = self._stamp_s, stamp_s
        apart = stamp_s is not None and before is not None and not 0 <= stamp_s - before <= MAX_GAP_S
        kind = (left_camera, measured, world_from_camera is not None)
        restarted = False
        if self._tracker is None or apart or kind != self._kind:
            self._tracker, restarted = GeometryTracker(left_camera, self._estimator), True
            self._kind = kind
        geometry = self._tracker.step(image, depth if measured else None, world_from_camera)
        restarted = restarted or geometry.new_shot
        self._stale = self._stale or restarted
        left = LeftEye(image, geometry.depth, left_camera, self.settings.effective_base, geometry.estimated, restarted)
        return left, geometry.world_from_camera
