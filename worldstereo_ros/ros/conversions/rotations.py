"""Quaternions and rotation matrices in ROS order (x, y, z, w), by tf_transformations where it is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from worldstereo_ros.geometry import poses

try:
    import tf_transformations
except (ImportError, AttributeError):  # AttributeError: the transforms3d of Ubuntu 22.04 with NumPy 1.24 or newer
    tf_transformations = None

MAX_NORM_ERROR = 0.01  # of a quaternion that counts as a rotation


def pose_from_quaternion(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """Converts a translation and a quaternion to a rigid transform.

    Args:
        translation: x, y, z in metres.
        quaternion_xyzw: x, y, z, w; normalised if its length is within 1 % of one.

    Returns:
        (4, 4) float64.

    Raises:
        ValueError: a number is not finite, or the quaternion's length is not within 1 % of one.
    """
    norm = math.hypot(*quaternion_xyzw)
    valid = abs(norm - 1) <= MAX_NORM_ERROR and all(math.isfinite(value) for value in translation)
    if tf_transformations is None or not valid:  # the function of `geometry` raises with the reason
        return poses.pose_from_quaternion(translation, quaternion_xyzw)
    pose = np.array(tf_transformations.quaternion_matrix([value / norm for value in quaternion_xyzw]))
    pose[:3, 3] = translation
    return pose


def poses_from_quaternions(translations: np.ndarray, quaternions_xyzw: np.ndarray) -> np.ndarray:
    """Converts many translations and quaternions at once, which is much faster than one by one.

    Args:
        translations: (N, 3) metres.
        quaternions_xyzw: (N, 4), normalised if their length is within 1 % of one.

    Returns:
        (N, 4, 4) float64.

    Raises:
        ValueError: see `pose_from_quaternion`, for the first pose that is invalid.
    """
    from scipy.spatial.transform import Rotation

    with np.errstate(invalid="ignore", over="ignore"):
        valid = np.abs(np.linalg.norm(quaternions_xyzw, axis=1) - 1) <= MAX_NORM_ERROR
    valid &= np.isfinite(translations).all(axis=1)
    for index in np.flatnonzero(~valid)[:1]:
        pose_from_quaternion(translations[index], quaternions_xyzw[index])  # raises with the reason
    out = np.tile(np.eye(4), (len(translations), 1, 1))
    out[:, :3, :3] = Rotation.from_quat(quaternions_xyzw).as_matrix()
    out[:, :3, 3] = translations
    return out


def quaternion_from_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a rigid transform to a translation and a quaternion.

    Args:
        pose: (4, 4).

    Returns:
        (translation (3,), quaternion (4,) as x, y, z, w with w >= 0), float64.
    """
    if tf_transformations is None:
        return poses.quaternion_from_pose(pose)
    pose = np.asarray(pose, dtype=np.float64)
    quaternion = np.asarray(tf_transformations.quaternion_from_matrix(pose), dtype=np.float64)
    return pose[:3, 3].copy(), -quaternion if quaternion[3] < 0 else quaternion
