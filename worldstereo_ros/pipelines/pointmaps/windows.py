"""Point maps of videos of any length: overlapping windows tied by similarities, in one call or frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator, SmallDepth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.imaging.shots import ShotDetector, is_black
from worldstereo_ros.pipelines.pointmaps.estimate import (
    MAP,
    METHODS,
    SMALL,
    Window,
    as_frames,
    assumed_camera,
    check_frame,
    estimate_window,
    reduce_depth,
    reduce_frame,
    reduced_camera,
)
from worldstereo_ros.pipelines.pointmaps.loops import MIN_GAP, LoopCloser, apply_closure
from worldstereo_ros.pipelines.pointmaps.tying import join, moved_by, select, tie_windows, with_odometry, without
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.pointmaps.dense_depth import Refiner

WINDOW, OVERLAP = 17, 4


@dataclass(frozen=True)
class _Input:
    image: np.ndarray
    depth: np.ndarray | None
    pose: np.ndarray | None


@dataclass(frozen=True)
class StreamRate:
    """Speed of a stream.

    Attributes:
        windows: that were estimated.
        frames: new ones among their frames.
        seconds: that the estimation of windows took, without reading and writing.
    """

    windows: int
    frames: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """New frames a second; 0 before the first window."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        if not self.windows:
            return "No window was estimated."
        each = self.seconds / self.windows
        return f"{self.frames_per_second:.1f} frames a second ({self.windows} windows, {each:.2f} s each)"


