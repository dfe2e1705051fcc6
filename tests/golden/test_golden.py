"""Cameras, retrieval, networks and scheduler against golden numbers of the reference implementation.

Set `WORLDSTEREO_GOLDEN=folder` to test against another set of golden files: `geometry.safetensors` with cameras, any
number of schedules (`dmd.timesteps.start250.shift5.n4`) and trajectories (`ret.NAME.w2c`, ...), and a folder with
config.json, model.safetensors and io.safetensors for each network. What is there is tested; a kind of which there is
nothing is an error.
"""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.models.worldstereo.camera_embedding import normalise_cameras, plucker_embedding, pose_vectors
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer


@pytest.fixture(scope="module")
def golden(shared_golden):
    return load_numpy(shared_golden / "geometry.safetensors")


def load_network(folder):
    config = json.loads((folder / "config.json").read_text())
    model = WorldStereoTransformer(**config["back"], controlnet_cfg=config["ctrl"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))  # strict: all keys must match
    io = load_file(folder / "io.safetensors")
    return model, {k[3:]: v for k, v in io.items() if k.startswith("in.")}, io["out.sample"]


def networks(folder):
    """Folders of the networks of this project; a set may hold those of others."""
    found = []
    for file in sorted(folder.glob("*/config.json")):
        if {"back", "ctrl"} <= set(json.loads(file.read_text())) and (file.parent / "io.safetensors").is_file():
            found.append(file.parent)
    assert found, f"{folder} has no network"
    return found


def test_transformers_match_golden_numbers(shared_golden):
    for folder in networks(shared_golden):
        model, inputs, expected = load_network(folder)
        with torch.no_grad():
            sample = model(**inputs).sample
        assert sample.shape == expected.shape, folder.name
        error = (sample - expected).abs().max().item()
        assert error <= 1e-4, f"{folder.name}: {error:.2e}"


def test_transformer_output_depends_on_references(shared_golden):
    """Without references the output differs, so that the golden numbers test the memory branch."""
    loaded = (load_network(folder) for folder in networks(shared_golden))
    with_references = next((network for network in loaded if "reference_latent" in network[1]), None)
    if with_references is None:
        pytest.skip("no network of this set has references")
    model, inputs, expected = with_references
    inputs = {k: v for k, v in inputs.items() if k not in ("reference_latent", "ref_index", "camera_qt_ref")}
    with torch.no_grad():
        assert (model(**inputs).sample - expected).abs().max() > 1e-2


def test_dmd_timesteps_match_golden_numbers(golden):
    pattern = re.compile(r"dmd\.timesteps\.start([\d.]+)\.shift([\d.]+)\.n(\d+)")
    schedules = {name: match for name in golden if (match := pattern.fullmatch(name))}
    assert schedules
    for name, match in schedules.items():
        scheduler = DMDScheduler(start_timestep=float(match[1]), shift=float(match[2]), steps=int(match[3]))
        np.testing.assert_allclose(scheduler.timesteps.numpy(), golden[name], atol=1e-3, rtol=1e-6, err_msg=name)


def test_dmd_steps_match_golden_numbers(golden):
    scheduler = DMDScheduler()
    sample = torch.from_numpy(golden["dmd.x0"])
    for index, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(torch.from_numpy(golden[f"dmd.v{index}"]), timestep, sample).prev_sample
        np.testing.assert_allclose(sample.numpy(), golden[f"dmd.x{index + 1}"], atol=1e-5)


def test_camera_normalisation_and_embedding_match_golden_numbers(golden):
    targets, references = normalise_cameras(golden["cam.w2c"], golden["cam.ref_w2c"])
    np.testing.assert_allclose(targets, golden["cam.norm_w2c"], atol=1e-5)
    np.testing.assert_allclose(references, golden["cam.norm_ref_w2c"], atol=1e-5)
    np.testing.assert_allclose(pose_vectors(targets), golden["cam.qt"], atol=1e-5)
    np.testing.assert_allclose(pose_vectors(references), golden["cam.qt_ref"], atol=1e-5)
    height, width = golden["cam.embedding"].shape[-2:]
    embedding = plucker_embedding(targets, golden["cam.K"], height, width)
    np.testing.assert_allclose(embedding[None], golden["cam.embedding"], atol=1e-5)


def test_retrieval_scores_match_golden_numbers(golden):
    width, height = (int(n) for n in golden["ret.size_wh"])
    names = sorted(key.split(".", 1)[1].rpartition(".")[0] for key in golden if re.fullmatch(r"ret\..+\.w2c", key))
    assert names
    for name in names:
        scores, angles = retrieval_scores(
            golden[f"ret.{name}.w2c"], golden["ret.bank_w2c"], golden[f"ret.{name}.K"], golden["ret.bank_K"], width,
            height,
        )  # fmt: skip
        best = scores.argmax(axis=1)
        np.testing.assert_array_equal(best, golden[f"ret.{name}.best"], err_msg=name)
        rows = np.arange(len(best))
        np.testing.assert_allclose(scores[rows, best], golden[f"ret.{name}.score"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(angles[rows, best], golden[f"ret.{name}.angle_deg"], atol=1e-3, err_msg=name)
