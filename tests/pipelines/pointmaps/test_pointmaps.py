"""Point maps of a painted room: motion, depth, what moves, failures and long videos."""

import numpy as np
import pytest
from helpers.box_room import CAMERA, turned
from helpers.video_scene import KnownDepth, frame, walk

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.pipelines.pointmaps import PointmapStream, estimate_pointmaps
from worldstereo_ros.pipelines.pointmaps.estimate import MAX_PIXELS, reduced_camera, scale_by_odometry
from worldstereo_ros.pipelines.pointmaps.tracks import track_points
from worldstereo_ros.pipelines.pointmaps.windows import OVERLAP, WINDOW
from worldstereo_ros.utils.errors import InputError

COUNT = 9


def video(poses, board=lambda index: None, camera=CAMERA):
    """(images, depths, where the board is) along poses."""
    return tuple(list(part) for part in zip(*(frame(p, camera, board(i)) for i, p in enumerate(poses)), strict=True))


@pytest.fixture(scope="module")
def room_walk():
    poses = walk(COUNT)
    images, depths, _ = video(poses)
    return poses, images, np.stack(depths)


def relative(poses):
    return invert_pose(poses[0]) @ poses


@pytest.mark.parametrize(("method", "limit"), [("vo", 0.03), ("map", 0.006)])
def test_the_path_and_the_depth_are_found(room_walk, method, limit):
    poses, images, depths = room_walk
    maps = estimate_pointmaps(images, CAMERA, method=method, estimator=KnownDepth(images, depths, 1.3, 0.25))
    assert maps.ok
    assert not maps.metric
    assert any("metric: false" in text for text in maps.messages)
    np.testing.assert_array_equal(maps.poses[0], np.eye(4))
    errors = pose_errors(maps.poses, poses)
    assert errors.positions.max() < limit
    assert turn_errors_deg(maps.poses, poses) < 1.5
    if method == "map":
        assert maps.method == "map"
        ratio = np.log(maps.depth / depths)
        assert np.abs(ratio - np.median(ratio)).mean() < 0.5 * 0.25 / 2  # half of the bend is gone
        assert np.isfinite(maps.pose_covariance).all()
        assert (np.diagonal(maps.pose_covariance[1:], axis1=1, axis2=2) > 0).all()
    assert maps.points.shape == (*depths.shape, 3)
    assert maps.dynamic.mean() < 0.03
    assert ((maps.confidence >= 0) & (maps.confidence <= 1)).all()


def test_points_lie_on_the_rays_of_their_frames(room_walk):
    _, images, depths = room_walk
    maps = estimate_pointmaps(images[:4], CAMERA, estimator=KnownDepth(images, depths))
    there = (maps.points[2] - maps.poses[2, :3, 3]) @ maps.poses[2, :3, :3]
    np.testing.assert_allclose(there / there[..., 2:], CAMERA.rays(), atol=1e-3)
    np.testing.assert_allclose(there[..., 2], maps.depth[2], rtol=1e-4)


def test_known_poses_and_depth_give_metres(room_walk):
    poses, images, depths = room_walk
    guess = KnownDepth(images, depths, 2.0)
    posed = estimate_pointmaps(images, CAMERA, poses=poses, estimator=guess)
    assert posed.metric
    assert posed.scale_from == "given poses"
    np.testing.assert_allclose(posed.poses, relative(poses), atol=1e-9)
    assert np.median(posed.depth / depths) == pytest.approx(1, abs=0.03)
    calls = guess.calls
    measured = estimate_pointmaps(images, CAMERA, depth=depths, estimator=guess)
    assert measured.metric
    assert measured.scale_from == "given depth"
    assert guess.calls == calls
    np.testing.assert_allclose(measured.poses[:, :3, 3], relative(poses)[:, :3, 3], atol=0.01)
    np.testing.assert_allclose(measured.depth, depths, rtol=0.02)
    robot = poses.copy()
    robot[:, :3, 3] += [5, 6, 7]
    driven = estimate_pointmaps(images, CAMERA, odometry=robot, estimator=guess)
    assert driven.metric
    assert driven.scale_from == "odometry"
    np.testing.assert_allclose(driven.poses[:, :3, 3], relative(poses)[:, :3, 3], atol=0.01)
    still = estimate_pointmaps(images, CAMERA, odometry=np.tile(np.eye(4), (COUNT, 1, 1)), estimator=guess)
    assert not still.metric
    assert any("too little" in text for text in still.messages)


