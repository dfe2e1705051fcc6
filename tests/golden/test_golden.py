"""Cameras, retrieval, networks and scheduler against golden numbers of the reference implementation.

Set `WORLDSTEREO_GOLDEN=folder` to test against another set of golden files.
"""

import json

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


@pytest.mark.parametrize("variant", ["camera", "memory", "memory_frozen_ref"])
def test_transformer_matches_golden_numbers(shared_golden, variant):
    model, inputs, expected = load_network(shared_golden / variant)
    with torch.no_grad():
        sample = model(**inputs).sample
    assert sample.shape == expected.shape
    error = (sample - expected).abs().max().item()
    assert error <= 1e-4, f"{variant}: {error:.2e}"


def test_transformer_output_depends_on_references(shared_golden):
    """Without references the output differs, so that the golden numbers test the memory branch."""
    model, inputs, expected = load_network(shared_golden / "memory")
    inputs = {k: v for k, v in inputs.items() if k not in ("reference_latent", "ref_index", "camera_qt_ref")}
    with torch.no_grad():
        assert (model(**inputs).sample - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("start", "shift", "steps"), [(250, 5, 4), (0, 3, 4), (250, 1, 8)])
def test_dmd_timesteps_match_golden_numbers(golden, start, shift, steps):
    scheduler = DMDScheduler(start_timestep=start, shift=shift, steps=steps)
    expected = golden[f"dmd.timesteps.start{start}.shift{shift}.n{steps}"]
    np.testing.assert_allclose(scheduler.timesteps.numpy(), expected, atol=1e-3, rtol=1e-6)


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


@pytest.mark.parametrize("name", ["view0_traj0", "view1_traj2"])
def test_retrieval_scores_match_golden_numbers(golden, name):
    width, height = (int(n) for n in golden["ret.size_wh"])
    scores, angles = retrieval_scores(
        golden[f"ret.{name}.w2c"], golden["ret.bank_w2c"], golden[f"ret.{name}.K"], golden["ret.bank_K"], width, height
    )
    best = scores.argmax(axis=1)
    np.testing.assert_array_equal(best, golden[f"ret.{name}.best"])
    rows = np.arange(len(best))
    np.testing.assert_allclose(scores[rows, best], golden[f"ret.{name}.score"], atol=1e-5)
    np.testing.assert_allclose(angles[rows, best], golden[f"ret.{name}.angle_deg"], atol=1e-3)
