"""Depth alignment by scale and shift, and depth completion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.depth.alignment import DepthError, align_depth, align_to_memory, complete_depth
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.io.datasets import open_sequence


def _scene(rng: np.random.Generator, shape=(40, 60)) -> np.ndarray:
    """(H, W) metres: a receding floor with boxes in front of it."""
    depth = np.linspace(8.0, 1.0, shape[0])[:, None] * np.ones(shape)
    for _ in range(4):
        y, x = rng.integers(0, shape[0] - 10), rng.integers(0, shape[1] - 15)
        depth[y : y + 10, x : x + 15] = rng.uniform(0.8, 5.0)
    return depth.astype(np.float32)


# --- alignment -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-0.05, 0.5),
    outliers=st.floats(0, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
def test_align_depth_finds_scale_and_shift_among_outliers(scale, shift, outliers, seed):
    rng = np.random.default_rng(seed)
    truth = _scene(rng)
    disparity = (1 / truth - shift) / scale
    reference = truth * rng.normal(1, 0.005, truth.shape).astype(np.float32)
    wrong = rng.random(truth.shape) < outliers
    reference[wrong] = rng.uniform(0.3, 12, int(wrong.sum()))
    reference[rng.random(truth.shape) < 0.5] = 0  # a sparse sensor
    found = align_depth(disparity, reference)
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert found.shift == pytest.approx(shift, abs=0.01)
    np.testing.assert_allclose(found.depth, truth, rtol=0.03)
    assert found.inlier_fraction > 0.95 - outliers
    assert found.references == int((reference > 0).sum())


def test_align_depth_corrects_the_scale_of_depth():
    truth = _scene(np.random.default_rng(1))
    found = align_depth(truth * 7.5, truth, kind="depth")
    assert found.scale == pytest.approx(7.5, rel=1e-4)
    assert found.shift == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.depth, truth, rtol=1e-4)


def test_align_depth_of_a_flat_wall_estimates_the_scale_only():
    predicted = np.full((20, 30), 4.0, np.float32)
    found = align_depth(predicted, np.full((20, 30), 2.0, np.float32), kind="depth")
    assert (found.scale, found.shift) == (pytest.approx(2.0), 0.0)
    np.testing.assert_allclose(found.depth, 2.0)


def test_align_depth_keeps_unknown_pixels_and_rejects_negative_disparity():
    truth = _scene(np.random.default_rng(2))
    predicted = truth.copy()
    predicted[:5] = 0
    predicted[5, 5] = np.nan
    depth = align_depth(predicted, truth, kind="depth").depth
    assert (depth[:5] == 0).all()
    assert depth[5, 5] == 0
    # A negative shift makes the smallest disparities negative: those pixels are unknown.
    disparity = 1 / truth + 0.2
    disparity[0, 0] = 0.1
    assert align_depth(disparity, truth).depth[0, 0] == 0


def test_align_depth_is_deterministic():
    rng = np.random.default_rng(3)
    truth = _scene(rng)
    noisy = truth * rng.normal(1, 0.05, truth.shape).astype(np.float32)
    a, b = align_depth(1 / truth, noisy), align_depth(1 / truth, noisy)
    assert (a.scale, a.shift) == (b.scale, b.shift)


def test_align_depth_rejects_too_few_or_contradicting_references():
    truth = _scene(np.random.default_rng(4))
    few = np.zeros_like(truth)
    few[:3, :10] = 1
    with pytest.raises(DepthError, match="Only 30 pixels have both"):
        align_depth(1 / truth, few)
    noise = np.random.default_rng(5).uniform(0.2, 40, truth.shape)
    with pytest.raises(DepthError, match=r"Only \d+% of 2400 references agree"):
        align_depth(1 / truth, noise, tolerance=0.02)
    with pytest.raises(DepthError, match="agree"):
        align_depth(truth, truth)  # depth passed as disparity: near and far are swapped
    with pytest.raises(DepthError, match="equal shapes were expected"):
        align_depth(truth, truth[1:])
    with pytest.raises(DepthError, match="kind 'inverse'"):
        align_depth(truth, truth, kind="inverse")


def test_align_to_memory_corrects_the_scale_of_an_estimate():
    truth = _scene(np.random.default_rng(6))
    known = truth.copy()
    known[:, 20:] = 0
    np.testing.assert_allclose(align_to_memory(truth * 3, known), truth, rtol=1e-3)
    # Without known depth the estimate is unchanged.
    np.testing.assert_array_equal(align_to_memory(truth * 3, np.zeros_like(truth)), truth * 3)


def test_align_depth_recovers_the_scale_of_recorded_depth(shared_data):
    view = open_sequence(shared_data / "rgbd_hololens_office_a")[20]
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        relative = np.where(view.depth > 0, (1 / view.depth - 0.07) / 3.3, 0)
    relative *= rng.normal(1, 0.01, relative.shape)
    sparse = np.where(rng.random(view.depth.shape) < 0.01, view.depth, 0)
    wrong = (sparse > 0) & (rng.random(sparse.shape) < 0.2)
    sparse[wrong] = rng.uniform(0.5, 8, int(wrong.sum()))
    found = align_depth(np.where(view.depth > 0, relative, np.nan), sparse)
    known = view.depth > 0
    assert np.median(np.abs(found.depth[known] / view.depth[known] - 1)) < 0.02


# --- completion ------------------------------------------------------------------------------------------------------


def test_complete_depth_extrapolates_with_the_estimated_shape():
    rng = np.random.default_rng(2)
    truth = _scene(rng, (60, 80))
    known = truth.copy()
    known[:, 50:] = 0
    out = complete_depth(known, truth * 1.7)
    np.testing.assert_array_equal(out[:, :50], truth[:, :50])
    np.testing.assert_allclose(out[:, 50:], truth[:, 50:], rtol=1e-3)
    smooth = np.abs(fill_depth(known)[:, 50:] / truth[:, 50:] - 1).mean()
    assert np.abs(out[:, 50:] / truth[:, 50:] - 1).mean() < 0.1 * smooth

    # A scale that drifts over the image leaves no step at the border of known depth.
    drift = np.exp(np.linspace(-0.5, 0.5, 80))[None, :]
    flat = np.full((60, 80), 3.0, np.float32)
    known = np.where(np.arange(80)[None, :] < 50, flat, 0)
    out = complete_depth(known, (flat * drift).astype(np.float32))
    assert np.abs(np.log(out[:, 50] / 3)).max() < 0.08


def test_complete_depth_falls_back_to_smooth_filling():
    known = np.zeros((40, 50), np.float32)
    known[:10, :10] = 2.0  # too few known pixels
    estimate = np.full((40, 50), 5.0, np.float32)
    np.testing.assert_array_equal(complete_depth(known, estimate), fill_depth(known))
    known[:20] = 2.0
    sky = estimate.copy()
    sky[:, 25:] = 0
    out = complete_depth(known, sky)
    np.testing.assert_allclose(out[:, 25:], fill_depth(known)[:, 25:])
    np.testing.assert_allclose(out[:, :20], 2.0, rtol=0.02)
    with pytest.raises(DepthError, match="equal shapes were expected"):
        complete_depth(known, estimate[:-1])
