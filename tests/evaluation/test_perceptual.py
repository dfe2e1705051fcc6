"""ST-LPIPS against figures of the published implementation, and what it says when its weights are missing."""

import cv2
import numpy as np
import pytest
import torch

from worldstereo_ros.evaluation import perceptual
from worldstereo_ros.utils.errors import InputError

installed = pytest.mark.skipif(not perceptual.is_available(), reason="the extra `evaluation` is not installed")


def images():
    sharp = np.random.default_rng(0).integers(0, 256, (96, 130, 3), dtype=np.uint8)
    sharp = cv2.GaussianBlur(sharp, (0, 0), 2)
    return sharp, cv2.GaussianBlur(sharp, (0, 0), 3)


@installed
def test_the_distance_is_the_published_one():
    network = perceptual.load_perceptual_network()
    with torch.no_grad():
        features = [network.features(perceptual.to_tensor(image)) for image in images()]
        distance = network.distance_map(*features, (96, 130))
    # Mean of the distance map of stlpips_pytorch 0.0.2, network vgg, on the same images.
    assert float(distance.mean()) == pytest.approx(0.339961, abs=2e-5)
    assert [maps.shape[1:] for maps in features[0]] == [
        (64, 96, 130), (128, 49, 66), (256, 25, 34), (512, 13, 18), (512, 7, 10),
    ]  # fmt: skip
    with torch.no_grad():
        assert float(network.distance_map(features[0], features[0], (96, 130)).abs().max()) == 0


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    perceptual.load_perceptual_network.cache_clear()
    assert not perceptual.is_available()
    with pytest.raises(InputError, match=r"not installed; run: pip install"):
        perceptual.load_perceptual_network()


def test_a_damaged_file_is_named(monkeypatch, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"shift": torch.zeros(3)}, file)
    monkeypatch.setattr(perceptual, "_weights_file", lambda: file)
    perceptual.load_perceptual_network.cache_clear()
    with pytest.raises(InputError, match=r"weights.pth does not hold the weights of ST-LPIPS"):
        perceptual.load_perceptual_network()
    perceptual.load_perceptual_network.cache_clear()
