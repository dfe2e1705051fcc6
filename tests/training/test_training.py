"""Training at toy size: every stage learns, goes on, is repeatable, ends well."""

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from helpers.training_runs import QUIET, SMOKE, copy_tree, toy_stage, weights_of
from safetensors.torch import load_file
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.training import runner
from worldstereo_ros.training.config import STAGES, read_training_config
from worldstereo_ros.training.logs import read_rounds, since_last_restart, write_line
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import train_stages
from worldstereo_ros.training.trainer import TrainingError, TrainingInterruptedError, train, uninterrupted

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the chain ---


def test_one_command_makes_every_variant_logs_and_pictures(trained):
    for part in ("base/vae", "base/transformer", *(VARIANT_OF.values()), "finetuned/base/vae"):
        assert (trained / part / "config.json").is_file()
    assert (trained / "base" / "scheduler" / "scheduler_config.json").is_file()
    for stage in STAGES:
        (first,) = read_rounds(trained / "logs" / f"{stage}.jsonl")
        assert first.steps == SMOKE.stages[stage].steps
        assert first.about["resumed"] is False
        assert first.about["settings"]["batch"] == SMOKE.stages[stage].batch
        assert first.figures["absrel"] < 3 if stage == "depth" else first.figures["psnr"] > 5
        assert (trained / "logs" / f"{stage}.png").stat().st_size > 1000
    assert read_training_config(trained / "settings.json") == SMOKE


def test_minutes_are_for_all_stages_together(tmp_path, training_worlds, monkeypatch):
    shared = []

    def instead(stage, accelerator, logs, *, minutes, **options):
        shared.append(minutes)
        return {}

    monkeypatch.setattr(runner, "train", instead)
    stages = {"autoencoder": dataclasses.replace(SMOKE.stages["autoencoder"], minutes=1.0)}
    settings = dataclasses.replace(SMOKE, stages=stages)
    train_stages(["autoencoder"] * 3, settings, tmp_path, minutes=30, worlds=training_worlds, console=QUIET)
    # Nothing was trained, so each stage gets its share of all that is left: a third, a half, the rest.
    assert shared == pytest.approx([10, 15, 30], abs=0.5)
    assert shared[2] < 30


@pytest.mark.parametrize("stage", ["video", "control", "memory", "distill", "finetune"])
def test_a_stage_says_which_one_must_come_before(tmp_path, training_worlds, stage):
    with pytest.raises(CheckpointError, match="train the stage autoencoder first"):
        toy_stage(tmp_path, training_worlds, stage)


def test_a_stage_says_what_an_earlier_one_left_out(trained_copy, training_worlds):
    (trained_copy / "worldstereo-camera" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="train the stage control first, memory builds on it"):
        toy_stage(trained_copy, training_worlds, "memory")


def test_weights_of_another_configuration_are_refused(trained_copy, training_worlds):
    wide = dataclasses.replace(SMOKE, transformer={**SMOKE.transformer, "ffn_dim": 128})
    with pytest.raises(CheckpointError, match="go on with the configuration of this run"):
        train_stages(["video"], wide, trained_copy, worlds=training_worlds, console=QUIET)
    other = dataclasses.replace(SMOKE, autoencoder={**SMOKE.autoencoder, "widths": (8, 16, 16)})
    with pytest.raises(CheckpointError, match=r"widths \[8, 8, 16\] and the configuration \[8, 16, 16\]"):
        train_stages(["video"], other, trained_copy, worlds=training_worlds, console=QUIET)


# --- learning ---


