"""The depth network: inputs and outputs, metric scale, and its weights."""

import json

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.training_runs import SMOKE
from safetensors.torch import load_file, save_file

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.depth_network import DepthNetwork, load_depth_network
from worldstereo_ros.training.run_folder import RunFolder

TINY = {"widths": (8, 8, 16), "blocks": (1, 1), "layers": 1, "heads": 2}
WEIGHTS = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path, SMOKE, Accelerator(cpu=True))


def random_network(**options) -> DepthNetwork:
    """A network with random weights: an untrained one has the same output for every image."""
    torch.manual_seed(3)
    model = DepthNetwork(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False).eval()


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


# --- forward and predict ---


@pytest.mark.parametrize(("height", "width"), [(96, 128), (80, 144), (32, 48), (160, 96)])
def test_maps_have_the_size_of_the_image(height, width):
    model = random_network()
    maps = model(torch.rand(2, 3, height, width) * 2 - 1, torch.tensor([[width / 2, height / 2]] * 2))
    for values in (maps.log_depth, maps.log_scale, maps.hit):
        assert values.shape == (2, height, width)
        assert torch.isfinite(values).all()
    assert maps.log_depth.std() > 1e-3


def test_wrong_image_shapes_raise():
    with pytest.raises(ValueError, match="multiples of 16"):
        random_network()(torch.zeros(1, 3, 90, 128), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="uint8"):
        random_network().predict(np.zeros((48, 64, 3)), Camera.from_fov(64, 48, 1.0))
    with pytest.raises(ValueError, match="must agree"):
        random_network().predict(np.zeros((48, 64, 3), np.uint8), Camera.from_fov(32, 24, 1.0))


@pytest.mark.parametrize(("height", "width"), [(97, 131), (480, 640), (540, 360), (20, 30), (8, 200)])
def test_predict_has_the_size_of_the_image(height, width):
    model = random_network(pixels=3072)
    prediction = model.predict(random_image(height, width), Camera.from_fov(width, height, 1.2))
    assert prediction.depth.shape == prediction.scale.shape == (height, width)
    assert prediction.depth.dtype == prediction.scale.dtype == np.float32
    assert np.isfinite(prediction.depth).all()
    assert (prediction.depth >= 0).all()
    assert (prediction.scale > 0).all()


def test_depth_is_proportional_to_the_focal_length():
    model, image = random_network(pixels=3072), random_image(60, 80)
    short, long = (model.predict(image, Camera(80, 60, f, f, 39.5, 29.5)).depth for f in (50.0, 125.0))
    assert (short > 0).any()
    np.testing.assert_allclose(long, 2.5 * short, rtol=1e-4)


def test_depth_does_not_depend_on_the_image_size():
    model, camera = random_network(pixels=3072), Camera(256, 192, 200.0, 200.0, 127.5, 95.5)
    large = random_image(192, 256)
    small = cv2.resize(large, (64, 48), interpolation=cv2.INTER_AREA)
    first, second = model.predict(large, camera).depth, model.predict(small, camera.resized(64, 48)).depth
    assert np.median(first) == pytest.approx(np.median(second), rel=0.03)


def test_depth_depends_on_the_principal_point():
    model, image = random_network(), torch.rand(1, 3, 48, 64)
    first, second = (model(image, torch.tensor([[32.0, y]])).log_depth for y in (10.0, 40.0))
    assert (first - second).abs().max() > 1e-3


# --- weights ---


def test_saved_network_loads_the_same(run):
    model = random_network(pixels=3072, typical_log=0.3, typical_depth=1.9)
    run.save_depth_network(model)
    again = load_depth_network(run.base / "depth")
    camera = Camera.from_fov(64, 48, 1.1)
    np.testing.assert_array_equal(
        again.predict(random_image(48, 64), camera).depth, model.predict(random_image(48, 64), camera).depth
    )
    assert again.config.typical_depth == 1.9


def test_damaged_weights_raise(run):
    run.save_depth_network(random_network())
    folder = run.base / "depth"
    good = load_file(folder / WEIGHTS)

    save_file({**good, "head.bias": good["head.bias"] * float("nan")}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"not finite.*damaged"):
        load_depth_network(folder)
    save_file({name: tensor for name, tensor in good.items() if name != "head.bias"}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"missing: head\.bias"):
        load_depth_network(folder)
    save_file({**good, "head.bias": torch.zeros(3)}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_depth_network(folder)
    (folder / WEIGHTS).write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError):
        load_depth_network(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "widths": [8, 8]}))
    with pytest.raises(CheckpointError, match="describes no valid depth network"):
        load_depth_network(folder)
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "ImageAutoencoder"}))
    with pytest.raises(CheckpointError, match="DepthNetwork was expected"):
        load_depth_network(folder)


def test_invalid_sizes_raise():
    with pytest.raises(ValueError, match="multiple of heads"):
        DepthNetwork(widths=(8, 8, 15), heads=2)
