"""Runs that start from packaged weights, and the configuration for a GPU, which starts from the bundled ones."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from helpers.training_runs import QUIET, SMOKE, weights_of
from safetensors.torch import load_file
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.training.config import read_training_config
from worldstereo_ros.training.logs import read_log
from worldstereo_ros.training.packaging import package_weights
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.runner import train_stages
from worldstereo_ros.training.starting_weights import STARTED_FROM, start_run
from worldstereo_ros.weights.bundled import bundled_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def package(trained, tmp_path):
    package_weights(trained, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def config(package):
    stages = {name: SMOKE.stages[name] for name in ("finetune", "depth")}
    return dataclasses.replace(SMOKE, start_from=str(package), stages=stages)


def test_new_run_starts_from_the_weights_of_a_package(package, config, tmp_path):
    run = RunFolder(tmp_path / "run", config, Accelerator(cpu=True))
    run.folder.mkdir()
    assert start_run(run.folder, config)
    model = run.transformer("finetune")
    expected = load_file(package / "worldstereo-memory-dmd" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in model.state_dict().items())
    assert [stage for stage in ("autoencoder", "video", "control", "finetune", "depth") if run.has(stage)] == [
        "autoencoder",
        "finetune",
        "depth",
    ]
    assert sorted(file.name for file in run.folder.iterdir()) == ["base", "finetuned", STARTED_FROM]


def test_later_training_keeps_the_weights_of_the_run(config, tmp_path, training_worlds):
    folder = tmp_path / "run"
    for _ in range(2):
        train_stages(["finetune"], config, folder, steps=1, worlds=training_worlds, console=QUIET)
    first, second = read_log(folder / "logs" / "finetune.jsonl")
    assert first.header["resumed"]
    assert second.header["resumed"]
    before = weights_of(folder)
    assert not start_run(folder, config)
    assert all(torch.equal(before[key], tensor) for key, tensor in weights_of(folder).items())
    package_weights(folder, tmp_path / "again")
    assert STARTED_FROM in (tmp_path / "again" / "README.md").read_text()
    assert (tmp_path / "again" / STARTED_FROM).read_text() == (tmp_path / "packed" / "README.md").read_text()


def test_train_all_takes_the_configured_stages_and_reports_each_save(config, tmp_path, training_worlds, monkeypatch):
    from worldstereo_ros.training import config as config_module

    monkeypatch.setattr(config_module, "read_training_config", lambda file: config)
    arguments = ["train", "all", "--out", str(tmp_path / "run"), "--worlds", str(training_worlds), "--steps", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "finetune, depth trained" in " ".join(result.output.split())
    saves = []
    train_stages(
        ["depth"],
        config,
        tmp_path / "run",
        steps=1,
        worlds=training_worlds,
        console=QUIET,
        on_save=lambda: saves.append(1),
    )
    assert len(saves) >= 1


@pytest.mark.parametrize(("change", "message"), [
    ({"start_from": "nowhere"}, r"start_from is 'nowhere', and nowhere/base/vae is missing"),
    ({"transformer": {**SMOKE.transformer, "num_attention_heads": 4, "attention_head_dim": 12}},
     r"num_attention_heads 2 and the configuration 4"),  # the shapes of all tensors are equal
    ({"control": {**SMOKE.control, "num_heads": 4}}, "num_heads 2 and the configuration 4"),
    ({"depth": {**SMOKE.depth, "heads": 1}}, "heads 2 and the configuration 1"),
])  # fmt: skip
def test_missing_or_other_weights_are_rejected(config, tmp_path, change, message):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=message):
        start_run(tmp_path / "run", dataclasses.replace(config, **change))
    assert not list((tmp_path / "run").iterdir())


def test_gpu_configuration_continues_from_the_bundled_weights(tmp_path):
    """The networks are those that ship, so that the weights of a round fit into the package."""
    config = dataclasses.replace(read_training_config("gpu"), device="cpu")
    start_run(tmp_path, config)
    run = RunFolder(tmp_path, config, Accelerator(cpu=True))
    expected = load_file(bundled_folder("small") / "worldstereo-memory-dmd" / "model.safetensors")
    model = run.transformer("finetune")
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in model.state_dict().items())
    run.autoencoder()
    run.depth_network({})
    variant = json.loads((bundled_folder("small") / "worldstereo-memory-dmd" / "config.json").read_text())
    assert [list(size) for size in config.sizes] == variant["scale_map"]
    assert config.nframe == variant["nframe"]
    assert config.stages["finetune"].denoising_steps == variant["dmd_steps"]
    assert sum(stage.minutes for stage in config.stages.values()) <= 10
