"""Training at toy size: losses fall, runs resume and are reproducible, interruptions keep the weights."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from helpers.training_runs import QUIET, SMOKE, copy_tree, toy_stage, weights_of
from safetensors.torch import load_file
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.training import runner
from worldstereo_ros.training.config import STAGES, TrainingConfigError, read_training_config
from worldstereo_ros.training.logs import append_log, read_log, since_last_restart
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import train_stages
from worldstereo_ros.training.trainer import TrainingError, TrainingInterruptedError, train, uninterrupted

pytestmark = pytest.mark.usefixtures("one_thread")


# --- all stages ---


def test_train_all_writes_every_variant_log_and_image(trained):
    for part in ("base/vae", "base/transformer", *(VARIANT_OF.values()), "finetuned/base/vae"):
        assert (trained / part / "config.json").is_file()
    assert (trained / "base" / "scheduler" / "scheduler_config.json").is_file()
    for stage in STAGES:
        (first,) = read_log(trained / "logs" / f"{stage}.jsonl")
        assert first.steps == SMOKE.stages[stage].steps
        assert first.header["resumed"] is False
        assert first.header["settings"]["batch"] == SMOKE.stages[stage].batch
        assert first.metrics["absrel"] < 3 if stage == "depth" else first.metrics["psnr"] > 5
        assert (trained / "logs" / f"{stage}.png").stat().st_size > 1000
    assert read_training_config(trained / "settings.json") == SMOKE


def test_minutes_are_divided_among_the_stages(tmp_path, training_worlds, monkeypatch):
    budgets = []

    def fake_train(stage, accelerator, logs, *, minutes, **options):
        budgets.append(minutes)
        return {}

    monkeypatch.setattr(runner, "train", fake_train)
    stages = {"autoencoder": dataclasses.replace(SMOKE.stages["autoencoder"], minutes=1.0)}
    config = dataclasses.replace(SMOKE, stages=stages)
    train_stages(["autoencoder"] * 3, config, tmp_path, minutes=30, worlds=training_worlds, console=QUIET)
    # No time passes, so each stage gets its part of the whole budget: a third, a half, all of it.
    assert budgets == pytest.approx([10, 15, 30], abs=0.5)
    assert budgets[2] < 30


@pytest.mark.parametrize("stage", ["video", "control", "memory", "distill", "finetune"])
def test_stage_without_earlier_weights_names_the_missing_stage(tmp_path, training_worlds, stage):
    with pytest.raises(CheckpointError, match="train the stage autoencoder first"):
        toy_stage(tmp_path, training_worlds, stage)


def test_stage_names_the_stage_whose_weights_are_incomplete(trained_copy, training_worlds):
    (trained_copy / "worldstereo-camera" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="train the stage control first, on which memory builds"):
        toy_stage(trained_copy, training_worlds, "memory")


def test_weights_of_another_configuration_are_rejected(trained_copy, training_worlds):
    wide = dataclasses.replace(SMOKE, transformer={**SMOKE.transformer, "ffn_dim": 128})
    with pytest.raises(CheckpointError, match="use the configuration of this run"):
        train_stages(["video"], wide, trained_copy, worlds=training_worlds, console=QUIET)
    other = dataclasses.replace(SMOKE, autoencoder={**SMOKE.autoencoder, "widths": (8, 16, 16)})
    with pytest.raises(CheckpointError, match=r"widths \[8, 8, 16\] and the configuration \[8, 16, 16\]"):
        train_stages(["video"], other, trained_copy, worlds=training_worlds, console=QUIET)


# --- learning ---


@pytest.mark.parametrize(("name", "group", "falls_to"), [
    ("autoencoder", 0, 0.7), ("video", 0, 0.5), ("control", 0, 0.8), ("memory", 0, 0.85), ("distill", 1, 0.5),
    ("finetune", 0, 0.5),
])  # fmt: skip
def test_loss_falls_on_a_fixed_batch(trained, training_worlds, name, group, falls_to):
    """With the same clips and noise in each step. The loss of stages with fewer trained weights falls less."""
    stage = toy_stage(trained, training_worlds, name)
    with torch.no_grad():  # the last layer starts at zero and would block the gradients of all others
        for parameter_name, parameter in stage.model.named_parameters():
            if name in ("memory", "distill", "finetune") and parameter_name.endswith("render_head.weight"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    stage.start_step()
    parameters = stage.parameter_groups[group]
    optimizer = torch.optim.Adam(parameters.parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        stage.generator.manual_seed(0)
        stage.random = np.random.default_rng(3)
        loss, values = parameters.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(values.get("regression", float(loss.detach())))
    assert losses[-1] < falls_to * losses[0]


def test_each_stage_changes_only_its_own_parameters(trained):
    base = load_file(trained / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    camera = load_file(trained / "worldstereo-camera" / "model.safetensors")
    memory = load_file(trained / "worldstereo-memory" / "model.safetensors")
    whole = load_file(trained / "worldstereo-memory-dmd" / "model.safetensors")
    assert all(name.startswith("controlnet.") for name in camera)
    blocks = {name for name in whole if name.startswith("blocks.") and (".ffn." in name or ".attn1." in name)}
    assert set(memory) == set(camera) | blocks | {name for name in whole if name.startswith("camera_embedding.")}
    assert all(torch.equal(memory[name], camera[name]) and torch.equal(whole[name], camera[name]) for name in camera)
    changed = {name for name in base if not torch.equal(base[name], memory.get(name, base[name]))}
    assert changed
    assert all(".ffn." in name or ".attn1." in name for name in changed)
    assert not torch.equal(whole["patch_embedding.weight"], base["patch_embedding.weight"])
    assert torch.equal(whole["camera_embedding.0.weight"], memory["camera_embedding.0.weight"])
    finetuned = load_file(trained / "finetuned" / "worldstereo-memory-dmd" / "model.safetensors")
    assert finetuned.keys() == whole.keys()
    steps = [
        json.loads((trained / VARIANT_OF[stage] / "config.json").read_text())["dmd_steps"]
        for stage in ("distill", "finetune")
    ]
    assert steps == [SMOKE.dmd_steps, SMOKE.stages["finetune"].denoising_steps]
    assert not torch.equal(finetuned["controlnet.render_head.weight"], whole["controlnet.render_head.weight"])


# --- reproducibility and resuming ---


@pytest.mark.parametrize("name", ["autoencoder", "memory"])
def test_same_seed_gives_equal_weights(trained_copy, tmp_path, training_worlds, name):
    again = tmp_path / "again"
    copy_tree(trained_copy, again)
    for folder in (trained_copy, again):
        torch.rand(int(folder is again))  # another state of the global generator
        train_stages([name], SMOKE, folder, steps=3, worlds=training_worlds, console=QUIET)
    first, second = weights_of(trained_copy), weights_of(again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first.keys() == second.keys()


def test_training_resumes_from_weights_with_other_random_numbers(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    (trained_copy / "logs" / "video.png").unlink()
    result = CliRunner().invoke(
        app, ["train", "video", "--out", str(trained_copy), "--worlds", str(training_worlds), "--steps", "2"]
    )  # with the configuration of the run
    assert result.exit_code == 0, result.output
    _, second = read_log(trained_copy / "logs" / "video.jsonl")
    assert (second.header["round"], second.header["resumed"], second.steps) == (1, True, 2)
    after = weights_of(trained_copy)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.startswith("base/transformer") for key in moved)
    assert toy_stage(trained_copy, training_worlds, "video").run.random_seed("video") == [SMOKE.seed, 1, 2]


# --- failures and interruptions ---


def test_repeated_nan_stops_training_and_keeps_the_weights(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    stage = toy_stage(trained_copy, training_worlds, "video")
    original = stage.parameter_groups[0].loss

    def loss():
        value, values = original()
        return value * float("nan"), values

    stage.parameter_groups[0].loss = loss
    with pytest.raises(TrainingError, match="not finite, at step 9; lower its learning_rate"):
        train(stage, stage.run.accelerator, trained_copy / "logs", steps=50, console=QUIET)
    after = weights_of(trained_copy)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(p).all() for p in stage.parameter_groups[0].parameters)


def test_single_infinite_loss_is_skipped(trained_copy, training_worlds):
    stage = toy_stage(trained_copy, training_worlds, "video")
    original, calls = stage.parameter_groups[0].loss, []

    def loss():
        calls.append(1)
        value, values = original()
        return value * (float("inf") if len(calls) == 2 else 1.0), values

    stage.parameter_groups[0].loss = loss
    metrics = train(stage, stage.run.accelerator, trained_copy / "logs", steps=4, console=QUIET)
    assert np.isfinite(metrics["loss"])
    assert all(torch.isfinite(p).all() for p in stage.parameter_groups[0].parameters)


def test_ctrl_c_saves_the_weights(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    stage = toy_stage(trained_copy, training_worlds, "video", minutes=5.0)
    steps = iter(range(100))
    original = stage.start_step

    def start_step():
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        original()

    stage.start_step = start_step
    with pytest.raises(TrainingInterruptedError, match="after 3 steps; its weights are saved"):
        train(stage, stage.run.accelerator, trained_copy / "logs", minutes=5, steps=0, console=QUIET)
    assert read_log(trained_copy / "logs" / "video.jsonl")[-1].steps == 3
    after = weights_of(trained_copy)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    toy_stage(trained_copy, training_worlds, "control")  # reads all of them


def test_uninterrupted_defers_ctrl_c():
    done = []

    def write():
        with uninterrupted():
            if threading.current_thread() is threading.main_thread():
                os.kill(os.getpid(), signal.SIGINT)
            done.append(threading.current_thread().name)

    with pytest.raises(KeyboardInterrupt):
        write()
    thread = threading.Thread(target=write, name="not the main thread, which never gets signals")
    thread.start()
    thread.join()
    assert done == [threading.main_thread().name, thread.name]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tracker_of_accelerate_gets_all_logged_values(trained_copy, training_worlds):
    logged = []

    class Recorder(GeneralTracker):
        name, requires_logging_directory = "recorder", False

        def __init__(self):
            super().__init__()

        @property
        def tracker(self):
            return logged

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **options):
            logged.append((step, values))

    stage = toy_stage(trained_copy, training_worlds, "video")
    accelerator = Accelerator(cpu=True, log_with=[Recorder()])
    accelerator.init_trackers("worldstereo")
    metrics = train(stage, accelerator, trained_copy / "logs", steps=2, console=QUIET)
    assert logged[-1][0] == 2
    assert logged[-1][1]["video/validation_loss"] == pytest.approx(metrics["loss"])
    assert {"video/video_loss", "video/rate"} <= set(logged[1][1])


def test_unknown_or_missing_tracker_is_rejected(tmp_path, training_worlds):
    with pytest.raises(TrainingConfigError, match="log_with is 'magic': Unsupported logging capability"):
        train_stages(["video"], dataclasses.replace(SMOKE, log_with="magic"), tmp_path, worlds=training_worlds)


def test_training_imports_without_open3d_and_ros():
    code = "import sys, worldstereo_ros.training.runner, worldstereo_ros.training.packaging; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"open3d", "rclpy", "viser", "rosbags", "imageio", "matplotlib"} & set(result.stdout.split())


# --- logs ---


def test_read_log_counts_steps_up_to_the_last_saved_weights(tmp_path):
    log = tmp_path / "video.jsonl"
    append_log(log, {"step": 0, "seconds": 1.0, "validation_loss": 2.0})  # a log without header
    append_log(log, {"step": 20, "seconds": 5.0, "video_loss": float("nan")})
    append_log(log, {"step": 30, "seconds": 9.0, "validation_loss": 1.0})
    append_log(log, {"step": 40, "seconds": 11.0, "video_loss": 1.0})  # a crash
    append_log(log, {"round": 1, "resumed": True})
    append_log(log, {"step": 0, "seconds": 1.0, "validation_loss": 0.9})
    append_log(log, {"step": 7, "seconds": 4.0, "interrupted": True})
    with log.open("a") as file:
        file.write('{"step": 9, "secon')
    assert [(period.steps, period.seconds, period.metrics) for period in read_log(log)] == [
        (30, 9.0, {"loss": 1.0}),
        (7, 4.0, {"loss": 0.9}),
    ]
    with log.open("a") as file:
        file.write("\n")
    append_log(log, {"round": 2, "resumed": False})
    assert [period.header["round"] for period in since_last_restart(read_log(log))] == [2]
    assert json.loads(log.read_text().splitlines()[1])["video_loss"] is None
