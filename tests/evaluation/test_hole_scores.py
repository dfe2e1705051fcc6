"""Scores of holes over a scenario, and the sheets that they order."""

import cv2
import numpy as np
import pytest
from PIL import Image

from worldstereo_ros.evaluation import hole_scores, perceptual
from worldstereo_ros.evaluation.hole_scores import HoleScores, HoleTruth
from worldstereo_ros.evaluation.hole_sheets import HoleSheets
from worldstereo_ros.evaluation.runner import evaluate
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def truth():
    """Views of a walk, of which nothing was seen in the right half, and nothing at all in the last."""
    walk = world_sequence("test", 0, views=9, camera=CAMERA)
    views = [walk[index] for index in range(1, 5)]
    seen = [(view.depth > 0) & (np.arange(160) < 80) for view in views]
    seen[-1] = np.zeros_like(seen[-1])
    return HoleTruth(views, seen, [walk[0].image])


def scores(truth, change, **labels):
    collected = HoleScores(truth)
    for number, view in enumerate(truth.truths):
        collected.add(number, change(view.image), view.depth, **labels)
    return collected.metrics()


def blurred(image):
    return cv2.GaussianBlur(image, (0, 0), 5)


def test_the_truth_is_best_and_a_constant_has_no_detail(truth):
    same, fog = scores(truth, np.copy), scores(truth, blurred)
    grey = scores(truth, lambda image: np.broadcast_to(truth.constant.round().astype(np.uint8), image.shape).copy())
    assert same["hf_ratio_holes"] == pytest.approx(1)
    assert same["latent_grid"] == pytest.approx(1)
    assert same["patch_swd_holes"] == 0
    assert fog["hf_ratio_holes"] < 0.3
    assert grey["hf_ratio_holes"] == pytest.approx(0, abs=1e-6)
    assert grey["psnr_constant"] == pytest.approx(grey["psnr_unseen_blurred"])
    assert same["psnr_constant"] == grey["psnr_constant"]
    assert fog["patch_swd_holes"] > 0.002
    names = ["psnr_constant_wholly_unseen", "psnr_blurred_wholly_unseen"]
    assert all(isinstance(same[name], float) for name in names)
    if perceptual.is_available():
        assert same["st_lpips_holes"] < 0.01  # the true features are kept in half precision
        assert same["st_lpips_holes"] < fog["st_lpips_holes"] < grey["st_lpips_holes"]
        assert same["patch_kid_holes"] < fog["patch_kid_holes"]


def test_what_was_seen_does_not_count(truth):
    def spoil_what_was_seen(image):
        out = image.copy()
        out[:, :60] = 255 - out[:, :60]
        return out

    part = HoleTruth(truth.truths[:3], truth.seen[:3], truth.observed_images)  # the last view is a hole everywhere
    same, spoilt = scores(part, np.copy), scores(part, spoil_what_was_seen)
    for name in ("hf_ratio_holes", "latent_grid", "psnr_constant"):
        assert spoilt[name] == pytest.approx(same[name]), name
    assert spoilt["patch_swd_holes"] < 1e-3


def test_calibration_is_that_of_imagined_pixels(truth):
    shape = truth.truths[0].depth.shape
    half = np.where(np.arange(shape[1]) < 80, Provenance.OBSERVED, Provenance.IMAGINED).astype(np.uint8)
    provenance = np.broadcast_to(half, shape)
    confidence = np.where(provenance == Provenance.IMAGINED, 0.7, 0.0).astype(np.float32)
    figures = scores(truth, np.copy, provenance=provenance, confidence=confidence, depth_confidence=confidence)
    assert figures["ece_colour"] == pytest.approx(0.3, abs=1e-6)  # all are right
    assert figures["ece_depth"] == pytest.approx(0.3, abs=1e-6)
    assert "ece_colour" not in scores(truth, np.copy)


def test_without_weights_the_other_figures_remain(truth, monkeypatch):
    monkeypatch.setattr(perceptual, "is_available", lambda: False)
    figures = scores(HoleTruth(truth.truths, truth.seen, truth.observed_images), np.copy)
    assert "st_lpips_holes" not in figures
    assert "patch_kid_holes" not in figures
    assert figures["hf_ratio_holes"] == pytest.approx(1)


def test_sheets_put_the_worst_views_first(tmp_path):
    sheets = HoleSheets()
    brightness = [90, 0, 240, 150, 30, 210, 60, 120, 180]
    for number, grey in enumerate(brightness):  # the brighter, the worse
        image = np.full((60, 80, 3), grey, np.uint8)
        sheets.add("small?steps=2/x", f"view {number}", float(grey), image, image, np.zeros((60, 80), bool))
    (file,) = sheets.write(tmp_path / "sheet.png")
    assert file.name == "sheet-holes-small_steps_2_x.png"
    sheet = np.array(Image.open(file))
    group = sheet.shape[0] // 3
    for name, expected in {"worst": (240, 210, 180), "median": (150, 120, 90), "best": (60, 30, 0)}.items():
        part = sheet[["worst", "median", "best"].index(name) * group :][:group]
        row = part[group // 2 - 30]  # through the row of truths
        assert all((row == grey).all(axis=1).sum() > 150 for grey in expected), name


def test_every_table_has_the_figures_and_a_constant_colour():
    walk = world_sequence("test", 0, views=7, camera=CAMERA)
    sheets = HoleSheets()
    rows = evaluate([walk], "single", ["geometric"], every=2, hole_sheets=sheets)
    by_name = {row.pipeline: row for row in rows}
    assert set(by_name) == {"open3d+telea", "constant", "geometric"}
    geometric, constant = by_name["geometric"], by_name["constant"]
    assert constant.psnr_unseen == pytest.approx(geometric.psnr_constant)
    assert constant.hf_ratio_holes == pytest.approx(0, abs=1e-6)
    for name in ("psnr_unseen_blurred", "hf_ratio_holes", "patch_swd_holes", "latent_grid", "ece_colour", "ece_depth"):
        assert getattr(geometric, name) is not None, name
    assert constant.ece_colour is None
    assert sheets.draw("geometric").ndim == 3


def test_images_are_never_enlarged():
    assert hole_scores.working_size((480, 640)) == (320, 240)
    assert hole_scores.working_size((120, 160)) == (160, 120)
