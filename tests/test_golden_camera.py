"""Cameras and retrieval against the reference numbers of the published implementation."""

import numpy as np
import pytest

from worldstereo_ros.camera import normalise_cameras, plucker_embedding, pose_vectors, retrieval_scores


@pytest.fixture(scope="module")
def golden(shared_golden):
    from safetensors.numpy import load_file

    return load_file(shared_golden / "geometry.safetensors")


def test_normalisation_and_embedding(golden):
    targets, references = normalise_cameras(golden["cam.w2c"], golden["cam.ref_w2c"])
    np.testing.assert_allclose(targets, golden["cam.norm_w2c"], atol=1e-5)
    np.testing.assert_allclose(references, golden["cam.norm_ref_w2c"], atol=1e-5)
    np.testing.assert_allclose(pose_vectors(targets), golden["cam.qt"], atol=1e-5)
    np.testing.assert_allclose(pose_vectors(references), golden["cam.qt_ref"], atol=1e-5)
    height, width = golden["cam.embedding"].shape[-2:]
    embedding = plucker_embedding(targets, golden["cam.K"], height, width)
    np.testing.assert_allclose(embedding[None], golden["cam.embedding"], atol=1e-5)


@pytest.mark.parametrize("name", ["view0_traj0", "view1_traj2"])
def test_retrieval(golden, name):
    width, height = (int(n) for n in golden["ret.size_wh"])
    scores, angles = retrieval_scores(
        golden[f"ret.{name}.w2c"], golden["ret.bank_w2c"], golden[f"ret.{name}.K"], golden["ret.bank_K"], width, height
    )
    best = scores.argmax(axis=1)
    np.testing.assert_array_equal(best, golden[f"ret.{name}.best"])
    rows = np.arange(len(best))
    np.testing.assert_allclose(scores[rows, best], golden[f"ret.{name}.score"], atol=1e-5)
    np.testing.assert_allclose(angles[rows, best], golden[f"ret.{name}.angle_deg"], atol=1e-3)
