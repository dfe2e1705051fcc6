"""Figures of point maps: known errors, agreement with evo where it is installed, clips, rows."""

import json
import shutil

import numpy as np
import pytest
from helpers.box_room import CAMERA, turned
from helpers.video_scene import KnownDepth, frame, walk
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation import pointmaps as evaluation
from worldstereo_ros.evaluation.pointmap_data import FRAMES, PointmapClip, open_clips
from worldstereo_ros.evaluation.pointmap_metrics import depth_errors, flow_error, point_errors, trajectory_errors
from worldstereo_ros.evaluation.pointmaps import FIGURES, evaluate_clip, means, run_pointmaps
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.errors import InputError


def noisy(poses, seed=0, size=0.02):
    random = np.random.default_rng(seed)
    out = poses.copy()
    out[:, :3, 3] += random.normal(0, size, (len(poses), 3))
    for pose in out:
        pose[:3, :3] = pose[:3, :3] @ turned(float(random.normal(0, 1)))[:3, :3]
    return out


def test_similar_paths_have_no_error():
    truth = walk(8)
    other = Similarity(3.0, turned(40, 20)[:3, :3], np.array([1.0, 2, 3])).poses(truth)
    found = trajectory_errors(other, truth)
    assert found is not None
    assert found.ate < 1e-9
    assert found.rpe_translation < 1e-9
    assert found.rpe_rotation < 1e-5
    assert found.scale == pytest.approx(1 / 3)
    assert trajectory_errors(np.tile(np.eye(4), (8, 1, 1)), truth) is None


def test_errors_of_known_size():
    truth = walk(9)
    wrong = truth.copy()
    wrong[4:, :3, :3] = truth[4:, :3, :3] @ turned(2.0)[:3, :3]
    found = trajectory_errors(wrong, truth)
    assert found is not None
    assert found.rpe_rotation == pytest.approx(2.0 / np.sqrt(8), rel=1e-3)
    assert found.ate < 1e-6


def test_trajectories_are_as_evo_measures_them():
    evo_metrics = pytest.importorskip("evo.core.metrics", reason="evo is not installed")
    from evo.core.trajectory import PosePath3D

    truth = walk(12)
    estimate = noisy(truth)
    found = trajectory_errors(estimate, truth)
    reference, ours = PosePath3D(poses_se3=list(truth)), PosePath3D(poses_se3=list(estimate))
    ours.align(reference, correct_scale=True)
    assert found is not None
    for relation, value in (
        (evo_metrics.PoseRelation.translation_part, found.rpe_translation),
        (evo_metrics.PoseRelation.rotation_angle_deg, found.rpe_rotation),
    ):
        rpe = evo_metrics.RPE(relation, 1, evo_metrics.Unit.frames, all_pairs=True)
        rpe.process_data((reference, ours))
        assert rpe.get_statistic(evo_metrics.StatisticsType.rmse) == pytest.approx(value, rel=1e-4)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, ours))
    assert ape.get_statistic(evo_metrics.StatisticsType.rmse) == pytest.approx(found.ate, rel=1e-4)


def test_depth_is_measured_after_one_scale():
    truth = np.full((2, 4, 5), 2.0)
    truth[0, 0] = 0  # unknown
    truth[1, 0] = 100  # too far
    depth = truth * 0.5
    depth[1, 3] *= 1.5
    found = depth_errors(depth, truth)
    assert found is not None
    assert found.scale == pytest.approx(2)
    share = 5 / 30
    assert found.abs_rel == pytest.approx(0.5 * share)
    assert found.delta_1_25 == pytest.approx(1 - share)
    assert found.abs_rel_median == 0
    assert depth_errors(depth * 0, truth) is None


def test_points_and_flow():
    truth = np.random.default_rng(0).normal(size=(2, 6, 6, 3)) + np.array([0, 0, 4])
    points = truth / 5
    points[0, 0] = np.nan
    assert point_errors(points, truth) == pytest.approx((0, 5), abs=1e-9)
    assert point_errors(points * np.nan, truth) is None
    flow = np.zeros((4, 3))
    flow[0] = np.nan
    true = np.zeros((4, 3))
    true[:2, 0] = 0.3
    flow[1, 0] = 0.1
    moving = np.array([True, True, False, False])
    assert flow_error(flow, true, moving, 2.0) == pytest.approx((0.3 + 0.1) / 2)
    assert flow_error(flow, true, moving & False, 1.0) is None


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """A posed sequence with depth, of one clip and some frames more."""
    folder = tmp_path_factory.mktemp("pointmaps") / "painted_room"
    views = []
    for pose in walk(FRAMES + 2, step=0.04):
        image, depth, _ = frame(pose)
        views.append(View(image, CAMERA, pose, depth))
    write_sequence(folder, views)
    return folder


