"""Selection of captures by what they saw, and exact renders made to look like published ones."""

import numpy as np
from helpers.walls import WALL

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.anyrecon.captures import select_captures, visible_shares
from worldstereo_ros.pipelines.anyrecon.published_rendering import paint_published, shifted_half_pixel
from worldstereo_ros.pipelines.anyrecon.published_retrieval import count_points

CAMERA = Camera.from_fov(32, 24, np.radians(60))


def pose(x=0.0, z=0.0, yaw=0.0):
    out = trajectory("turn", np.eye(4), 2, angle=yaw)[1] if yaw else np.eye(4)
    out[0, 3], out[2, 3] = x, z
    return out


def view(world_from_camera, depth, metric=True):
    image = np.full((24, 32, 3), 100, np.uint8)
    array = None if depth is None else np.full((24, 32), depth, np.float32)
    return View(image, CAMERA, world_from_camera, array, metric=metric)


def target(depth=4.0):
    return np.full((1, 24, 32), depth, np.float32), np.eye(4)[None]


def test_a_capture_behind_a_wall_did_not_see_what_is_beyond():
    """Published retrieval counts its points all the same; visibility does not."""
    depth, poses = target(4.0)
    saw, blocked, away = view(pose(0.1), 4.0), view(pose(0.2), 1.0), view(pose(yaw=3.0), 4.0)
    shares = visible_shares([saw, blocked, away], depth, CAMERA, poses)[0]
    assert shares[0] > 0.9
    assert shares[1] == shares[2] == 0
    assert select_captures([saw, blocked, away], depth, CAMERA, poses).indices == [0]


def test_published_counts_do_not_see_walls():
    near = unproject(np.full((24, 32), 1.0, np.float32), CAMERA, np.eye(4)).reshape(-1, 3)
    far = unproject(np.full((24, 32), 4.0, np.float32), CAMERA, np.eye(4)).reshape(-1, 3)
    points = np.concatenate([near, far])
    colours, source = np.full((len(points), 3), 90, np.uint8), np.repeat([0, 1], len(near))
    counts = count_points(points, colours, source, CAMERA, np.eye(4), sources=2)
    assert (counts > 0.8 * len(near)).all()  # the far wall is hidden by the near one, and counts


def test_a_capture_without_depth_counts_as_seeing_what_lies_in_its_picture():
    depth, poses = target()
    assert visible_shares([view(pose(0.1), None)], depth, CAMERA, poses)[0, 0] > 0.9


def test_the_best_captures_are_taken_in_ascending_order():
    depth, poses = target()
    captures = [view(pose(2.0), 4.0), view(pose(0.3), 4.0), view(pose(1.0), 4.0), view(pose(0.6), 4.0)]
    selection = select_captures(captures, depth, CAMERA, poses, limit=2)
    assert selection.indices == [1, 3]
    assert selection.shares.shape == (1, 4)
    assert np.argsort(-selection.shares[0]).tolist() == [1, 3, 2, 0]


def test_of_captures_from_one_pose_one_is_taken():
    depth, poses = target()
    captures = [view(pose(0.3), 4.0), view(pose(0.3), 4.0), view(pose(1.0), 4.0)]
    assert select_captures(captures, depth, CAMERA, poses).indices == [0, 2]
    arbitrary = [view(pose(0.3), 4.0, metric=False), view(pose(0.3001), 4.0, metric=False)]
    assert select_captures(arbitrary, depth, CAMERA, poses).indices == [0, 1]  # "one pose" is in metres


def test_without_any_overlap_the_nearest_capture_is_taken():
    depth, poses = target()
    captures = [view(pose(9.0, yaw=3.0), 4.0), view(pose(5.0, yaw=3.0), 4.0)]
    assert select_captures(captures, depth, CAMERA, poses).indices == [1]
    assert select_captures([], depth, CAMERA, poses).indices == []
    nothing, poses = target(0.0)
    assert select_captures(captures, nothing, CAMERA, poses).indices == [1]


def test_shifted_renders_look_like_painted_ones():
    """Every pixel of a wall becomes a point; painted, it lies half a pixel to the right and down."""
    wall = WALL.view()
    points = unproject(wall.depth, wall.camera, wall.world_from_camera).reshape(-1, 3)
    painted = paint_published(points, wall.image.reshape(-1, 3), wall.camera, wall.world_from_camera)
    shifted, visible = shifted_half_pixel(wall.image, np.ones(wall.depth.shape, bool))
    assert visible.all()
    exact = np.abs(wall.image.astype(int) - painted.image)[1:-1, 1:-1]
    difference = np.abs(shifted.astype(int) - painted.image)[1:-1, 1:-1]
    assert painted.visible[1:-1, 1:-1].all()
    assert difference.mean() < 0.6 * exact.mean()
    assert np.median(difference) <= 1


def test_holes_do_not_darken_what_is_beside_them():
    image = np.full((4, 5, 3), 200, np.uint8)
    visible = np.zeros((4, 5), bool)
    visible[1, 1] = True
    shifted, mask = shifted_half_pixel(image, visible)
    assert mask.sum() == 4
    assert (shifted[mask] == 200).all()
    assert (shifted[~mask] == 0).all()


def test_nearer_points_are_painted_over_farther_ones():
    points = np.array([[0, 0, 2.0], [0, 0, 1.0], [0, 0, 0.05], [0.1, 0, 1.0]])
    colours = np.array([[10, 10, 10], [90, 90, 90], [250, 0, 0], [0, 0, 0]], np.uint8)
    camera = Camera(8, 6, 10.0, 10.0, 2.5, 2.5)  # the point comes to lie on a pixel's centre
    painted = paint_published(points, colours, camera, np.eye(4))
    assert painted.visible.sum() == 1  # too near and black points are left out
    assert painted.image[3, 3].tolist() == [90, 90, 90]
    assert painted.nearest[3, 3] == 1
    assert painted.depth[3, 3] == 1.0
    assert Provenance.UNKNOWN == 0
