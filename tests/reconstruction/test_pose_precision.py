"""How far registered photographs may be off, and which of several solutions is right."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.similarity import align_poses, rotation_angles
from worldstereo_ros.reconstruction.mapping import known_calibration
from worldstereo_ros.reconstruction.pose_precision import (
    CORRELATION,
    describe_precision,
    open_photographs,
    pose_precision,
)
from worldstereo_ros.reconstruction.restarts import choose_models, spread, starting_photographs
from worldstereo_ros.reconstruction.sparse_model import SparseModel

CAMERA, COUNT, POINTS = Camera(640, 480, 500.0, 500.0, 319.5, 239.5), 5, 60


def _model() -> SparseModel:
    """Cameras along a bent walk that see all points."""
    random = np.random.default_rng(0)
    points = random.uniform((-1, -0.7, 3), (1, 0.7, 5), (POINTS, 3))
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    for i, pose in enumerate(poses):
        pose[:3, 3] = 0.4 * (i - 2), 0.1 * (i % 2), 0.15 * i
        pose[:3, :3] = Rotation.from_euler("yx", (-6 * (i - 2), 2 * i), degrees=True).as_matrix()
    pixels = np.concatenate([project(points, CAMERA, pose)[0] for pose in poses]).astype(float)
    return SparseModel(
        np.arange(COUNT), (known_calibration(CAMERA),) * COUNT, poses, points, np.zeros((POINTS, 3), np.uint8),
        np.full(POINTS, np.sqrt(np.pi / 2)), np.repeat(np.arange(COUNT), POINTS), np.tile(np.arange(POINTS), COUNT),
        pixels,
    )  # fmt: skip


def _moved(model: SparseModel, change: np.ndarray, focal: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(poses, pixels) of a model whose parameters are changed: rotations, centres, points."""
    poses = model.world_from_camera.copy()
    turns, steps = change[: 3 * COUNT].reshape(-1, 3), change[3 * COUNT : 6 * COUNT].reshape(-1, 3)
    poses[:, :3, :3] = poses[:, :3, :3] @ Rotation.from_rotvec(turns).as_matrix()
    poses[:, :3, 3] += steps
    points = model.points + change[6 * COUNT : 6 * COUNT + 3 * POINTS].reshape(-1, 3)
    local = np.einsum("nij,npi->npj", poses[:, :3, :3], points[None] - poses[:, None, :3, 3])
    plane = local[..., :2] / local[..., 2:]
    return poses, (500 * (1 + focal) * plane).ravel()


@pytest.mark.parametrize("known", [True, False])
def test_it_is_that_of_adjustments_of_noisy_features(known):
    """By simulation: adjusted poses of many draws of noise, after the best similarity of each."""
    model, random = _model(), np.random.default_rng(1)
    size, step = 6 * COUNT + 3 * POINTS, 1e-6
    numeric = [(_moved(model, step * row)[1] - _moved(model, -step * row)[1]) / (2 * step) for row in np.eye(size)]
    if not known:
        at = np.zeros(size)
        numeric.append((_moved(model, at, step)[1] - _moved(model, at, -step)[1]) / (2 * step))
    solve = np.linalg.pinv(np.stack(numeric, axis=1), rcond=1e-9)
    squares = []
    for _ in range(200):
        poses, _ = _moved(model, (solve @ random.normal(size=2 * COUNT * POINTS))[:size])
        moved = align_poses(poses, model.world_from_camera).poses(poses)
        centres = np.linalg.norm(moved[:, :3, 3] - model.world_from_camera[:, :3, 3], axis=1)
        degrees = np.degrees(rotation_angles(moved[:, :3, :3], model.world_from_camera[:, :3, :3]))
        squares.append([centres**2, degrees**2])
    simulated = np.sqrt(np.mean(squares, axis=0)) * CORRELATION
    # The errors of a model are those of an adjustment, which are less than the noise.
    freedom = np.sqrt((2 * COUNT * POINTS - 6 * COUNT - 3 * POINTS) / (2 * COUNT * POINTS))
    found = pose_precision(replace(model, errors=model.errors * freedom), [known] * COUNT)
    # Radial distortion and the principal point are free as well if nothing is known.
    high = 1.25 if known else 6
    assert (found.positions > 0.8 * simulated[0]).all()
    assert (found.positions < high * simulated[0]).all()
    assert 0.8 < found.rotation / np.sqrt((simulated[1] ** 2).mean()) < high


