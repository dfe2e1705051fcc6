"""Depth estimators: hub models, the bundled network, and selection by name."""

import json
import shutil

import numpy as np
import pytest

from worldstereo_ros.depth.alignment import DepthError, align_depth
from worldstereo_ros.depth.estimators import (
    ASSUMED_FAR_M,
    ASSUMED_NEAR_M,
    DepthEstimate,
    HubDepth,
    SmallDepth,
    estimate_depth,
    load_depth_estimator,
    load_small_depth,
)
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.weights.bundled import bundled_folder
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(70, 56, 1.0)


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
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)


def _raw(folder, image):
    """The output of the network without the pipeline."""
    import torch
    import transformers
    from PIL import Image

    network = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = network(**processor(images=Image.fromarray(image), return_tensors="pt")).predicted_depth
        out = torch.nn.functional.interpolate(out[None], size=image.shape[:2], mode="bicubic", align_corners=False)
    return out[0, 0].numpy()


def test_metric_hub_model_returns_metres(checkpoints, image):
    model = HubDepth(checkpoints / "metric")
    assert model.output == "metric"
    depth = model(image, CAMERA)
    assert depth.shape == image.shape[:2]
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, _raw(checkpoints / "metric", image), rtol=1e-3, atol=1e-3)


def test_relative_hub_model_is_converted_from_disparity_to_depth(checkpoints, image):
    model = HubDepth(str(checkpoints / "relative"), "cpu")
    assert model.output == "disparity"
    disparity, depth = model.predict(image), model(image, CAMERA)
    np.testing.assert_allclose(disparity, _raw(checkpoints / "relative", image), rtol=1e-3, atol=1e-4)
    # Depth decreases with disparity; the middle 96 % lie between the assumed ends.
    order = np.argsort(disparity.reshape(-1))
    assert (np.diff(depth.reshape(-1)[order]) <= 1e-6).all()
    assert np.quantile(depth, 0.5) > ASSUMED_NEAR_M
    assert depth.max() <= ASSUMED_FAR_M * 1.0001
    # Alignment to known depth is independent of the assumed ends.
    truth = 1 / (0.3 * (disparity - disparity.min()) / np.ptp(disparity) + 0.2)
    inside = (disparity > np.percentile(disparity, 2.1)) & (disparity < np.percentile(disparity, 97.9))
    aligned = align_depth(depth, np.where(inside, truth, 0), kind="depth").depth
    np.testing.assert_allclose(aligned[inside], truth[inside], rtol=1e-2)


def test_hub_depth_output_overrides_the_configuration(checkpoints, image):
    assert HubDepth(checkpoints / "relative", output="metric").output == "metric"
    with pytest.raises(DepthError, match="'metric' or 'disparity' was expected"):
        HubDepth(checkpoints / "relative", output="feet")


def test_hub_depth_rejects_unavailable_models(checkpoints, tmp_path, monkeypatch):
    with pytest.raises(DepthError, match=r"folder .*nothing does not exist"):
        HubDepth(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DepthError, match=r"cannot be loaded: .*safetensors"):
        HubDepth(tmp_path / "empty")
    with pytest.raises(DepthError, match=r"'nobody/no-such-depth-model' cannot be loaded: .*hf download"):
        HubDepth("nobody/no-such-depth-model", local_files_only=True)


def test_hub_depth_rejects_pickled_and_damaged_weights(checkpoints, tmp_path):

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


def test_hub_depth_rejects_models_of_other_tasks(checkpoints, tmp_path):

    other = tmp_path / "other"
    shutil.copytree(checkpoints / "metric", other)
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = "bert"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(other)


def test_hub_depth_rejects_unusable_values(checkpoints, image, monkeypatch):
    model = HubDepth(checkpoints / "metric")
    monkeypatch.setattr(model, "predict", lambda image: np.full(image.shape[:2], -1.0, np.float32))
    with pytest.raises(DepthError, match="no valid depth"):
        model(image, CAMERA)
    relative = HubDepth(checkpoints / "relative")
    monkeypatch.setattr(relative, "predict", lambda image: np.ones(image.shape[:2], np.float32))
    with pytest.raises(DepthError, match="one distance for all pixels"):
        relative(image, CAMERA)


def test_hub_depth_rejects_nan(checkpoints, image, monkeypatch):
    import torch

    model = HubDepth(checkpoints / "metric")
    with torch.no_grad():
        for parameter in model._pipeline.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DepthError, match="finite values"):
        model(image, CAMERA)


