"""Things continue beyond what was seen of them, but not where an observation looked past them."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.line_continuation import REACH_PX, continue_lines, seen_past

CAMERA = Camera.from_fov(160, 120, 1.2)
BAR, WALL = (220, 30, 30), (90, 90, 90)


def observation(camera: Camera = CAMERA) -> View:
    """A red bar two metres away, across the image, in front of a grey wall at four metres."""
    image = np.full((camera.height, camera.width, 3), WALL, np.uint8)
    depth = np.full((camera.height, camera.width), 4.0, np.float32)
    image[50:70], depth[50:70] = BAR, 2.0
    return View(image, camera, np.eye(4), depth=depth, observed=np.ones(depth.shape, bool))


def view_with_hole(hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The observed view with holes that show the wall, and its depth."""
    seen = observation()
    image = np.where(hole[..., None], np.uint8(90), seen.image)
    assert seen.depth is not None
    return image, seen.depth


def columns(start: int, stop: int) -> np.ndarray:
    hole = np.zeros((120, 160), bool)
    hole[:, start:stop] = True
    return hole


def test_a_bar_continues_beyond_the_side() -> None:
    """The observation ends where the hole begins: the bar continues for `REACH_PX` and fades."""
    hole = columns(120, 160)
    image, depth = view_with_hole(hole)
    narrow = replace(CAMERA, width=120)
    whole = observation()
    assert whole.depth is not None
    seen = View(
        whole.image[:, :120].copy(),
        narrow,
        np.eye(4),
        depth=whole.depth[:, :120].copy(),
        observed=np.ones((120, 120), bool),
    )
    planes = np.where(hole, np.float32(4), np.float32(0))
    continued = continue_lines(image, ~hole, depth, planes, [seen], CAMERA, np.eye(4))
    assert (np.abs(continued[54:66, 120:125].astype(int) - BAR) < 12).all()
    assert (continued[:40, 120:] == WALL).all()
    assert (continued[:, 120 + int(REACH_PX) + 1 :] == WALL).all()
    assert (continued[:, :120] == image[:, :120]).all()


def test_a_bar_ends_where_it_was_seen_to_end() -> None:
    """An observation saw the wall beside the bar's end, so that the hole there shows no bar."""
    hole = columns(120, 140)
    image, depth = view_with_hole(hole)
    ended = observation()
    assert ended.depth is not None
    past = ended.depth.copy()
    past[:, 118:] = 4.0
    planes = np.where(hole, np.float32(4), np.float32(0))
    seen = View(ended.image, CAMERA, np.eye(4), depth=past, observed=np.ones(past.shape, bool))
    continued = continue_lines(image, ~hole, depth, planes, [seen], CAMERA, np.eye(4))
    assert (np.abs(continued[55:65, 120:125].astype(int) - BAR).sum(axis=-1) > 150).all()
    assert (continued[:, 124:136] == WALL).all()


@pytest.mark.parametrize(("depth", "past"), [(1.0, True), (4.0, True), (4.5, False), (0.0, False)])
def test_seen_past(depth: float, past: bool) -> None:
    """Free space and surfaces that were seen cannot be something else; what lies behind them can."""
    seen = observation()
    assert seen.depth is not None
    asked = np.zeros((120, 160), np.float32)
    asked[10:40, 10:150] = depth
    result = seen_past(asked, [seen], CAMERA, np.eye(4))
    assert (result == (past & (asked > 0))).all()
    without_depth = View(seen.image, CAMERA, np.eye(4))
    assert not seen_past(asked, [without_depth], CAMERA, np.eye(4)).any()


def test_whole_and_empty_views_stay() -> None:
    image, depth = view_with_hole(columns(0, 160))
    for known in (np.ones((120, 160), bool), np.zeros((120, 160), bool)):
        assert continue_lines(image, known, depth, depth, [], CAMERA, np.eye(4)) is image
