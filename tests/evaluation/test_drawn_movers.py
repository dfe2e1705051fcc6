"""Things that are drawn into recordings: exact depth and motion, hidden by what is nearer, the same every time."""

import numpy as np
import pytest
from helpers.box_room import CAMERA
from helpers.video_scene import frame, walk

from worldstereo_ros.evaluation.drawn_movers import SPEED_SHARE, draw_mover, make_mover
from worldstereo_ros.evaluation.pointmap_data import PointmapClip, open_clips
from worldstereo_ros.evaluation.pointmap_metrics import motion_scores
from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.errors import InputError


@pytest.fixture(scope="module")
def clip():
    poses = walk(5)
    images, depths, _ = zip(*(frame(pose) for pose in poses), strict=True)
    return PointmapClip("rooms", "room:0-4", np.stack(images), CAMERA, poses, np.stack(depths))


@pytest.mark.parametrize("direction", ["across", "along"])
def test_the_truth_is_that_of_the_object(clip, direction):
    drawn = draw_mover(clip, direction)
    again = draw_mover(clip, direction)
    np.testing.assert_array_equal(drawn.images, again.images)
    moving = drawn.moving
    assert 0.02 < moving[2].mean() < 0.4
    assert (drawn.depth[moving] < clip.depth[moving]).all()
    np.testing.assert_array_equal(drawn.depth[~moving], clip.depth[~moving])
    assert np.abs(drawn.images.astype(int) - clip.images)[moving].mean() > 15
    assert not drawn.flow[~moving].any()
    mean = drawn.flow[2][moving[2]].mean(axis=0)
    first = invert_pose(clip.poses[0])
    mover_axis = (first @ clip.poses[2])[:3, 2]
    if direction == "along":
        assert mean @ mover_axis < -0.8 * np.linalg.norm(mean)
    # A point and its displacement lie on the object in the next frame: on its visible side or behind it.
    points = unproject(drawn.depth[2], CAMERA, clip.poses[2])[moving[2]] + drawn.flow[2][moving[2]] @ first[:3, :3]
    local = (points - clip.poses[3][:3, 3]) @ clip.poses[3][:3, :3]
    column = np.rint(local[:, 0] / local[:, 2] * CAMERA.fx + CAMERA.cx).astype(int)
    row = np.rint(local[:, 1] / local[:, 2] * CAMERA.fy + CAMERA.cy).astype(int)
    inside = (column >= 0) & (column < CAMERA.width) & (row >= 0) & (row < CAMERA.height)
    seen = moving[3][row[inside], column[inside]]
    assert seen.mean() > 0.95
    ahead = local[inside, 2][seen] - drawn.depth[3][row[inside], column[inside]][seen]
    assert np.median(np.abs(ahead)) < 0.02
    assert drawn.sequence.endswith(f"drawn mover {direction}")


def test_what_is_nearer_hides_the_object(clip):
    wall = PointmapClip("rooms", clip.name, clip.images, CAMERA, clip.poses, clip.depth.copy())
    drawn = draw_mover(clip, "across")
    covered = drawn.moving[2]
    wall.depth[2][:, : CAMERA.width // 2] = 0.1
    hidden = draw_mover(wall, "across")
    assert not hidden.moving[2][:, : CAMERA.width // 2].any()
    left, right = covered[:, : CAMERA.width // 2].sum(), covered[:, CAMERA.width // 2 :].sum()
    assert left + right > 0
    speeds = np.linalg.norm(np.diff(make_mover(clip.poses, clip.depth, "across", 3).poses[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(speeds, SPEED_SHARE * 0.6 * np.median(clip.depth), rtol=1e-4)


def test_movers_are_a_kind_of_data(clip, tmp_path):
    views = [View(i, CAMERA, p, d) for i, p, d in zip(clip.images, clip.poses, clip.depth, strict=True)]
    write_sequence(tmp_path / "office", views)
    across, along = open_clips([f"movers:{tmp_path / 'office'}"])
    assert (across.sequence, along.sequence) == ("office, drawn mover across", "office, drawn mover along")
    assert across.moving.any()
    no_depth = PointmapClip("rooms", "r", clip.images, CAMERA, clip.poses)
    with pytest.raises(InputError, match="has no depth"):
        draw_mover(no_depth, "across")
    with pytest.raises(InputError, match="across or along"):
        make_mover(clip.poses, clip.depth, "up", 0)


def test_precision_and_recall():
    found, moving = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    seen = np.array([1, 1, 1, 1, 0], bool)
    assert motion_scores(found, moving, seen) == (0.5, 0.5)
    assert motion_scores(found & False, moving, seen) == (None, 0.0)
    assert motion_scores(found, moving & False, seen) == (0.0, None)