def test_clips_of_a_sequence(sequence):
    (clip,) = open_clips([sequence])  # two frames at the end are no clip
    assert clip.name == "painted_room:0-16"
    assert clip.images.shape == (FRAMES, CAMERA.height, CAMERA.width, 3)
    assert clip.depth is not None
    for wrong, words in (("worlds:test", "worlds:SPLIT:COUNT"), ("worlds:moon:2", "worlds:SPLIT:COUNT")):
        with pytest.raises(InputError, match=words):
            list(open_clips([wrong]))
    with pytest.raises(InputError, match="nothing to evaluate"):
        list(open_clips([]))


def test_rows_of_a_clip_with_moving_things():
    poses = walk(6, step=0.04)
    boards = [(0.1, 0.4 - 0.07 * i, 2.5) for i in range(6)]
    images, depths, there = zip(*(frame(p, board=b) for p, b in zip(poses, boards, strict=True)), strict=True)
    flow = np.where(np.stack(there)[..., None], np.array([0, -0.07, 0], np.float32) @ poses[0, :3, :3], 0)
    clip = PointmapClip("rooms", "room", np.stack(images), CAMERA, poses, np.stack(depths), np.stack(there), flow)
    vo, joint = evaluate_clip(clip, ("vo", "map"), KnownDepth(images, depths, 1.2, 0.25), {})
    assert (vo.method, joint.method) == ("vo", "map")
    assert all(getattr(joint, name) is not None for name in FIGURES)
    assert joint.ate < 0.01
    assert joint.ate <= 1.1 * vo.ate
    assert joint.abs_rel < vo.abs_rel
    assert joint.moving_epe < 0.07
    (mean_vo, mean_joint) = means([vo, joint])
    assert (mean_vo.sequence, mean_joint.ate) == ("rooms", joint.ate)


def test_the_command_writes_rows(sequence, tmp_path, monkeypatch):
    views = [frame(pose) for pose in walk(FRAMES + 2, step=0.04)]
    known = KnownDepth([v[0] for v in views], [v[1] for v in views], 1.1)
    monkeypatch.setattr(evaluation, "load_depth_estimator", lambda name, device: known)
    file = tmp_path / "rows.json"
    arguments = ["evaluate", "--pointmaps", "--data", str(sequence), "--pipeline", "map", "--json", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    (row,) = content["rows"]
    assert set(FIGURES) | {"sequence", "method", "frames", "ok"} <= set(row)
    assert row["ok"] is True
    assert row["moving_epe"] is None
    assert row["frames"] == FRAMES
    assert content["means"][0]["sequence"] == "painted_room"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ["best"]}, "vo, map, small"),
        ({"depth_model": "none"}, "need a depth model"),
        ({"methods": ["small"], "model": "nowhere"}, "no point-map network"),
        ({"methods": ["small-no-prior?weights=nowhere"]}, "--prior none"),
        ({"methods": ["small-no-prior?steps=0"]}, "steps=N"),
    ],
)
def test_bad_options_are_refused(sequence, tmp_path, options, words):
    if "model" in options:
        options = {**options, "model": tmp_path / "nowhere"}
    with pytest.raises(InputError, match=words):
        run_pointmaps([sequence], **options)


def test_damaged_frames_are_in_no_clip(sequence, tmp_path):
    folder, notes = shutil.copytree(sequence, tmp_path / "painted_room"), []
    for file in (folder / "frames" / "000003.png", folder / "depth" / "000008.png"):
        file.write_bytes(file.read_bytes()[:80])
    for name in (folder, f"movers:{folder}"):
        clip = next(open_clips([name], notes.append))
        assert len(clip.images) == FRAMES  # of two more frames than that, two are damaged
    whole = next(open_clips([sequence]))
    clip = next(open_clips([folder]))
    np.testing.assert_allclose(clip.poses[3], whole.poses[4])
    assert len(notes) == 2
    assert notes[0] == notes[1]
    assert notes[0].startswith("painted_room: 2 of 19 frames are damaged and left out. The first: ")
