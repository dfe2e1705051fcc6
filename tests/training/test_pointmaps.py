import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bare_environment import bare_python

import worldstereo_ros
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.model import load_pointmap_model
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.moving_walks import WalkPool, render_walks
from worldstereo_ros.training.data.pointmap_batches import camera_looks
from worldstereo_ros.training.data.prior_simulation import simulate_prior
from worldstereo_ros.training.pointmap_losses import map_loss
from worldstereo_ros.training.pointmap_settings import PRESETS, preset
from worldstereo_ros.training.pointmap_validation import depth_scores
from worldstereo_ros.training.stages.pointmaps import PointmapTrainer, load_image_autoencoder, train_pointmaps
from worldstereo_ros.weights.bundled import bundled_folder

SIZE, FRAMES = (48, 64), 5
SMOKE = dataclasses.replace(PRESETS["smoke"], minutes=30.0, validation_s=1e9)


@pytest.fixture(scope="module")
def walks():
    found = []
    for index in range(8):
        found += render_walks("demo", index, (SIZE,), views=9, supersample=1, movers=3)
        if len(found) >= 3 and any(walk.moving.any() for walk in found):
            return found
    raise AssertionError("no walk shows anything that moves")


@pytest.fixture(scope="module")
def pool(walks):
    pool = WalkPool(SIZE, len(walks), "cpu", 9)
    for walk in walks:
        pool.add(walk)
    return pool


@pytest.fixture(scope="module")
def depth_network():
    return load_depth_network(bundled_folder("small") / "base" / "depth")


def points_of(clips):
    from worldstereo_ros.models.pointmaps.geometry import world_points

    return world_points(clips.depth, clips.poses, clips.intrinsics)


def test_walks_are_the_same_each_time_and_show_what_moves(walks):
    assert all(walk.image.shape == (9, *SIZE, 3) and walk.image.dtype == np.uint8 for walk in walks)
    first = render_walks("demo", 0, (SIZE,), views=9, supersample=1, movers=3)
    for one, two in zip(walks, first, strict=False):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def test_mirrored_clips_are_those_of_a_mirrored_world(pool):
    order = np.arange(FRAMES)[None]
    plain, mirrored = (pool.take(np.array([0]), order, np.array([flip])) for flip in (False, True))
    expected = points_of(plain).flip(-1) * torch.tensor([-1.0, 1, 1])[:, None, None]
    torch.testing.assert_close(points_of(mirrored), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mirrored.images, plain.images.flip(-1))
    torch.testing.assert_close(plain.poses[:, 0], torch.eye(4)[None])


def test_a_pool_forgets_the_oldest(walks):
    pool = WalkPool(SIZE, 2, "cpu", 9)
    for walk in walks[:3]:
        pool.add(walk)
    assert len(pool) == 2
    images = pool.take(np.array([0, 1]), np.zeros((2, 1), dtype=int)).images[:, 0].permute(0, 2, 3, 1) * 255
    np.testing.assert_allclose(images.numpy(), np.stack([walks[2].image[0], walks[1].image[0]]), atol=1e-3)


def test_simulated_priors_have_the_scale_they_say(pool, depth_network):
    random = np.random.default_rng(3)
    clips = pool.draw(12, FRAMES, random)
    simulated = simulate_prior(clips, clips.images * 2 - 1, depth_network, random)
    prior = simulated.prior
    truth = clips.depth.clamp_min(1e-2).log() + simulated.scale.log().view(-1, 1, 1, 1)
    anchored = (prior.anchor_weight > 0) & (clips.depth > 0)
    assert anchored.any()
    left = (prior.log_depth + prior.anchor_residual - truth)[anchored].abs()
    assert left.median() < 0.2
    for index in range(len(clips.depth)):
        mask = clips.depth[index] > 0
        count = int(anchored[index].sum())
        if count > 100:
            assert (prior.log_depth - truth)[index][mask].median().abs() < 0.3
    torch.testing.assert_close(prior.poses[:, 0], torch.eye(4).expand(12, 4, 4))
    assert (anchored.sum((1, 2, 3)) == 0).any()  # some have none


