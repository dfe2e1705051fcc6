"""Cuts between shots are found, and motion and exposure are none."""

import itertools

import cv2
import numpy as np
import pytest

from worldstereo_ros.imaging.shots import ShotDetector
from worldstereo_ros.io.images import read_image

PLACES = ("rgbd_hololens_office_a", "rgbd_tum_fr3_cabinet", "multiview_fox", "video_cat", "video_kitti_a")


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    detector = ShotDetector()
    assert not detector.is_cut(before)
    return detector.is_cut(after)


def lit_from_above(colour: tuple[int, int, int]) -> np.ndarray:
    """An image that is bright at the top, in shades of a colour."""
    rows = np.linspace(1, 0.2, 90)[:, None, None]
    return np.broadcast_to(rows * np.array(colour), (90, 160, 3)).astype(np.uint8)


def test_places_that_are_bright_at_the_same_side_are_two_shots():
    one = lit_from_above((230, 90, 40))
    other = cv2.flip(lit_from_above((40, 120, 230)), 1)
    other[:, :80] = other[:, :80] // 3
    assert is_cut(one, other)


@pytest.mark.parametrize("gain", [0.6, 1.5])
def test_exposure_is_no_cut(gain):
    image = lit_from_above((150, 110, 90))
    image[30:60, 40:100] = (60, 140, 70)
    assert not is_cut(image, np.clip(image * gain, 0, 255).astype(np.uint8))


def test_real_places_are_told_apart_and_motion_is_no_cut(shared_data):
    walks = {}
    for name in PLACES:
        files = sorted((shared_data / name / "frames").iterdir())[::4]
        walks[name] = [cv2.resize(read_image(file), (160, 90), interpolation=cv2.INTER_AREA) for file in files]
    cuts = [
        is_cut(before, after)
        for one, other in itertools.permutations(walks.values(), 2)
        for before, after in itertools.product(one[::2], other[::2])
    ]
    assert np.mean(cuts) > 0.9
    for name in ("video_cat", "video_kitti_a"):
        assert not any(is_cut(before, after) for before, after in itertools.pairwise(walks[name]))
