"""The geometric pipeline: what is seen, remembered and painted, and how steady it is."""

import itertools

import cv2
import numpy as np
import pytest
from helpers.stereo_scene import BOARD_M, CAMERA, error, pose_at, view_from

from worldstereo_ros.pipelines.stereo.background import fill_background
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, REMEMBERED, SEEN, GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.pipelines.stereo.warp import HOLE, WarpedEye
from worldstereo_ros.utils.errors import InputError

SETTINGS = StereoSettings(base=0.1, steady=False)


def make(places, settings=SETTINGS, boards=None, poses=True):
    """Frames of a camera at these places, the last one made."""
    pipeline = GeometricStereo(CAMERA, settings)
    for index, x in enumerate(places):
        image, depth = view_from(x, 0.0 if boards is None else boards[index])
        frame = pipeline.make(image, depth, pose_at(x) if poses else None)
    return frame


def test_camera_image_is_unchanged_and_every_pixel_has_a_source():
    frame = make([0.0])
    np.testing.assert_array_equal(frame.left, view_from(0.0)[0])
    assert set(np.unique(frame.source)) == {SEEN, PAINTED}
    assert (frame.disparity >= 0).all()
    np.testing.assert_array_equal(frame.band, frame.source != SEEN)


@pytest.mark.parametrize("eye", ["right", "left"])
def test_past_frames_fill_what_they_saw(eye):
    settings = StereoSettings(base=0.1, steady=False, eye=eye)
    away = 0.25 if eye == "right" else -0.25
    truth = view_from(0.1 if eye == "right" else -0.1)[0]
    alone, remembered = make([0.0], settings), make([away, 0.0], settings)
    hole = alone.source == PAINTED
    filled = remembered.source == REMEMBERED
    assert filled.sum() > 0.6 * hole.sum()
    assert not (filled & ~hole).any()
    rim = cv2.dilate(hole.astype(np.uint8), np.ones((1, 3), np.uint8)) > 0  # edges mix with what is behind them
    np.testing.assert_array_equal(remembered.image[~rim], alone.image[~rim])
    assert error(remembered.image, truth, filled) < 0.25 * error(alone.image, truth, filled)


def test_converged_eyes_remember_at_the_same_places():
    settings = StereoSettings(base=0.1, steady=False, convergence=BOARD_M)
    frame, truth = make([0.25, 0.0], settings), view_from(0.1)[0]
    offset = settings.offset(CAMERA.fx)
    shown = np.roll(truth, round(offset), axis=1)
    filled = frame.source == REMEMBERED
    assert filled.any()
    assert error(frame.image, shown, filled) < 12  # the offset is no whole number of pixels


def test_nothing_is_remembered_that_has_moved_away():
    # The board stood where the camera now sees the wall through: it must not fill the hole beside its new place.
    frame = make([0.0, 0.0], boards=[0.45, 0.0])
    truth = view_from(0.1, 0.0)[0]
    filled = frame.source == REMEMBERED
    if filled.any():
        assert error(frame.image, truth, filled) < 30
    alone = make([0.0])
    hole = alone.source == PAINTED
    assert error(frame.image, truth, hole) <= error(alone.image, truth, hole) + 1


@pytest.mark.parametrize("moved", [False, True])
def test_what_stands_beside_the_image_hides_what_is_seen_behind_it(moved):
    settings, board = StereoSettings(base=0.2, steady=False), 1.47  # outside the camera's image, inside the eye's
    before = [board, board + 0.15 * moved]
    frame = make([0.5, 0.4, 0.0], settings, boards=[*before, board + 0.5 * moved])
    alone = make([0.0], settings, boards=[board + 0.5 * moved])
    hidden = (frame.source == REMEMBERED) & (alone.source == SEEN)
    truth = view_from(0.2, board + 0.5 * moved)[0]
    if moved:
        assert hidden.mean() < 0.002
    else:
        assert hidden.mean() > 0.01
        assert error(frame.image, truth, hidden) < 0.2 * error(alone.image, truth, hidden)


