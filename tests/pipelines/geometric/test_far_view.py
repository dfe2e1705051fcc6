"""What lies behind everything that was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.box_room import CAMERA, observe, room, turned

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.far_view import far_colours, far_pixels
from worldstereo_ros.pipelines.geometric.layout import PlaneRender
from worldstereo_ros.world import WorldModel

EVERYWHERE = np.ones((CAMERA.height, CAMERA.width), bool)


def sky_colour(rays: np.ndarray) -> np.ndarray:
    """(..., 3) colours that depend on the direction (..., 3) alone."""
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return (128 + 100 * unit).astype(np.uint8)


def window_view(degrees: float = 0.0, x: float = 0.0) -> View:
    """A view of the box with a window in its far wall, through which the sky shows."""
    pose = turned(degrees)
    pose[0, 3] = x
    view = observe(pose)
    assert view.depth is not None
    rays = CAMERA.rays() @ pose[:3, :3].T
    points = rays * view.depth[..., None] + pose[:3, 3]
    window = (room(pose)[1] == 5) & (np.abs(points[..., 0]) < 1.2) & (np.abs(points[..., 1] + 0.2) < 0.7)
    image = np.where(window[..., None], sky_colour(rays), view.image)
    return replace(view, image=image, depth=np.where(window, np.float32(0), view.depth))


def test_what_is_far_is_seen_in_the_same_direction_from_elsewhere():
    there = turned(12)
    there[:3, 3] = 0.8, 0.1, 1.0
    image, found = far_colours([window_view()], CAMERA, there, EVERYWHERE)
    assert found.sum() > 1000
    truth = sky_colour(CAMERA.rays() @ there[:3, :3].T)
    assert np.abs(image[found].astype(int) - truth[found]).max() <= 4
    assert not image[~found].any()


def test_the_nearest_observation_decides_and_others_complete_it():
    one, other = window_view(), window_view(-20, x=-1.0)
    red = replace(one, image=np.where((one.depth == 0)[..., None], np.uint8((250, 0, 0)), one.image).astype(np.uint8))
    image, found = far_colours([other, red], CAMERA, np.eye(4), EVERYWHERE)
    alone, found_alone = far_colours([red], CAMERA, np.eye(4), EVERYWHERE)
    np.testing.assert_array_equal(image[found_alone], alone[found_alone])
    assert (image[found_alone] == (250, 0, 0)).all()
    assert found.sum() > found_alone.sum()


def test_only_wanted_pixels_of_views_with_something_far():
    mask = EVERYWHERE.copy()
    mask[:, 80:] = False
    assert not far_colours([window_view()], CAMERA, np.eye(4), mask)[1][:, 80:].any()
    assert not far_colours([observe(turned(0))], CAMERA, np.eye(4), EVERYWHERE)[1].any()
    assert not far_colours([], CAMERA, np.eye(4), EVERYWHERE)[1].any()
    assert not far_colours([window_view()], CAMERA, turned(180), EVERYWHERE)[1].any()


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
    _, found = far_pixels([window_view()], Conditioning(), 0, planes, seen)
    assert found.any() == (hidden_by == "")


def test_the_small_model_shows_the_sky_behind_a_window_from_another_place():
    """With an unknown depth: nothing of it becomes a point of the cloud."""
    world = WorldModel(load_pipeline("small"), depth_estimator=None)
    for view in (window_view(), window_view(10)):
        world.observe(view)
    there = turned(5)
    there[:3, 3] = 0.3, 0.0, 0.8
    frame = next(iter(world.imagine(there[None], CAMERA)))
    _, found = far_colours([window_view(), window_view(10)], CAMERA, there, EVERYWHERE)
    truth = sky_colour(CAMERA.rays() @ there[:3, :3].T)
    core = found.copy()
    core[:, 1:] &= found[:, :-1]
    shown = core & (frame.depth == 0)
    assert shown.sum() > 500
    assert np.abs(frame.image[shown].astype(int) - truth[shown]).mean() < 6
    assert not frame.observed_mask[shown].any()
