"""The refiner of imagined pixels and its discriminator."""

import json

import pytest
import torch

from worldstereo_ros.models.checkpoints.saving import save_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.hole_refiner import (
    PLAIN_CHANNELS,
    SOURCES,
    HoleRefiner,
    PatchDiscriminator,
    load_hole_refiner,
    refine,
)
from worldstereo_ros.utils.errors import InputError

SMALL = {"widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)}


def inputs(height: int = 48, width: int = 64, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(count, 3 * SOURCES, height, width, generator=generator) * 2 - 1
    return sources, torch.randn(count, PLAIN_CHANNELS, height, width, generator=generator)


def test_a_new_refiner_gives_about_the_mean_of_its_sources():
    torch.manual_seed(0)
    sources, plain = inputs()
    weights, residual = HoleRefiner(**SMALL)(sources, plain)
    assert weights.shape == (2, SOURCES, 48, 64)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 48, 64))
    assert residual.abs().max() < 0.2
    mean = sources.unflatten(1, (SOURCES, 3)).mean(dim=1)
    assert (refine(sources, weights, residual) - mean).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("sources", "plain"),
    [((2, 9, 48, 60), (2, 7, 48, 60)), ((2, 9, 48, 64), (2, 6, 48, 64)), ((2, 3, 48, 64), (2, 7, 48, 64))],
)
def test_other_shapes_are_refused(sources, plain):
    with pytest.raises(InputError, match="multiples of 16"):
        HoleRefiner(**SMALL)(torch.zeros(sources), torch.zeros(plain))


def test_the_number_of_widths_is_checked():
    with pytest.raises(InputError, match="four numbers"):
        HoleRefiner(widths=(8, 8), blocks=(1, 1))


def test_scores_follow_the_place_of_what_changed():
    torch.manual_seed(0)
    judge = PatchDiscriminator(2)
    images, conditions = torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 64, 64)
    changed = images.clone()
    changed[..., :8, :8] = 1
    (before, features), (after, _) = judge(images, conditions), judge(changed, conditions)
    assert [maps.shape[-1] for maps in features] == [32, 16, 8, 4]
    assert [scores.shape for scores in before] == [(1, 1, 16, 16), (1, 1, 4, 4)]
    difference = (after[0] - before[0]).abs()[0, 0]
    assert difference[:2, :2].max() > 0
    assert difference[8:, 8:].max() == 0


def test_a_saved_refiner_is_loaded_equal(tmp_path):
    torch.manual_seed(0)
    model = HoleRefiner(**SMALL)
    save_weights(tmp_path, "diffusion_pytorch_model", model.state_dict(), max_shard_bytes=10**7)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "HoleRefiner", **config}))
    loaded = load_hole_refiner(tmp_path)
    assert loaded is not None
    for one, other in zip(model(*inputs()), loaded(*inputs()), strict=True):
        torch.testing.assert_close(one, other)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_missing_and_other_networks_are_told_apart(tmp_path):
    assert load_hole_refiner(tmp_path / "none") is None
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DepthNetwork"}))
    with pytest.raises(CheckpointError, match="a HoleRefiner was expected"):
        load_hole_refiner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "HoleRefiner", **SMALL}))
    with pytest.raises(CheckpointError):
        load_hole_refiner(tmp_path)  # no weights
