"""Calibration of the confidence: rows, table, plot and file."""

import json

import cv2
import numpy as np
import pytest

from worldstereo_ros.evaluation import calibration
from worldstereo_ros.evaluation.calibration import Calibration
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE, load_confidence

PIPELINES = ("geometric", "small")


def _row(honest: bool) -> calibration.CalibrationRow:
    """Frames whose error is exactly what was expected, or has nothing to do with it."""
    random = np.random.default_rng(0)
    model = load_confidence("geometric")
    found = Calibration()
    for _ in range(4):
        levels = np.sort(random.choice(model.scales["imagined"]["colour"].confidence, 64)).repeat(64)
        confidence = levels.reshape(64, 64).astype(np.float32)
        observed = np.zeros((64, 64), bool)
        error = model.expected_error(confidence, observed)
        if honest:  # as many right as it says, and in the same order
            level = 255 * np.where(
                random.random(error.shape) < confidence, error * COLOUR_TOLERANCE, COLOUR_TOLERANCE + error
            )
        else:
            level = 255 * random.random(error.shape)
        image = np.rint(level)[..., None].repeat(3, axis=2).astype(np.uint8)
        found.add("a", "things", "geometric", image, np.zeros_like(image), confidence, observed)
    (row,) = found.rows()
    return row


def test_honest_predictions_are_told_from_others():
    honest, blind = _row(True), _row(False)
    assert honest.rank > 0.5
    assert honest.rank_blocks > honest.rank
    assert honest.calibration_error < 0.03
    assert honest.rank_observed is None
    assert honest.imagined == 1
    assert abs(blind.rank) < 0.05
    assert blind.calibration_error > 0.3
    assert sum(part.share for part in honest.confidence_bins) == pytest.approx(1)


def test_calibration_is_plotted_and_written(tmp_path):
    found = Calibration()
    with pytest.raises(ValueError, match="No pipeline gave a confidence"):
        found.write(tmp_path / "a.png")
    with pytest.raises(ValueError, match="ends in"):
        found.write(tmp_path / "a.txt")
    random = np.random.default_rng(0)
    for sequence, kind in (("a", "worlds"), ("b", "worlds"), ("c", "recordings")):
        for pipeline in PIPELINES:
            image = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            confidence = random.random((40, 60)).astype(np.float32)
            found.add(sequence, kind, pipeline, image, 255 - image, confidence, confidence > 0.5)
    names = [(row.data, row.pipeline) for row in found.rows()]
    assert names == [(d, p) for p in PIPELINES for d in ("a", "b", "worlds")] + [("recordings", p) for p in PIPELINES]
    found.write(tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 8
    found.write(tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.std() > 0
    assert len(calibration.calibration_table(found.rows()).rows) == 8
