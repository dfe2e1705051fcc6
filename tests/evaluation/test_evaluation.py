"""Metrics, baselines, protocols and the report of the evaluation."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from worldstereo_ros.evaluation import Row, evaluate, format_table, runner, write_json
from worldstereo_ros.evaluation import metrics as m
from worldstereo_ros.evaluation.baseline import EMPTY_GREY, Open3DTelea, SplatTelea, telea
from worldstereo_ros.evaluation.protocols import make_scenario, sparse_indices
from worldstereo_ros.evaluation.report import means
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.training import tensor_images

CAMERA = Camera(40, 30, 40.0, 40.0, 19.5, 14.5)


def wall(depth: float, x: float = 0.0, colour: int = 100) -> View:
    """A view of a wall at a depth in metres, from a camera shifted by `x` metres to the right."""
    pose = np.eye(4)
    pose[0, 3] = x
    image = np.full((30, 40, 3), colour, np.uint8)
    return View(image, CAMERA, pose, np.full((30, 40), depth, np.float32))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    a = np.full((10, 10, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0] += 10  # one of a hundred pixels differs by ten
    assert m.psnr(b, a) == pytest.approx(10 * np.log10(255**2 / 1.0))
    assert m.psnr(a, a) == m.MAX_PSNR_DB
    mask = np.zeros((10, 10), bool)
    assert m.psnr(b, a, mask) is None
    mask[0, 0] = True
    assert m.psnr(b, a, mask) == pytest.approx(10 * np.log10(255**2 / 100.0))


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = np.full((20, 20, 3), 100, np.uint8), np.full((20, 20, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert m.ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    assert m.ssim(a, a) == pytest.approx(1.0)


def test_ssim_of_a_single_window_equals_the_formula():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    b = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = []
    for channel in range(3):
        x, y = a[..., channel].ravel().astype(float), b[..., channel].ravel().astype(float)
        covariance = np.cov(x, y)  # n - 1: sample covariance
        above = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
        expected.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))
    assert m.ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-9)


def test_training_metrics_agree_with_those_of_the_evaluation():
    rng = np.random.default_rng(2)
    a = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-40, 40, a.shape), 0, 255).astype(np.uint8)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].double() / 127.5 - 1 for image in (a, b)]
    assert float(tensor_images.psnr(*tensors)) == pytest.approx(m.psnr(a, b), abs=1e-4)
    assert float(tensor_images.psnr(tensors[0], tensors[0])) == m.psnr(a, a) == m.MAX_PSNR_DB
    # Training uses the biased covariance, which differs by a factor of 49 / 48 from the sample covariance.
    assert float(tensor_images.ssim(*tensors)) == pytest.approx(m.ssim(a, b), abs=1e-4)


def test_psnr_of_nan_is_nan_and_not_the_maximum():
    assert np.isnan(m.psnr_from_mse(float("nan"), 2.0))


def test_images_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match="one shape"):
        m.psnr(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="7x7"):
        m.ssim(np.zeros((6, 6, 3), np.uint8), np.zeros((6, 6, 3), np.uint8))


def test_depth_error_counts_only_pixels_known_in_both():
    truth = np.array([[2.0, 2.0, 0.0, 2.0]], np.float32)
    depth = np.array([[2.2, 3.0, 5.0, 0.0]], np.float32)
    abs_rel, delta = m.depth_error(depth, truth)
    assert abs_rel == pytest.approx((0.1 + 0.5) / 2)
    assert delta == 0.5
    assert m.depth_error(np.zeros((1, 4), np.float32), truth) == (None, None)


def test_seen_pixels_depend_on_the_depth_of_the_observed_view():
    truth = wall(2.0)
    assert m.seen_pixels(truth, [wall(2.0)]).all()
    assert m.seen_pixels(truth, [wall(2.11)]).all()  # 5 % + 2 cm of 2.11 m is more than 11 cm
    assert not m.seen_pixels(truth, [wall(2.2)]).any()
    assert not m.seen_pixels(truth, []).any()


def test_seen_pixels_follow_the_pose_of_the_observed_view():
    # A camera half a metre to the right sees the wall from column 0.5 * 40 / 2 = 10 on.
    seen = m.seen_pixels(wall(2.0), [wall(2.0, x=0.5)])
    assert not seen[:, :10].any()
    assert seen[:, 10:].all()


def test_pixels_without_depth_are_not_seen():
    observed, truth = wall(2.0), wall(2.0)
    observed.depth[5, 6] = 0
    truth.depth[7, 8] = 0
    seen = m.seen_pixels(truth, [observed])
    assert not seen[5, 6]
    assert not seen[7, 8]
    assert seen.sum() == seen.size - 2


def test_cloud_scores_of_known_shifts():
    x, y = np.meshgrid(np.arange(0, 1, 0.025) + 0.0125, np.arange(0, 1, 0.025) + 0.0125)
    plane = np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.0125)], axis=1)
    assert m.cloud_scores(plane, plane) == (1.0, 1.0, 1.0)
    assert m.cloud_scores(plane + np.array([0, 0, 0.1]), plane) == (0.0, 0.0, 0.0)
    half = plane[plane[:, 0] < 0.5]
    precision, recall, f1 = m.cloud_scores(half, plane)
    assert precision == 1.0
    assert recall == pytest.approx(0.55, abs=0.011)  # half of it and 5 cm (two columns) next to it
    assert f1 == pytest.approx(2 * recall / (1 + recall))
    assert m.cloud_scores(np.zeros((0, 3)), plane) == (0.0, 0.0, 0.0)


# --- baselines -------------------------------------------------------------------------------------------------------


def test_projection_from_the_observed_pose_is_the_observed_image():
    rng = np.random.default_rng(0)
    observed = replace(wall(2.0), image=rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    view = Open3DTelea([observed])(CAMERA, np.eye(4))
    same = (view.image == observed.image).all(axis=2)
    assert same.mean() > 0.95  # points on pixel borders may fall to either side
    np.testing.assert_allclose(view.depth[view.depth > 0], 2.0, rtol=1e-5)


def test_splat_covers_four_pixels_and_the_nearer_point_wins():
    near, far = wall(1.0, colour=10), wall(3.0, colour=200)
    for view in (near, far):
        keep = view.depth[14, 19]
        view.depth[:] = 0
        view.depth[14, 19] = keep
    shown = SplatTelea([near, far])(CAMERA, np.eye(4))
    assert (shown.depth > 0).sum() in (4, 7)  # the two squares coincide or share a corner
    assert shown.depth[14, 19] == pytest.approx(1.0)
    assert (shown.image[14, 19] == 10).all()


def test_telea_of_an_empty_image_is_grey():
    image = np.zeros((9, 9, 3), np.uint8)
    assert (telea(image, np.ones((9, 9), bool)) == EMPTY_GREY).all()


# --- protocols and report --------------------------------------------------------------------------------------------


def make_sequence(folder, count=8):
    """A walk past a textured wall, 64x48, in the posed layout."""
    (folder / "frames").mkdir(parents=True)
    (folder / "depth").mkdir()
    about = {"width": 64, "height": 48, "fx": 60.0, "fy": 60.0, "cx": 31.5, "cy": 23.5, "depth_scale": 1000.0}
    (folder / "intrinsics.json").write_text(json.dumps({**about, "has_depth": True, "metric": True}))
    texture = cv2.resize(np.random.default_rng(3).integers(0, 256, (30, 60, 3), dtype=np.uint8), (300, 150))
    lines = []
    for index in range(count):
        shift = index * 6.3  # 0.21 m at 2 m with a focal length of 60 pixels
        moved = cv2.warpAffine(texture, np.float32([[1, 0, -shift - 40], [0, 1, -40]]), (64, 48))
        cv2.imwrite(str(folder / f"frames/{index:06d}.png"), moved)
        cv2.imwrite(str(folder / f"depth/{index:06d}.png"), np.full((48, 64), 2000, np.uint16))
        lines.append(f"{index} {0.21 * index} 0 0 0 0 0 1")
    (folder / "poses.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_protocols_observe_and_evaluate_the_documented_frames(tmp_path):
    sequence = open_posed(make_sequence(tmp_path / "walk"))
    single = make_scenario(sequence, "single")
    assert len(single.observed_views) == 1
    assert list(single.target_views.indices) == [1, 2, 3, 4, 5, 6, 7]
    sparse = make_scenario(sequence, "sparse", every=2)
    assert len(sparse.observed_views) == 5
    assert sorted(sparse_indices(8)) == [0, 2, 4, 5, 7]
    assert sparse_indices(58) != sorted(sparse_indices(58))
    assert list(sparse.target_views.indices) == [1, 6]
    assert make_scenario(sequence, "mono").observed_views[0].depth is None
    revisit = make_scenario(sequence, "revisit")
    assert revisit.remember
    np.testing.assert_allclose(revisit.path[revisit.evaluated[0]], sequence.poses[0])
    assert np.linalg.norm(revisit.path[:, :3, 3] - sequence.poses[0, :3, 3], axis=1).max() >= 1.0
    with pytest.raises(ValueError, match="is unknown"):
        make_scenario(sequence, "double")


def test_a_damaged_frame_is_left_out_of_an_evaluation_and_said(tmp_path):
    folder, notes = make_sequence(tmp_path / "walk"), []
    for file in (folder / "frames" / "000000.png", folder / "depth" / "000003.png"):
        file.write_bytes(file.read_bytes()[:60])
    rows = evaluate([folder], ["single"], ["geometric"], with_features=False, on_note=notes.append)
    assert {row.frames for row in rows} == {5}  # of the six that are left the first is observed
    assert len(notes) == 1
    assert notes[0].startswith("walk: 2 of 8 frames are damaged and left out. The first: ")
    assert "000000.png" in notes[0]
    for file in (folder / "frames").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DatasetError, match="None of the 8 frames"):
        evaluate([folder], ["single"], ["geometric"])


def test_evaluate_end_to_end(tmp_path):
    folder = make_sequence(tmp_path / "walk")
    rows = evaluate([folder], ["sparse", "revisit", "cloud", "mono"], ["geometric"], depth_model="none")
    found = {(row.protocol, row.pipeline): row for row in rows}
    ours, theirs = found["sparse", "geometric"], found["sparse", "open3d+telea"]
    assert ours.frames == theirs.frames == 3
    assert ours.psnr > 25
    assert ours.psnr > theirs.psnr
    assert ours.observed_precision > 0.99
    assert ours.observed_recall > 0.9
    assert theirs.observed_precision is None
    assert ours.abs_rel < 0.02
    assert found["revisit", "geometric"].psnr_seen > 35
    assert found["cloud", "geometric"].cloud_f1 >= found["cloud", "open3d-tsdf"].cloud_f1 - 0.02
    assert found["mono", "geometric"].frames == 0
    target = tmp_path / "out" / "rows.json"
    write_json(rows, target)
    stored = json.loads(target.read_text())["rows"]
    assert len(stored) == len(rows)
    assert stored[0]["sequence"] == "walk"
    assert {"psnr_seen", "observed_precision", "abs_rel", "delta_1_25", "seconds_per_view"} <= set(stored[0])
    assert format_table(rows).row_count == len(rows)


def test_means_ignore_missing_values():
    rows = [Row("a", "single", "x", 2, psnr=10.0, ssim=None), Row("b", "single", "x", 3, psnr=20.0, ssim=0.5)]
    (average,) = means(rows)
    assert (average.sequence, average.frames, average.psnr, average.ssim) == ("mean", 5, 15.0, 0.5)
    assert average.abs_rel is None


def test_unknown_names_are_rejected(tmp_path):
    folder = make_sequence(tmp_path / "walk", 3)
    with pytest.raises(ValueError, match="is unknown"):
        evaluate([folder], ["single"], ["magic"])
    with pytest.raises(ValueError, match="is unknown"):
        evaluate([folder], ["doubled"], ["geometric"])
    with pytest.raises(ValueError, match="does not exist; a posed sequence"):
        evaluate([tmp_path / "nowhere"], ["single"], ["geometric"])


# --- real sequences --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reference_metrics_and_quality_on_real_sequences(shared_data, monkeypatch):
    monkeypatch.setattr(runner, "ALWAYS", ("open3d+telea",))  # nothing is asked of a constant colour
    folders = [shared_data / "rgbd_hololens_office_a", shared_data / "rgbd_tum_fr3_cabinet"]
    rows = evaluate(folders, ["single", "sparse"], ["geometric"], every=3, with_features=False)
    reference = {
        ("single", "rgbd_hololens_office_a"): (11.53, 0.415),
        ("sparse", "rgbd_hololens_office_a"): (13.48, 0.464),
        ("single", "rgbd_tum_fr3_cabinet"): (14.37, 0.759),
        ("sparse", "rgbd_tum_fr3_cabinet"): (16.58, 0.459),
    }
    for row in rows:
        if row.pipeline == "open3d+telea":
            expected = reference[row.protocol, row.sequence]
            assert row.psnr == pytest.approx(expected[0], abs=0.05)
            assert row.ssim == pytest.approx(expected[1], abs=0.01)
    average = {(row.protocol, row.pipeline): row for row in means(rows)}
    ours, theirs = average["sparse", "geometric"], average["sparse", "open3d+telea"]
    assert ours.psnr >= theirs.psnr + 0.6
    assert ours.ssim >= theirs.ssim + 0.14
    ours, theirs = average["single", "geometric"], average["single", "open3d+telea"]
    assert ours.psnr >= theirs.psnr + 0.2
    assert ours.ssim >= theirs.ssim
    assert ours.coverage > theirs.coverage
    for row in rows:
        if row.protocol == "sparse" and row.pipeline == "geometric":
            assert row.observed_precision >= 0.97
            assert row.observed_recall >= 0.9


def test_revisit_and_cloud_on_a_real_sequence(shared_data):
    rows = evaluate([shared_data / "rgbd_hololens_office_a"], ["revisit"], ["geometric"], with_features=False)
    ours = next(row for row in rows if row.pipeline == "geometric")
    assert ours.psnr_seen >= 35
    assert ours.observed_precision > 0.99
