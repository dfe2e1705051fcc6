"""Smooth fills: colours brought to those of what is remembered, depth where none is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth, match_colours
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import COVERED_SHARE, mix_with_memory
from worldstereo_ros.rendering.splatting import Rendering


@pytest.mark.parametrize("offset", [-30, 25])
def test_an_offset_to_what_is_known_is_carried_over(offset: int) -> None:
    truth = np.random.default_rng(0).integers(60, 190, (48, 64, 3)).astype(np.uint8)
    shown = np.zeros((48, 64), bool)
    shown[:, :32] = True
    matched = match_colours((truth.astype(int) + offset).astype(np.uint8), truth, shown)
    beside = np.abs(matched[:, 32:40] - truth[:, 32:40]).mean()
    assert beside < 0.3 * abs(offset)
    far = np.abs(matched[:, 60:] - truth[:, 60:]).mean()
    assert beside < far <= abs(offset) + 1


def test_nothing_known_changes_nothing() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    assert np.array_equal(match_colours(picture, np.zeros_like(picture), np.zeros((20, 30), bool)), picture)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(3, 90), st.integers(3, 90))
@settings(max_examples=60, deadline=None)
def test_filled_depth_is_neither_nearer_nor_farther_than_what_is_known(seed, known, height, width):
    """However little is known, and be it a pixel in a corner."""
    random = np.random.default_rng(seed)
    depth = np.zeros((height, width), np.float32)
    places = random.integers(height, size=known), random.integers(width, size=known)
    depth[places] = random.uniform(0.2, 80, known).astype(np.float32)
    filled = fill_depth(depth)
    shown = depth > 0
    np.testing.assert_array_equal(filled[shown], depth[shown])
    assert filled.min() >= depth[shown].min() * 0.999
    assert filled.max() <= depth[shown].max() * 1.001


def test_dots_of_imagined_points_do_not_show_in_a_small_models_picture() -> None:
    """Imagined from afar and seen from near, a surface is a grid of points with gaps; the model's picture covers it."""
    shape = (60, 160)
    dots, dense = np.zeros(shape, bool), np.zeros(shape, bool)
    dots[::6, 0:60:6] = dots[1::6, 0:60:6] = True
    dense[:, 100:] = True
    covered = torch.from_numpy(dots | dense)[None]
    observed = torch.zeros_like(covered)
    colour, depth = torch.zeros((1, *shape, 3), dtype=torch.uint8), covered.float()
    camera = Camera.from_fov(shape[1], shape[0], 1.2)
    white, black = np.full((*shape, 3), 255, np.uint8), np.zeros((*shape, 3), np.uint8)
    warped = WarpedView(white, dots | dense, np.ones(shape, np.float32), depth[0].numpy(), [], np.zeros(0))

    def mixed(observed: torch.Tensor) -> np.ndarray:
        renders = Rendering(colour, depth, covered, observed)
        seed = View(white, camera, np.eye(4))
        return mix_with_memory(
            black, warped, Conditioning(seed, renders, camera, np.eye(4)[None], [], np.array([-1])), 0
        )

    assert (mixed(observed)[:, :60] == 0).all()
    # Where they are dense, both count.
    assert mixed(observed)[10:50, 130:150].mean() == pytest.approx(255 * COVERED_SHARE, abs=1)
    assert mixed(covered)[:, :60].max() > 0  # what a sensor saw is shown, be it sparse
