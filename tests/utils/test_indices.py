"""Evenly spaced indices."""

import pytest

from worldstereo_ros.utils.indices import evenly_spaced_indices


@pytest.mark.parametrize(
    ("count", "max_count", "expected"),
    [
        (0, 5, []),
        (1, 5, [0]),
        (3, 5, [0, 1, 2]),
        (10, 1, [0]),
        (10, 2, [0, 9]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
    ],
)
def test_indices_are_evenly_spaced_with_both_ends(count: int, max_count: int, expected: list[int]) -> None:
    assert evenly_spaced_indices(count, max_count) == expected
