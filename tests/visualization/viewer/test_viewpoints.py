"""Viewpoints and frusta of the viewer."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.viewer import LEVEL, POSES, imagined_viewable

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.visualization.viewer.loading import Viewable
from worldstereo_ros.visualization.viewer.viewpoints import (
    MAX_FRUSTA,
    ceiling_height,
    from_above,
    overview,
    select_frusta,
)


def test_select_frusta_skips_cameras_close_to_the_last_one():
    still = np.repeat(LEVEL[None], 10, axis=0)
    assert select_frusta(still, 0.1) == [0]
    assert select_frusta(trajectory("forward", LEVEL, 11, distance=1.0), 0.19) == [0, 2, 4, 6, 8, 10]
    assert select_frusta(trajectory("turn", LEVEL, 7, angle=np.pi), 0.1) == list(range(7))
    assert len(select_frusta(trajectory("forward", LEVEL, 500, distance=100.0), 0.1)) <= MAX_FRUSTA
    assert select_frusta(np.zeros((0, 4, 4)), 0.1) == []


def test_ceiling_height_is_between_cameras_and_ceiling(wall_views):
    viewable = imagined_viewable(wall_views)
    assert 1.2 < ceiling_height(viewable) < 2.6
    assert ceiling_height(replace(viewable, path=np.zeros((0, 4, 4)), observed_views=())) == np.inf


@pytest.mark.parametrize("make_viewpoint", [overview, from_above])
def test_viewpoints_have_the_whole_scene_in_view(wall_views, make_viewpoint):
    viewable = imagined_viewable(wall_views)
    viewpoint = make_viewpoint(viewable)
    forward = viewpoint.look_at - viewpoint.position
    forward /= np.linalg.norm(forward)
    assert forward[2] < -0.5
    right = np.cross(forward, viewable.up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = viewpoint.position
    camera = Camera.from_fov(200, 200, viewpoint.fov)
    below = viewable.points[viewable.points[:, 2] < ceiling_height(viewable)]
    uv, z = project(np.concatenate([below, POSES[:, :3, 3]]), camera, pose)
    assert (z > 0).all()
    assert ((uv > 0) & (uv < 199)).all(axis=1).mean() > 0.98
    assert np.ptp(uv, axis=0).max() > 90  # the scene fills the page


def test_overview_ignores_distant_points(wall_views):
    viewable = imagined_viewable(wall_views)
    outside = np.random.default_rng(0).uniform([20, -3, 0], [25, 3, 2], (3000, 3)).astype(np.float32)
    points = np.concatenate([viewable.points, outside])
    with_garden = replace(
        viewable, points=points, colours=np.zeros((15000, 3), np.uint8), provenance=np.full(15000, 3, np.uint8)
    )
    room, garden = overview(viewable), overview(with_garden)
    assert np.linalg.norm(garden.position - room.position) < 0.2 * np.linalg.norm(room.position - room.look_at)


def test_overview_is_finite_without_points_or_without_cameras(wall_views):
    empty = Viewable(
        "a", "posed sequence", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.uint8)
    )
    nowhere = replace(imagined_viewable(wall_views), path=POSES[:0], observed_views=())
    for viewable in (replace(empty, path=POSES), nowhere, empty):
        viewpoint = overview(viewable)
        assert np.isfinite(viewpoint.position).all()
        assert np.linalg.norm(viewpoint.position - viewpoint.look_at) > 0


@pytest.mark.parametrize("up", [[0, 0, 1], [0, -1, 0], np.ones(3) / np.sqrt(3)])
def test_overview_of_cameras_that_look_along_the_vertical(wall_views, up):
    up = np.asarray(up, dtype=float)
    right = np.cross(up, [0.6, 0.8, 0.0])
    right /= np.linalg.norm(right)
    straight_down = np.eye(4)
    straight_down[:3, :3] = np.stack([right, np.cross(-up, right), -up], axis=1)
    viewable = replace(imagined_viewable(wall_views), up=up)
    for path in (np.repeat(straight_down[None], 3, axis=0), np.zeros((0, 4, 4))):
        for make_viewpoint in (overview, from_above):
            viewpoint = make_viewpoint(replace(viewable, path=path, observed_views=()))
            assert np.isfinite(viewpoint.position).all()
            assert np.linalg.norm(viewpoint.position - viewpoint.look_at) > 0
