"""Depth and pose of each frame of one camera: measured, given, or estimated and kept at one scale.

Where poses are missing, features are followed by optical flow from frame to frame, and the pose follows from their
depth (perspective-n-point). Estimated depth is brought to the scale of the frame before by the same features; never by
the smallest and largest disparity of a frame, which jump.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimators import DepthEstimate, DepthEstimator, estimate_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.shots import ShotDetector, is_black
from worldstereo_ros.utils.errors import InputError

MAX_FEATURES, FEATURE_GAP_PX, FEATURE_QUALITY = 400, 8, 0.01
MIN_FOLLOWED, MIN_INLIER_SHARE = 24, 0.4
REPROJECTION_PX = 2.0  # at a width of 640
STILL_PX = 0.25  # median motion of a camera that stands still, at a width of 640
SCALE_MEMORY = 0.97  # share of the aligned scale that is kept; the rest returns to what the estimator says
# Median confidence below which estimated depth is moved away, and the largest factor. The bundled network's median is
# .37 to .63 in validation worlds; for images unlike them it is lower, and the depth is that of a typical room.
TRUSTED, MAX_DOUBT = 0.25, 5.0
MAX_SCALE_STEP = 0.7  # logarithm; an estimate off by more than a factor of two from the frame before is not followed


@dataclass(frozen=True)
class FrameGeometry:
    """Geometry of one frame.

    Attributes:
        depth: (H, W) float32 metres, 0 = unknown, inf = sky.
        world_from_camera: (4, 4) pose in the world of this shot, None if it is unknown.
        estimated: a model estimated the depth.
        new_shot: nothing of the frames before holds any more.
        black: the frame shows nothing, and its depth is infinite.
    """

    depth: np.ndarray
    world_from_camera: np.ndarray | None
    estimated: bool = False
    new_shot: bool = False
    black: bool = False


@dataclass
class _Tracked:
    """The frame before: grey image, depth, pose, and the logarithm of the scale of its estimate."""

    grey: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    log_scale: float


class GeometryTracker:
    """Gives each frame of one camera its depth and pose, in order.

    Attributes:
        camera: intrinsics of all frames.
        estimator: for frames without depth; None: they are refused.
        cuts: number of shots that began, but for the first.
        lost: number of frames at which the pose was lost within a shot.
    """

    def __init__(self, camera: Camera, estimator: DepthEstimator | None) -> None:
        self.camera, self.estimator = camera, estimator
        self.cuts = self.lost = 0
        self._shots = ShotDetector()
        self._before: _Tracked | None = None
        self._was_black = False

    def step(
        self, image: np.ndarray, depth: np.ndarray | None = None, world_from_camera: np.ndarray | None = None
    ) -> FrameGeometry:
        """Geometry of the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            depth: (H, W) float32 metres, measured, 0 = unknown; None if there is none.
            world_from_camera: (4, 4) pose, None if it is unknown.

        Raises:
            InputError: there is neither depth nor an estimator.
        """
        # Where poses are given, places stay where they are, whatever the camera shows next.
        cut = (self._shots.is_cut(image) or self._was_black) and world_from_camera is None
        self._was_black = is_black(image)
        if self._was_black:
            self._before = None
            return FrameGeometry(np.full(image.shape[:2], np.inf, np.float32), None, new_shot=cut, black=True)
        if cut:
            self.cuts += 1
            self._before = None
        measured = depth is not None and bool((depth > 0).any())
        if measured and depth is not None:
            if world_from_camera is not None:
                return FrameGeometry(depth, world_from_camera, new_shot=cut)
            return self._tracked(image, depth, None, cut)
        if self.estimator is None:
            raise InputError(
                "A frame has no measured depth, and none is estimated. Give depth images, or allow a depth model "
                "(without --depth sensor and --depth-model none)."
            )
        try:
            estimate = estimate_depth(self.estimator, image, self.camera)
            raw = estimate.depth * np.float32(doubt(estimate))
        except DepthError:  # all of it is sky to the estimator
            raw = np.zeros(image.shape[:2], np.float32)
        raw = np.where(raw > 0, raw, np.float32(np.inf))
        return self._tracked(image, raw, world_from_camera, cut, estimated=True)

    def _tracked(
        self, image: np.ndarray, depth: np.ndarray, given: np.ndarray | None, cut: bool, *, estimated: bool = False
    ) -> FrameGeometry:
        """Geometry by the frame before."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        before, pose, new_shot = self._before, given, cut
        log_scale = 0.0
        if before is None:
            pose = np.eye(4) if pose is None else pose
        else:
            found = follow(before.grey, grey, before.depth, self.camera)
            if found is None and given is None:
                self.lost += 1
                pose, new_shot = np.eye(4), True
            elif found is None:
                log_scale = before.log_scale
            else:
                motion, pixels, distances = found
                if pose is None:
                    pose = before.pose @ motion
                if estimated:
                    log_scale = _aligned(depth, pixels, distances, before.log_scale)
        assert pose is not None
        if estimated and log_scale != 0:
            depth = depth * np.float32(np.exp(log_scale))
        self._before = _Tracked(grey, depth, pose, log_scale)
        return FrameGeometry(depth, pose, estimated, new_shot)

    def state(self) -> dict[str, np.ndarray]:
        """What it knows, to resume later."""
        state = {f"shots_{name}": array for name, array in self._shots.state().items()}
        state["counts"] = np.array([self.cuts, self.lost, int(self._was_black)])
        if (before := self._before) is not None:
            state |= {"grey": before.grey, "depth": before.depth, "pose": before.pose}
            state["log_scale"] = np.array(before.log_scale)
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Resumes from a `state`."""
        prefix = "shots_"
        self._shots.restore({name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)})
        self.cuts, self.lost, was_black = (int(number) for number in state["counts"])
        self._was_black, self._before = bool(was_black), None
        if "grey" in state:
            self._before = _Tracked(state["grey"], state["depth"], state["pose"], float(state["log_scale"]))


def doubt(estimate: DepthEstimate) -> float:
    """Factor, at least 1, by which estimated depth of little confidence is multiplied.

    Depth that is too small gives disparities that are too large, and those tear the image; disparities that are too
    small only flatten it.
    """
    known = estimate.depth > 0
    if estimate.confidence is None or not known.any():
        return 1.0
    return float(np.clip(TRUSTED / max(float(np.median(estimate.confidence[known])), 1e-6), 1.0, MAX_DOUBT))


def follow(
    before: np.ndarray, now: np.ndarray, depth: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Motion of the camera between two frames by features with depth.

    Args:
        before, now: (H, W) uint8 grey.
        depth: (H, W) float32 of the frame before, 0 or inf = none.
        camera: intrinsics.

    Returns:
        (before_from_now (4, 4), pixels (N, 2) float32 of the features that fit in this frame, their depths (N,) in this
        frame); None if too few are found or fit.
    """
    usable = np.isfinite(depth) & (depth > 0)
    corners = cv2.goodFeaturesToTrack(
        before, MAX_FEATURES, FEATURE_QUALITY, FEATURE_GAP_PX, mask=usable.astype(np.uint8)
    )
    if corners is None or len(corners) < MIN_FOLLOWED:
        return None
    moved, status, _ = cv2.calcOpticalFlowPyrLK(before, now, corners, np.empty_like(corners))
    back, status_back, _ = cv2.calcOpticalFlowPyrLK(now, before, moved, np.empty_like(corners))
    corners, moved, back = (points.reshape(-1, 2) for points in (corners, moved, back))
    followed = (status.ravel() == 1) & (status_back.ravel() == 1) & (np.abs(back - corners).max(axis=1) < 1.0)
    inside = (moved >= 0).all(axis=1) & (moved[:, 0] <= camera.width - 1) & (moved[:, 1] <= camera.height - 1)
    corners, moved = corners[followed & inside], moved[followed & inside]
    if len(corners) < MIN_FOLLOWED:
        return None
    columns, rows = (np.rint(corners[:, axis]).astype(np.intp) for axis in (0, 1))
    distances = depth[rows, columns].astype(np.float64)
    points = np.stack(
        [(corners[:, 0] - camera.cx) / camera.fx, (corners[:, 1] - camera.cy) / camera.fy, np.ones(len(corners))],
        axis=1,
    )
    points *= distances[:, None]
    unit = camera.width / 640
    if np.median(np.linalg.norm(moved - corners, axis=1)) < STILL_PX * unit:
        return np.eye(4), moved, distances.astype(np.float32)
    cv2.setRNGSeed(1)
    solved, turn, shift, inliers = cv2.solvePnPRansac(
        points, moved.astype(np.float64), camera.matrix, None,
        reprojectionError=max(REPROJECTION_PX * unit, 0.75), iterationsCount=100, flags=cv2.SOLVEPNP_EPNP,
    )  # fmt: skip
    if not solved or inliers is None or len(inliers) < max(MIN_FOLLOWED, MIN_INLIER_SHARE * len(corners)):
        return None
    rows_in = inliers.ravel()
    turn, shift = cv2.solvePnPRefineLM(
        points[rows_in], moved[rows_in].astype(np.float64), camera.matrix, None, turn, shift
    )
    now_from_before = np.eye(4)
    now_from_before[:3, :3], now_from_before[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
    there = points[rows_in] @ now_from_before[2, :3] + now_from_before[2, 3]
    ahead = there > 0
    if not np.isfinite(now_from_before).all() or ahead.sum() < MIN_FOLLOWED:
        return None
    return invert_pose(now_from_before), moved[rows_in][ahead], there[ahead].astype(np.float32)


def _aligned(depth: np.ndarray, pixels: np.ndarray, distances: np.ndarray, before: float) -> float:
    """Logarithm of the factor that brings an estimate to the depths of followed features, see `SCALE_MEMORY`."""
    columns, rows = (np.rint(pixels[:, axis]).astype(np.intp) for axis in (0, 1))
    estimates = depth[rows, columns]
    usable = np.isfinite(estimates) & (estimates > 0)
    if usable.sum() < MIN_FOLLOWED:
        return before
    wanted = float(np.median(np.log(distances[usable] / estimates[usable])))
    if abs(wanted - before) > MAX_SCALE_STEP:
        return before
    return SCALE_MEMORY * wanted