def test_what_a_later_frame_looked_through_is_gone():
    settings, board, away = StereoSettings(base=0.2, steady=False), 1.47, 9.0  # beside the present camera's image
    frame = make([0.5, 0.4, 0.0], settings, boards=[board, away, away])
    truth = view_from(0.2, away)[0]
    filled = frame.source == REMEMBERED
    assert filled.sum() > 500
    assert error(frame.image, truth, filled) < 5
    still = make([0.5, 0.4, 0.0], settings, boards=[board, board, board])
    assert error(still.image, view_from(0.2, board)[0], still.source == REMEMBERED) < 12


def test_without_poses_nothing_is_remembered():
    assert not (make([0.25, 0.0], poses=False).source == REMEMBERED).any()


def test_restart_forgets():
    pipeline = GeometricStereo(CAMERA, SETTINGS)
    pipeline.make(*view_from(0.25), pose_at(0.25))
    pipeline.restart()
    assert not (pipeline.make(*view_from(0.0), pose_at(0.0)).source == REMEMBERED).any()


def test_memory_is_bounded_and_frames_from_one_place_count_once():
    pipeline = GeometricStereo(CAMERA, StereoSettings(base=0.1, memory=3, steady=False))
    for index in range(12):
        pipeline.make(*view_from(0.0), pose_at(0.001 * index))
    assert len(pipeline.memory) == 2
    for index in range(12):
        pipeline.make(*view_from(0.0), pose_at(index))
    assert len(pipeline.memory) == 3


def test_painted_pixels_flicker_less_when_steadied():
    rng = np.random.default_rng(0)
    image, depth = view_from(0.0)
    noisy = [np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    changes = {}
    for steady in (False, True):
        pipeline = GeometricStereo(CAMERA, StereoSettings(base=0.1, memory=0, steady=steady))
        made = [pipeline.make(frame, depth, pose_at(0.0)) for frame in noisy]
        painted = made[0].source == PAINTED
        changes[steady] = np.mean([error(a.image, b.image, painted) for a, b in itertools.pairwise(made)])
        for a, b in zip(made, noisy, strict=True):
            np.testing.assert_array_equal(a.left, b)
    assert changes[True] < 0.8 * changes[False]


def test_steady_band_holds_all_holes():
    pipeline = GeometricStereo(CAMERA, StereoSettings(base=0.1))
    frames = [pipeline.make(*view_from(x), pose_at(x)) for x in (0.0, 0.03, 0.06)]
    for frame in frames:
        assert frame.band[frame.source != SEEN].all()
    assert (frames[-1].band & (frames[-1].source == SEEN)).any()


def test_state_goes_on_as_if_nothing_had_happened():
    first = GeometricStereo(CAMERA, StereoSettings(base=0.1))
    for x in (0.3, 0.15):
        first.make(*view_from(x), pose_at(x))
    second = GeometricStereo(CAMERA, StereoSettings(base=0.1))
    second.restore(first.state())
    one, other = (pipeline.make(*view_from(0.0), pose_at(0.0)) for pipeline in (first, second))
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.source, other.source)


def test_sky_has_no_disparity_and_unknown_depth_is_filled():
    _image, depth = view_from(0.0, None)
    depth[:20], depth[50:60, 40:60] = np.inf, 0
    disparity, _ = GeometricStereo(CAMERA, SETTINGS).disparity_of(depth)
    assert (disparity[:20] == 0).all()
    wall = SETTINGS.focal_base(CAMERA.fx) / 4
    np.testing.assert_allclose(disparity[50:60, 40:60], wall, rtol=0.05)


def test_nearest_things_are_limited_and_told():
    image, depth = view_from(0.0, None)
    frame = GeometricStereo(CAMERA, StereoSettings(base=5.0, steady=False)).make(image, depth)
    assert frame.clamped == 1
    assert frame.disparity.max() <= CAMERA.width / 4


def test_background_side_is_continued():
    image = np.zeros((3, 10, 3), np.uint8)
    image[:, :4], image[:, 7:] = 200, 50
    disparity = np.full((3, 10), HOLE, np.float32)
    disparity[:, :4], disparity[:, 7:] = 6, 1
    filled = fill_background(WarpedEye(image, disparity))
    assert (filled.image[:, 4:7] == 50).all()
    assert (filled.disparity[:, 4:7] == 1).all()


