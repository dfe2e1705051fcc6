"""Errors of training configurations, commands and folders."""

import dataclasses

import pytest
import torch
import yaml
from helpers.training_runs import SMOKE
from safetensors.torch import save_file
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.training.config import TrainingConfigError, describe, read_training_config
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.training.runner import train_stages

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("change", "message"), [
    ({"sizes": [[30, 48]]}, "30x48 is not a multiple of 16"),
    ({"sizes": [[32]]}, "pairs of height and width"),
    ({"colour": "red"}, "colour is unknown; keys are"),
    ({"worlds": {"cache_size": "many"}}, "worlds: cache_size is 'many'; a int was expected"),
    ({"worlds": {"cache_size": 0}}, "must be 1 or more"),
    ({"stages": {"vide": {}}}, "the stage 'vide' is unknown"),
    ({"stages": {"video": {"learnrate": 1.0}}}, "learnrate is unknown"),
    ({"stages": {"video": {"batch": 0}}}, "batch of video is 0"),
    ({"stages": {"video": {"frames": 1}}}, "frames of video is 1"),
    ({"stages": {"video": {"ema": 1.0}}}, "ema of 0 to below 1"),
    ({"stages": {"video": {"precomputed_clips": -1}}}, "precomputed_clips of video is -1"),
    ({"stages": {"depth": {"precomputed_clips": 8}}}, "a number of clips for one of the stages video, control"),
    ({"stages": {"finetune": {"photographs_prob": 1.5}}}, "photographs_prob of finetune is 1.5"),
    ({"stages": {"video": {"photographs_prob": 0.5}}}, "one of the stages control, memory, distill, finetune"),
    ({"precision": "fp8"}, "precision is 'fp8'; no or bf16"),
    ({"transformer": None}, "transformer is None; keys and values"),
])  # fmt: skip
def test_invalid_value_is_named(tmp_path, change, message):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**describe(SMOKE), **change}))
    with pytest.raises(TrainingConfigError, match=message):
        read_training_config(file)


def test_missing_or_invalid_file_is_rejected(tmp_path):
    with pytest.raises(TrainingConfigError, match="one of cpu, gpu, smoke"):
        read_training_config("tpu")
    file = tmp_path / "mine.yaml"
    for text, message in (("a: [", "could not be read as YAML"), ("- 1", "holds a list"), ("seed: 1", "missing")):
        file.write_text(text)
        with pytest.raises(TrainingConfigError, match=message):
            read_training_config(file)


@pytest.mark.parametrize(("arguments", "message"), [
    (["train", "video", "--config", "tpu"], "There is no training configuration 'tpu'"),
    (["train", "video", "--config", "smoke", "--minutes", "0"], "0.0 minutes were given"),
    (["train", "package", "nowhere", "--out", "packed"], "There is no training configuration 'nowhere/settings.json'"),
    (["train", "package", "nowhere", "--out", "packed", "--config", "smoke"], "config.json is missing"),
])  # fmt: skip
def test_command_reports_errors_without_traceback(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_missing_gpu_is_reported(tmp_path, training_worlds):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingConfigError, match="no usable CUDA GPU"):
        train_stages(["video"], dataclasses.replace(SMOKE, device="cuda"), tmp_path, worlds=training_worlds)


def test_folder_without_worlds_and_other_file_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="no training worlds in"):
        WorldDataset(tmp_path, "training", 4)
    save_file({"image": torch.zeros(1)}, tmp_path / "training-000000000.safetensors")
    with pytest.raises(ValueError, match="is not a rendered world: it has the tensors"):
        RenderedWorld.load(tmp_path / "training-000000000.safetensors")