def test_a_board_that_moves_is_found_and_does_not_pull():
    poses = walk(COUNT, step=0.04)
    images, depths, there = video(poses, lambda i: (0.1, 0.4 - 0.07 * i, 2.5))
    maps = estimate_pointmaps(images, CAMERA, estimator=KnownDepth(images, depths, 1.2))
    assert pose_errors(maps.poses, poses).positions.max() < 0.01
    board = np.stack(there)
    assert maps.dynamic[board].mean() > 0.6
    assert maps.dynamic[~board].mean() < 0.05


@pytest.mark.parametrize("case", ["still", "turning"])
def test_without_parallax_there_is_no_false_motion(case):
    poses = np.stack([turned(1.5 * i * (case == "turning")) for i in range(7)])
    images, depths, _ = video(poses, lambda i: (0.3 * i - 1, 0.2, 2.5) if case == "still" else None)
    random = np.random.default_rng(0)
    images = [np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8) for image in images]
    maps = estimate_pointmaps(images, CAMERA, estimator=KnownDepth(images, depths, 0.7, 0.2))
    assert maps.ok
    assert not maps.poses[:, :3, 3].any()
    assert any("no parallax, and depth is that of the depth network alone" in text for text in maps.messages)
    # Of frames of a sensor it is not, nor where some have measured depth.
    for given, words in ((depths, "depth is the measured one."), ([depths[0]] + [None] * 6, "where there is none")):
        by_sensor = estimate_pointmaps(images, CAMERA, estimator=KnownDepth(images, depths, 1.0), depth=given)
        assert any(words in text for text in by_sensor.messages), by_sensor.messages
    if case == "still":
        np.testing.assert_array_equal(maps.poses, np.tile(np.eye(4), (7, 1, 1)))
    else:
        assert turn_errors_deg(maps.poses, poses) < 0.3


def turn_errors_deg(estimated, truth):
    turn = np.swapaxes(estimated[:, :3, :3], 1, 2) @ relative(truth)[:, :3, :3]
    return np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))).max()


def test_what_shows_nothing_is_not_ok_and_has_no_wild_pose(room_walk):
    _poses, images, depths = room_walk
    grey = [np.full_like(images[0], 128 + i) for i in range(5)]
    maps = estimate_pointmaps(grey, CAMERA, estimator=KnownDepth(grey, depths[:5]))
    assert not maps.ok
    assert not maps.poses[:, :3, 3].any()
    assert not maps.valid[1:].any()
    assert any("too little detail" in text for text in maps.messages)
    # One of the frames shows nothing: the others are found.
    mixed = [*images[:4], np.full_like(images[0], 90), *images[4:]]
    depths_mixed = [*depths[:4], depths[4], *depths[4:]]
    maps = estimate_pointmaps(mixed, CAMERA, estimator=KnownDepth(mixed, depths_mixed))
    assert not maps.frame_ok[4]
    others = np.delete(np.arange(COUNT + 1), 4)
    assert maps.frame_ok[others].sum() >= 4
    step = np.linalg.norm(np.diff(maps.poses[:, :3, 3], axis=0), axis=1).max()
    assert step < 1.0