def test_looks_differ_between_clips_and_stay_within_one():
    images = torch.full((2, FRAMES, 3, *SIZE), 0.5)
    looks = camera_looks(images, np.random.default_rng(0))
    means = looks.mean((3, 4))
    assert looks.abs().max() <= 1
    assert (means[0, 0] - means[1, 0]).abs().max() > 0.02
    assert (means[:, 1:] - means[:, :1]).abs().max() < 0.5


def test_scores_of_the_truth_at_another_scale_are_perfect(pool):
    clips = pool.draw(2, FRAMES, np.random.default_rng(0))
    scores = depth_scores(clips.depth.clamp_min(1e-2).log() + 1.3, clips)
    assert max(scores["abs_rel"]) < 1e-3
    assert scores["delta"] == [1.0, 1.0]
    worse = depth_scores(clips.depth.clamp_min(1e-2).log() + 0.5 * torch.randn(clips.depth.shape), clips)
    assert min(worse["abs_rel"]) > 0.2


def test_the_loss_is_lowest_for_the_truth_and_for_honest_scales(pool):
    clips = pool.draw(2, FRAMES, np.random.default_rng(0))
    hit, moving, truth = clips.depth > 0, clips.moving, clips.depth.clamp_min(1e-2).log()
    has_prior = torch.tensor([True, True])
    noise = 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))

    def loss(error, log_scale, dynamic=moving):
        prediction = PointmapPrediction(
            truth + error, torch.full_like(truth, log_scale), dynamic.float() * 8 - 4, hit.float() * 8 - 4
        )
        return float(map_loss(prediction, truth, hit, moving, has_prior)[0])

    assert loss(0 * noise, -3) < loss(noise, -3)
    assert loss(noise, -1.8) < loss(noise, -4)
    assert loss(noise, -1.8) < loss(noise, 1)
    assert loss(noise, -1.8) < loss(noise, -1.8, ~moving)


def test_steps_lower_the_loss_of_a_batch(walks, tmp_path):
    torch.manual_seed(0)
    trainer = PointmapTrainer(dataclasses.replace(SMOKE, device="cpu", batch=3), tmp_path, 0.0)
    for walk in walks:
        trainer.feed.pools[SIZE].add(walk)
    batch = trainer.feed.draw()
    zero, level = torch.zeros_like(batch.inputs.image_latents), torch.ones(3)
    optimiser = torch.optim.AdamW(trainer.model.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        _, prediction = trainer.model.network(zero, level, batch.inputs)
        loss, _ = map_loss(prediction, batch.log_depth(), batch.hit, batch.clips.moving, batch.has_prior)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1


def test_all_stages_leave_a_model_a_log_and_a_picture(tmp_path):
    settings = dataclasses.replace(SMOKE, device="cpu")
    metrics = train_pointmaps(settings, tmp_path, steps=2, age_s=0.0)
    assert metrics["pass2_delta"] > 0
    model = load_pointmap_model(tmp_path, load_image_autoencoder(torch.device("cpu")))
    assert model.autoencoder.config.latents_std != [1.0] * 16
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["resumed"] is False
    assert "validation_pass1_abs_rel" in lines[-1]
    assert (tmp_path / "validation.png").is_file()
    train_pointmaps(settings, tmp_path, steps=1, age_s=0.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["resumed"] for line in lines if "resumed" in line] == [False, True]


def test_a_budget_that_is_gone_is_an_error_that_says_so(tmp_path):
    with pytest.raises(TrainingConfigError, match="give more minutes"):
        train_pointmaps(dataclasses.replace(SMOKE, device="cpu"), tmp_path, age_s=1e6)
    with pytest.raises(TrainingConfigError, match="no preset 'huge'"):
        preset("huge")


def test_training_needs_few_packages(tmp_path):
    python, environment = bare_python(tmp_path)
    environment["PYTHONPATH"] += f":{Path(worldstereo_ros.__file__).parents[1]}"
    code = "import worldstereo_ros.training.stages.pointmaps as p; print(p.preset('smoke').minutes)"
    done = subprocess.run([python, "-c", code], env=environment, text=True, capture_output=True)
    assert done.stdout.strip() == "2.0", done.stderr
