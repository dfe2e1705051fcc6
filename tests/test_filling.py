"""Bringing an imagined picture to the colours of a remembered one."""

import numpy as np
import pytest

from worldstereo_ros.pipelines.filling import carried_over


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
