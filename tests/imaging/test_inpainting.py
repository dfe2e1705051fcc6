"""Inpainting: colour matching and depth filling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.imaging.inpainting import fill_depth, match_colours


@pytest.mark.parametrize("offset", [-30, 25])
def test_match_colours_removes_an_offset_near_the_reference(offset: int) -> None:
    truth = np.random.default_rng(0).integers(60, 190, (48, 64, 3)).astype(np.uint8)
    mask = np.zeros((48, 64), bool)
    mask[:, :32] = True
    matched = match_colours((truth.astype(int) + offset).astype(np.uint8), truth, mask)
    beside = np.abs(matched[:, 32:40] - truth[:, 32:40]).mean()
    assert beside < 0.3 * abs(offset)
    far = np.abs(matched[:, 60:] - truth[:, 60:]).mean()
    assert beside < far <= abs(offset) + 1


def test_match_colours_without_reference_returns_the_image() -> None:
    image = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    assert np.array_equal(match_colours(image, np.zeros_like(image), np.zeros((20, 30), bool)), image)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(3, 90), st.integers(3, 90))
@settings(max_examples=60, deadline=None)
def test_fill_depth_stays_within_the_range_of_known_depth(seed, known, height, width):
    random = np.random.default_rng(seed)
    depth = np.zeros((height, width), np.float32)
    places = random.integers(height, size=known), random.integers(width, size=known)
    depth[places] = random.uniform(0.2, 80, known).astype(np.float32)
    filled = fill_depth(depth)
    mask = depth > 0
    np.testing.assert_array_equal(filled[mask], depth[mask])
    assert filled.min() >= depth[mask].min() * 0.999
    assert filled.max() <= depth[mask].max() * 1.001
