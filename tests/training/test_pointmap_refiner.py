"""Training of the point-map refiner: clips, batches, and a run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from worldstereo_ros.depth.estimators import SmallDepth
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.refiner import load_refiner_model
from worldstereo_ros.models.pointmaps.sweep import SWEEP_CHANNELS
from worldstereo_ros.pipelines.pointmaps.refinement import load_model
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.prior_batches import ClipBank, make_batch
from worldstereo_ros.training.data.prior_clips import PriorClip, world_clips
from worldstereo_ros.training.pointmap_losses import map_loss
from worldstereo_ros.training.stages import pointmap_refiner
from worldstereo_ros.training.stages.pointmap_refiner import (
    REFINER_PRESETS,
    refiner_preset,
    score_refiner,
    train_refiner,
)
from worldstereo_ros.weights.bundled import bundled_folder

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, H, W = 5, 32, 48
SMOKE = dataclasses.replace(REFINER_PRESETS["smoke"], device="cpu", minutes=30.0, first_walks=2)


def made_up(seed: int, **changes) -> PriorClip:
    """A clip whose prior is a tenth of the truth, with an error of 30 % in the lower half of the image."""
    random = np.random.default_rng(seed)
    depth = random.uniform(1, 4, (FRAMES, H, W))
    log_depth = np.log(depth / 10)
    log_depth[:, H // 2 :] += 0.3
    half = np.zeros((FRAMES, H, W), np.float16)
    values = {
        "image": random.integers(0, 255, (FRAMES, 3, H, W), dtype=np.uint8), "depth": depth.astype(np.float16),
        "moving": random.random((FRAMES, H, W)) < 0.1, "intrinsics": np.array([40, 40, 20, 15.5], np.float32),
        "log_depth": log_depth.astype(np.float16), "log_sigma": half - 2, "anchor_residual": half,
        "anchor_weight": half, "poses": np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1)),
        "matching": random.random((FRAMES, SWEEP_CHANNELS, H // 2, W // 2)).astype(np.float16),
    }  # fmt: skip
    return PriorClip(**{**values, **changes})


@pytest.fixture(scope="module")
def networks():
    return load_depth_network(bundled_folder("small") / "base" / "depth"), SmallDepth()


def bank_of(folder, clips, networks=(None, None), **options) -> ClipBank:
    folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(clips):
        clip.save(folder / f"{number:06d}-0.npz")
    return ClipBank(folder, networks, **{"seed": 0, "batch": 2, "share": 0.0, "most": 9, **options})


def test_a_clip_of_a_world_has_truth_and_a_prior_near_it(networks, tmp_path):
    clip = next(world_clips("demo", 0, *networks, solved_every=1, sizes=((64, 96),), frames=FRAMES))
    assert clip.usable
    assert clip.depth.shape == clip.log_depth.shape == (FRAMES, *clip.image.shape[2:])
    hit = clip.depth > 0
    error = clip.log_depth[hit].astype(np.float64) - np.log(clip.depth[hit].astype(np.float64))
    assert np.median(np.abs(error - np.median(error))) < 0.5
    clip.save(tmp_path / "clip.npz")
    loaded = PriorClip.load(tmp_path / "clip.npz")
    for field in dataclasses.fields(clip):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(clip, field.name))


def test_the_truth_of_a_batch_has_the_scale_of_the_prior():
    batch = make_batch([made_up(0)], [np.array([0, 3])])
    error = batch.prior.log_depth - batch.log_depth
    low, high = error[..., : H // 2, :], error[..., H // 2 :, :]
    torch.testing.assert_close(high - low, torch.full_like(low, 0.3), rtol=0, atol=5e-3)
    assert error.abs().max() < 0.31


def test_a_mirrored_batch_is_that_of_mirrored_frames():
    clips, frames = [made_up(0), made_up(1)], [np.arange(2), np.arange(2)]
    plain, mirrored = make_batch(clips, frames), make_batch(clips, frames, np.array([False, True]))
    for name in ("images", "matching", "log_depth", "hit", "moving"):
        one, other = getattr(plain, name), getattr(mirrored, name)
        torch.testing.assert_close(other[0], one[0])
        torch.testing.assert_close(other[1], one[1].flip(-1))
    assert mirrored.intrinsics[:, 2].tolist() == [20.0, W - 1 - 20.0]


def test_a_bank_reads_its_folder_and_goes_on_with_the_next_world(tmp_path, monkeypatch):
    asked = []

    def render(split, index, *_, **__):
        asked.append((split, index))
        yield made_up(index, depth=np.zeros((FRAMES, H, W), np.float16))  # nothing to learn from
        yield made_up(index)

    monkeypatch.setattr("worldstereo_ros.training.data.prior_batches.world_clips", render)
    bank = bank_of(tmp_path, [made_up(0), made_up(1)])
    assert bank.walks() == 2
    bank.fill(4, float("inf"))
    assert (bank.walks(), asked) == (4, [("training", 2), ("training", 3)])
    bank.poll()  # its share of the time is 0
    assert bank.walks() == 4
    assert bank.draw().images.shape == (2, 4, 3, H, W)


def test_steps_lower_the_loss_and_a_run_can_be_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(pointmap_refiner, "world_clips", lambda *_, **__: iter([made_up(7)]))
    bank_of(tmp_path / "clips", [made_up(0), made_up(1)])
    settings = dataclasses.replace(SMOKE, learning_rate=5e-3, depth_rate=1e-3, ema=0.5, render_share=0.0)
    train_refiner(settings, tmp_path, steps=12, age_s=0.0)
    clip = made_up(0)
    batch = make_batch([clip], [np.arange(FRAMES)])
    found = load_refiner_model(tmp_path).network.predict(batch.images, batch.intrinsics, batch.prior, batch.matching)
    known = torch.ones(1, dtype=torch.bool)
    prior = dataclasses.replace(found, log_depth=batch.prior.log_depth, log_scale=batch.prior.log_sigma)
    losses = [float(map_loss(each, batch.log_depth, batch.hit, batch.moving, known)[0]) for each in (found, prior)]
    assert losses[0] < losses[1]
    train_refiner(settings, tmp_path, steps=1, age_s=0.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["resumed"] for line in lines if "resumed" in line] == [False, True]
    assert "validation_refined_delta" in lines[-1]


def test_a_preset_that_is_not_there_is_named():
    with pytest.raises(TrainingConfigError, match="no preset 'huge'"):
        refiner_preset("huge")


def test_the_bundled_refiner_is_nearer_to_the_truth_than_its_prior(networks):
    clips = [next(world_clips("demo", 0, *networks, solved_every=99, sizes=((96, 128),), frames=9))]
    model = load_model()
    scores = score_refiner(model.network, clips)
    assert scores["refined_abs_rel_median"] < scores["prior_abs_rel_median"]
    assert scores["refined_delta"] > scores["prior_delta"]
