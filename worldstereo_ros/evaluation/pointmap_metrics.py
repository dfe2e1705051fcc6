"""Figures of estimated trajectories, depth and point maps, by the common protocol (MonST3R, Aether, GeometryCrafter).

Trajectories are aligned by a similarity over their centres (Umeyama), depth and point maps by one scale for a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors, rotation_angles
from worldstereo_ros.utils.errors import InputError

MAX_DEPTH_M = 80.0
DELTA = 1.25


@dataclass(frozen=True)
class TrajectoryErrors:
    """Errors of a trajectory.

    Attributes:
        ate: root mean square distance of the centres after the similarity, in the unit of the truth.
        rpe_translation, rpe_rotation: root mean square of the errors of the motion from each frame to the next, after
            the scale of the same similarity; unit of the truth, and degrees.
        scale: of the similarity.
    """

    ate: float
    rpe_translation: float
    rpe_rotation: float
    scale: float


def trajectory_errors(estimated: np.ndarray, truth: np.ndarray) -> TrajectoryErrors | None:
    """ATE and RPE of poses (F, 4, 4) world_from_camera; None where one of the two does not move at all."""
    try:
        errors = pose_errors(estimated, truth)
    except InputError:
        return None
    scale = errors.similarity.scale
    resized = np.array(estimated, np.float64)
    resized[:, :3, 3] *= scale
    step = invert_pose(resized[:-1]) @ resized[1:]
    true_step = invert_pose(truth[:-1]) @ truth[1:]
    difference = invert_pose(true_step) @ step
    moved = np.linalg.norm(difference[:, :3, 3], axis=1)
    turned = np.degrees(rotation_angles(step[:, :3, :3], true_step[:, :3, :3]))
    return TrajectoryErrors(_rms(errors.positions), _rms(moved), _rms(turned), scale)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@dataclass(frozen=True)
class DepthErrors:
    """Errors of the depth of a sequence after one scale.

    Attributes:
        abs_rel, abs_rel_median: mean and median of |depth - truth| / truth over pixels.
        delta_1_25: share of pixels whose ratio is below 1.25.
        scale: that it was multiplied by, the median ratio.
    """

    abs_rel: float
    abs_rel_median: float
    delta_1_25: float
    scale: float


def depth_errors(depth: np.ndarray, truth: np.ndarray) -> DepthErrors | None:
    """Errors of depth (F, H, W), 0 = unknown, against the truth up to `MAX_DEPTH_M`; None without common pixels."""
    usable = (depth > 0) & (truth > 0) & (truth <= MAX_DEPTH_M) & np.isfinite(depth) & np.isfinite(truth)
    if not usable.any():
        return None
    ours, true = depth[usable].astype(np.float64), truth[usable].astype(np.float64)
    scale = float(np.median(true / ours))
    relative = np.abs(ours * scale - true) / true
    ratio = np.maximum(ours * scale / true, true / (ours * scale))
    return DepthErrors(float(relative.mean()), float(np.median(relative)), float((ratio < DELTA).mean()), scale)


def point_errors(points: np.ndarray, truth: np.ndarray) -> tuple[float, float] | None:
    """Rel^p of point maps, and the scale that they were multiplied by.

    Args:
        points, truth: (F, H, W, 3) in the axes of the first camera, NaN = unknown.

    Returns:
        Mean of |scale * point - truth| / |truth| and the scale, the median ratio of distances from the first camera;
        None without common pixels.
    """
    usable = np.isfinite(points).all(axis=-1) & np.isfinite(truth).all(axis=-1)
    ours, true = points[usable].astype(np.float64), truth[usable].astype(np.float64)
    distance, own = np.linalg.norm(true, axis=1), np.linalg.norm(ours, axis=1)
    far = (distance > 1e-6) & (own > 1e-6)
    if not far.any():
        return None
    scale = float(np.median(distance[far] / own[far]))
    return float((np.linalg.norm(scale * ours[far] - true[far], axis=1) / distance[far]).mean()), scale


def flow_error(flow: np.ndarray, truth: np.ndarray, moving: np.ndarray, scale: float) -> float | None:
    """Mean end-point error of the scene flow of moving points, metres.

    Args:
        flow: (..., 3) estimated; where it is NaN nothing was found, which counts as no motion.
        truth: (..., 3) metres.
        moving: (...) bool.
        scale: factor of the estimate.
    """
    if not moving.any():
        return None
    found = np.nan_to_num(flow[moving].astype(np.float64)) * scale
    return float(np.linalg.norm(found - truth[moving], axis=1).mean())


def motion_scores(found: np.ndarray, moving: np.ndarray, seen: np.ndarray) -> tuple[float | None, float | None]:
    """Precision and recall of pixels that are said to move.

    Args:
        found: (...) bool, said to move.
        moving: (...) bool, they do.
        seen: (...) bool, pixels that count.

    Returns:
        Precision, None where nothing is said to move; and recall, None where nothing moves.
    """
    right = float((found & moving & seen).sum())
    said, true = float((found & seen).sum()), float((moving & seen).sum())
    return (right / said if said else None), (right / true if true else None)
