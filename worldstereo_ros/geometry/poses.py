"""Rigid transforms: validation, inversion, quaternions, interpolation, up and heading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldstereo_ros.utils.errors import InputError

MIN_MEAN_DIRECTION = 0.3  # length of the mean of unit vectors; those of shorter means point in no common direction
MAX_COORDINATE_M = 1e9  # farther positions are errors; their squares would overflow
MIN_HORIZONTAL = 1e-3  # horizontal part of a unit vector; less is vertical up to rounding


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """Inverts rigid transforms (..., 4, 4) by transposing the rotation."""
    pose = np.asarray(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    out = np.zeros_like(pose)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    out[..., 3, 3] = 1
    return out


def pose_from_quaternion(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """Builds a (4, 4) float64 transform from a translation and a quaternion in ROS order (x, y, z, w).

    Raises:
        InputError: a number is not finite, or the norm of the quaternion is off from 1 by more than 1 %.
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(translation, dtype=np.float64)
    q = np.asarray(quaternion_xyzw, dtype=np.float64)
    if not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise InputError(f"The pose has a number that is not finite: position {t.tolist()}, quaternion {q.tolist()}.")
    with np.errstate(over="ignore"):  # of damaged messages; the norm is infinite then
        norm = float(np.linalg.norm(q))
    if abs(norm - 1) > 1e-2:
        raise InputError(
            f"The quaternion {q.tolist()} has norm {norm:.4g}; norm 1 was expected. Use w = 1 for no rotation."
        )
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(q / norm).as_matrix()
    pose[:3, 3] = t
    return pose


def quaternion_from_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits rigid transforms (..., 4, 4) into translation (..., 3) and quaternion (..., 4) as x, y, z, w, w >= 0."""
    from scipy.spatial.transform import Rotation

    pose = np.asarray(pose, dtype=np.float64)
    flat = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_quat()
    flat = np.where(flat[:, 3:] < 0, -flat, flat)
    return pose[..., :3, 3].copy(), flat.reshape(*pose.shape[:-2], 4)


def check_poses(poses: np.ndarray, name: str = "The path") -> np.ndarray:
    """Validates poses and returns them as (N, 4, 4) float64.

    Args:
        poses: (N, 4, 4), N >= 1.
        name: subject of the error messages.

    Raises:
        InputError: the array is empty or has another shape, a number is not finite, a position is farther than
            `MAX_COORDINATE_M` from the origin, or a rotation is not orthonormal.
    """
    poses = np.asarray(poses, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise InputError(f"{name} has shape {poses.shape}; at least one 4x4 pose was expected, (N, 4, 4).")
    if not np.isfinite(poses).all():
        bad = int(np.flatnonzero(~np.isfinite(poses).all(axis=(1, 2)))[0])
        raise InputError(f"{name} has a number that is not finite in pose {bad}.")
    if np.abs(poses[:, :3, 3]).max() > MAX_COORDINATE_M:
        bad = int(np.abs(poses[:, :3, 3]).max(axis=1).argmax())
        raise InputError(f"{name} is more than {MAX_COORDINATE_M:.0e} m from the origin in pose {bad}.")
    gram = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
    wrong = np.abs(gram - np.eye(3)).max(axis=(1, 2)) > 1e-3
    if wrong.any() or (np.linalg.det(poses[:, :3, :3]) < 0).any():
        raise InputError(f"{name} has a pose whose upper left 3x3 block is not a rotation.")
    return poses


def interpolate_poses(poses: np.ndarray, count: int, *, metres_per_radian: float = 0.5) -> np.ndarray:
    """Resamples a path to `count` evenly spaced poses, both ends included.

    Positions are interpolated linearly, rotations by slerp. The spacing counts rotation as well as translation: one
    radian is as long as `metres_per_radian`, so that a turn in place gets views too.

    Args:
        poses: (N, 4, 4) world_from_camera, N >= 1. Repeated poses are allowed.
        count: number of poses to return, >= 1. A single pose, or a path without length, is repeated.
        metres_per_radian: length of one radian of rotation, metres.

    Returns:
        (count, 4, 4) float64.

    Raises:
        InputError: see `check_poses`, or the count is less than 1.
    """
    from scipy.spatial.transform import Rotation, Slerp

    poses = check_poses(poses)
    if count < 1:
        raise InputError(f"The number of poses is {count}; at least 1 was expected.")
    distance = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    rotations = Rotation.from_matrix(poses[:, :3, :3])
    angle = (rotations[:-1].inv() * rotations[1:]).magnitude() if len(poses) > 1 else np.zeros(0)
    arc_length = np.concatenate([[0.0], np.cumsum(distance + metres_per_radian * angle)])
    keep = np.concatenate([[True], np.diff(arc_length) > 1e-9])
    poses, arc_length = poses[keep], arc_length[keep]
    if len(poses) == 1:
        return np.repeat(poses, count, axis=0)
    sampled = np.linspace(0.0, arc_length[-1], count)
    out = np.tile(np.eye(4), (count, 1, 1))
    for axis in range(3):
        out[:, axis, 3] = np.interp(sampled, arc_length, poses[:, axis, 3])
    out[:, :3, :3] = Slerp(arc_length, Rotation.from_matrix(poses[:, :3, :3]))(sampled).as_matrix()
    return out


def estimate_up_direction(world_from_camera: np.ndarray) -> np.ndarray:
    """Estimates the up direction of the world from camera poses.

    Args:
        world_from_camera: (..., 4, 4) poses.

    Returns:
        (3,) float64 unit vector along a world axis: the nearest one to the mean up direction of the cameras. Where
        these cancel out, as those of a camera that looks straight down and turns, the nearest one to the direction
        against the mean optical axis; z where these cancel out too.
    """
    poses = np.asarray(world_from_camera, dtype=np.float64).reshape(-1, 4, 4)
    up = np.zeros(3)
    for axis in (1, 2):
        mean = -poses[:, :3, axis].mean(axis=0) if len(poses) else up
        if np.linalg.norm(mean) > MIN_MEAN_DIRECTION:
            nearest = int(np.abs(mean).argmax())
            up[nearest] = np.sign(mean[nearest])
            return up
    up[2] = 1.0
    return up


def heading(world_from_camera: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The horizontal direction ahead of a camera, also of one that looks straight down or up.

    Args:
        world_from_camera: (4, 4) pose.
        up: (3,) unit vector, up in the world.

    Returns:
        (3,) float64 unit vector perpendicular to `up`: the optical axis, levelled. Where that is vertical, the top of
        the image of a camera that looks down, the bottom of one that looks up.
    """
    pose, up = np.asarray(world_from_camera, dtype=np.float64), np.asarray(up, dtype=np.float64)
    forward = pose[:3, 2]
    ahead = forward - up * (forward @ up)
    if np.linalg.norm(ahead) < MIN_HORIZONTAL:
        down = pose[:3, 1] * np.sign(forward @ up)
        ahead = down - up * (down @ up)
    return ahead / np.linalg.norm(ahead)