def test_uncertain_poses_are_said_and_useless_ones_refused():
    model = _model()
    precise = replace(model, errors=model.errors * 0.1)
    assert describe_precision(pose_precision(precise, [True] * COUNT)) == []
    assert "determine their poses within" in describe_precision(pose_precision(model, [False] * COUNT))[0]
    assert open_photographs(precise, [True] * COUNT)[2] == ""
    assert "leave their poses open" in open_photographs(replace(model, errors=model.errors * 30), [True] * COUNT)[2]
    assert describe_precision(None) == []


def test_cameras_at_one_place_have_no_precision():
    model = _model()
    model.world_from_camera[:, :3, 3] = 0
    assert pose_precision(model, [True] * COUNT) is None


def _turned(model: SparseModel, rows: list[int], degrees: float) -> SparseModel:
    poses = model.world_from_camera.copy()
    for row in rows:
        poses[row, :3, :3] = poses[row, :3, :3] @ Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return replace(model, world_from_camera=poses)


def test_the_solution_that_explains_most_matches_is_chosen():
    right = _model()
    shown = right.pixels.reshape(COUNT, POINTS, 2)
    pixels = {(i, j): np.stack([shown[i], shown[j]], axis=1) for i in range(COUNT) for j in range(i + 1, COUNT)}
    wrong, nearly = _turned(right, [3, 4], 20), _turned(right, [4], 0.01)
    elsewhere = right.subset(np.arange(3))
    chosen = choose_models([wrong, elsewhere, right, nearly], pixels)
    assert [model for model, _ in chosen] == [right]
    assert chosen[0][1] == [nearly]  # a part, and a solution that explains less, say nothing about it
    positions, degrees = spread(right, chosen[0][1])
    assert degrees.max() == pytest.approx(0.008, abs=0.003)
    assert positions.max() < 1e-3
    mirrored = right.world_from_camera * 1
    mirrored[:, :3, 3] *= -1
    assert spread(right, [replace(right, world_from_camera=mirrored)])[1].tolist() == [180.0] * COUNT
    # Two groups that share no photographs are both there.
    parts = [right.subset(np.array([0, 1, 2])), right.subset(np.array([3, 4]))]
    assert [len(model) for model, _ in choose_models(parts[::-1], pixels)] == [3, 2]


def test_photographs_that_solutions_disagree_about_are_left_out():
    precise = replace(_model(), errors=np.full(POINTS, 0.05))
    answers = np.zeros((COUNT, 2))
    answers[4] = 0.2, 30.0
    kept, reasons, refused = open_photographs(replace(precise, other_answers=answers), [True] * COUNT)
    assert (kept.photographs.tolist(), list(reasons), refused) == ([0, 1, 2, 3], [4], "")
    assert "30 degrees" in reasons[4]
    _, _, refused = open_photographs(replace(precise, other_answers=answers[[4, 4, 4, 0, 0]]), [True] * COUNT)
    assert "Two solutions" in refused


def test_differences_follow_a_model(tmp_path):
    answers = np.column_stack([np.arange(COUNT) / 100, np.arange(COUNT)])
    model = replace(_model(), other_answers=answers)
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(SparseModel.load(tmp_path / "model.npz").other_answers, answers)
    np.testing.assert_array_equal(model.subset(np.array([1, 3])).other_answers, answers[[1, 3]])
    doubled = replace(align_poses(model.world_from_camera, model.world_from_camera), scale=2.0)
    np.testing.assert_allclose(model.moved(doubled).other_answers, answers * [2, 1])
    _model().save(tmp_path / "model.npz")
    assert SparseModel.load(tmp_path / "model.npz").other_answers is None


def test_the_mapper_starts_in_the_middle_first():
    assert starting_photographs(52)[0] in (23, 28)
    assert starting_photographs(2) == [1, 0]
    assert all(0 <= start < 7 for start in starting_photographs(7))