def test_two_frames_and_grey_frames_suffice(room_walk):
    poses, images, depths = room_walk
    pair = [images[0], images[3]]
    maps = estimate_pointmaps(pair, CAMERA, estimator=KnownDepth(pair, depths[[0, 3]]))
    assert maps.ok
    assert np.linalg.norm(maps.poses[1, :3, 3]) == pytest.approx(np.linalg.norm(relative(poses)[3, :3, 3]), rel=0.2)
    grey = [image[..., 1] for image in images[:5]]
    shown = [np.repeat(image[..., None], 3, axis=2) for image in grey]
    maps = estimate_pointmaps(grey, CAMERA, estimator=KnownDepth(shown, depths[:5]))
    assert maps.ok
    assert pose_errors(maps.poses, poses[:5]).positions.max() < 0.01


def test_blurred_frames_among_sharp_ones_are_found(room_walk):
    import cv2

    poses, images, depths = room_walk
    line = np.zeros((13, 13), np.float32)
    line[6] = 1 / 13
    blurred = [cv2.filter2D(image, -1, line) if index in (2, 3) else image for index, image in enumerate(images[:6])]
    maps = estimate_pointmaps(blurred, CAMERA, estimator=KnownDepth(blurred, depths[:6]))
    assert maps.ok
    assert pose_errors(maps.poses, poses[:6]).positions.max() < 0.04


def test_frames_that_share_nothing_are_not_ok():
    image, depth, _ = frame(np.eye(4))
    other = np.ascontiguousarray(255 - image[::-1])
    maps = estimate_pointmaps([image, other], CAMERA, estimator=KnownDepth([image, other], [depth, depth]))
    assert not maps.ok
    assert not maps.poses[:, :3, 3].any()


def test_wide_steps_are_matched_by_descriptors():
    camera = Camera.from_fov(320, 240, np.radians(75))
    poses = walk(6, step=0.25, turn_deg=9)
    images, depths, _ = video(poses, camera=camera)
    tracks = track_points(images)
    assert tracks.wide_steps
    maps = estimate_pointmaps(images, camera, estimator=KnownDepth(images, depths, 1.1, 0.2))
    assert maps.ok
    assert pose_errors(maps.poses, poses).positions.max() < 0.03


def test_long_videos_are_tied_and_streamed():
    count = WINDOW + 12
    poses = walk(count, step=0.04, turn_deg=0.6)
    images, depths, _ = video(poses)
    guess = KnownDepth(images, depths, 0.8, 0.1)
    maps = estimate_pointmaps(images, CAMERA, estimator=guess)
    assert maps.ok
    assert len(maps) == count
    assert not maps.shot.any()
    assert pose_errors(maps.poses, poses).positions.max() < 0.02
    stream = PointmapStream(CAMERA, estimator=guess)
    sizes, parts = [], []
    for image in images:
        new = stream.push(image)
        sizes.append(sum(len(part) for part in new))
        parts += new
    assert np.flatnonzero(sizes).tolist() == [WINDOW - 1]
    parts += stream.finish()
    assert sum(len(part) for part in parts) == count
    np.testing.assert_allclose(np.concatenate([part.poses for part in parts]), maps.poses, atol=1e-9)
    assert stream.finish() == []
    assert (stream.rate.windows, stream.rate.frames) == (2, count)
    assert "frames a second (2 windows" in str(stream.rate)


