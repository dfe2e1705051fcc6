"""The warp to the other eye: where things land, what wins, and what opens."""

import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, error, view_from

from worldstereo_ros.pipelines.stereo.warp import HOLE, warp_to_eye, widen_edges
from worldstereo_ros.utils.errors import InputError

BASE = 0.1


def disparity(depth):
    return (CAMERA.fx * BASE / depth).astype(np.float32)


@pytest.mark.parametrize("eye", ["right", "left"])
def test_seen_pixels_are_those_of_a_camera_there(eye):
    image, depth = view_from(0.0)
    truth, true_depth = view_from(BASE if eye == "right" else -BASE)
    made = warp_to_eye(image, disparity(depth), eye=eye, edge_px=0)
    shown = ~made.hole & (np.abs(made.disparity - disparity(true_depth)) < 0.1)
    assert shown.mean() > 0.9
    assert error(made.image, truth, shown) < 1.0


def test_one_thread_and_two_give_the_same():
    image, depth = view_from(0.0)
    one, two = (warp_to_eye(image, disparity(depth), threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.disparity, two.disparity)


def test_nearer_surface_wins_whatever_the_order():
    image = np.zeros((1, 8, 3), np.uint8)
    image[0, :, 0] = np.arange(8) * 10
    near = np.zeros((1, 8), np.float32)
    near[0, 5] = 3
    made = warp_to_eye(image, near, edge_px=0)
    assert made.image[0, 2, 0] == 50
    assert made.disparity[0, 2] == 3
    assert made.disparity[0, 5] == HOLE  # what was behind it was never seen


def test_hole_opens_on_the_far_side_of_a_near_thing():
    image, depth = view_from(0.0)
    hole = warp_to_eye(image, disparity(depth), edge_px=0).hole
    row = hole[CAMERA.height // 2]
    board = np.flatnonzero(depth[CAMERA.height // 2] < 3)
    opened = np.flatnonzero(row[: CAMERA.width - 4])
    step = float(disparity(depth).max() - disparity(depth).min())
    assert len(opened) == pytest.approx(step, abs=1)
    assert opened.min() == pytest.approx(board.max() + 1 - disparity(depth).max(), abs=1)


def test_offset_moves_the_image_and_not_the_disparity():
    image, depth = view_from(0.0, None)
    plain, moved = (warp_to_eye(image, disparity(depth), offset=offset) for offset in (0.0, 2.0))
    np.testing.assert_array_equal(plain.image[:, :-8], moved.image[:, 2:-6])
    np.testing.assert_array_equal(plain.disparity[:, :-8], moved.disparity[:, 2:-6])


def test_surface_seen_from_behind_is_not_drawn():
    image = np.full((1, 40, 3), 9, np.uint8)
    steep = np.linspace(0, 60, 40, dtype=np.float32)[None]  # more than a pixel a pixel: it folds over
    made = warp_to_eye(image, steep, edge_px=0)
    assert made.hole.any()


def test_edges_are_widened_at_jumps_alone():
    flat = np.linspace(1, 3, 30, dtype=np.float32)[None]
    np.testing.assert_array_equal(widen_edges(flat, 1), flat)
    jump = np.array([[1, 1, 1, 5, 5, 1, 1]], np.float32)
    np.testing.assert_array_equal(widen_edges(jump, 1), [[1, 1, 5, 5, 5, 5, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"disparity": np.full((4, 4), -1, np.float32)}, "negative"),
        ({"disparity": np.full((4, 4), np.nan, np.float32)}, "NaN"),
        ({"disparity": np.zeros((4, 5), np.float32)}, "shape"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8"),
        ({"eye": "third"}, "third"),
        ({"offset": np.inf}, "offset"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"image": np.zeros((4, 4, 3), np.uint8), "disparity": np.zeros((4, 4), np.float32)} | change
    with pytest.raises(InputError, match=message):
        warp_to_eye(arguments.pop("image"), arguments.pop("disparity"), **arguments)
