"""The camera's path over windows and shots of point maps, in one continuous frame, with covariances. No rclpy."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps.estimate import scale_by_odometry
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_ODOMETRY, GUESS, Pointmaps

HISTORY = 200  # frames of a shot whose scale is compared with the reference
MIN_POSITION_STD_M, MIN_ROTATION_STD = 1e-3, 2e-4  # nothing is known better than that, a still camera included
SCALE_STD = 0.05  # relative, of a scale that a reference tells
JOINED_STD = 0.1  # relative, of a scale that was measured in another shot, and taken over where the two were joined
GUESS_STD = 1.0  # relative, of a guess: wrong by several times outdoors
LOST_POSITION_STD_M, LOST_ROTATION_STD = 100.0, np.pi  # what happened while the camera was lost is not known


@dataclass(frozen=True)
class PathFrame:
    """Where the camera was.

    Attributes:
        pose: (4, 4) path_from_camera; the path begins where the camera was at first.
        covariance: (6, 6) of position and rotation in the camera's own axes; never zero.
        increment: (4, 4) pose in the axes of the frame before that was found; None if there is none in this part.
        increment_covariance: (6, 6) of it.
        found: the pose was found; else it is that of the frame before.
    """

    pose: np.ndarray
    covariance: np.ndarray
    increment: np.ndarray | None
    increment_covariance: np.ndarray
    found: bool


def adjoint(a_from_b: np.ndarray) -> np.ndarray:
    """(6, 6) that takes a small motion (position, rotation) in the axes of b to those of a."""
    rotation, (x, y, z) = a_from_b[:3, :3], a_from_b[:3, 3]
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = rotation
    out[:3, 3:] = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    return out


def moved(covariance: np.ndarray, a_from_b: np.ndarray) -> np.ndarray:
    """A covariance (6, 6) of a rigid body in the axes of a, from that in the axes of b."""
    change = adjoint(a_from_b)
    return change @ covariance @ change.T


class PointmapPath:
    """Joins parts of point maps to a path without jumps.

    Parts of a shot are joined as they are. After a cut, or where the camera was lost, the path continues from its last
    pose, and the covariance says that this is not known. A change of the scale changes the steps from there on only.

    Args:
        start: (4, 4) pose of the first camera.

    Attributes:
        scale_from: what the unit of length is from, see `Pointmaps`.
        factor: from the unit of the current shot to that of the path.
        scale_awaited: a reference of the scale is there, and has not moved enough to tell it.
        broken: numbers the parts of the path: it grows with each shot.
        joined: the scale is that of another shot, to which this one was joined.
    """

    def __init__(self, start: np.ndarray) -> None:
        self._pose, self._shot_start = start, start
        self._base = np.zeros((6, 6))  # of the last pose, without the error of the scale
        self._whole = np.zeros((6, 6))  # with it
        self._key: object = None
        self._before: np.ndarray | None = None  # the frame before, in the world of its shot
        self._estimated: deque[np.ndarray] = deque(maxlen=HISTORY)
        self._reference: deque[np.ndarray] = deque(maxlen=HISTORY)
        self.scale_from, self.factor, self.scale_awaited, self.broken = GUESS, 1.0, False, 0
        self.joined = False

    @property
    def metric(self) -> bool:
        """Whether lengths are metres that something measured."""
        return self.scale_from != GUESS

    @property
    def measured(self) -> bool:
        """Whether something measures the lengths of the current shot itself, so that its scale does not drift."""
        return self.metric and not self.joined

    def join(self, ratio: float, scale_from: str) -> None:
        """Takes over the scale of another shot, from the next frame on.

        Args:
            ratio: of the unit that the path had to the new one: by what its steps become longer.
            scale_from: what the unit of that shot is from.
        """
        self.factor, self.scale_from, self.joined = self.factor * ratio, scale_from, True

    def extend(self, maps: Pointmaps, key: object, reference: np.ndarray) -> list[PathFrame]:
        """Adds a part.

        Args:
            maps: point maps of the next frames, of one shot.
            key: identifies the shot.
            reference: (F, 4, 4) poses that tell the scale, such as of wheel odometry, in any frame; NaN if unknown.

        Returns:
            A frame for each.
        """
        if key != self._key:
            if self._key is not None:
                self.broken += 1
                self._base = self._whole + _diagonal(LOST_POSITION_STD_M, LOST_ROTATION_STD)
            self._key, self._before, self._shot_start = key, None, self._pose
            self.factor, self.scale_from, self.joined = 1.0, GUESS, False  # a shot has a unit of its own
            self._estimated.clear()
            self._reference.clear()
        self._estimated.extend(maps.poses[maps.frame_ok])
        self._reference.extend(np.asarray(reference)[maps.frame_ok])
        self._find_scale(maps)
        floor, start, base = _diagonal(MIN_POSITION_STD_M, MIN_ROTATION_STD), self._pose, self._base
        before = np.zeros((6, 6))
        out: list[PathFrame] = []
        for pose, found, covariance in zip(maps.poses, maps.frame_ok, maps.pose_covariance, strict=True):
            if not found:
                out.append(PathFrame(self._pose, _diagonal(LOST_POSITION_STD_M, LOST_ROTATION_STD), None, floor, False))
                continue
            step = None if self._before is None else invert_pose(self._before) @ pose
            if step is not None:
                step[:3, 3] *= self.factor
                self._pose = self._pose @ step
            self._before, camera_from_path = pose, invert_pose(self._pose)
            own = self._scaled(covariance) + floor
            if self.scale_from == GIVEN_ODOMETRY and not self.joined:
                own = _without_scale(own, (camera_from_path @ start)[:3, 3])
            self._base = moved(base, camera_from_path @ start) + own
            # The scale is common to the shot, so that its error grows with the distance from where it began.
            std = GUESS_STD if not self.metric else JOINED_STD if self.joined else SCALE_STD
            ray = (camera_from_path @ self._shot_start)[:3, 3] * std
            self._whole = self._base.copy()
            self._whole[:3, :3] += np.outer(ray, ray)
            out.append(PathFrame(self._pose, self._whole, step, own + before, True))
            before = own
        return out

    def _scaled(self, covariance: np.ndarray) -> np.ndarray:
        scaling = np.diag([self.factor] * 3 + [1.0] * 3)
        finite = np.where(np.isfinite(covariance), covariance, 0)
        return scaling @ finite @ scaling

    def _find_scale(self, maps: Pointmaps) -> None:
        self.scale_awaited = False
        if maps.metric:
            self.factor, self.scale_from, self.joined = 1.0, maps.scale_from, False
            return
        if not self._reference:
            return
        reference = np.stack(self._reference)
        known = np.isfinite(reference).all(axis=(1, 2))
        if known.sum() < 2:
            return
        factor = scale_by_odometry(np.stack(self._estimated)[known], reference[known])
        if factor is not None:
            self.factor, self.scale_from, self.joined = factor, GIVEN_ODOMETRY, False
        else:
            self.scale_awaited = self.scale_from != GIVEN_ODOMETRY and not self.joined


def _without_scale(covariance: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """A covariance of a solve that does not know its scale, where a reference tells it.

    The error along the ray (3,) to where the part began is mostly that of the scale; no more of it is left than that
    of the reference, and what is across.
    """
    length = float(np.linalg.norm(ray))
    if length < 1e-9:
        return covariance
    along = ray / length
    variance = float(along @ covariance[:3, :3] @ along)
    across = 0.5 * (float(np.trace(covariance[:3, :3])) - variance)
    kept = min(1.0, ((SCALE_STD * length) ** 2 + across) / variance)
    shrink = np.eye(6)
    shrink[:3, :3] -= (1 - np.sqrt(kept)) * np.outer(along, along)
    return shrink @ covariance @ shrink


def _diagonal(position: float, rotation: float) -> np.ndarray:
    return np.diag([position**2] * 3 + [rotation**2] * 3)
