"""Parts of point maps: focal length, rotations, motion evidence, scene flow, poses of point maps, ties, sessions."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.box_room import CAMERA, turned
from helpers.video_scene import KnownDepth, frame, walk

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.pipelines.pointmaps import estimate_pointmaps
from worldstereo_ros.pipelines.pointmaps.dynamic import (
    find_moving,
    motion_evidence,
    rigid_flow,
    scene_flow,
    structure_tensor,
)
from worldstereo_ros.pipelines.pointmaps.focal import estimate_focal
from worldstereo_ros.pipelines.pointmaps.parallax import find_turning, fit_rotation
from worldstereo_ros.pipelines.pointmaps.refinement import is_available, load_model, poses_of
from worldstereo_ros.pipelines.pointmaps.session import Session
from worldstereo_ros.pipelines.pointmaps.tracks import Tracks, track_points
from worldstereo_ros.pipelines.pointmaps.tying import moved_by, select, tie_windows
from worldstereo_ros.pipelines.pointmaps.visual_odometry import relative_pose, solve_pose, triangulate
from worldstereo_ros.utils.errors import InputError


def project(points, pose, camera=CAMERA):
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    return local[:, :2] / local[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]


@pytest.fixture(scope="module")
def cloud():
    random = np.random.default_rng(3)
    return random.uniform([-1.5, -1, 2.5], [1.5, 1, 5], (80, 3))


def test_the_focal_length_survives_wrong_points():
    _, depth, _ = frame(np.eye(4))
    points = unproject(depth, CAMERA, np.eye(4)) * 7
    random = np.random.default_rng(0)
    wrong = random.random(depth.shape) < 0.2
    points[wrong] += random.normal(0, 10, (int(wrong.sum()), 3))
    assert estimate_focal(points, np.ones(depth.shape)) == pytest.approx(CAMERA.fx, rel=0.01)
    with pytest.raises(InputError, match="50 points"):
        estimate_focal(-points, np.zeros(depth.shape))


def test_rotations_are_found_beside_outliers(cloud):
    pose = turned(6, 3)
    one, two = project(cloud, np.eye(4)), project(cloud, pose)
    two[:20] += 9
    turn, left = fit_rotation(one, two, CAMERA)
    np.testing.assert_allclose(turn, pose[:3, :3].T, atol=2e-3)
    assert left < 0.2
    tracks = Tracks(np.stack([one, two], axis=1))
    turning = find_turning(tracks, CAMERA)
    assert turning is not None
    assert not turning.still
    np.testing.assert_allclose(turning.world_from_camera[1], pose, atol=2e-3)
    moved = pose.copy()
    moved[0, 3] = 0.3
    assert find_turning(Tracks(np.stack([one, project(cloud, moved)], axis=1)), CAMERA) is None


def test_two_views_give_direction_and_depth(cloud):
    pose = turned(3)
    pose[:3, 3] = [0.3, 0.05, 0.1]
    one, two = project(cloud, np.eye(4)), project(cloud, pose)
    two[::8] += 12
    found = relative_pose(one, two, CAMERA, 0.5)
    assert found is not None
    relative, inlier, parallax = found
    assert inlier.sum() >= 60
    assert parallax > 2
    wanted = invert_pose(pose)
    direction = wanted[:3, 3] / np.linalg.norm(wanted[:3, 3])
    assert relative[:3, 3] @ direction > 0.999
    depth, good = triangulate(one, two, wanted, CAMERA, 1.0)
    assert not good[::8].any()
    np.testing.assert_allclose(depth[good], cloud[good, 2], rtol=1e-6)
    assert relative_pose(one[:5], two[:5], CAMERA, 0.5) is None
    assert solve_pose(cloud[:5], two[:5], CAMERA, 1.0) is None
    solved = solve_pose(cloud, two, CAMERA, 1.0)
    assert solved is not None
    np.testing.assert_allclose(solved[0], wanted, atol=1e-5)


def test_tracks_follow_points_to_a_tenth_of_a_pixel():
    poses = walk(4)
    images, depths, _ = zip(*(frame(pose) for pose in poses), strict=True)
    tracks = track_points(images)
    both = tracks.seen[:, 0] & tracks.seen[:, 3]
    assert both.sum() > 100
    at = tracks.pixels[both, 0]
    z = depths[0][at[:, 1].round().astype(int), at[:, 0].round().astype(int)]
    rays = np.stack([(at[:, 0] - CAMERA.cx) / CAMERA.fx, (at[:, 1] - CAMERA.cy) / CAMERA.fy, np.ones(len(at))], axis=1)
    world = rays * z[:, None] @ poses[0, :3, :3].T + poses[0, :3, 3]
    error = np.linalg.norm(project(world, poses[3]) - tracks.pixels[both, 3], axis=1)
    assert np.median(error) < 0.15


def test_depth_errors_are_no_motion_but_motion_across_is():
    pose = np.eye(4)
    pose[0, 3] = 0.2
    image, depth, _ = frame(np.eye(4))
    relative = invert_pose(pose)
    flow = rigid_flow(depth, CAMERA, relative)
    sure, unsure = (np.full(depth.shape, value, np.float32) for value in (0.02, 0.4))
    detail = structure_tensor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    part = np.s_[40:80, 60:100]
    inner = np.s_[48:72, 68:92]

    def evidence(flow, depth, sigma, structure=detail):
        return motion_evidence(flow, structure, depth, sigma, CAMERA, relative)[0]

    assert evidence(flow, depth, sure).max() < 0.1
    bent = depth.copy()
    bent[part] *= 1.4
    assert np.median(evidence(flow, bent, unsure)[inner]) < 2
    assert np.median(evidence(flow, bent, sure)[inner]) > 5
    across = flow.copy()
    across[part] += np.array([0, 6], np.float32)
    assert np.median(evidence(across, depth, unsure)[inner]) > 5
    # Stripes that run up and down tell nothing of motion up and down, nor does a plain wall.
    stripes = np.zeros_like(detail)
    assert np.median(evidence(across, depth, unsure, stripes)[inner]) < 2
    stripes[..., 0] = 100
    assert np.median(evidence(across, depth, unsure, stripes)[inner]) < 2


def test_what_does_not_fit_at_all_is_doubtful():
    poses = walk(4)
    images, depths, _ = zip(*(frame(pose) for pose in poses), strict=True)
    wrong = poses.copy()
    wrong[1::2] = wrong[1::2] @ turned(8, 5)
    found, doubtful = find_moving(
        np.stack(images), np.stack(depths), np.full((4, 120, 160), 0.05, np.float32), wrong, CAMERA, np.ones(4, bool)
    )
    assert doubtful
    assert found[1].mean() < 0.1


@pytest.mark.parametrize(("step", "speed", "least"), [(0.0, 0.05, 0.6), (0.02, 0.06, 0.35), (0.0, 0.0, 0.0)])
def test_what_moves_along_the_line_of_sight_is_found(step, speed, least):
    poses = walk(6, step=step, turn_deg=0.8 if step else 0.0)
    poses = poses if step else np.tile(poses[:1], (6, 1, 1))
    random = np.random.default_rng(0)
    views = [frame(pose, board=(0.0, 0.2, 2.8 - speed * index)) for index, pose in enumerate(poses)]
    images = np.stack([np.clip(view[0] + random.normal(0, 2, view[0].shape), 0, 255) for view in views])
    bend = np.exp(0.15 * np.linspace(-1, 1, CAMERA.width, dtype=np.float32))
    depth = np.stack([view[1] for view in views]) * bend
    there = np.stack([view[2] for view in views])
    found, doubtful = find_moving(
        images.astype(np.uint8), depth, np.full(depth.shape, 0.15, np.float32), poses, CAMERA, np.ones(6, bool)
    )
    assert not doubtful
    if speed:
        assert found[there].mean() > least
        assert found[~there].mean() < 0.02
    else:
        assert not found.any()


def test_scene_flow_of_a_board():
    boards = [(0.0, 0.2, 2.5), (0.15, 0.2, 2.5)]
    views = [frame(np.eye(4), board=board) for board in boards]
    images = np.stack([view[0] for view in views])
    points = np.stack([unproject(view[1], CAMERA, np.eye(4)) for view in views])
    moving = np.stack([view[2] for view in views])
    flow = scene_flow(images, points, moving, np.stack([np.eye(4)] * 2), CAMERA, 0)
    assert not flow[~moving[0]].any()
    found = flow[moving[0]]
    np.testing.assert_allclose(np.nanmedian(found, axis=0), [0.15, 0, 0], atol=0.03)


def test_point_maps_give_poses():
    poses = walk(3)
    points = np.stack([unproject(frame(pose)[1], CAMERA, invert_pose(poses[0]) @ pose) for pose in poses])
    confidence = np.ones(points.shape[:3], np.float32)
    random = np.random.default_rng(1)
    wrong = random.random(confidence.shape) < 0.2
    points[wrong] += random.normal(0, 1, (int(wrong.sum()), 3)).astype(np.float32)
    found, ok = poses_of(points, confidence, CAMERA)
    assert ok.all()
    np.testing.assert_allclose(found, invert_pose(poses[0]) @ poses, atol=5e-3)
    _, ok = poses_of(random.normal(size=points.shape).astype(np.float32), confidence, CAMERA)
    assert not ok.any()


def test_missing_weights_are_one_clear_error(tmp_path):
    assert not is_available(tmp_path)
    with pytest.raises(InputError, match="--method map"):
        load_model(tmp_path)


@pytest.fixture(scope="module")
def short():
    poses = walk(6)
    images, depths, _ = zip(*(frame(pose) for pose in poses), strict=True)
    return images, estimate_pointmaps(images, CAMERA, estimator=KnownDepth(images, depths, 1.1))


def test_windows_are_tied_by_a_similarity(short):
    _, maps = short
    wanted = Similarity(1.7, turned(20, 10)[:3, :3], np.array([1.0, -2.0, 0.5]))
    moved = moved_by(maps, wanted.inverse())
    tie = tie_windows(select(maps, slice(2, 6)), select(moved, slice(2, 6)))
    assert tie is not None
    assert tie.scale == pytest.approx(1.7, rel=1e-3)
    back = moved_by(moved, tie)
    np.testing.assert_allclose(back.poses, maps.poses, atol=1e-3)
    np.testing.assert_allclose(back.points, maps.points, atol=5e-3)
    lost = replace(moved, frame_ok=np.arange(6) < 3)
    assert tie_windows(select(maps, slice(2, 6)), select(lost, slice(2, 6))) is None


def test_a_session_holds_what_does_not_move(short, tmp_path):
    images, maps = short
    moving = maps.dynamic.copy()
    moving[:, 40:80, 60:100] = True
    maps = replace(maps, dynamic=moving, frame_ok=np.arange(6) != 3)
    with Session() as session:
        session.add(maps, images, np.arange(6) * 0.5)
        kept = session.folder
        summary = session.write(tmp_path, ply=True)
    assert not kept.exists()
    assert summary["frames_written"] == [0, 1, 2, 4, 5]
    assert not summary["ok"]
    assert not summary["metric"]
    assert summary["loops_closed"] == 0
    assert summary["source_camera"] == summary["camera"]
    assert json.loads((tmp_path / "pointmaps.json").read_text()) == summary
    assert len(list((tmp_path / "points").glob("*.ply"))) == 5
    times = np.loadtxt(tmp_path / "poses_tum.txt")[:, 0]
    np.testing.assert_allclose(times, [0, 0.5, 1, 2, 2.5])

    from worldstereo_ros.io.images import read_image
    from worldstereo_ros.io.posed_sequences import open_posed
    from worldstereo_ros.memory.archive import load_archive

    sequence = open_posed(tmp_path)
    assert len(sequence) == 5
    assert not sequence.metric
    assert sequence[0].estimated_mask.all()
    assert (read_image(tmp_path / "dynamic" / "000000.png")[40:80, 60:100] == 255).all()
    archive = load_archive(tmp_path / "world.wsmap")
    assert archive.bank.metric is False
    assert not (archive.bank.views[0].depth[40:80, 60:100] > 0).any()
    assert (archive.cloud.provenance == 2).all()


def test_nothing_found_is_an_error_and_writes_nothing(short, tmp_path):
    images, maps = short
    with Session() as session:
        session.add(replace(maps, frame_ok=np.zeros(6, bool)), images, np.arange(6))
        with pytest.raises(InputError, match="No frame has a pose"):
            session.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_camera_of_another_size_keeps_its_field_of_view(tmp_path):
    camera = Camera.from_fov(2000, 1500, 1.0)
    images = [np.kron(frame(pose)[0], np.ones((8, 8, 1), np.uint8)) for pose in walk(2)]
    images = [image[: camera.height // 2, : camera.width // 2] for image in images]
    half = Camera.from_fov(1000, 750, 1.0)
    depth = np.full((2, 750, 1000), 2.0, np.float32)
    maps = estimate_pointmaps(images, half, depth=depth)
    with Session() as session:
        session.add(maps, images, np.arange(2))
        source = session.write(tmp_path)["source_camera"]
    assert (source["width"], source["height"]) == (1000, 750)
    assert source["fx"] == pytest.approx(half.fx, rel=1e-3)
    assert maps.points.shape[1:3] == (maps.camera.height, maps.camera.width)
    assert maps.camera.width < 1000
    assert maps.camera.fx / maps.camera.width == pytest.approx(half.fx / 1000, rel=1e-3)
