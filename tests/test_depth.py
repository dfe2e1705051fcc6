"""Depth from models, and its scale from what is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.camera import Camera
from worldstereo_ros.datasets import open_sequence
from worldstereo_ros.depth import ASSUMED_FAR, ASSUMED_NEAR, DepthError, HubDepth, align_depth, align_to_known

CAMERA = Camera.from_fov(70, 56, 1.0)


def _scene(rng: np.random.Generator, shape=(40, 60)) -> np.ndarray:
    """(H, W) metres: a floor that runs away and boxes before it."""
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
def test_scale_and_shift_are_found_among_outliers(scale, shift, outliers, seed):
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


def test_depth_in_a_wrong_scale_is_brought_to_the_reference():
    truth = _scene(np.random.default_rng(1))
    found = align_depth(truth * 7.5, truth, kind="depth")
    assert found.scale == pytest.approx(7.5, rel=1e-4)
    assert found.shift == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.depth, truth, rtol=1e-4)


def test_a_flat_wall_tells_the_scale_alone():
    predicted = np.full((20, 30), 4.0, np.float32)
    found = align_depth(predicted, np.full((20, 30), 2.0, np.float32), kind="depth")
    assert (found.scale, found.shift) == (pytest.approx(2.0), 0.0)
    np.testing.assert_allclose(found.depth, 2.0)


def test_unknown_pixels_stay_unknown_and_the_far_side_of_infinity_too():
    truth = _scene(np.random.default_rng(2))
    predicted = truth.copy()
    predicted[:5] = 0
    predicted[5, 5] = np.nan
    depth = align_depth(predicted, truth, kind="depth").depth
    assert (depth[:5] == 0).all()
    assert depth[5, 5] == 0
    # A shift below zero puts the farthest disparities behind infinity: those pixels are unknown, not negative.
    disparity = 1 / truth + 0.2
    disparity[0, 0] = 0.1
    assert align_depth(disparity, truth).depth[0, 0] == 0


def test_equal_inputs_give_equal_results():
    rng = np.random.default_rng(3)
    truth = _scene(rng)
    noisy = truth * rng.normal(1, 0.05, truth.shape).astype(np.float32)
    a, b = align_depth(1 / truth, noisy), align_depth(1 / truth, noisy)
    assert (a.scale, a.shift) == (b.scale, b.shift)


def test_what_cannot_be_aligned_is_said():
    truth = _scene(np.random.default_rng(4))
    few = np.zeros_like(truth)
    few[:3, :10] = 1
    with pytest.raises(DepthError, match="Only 30 pixels have both"):
        align_depth(1 / truth, few)
    noise = np.random.default_rng(5).uniform(0.2, 40, truth.shape)
    with pytest.raises(DepthError, match=r"Only \d+% of 2400 references agree"):
        align_depth(1 / truth, noise, tolerance=0.02)
    with pytest.raises(DepthError, match="agree"):
        align_depth(truth, truth)  # depth given as disparity: near and far are turned around
    with pytest.raises(DepthError, match="equal is needed"):
        align_depth(truth, truth[1:])
    with pytest.raises(DepthError, match="kind 'inverse'"):
        align_depth(truth, truth, kind="inverse")


def test_what_memory_knows_corrects_an_estimate():
    truth = _scene(np.random.default_rng(6))
    known = truth.copy()
    known[:, 20:] = 0
    np.testing.assert_allclose(align_to_known(truth * 3, known), truth, rtol=1e-3)
    # Too little known, or none of it agreeing, leaves the estimate as it was.
    np.testing.assert_array_equal(align_to_known(truth * 3, np.zeros_like(truth)), truth * 3)


def test_real_depth_in_a_hidden_scale_is_recovered(shared_data):
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


# --- hub models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny random models in the published format: relative and metric Depth Anything, and GLPN."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=56,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    processor = transformers.DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14)
    for kind in ("relative", "metric"):
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
        )  # fmt: skip
        transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    return folder


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)


def _raw(folder, picture):
    """What the network says, without the pipeline."""
    import torch
    import transformers
    from PIL import Image

    network = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = network(**processor(images=Image.fromarray(picture), return_tensors="pt")).predicted_depth
        out = torch.nn.functional.interpolate(out[None], size=picture.shape[:2], mode="bicubic", align_corners=False)
    return out[0, 0].numpy()


def test_a_metric_model_gives_metres(checkpoints, picture):
    model = HubDepth(checkpoints / "metric")
    assert model.output == "metric"
    depth = model(picture, CAMERA)
    assert depth.shape == picture.shape[:2]
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, _raw(checkpoints / "metric", picture), rtol=1e-3, atol=1e-3)


def test_a_relative_model_is_turned_from_disparity_to_depth(checkpoints, picture):
    model = HubDepth(str(checkpoints / "relative"), "cpu")
    assert model.output == "disparity"
    disparity, depth = model.predict(picture), model(picture, CAMERA)
    np.testing.assert_allclose(disparity, _raw(checkpoints / "relative", picture), rtol=1e-3, atol=1e-4)
    # The larger the disparity, the nearer; and the middle 96 % lie between the assumed ends.
    order = np.argsort(disparity.reshape(-1))
    assert (np.diff(depth.reshape(-1)[order]) <= 1e-6).all()
    assert np.quantile(depth, 0.5) > ASSUMED_NEAR
    assert depth.max() <= ASSUMED_FAR * 1.0001
    # Whatever was assumed, alignment to known depth undoes it.
    truth = 1 / (0.3 * (disparity - disparity.min()) / np.ptp(disparity) + 0.2)
    inside = (disparity > np.percentile(disparity, 2.1)) & (disparity < np.percentile(disparity, 97.9))
    aligned = align_depth(depth, np.where(inside, truth, 0), kind="depth").depth
    np.testing.assert_allclose(aligned[inside], truth[inside], rtol=1e-2)


def test_the_output_can_be_said_where_the_configuration_is_wrong(checkpoints, picture):
    assert HubDepth(checkpoints / "relative", output="metric").output == "metric"
    with pytest.raises(DepthError, match="'metric' or 'disparity' was expected"):
        HubDepth(checkpoints / "relative", output="feet")


def test_models_that_cannot_be_had_are_one_sentence(checkpoints, tmp_path, monkeypatch):
    with pytest.raises(DepthError, match=r"There is no folder .*nothing"):
        HubDepth(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DepthError, match=r"cannot be loaded: .*safetensors"):
        HubDepth(tmp_path / "empty")
    with pytest.raises(DepthError, match=r"'nobody/no-such-depth-model' cannot be loaded: .*hf download"):
        HubDepth("nobody/no-such-depth-model", local_files_only=True)


def test_pickled_and_damaged_weights_are_refused(checkpoints, tmp_path):
    import shutil

    import torch

    pickled = tmp_path / "pickled"
    shutil.copytree(checkpoints / "metric", pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(pickled)
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoints / "metric", damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(damaged)


def test_a_model_that_estimates_no_depth_is_refused(checkpoints, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(checkpoints / "metric", other)
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = "bert"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(other)


def test_values_that_are_no_depth_are_refused(checkpoints, picture, monkeypatch):
    model = HubDepth(checkpoints / "metric")
    monkeypatch.setattr(model, "predict", lambda image: np.full(image.shape[:2], -1.0, np.float32))
    with pytest.raises(DepthError, match="no depth that can be used"):
        model(picture, CAMERA)
    relative = HubDepth(checkpoints / "relative")
    monkeypatch.setattr(relative, "predict", lambda image: np.ones(image.shape[:2], np.float32))
    with pytest.raises(DepthError, match="one distance everywhere"):
        relative(picture, CAMERA)


def test_a_model_that_says_nan_is_refused(checkpoints, picture, monkeypatch):
    import torch

    model = HubDepth(checkpoints / "metric")
    with torch.no_grad():
        for parameter in model._pipeline.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DepthError, match="not finite"):
        model(picture, CAMERA)
