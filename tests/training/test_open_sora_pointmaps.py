import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.open_sora import AUTOENCODER, TRANSFORMER, fill
from safetensors.torch import save_file

from worldstereo_ros.models.pointmaps.model import save_part
from worldstereo_ros.models.pointmaps.open_sora_autoencoder import OpenSoraVideoAutoencoder
from worldstereo_ros.models.pointmaps.published import PublishedPointmaps
from worldstereo_ros.models.pointmaps.stdit3 import STDiT3
from worldstereo_ros.pipelines.pointmaps.refinement import estimate_without_prior, load_model
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.open_sora_settings import OPEN_SORA_PRESETS, open_sora_folders, open_sora_preset
from worldstereo_ros.training.stages import open_sora_pointmaps
from worldstereo_ros.training.stages.open_sora_pointmaps import train_open_sora
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
SMOKE = dataclasses.replace(OPEN_SORA_PRESETS["smoke"], minutes=30.0, device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A download with tiny random weights, in the published layout."""
    folder = tmp_path_factory.mktemp("open-sora")
    transformer = folder / "OpenSora-STDiT-v3"
    transformer.mkdir()
    save_file(fill(STDiT3(**TRANSFORMER)).state_dict(), transformer / "model.safetensors")
    (transformer / "config.json").write_text(json.dumps({"model_type": "STDiT3", "qk_norm": True}))
    autoencoder = fill(OpenSoraVideoAutoencoder(**AUTOENCODER))
    save_part(folder / "OpenSora-VAE-v1.2", autoencoder, autoencoder.state_dict(), torch.float32)
    return f"open-sora:{folder}"


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    patch.setattr(open_sora_pointmaps, "VALIDATION_STEPS", (1, 2))
    metrics = train_open_sora(SMOKE, base, folder, steps=3, age_s=0.0)
    patch.undo()
    return folder, metrics


def test_both_stages_train_and_validate(run):
    folder, metrics = run
    assert {"coded_rel_p", "steps_1_rel_p", "steps_2_delta_p"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6


def test_a_run_is_loaded_and_gives_point_maps(run, base):
    folder, _ = run
    model = PublishedPointmaps.from_pretrained(folder / "transformer", folder / "vae")
    first = fill(STDiT3(**TRANSFORMER)).x_embedder.proj.weight
    weight = model.transformer.x_embedder.proj.weight
    assert weight.shape[1] == 8
    assert weight[:, 4:].abs().max() > 0  # the latent of the images has been learned from
    assert not torch.equal(weight[:, :4], first)
    assert not torch.equal(model.autoencoder.get_buffer("scale"), model.image_autoencoder.get_buffer("scale"))
    images, intrinsics = torch.rand(1, 5, 3, 32, 48) * 2 - 1, torch.tensor([[40.0, 40, 23.5, 15.5]])
    one, again = (
        model.sample(images, intrinsics, steps=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert one.points.shape == (1, 5, 3, 32, 48)
    assert one.log_scale.shape == one.valid.shape == (1, 5, 32, 48)
    assert torch.equal(one.points, again.points)
    other = model.sample(-images, intrinsics, steps=2, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(one.points, other.points)
    with pytest.raises(InputError, match="--prior none"):
        model.refine(images, intrinsics, None)


def test_the_command_of_point_maps_takes_a_run(run):
    frames = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(3)]
    maps = estimate_without_prior(frames, None, load_model(run[0]), steps=1)
    assert maps.method == "small-no-prior"
    assert maps.points.shape[1:3] == (32, 48)  # the size that it was trained at
    assert len(maps.poses) == 3


def test_a_run_is_continued(run, base, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    settings = dataclasses.replace(SMOKE, validation_worlds=0, first_walks=1)
    train_open_sora(settings, base, folder, steps=1, age_s=0.0)
    starts = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["resumed"] for line in starts if "resumed" in line] == [False, True]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(TrainingConfigError, match="open-sora:FOLDER was expected"):
        open_sora_folders("sora")
    with pytest.raises(TrainingConfigError, match="no folder transformer or OpenSora-STDiT-v3"):
        open_sora_folders(f"open-sora:{tmp_path}")
    with pytest.raises(TrainingConfigError, match="no preset 'cpu'"):
        open_sora_preset("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_published_size_is_for_a_gpu(base, tmp_path):
    with pytest.raises(TrainingConfigError, match="needs a CUDA GPU"):
        train_open_sora(OPEN_SORA_PRESETS["gpu"], base, tmp_path)
