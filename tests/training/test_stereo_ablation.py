"""Variants of the stereo refiner on one set of clips."""

import numpy as np
import pytest
import torch

from worldstereo_ros.training.data.stereo_crops import StereoCrops, render_crops
from worldstereo_ros.training.stereo_ablation import (
    VARIANTS,
    beside_nearer,
    crop_batch,
    measure,
    new_model,
    of_background,
    of_fill,
    of_network,
    train_variant,
)

SIZE = {"width": 16, "heads": 2, "depth": 1, "pixel_width": 8}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def crops() -> StereoCrops:
    found = [render_crops("training", index, clips=2, supersample=1, light="plain") for index in range(2)]
    return next(each for each in found if each is not None)


def test_pixels_beside_a_nearer_surface_are_not_judged():
    painted, disparity = torch.zeros(1, 1, 1, 4, 8), torch.full((1, 1, 1, 4, 8), 3.0)
    painted[..., 3:6] = 1
    disparity[..., :3] = 12.0
    assert beside_nearer(painted, disparity)[0, 0, 0, 0].tolist() == [False] * 3 + [True] + [False] * 4


def test_colours_vary_and_seen_pixels_stay_true(crops):
    plain, varied = crop_batch(crops), crop_batch(crops, np.random.default_rng(0))
    assert not torch.allclose(plain.target, varied.target)
    seen = (~crops.hole).expand_as(plain.target)
    assert torch.equal(varied.condition.filled[seen], varied.target[seen])
    assert torch.equal(plain.judged, varied.judged)
    assert (plain.judged <= plain.condition.painted).all()


@pytest.mark.parametrize("key", VARIANTS)
def test_each_variant_starts_near_the_fill_and_trains(crops, key):
    variant = VARIANTS[key]
    fill = measure(crops, of_fill)
    model = new_model(variant, SIZE)
    before = measure(crops, of_network(model))
    assert abs(before.gain(fill)[0] if len(fill.psnr) > 1 else float((before.psnr - fill.psnr).mean())) < 1.5
    trained = train_variant(variant, model, crops, 2, progress=print)
    assert all(torch.isfinite(parameter).all() for parameter in trained.parameters())
    score = measure(crops, of_network(trained))
    assert score.pixels.tolist() == fill.pixels.tolist()
    assert np.isfinite(score.psnr).all()


def test_measures_of_fill_and_background(crops):
    fill, background = measure(crops, of_fill), measure(crops, of_background)
    assert fill.pixels.sum() > 0
    assert fill.flicker >= 0
    truth = measure(crops, lambda batch, clips: batch.target)
    assert (truth.psnr > fill.psnr).all()
    assert (truth.psnr > background.psnr).all()
