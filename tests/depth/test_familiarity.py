"""Falling back to a typical depth in unfamiliar images, and the confidence of depth."""

import math

import numpy as np
import pytest

from worldstereo_ros.depth.estimators import SmallDepth, estimate_depth
from worldstereo_ros.depth.familiarity import (
    FUSED_VARIANCE,
    NUM_STATISTICS,
    ROOM_SPREAD,
    UNFAMILIAR_WEIGHT,
    Familiarity,
    fuse_with_typical,
    image_statistics,
    laplace_confidence,
)
from worldstereo_ros.evaluation.depth import depth_errors, means
from worldstereo_ros.evaluation.depth_baselines import CONSTANT_M, ConstantDepth
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small() -> SmallDepth:
    return SmallDepth()


def _smooth_image(seed: int) -> np.ndarray:
    """A wall whose brightness and colour change slowly, with some grain."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 64)[None, :, None] * random.uniform(-25, 25, 3)
    wall = 120 + random.normal(0, 10, 3) + ramp + random.normal(0, random.uniform(2, 6), (48, 64, 3))
    return np.clip(wall, 0, 255).astype(np.uint8)


# --- familiarity ---


def test_familiarity_is_high_for_images_like_those_of_training_and_zero_for_others():
    familiarity = Familiarity.fit(_smooth_image(seed) for seed in range(60))
    values = [familiarity(_smooth_image(seed)) for seed in range(60)]
    assert np.mean(np.array(values) == 1) == pytest.approx(0.5, abs=0.02)
    assert np.mean(np.array(values) == 0) == pytest.approx(0.1, abs=0.02)
    assert np.mean([familiarity.distance(_smooth_image(seed)) for seed in range(60)]) == pytest.approx(1, rel=0.05)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert familiarity(noise) == familiarity(np.zeros((48, 64, 3), np.uint8)) == 0


def test_image_statistics_measure_contrast_and_colour():
    flat = np.full((48, 64, 3), 100, np.uint8)
    stripes = flat.copy()
    stripes[:, ::2] += 60
    plain, striped = image_statistics(flat), image_statistics(stripes)
    assert plain.shape == (NUM_STATISTICS,)
    assert striped[0] > plain[0] + 2  # the finest scale
    red = flat.copy()
    red[..., 0] = 200
    assert image_statistics(red)[-4] == pytest.approx(100 / 255, abs=1e-6)


def test_familiarity_survives_its_configuration():
    familiarity = Familiarity.fit(_smooth_image(seed) for seed in range(10))
    assert Familiarity.from_config(familiarity.to_config()) == familiarity
    for changes in ({"mean": [0.0]}, {"std": [0.0] * NUM_STATISTICS}, {"typical": None}, {"unusual": -1.0}):
        with pytest.raises(ValueError, match="statistics of the training images"):
            Familiarity.from_config({**familiarity.to_config(), **changes})


# --- fusion ---


def test_familiar_images_keep_the_depth_of_the_network():
    log_depth = np.log(np.array([0.5, 2.0, 8.0]))
    fused, confidence = fuse_with_typical(log_depth, np.full(3, 0.2), 1.0, 2.35)
    np.testing.assert_allclose(fused, log_depth, atol=1e-12)
    np.testing.assert_allclose(confidence, 1 - DEPTH_TOLERANCE ** (-1 / 0.2))


def test_unfamiliar_images_fall_back_on_the_far_side_only():
    log_depth = np.log(np.array([0.5, 2.35, 8.0]))
    fused, _ = fuse_with_typical(log_depth, np.full(3, 0.2), 0.0, 2.35)
    moved = fused + FUSED_VARIANCE - math.log(2.35)
    np.testing.assert_allclose(moved, [math.log(0.5 / 2.35), 0, UNFAMILIAR_WEIGHT * math.log(8 / 2.35)], atol=1e-12)
    assert (fused < log_depth).all()
    half, _ = fuse_with_typical(log_depth, np.full(3, 0.2), 0.5, 2.35)
    assert ((half > fused) & (half < log_depth)).all()


def test_confidence_is_the_probability_of_the_mixture():
    random = np.random.default_rng(3)
    log_depth, scale, familiarity = math.log(5.0), 0.3, 0.25
    fused, confidence = fuse_with_typical(np.array([log_depth]), np.array([scale]), familiarity, 2.35)
    weight = familiarity + (1 - familiarity) * UNFAMILIAR_WEIGHT
    from_network = random.random(400_000) < weight
    truth = np.where(
        from_network,
        random.laplace(log_depth, scale, 400_000),
        random.laplace(math.log(2.35), ROOM_SPREAD / math.sqrt(2), 400_000),
    )
    share = np.mean(np.abs(truth - fused[0]) <= math.log(DEPTH_TOLERANCE))
    assert confidence[0] == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("offset", [0.0, 0.1, -0.2, 0.5, -3.0])
def test_laplace_confidence_agrees_with_samples(offset):
    samples = np.random.default_rng(0).laplace(0, 0.3, 400_000)
    share = np.mean(np.abs(samples - offset) <= math.log(DEPTH_TOLERANCE))
    assert float(laplace_confidence(np.float64(0.3), offset)) == pytest.approx(share, abs=0.004)


# --- the bundled network ---


@pytest.mark.parametrize("focal", [100.0, 2000.0])
def test_noise_gives_a_safe_depth_with_low_confidence(small, focal):
    """The network's own depth grows with the focal length without bound; what is estimated stays typical, or nearer."""
    camera = Camera(160, 120, focal, focal, 79.5, 59.5)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    assert small.familiarity(noise) == 0
    found = estimate_depth(small, noise, camera)
    alone = small.predict(noise, camera).depth
    shown = found.depth > 0
    assert shown.any()
    ratio, of_network = np.log(found.depth[shown] / CONSTANT_M), np.log(alone[shown] / CONSTANT_M)
    assert (ratio <= UNFAMILIAR_WEIGHT * np.maximum(of_network, 0) + 1e-5).all()
    assert (found.depth[shown] <= alone[shown]).all()
    assert found.confidence[shown].mean() < 0.5


