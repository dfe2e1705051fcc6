"""Arithmetic of the viewer's scene, and its words: what is thinned, coloured, looked at and said."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.viewer import LEVEL, POSES, imagined_viewable, outcome_of

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.visualization.viewer.loading import Viewable
from worldstereo_ros.visualization.viewer.panels import pictures_of, strip, summary
from worldstereo_ros.visualization.viewer.scene import (
    MAX_FRUSTA,
    NATURAL,
    PROVENANCE,
    TINTED,
    apart,
    camera_distance,
    ceiling_height,
    coloured,
    from_above,
    overview,
    point_sizes,
    thin,
)

# --- arithmetic of the scene ------------------------------------------------------------------------------------------


def test_thinning_is_even_and_within_budget():
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 1, (90_000, 2))  # one half of the floor is seen nine times as densely as the other
    sparse = rng.uniform(0, 1, (10_000, 2)) + np.array([1, 0])
    points = np.concatenate([np.concatenate([dense, sparse]), np.zeros((100_000, 1))], axis=1).astype(np.float32)
    kept = thin(points, np.ones(len(points), bool), 5000)
    assert 3500 <= len(kept) <= 5000
    assert (np.diff(kept) > 0).all()
    share = (points[kept, 0] < 1).mean()
    assert 0.45 < share < 0.6  # by chance it would be 0.9
    np.testing.assert_array_equal(kept, thin(points, np.ones(len(points), bool), 5000))


def test_thinning_prefers_observed_points():
    grid = np.stack(np.meshgrid(np.arange(60), np.arange(60), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([grid, grid])
    observed = np.arange(len(points)) >= len(grid)
    kept = thin(points, observed, 2000)
    assert observed[kept].all()
    np.testing.assert_array_equal(thin(points, observed, 10_000), np.arange(len(points)))


def test_thinning_keeps_what_is_near():
    rng = np.random.default_rng(0)
    near = np.c_[rng.uniform(-1, 1, (30_000, 2)), np.zeros(30_000)]
    far = np.c_[rng.uniform(-30, 30, (20_000, 2)), np.full(20_000, 60.0)]
    points = np.concatenate([near, near + 3e-4, far])
    cameras = np.repeat(np.eye(4)[None], 2, axis=0)
    cameras[0, 2, 3], cameras[1, 2, 3] = 1.0, -500.0
    distance = camera_distance(points, cameras)
    assert distance[:60_000].max() < 2 < 58 < distance[60_000:].min()
    kept = thin(points, np.ones(80_000, bool), 10_000)
    kept_near = thin(points, np.ones(80_000, bool), 10_000, distance)
    assert len(kept_near) <= 10_000
    assert (kept_near < 60_000).sum() > 3 * (kept < 60_000).sum()


def test_thinning_survives_degenerate_clouds():
    same = np.ones((1000, 3), np.float32)
    assert 1 <= len(thin(same, np.ones(1000, bool), 10)) <= 10
    far = np.concatenate([np.random.default_rng(0).normal(size=(5000, 3)), [[1e6, 0, 0]]]).astype(np.float32)
    assert 1 <= len(thin(far, np.ones(5001, bool), 500)) <= 500


def test_point_sizes_follow_the_spacing():
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([0.01 * grid, 0.02 * grid + [10, 0, 0], [[99.0, 0, 0]]])
    sizes = point_sizes(points)
    assert np.median(sizes[:900]) == pytest.approx(0.01, rel=0.01)
    assert np.median(sizes[900:1800]) == pytest.approx(0.02, rel=0.01)
    assert sizes[-1] <= 0.06  # a stray is not drawn as large as its distance
    assert (point_sizes(points[:2]) > 0).all()


def test_frusta_that_would_hide_each_other_are_left_out():
    still = np.repeat(LEVEL[None], 10, axis=0)
    assert apart(still, 0.1) == [0]
    assert apart(trajectory("forward", LEVEL, 11, distance=1.0), 0.19) == [0, 2, 4, 6, 8, 10]
    assert apart(trajectory("turn", LEVEL, 7, angle=np.pi), 0.1) == list(range(7))
    assert len(apart(trajectory("forward", LEVEL, 500, distance=100.0), 0.1)) <= MAX_FRUSTA
    assert apart(np.zeros((0, 4, 4)), 0.1) == []


def test_colourings_say_what_was_imagined():
    colours, observed = np.full((2, 3), 100, np.uint8), np.array([True, False])
    np.testing.assert_array_equal(coloured(colours, observed, NATURAL), colours)
    tinted = coloured(colours, observed, TINTED)
    np.testing.assert_array_equal(tinted[0], colours[0])
    assert tinted[1, 0] > 140 > tinted[1, 2]
    blue, orange = coloured(colours, observed, PROVENANCE).astype(int)
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    with pytest.raises(ValueError, match="no colouring"):
        coloured(colours, observed, "mauve")


def test_ceiling_is_above_the_cameras_and_below_the_ceiling(wall_views):
    viewable = imagined_viewable(wall_views)
    assert 1.2 < ceiling_height(viewable) < 2.6
    assert ceiling_height(replace(viewable, path=np.zeros((0, 4, 4)), given=())) == np.inf


@pytest.mark.parametrize("look_at", [overview, from_above])
def test_overview_has_everything_in_the_picture(wall_views, look_at):
    viewable = imagined_viewable(wall_views)
    look = look_at(viewable)
    forward = look.look_at - look.position
    forward /= np.linalg.norm(forward)
    assert forward[2] < -0.5
    right = np.cross(forward, viewable.up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = look.position
    camera = Camera.from_fov(200, 200, look.fov)
    below = viewable.points[viewable.points[:, 2] < ceiling_height(viewable)]
    uv, z = project(np.concatenate([below, POSES[:, :3, 3]]), camera, pose)
    assert (z > 0).all()
    assert ((uv > 0) & (uv < 199)).all(axis=1).mean() > 0.98
    assert np.ptp(uv, axis=0).max() > 90  # and not tiny


def test_what_is_seen_through_a_window_does_not_shrink_the_room(wall_views):
    viewable = imagined_viewable(wall_views)
    outside = np.random.default_rng(0).uniform([20, -3, 0], [25, 3, 2], (3000, 3)).astype(np.float32)
    points = np.concatenate([viewable.points, outside])
    with_garden = replace(
        viewable, points=points, colours=np.zeros((15000, 3), np.uint8), observed=np.ones(15000, bool)
    )
    room, garden = overview(viewable), overview(with_garden)
    assert np.linalg.norm(garden.position - room.position) < 0.2 * np.linalg.norm(room.position - room.look_at)


def test_overview_of_cameras_alone_and_of_points_alone(wall_views):
    empty = Viewable("a", "posed sequence", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, bool))
    nowhere = replace(imagined_viewable(wall_views), path=POSES[:0], given=())
    for viewable in (replace(empty, path=POSES), nowhere, empty):
        look = overview(viewable)
        assert np.isfinite(look.position).all()
        assert np.linalg.norm(look.position - look.look_at) > 0


# --- words ------------------------------------------------------------------------------------------------------------


def test_summary_counts_and_escapes(wall_views):
    viewable = imagined_viewable(wall_views)
    text = summary(viewable, 600)
    assert "room &lt;1&gt;" in text
    assert "<1>" not in text
    assert "12,000 points, 600 of them" in text
    assert f"{viewable.observed.mean():.0%}" in text
    assert "Imagined" in text
    only = replace(viewable, observed=np.ones(12000, bool), imagined=(), path=POSES[:0])
    assert "Imagined" not in summary(only, 12000)


def test_pictures_of_a_view(wall_views):
    assert len(pictures_of(wall_views[0])) == 2
    imagined = outcome_of(wall_views)[0]
    captions = [caption for _, caption in pictures_of(imagined)]
    assert len(captions) == 4
    assert any("50% observed" in caption for caption in captions)
    assert strip(imagined).count("data:image/jpeg;base64,") == 4
