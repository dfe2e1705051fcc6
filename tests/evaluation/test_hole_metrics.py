"""Metrics of holes: what they say of sharp, blurred, gridded and inconsistent images."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.evaluation import hole_metrics
from worldstereo_ros.geometry.cameras import Camera

SIZE = (120, 160)
EVERYWHERE = np.ones(SIZE, bool)


@pytest.fixture(scope="module")
def texture():
    """Smoothed noise: a texture with detail at several scales."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.float32)
    fine, coarse = cv2.GaussianBlur(noise, (0, 0), 1.0), cv2.GaussianBlur(noise, (0, 0), 6.0)
    return np.clip(128 + 1.5 * (fine - 128) + 5 * (coarse - 128), 0, 255).astype(np.uint8)


def blurred(image, sigma):
    return cv2.GaussianBlur(image, (0, 0), sigma)


def patches(image, seed=0, mask=EVERYWHERE):
    return hole_metrics.hole_patches(image, mask, seed)


def test_detail_of_fog_is_less_and_of_a_constant_nothing(texture):
    energy = [float((hole_metrics.detail(image) ** 2).mean()) for image in (texture, blurred(texture, 3))]
    assert energy[1] < 0.1 * energy[0]
    np.testing.assert_allclose(hole_metrics.detail(np.full((*SIZE, 3), 90, np.uint8)), 0, atol=1e-6)


def test_holes_include_specks_of_missing_depth_but_nothing_that_was_seen():
    seen = np.zeros(SIZE, bool)
    seen[:, :60] = True
    seen[50, 100] = True  # a single pixel that was seen stays seen
    unseen = ~seen
    unseen[20:22, 120:123] = False  # no true depth
    area = hole_metrics.hole_area(unseen, seen)
    assert area[20:22, 120:123].all()
    assert not (area & seen).any()
    core = hole_metrics.inside(area, border=4)
    assert not core[:, :64].any()
    assert not core[46:55, 96:105].any()
    assert core[21, 121]
    assert core[0, 155]  # the border of the image is no border of the hole


@pytest.mark.parametrize("period", hole_metrics.GRID_PERIODS_PX)
def test_a_grid_is_found_where_there_is_one(texture, period):
    rows, columns = np.indices(SIZE)
    lines = ((rows % period == 0) | (columns % period == 0))[..., None]
    gridded = np.where(lines, np.clip(texture.astype(int) + 25, 0, 255), texture).astype(np.uint8)

    def share(image, mask=EVERYWHERE):
        amplitude, total = hole_metrics.grid_strength(image, mask)
        return amplitude / total

    assert share(gridded) > 3 * share(texture)
    ragged = np.random.default_rng(1).random(SIZE) < 0.9
    ragged[:, ::period] = False  # a mask with the period of the grid is no grid of the image
    assert share(texture, ragged) < 0.5 * share(gridded)


def test_patch_distance_ranks_sharp_before_fog_before_constant(texture):
    truth = patches(texture)
    assert hole_metrics.sliced_wasserstein(truth, truth) == 0
    other = np.ascontiguousarray(texture[::-1, ::-1])  # the same texture, elsewhere
    fog = [blurred(texture, sigma) for sigma in (1.5, 4)]
    grey = np.full_like(texture, 128)
    distances = [hole_metrics.sliced_wasserstein(patches(image), truth) for image in (other, *fog, grey)]
    assert distances == sorted(distances)
    assert distances[0] < 0.3 * distances[-1]


def test_patches_come_from_holes_alone(texture):
    mask = np.zeros(SIZE, bool)
    mask[30:90, 40:120] = True
    changed = texture.copy()
    changed[~mask] = 0
    # The pyramid sees a few pixels beyond the patch: compare the finest level in the middle.
    inner = hole_metrics.inside(mask, 8)
    np.testing.assert_array_equal(patches(changed, mask=inner)[0], patches(texture, mask=inner)[0])
    empty = patches(texture, mask=np.zeros(SIZE, bool))
    assert [len(level) for level in empty] == [0, 0, 0]
    assert hole_metrics.sliced_wasserstein(empty, empty) is None


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 3.0))
def test_kernel_distance_is_about_nothing_for_one_distribution(seed, scale):
    random = np.random.default_rng(seed)
    x, y = (random.normal(size=(400, 16)).astype(np.float32) for _ in range(2))
    shifted = y + scale
    same, other = hole_metrics.kernel_distance(x, y), hole_metrics.kernel_distance(x, shifted)
    assert abs(same) < 0.1
    assert other > 2 * abs(same)
    assert other == pytest.approx(hole_metrics.kernel_distance(shifted, x))


def test_kernel_distance_is_that_of_its_definition():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(70, 5)), random.normal(size=(80, 5)) + 0.3

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    def within(values):
        pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if i != j]
        return np.mean([kernel(values[i], values[j]) for i, j in pairs])

    expected = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert hole_metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert hole_metrics.kernel_distance(x[:10], y) is None


def test_warp_error_is_the_difference_on_common_surfaces(texture):
    camera = Camera.from_fov(SIZE[1], SIZE[0], np.radians(70))
    depth = np.full(SIZE, 2.0, np.float32)
    pose, neighbour = np.eye(4), np.eye(4)
    shift = 8
    neighbour[0, 3] = shift * 2.0 / camera.fx  # the wall moves by eight pixels to the left
    moved = np.roll(texture, -shift, axis=1)

    def error(image, hole=EVERYWHERE, neighbour_depth=depth):
        return hole_metrics.warp_error(texture, depth, hole, pose, image, neighbour_depth, neighbour, camera)

    assert error(moved) == 0
    assert error(np.clip(moved.astype(int) + 51, 0, 255).astype(np.uint8)) == pytest.approx(0.2, abs=0.02)
    assert error(texture) > 0.02  # the same picture from elsewhere does not agree
    assert error(moved, np.zeros(SIZE, bool)) is None
    assert error(moved, neighbour_depth=depth / 2) is None  # another surface is in front
