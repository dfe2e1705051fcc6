"""Filling holes of many pictures, and bringing an imagined picture to the colours of a remembered one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.pipelines.filling import carried_over, smooth_fill


def test_a_fill_keeps_what_is_known_and_stays_between_its_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(3, 3, 24, 40, generator=generator)
    holes = (torch.rand(3, 24, 40, generator=generator) < 0.6).float()
    filled = smooth_fill(pictures, holes, torch.ones(3, 24, 40), torch.full((3,), 0.5))
    known = (holes == 0)[:, None].expand_as(pictures)
    assert torch.equal(filled[known], pictures[known])
    assert filled.min() >= -1e-5
    assert filled.max() <= 1 + 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.floats(-1, 1))
def test_one_colour_is_filled_with_itself(height: int, width: int, value: float) -> None:
    pictures = torch.full((1, 3, height, width), value)
    holes = torch.zeros(1, height, width)
    holes[:, : height // 2] = 1
    filled = smooth_fill(pictures, holes, torch.ones(1, height, width), torch.full((3,), value))
    assert torch.allclose(filled, pictures, atol=1e-4)


def test_between_near_and_far_the_far_goes_on() -> None:
    pictures, depth = torch.zeros(1, 3, 32, 48), torch.ones(1, 32, 48)
    pictures[..., 24:], depth[..., 24:] = 1.0, 8.0
    holes = torch.zeros(1, 32, 48)
    holes[..., 22:26] = 1
    filled = smooth_fill(pictures, holes, depth, torch.zeros(3))[..., 22:26].mean()
    blind = smooth_fill(pictures, holes, torch.ones(1, 32, 48), torch.zeros(3))[..., 22:26].mean()
    assert abs(float(blind) - 0.5) < 0.1
    assert filled > blind + 0.2


def test_nothing_known_gives_what_is_expected() -> None:
    prior = torch.tensor([0.2, -0.4, 0.7])
    filled = smooth_fill(torch.zeros(2, 3, 16, 16), torch.ones(2, 16, 16), torch.zeros(2, 16, 16), prior)
    assert torch.allclose(filled, prior.view(1, 3, 1, 1).expand_as(filled), atol=1e-5)


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