class PointmapStream:
    """Point maps frame by frame: `push` returns those of the frames that are ready.

    The first result comes after a whole window, later ones after each `window - overlap` frames. What was returned does
    not change any more: the next window is tied to it. Each cut between shots, and each place where the camera is
    lost, begins a shot with a world of its own.

    Not thread-safe.
    """

    def __init__(
        self,
        camera: Camera | None = None,
        *,
        method: str = MAP,
        window: int = WINDOW,
        overlap: int = OVERLAP,
        estimator: DepthEstimator | None = None,
        refiner: Refiner | None = None,
        estimate: Callable[[Window], Pointmaps] | None = None,
    ) -> None:
        """Creates a stream.

        Args:
            camera: intrinsics of the frames; None: unknown, and estimated where the first window has parallax.
            method: vo, map or small.
            window: frames of a window.
            overlap: frames of it that it shares with the one before.
            estimator: depth estimator of frames without measured depth; None for the bundled network.
            refiner: see `estimate_window`.
            estimate: gives the point maps of a window instead of `estimate_window`.

        Raises:
            InputError: the method is unknown or lacks its refiner, or a number is out of range.
        """
        if method not in METHODS or (method == SMALL and refiner is None and estimate is None):
            raise InputError(
                f"The method is '{method}'; {', '.join(METHODS)} were expected, and 'small' needs a refiner."
            )
        if not 2 <= overlap < window <= 64:
            raise InputError(
                f"The window is {window} and the overlap {overlap}; 2 <= overlap < window <= 64 was expected."
            )
        self.camera, self.method, self.window, self.overlap = camera, method, window, overlap
        self._known = camera is not None
        chosen = estimator or SmallDepth()
        self._estimate_window = estimate or partial(estimate_window, method=method, estimator=chosen, refiner=refiner)
        self._shots = ShotDetector()
        self._suspect: tuple[_Input, dict[str, np.ndarray]] | None = None  # first frame of a shot, maybe
        self._pending: list[_Input] = []
        self._last: Pointmaps | None = None  # the window before, tied
        self._shot, self._count = 0, 0
        self._target: Camera | None = None
        self._with_poses: bool | None = None
        self._reported: set[str] = set()
        self._windows, self._estimated, self._busy_s = 0, 0, 0.0

    @property
    def rate(self) -> StreamRate:
        """How fast point maps were estimated so far."""
        return StreamRate(self._windows, self._estimated, self._busy_s)

    def push(
        self, frame: np.ndarray, *, depth: np.ndarray | None = None, pose: np.ndarray | None = None
    ) -> list[Pointmaps]:
        """Takes the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB, or grey (H, W).
            depth: (H, W) measured metres, 0 = unknown; None if there is none.
            pose: (4, 4) known world_from_camera; for all frames or none.

        Returns:
            Point maps of the frames that are ready, of one shot each; often none.

        Raises:
            InputError: the frame or its depth does not fit those before.
            DepthError: depth cannot be estimated.
        """
        image = check_frame(frame, self.camera if self._known or self.camera is None else None, self._count)
        if self.camera is None:
            self.camera = assumed_camera(*image.shape[:2])
        if self._target is None:
            self._target = reduced_camera(self.camera)
            self._size = image.shape[:2]
        if image.shape[:2] != self._size:
            raise InputError(
                f"Frame {self._count} is {image.shape[1]}x{image.shape[0]} and those before {self._size[1]}x"
                f"{self._size[0]}; frames of one size were expected."
            )
        if self._with_poses is None:
            self._with_poses = pose is not None
        if self._with_poses != (pose is not None):
            raise InputError("Some frames have poses and others none; poses of all frames, or of none, were expected.")
        if depth is not None and depth.shape != image.shape[:2]:
            raise InputError(
                f"The depth of frame {self._count} has shape {depth.shape}; {image.shape[:2]} was expected."
            )
        self._count += 1
        taken = _Input(
            reduce_frame(image, self._target),
            None if depth is None else reduce_depth(depth, self._target),
            None if pose is None else check_poses(np.asarray(pose)[None], "The given pose")[0],
        )
        if self._with_poses:
            return self._append(taken)
        state = self._shots.state()
        cut = self._shots.is_cut(image)
        ready = []
        if self._suspect is not None:
            suspect, before = self._suspect
            self._suspect = None
            earlier = ShotDetector()
            earlier.restore(before)
            if earlier.is_cut(image):
                ready += self._close()
                ready += self._append(suspect)
            else:  # a flash, or one frame that shows nothing
                ready += self._append(suspect)
                cut = False
        if cut:  # the next frame shows whether the old shot continues
            self._suspect = taken, state
            return ready
        return ready + self._append(taken)

    def _append(self, taken: _Input) -> list[Pointmaps]:
        self._pending.append(taken)
        if len(self._pending) < self.window:
            return []
        ready = self._estimate()
        self._pending = self._pending[-self.overlap :]
        return [ready]

    def finish(self) -> list[Pointmaps]:
        """Ends the stream; returns the point maps of the frames that are left."""
        ready = self._close()
        if self._suspect is not None:
            suspect, _ = self._suspect
            self._suspect = None
            ready += self._append(suspect)
            ready += self._close()
        return ready

    # --- windows ---

    def _close(self) -> list[Pointmaps]:
        """Ends the shot."""
        fresh = len(self._pending) - (self.overlap if self._last is not None else 0)
        ready = [self._estimate()] if fresh > 0 else []
        if self._last is not None:
            self._shot += 1
        self._pending, self._last = [], None
        return ready

    def _estimate(self) -> Pointmaps:
        """Point maps of the new frames among the pending ones, tied to the window before."""
        assert self._target is not None
        inputs = self._pending
        depths = None
        if any(each.depth is not None for each in inputs):
            blank = np.zeros((self._target.height, self._target.width), np.float32)
            depths = np.stack([blank if each.depth is None else each.depth for each in inputs])
        poses = np.stack([each.pose for each in inputs if each.pose is not None]) if self._with_poses else None
        window = Window(np.stack([each.image for each in inputs]), self._target, depths, poses, self._known)
        start = time.perf_counter()
        maps = self._estimate_window(window)
        self._busy_s += time.perf_counter() - start
        self._windows += 1
        self._estimated += len(inputs) - (self.overlap if self._last is not None else 0)
        dark = np.array([is_black(each.image) for each in inputs])
        if dark.any():
            maps = without(maps, dark, f"{int(dark.sum())} black frames show nothing.")
        if len(inputs) == 1:
            maps = without(maps, np.ones(1, bool), "A shot of a single frame has no motion.")
        if not self._known:
            self._target, self._known = maps.camera, True
        if self._last is None:
            self._last = maps
            fresh = maps
        else:
            fresh = self._tied(maps)
        new = [text for text in fresh.messages if text not in self._reported]
        self._reported.update(new)
        return replace(fresh, shot=np.full(len(fresh), self._shot, np.int64), messages=tuple(new))

    def _tied(self, maps: Pointmaps) -> Pointmaps:
        """The frames that the window before lacks, in its world."""
        before = self._last
        assert before is not None
        n = self.overlap
        tie = tie_windows(select(before, slice(len(before) - n, None)), select(maps, slice(0, n)))
        messages = list(maps.messages)
        if tie is None:
            self._shot += 1
            first = self._count - len(maps) + n
            messages.append(f"The camera is lost at frame {first}: frames from there on are in a world of their own.")
            moved = maps
        else:
            moved = moved_by(maps, tie)
        self._last = moved
        return replace(select(moved, slice(n, None)), messages=tuple(messages))


