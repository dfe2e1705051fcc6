"""Rigid poses: checks, inverses, quaternions and interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldstereo_ros.utils.errors import InputError


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """The inverse of rigid transforms (..., 4, 4), without a general matrix inverse."""
    pose = np.asarray(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    out = np.zeros_like(pose)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    out[..., 3, 3] = 1
    return out


def pose_from_quaternion(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """(4, 4) float64 from a translation and a quaternion in ROS order (x, y, z, w).

    Raises:
        ValueError: a number is not finite, or the quaternion's length is not within 1 % of one.
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(translation, dtype=np.float64)
    q = np.asarray(quaternion_xyzw, dtype=np.float64)
    if not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise InputError(f"The pose has a number that is not finite: position {t.tolist()}, quaternion {q.tolist()}.")
    norm = float(np.linalg.norm(q))
    if abs(norm - 1) > 1e-2:
        raise InputError(
            f"The quaternion {q.tolist()} has length {norm:.4g}; a rotation has length 1 (none set? use w = 1)."
        )
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(q / norm).as_matrix()
    pose[:3, 3] = t
    return pose


def quaternion_from_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(translation (..., 3), quaternion (..., 4) as x, y, z, w with w >= 0) of rigid transforms (..., 4, 4)."""
    from scipy.spatial.transform import Rotation

    pose = np.asarray(pose, dtype=np.float64)
    flat = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_quat()
    flat = np.where(flat[:, 3:] < 0, -flat, flat)
    return pose[..., :3, 3].copy(), flat.reshape(*pose.shape[:-2], 4)


def check_poses(poses: np.ndarray, name: str = "The path") -> np.ndarray:
    """Returns `poses` as (N, 4, 4) float64.

    Raises:
        ValueError: it is empty, has another shape, a number that is not finite, or a matrix that is no rotation.
    """
    poses = np.asarray(poses, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise InputError(f"{name} has shape {poses.shape}; at least one 4x4 pose was expected, (N, 4, 4).")
    if not np.isfinite(poses).all():
        bad = int(np.flatnonzero(~np.isfinite(poses).all(axis=(1, 2)))[0])
        raise InputError(f"{name} has a number that is not finite in pose {bad}.")
    gram = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
    wrong = np.abs(gram - np.eye(3)).max(axis=(1, 2)) > 1e-3
    if wrong.any() or (np.linalg.det(poses[:, :3, :3]) < 0).any():
        raise InputError(f"{name} has a pose whose upper left 3x3 block is no rotation.")
    return poses


def interpolate_poses(poses: np.ndarray, count: int, *, metres_per_radian: float = 0.5) -> np.ndarray:
    """`count` poses spread evenly along a polyline of poses, both ends included.

    Positions go straight and rotations along the shortest arc (slerp). "Evenly" counts turning as well as moving:
    one radian weighs as much as `metres_per_radian`, so that a turn in place gets its share of views.

    Args:
        poses: (N, 4, 4) world_from_camera, N >= 1. Repeated poses are fine.
        count: number of poses wanted, >= 1. One pose, or a path with no length, is repeated.
        metres_per_radian: weight of turning against moving.

    Returns:
        (count, 4, 4) float64.
    """
    from scipy.spatial.transform import Rotation, Slerp

    poses = check_poses(poses)
    if count < 1:
        raise InputError(f"{count} poses were asked for; at least 1 is needed.")
    step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    rotations = Rotation.from_matrix(poses[:, :3, :3])
    turn = (rotations[:-1].inv() * rotations[1:]).magnitude() if len(poses) > 1 else np.zeros(0)
    length = np.concatenate([[0.0], np.cumsum(step + metres_per_radian * turn)])
    keep = np.concatenate([[True], np.diff(length) > 1e-9])
    poses, length = poses[keep], length[keep]
    if len(poses) == 1:
        return np.repeat(poses, count, axis=0)
    at = np.linspace(0.0, length[-1], count)
    out = np.tile(np.eye(4), (count, 1, 1))
    for axis in range(3):
        out[:, axis, 3] = np.interp(at, length, poses[:, axis, 3])
    out[:, :3, :3] = Slerp(length, Rotation.from_matrix(poses[:, :3, :3]))(at).as_matrix()
    return out


def up_in_world(world_from_camera: np.ndarray) -> np.ndarray:
    """(3,) the world's up, guessed as the mean up of cameras (..., 4, 4) snapped to the nearest axis."""
    mean = -np.asarray(world_from_camera).reshape(-1, 4, 4)[:, :3, 1].mean(axis=0)
    axis = int(np.abs(mean).argmax())
    up = np.zeros(3)
    up[axis] = np.sign(mean[axis])
    return up
