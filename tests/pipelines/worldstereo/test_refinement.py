"""What is drawn into the holes of the small model: gaps, memory's detail, and what was imagined before."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.pipelines.worldstereo.refinement import (
    add_memory_detail,
    close_gaps,
    continue_surroundings,
    known_pixels,
)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_closing_gaps_takes_nothing_away(seed, share):
    known = np.random.default_rng(seed).random((60, 80)) < share
    assert close_gaps(known)[known].all()


def test_scallops_and_slits_are_closed_and_holes_are_not():
    known = np.zeros((120, 160), bool)
    known[:60] = True
    known[57:60, ::4] = False  # scallops
    known[20:22, 40:100] = False  # a slit
    known[30:50, 10:40] = False  # a hole
    closed = close_gaps(known)
    assert closed[57:59, 20:140].all()
    assert closed[20:22, 50:90].all()
    assert not closed[35:45, 15:35].any()
    assert not closed[65:].any()


def test_memory_gives_its_detail_and_not_its_light():
    random = np.random.default_rng(0)
    pattern = 20 * np.where((np.arange(80) // 2) % 2, 1, -1)
    image = np.full((60, 80, 3), 100, np.uint8)
    memory = np.clip(160 + pattern[None, :, None] + random.normal(0, 1, (60, 80, 3)), 0, 255).astype(np.uint8)
    shown = np.zeros((60, 80), bool)
    shown[:, :40] = True
    result = add_memory_detail(image, memory, shown)
    np.testing.assert_array_equal(result[:, 40:], image[:, 40:])
    inner = result[5:-5, 5:35].astype(float)
    assert abs(inner.mean() - 100) < 3
    assert inner.mean(axis=-1).std() > 8


def test_what_was_imagined_before_is_not_known():
    """A pixel without a point counts as the nearest with one: a window in an observed wall stays."""
    provenance = np.full((40, 60), Provenance.OBSERVED, np.uint8)
    provenance[:, 30:] = Provenance.IMAGINED
    provenance[10:20, 8:16] = Provenance.UNKNOWN
    provenance[10:20, 40:50] = Provenance.UNKNOWN
    conditioning = SimpleNamespace(renders=SimpleNamespace(provenance=torch.from_numpy(provenance)[None]))
    warped = SimpleNamespace(valid_mask=np.ones((40, 60), bool))
    known = known_pixels(np.zeros((40, 60), bool), warped, conditioning, 0)
    assert known[:, :30].all()
    assert not known[:, 30:].any()


def test_surroundings_give_their_light_and_holes_keep_their_detail():
    detail = 12 * np.where((np.arange(320) // 2) % 2, 1, -1)
    image = np.full((240, 320, 3), 180, np.uint8)
    known = np.ones((240, 320), bool)
    known[100:140, 140:180] = False
    image[~known] = np.clip(100 + detail[None, :, None] + np.zeros((240, 320, 3)), 0, 255)[~known]
    result = continue_surroundings(image, known)
    np.testing.assert_array_equal(result[known], image[known])
    inside = np.s_[105:135, 145:175]
    assert 125 < result[inside].mean() < 145
    assert result[inside].std() == pytest.approx(image[inside].std(), rel=0.3)


def test_surroundings_fade_away_from_them_and_in_views_that_are_mostly_hole():
    image = np.full((240, 320, 3), 100, np.uint8)
    gained = {}
    for width in (80, 280):
        known = np.ones((240, 320), bool)
        known[:, :width] = False
        bright = np.where(known[..., None], np.uint8(180), image)
        result = continue_surroundings(bright, known).astype(int)
        gained[width] = result[120, width - 6, 0] - 100
        assert result[120, width - 6, 0] > result[120, width // 2, 0] >= result[120, 2, 0] >= 100
    assert gained[80] > 4 * gained[280] >= 0


@pytest.mark.parametrize("known", [True, False])
def test_without_a_hole_or_surroundings_nothing_changes(known):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(continue_surroundings(image, np.full((48, 64), known)), image)
