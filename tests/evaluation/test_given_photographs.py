"""What is said of photographs whose poses were estimated."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, write_posed

from worldstereo_ros.evaluation import given_photographs
from worldstereo_ros.evaluation.given_photographs import ESTIMATED, GIVEN, reconstruct_given
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.reconstruction.mapping import known_calibration
from worldstereo_ros.reconstruction.registration import Registration
from worldstereo_ros.reconstruction.sparse_model import SparseModel

UNCERTAIN = "The photographs determine their poses within 1.4 % of the extent of the walk."


@pytest.mark.parametrize(("poses", "said"), [(ESTIMATED, True), (GIVEN, False)])
def test_uncertain_poses_are_said(tmp_path, monkeypatch, poses, said):
    pytest.importorskip("pycolmap")
    walk = tmp_path / "walk"
    walk.mkdir()
    write_posed(walk, arc(5, 5.0), metric=False)
    register = given_photographs.register

    def register_uncertain(*arguments):
        return replace(register(*arguments), notes=(UNCERTAIN,))

    monkeypatch.setattr(given_photographs, "register", register_uncertain)
    (tmp_path / "work").mkdir()
    found = reconstruct_given(
        list(open_posed(walk)), tmp_path / "work", poses=poses, max_pixels=CAMERA.width * CAMERA.height
    )
    assert (UNCERTAIN in found.notes) == said


def test_a_straight_walk_leaves_no_turn_in_the_error_of_rotations():
    """Centres nearly on a line: the similarity that fits these best turns everything about it by many degrees."""
    random = np.random.default_rng(0)
    true = np.tile(np.eye(4), (8, 1, 1))
    true[:, 0, 3] = np.arange(8)
    true[:, 1:3, 3] = random.normal(0, 0.01, (8, 2))
    estimated = true.copy()
    estimated[:, 1:3, 3] += random.normal(0, 0.01, (8, 2))
    none = np.zeros(0, np.int64)
    model = SparseModel(
        np.arange(8), (known_calibration(CAMERA),) * 8, estimated, np.zeros((0, 3)), np.zeros((0, 3), np.uint8),
        np.zeros(0), none, none, np.zeros((0, 2)),
    )  # fmt: skip
    photos = [SimpleNamespace(name=str(number)) for number in range(8)]
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    names = {photo.name: View(image, CAMERA, pose) for photo, pose in zip(photos, true, strict=True)}
    registration = Registration(model, {}, (), "photographs")
    assert given_photographs.pose_errors(estimated, true).degrees.mean() > 5
    _, ate, degrees = given_photographs._in_true_frame(registration, photos, names)
    assert ate < 0.5
    assert degrees < 0.1
