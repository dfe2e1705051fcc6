import dataclasses
import json

import numpy as np
import pytest
import torch

from worldstereo_ros.models.pointmaps.model import load_pointmap_model
from worldstereo_ros.pipelines.pointmaps.refinement import estimate_without_prior, load_model
from worldstereo_ros.training.data.moving_walks import Walk
from worldstereo_ros.training.pointmap_settings import preset
from worldstereo_ros.training.pointmap_validation import _path_error
from worldstereo_ros.training.stages.pointmaps import load_image_autoencoder
from worldstereo_ros.training.stages.pointmaps_without_prior import TrainerWithoutPrior, train_without_prior
from worldstereo_ros.utils.errors import InputError

SMOKE = dataclasses.replace(preset("smoke", prior=False), device="cpu", minutes=30.0, validation_s=1e9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train_without_prior(SMOKE, folder, steps=2, age_s=0.0)


def test_a_run_leaves_a_model_that_samples(run):
    folder, metrics = run
    assert {"1_rel_p", "8_ate", "still_ate", "depth_abs_rel"} <= set(metrics)
    frames = [np.full((48, 64, 3), 40 * n, np.uint8) for n in range(4)]
    for steps in (1, 4):
        maps = estimate_without_prior(frames, None, load_model(folder), steps=steps)
        assert maps.points.shape[0] == 4
        assert maps.ok == maps.frame_ok.all()
    with pytest.raises(InputError, match="none was given"):
        load_pointmap_model(folder, load_image_autoencoder(torch.device("cpu")))


def test_walks_are_kept_and_read_again(run):
    folder, _ = run
    files = sorted((folder / "walks").glob("*.npz"))
    assert len(files) >= SMOKE.first_walks
    trainer = TrainerWithoutPrior(SMOKE, folder, 0.0)
    assert trainer.resumed
    assert trainer.walk_feed.walks() == len(files)
    walk = Walk.load(files[0])
    assert walk.image.dtype == np.uint8
    train_without_prior(SMOKE, folder, steps=1, age_s=0.0)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["resumed"] for line in lines if "resumed" in line] == [False, True]


def test_steps_lower_the_loss_of_a_batch(run):
    torch.manual_seed(0)
    trainer = TrainerWithoutPrior(dataclasses.replace(SMOKE, reuse=1000), run[0], 0.0)
    optimiser = torch.optim.AdamW(trainer.model.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss, parts = trainer.flow_step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(parts["code"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.01


def test_a_path_is_compared_after_a_similarity():
    random = np.random.default_rng(0)
    truth = random.normal(size=(9, 3))
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert _path_error(3 * truth @ turn.T + 1, truth) == pytest.approx(0, abs=1e-9)
    still = np.sqrt(np.square(truth - truth.mean(0)).sum(1).mean())
    assert _path_error(np.zeros((9, 3)), truth) == pytest.approx(still)