def test_cuts_begin_a_world_of_their_own(room_walk):
    _poses, images, depths = room_walk
    other = [np.clip(255 - image[::-1] // 3, 0, 255).astype(np.uint8) for image in images]
    other[:] = [np.where(np.arange(image.shape[0])[:, None, None] < 60, image // 6, image) for image in other]
    joined = [*images, *other]
    maps = estimate_pointmaps(joined, CAMERA, estimator=KnownDepth(joined, [*depths, *depths]))
    assert maps.shot.tolist() == [0] * COUNT + [1] * COUNT
    np.testing.assert_array_equal(maps.poses[COUNT], np.eye(4))
    assert any("2 shots" in text and str(COUNT) in text for text in maps.messages)


def test_black_frames_have_no_points(room_walk):
    _, images, depths = room_walk
    dark = [*images[:6], np.zeros_like(images[0])]
    maps = estimate_pointmaps(dark, CAMERA, estimator=KnownDepth(dark, depths[:7]))
    assert not maps.valid[6].any()
    assert maps.frame_ok[:6].all()


def test_an_unknown_camera_is_said_and_found(room_walk):
    _poses, images, depths = room_walk
    maps = estimate_pointmaps(images, None, estimator=KnownDepth(images, depths, 1.0, 0.0))
    assert maps.camera.fx == pytest.approx(CAMERA.fx, rel=0.12)
    assert any("degrees wide" in text for text in maps.messages)


def test_large_frames_are_reduced():
    camera = Camera.from_fov(3840, 2160, 1.2)
    small = reduced_camera(camera)
    assert small.width * small.height <= 1.01 * MAX_PIXELS
    assert small.fx / small.width == pytest.approx(camera.fx / camera.width, rel=1e-3)
    assert reduced_camera(CAMERA) == CAMERA


def test_the_refiner_gets_the_prior_and_gives_the_depth(room_walk, monkeypatch):
    import torch

    from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior
    from worldstereo_ros.pipelines.pointmaps import dense_depth

    monkeypatch.setattr(dense_depth, "MIN_HELD_OUT", 10**9)  # it is followed, though it is wrong
    _, images, depths = room_walk
    got = []

    def refiner(clip, intrinsics, prior):
        assert isinstance(prior, PointmapPrior)
        got.append((tuple(clip.shape), tuple(prior.log_depth.shape), float((prior.anchor_weight > 0).sum())))
        moves = torch.full_like(prior.log_depth, -9.0)
        moves[..., :20, :20] = 9.0
        sure = torch.full_like(prior.log_depth, -3.0)
        return PointmapPrediction(prior.log_depth + 0.5, sure, moves, torch.ones_like(sure))

    guess = KnownDepth(images, depths)
    plain = estimate_pointmaps(images[:6], CAMERA, estimator=guess)
    maps = estimate_pointmaps(images[:6], CAMERA, method="small", estimator=guess, refiner=refiner)
    assert maps.method == "small"
    ((clip_shape, prior_shape, anchors),) = got
    assert clip_shape[:3] == (1, 6, 3)
    assert clip_shape[3:] == prior_shape[2:]
    assert anchors > 50
    np.testing.assert_allclose(np.log(maps.depth / plain.depth), 0.5, atol=0.02)
    np.testing.assert_allclose(maps.poses, plain.poses, atol=1e-9)
    assert maps.dynamic[:, :10, :10].all()
    with pytest.raises(InputError, match="needs a refiner"):
        estimate_pointmaps(images, CAMERA, method="small", estimator=guess)


def test_the_scale_of_odometry():
    poses = walk(6)
    grown = poses.copy()
    grown[:, :3, 3] *= 3
    assert scale_by_odometry(poses, grown) == pytest.approx(3)
    assert scale_by_odometry(poses, np.tile(np.eye(4), (6, 1, 1))) is None
    assert scale_by_odometry(np.tile(np.eye(4), (6, 1, 1)), poses) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 1}, "2 at least"),
        ({"method": "best"}, "vo, map, small"),
        ({"size": 1}, "one size"),
        ({"poses": 3}, "one for each"),
        ({"dtype": np.float32}, "uint8"),
        ({"camera": Camera.from_fov(64, 48, 1.0)}, "64x48"),
        ({"overlap": 20}, "overlap"),
    ],
)
def test_bad_input_is_refused(room_walk, change, words):
    poses, images, depths = room_walk
    frames = list(images[: change.get("frames", 4)])
    if "size" in change:
        frames[1] = frames[1][:-2]
    if "dtype" in change:
        frames[1] = frames[1].astype(change["dtype"])
    options = {name: change[name] for name in ("method", "overlap") if name in change}
    with pytest.raises(InputError, match=words):
        estimate_pointmaps(
            frames,
            change.get("camera", CAMERA),
            poses=poses[: change["poses"]] if "poses" in change else None,
            estimator=KnownDepth(images, depths),
            **options,
        )


def test_the_window_and_overlap_are_as_documented():
    assert (WINDOW, OVERLAP) == (17, 4)