def _striped(slope, width=64, height=48):
    """Stripes whose edges fall by `slope` rows a column, smooth ones of 21 rows."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grey = 128 + 90 * np.sin((y - slope * x) * 0.3)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def _error(made, truth, mask):
    return np.abs(made.astype(int) - truth)[mask].mean()


@pytest.mark.parametrize("slope", [-1.5, -0.6, 0.0, 0.4, 2.0])
@pytest.mark.parametrize("left", [False, True])
def test_lines_go_on_beyond_the_side(slope, left):
    truth = _striped(slope)
    hole = np.zeros(truth.shape[:2], bool)
    hole[:, : 8 if left else 0], hole[:, 64 if left else 56 :] = True, True
    disparity = np.where(hole, HOLE, np.float32(4))
    filled = fill_background(WarpedEye(np.where(hole[..., None], 0, truth).astype(np.uint8), disparity))
    inside = hole.copy()
    inside[:16], inside[-16:] = False, False  # lines that begin outside the image are not known
    assert _error(filled.image, truth, inside) < (2 if slope == 0 else 10)
    level = np.where(hole[..., None], truth[:, 8:9] if left else truth[:, 55:56], truth)
    assert slope == 0 or _error(filled.image, truth, inside) < 0.5 * _error(level, truth, inside)
    np.testing.assert_array_equal(filled.image[~hole], truth[~hole])
    assert (filled.disparity == 4).all()


def test_lines_of_the_background_go_on_behind_a_thing():
    truth = _striped(0.5)
    image, hole = truth.copy(), np.zeros(truth.shape[:2], bool)
    hole[10:40, 30:36] = True
    image[10:40, 20:36] = (200, 0, 0)
    disparity = np.full(hole.shape, np.float32(2))
    disparity[10:40, 20:30], disparity[hole] = 9, HOLE
    filled = fill_background(WarpedEye(image, disparity))
    assert (filled.disparity[hole] == 2).all()
    assert _error(filled.image, truth, hole) < 12
    assert np.abs(filled.image[hole][:, 0].astype(int) - filled.image[hole][:, 2]).max() < 3  # nothing of the red thing


def test_lines_in_noise_are_level():
    noise = np.random.default_rng(0).normal(128, 1.0, (48, 64, 1))
    image = np.repeat(np.rint(noise).astype(np.uint8), 3, axis=2)
    disparity = np.full((48, 64), np.float32(3))
    disparity[:, 56:] = HOLE
    filled = fill_background(WarpedEye(image, disparity))
    assert np.abs(filled.image[:, 56:].astype(int) - 128).max() <= 5


def test_rows_without_anything_are_black():
    image = np.full((6, 8, 3), 90, np.uint8)
    disparity = np.full((6, 8), np.float32(1))
    disparity[2], disparity[:, 6:] = HOLE, HOLE
    filled = fill_background(WarpedEye(image, disparity))
    assert (filled.image[2] == 0).all()
    assert (filled.disparity[2] == 0).all()
    assert np.isfinite(filled.disparity).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 0.0}, "base"),
        ({"base": 65.0}, "millimetres"),
        ({"base": float("nan")}, "base"),
        ({"strength": -1.0}, "strength"),
        ({"convergence": 0.0}, "convergence"),
        ({"eye": "middle"}, "eye"),
        ({"memory": -1}, "Memory"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        StereoSettings(**change)


def test_wide_base_is_told():
    assert "small model" in StereoSettings(base=2.0).notes[0]
    assert StereoSettings(base=0.065).notes == []


def test_frame_of_another_size_is_refused():
    image, depth = view_from(0.0)
    with pytest.raises(InputError, match="size"):
        GeometricStereo(CAMERA, SETTINGS).make(image[:, :-1], depth)


def test_pixels_farther_than_one_from_a_hole_are_not_steadied():
    rng = np.random.default_rng(1)
    image, depth = view_from(0.0)
    pipeline = GeometricStereo(CAMERA, StereoSettings(base=0.1, memory=0))
    plain = GeometricStereo(CAMERA, StereoSettings(base=0.1, memory=0, steady=False))
    for _ in range(3):
        noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        ours, theirs = (each.make(noisy, depth, pose_at(0.0)) for each in (pipeline, plain))
    beside = cv2.dilate((ours.source != SEEN).view(np.uint8), np.ones((3, 3), np.uint8)) > 0
    np.testing.assert_array_equal(ours.image[~beside], theirs.image[~beside])
    assert (ours.image[beside & (ours.source == SEEN)] != theirs.image[beside & (ours.source == SEEN)]).any()
