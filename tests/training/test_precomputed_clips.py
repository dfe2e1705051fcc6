"""Clips that are sampled and encoded before training."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from helpers.training_runs import QUIET, SMOKE, toy_stage

from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import ClipSampler
from worldstereo_ros.training.logs import read_log
from worldstereo_ros.training.precomputed_clips import load_clips, precompute_clips
from worldstereo_ros.training.runner import train_stages
from worldstereo_ros.training.trainer import TrainingError

CPU = torch.device("cpu")
SOURCE = {"autoencoder": "a hash", "batch": "2"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def encode(trained, training_worlds):
    """Encodes clips as the stage finetune does during training."""
    return toy_stage(trained, training_worlds, "finetune").encode


@pytest.fixture
def sampler(training_worlds):
    sample = ClipSampler(2, 5, renders=True, memory=True, short_clip_prob=0.5)
    return lambda random: sample(WorldDataset(training_worlds, "training", 4), random, CPU)


def test_precomputed_clips_equal_clips_encoded_during_training(tmp_path, sampler, encode):
    files = precompute_clips(tmp_path, 6, sampler, encode, seed=[0, 5, 4], source=SOURCE, console=QUIET)
    has_references = set()
    for index, file in enumerate(files):
        expected = encode(sampler(np.random.default_rng([0, 5, 4, index])))
        loaded = load_clips(file, CPU)
        assert torch.equal(loaded.latents, expected.latents)
        assert torch.equal(loaded.condition, expected.condition)
        assert loaded.inputs.keys() == expected.inputs.keys()
        for name, value in expected.inputs.items():
            assert loaded.inputs[name].dtype == value.dtype, name
            assert torch.equal(loaded.inputs[name], value), name
        has_references.add("reference_latent" in loaded.inputs)
    assert True in has_references


def test_files_are_small_and_do_not_contain_plucker_rays(tmp_path, sampler, encode):
    (file, *_) = precompute_clips(tmp_path, 2, sampler, encode, seed=[0], source=SOURCE, console=QUIET)
    clips = load_clips(file, CPU)
    size = sum(tensor.nbytes for tensor in (clips.latents, clips.condition, *clips.inputs.values()))
    assert file.stat().st_size < size / 3


def test_precomputing_resumes_after_an_interruption(tmp_path, sampler, encode):
    whole = precompute_clips(tmp_path / "whole", 6, sampler, encode, seed=[1], source=SOURCE, console=QUIET)

    def interrupted(batch, count=[0]):  # noqa: B006 - counts the calls
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        precompute_clips(tmp_path / "parts", 6, sampler, interrupted, seed=[1], source=SOURCE, console=QUIET)
    (first,) = (tmp_path / "parts").iterdir()
    written = first.stat().st_mtime_ns
    (tmp_path / "parts" / "000001.safetensors.7.part").write_bytes(b"unfinished")
    parts = precompute_clips(tmp_path / "parts", 6, sampler, encode, seed=[1], source=SOURCE, console=QUIET)
    assert first.stat().st_mtime_ns == written
    assert [file.read_bytes() for file in parts] == [file.read_bytes() for file in whole]
    assert sorted((tmp_path / "parts").iterdir()) == parts


def test_clips_of_another_configuration_are_rejected(tmp_path, sampler, encode):
    precompute_clips(tmp_path, 2, sampler, encode, seed=[0], source=SOURCE, console=QUIET)
    changed = {**SOURCE, "autoencoder": "another hash"}
    with pytest.raises(TrainingConfigError, match=r"or other weights \(autoencoder changed\); delete the folder"):
        precompute_clips(tmp_path, 2, sampler, encode, seed=[0], source=changed, console=QUIET)


def test_full_disk_is_reported_before_anything_is_written(tmp_path, sampler, encode, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=600_000_000))
    with pytest.raises(TrainingError, match=r"1000000 precomputed clips take about \d+\.\d GB"):
        precompute_clips(tmp_path, 1_000_000, sampler, encode, seed=[0], source=SOURCE, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_finetune_trains_on_precomputed_clips(trained_copy, training_worlds):
    options = {"precomputed_clips": 4, "pixel_share": 0.0, "covered_weight": 1.0}
    stage = toy_stage(trained_copy, training_worlds, "finetune", **options)
    assert stage.stream is None
    with torch.no_grad():  # the last layer starts at zero and would block the gradients of all others
        for name, parameter in stage.model.named_parameters():
            if name.endswith("render_head.weight"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    (group,) = stage.parameter_groups
    optimizer = torch.optim.Adam(group.parameters, lr=3e-3)
    epochs = []
    for _ in range(15):
        losses = []
        for _ in range(2):
            stage.start_step()
            stage.generator.manual_seed(0)
            loss, _ = group.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        epochs.append(np.mean(losses))
    assert epochs[-1] < 0.6 * epochs[0]


def test_all_training_periods_use_the_same_precomputed_clips(trained_copy, training_worlds):
    stage = dataclasses.replace(SMOKE.stages["finetune"], precomputed_clips=4, steps=3)
    config = dataclasses.replace(SMOKE, stages={**SMOKE.stages, "finetune": stage}, notes="a second period")
    folder = trained_copy / "clips" / "finetune"
    contents = []
    for _ in range(2):
        train_stages(["finetune"], config, trained_copy, worlds=training_worlds, console=QUIET)
        contents.append({file: file.stat().st_mtime_ns for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2
    header = read_log(trained_copy / "logs" / "finetune.jsonl")[-1].header
    assert header["settings"]["precomputed_clips"] == 4
    assert header["notes"] == "a second period"