def estimate_pointmaps(
    frames: Sequence[np.ndarray],
    camera: Camera | None = None,
    depth: Sequence[np.ndarray | None] | np.ndarray | None = None,
    poses: np.ndarray | None = None,
    *,
    odometry: np.ndarray | None = None,
    method: str = MAP,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    close_loops: bool = True,
    estimator: DepthEstimator | None = None,
    refiner: Refiner | None = None,
) -> Pointmaps:
    """Point maps and camera poses from the frames of one moving camera.

    The world is the first camera. Lengths are metres where poses, depth or odometry say them; else they are a guess of
    the depth network (`Pointmaps.metric`). Frames larger than `estimate.MAX_PIXELS` are reduced, see the result's
    camera. Where something fails, `ok` is False, the frames concerned are not `frame_ok`, and `messages` say why.

    Args:
        frames: F >= 2 images (H, W, 3) uint8 RGB, in order; grey ones may be (H, W).
        camera: intrinsics; None if they are unknown.
        depth: F depth images (H, W) in metres, 0 = unknown, or None for frames without.
        poses: (F, 4, 4) known world_from_camera.
        odometry: (F, 4, 4) poses of the robot at the same times, such as of its wheels; they tell the scale alone.
        method: vo (PnP against depth), map (joint solve), or small (map, refined by the bundled network).
        window, overlap: frames of the windows that longer videos are split into, and of their overlap.
        close_loops: correct the path where a place is seen again; not with given poses, which are exact.
        estimator: depth estimator; None for the bundled network.
        refiner: network of the method small, see `refinement.load_refiner`.

    Raises:
        InputError: the frames, their depth or their poses are no such.
        DepthError: depth cannot be estimated.
    """
    checked = as_frames(frames)
    for name, given in (("poses", poses), ("odometry", odometry), ("depth images", depth)):
        if given is not None and len(given) != len(checked):
            raise InputError(f"There are {len(given)} {name} for {len(checked)} frames; one for each was expected.")
    if odometry is not None:
        odometry = check_poses(odometry, "The odometry")
    stream = PointmapStream(camera, method=method, window=window, overlap=overlap, estimator=estimator, refiner=refiner)
    parts: list[Pointmaps] = []
    for index, frame in enumerate(checked):
        parts += stream.push(
            frame,
            depth=None if depth is None else depth[index],
            pose=None if poses is None else poses[index],
        )
    parts += stream.finish()
    if poses is not None:
        parts = _in_given_world(parts, check_poses(poses, "The given path"))
    result = join(parts)
    if close_loops and poses is None and len(checked) > MIN_GAP:
        closer = LoopCloser()
        closer.add(result, checked)
        result = apply_closure(result, closer.close())
    return result if odometry is None or result.metric else with_odometry(result, odometry)


def _in_given_world(parts: list[Pointmaps], poses: np.ndarray) -> list[Pointmaps]:
    """Parts with known poses, relative to the first camera: exactly these, without the errors of ties."""
    first, start, out = invert_pose(poses[0]), 0, []
    for part in parts:
        wanted = first @ poses[start : start + len(part)]
        change = wanted[0] @ invert_pose(part.poses[0])
        out.append(replace(moved_by(part, Similarity(1.0, change[:3, :3], change[:3, 3])), poses=wanted))
        start += len(part)
    return out
