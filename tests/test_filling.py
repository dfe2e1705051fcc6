"""Smooth fills: colours brought to those of what is remembered, depth where none is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.pipelines.filling import carried_over, fill_depth


@pytest.mark.parametrize("offset", [-30, 25])
def test_an_offset_to_what_is_known_is_carried_over(offset: int) -> None:
    truth = np.random.default_rng(0).integers(60, 190, (48, 64, 3)).astype(np.uint8)
    shown = np.zeros((48, 64), bool)
    shown[:, :32] = True
    matched = carried_over((truth.astype(int) + offset).astype(np.uint8), truth, shown)
    beside = np.abs(matched[:, 32:40] - truth[:, 32:40]).mean()
    assert beside < 0.3 * abs(offset)
    far = np.abs(matched[:, 60:] - truth[:, 60:]).mean()
    assert beside < far <= abs(offset) + 1


def test_nothing_known_changes_nothing() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    assert np.array_equal(carried_over(picture, np.zeros_like(picture), np.zeros((20, 30), bool)), picture)


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
