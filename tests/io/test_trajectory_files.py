"""Trajectories in the formats of benchmarks."""

import numpy as np
import pytest
from helpers.box_room import turned

from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.io.trajectory_files import write_kitti, write_tum
from worldstereo_ros.utils.errors import InputError


def test_both_formats_hold_the_poses(tmp_path):
    poses = np.stack([turned(10 * i, 5) for i in range(3)])
    poses[:, :3, 3] = np.arange(9).reshape(3, 3)
    times = np.array([1341841278.8427, 1341841279.5, 1341841280.25])
    write_tum(tmp_path / "tum.txt", poses, times)
    rows = np.loadtxt(tmp_path / "tum.txt")
    np.testing.assert_allclose(rows[:, 0], times, atol=1e-6)
    read = np.stack([pose_from_quaternion(row[1:4].tolist(), row[4:].tolist()) for row in rows])
    np.testing.assert_allclose(read, poses, atol=1e-7)
    write_kitti(tmp_path / "kitti.txt", poses)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "kitti.txt").reshape(3, 3, 4), poses[:, :3], atol=1e-8)


@pytest.mark.parametrize("times", [np.zeros(2), np.array([0, np.nan, 1])])
def test_times_must_fit(tmp_path, times):
    with pytest.raises(InputError, match="finite numbers"):
        write_tum(tmp_path / "tum.txt", np.tile(np.eye(4), (3, 1, 1)), times)
