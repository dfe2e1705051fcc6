"""Memories that move with a corrected path: points and views by their times, and two copies of a surface become one."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.path_correction import PathCorrection
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.moving import move_memories
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera.from_fov(32, 24, 1.2)


def view(x: float, stamp: int, depth: float = 2.0, *, estimated: bool = False) -> View:
    pose = np.eye(4)
    pose[0, 3] = x
    image = np.random.default_rng(stamp).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    depths = np.full((24, 32), depth, np.float32)
    return View(
        image, CAMERA, pose, depths, stamp_ns=stamp, estimated=np.ones((24, 32), bool) if estimated else None
    )  # fmt: skip


def shift(x: float, scale: float = 1.0) -> Similarity:
    return Similarity(scale, np.eye(3), np.array([x, 0.0, 0.0]))


def filled(*views: View) -> tuple[CloudMemory, ViewBank]:
    cloud, bank = CloudMemory(0.02, 20_000), ViewBank(8)
    for each in views:
        cloud.insert(each)
        bank.add(each)
    return cloud, bank


def test_points_and_views_move_by_the_time_at_which_they_were_seen():
    cloud, bank = filled(view(0, 100), view(20, 200, estimated=True))
    before = {stamp: cloud.points[cloud.stamp_ns == stamp].copy() for stamp in (100, 200)}
    colours = {stamp: cloud.colours[cloud.stamp_ns == stamp].copy() for stamp in (100, 200)}
    observed = cloud.observed_count
    move_memories(cloud, bank, PathCorrection(np.array([100, 200]), (Similarity.identity(), shift(-3, 1.1))))
    assert cloud.observed_count == observed
    for stamp, factor, off in ((100, 1.0, 0.0), (200, 1.1, -3.0)):
        now = cloud.points[cloud.stamp_ns == stamp]
        wanted = factor * before[stamp] + [off, 0, 0]
        order, other = np.lexsort(now.round(3).T), np.lexsort(wanted.round(3).T)
        np.testing.assert_allclose(now[order], wanted[other], atol=0.002)
        np.testing.assert_array_equal(cloud.colours[cloud.stamp_ns == stamp][order], colours[stamp][other])
    first, second = bank.views
    np.testing.assert_allclose(first.world_from_camera[:3, 3], 0)
    np.testing.assert_allclose(second.world_from_camera[:3, 3], [19, 0, 0])
    np.testing.assert_allclose(second.depth, 2.2, rtol=1e-6)
    np.testing.assert_allclose(first.depth, 2.0)


def test_two_copies_of_a_surface_become_one():
    seen = view(0, 100)
    again = replace(view(0.5, 300), image=seen.image)  # the same place, half a metre off by drift
    cloud, bank = filled(seen, again)
    alone = len(filled(seen)[0])
    assert len(cloud) > 1.3 * alone
    move_memories(cloud, bank, PathCorrection(np.array([100, 300]), (Similarity.identity(), shift(-0.5))))
    assert len(cloud) < 1.1 * alone
    assert cloud.insert(view(0, 400)).count == len(cloud)  # it takes views as before


def test_a_move_out_of_range_changes_nothing_and_empty_memories_stay_so():
    cloud, bank = filled(view(0, 100))
    points, pose = cloud.points.copy(), bank.views[0].world_from_camera.copy()
    with pytest.raises(InputError, match="range of voxels"):
        move_memories(cloud, bank, PathCorrection(np.array([100]), (shift(1e6),)))
    np.testing.assert_array_equal(cloud.points, points)
    np.testing.assert_array_equal(bank.views[0].world_from_camera, pose)
    empty = CloudMemory(), ViewBank()
    move_memories(*empty, PathCorrection(np.array([100]), (shift(1),)))
    assert (len(empty[0]), len(empty[1])) == (0, 0)
