"""Trajectories in the formats of benchmarks: TUM RGB-D and KITTI odometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import check_poses, quaternion_from_pose
from worldstereo_ros.utils.atomic_files import write_text
from worldstereo_ros.utils.errors import InputError


def write_tum(path: str | Path, world_from_camera: np.ndarray, seconds: np.ndarray) -> None:
    """Writes lines `seconds tx ty tz qx qy qz qw` (Sturm et al., IROS 2012).

    Args:
        path: the file.
        world_from_camera: (N, 4, 4), OpenCV axes.
        seconds: (N,) times, increasing.

    Raises:
        InputError: see `check_poses`, or the times do not fit.
        WriteError: the file cannot be written.
    """
    poses, times = check_poses(world_from_camera), np.asarray(seconds, np.float64)
    if times.shape != (len(poses),) or not np.isfinite(times).all():
        raise InputError(f"The times have shape {times.shape}; {len(poses)} finite numbers were expected.")
    translations, quaternions = quaternion_from_pose(poses)
    lines = ["# seconds tx ty tz qx qy qz qw (world_from_camera, OpenCV axes)"]
    for time, row in zip(times, np.concatenate([translations, quaternions], axis=1), strict=True):
        lines.append(f"{time:.9f} " + " ".join(f"{value:.9f}" for value in row))
    write_text(path, "\n".join(lines) + "\n")


def write_kitti(path: str | Path, world_from_camera: np.ndarray) -> None:
    """Writes the upper three rows of each pose in one line (Geiger et al., CVPR 2012), without times.

    Args:
        path: the file.
        world_from_camera: (N, 4, 4), OpenCV axes.

    Raises:
        InputError: see `check_poses`.
        WriteError: the file cannot be written.
    """
    rows = check_poses(world_from_camera)[:, :3].reshape(-1, 12)
    write_text(path, "\n".join(" ".join(f"{value:.9e}" for value in row) for row in rows) + "\n")
