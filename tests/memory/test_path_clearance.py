"""Poses of a path that lie in observed surfaces, or behind one."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import path_clearance
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.path_clearance import blocked_poses, describe_blocked
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera.from_fov(160, 120, np.radians(75))


def _wall(distance=3.0, **changes):
    depth = np.full((120, 160), distance, np.float32)
    return replace(View(np.zeros((120, 160, 3), np.uint8), CAMERA, np.eye(4), depth), **changes)


def _cloud(*views):
    cloud = CloudMemory(max_points=100_000)
    for view in views:
        cloud.insert(view)
    return cloud


def test_a_path_through_an_observed_wall_is_blocked_where_it_passes_the_wall():
    path = trajectory("forward", np.eye(4), 7, distance=6.0)  # a pose at 0, 1, ... 6 m; the wall is at 3 m
    assert blocked_poses(_cloud(_wall(3.0)), path).tolist() == [False, False, False, True, True, False, False]
    assert blocked_poses(_cloud(_wall(3.5)), path).tolist() == [False, False, False, False, True, False, False]


def test_far_parts_of_a_path_cost_no_search(monkeypatch):
    """A goal of 500 poses a kilometre apart took a minute and a half, in which the worker did nothing else."""
    searched = []
    is_blocked = path_clearance._is_blocked
    monkeypatch.setattr(path_clearance, "_is_blocked", lambda *a: searched.append(1) or is_blocked(*a))
    path = np.tile(np.eye(4), (40, 1, 1))
    path[:, 0, 3] = np.where(np.arange(40) % 2, 500.0, -500.0)  # back and forth through the wall
    blocked = blocked_poses(_cloud(_wall(3.0, world_from_camera=_turned_left())), path)
    assert blocked.tolist() == [False, *[True] * 39]
    assert 39 <= len(searched) < 39 * 20  # of 1000 pieces each


def _turned_left():
    """A camera at the origin that looks along -x: its wall is crossed at x = -3 m."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, -1], [0, 1, 0], [1, 0, 0]]
    return pose


@pytest.mark.parametrize("length", [60.0, 1e6, 1e9])
def test_a_line_between_two_poses_is_checked_along_all_of_it(length):
    path = trajectory("forward", np.eye(4), 2, distance=length)
    assert blocked_poses(_cloud(_wall(3.0)), path).tolist() == [False, True]


def test_a_path_beside_or_before_a_wall_is_free():
    cloud = _cloud(_wall(3.0))
    beside = trajectory("right", np.eye(4), 9, distance=4.0)
    beside[:, 2, 3] = 2.9
    assert not blocked_poses(cloud, beside).any()
    assert blocked_poses(cloud, beside, clearance=0.2)[:5].all()  # of the pixels, the wall is 2.3 m wide on each side


def test_a_single_point_in_the_air_blocks_nothing():
    depth = np.zeros((120, 160), np.float32)
    depth[60, 80] = 1.0
    assert not blocked_poses(_cloud(_wall(depth=depth)), trajectory("forward", np.eye(4), 9, distance=2.0)).any()


def test_a_sparse_wall_blocks_as_a_dense_one_does():
    """A camera with few pixels sees the wall as points that are farther apart than the clearance."""
    camera = CAMERA.resized(16, 12)
    view = View(np.zeros((12, 16, 3), np.uint8), camera, np.eye(4), np.full((12, 16), 3, np.float32))
    for right in np.linspace(0, 0.3, 5):
        path = trajectory("forward", np.eye(4), 3, distance=4.0)
        path[:, 0, 3] += right
        assert blocked_poses(_cloud(view), path).tolist() == [False, False, True]


def test_only_observed_surfaces_block():
    everywhere = np.ones((120, 160), bool)
    path = trajectory("forward", np.eye(4), 3, distance=6.0)
    for view in (_wall(estimated=everywhere), _wall(observed=~everywhere)):
        cloud = _cloud(view)
        assert len(cloud) > 1000
        assert not blocked_poses(cloud, path).any()
    assert not blocked_poses(CloudMemory(max_points=100), path).any()


def test_blocked_poses_rejects_invalid_paths_and_clearances():
    with pytest.raises(InputError, match="clearance"):
        blocked_poses(_cloud(_wall()), np.eye(4)[None], clearance=0)
    with pytest.raises(InputError, match="finite"):
        blocked_poses(_cloud(_wall()), np.full((1, 4, 4), np.nan))


def test_describe_blocked_names_the_poses():
    assert describe_blocked(np.zeros(4, bool)) == ""
    blocked = np.array([False, True, False, True, True, True])
    assert "4 of 6 poses are blocked (closer than 0.05 m): 1, 3 to 5." in describe_blocked(blocked)