def test_views_of_worlds_are_almost_unchanged_and_calibrated(small):
    sequences = [world_sequence("validation", number) for number in range(4)]
    views = [sequence[index] for sequence in sequences for index in (0, 20)]
    assert np.median([small.familiarity(view.image) for view in views]) > 0.7
    ratios = []
    for view in views:
        alone, fused = small.predict(view.image, view.camera).depth, small(view.image, view.camera)
        ratios.append(np.abs(np.log(fused[fused > 0] / alone[fused > 0])))
    assert np.mean(np.concatenate(ratios)) < 0.1
    rows = depth_errors([sequence.subset((0, 20)) for sequence in sequences], {"small": small})
    mean = next(row for row in means(rows) if row.estimator == "small")
    assert mean.confidence == pytest.approx(mean.delta_1_25, abs=0.15)
    assert mean.calibration_error < 0.15


@pytest.mark.parametrize(
    ("name", "most"),
    [("rgbd_hololens_office_a", math.inf), ("rgbd_tum_fr3_cabinet", 0.26), ("stereo_motorcycle", math.inf)],
)
def test_depth_of_real_sequences_is_no_worse_than_a_constant(shared_data, small, name, most):
    rows = depth_errors([shared_data / name], {"small": small}, every=8)
    found = {row.estimator: row for row in rows}
    assert found["small"].abs_rel <= min(1.02 * found["constant"].abs_rel, most)
    assert 0.2 < found["small"].confidence < 0.7
    assert found["constant"].confidence is None


def test_typical_depth_of_the_bundled_network_is_that_of_the_baseline(small):
    assert small.load().config.typical_depth == CONSTANT_M
    assert estimate_depth(ConstantDepth(), np.zeros((4, 6, 3), np.uint8), Camera.from_fov(6, 4, 1.0)).confidence is None
