"""Patterns that repeat in both directions: found, folded, and continued in phase."""

import numpy as np
import pytest
from helpers.box_room import observe, room, turned

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.layout import estimate_layout

SHARP = Camera.from_fov(320, 240, np.radians(75))
CHECKS = np.array([[30, 70, 40], [220, 215, 200]])


def checks(pose: np.ndarray, depth: np.ndarray, size: float, angle: float = 0.0) -> np.ndarray:
    """(H, W) 0 or 1: squares on the floor."""
    points = unproject(depth, SHARP, pose).reshape(*depth.shape, 3)
    x = np.cos(angle) * points[..., 0] + np.sin(angle) * points[..., 2]
    z = np.cos(angle) * points[..., 2] - np.sin(angle) * points[..., 0]
    return (np.floor(x / size + 0.3) + np.floor(z / size + 0.1)).astype(int) % 2


def checked_view(pose: np.ndarray, size: float, *, angle: float = 0.0, rug: bool = False) -> View:
    view = observe(pose, camera=SHARP)
    depth, wall = room(pose, SHARP)
    image = view.image.copy()
    floor = wall == 3
    image[floor] = CHECKS[checks(pose, depth, size, angle)][floor]
    if rug:
        points = unproject(depth, SHARP, pose).reshape(*depth.shape, 3)
        on_rug = floor & (np.abs(points[..., 0]) < 0.5) & (np.abs(points[..., 2] - 1.6) < 0.3)
        image[on_rug] = (180, 20, 30)
    return View(image, SHARP, pose, view.depth)


def correlation(size: float, angle: float = 0.0, *, rug: bool = False) -> float:
    """Between the floor that no view saw and what is drawn there."""
    layout = estimate_layout([checked_view(turned(0, tilt=25), size, angle=angle, rug=rug)])
    there = turned(40, tilt=25)
    truth, wall = room(there, SHARP)
    planes = layout.render_view(SHARP, there)
    drawn = layout.render_surfaces(planes, SHARP, there).mean(axis=-1)
    unseen = (wall == 3) & (np.abs(planes.depth - truth) < 0.03 * truth) & (truth < 2.5)
    unseen[:, :240] = False
    assert unseen.sum() > 500
    return float(np.corrcoef(checks(there, truth, size, angle)[unseen], drawn[unseen])[0, 1])


@pytest.mark.parametrize("size", [0.2, 0.31])
def test_checks_of_high_contrast_continue_in_phase(size):
    assert correlation(size) > 0.8


def test_what_lies_on_a_pattern_is_not_part_of_it():
    assert correlation(0.25, rug=True) > 0.7


def test_a_picture_on_a_plain_floor_is_no_pattern():
    pose = turned(0, tilt=25)
    view = observe(pose, camera=SHARP)
    depth, wall = room(pose, SHARP)
    points = unproject(depth, SHARP, pose).reshape(*depth.shape, 3)
    picture = (wall == 3) & (np.abs(points[..., 0]) < 0.4) & (np.abs(points[..., 2] - 1.6) < 0.3)
    image = view.image.copy()
    random = np.random.default_rng(0)
    image[picture] = random.integers(0, 255, (int(picture.sum()), 3))
    layout = estimate_layout([View(image, SHARP, pose, view.depth)])
    there = turned(40, tilt=25)
    planes = layout.render_view(SHARP, there)
    plain = layout.render_surfaces(planes, SHARP, there, details=False)
    detailed = layout.render_surfaces(planes, SHARP, there)
    floor = (room(there, SHARP)[1] == 3) & (planes.plane >= 0)
    assert np.abs(detailed - plain)[floor].mean() < 5
