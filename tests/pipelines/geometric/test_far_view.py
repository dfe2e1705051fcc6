"""What lies behind everything that was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.box_room import CAMERA, observe, room, turned

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.far_view import CONFIRMED_CONFIDENCE, FAR_CONFIDENCE, far_pixels, far_view
from worldstereo_ros.pipelines.geometric.layout import PlaneRender, estimate_layout
from worldstereo_ros.world import WorldModel

EVERYWHERE = np.ones((CAMERA.height, CAMERA.width), bool)


def sky_colour(rays: np.ndarray) -> np.ndarray:
    """(..., 3) colours that depend on the direction (..., 3) alone."""
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return (128 + 100 * unit).astype(np.uint8)


def window_view(degrees: float = 0.0, x: float = 0.0, far: float = 0.0) -> View:
    """A view of the box whose far wall has a window; it shows the sky, and below it the ground at `far` metres."""
    pose = turned(degrees)
    pose[0, 3] = x
    view = observe(pose)
    assert view.depth is not None
    rays = CAMERA.rays() @ pose[:3, :3].T
    points = rays * view.depth[..., None] + pose[:3, 3]
    window = (room(pose)[1] == 5) & (np.abs(points[..., 0]) < 1.2) & (np.abs(points[..., 1] + 0.2) < 0.7)
    image = np.where(window[..., None], sky_colour(rays), view.image)
    depth = np.where(window, np.float32(0), view.depth)
    depth[window & (points[..., 1] > 0.3)] = far  # a field below the horizon
    return replace(view, image=image, depth=depth)


def test_what_is_far_is_seen_in_the_same_direction_from_elsewhere():
    there = turned(12)
    there[:3, 3] = 0.8, 0.1, 1.0
    image, found, confirmed = far_view([window_view()], CAMERA, there, EVERYWHERE)
    assert not confirmed.any()  # by one observation
    assert found.sum() > 1000
    truth = sky_colour(CAMERA.rays() @ there[:3, :3].T)
    assert np.abs(image[found].astype(int) - truth[found]).max() <= 4
    assert not image[~found].any()


def test_the_nearest_observation_decides_and_others_complete_it():
    one, other = window_view(), window_view(-20, x=-1.0)
    lighter = replace(one, image=np.where((one.depth == 0)[..., None], one.image + 6, one.image).astype(np.uint8))
    both = far_view([other, lighter], CAMERA, np.eye(4), EVERYWHERE)
    alone = far_view([lighter], CAMERA, np.eye(4), EVERYWHERE)
    np.testing.assert_array_equal(both.image[alone.found], alone.image[alone.found])
    assert both.found.sum() > alone.found.sum()
    assert both.confirmed.any()
    assert not both.confirmed[~alone.found].any()


def test_what_another_observation_contradicts_is_not_far():
    """A depth camera of short range measures nothing of a wall, either; that is not the same from everywhere."""
    one, other = window_view(), window_view(x=-1.0)
    differs = replace(other, image=np.where((other.depth == 0)[..., None], 255 - other.image, other.image))
    agree = far_view([one, other], CAMERA, np.eye(4), EVERYWHERE)
    assert agree.confirmed.sum() > 500
    differ = far_view([one, differs], CAMERA, np.eye(4), EVERYWHERE)
    assert differ.found.sum() < 0.7 * agree.found.sum()
    assert not differ.confirmed.any()


def test_observations_from_one_place_confirm_nothing():
    there = np.eye(4)
    there[0, 3] = 1.0
    assert far_view([window_view(), window_view(x=0.1)], CAMERA, there, EVERYWHERE).found.any()
    assert not far_view([window_view(), window_view(x=0.1)], CAMERA, there, EVERYWHERE).confirmed.any()
    assert far_view([window_view(), window_view(x=-1.0)], CAMERA, there, EVERYWHERE).confirmed.any()


def test_only_wanted_pixels_of_views_with_something_far():
    mask = EVERYWHERE.copy()
    mask[:, 80:] = False
    assert not far_view([window_view()], CAMERA, np.eye(4), mask).found[:, 80:].any()
    assert not far_view([observe(turned(0))], CAMERA, np.eye(4), EVERYWHERE).found.any()
    assert not far_view([], CAMERA, np.eye(4), EVERYWHERE).found.any()
    assert not far_view([window_view()], CAMERA, turned(180), EVERYWHERE).found.any()


@pytest.mark.parametrize("hidden_by", ["", "memory", "plane", "seen"])
def test_nothing_far_is_shown_before_surfaces(hidden_by):
    provenance = np.full(EVERYWHERE.shape, Provenance.UNKNOWN, np.uint8)
    plane, seen = np.full(EVERYWHERE.shape, -1, np.int16), ~EVERYWHERE
    if hidden_by == "memory":
        provenance[:] = Provenance.IMAGINED
    elif hidden_by == "plane":
        plane[:] = 0
    elif hidden_by == "seen":
        seen = EVERYWHERE
    nothing = np.zeros(EVERYWHERE.shape, np.float32)

    class Renders:
        def __init__(self):
            self.provenance = torch.from_numpy(provenance)[None]

    class Conditioning:
        renders, camera, world_from_camera = Renders(), CAMERA, np.eye(4)[None]

    planes = PlaneRender(np.zeros((*nothing.shape, 3), np.float32), nothing, nothing, plane)
    layout = estimate_layout([window_view()])
    long_range = replace(layout, depths=np.where(layout.depths > 3.9, np.float32(9), layout.depths))
    assert far_pixels(long_range, Conditioning(), 0, planes, seen).found.any() == (hidden_by == "")
    assert not far_pixels(layout, Conditioning(), 0, planes, seen).found.any()  # of a sensor of short range
    unscaled = long_range.seen._replace(observations=[replace(window_view(), metric=False)])
    assert not far_pixels(replace(long_range, seen=unscaled), Conditioning(), 0, planes, seen).found.any()


def test_the_small_model_shows_the_sky_behind_a_window_from_another_place():
    """With an unknown depth: nothing of it becomes a point of the cloud."""
    world = WorldModel(load_pipeline("small"), depth_estimator=None)
    for view in (window_view(far=20.0), window_view(10, far=20.0)):
        world.observe(view)
    there = turned(5)
    there[:3, 3] = 0.3, 0.0, 0.8
    frame = next(iter(world.imagine(there[None], CAMERA)))
    found = far_view([window_view(far=20.0), window_view(10, far=20.0)], CAMERA, there, EVERYWHERE).found
    truth = sky_colour(CAMERA.rays() @ there[:3, :3].T)
    core = found.copy()
    core[:, 1:] &= found[:, :-1]
    shown = core & (frame.depth == 0)
    assert shown.sum() > 500
    assert np.abs(frame.image[shown].astype(int) - truth[shown]).mean() < 6
    assert not frame.observed_mask[shown].any()


def test_what_is_far_has_the_confidence_of_what_it_copies_and_none_of_depth():
    world = WorldModel(load_pipeline("small"), depth_estimator=None)
    for view in (window_view(far=20.0), window_view(10, x=-0.8, far=20.0)):
        world.observe(view)
    there = turned(5)
    there[:3, 3] = 0.3, 0.0, 0.8
    frame = next(iter(world.imagine(there[None], CAMERA)))
    far = (frame.depth == 0) & ~frame.observed_mask
    assert far.sum() > 500
    confirmed = (
        far_view([window_view(far=20.0), window_view(10, x=-0.8, far=20.0)], CAMERA, there, EVERYWHERE).confirmed & far
    )
    assert confirmed.sum() > 300
    np.testing.assert_array_equal(frame.confidence[confirmed], np.float32(CONFIRMED_CONFIDENCE))
    np.testing.assert_array_equal(frame.confidence[far & ~confirmed], np.float32(FAR_CONFIDENCE))
    assert not frame.depth_confidence[far].any()
    assert frame.confidence[~far & ~frame.observed_mask].mean() < FAR_CONFIDENCE


def test_estimated_depth_shows_no_long_range():
    layout = estimate_layout([window_view()])
    far = np.where(layout.depths > 3.9, np.float32(9), layout.depths)
    guessed = replace(window_view(), estimated=EVERYWHERE)
    assert layout.seen is not None

    class Conditioning:
        camera, world_from_camera = CAMERA, np.eye(4)[None]

        class renders:  # noqa: N801
            provenance = torch.zeros((1, *EVERYWHERE.shape), dtype=torch.uint8) + int(Provenance.UNKNOWN)

    nothing = np.zeros(EVERYWHERE.shape, np.float32)
    planes = PlaneRender(
        np.zeros((*nothing.shape, 3), np.float32), nothing, nothing, np.full(nothing.shape, -1, np.int16)
    )
    for view, found in ((window_view(), True), (guessed, False)):
        of_view = replace(layout, depths=far, seen=layout.seen._replace(observations=[view]))
        assert far_pixels(of_view, Conditioning(), 0, planes, ~EVERYWHERE).found.any() == found