@pytest.mark.parametrize(("name", "player", "falls_to"), [
    ("autoencoder", 0, 0.7), ("video", 0, 0.5), ("control", 0, 0.8), ("memory", 0, 0.85), ("distill", 1, 0.5),
    ("finetune", 0, 0.5),
])  # fmt: skip
def test_the_loss_falls_on_a_fixed_batch(trained, training_worlds, name, player, falls_to):
    """The same clips, the same noise: what is left is learning. Stages with fewer free weights fall less."""
    stage = toy_stage(trained, training_worlds, name)
    with torch.no_grad():  # a last layer that starts at nothing and was trained for seconds hides all behind it
        for parameter_name, parameter in stage.model.named_parameters():
            if name in ("memory", "distill", "finetune") and parameter_name.endswith("render_head.weight"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    stage.start_step()
    trained = stage.parameter_groups[player]
    optimizer = torch.optim.Adam(trained.parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        stage._generator.manual_seed(0)
        stage._random = np.random.default_rng(3)
        loss, figures = trained.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(figures.get("regression", float(loss.detach())))
    assert losses[-1] < falls_to * losses[0]


def test_a_stage_trains_what_it_should_and_nothing_else(trained):
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


# --- again, and on ---


@pytest.mark.parametrize("name", ["autoencoder", "memory"])
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(trained_copy, tmp_path, training_worlds, name):
    again = tmp_path / "again"
    copy_tree(trained_copy, again)
    for folder in (trained_copy, again):
        torch.rand(int(folder is again))  # whatever the global generator did before
        train_stages([name], SMOKE, folder, steps=3, worlds=training_worlds, console=QUIET)
    first, second = weights_of(trained_copy), weights_of(again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first.keys() == second.keys()


def test_training_goes_on_from_the_weights_alone_with_other_draws(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    (trained_copy / "logs" / "video.png").unlink()
    result = CliRunner().invoke(
        app, ["train", "video", "--out", str(trained_copy), "--worlds", str(training_worlds), "--steps", "2"]
    )  # the configuration is the run's own
    assert result.exit_code == 0, result.output
    _, second = read_rounds(trained_copy / "logs" / "video.jsonl")
    assert (second.about["round"], second.about["resumed"], second.steps) == (1, True, 2)
    after = weights_of(trained_copy)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.startswith("base/transformer") for key in moved)
    assert toy_stage(trained_copy, training_worlds, "video").run.seeds("video") == [SMOKE.seed, 1, 2]


# --- how it ends ---


def test_numbers_that_are_not_finite_end_training_and_spare_the_weights(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    stage = toy_stage(trained_copy, training_worlds, "video")
    good = stage.parameter_groups[0].loss

    def loss():
        value, figures = good()
        return value * float("nan"), figures

    stage.parameter_groups[0].loss = loss
    with pytest.raises(TrainingError, match="not finite, at step 9; lower its learning_rate"):
        train(stage, stage.run.accelerator, trained_copy / "logs", steps=50, console=QUIET)
    after = weights_of(trained_copy)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(p).all() for p in stage.parameter_groups[0].parameters)


def test_one_bad_step_is_passed_over(trained_copy, training_worlds):
    stage = toy_stage(trained_copy, training_worlds, "video")
    good, calls = stage.parameter_groups[0].loss, []

    def loss():
        calls.append(1)
        value, figures = good()
        return value * (float("inf") if len(calls) == 2 else 1.0), figures

    stage.parameter_groups[0].loss = loss
    figures = train(stage, stage.run.accelerator, trained_copy / "logs", steps=4, console=QUIET)
    assert np.isfinite(figures["loss"])
    assert all(torch.isfinite(p).all() for p in stage.parameter_groups[0].parameters)


def test_ctrl_c_writes_what_was_learnt(trained_copy, training_worlds):
    before = weights_of(trained_copy)
    stage = toy_stage(trained_copy, training_worlds, "video", minutes=5.0)
    steps = iter(range(100))
    good = stage.start_step

    def start_step():
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        good()

    stage.start_step = start_step
    with pytest.raises(TrainingInterruptedError, match="after 3 steps; its weights are written"):
        train(stage, stage.run.accelerator, trained_copy / "logs", minutes=5, steps=0, console=QUIET)
    assert read_rounds(trained_copy / "logs" / "video.jsonl")[-1].steps == 3
    after = weights_of(trained_copy)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    toy_stage(trained_copy, training_worlds, "control")  # reads all of them


def test_ctrl_c_waits_for_what_must_not_be_cut():
    done = []

    def write():
        with uninterrupted():
            if threading.current_thread() is threading.main_thread():
                os.kill(os.getpid(), signal.SIGINT)
            done.append(threading.current_thread().name)

    with pytest.raises(KeyboardInterrupt):
        write()
    thread = threading.Thread(target=write, name="another thread, which signals never reach")
    thread.start()
    thread.join()
    assert done == [threading.main_thread().name, thread.name]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- the log ---


def test_logs_are_read_as_far_as_weights_were_written(tmp_path):
    log = tmp_path / "video.jsonl"
    write_line(log, {"step": 0, "seconds": 1.0, "validation_loss": 2.0})  # of the time before rounds had a first line
    write_line(log, {"step": 20, "seconds": 5.0, "video_loss": float("nan")})
    write_line(log, {"step": 30, "seconds": 9.0, "validation_loss": 1.0})
    write_line(log, {"step": 40, "seconds": 11.0, "video_loss": 1.0})  # a crash
    write_line(log, {"round": 1, "resumed": True})
    write_line(log, {"step": 0, "seconds": 1.0, "validation_loss": 0.9})
    write_line(log, {"step": 7, "seconds": 4.0, "interrupted": True})
    with log.open("a") as file:
        file.write('{"step": 9, "secon')
    assert [(one.steps, one.seconds, one.figures) for one in read_rounds(log)] == [
        (30, 9.0, {"loss": 1.0}),
        (7, 4.0, {"loss": 0.9}),
    ]
    with log.open("a") as file:
        file.write("\n")
    write_line(log, {"round": 2, "resumed": False})
    assert [one.about["round"] for one in since_last_restart(read_rounds(log))] == [2]
    assert json.loads(log.read_text().splitlines()[1])["video_loss"] is None
