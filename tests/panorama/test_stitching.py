"""Views become a panorama again: whole, even in exposure, closed, and honest about what is not known."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.panoramas import ROUND, all_round

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.panorama.perspective_views import pose_from_angles, rings
from worldstereo_ros.panorama.stitching import (
    closure,
    panorama_directions,
    panorama_from_views,
    project_directions,
    view_difference,
)


@pytest.mark.parametrize("camera", [ROUND, Camera.from_fov(80, 45, np.radians(70)), Camera.from_fov(60, 60, 1.0)])
def test_rings_show_the_whole_sphere(camera):
    directions = panorama_directions(48)
    white = np.zeros((camera.height, camera.width, 3), np.uint8)
    shown = np.zeros(directions.shape[:2], int)
    for pose in all_round(camera):
        shown += project_directions(View(white, camera, pose), np.eye(4), directions)[2]
    assert shown.min() >= 1
    assert np.median(shown) >= 2
    assert [len(ring) for ring in rings(camera)[-2:]] == [1, 1]


def test_views_go_back_to_the_panorama_they_were_cut_from(box, box_views):
    image, distance = box
    panorama = panorama_from_views(box_views[::-1], 128, world_from_camera=np.eye(4))
    assert panorama.covered.all()
    assert panorama.observed.all()
    error = np.abs(panorama.image.astype(int) - image)
    assert error.mean() < 1.0  # interpolated twice, rounded twice
    assert np.quantile(error, 0.99) < 6
    off = np.abs(panorama.distance / distance - 1)
    assert np.median(off) < 0.01
    assert np.quantile(off, 0.95) < 0.05


def test_a_panorama_can_stand_otherwise_than_its_views(box, box_views):
    image, _ = box
    turned = panorama_from_views(box_views, 128, world_from_camera=pose_from_angles(np.pi / 2, 0))
    expected = np.roll(image, -64, axis=1)  # what was to the right is in the middle now
    assert np.abs(turned.image.astype(int) - expected).mean() < 1.0


def test_the_left_and_the_right_border_of_a_stitched_panorama_join(box_views):
    picture = panorama_from_views(box_views, 128).image.astype(int)
    steps = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))
    assert np.abs(picture[:, 0] - picture[:, -1]).mean() <= steps.max()


def test_exposures_that_differ_from_view_to_view_leave_no_steps(box, box_views):
    random = np.random.default_rng(0)
    gains = np.exp(random.uniform(-0.25, 0.25, (len(box_views), 1, 1, 1)))
    uneven = [
        replace(view, image=np.clip(view.image * gain, 0, 255).astype(np.uint8))
        for view, gain in zip(box_views, gains, strict=True)
    ]

    def unevenness(align: bool) -> float:
        ratio = panorama_from_views(uneven, 128, align=align).image / np.maximum(box[0], 1.0)
        return float(np.log(ratio[32:96].mean(axis=(0, 2))).std())

    assert unevenness(True) < 0.4 * unevenness(False)


def test_what_a_sensor_saw_goes_before_what_was_imagined():
    camera = Camera.from_fov(48, 36, np.radians(75))

    def plain(value: int, observed: bool) -> View:
        mask = None if observed else np.zeros((36, 48), bool)
        return View(np.full((36, 48, 3), value, np.uint8), camera, pose_from_angles(0, 0), observed=mask)

    both = panorama_from_views([plain(200, False), plain(100, True), plain(200, False)], 64, align=False)
    assert both.covered.any()
    assert (both.observed == both.covered).all()
    assert both.image[both.covered].max() <= 104
    imagined = panorama_from_views([plain(200, False)], 64)
    assert not imagined.observed.any()
    assert (imagined.image[imagined.covered] == 200).all()


def test_views_that_do_not_cover_the_sphere_say_so_and_the_rest_is_smooth(box_views):
    panorama = panorama_from_views(box_views[:1], 64)
    assert 0.03 < panorama.covered.mean() < 0.2
    assert not panorama.observed[~panorama.covered].any()
    assert (panorama.distance[~panorama.covered] == 0).all()
    assert panorama.image[~panorama.covered].min() > 20  # filled, not black
    picture = panorama.image.astype(int)
    assert np.abs(np.diff(picture[:, [-1, 0]], axis=1)).max() < 12
    assert np.ptp(picture[0], axis=0).max() < 12  # a pole is one place


def test_views_that_make_no_panorama_are_refused(box_views):
    with pytest.raises(ValueError, match="at least one"):
        panorama_from_views([])
    for height in (4, 0, -8, 64.5):
        with pytest.raises(ValueError, match="at least 8 rows"):
            panorama_from_views(box_views[:1], height)
    with pytest.raises(ImageError, match="are accepted"):
        panorama_from_views(box_views[:1], 100_000)
    aside = pose_from_angles(0.3, 0)
    aside[0, 3] = 0.5
    with pytest.raises(ValueError, match=r"0\.50 m from the panorama's place"):
        panorama_from_views([box_views[0], replace(box_views[1], world_from_camera=aside)])
    with pytest.raises(ValueError, match="finite 4x4"):
        panorama_from_views(box_views[:1], 64, world_from_camera=np.full((4, 4), np.nan))


def test_the_seam_of_a_turn_is_measured(box_views):
    ring = box_views[: len(rings(ROUND)[0])]
    closed = closure(ring)
    assert 0.3 < closed.ratio < 2
    assert closed.inner < 3
    # Colours that drift all the way round differ a little at every joint, and much where the ends meet.
    drifting = [
        replace(view, image=np.clip(view.image * (1 + 0.03 * index), 0, 255).astype(np.uint8))
        for index, view in enumerate(ring)
    ]
    assert closure(drifting).ratio > 4
    rolled = [*drifting[3:], *drifting[:3]]
    assert closure(rolled, seam=len(ring) - 4).ratio == pytest.approx(closure(drifting).ratio)
    assert closure(ring[:2]) is None
    assert closure([ring[0], ring[6], ring[3]]) is None  # no overlap, nothing to say
    assert view_difference(ring[0], ring[6]) is None
