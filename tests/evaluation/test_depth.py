"""Evaluation of depth estimators, and the depth baselines."""

import numpy as np
import pytest

from worldstereo_ros.depth.estimators import DepthEstimate
from worldstereo_ros.evaluation import evaluate
from worldstereo_ros.evaluation.depth import depth_errors, depth_table, imagined_errors, means
from worldstereo_ros.evaluation.depth_baselines import CONSTANT_M, ConstantDepth, GroundPlane, fit_ground, ground_depth
from worldstereo_ros.evaluation.metrics import scaled_depth_error
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.io.posed_sequences import write_sequence


def _scene(rng: np.random.Generator, shape=(40, 60)) -> np.ndarray:
    """(H, W) metres: a receding floor with boxes in front of it."""
    depth = np.linspace(8.0, 1.0, shape[0])[:, None] * np.ones(shape)
    for _ in range(4):
        y, x = rng.integers(0, shape[0] - 10), rng.integers(0, shape[1] - 15)
        depth[y : y + 10, x : x + 15] = rng.uniform(0.8, 5.0)
    return depth.astype(np.float32)


def test_errors_of_with_and_without_alignment():
    truth = _scene(np.random.default_rng(5))
    abs_rel, delta, aligned, aligned_delta, scale = scaled_depth_error(truth * 2, truth)
    assert (abs_rel, delta) == (pytest.approx(1.0), 0.0)
    assert (aligned, aligned_delta) == (pytest.approx(0, abs=1e-6), 1.0)
    assert scale == pytest.approx(0.5)
    assert scaled_depth_error(truth, np.zeros_like(truth)) is None


def test_depth_baselines():
    camera = Camera.from_fov(64, 48, 1.1)
    image = np.zeros((48, 64, 3), np.uint8)
    assert (ConstantDepth()(image, camera) == np.float32(CONSTANT_M)).all()
    rows = ground_depth(camera, 1.0, 4.0)
    below = (np.arange(48) - camera.cy) / camera.fy
    floor = below > 1 / 4.0
    np.testing.assert_allclose(rows[floor], 1 / below[floor], rtol=1e-5)
    np.testing.assert_allclose(rows[~floor & (below < 1 / 8)], 4.0)
    assert GroundPlane()(image, camera).shape == (48, 64)
    scene = np.broadcast_to(rows[:, None], (48, 64)).copy()
    height, wall, middle = fit_ground([(scene, camera)])
    assert height == pytest.approx(1.0, rel=0.15)
    assert wall == pytest.approx(4.0, rel=0.15)
    assert middle == pytest.approx(np.median(scene), rel=0.1)


def test_depth_errors_compares_estimators_with_baselines():
    sequence = world_sequence("validation", 0, views=3, camera=Camera.from_fov(64, 48, 1.2))
    examples = []
    truths = {view.image.tobytes(): view.depth for view in sequence}
    rows = depth_errors([sequence], {"truth": lambda image, camera: truths[image.tobytes()] * 1.2}, examples=examples)
    found = {row.estimator: row for row in rows}
    assert found["truth"].abs_rel == pytest.approx(0.2, rel=1e-3)
    assert found["truth"].aligned_abs_rel == pytest.approx(0, abs=1e-4)
    assert found["truth"].scale == pytest.approx(1 / 1.2, rel=1e-3)
    assert found["truth"].frames == found["constant"].frames == 3
    assert found["constant"].abs_rel > 0.05
    assert found["truth"].abs_rel_constant == pytest.approx(found["constant"].abs_rel)
    assert len(examples) == 1
    assert means(rows) == []


class _Sure:
    """The true depth in the left half, twice that in the right one, with given confidence."""

    def __init__(self, truths: dict[bytes, np.ndarray], left: float, right: float) -> None:
        self.truths, self.left, self.right = truths, left, right

    def estimate(self, image, camera):
        depth = self.truths[image.tobytes()].copy()
        middle = depth.shape[1] // 2
        depth[:, middle:] *= 2
        confidence = np.full(depth.shape, self.left, np.float32)
        confidence[:, middle:] = self.right
        return DepthEstimate(depth, confidence)

    def __call__(self, image, camera):
        return self.estimate(image, camera).depth


def test_depth_errors_shows_the_calibration_of_estimators_that_have_it():
    sequences = [
        world_sequence("validation", number, views=2, camera=Camera.from_fov(64, 48, 1.2)) for number in (0, 4)
    ]
    truths = {view.image.tobytes(): view.depth for sequence in sequences for view in sequence}
    known = [(depth > 0) for depth in truths.values()]
    share = np.mean([mask[:, :32].sum() / mask.sum() for mask in known])  # of the left half
    estimators = {
        "calibrated": _Sure(truths, 1.0, 0.0),
        "sure": _Sure(truths, 0.9, 0.9),
        "silent": lambda i, c: truths[i.tobytes()],
    }
    rows = depth_errors(sequences, estimators)
    for row in (*rows, *means(rows)):
        if row.estimator == "calibrated":
            assert row.calibration_error == pytest.approx(0, abs=1e-9)
            assert row.confidence == pytest.approx(row.delta_1_25, abs=1e-6)
        elif row.estimator == "sure":
            assert row.confidence == pytest.approx(0.9, abs=1e-6)
            assert row.calibration_error == pytest.approx(0.9 - share, abs=0.1)
            assert np.sum(row.calibration, axis=0)[:2] == pytest.approx([1, 0.9])
        else:
            assert row.confidence is None
            assert row.calibration_error is None
    text = str([column.header for column in depth_table(rows).columns])
    assert "confidence" in text
    assert "ECE" in text


def test_protocol_mono_needs_no_download():
    sequence = world_sequence("validation", 0, views=3, camera=Camera.from_fov(64, 48, 1.2))
    rows = {row.pipeline: row for row in evaluate([sequence], "mono", ["geometric"], with_features=False)}
    assert rows["geometric"].frames == 2
    assert 0 < rows["geometric"].abs_rel < 2
    assert rows["geometric"].psnr > 8


def test_damaged_frames_are_left_out_and_said(tmp_path):
    world, notes = world_sequence("validation", 0, views=4, camera=Camera.from_fov(64, 48, 1.2)), []
    write_sequence(tmp_path / "walk", list(world))
    for file in (tmp_path / "walk" / "frames" / "000000.png", tmp_path / "walk" / "depth" / "000002.png"):
        file.write_bytes(file.read_bytes()[:80])
    rows = depth_errors([tmp_path / "walk"], {}, on_note=notes.append)
    assert {row.frames for row in rows} == {2}
    rows = imagined_errors([tmp_path / "walk"], ["geometric"], on_note=notes.append)
    assert {row.frames + row.refused for row in rows} <= {0, 1}  # of the two that are left the first is observed
    assert len(notes) == 2
    assert all(note.startswith("walk: 2 of 4 frames are damaged and left out. The first: ") for note in notes)