# --- bundled network, selection by name ------------------------------------------------------------------------------


@pytest.fixture
def network_folder(tmp_path):
    """A folder with a copy of the bundled network."""
    folder = tmp_path / "network"
    shutil.copytree(bundled_folder("small") / "base" / "depth", folder)
    return folder


def test_bundled_network_returns_metres(image):
    estimator = load_depth_estimator()
    assert isinstance(estimator, SmallDepth)
    depth = estimator(image, CAMERA)
    assert depth.shape == image.shape[:2]
    assert depth.dtype == np.float32
    assert 0.2 < np.median(depth) < 20
    twice = Camera(CAMERA.width, CAMERA.height, 2 * CAMERA.fx, 2 * CAMERA.fy, CAMERA.cx, CAMERA.cy)
    alone = estimator.predict(image, CAMERA).depth
    np.testing.assert_allclose(estimator.predict(image, twice).depth, 2 * alone, rtol=1e-4)


def test_load_depth_estimator_selects_by_name(checkpoints, network_folder, monkeypatch, tmp_path):
    assert load_depth_estimator("none") is None
    assert load_depth_estimator("small").folder == bundled_folder("small") / "base" / "depth"
    assert load_depth_estimator(str(network_folder)).folder == network_folder
    assert isinstance(load_depth_estimator(str(checkpoints / "metric")), HubDepth)
    with pytest.raises(DepthError, match="does not exist"):
        load_depth_estimator(str(tmp_path / "nothing"))
    assert load_small_depth(tmp_path) is None

    # In an installation without the network "small" fails at once, "" with the first image.
    monkeypatch.setattr("worldstereo_ros.depth.estimators.bundled_folder", lambda name: tmp_path / "lacking")
    with pytest.raises(DepthError, match=r"no depth network in .*lacking.*depth_model"):
        load_depth_estimator("small")
    lazy = load_depth_estimator("")
    with pytest.raises(DepthError, match="no depth network"):
        lazy(np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8), CAMERA)


def test_load_depth_estimator_rejects_damaged_networks(network_folder):
    weights = network_folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(DepthError, match="cannot be loaded"):
        load_depth_estimator(str(network_folder))


def test_load_depth_estimator_rejects_damaged_statistics(network_folder):
    config = json.loads((network_folder / "config.json").read_text())
    config["familiar"]["mean"] = config["familiar"]["mean"][:3]
    (network_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DepthError, match="cannot be loaded: the statistics of the training images"):
        load_depth_estimator(str(network_folder))


def test_network_without_statistics_is_believed(network_folder, image):
    config = json.loads((network_folder / "config.json").read_text())
    del config["familiar"]
    (network_folder / "config.json").write_text(json.dumps(config))
    estimator = load_depth_estimator(str(network_folder))
    assert estimator.familiarity(image) == 1
    np.testing.assert_allclose(estimator(image, CAMERA), estimator.predict(image, CAMERA).depth, rtol=1e-5)


def test_small_depth_rejects_images_of_sky_only(network_folder, image, monkeypatch):
    from worldstereo_ros.models.depth_network import DepthNetwork, MonocularDepth

    empty = np.zeros(image.shape[:2], np.float32)
    monkeypatch.setattr(DepthNetwork, "predict", lambda *_: MonocularDepth(empty, empty))
    with pytest.raises(DepthError, match="every pixel of this image as sky"):
        load_depth_estimator(str(network_folder))(image, CAMERA)


def test_observe_estimates_missing_depth_or_rejects_the_view(image):
    from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline

    view = View(image, CAMERA, np.eye(4))
    world = WorldModel(GeometricPipeline(), depth_estimator=load_depth_estimator("small"))
    world.observe(view)
    assert len(world.cloud) > 100
    with pytest.raises(ValueError, match="no depth estimator"):
        WorldModel(GeometricPipeline(), depth_estimator=load_depth_estimator("none")).observe(view)


def test_estimate_depth_gives_confidence_where_the_estimator_has_it(image):
    found = estimate_depth(load_depth_estimator("small"), image, CAMERA)
    assert isinstance(found, DepthEstimate)
    np.testing.assert_array_equal(found.depth, load_depth_estimator("small")(image, CAMERA))
    assert found.confidence.shape == found.depth.shape
    assert found.confidence.dtype == np.float32
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert (found.confidence[found.depth == 0] == 0).all()
    plain = estimate_depth(lambda image, camera: np.ones(image.shape[:2], np.float32), image, CAMERA)
    assert plain.confidence is None
    assert (plain.depth == 1).all()
