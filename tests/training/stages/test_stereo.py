"""The training of the stereo refiner: all phases, and a loss that falls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldstereo_ros.models.stereo_refiner import StereoRefiner, load_stereo_refiner
from worldstereo_ros.training.config import StageConfig
from worldstereo_ros.training.data.stereo_batches import ClipPool
from worldstereo_ros.training.data.stereo_clips import render_clips
from worldstereo_ros.training.data.stereo_workers import ClipFeed
from worldstereo_ros.training.logs import read_log
from worldstereo_ros.training.stages.stereo import PHASES, StereoStage, motion_error, unlikeness
from worldstereo_ros.training.stereo_training import CONFIGS, train_stereo
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = CONFIGS["smoke"].model


@pytest.fixture(scope="module")
def feed() -> ClipFeed:
    pool = ClipPool(1, "cpu")
    pool.add(render_clips("validation", 0, frames=2, clips=1, supersample=1, light="plain")[0])
    feed = ClipFeed(pool)
    feed.validation.append(render_clips("validation", 1, frames=2, clips=1, supersample=1, light="plain")[0])
    return feed


def stage(phase: str, feed: ClipFeed) -> StereoStage:
    torch.manual_seed(0)
    config = StageConfig(batch=1, learning_rate=1e-3)
    return StereoStage(
        phase, StereoRefiner(**SMALL), config, feed, torch.device("cpu"),
        save=lambda model: None, autocast=lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_few_steps_reduce_the_loss(phase, feed):
    one = stage(phase, feed)
    one.start_step()
    optimizer = torch.optim.Adam(one.parameter_groups[0].parameters, 3e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(1)  # the same noise, so that losses compare
        loss, values = one.parameter_groups[0].loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert np.isfinite(list(values.values())).all()
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, p in one.model.named_parameters() if p.grad is not None}
    assert any(name.startswith("temporal_blocks") for name in moved) == (phase != "frames")


def test_validation_compares_with_the_fill(feed):
    metrics, image = stage("finetune", feed).validate()
    assert metrics["psnr"] == pytest.approx(metrics["psnr_fill"])  # untrained
    assert metrics["psnr_holes_fill"] >= metrics["psnr_holes_background"]
    assert metrics["flicker_truth"] >= 0
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_motion_and_unlikeness_are_zero_for_the_truth():
    torch.manual_seed(0)
    target, mask = torch.rand(1, 2, 3, 24, 24), torch.ones(1, 2, 1, 24, 24)
    flow = torch.zeros(1, 2, 2, 24, 24)
    assert float(motion_error(target, target, flow, mask)) == 0
    assert float(unlikeness(target, target, mask)) == pytest.approx(0, abs=1e-5)
    flickering = target.clone()
    flickering[:, 1] += 0.1
    assert float(motion_error(flickering, target, flow, mask)) == pytest.approx(0.1, abs=1e-3)
    assert float(unlikeness(torch.rand_like(target), target, mask)) > 0.3


def test_all_phases_train_in_one_run_and_go_on(tmp_path):
    settings = CONFIGS["smoke"]
    found = train_stereo(tmp_path, settings, steps=1, device="cpu")
    assert tuple(found) == PHASES
    saved = load_stereo_refiner(tmp_path / "base" / "stereo")
    assert saved.config.width == settings.model["width"]
    for phase in PHASES:
        assert (tmp_path / "logs" / f"stereo_{phase}.png").is_file()
        assert read_log(tmp_path / "logs" / f"stereo_{phase}.jsonl")[0].steps == 1
    with pytest.raises(InputError, match="more than 0"):
        train_stereo(tmp_path, settings, minutes=0.0)
    other = replace(settings, model={**settings.model, "width": 64})
    with pytest.raises(ValueError, match="width 32"):
        train_stereo(tmp_path, other, steps=1, device="cpu")
