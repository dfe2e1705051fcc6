"""The training stage of the refiner: its views, its losses, and a short training."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.training_runs import SMOKE, toy_stage
from torch.nn import functional

from worldstereo_ros.models.hole_refiner import PLAIN_CHANNELS, SOURCES, load_hole_refiner
from worldstereo_ros.training.data.refiner_view_pool import ViewPool
from worldstereo_ros.training.data.refiner_views import RefinerViews
from worldstereo_ros.training.stages import refine
from worldstereo_ros.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


def make_views(count: int = 3, height: int = 96, width: int = 128) -> RefinerViews:
    random = np.random.default_rng(0)
    unseen = np.zeros((count, 1, height, width), np.uint8)
    unseen[:, :, 40:64, 64:100] = 1
    return RefinerViews(
        random.integers(0, 256, (count, 3 * SOURCES, height, width)).astype(np.uint8),
        random.integers(-127, 128, (count, PLAIN_CHANNELS, height, width)).astype(np.int8),
        unseen,
        random.integers(0, 256, (count, 3, height, width)).astype(np.uint8),
    )


def test_crops_lie_around_holes_and_belong_together():
    pool = ViewPool(3, torch.device("cpu"))
    pool.add(make_views(2))
    pool.add(make_views(2))  # one of them: then the pool is full
    assert len(pool) == 3
    sources, plain, unseen, truth = pool.crops(16, 32, torch.Generator().manual_seed(1))
    assert sources.shape == (16, 3 * SOURCES, 32, 32)
    assert plain.shape == (16, PLAIN_CHANNELS, 32, 32)
    assert (unseen.flatten(1).sum(1) > 0).all()
    assert truth.min() >= -1
    assert truth.max() <= 1
    whole = pool.views([0, 1])
    found = 0
    for index in range(16):  # each crop, or its mirror image, is a part of a view in all its channels
        patch = torch.cat((sources[index], plain[index], unseen[index], truth[index]))
        for view in torch.cat(whole, dim=1):
            windows = view[0].unfold(0, 32, 1).unfold(1, 32, 1)
            for candidate in (patch, patch.flip(-1)):
                places = (windows == candidate[0]).all(-1).all(-1).nonzero()
                for top, left in places.tolist():
                    torch.testing.assert_close(view[:, top : top + 32, left : left + 32], candidate)
                    found += 1
    assert found == 16


def test_blur_keeps_constants_and_removes_detail():
    constant = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(refine.blur(constant), constant)
    checks = torch.ones(1, 3, 32, 32)
    checks[..., ::2] = -1
    assert refine.blur(checks).abs().max() < 0.05


def test_the_pairing_loss_prefers_higher_scores_where_nothing_was_seen():
    unseen = torch.zeros(1, 1, 32, 32)
    unseen[..., :16, :16] = 1
    high = [functional.pad(torch.ones(1, 1, n, n), (0, n, 0, n)) for n in (4, 1)]
    low = [torch.zeros_like(scores) for scores in high]
    assert refine._pairing(high, low, unseen) < refine._pairing(low, high, unseen)
    elsewhere = [scores.flip(-1, -2) for scores in high]  # outside of what is unseen, which does not count
    assert refine._pairing(elsewhere, low, unseen) == pytest.approx(float(refine._pairing(low, low, unseen)), abs=1e-6)


def test_a_short_training_changes_the_refiner_and_resumes(trained_copy, training_worlds, tmp_path, monkeypatch):
    """With and without the discriminator; the weights are where the pipeline finds them."""
    shutil.rmtree(trained_copy / "base" / "refiner")  # as if it had not been trained
    monkeypatch.setattr(refine, "PENALTY_EVERY", 2)
    stage = toy_stage(trained_copy, training_worlds, "refine", critic_start=1)
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    metrics = train(stage, stage.run.accelerator, tmp_path / "logs", steps=3)
    assert {"loss", "psnr", "psnr_before", "detail", "detail_before"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in stage.model.state_dict().items())
    for base in (trained_copy / "base", trained_copy / "finetuned" / "base"):
        loaded = load_hole_refiner(base / "refiner")
        assert loaded is not None
        torch.testing.assert_close(loaded.state_dict(), {k: v.cpu() for k, v in stage.model.state_dict().items()})
    config = json.loads((trained_copy / "base" / "refiner" / "config.json").read_text())
    assert tuple(config["widths"]) == tuple(SMOKE.refiner["widths"])
    again = toy_stage(trained_copy, training_worlds, "refine")
    torch.testing.assert_close(again.model.state_dict(), stage.model.state_dict())
    assert again._warmup == 0  # trained before: the discriminator begins at once
