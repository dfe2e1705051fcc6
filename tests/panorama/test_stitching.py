"""Stitching views to a panorama: coverage, exposure, closure and provenance."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.panoramas import ROUND, all_round

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.panorama.closure import closure
from worldstereo_ros.panorama.perspective_views import pose_from_angles, rings
from worldstereo_ros.panorama.stitching import (
    panorama_directions,
    panorama_from_views,
    project_directions,
    view_difference,
)


@pytest.mark.parametrize("camera", [ROUND, Camera.from_fov(80, 45, np.radians(70)), Camera.from_fov(60, 60, 1.0)])
def test_rings_cover_the_sphere(camera):
    directions = panorama_directions(48)
    white = np.zeros((camera.height, camera.width, 3), np.uint8)
    count = np.zeros(directions.shape[:2], int)
    for pose in all_round(camera):
        count += project_directions(View(white, camera, pose), np.eye(4), directions)[2]
    assert count.min() >= 1
    assert np.median(count) >= 2
    assert [len(ring) for ring in rings(camera)[-2:]] == [1, 1]


def test_stitching_reproduces_the_panorama_of_the_views(box, box_views):
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


def test_panorama_may_have_another_rotation_than_its_views(box, box_views):
    image, _ = box
    turned = panorama_from_views(box_views, 128, world_from_camera=pose_from_angles(np.pi / 2, 0))
    expected = np.roll(image, -64, axis=1)  # the right side moves to the centre
    assert np.abs(turned.image.astype(int) - expected).mean() < 1.0


def test_left_and_right_border_are_continuous(box_views):
    image = panorama_from_views(box_views, 128).image.astype(int)
    steps = np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))
    assert np.abs(image[:, 0] - image[:, -1]).mean() <= steps.max()


def test_exposure_differences_between_views_leave_no_steps(box, box_views):
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


def test_observed_pixels_take_precedence_over_imagined_ones():
    camera = Camera.from_fov(48, 36, np.radians(75))

    def plain(value: int, observed: bool) -> View:
        mask = None if observed else np.zeros((36, 48), bool)
        return View(np.full((36, 48, 3), value, np.uint8), camera, pose_from_angles(0, 0), observed=mask)

    both = panorama_from_views([plain(200, False), plain(100, True), plain(200, False)], 64, align=False)
    assert both.covered.any()
    assert (both.observed == both.covered).all()
    assert both.image[both.covered].max() <= 104
    guessed = replace(plain(120, True), estimated=np.ones((36, 48), bool))
    between = panorama_from_views([plain(200, False), guessed, plain(200, False)], 64, align=False)
    assert (between.estimated == between.covered).all()
    assert not between.observed.any()
    assert between.image[between.covered].max() < 140
    assert (between.provenance[~between.covered] == Provenance.UNKNOWN).all()
    all_three = panorama_from_views([guessed, plain(100, True), plain(200, False)], 64, align=False)
    assert (all_three.observed == all_three.covered).all()
    imagined = panorama_from_views([plain(200, False)], 64)
    assert not imagined.observed.any()
    assert (imagined.image[imagined.covered] == 200).all()


@pytest.mark.parametrize("lower", [Provenance.IMAGINED, Provenance.ESTIMATED])
def test_the_distance_of_a_pixel_is_never_of_a_lower_class(lower):
    """Where two views overlap, the label may come from the one and the centre of the other be nearer."""
    camera, everywhere = Camera.from_fov(96, 72, 1.3), np.ones((72, 96), bool)

    def view(right: float, metres: float) -> View:
        depth = np.full((72, 96), metres, np.float32)
        return View(np.full((72, 96, 3), 100, np.uint8), camera, pose_from_angles(right, 0), depth)

    mask = {"observed": ~everywhere} if lower == Provenance.IMAGINED else {"estimated": everywhere}
    measured, other = view(0.0, 2.0), replace(view(0.5, 6.0), **mask)
    panorama = panorama_from_views([measured, other], 64)
    assert panorama.observed.sum() > 300
    assert 2 < panorama.distance[panorama.observed].min() < panorama.distance[panorama.observed].max() < 3
    of_lower = panorama.provenance == lower
    assert of_lower.sum() > 100
    assert (panorama.distance[of_lower] > 0).all()
    # A sensor saw the colour but no distance: the guess of another view is no measurement.
    blind = replace(measured, depth=np.zeros((72, 96), np.float32))
    assert (panorama_from_views([blind, other], 64).distance[panorama.observed] == 0).all()


def test_uncovered_directions_are_marked_and_filled_smoothly(box_views):
    panorama = panorama_from_views(box_views[:1], 64)
    assert 0.03 < panorama.covered.mean() < 0.2
    assert not panorama.observed[~panorama.covered].any()
    assert (panorama.distance[~panorama.covered] == 0).all()
    assert panorama.image[~panorama.covered].min() > 20  # filled, not black
    image = panorama.image.astype(int)
    assert np.abs(np.diff(image[:, [-1, 0]], axis=1)).max() < 12
    assert np.ptp(image[0], axis=0).max() < 12  # a pole is one place


def test_stitching_rejects_invalid_views(box_views):
    with pytest.raises(ValueError, match="at least one"):
        panorama_from_views([])
    for height in (4, 0, -8, 64.5):
        with pytest.raises(ValueError, match="at least 8 rows"):
            panorama_from_views(box_views[:1], height)
    with pytest.raises(ImageError, match="are accepted"):
        panorama_from_views(box_views[:1], 100_000)
    aside = pose_from_angles(0.3, 0)
    aside[0, 3] = 0.5
    with pytest.raises(ValueError, match=r"0\.50 m from the position of the panorama"):
        panorama_from_views([box_views[0], replace(box_views[1], world_from_camera=aside)])
    with pytest.raises(ValueError, match="finite 4x4"):
        panorama_from_views(box_views[:1], 64, world_from_camera=np.full((4, 4), np.nan))


def test_closure_measures_the_seam_of_a_turn(box_views):
    ring = box_views[: len(rings(ROUND)[0])]
    closed = closure(ring)
    assert 0.3 < closed.ratio < 2
    assert closed.inner < 3
    # Colours that drift along the turn differ little at inner joints and much at the seam.
    drifting = [
        replace(view, image=np.clip(view.image * (1 + 0.03 * index), 0, 255).astype(np.uint8))
        for index, view in enumerate(ring)
    ]
    assert closure(drifting).ratio > 4
    rolled = [*drifting[3:], *drifting[:3]]
    assert closure(rolled, seam=len(ring) - 4).ratio == pytest.approx(closure(drifting).ratio)
    assert closure(ring[:2]) is None
    assert closure([ring[0], ring[6], ring[3]]) is None  # no overlap
    assert view_difference(ring[0], ring[6]) is None
