"""Point maps of videos of any length: overlapping windows tied by similarities, in one call or frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator, SmallDepth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.similarity import Similarity, mean_rotation
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
    scale_by_odometry,
    scaled,
)
from worldstereo_ros.pipelines.pointmaps.types import GUESS, Pointmaps
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.pointmaps.dense_depth import Refiner

WINDOW, OVERLAP = 17, 4
MIN_TIED_FRAMES = 2  # of the overlap whose poses both windows found
MAX_TIE_PIXELS = 20_000
MIN_TIE_CONFIDENCE = 0.05


@dataclass(frozen=True)
class _Input:
    image: np.ndarray
    depth: np.ndarray | None
    pose: np.ndarray | None


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
        self._pending: list[_Input] = []
        self._last: Pointmaps | None = None  # the window before, tied
        self._shot, self._count = 0, 0
        self._target: Camera | None = None
        self._with_poses: bool | None = None
        self._reported: set[str] = set()

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
        ready = []
        cut = self._shots.is_cut(image)
        if cut and self._with_poses is False:
            ready += self._close()
        self._pending.append(
            _Input(
                reduce_frame(image, self._target),
                None if depth is None else reduce_depth(depth, self._target),
                None if pose is None else check_poses(np.asarray(pose)[None], "The given pose")[0],
            )
        )
        if len(self._pending) == self.window:
            ready.append(self._estimate())
            self._pending = self._pending[-self.overlap :]
        return ready

    def finish(self) -> list[Pointmaps]:
        """Ends the stream; returns the point maps of the frames that are left."""
        return self._close()

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
        maps = self._estimate_window(window)
        dark = np.array([is_black(each.image) for each in inputs])
        if dark.any():
            maps = _without(maps, dark)
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


def tie_windows(before: Pointmaps, now: Pointmaps) -> Similarity | None:
    """Similarity from a window's world to that of the one before, by the frames that both have.

    The scale is the median ratio of depths, weighted by confidence; it is 1 where something measured it. Rotation and
    translation are means over the poses.

    Returns:
        None where fewer than `MIN_TIED_FRAMES` poses are known in both.
    """
    both = before.frame_ok & now.frame_ok
    if both.sum() < MIN_TIED_FRAMES:
        return None
    scale = 1.0
    if not (before.metric and now.metric):
        ratios, weights = [], []
        old, new = before.depth, now.depth
        for f in np.flatnonzero(both):
            usable = before.valid[f] & now.valid[f] & ~before.dynamic[f] & ~now.dynamic[f]
            rows = np.flatnonzero(usable)[:: max(1, int(usable.sum()) // MAX_TIE_PIXELS)]
            ratios.append(np.log(old[f].ravel()[rows] / new[f].ravel()[rows]))
            weights.append(np.minimum(before.confidence[f].ravel()[rows], now.confidence[f].ravel()[rows]))
        joined, weight = np.concatenate(ratios), np.maximum(np.concatenate(weights), MIN_TIE_CONFIDENCE)
        if len(joined):
            order = np.argsort(joined)
            at = int(np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum()))
            scale = float(np.exp(joined[order][min(at, len(joined) - 1)]))
    rotation = mean_rotation(before.poses[both, :3, :3] @ np.swapaxes(now.poses[both, :3, :3], 1, 2))
    shift = (before.poses[both, :3, 3] - scale * now.poses[both, :3, 3] @ rotation.T).mean(axis=0)
    return Similarity(scale, rotation, shift)


def select(maps: Pointmaps, frames: slice | np.ndarray) -> Pointmaps:
    """Some of the frames."""
    names = ("points", "confidence", "valid", "dynamic", "poses", "frame_ok", "shot", "pose_covariance")
    return replace(maps, **{name: getattr(maps, name)[frames] for name in names})


def moved_by(maps: Pointmaps, similarity: Similarity) -> Pointmaps:
    """Point maps in another world and unit."""
    grown = maps if similarity.scale == 1 else scaled(maps, similarity.scale, maps.scale_from)
    rigid = Similarity(1.0, similarity.rotation, similarity.translation)
    points = grown.points @ rigid.rotation.T.astype(np.float32) + rigid.translation.astype(np.float32)
    return replace(grown, points=points, poses=rigid.poses(grown.poses))


def _without(maps: Pointmaps, frames: np.ndarray) -> Pointmaps:
    """Point maps without those of black frames."""
    off = frames[:, None, None]
    return replace(
        maps,
        points=np.where(off[..., None], np.float32(np.nan), maps.points),
        confidence=np.where(off, np.float32(0), maps.confidence),
        valid=maps.valid & ~off,
        dynamic=maps.dynamic & ~off,
        frame_ok=maps.frame_ok & ~frames,
        messages=(*maps.messages, f"{int(frames.sum())} black frames show nothing."),
    )


def join(parts: Sequence[Pointmaps]) -> Pointmaps:
    """One result from those of consecutive frames, with a sentence about frames that were lost."""
    names = ("points", "confidence", "valid", "dynamic", "poses", "frame_ok", "shot", "pose_covariance")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    messages = [text for part in parts for text in part.messages]
    found = joined["frame_ok"]
    if not found.all():
        lost = np.flatnonzero(~found)
        listed = ", ".join(str(f) for f in lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        messages.append(f"The pose of {len(lost)} of {len(found)} frames was not found: {listed}.")
    if (shots := int(joined["shot"].max()) + 1) > 1:
        starts = np.flatnonzero(np.diff(joined["shot"])) + 1
        where = ", ".join(map(str, starts))
        messages.append(f"There are {shots} shots, each in a world of its own; new ones begin at frames {where}.")
    metric = all(part.metric for part in parts)
    scale_from = parts[0].scale_from if metric else GUESS
    if not metric:
        messages.append(
            "Lengths are a guess of the depth network: nothing that measures them was given (metric: false)."
        )
    return replace(parts[0], **joined, messages=tuple(dict.fromkeys(messages)), scale_from=scale_from)


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


def with_odometry(maps: Pointmaps, odometry: np.ndarray) -> Pointmaps:
    """Point maps of the scale of odometry of the same times, shot by shot.

    If one shot has too little motion to tell its scale, all stay as they are, with a sentence.
    """
    factors = {}
    for shot in np.unique(maps.shot):
        rows = (maps.shot == shot) & maps.frame_ok
        factors[shot] = scale_by_odometry(maps.poses[rows], odometry[rows])
    if any(factor is None for factor in factors.values()):
        return replace(maps, messages=(*maps.messages, "The odometry moves too little to tell the scale."))
    parts = [scaled(select(maps, maps.shot == shot), factor) for shot, factor in factors.items() if factor is not None]
    messages = tuple(text for text in maps.messages if "metric: false" not in text)
    return replace(join(parts), messages=messages)
