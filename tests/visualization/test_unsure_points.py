"""Imagined points that pictures leave out: unsure distances, and what stands alone in the air."""

import numpy as np
import pytest

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.visualization.unsure_points import unsure_points


def _plane(centre, size, step=0.02):
    """Points of a horizontal square."""
    ticks = np.arange(-size / 2, size / 2, step)
    x, y = np.meshgrid(ticks, ticks)
    return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1).astype(np.float32) + np.float32(centre)


FLOOR = _plane((0, 0, 0), 2)  # observed
BESIDE = _plane((2, 0, 0), 2)  # imagined, continues where the floor ends
WALL = _plane((9, 0, 0), 2)  # imagined, large, touches nothing
BIT = _plane((0, 0, 2), 0.1)  # imagined, in the air
SPRAY = np.random.default_rng(0).uniform((-3, -3, 0.5), (3, 3, 3), (60, 3)).astype(np.float32)
THREAD = np.stack([np.full(100, 1.5), np.zeros(100), np.linspace(0.3, 2.3, 100)], axis=1).astype(np.float32)
PARTS = {"floor": FLOOR, "beside": BESIDE, "wall": WALL, "bit": BIT, "spray": SPRAY, "thread": THREAD}


def shares(provenance=lambda part: 3 if part == "floor" else 1, confidence=None, scale=1.0) -> dict[str, float]:
    """Share of the points of each part that are unsure."""
    points = np.concatenate(list(PARTS.values())) * np.float32(scale)
    classes = np.concatenate([np.full(len(part), provenance(name), np.uint8) for name, part in PARTS.items()])
    given = None
    if confidence is not None:
        given = np.concatenate([np.full(len(part), confidence(name), np.float32) for name, part in PARTS.items()])
    unsure = unsure_points(points, classes, given)
    ends = np.cumsum([len(part) for part in PARTS.values()])[:-1]
    return {name: float(part.mean()) for name, part in zip(PARTS, np.split(unsure, ends), strict=True)}


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_bits_in_the_air_are_unsure_and_surfaces_are_not(scale):
    found = shares(scale=scale)
    assert found["floor"] == 0
    assert found["beside"] < 0.01
    assert found["wall"] < 0.01
    assert found["bit"] == 1
    assert found["spray"] > 0.85  # some of it lies on the floor
    assert found["thread"] > 0.85


@pytest.mark.parametrize("kind", [Provenance.OBSERVED, Provenance.ESTIMATED, Provenance.UNKNOWN])
def test_what_is_not_imagined_is_never_left_out(kind):
    assert set(shares(lambda _: kind, lambda _: 0.1).values()) == {0.0}


def test_distances_more_likely_wrong_than_right_are_unsure():
    found = shares(confidence=lambda part: {"floor": 1, "beside": 0.49, "wall": 0.51}.get(part, 0.9))
    assert found["floor"] == 0
    assert found["beside"] == 1
    assert found["wall"] < 0.01


def test_missing_confidences_hide_nothing():
    assert shares(confidence=lambda part: float(part == "floor")) == shares()


def test_a_cloud_of_nothing_else_is_shown():
    for points in (BIT, BIT[:1], np.zeros((0, 3), np.float32)):
        assert not unsure_points(points, np.ones(len(points), np.uint8), np.full(len(points), 0.1, np.float32)).any()
