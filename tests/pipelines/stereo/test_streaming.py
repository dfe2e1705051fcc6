"""Pairs of a running camera: what is taken over from frame to frame, and what starts over."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.stereo_scene import BOARD_M, CAMERA, WALL_M, error, pose_at, view_from

from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, REMEMBERED, SEEN, GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import MAX_DISPARITY, StereoSettings
from worldstereo_ros.pipelines.stereo.streaming import MAX_GAP_S, StereoStream, disparity_of
from worldstereo_ros.utils.errors import InputError

BASE = 0.1
SETTINGS = StereoSettings(base=BASE, steady=False)


def no_estimate(image, camera):
    raise AssertionError("measured depth was given")


def estimate(image, camera):
    return np.full(image.shape[:2], 3.0, np.float32)


def painted_view(x):
    """The scene with rectangles on wall and board, from x metres to the right."""
    image, depth = view_from(x)
    shades = np.random.default_rng(3).integers(0, 90, (200, 200, 3))
    across = (CAMERA.rays()[..., 0] * depth + x) / 0.06
    down = CAMERA.rays()[..., 1] * depth / 0.06
    paint = shades[np.int64(np.floor(down)) % 200, np.int64(np.floor(across)) % 200]
    return (image // 2 + paint).astype(np.uint8), depth


def walk(stream, places, camera=CAMERA, start=0.0, **given):
    """Pairs of a camera at these places along x, a tenth of a second apart."""
    pairs = []
    for index, x in enumerate(places):
        image, depth = view_from(x, camera=camera)
        more = {"depth": depth, "stamp_s": start + 0.1 * index, "world_from_camera": pose_at(x), **given}
        pairs.append(stream.push(image, camera, **more))
    return pairs


def test_right_eye_is_what_a_camera_there_sees():
    (pair,) = walk(StereoStream(SETTINGS, no_estimate), [0.0])
    np.testing.assert_array_equal(pair.left, view_from(0.0)[0])
    seen = pair.source == SEEN
    assert seen.mean() > 0.8
    assert error(pair.right, view_from(BASE)[0], seen) < 3 < 0.2 * error(pair.left, view_from(BASE)[0], seen)
    assert (pair.base, pair.estimated, pair.restarted) == (BASE, False, True)
    assert pair.left_camera == pair.right_camera == CAMERA


def test_disparity_is_the_depth_that_was_put_in():
    image, depth = view_from(0.0)
    depth[:4], depth[4:8], depth[8:12] = 0, np.inf, 1e-3
    stream = StereoStream(replace(SETTINGS, strength=2.0), no_estimate)
    pair = stream.push(image, CAMERA, depth)
    assert pair.base == 2 * BASE
    known = np.isfinite(depth) & (depth > 0.01)
    np.testing.assert_allclose(CAMERA.fx * pair.base / pair.disparity[known], depth[known], rtol=1e-5)
    assert (pair.disparity[:4] == -1).all()
    assert (pair.disparity[4:8] == 0).all()
    assert (pair.disparity[8:12] == MAX_DISPARITY * CAMERA.width).all()
    assert pair.max_disparity == MAX_DISPARITY * CAMERA.width
    alone = stream.left_eye(image, CAMERA, depth)
    np.testing.assert_array_equal(alone.disparity, pair.disparity)
    np.testing.assert_array_equal(disparity_of(np.zeros((2, 2), np.float32), 1.0, 1.0), -1)


@pytest.mark.parametrize("posed", [True, False])
def test_past_frames_fill_holes(posed):
    """With poses, and without: then by features, of which the scene has enough only with some paint on it."""
    places = [0.25, 0.2, 0.15, 0.1, 0.05, 0.0]
    stream, alone = StereoStream(SETTINGS, no_estimate), StereoStream(SETTINGS, no_estimate)
    for x in places:
        image, depth = view_from(x) if posed else painted_view(x)
        last = stream.push(image, CAMERA, depth, 1.0 - x, pose_at(x) if posed else None)
        assert last.restarted == (x == places[0])
        if x == places[0]:
            assert not (last.source == REMEMBERED).any()
    filled = last.source == REMEMBERED
    hole = filled | (last.source == PAINTED)
    assert filled.sum() > 0.4 * hole.sum()
    painted = alone.push(image, CAMERA, depth).right
    truth = view_from(BASE)[0] if posed else painted_view(BASE)[0]
    assert error(last.right, truth, filled) < 0.5 * error(painted, truth, filled)


def test_what_changes_starts_over():
    def second(first=None, start=0.4, camera=CAMERA, estimator=no_estimate, **given):
        stream = StereoStream(SETTINGS, estimator)
        walk(stream, (0.25, 0.2, 0.15, 0.1), camera, **(first or {}))
        return walk(stream, [0.05], start=start, **given)[0]

    assert not second().restarted
    assert (second().source == REMEMBERED).any()
    assert not second(stamp_s=None).restarted  # images without stamps
    others = [
        second(start=0.4 + MAX_GAP_S),  # a gap
        second(start=0.1),  # a recording that starts over
        second(camera=CAMERA.resized(80, 48)),
        second(first={"depth": None}, estimator=estimate),
        second(first={"world_from_camera": None}),  # poses begin
    ]
    for pair in others:
        assert pair.restarted
        assert not (pair.source == REMEMBERED).any()


def test_frames_that_were_not_made_leave_nothing_behind():
    stream = StereoStream(SETTINGS, no_estimate)
    walk(stream, [0.25, 0.2, 0.15])
    for index, x in enumerate((0.1, 0.05)):
        image, depth = view_from(x)
        assert not stream.left_eye(image, CAMERA, depth, 0.3 + 0.1 * index, pose_at(x)).restarted
    (pair,) = walk(stream, [0.0], start=0.5)
    assert not (pair.source == REMEMBERED).any()
    stream.restart()
    assert walk(stream, [0.0], start=0.6)[0].restarted


def test_depth_is_estimated_where_it_is_missing():
    stream = StereoStream(SETTINGS, estimate)
    for depth in (None, np.zeros((CAMERA.height, CAMERA.width), np.float32)):
        pair = stream.push(view_from(0.0)[0], CAMERA, depth)
        assert pair.estimated
        assert np.allclose(pair.depth, 3.0)
    with pytest.raises(InputError, match="no measured depth"):
        StereoStream(SETTINGS, None).push(view_from(0.0)[0], CAMERA)


def test_smaller_eyes_and_convergence():
    settings = replace(SETTINGS, convergence=BOARD_M)
    stream = StereoStream(settings, no_estimate, width=80)
    (pair,) = walk(stream, [0.0])
    assert pair.left.shape == pair.right.shape == (48, 80, 3)
    assert pair.left_camera == CAMERA.resized(80, 48) == stream.left_camera(CAMERA)
    np.testing.assert_array_equal(pair.left, stream.resize(view_from(0.0)[0], CAMERA))
    # The disparity on the screen is 0 at the distance of convergence, and depth = f b / (d - (cx_l - cx_r)).
    offset = pair.right_camera.cx - pair.left_camera.cx
    assert offset == pytest.approx(pair.left_camera.fx * BASE / BOARD_M)
    row = pair.disparity[24]
    assert {round(float(value) - offset, 3) for value in row} == {
        round(pair.left_camera.fx * BASE * (1 / z - 1 / BOARD_M), 3) for z in (BOARD_M, WALL_M)
    }


def test_pipeline_is_made_once_a_camera():
    made = []

    def make(camera, settings):
        made.append(camera)
        return GeometricStereo(camera, settings)

    stream = StereoStream(SETTINGS, no_estimate, make_pipeline=make)
    walk(stream, [0.0, 0.1])
    walk(stream, [0.1], start=9.0)
    assert made == [CAMERA]
    other = CAMERA.resized(80, 48)
    walk(stream, [0.1], other, start=9.1)
    assert made == [CAMERA, other]


def test_unusable_input_is_refused():
    image, depth = view_from(0.0)
    stream = StereoStream(SETTINGS, None)
    with pytest.raises(InputError, match="right one"):
        StereoStream(replace(SETTINGS, eye="left"), None)
    with pytest.raises(InputError, match="width"):
        StereoStream(SETTINGS, None, width=-1)
    for unfit in ((image[:-1], depth), (image, depth[:, :-1])):
        with pytest.raises(InputError, match="expected"):
            stream.push(unfit[0], CAMERA, unfit[1])
