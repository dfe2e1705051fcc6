"""Calibration of the per-pixel confidence of pipelines: predicted error against actual error.

Two properties are measured, which are nearly independent: whether pixels are in the right order (rank correlation of
expected and actual error), and whether the values are right (of the pixels with confidence 0.7, 70 % are correct).
"""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import numpy as np
from rich.table import Table

from worldstereo_ros.evaluation.calibration_metrics import (
    CalibrationRow,
    PixelSamples,
    block_means,
    calibration_row,
    depth_ratio,
    merge_samples,
)
from worldstereo_ros.evaluation.calibration_plot import plot_calibration
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE, DEPTH_TOLERANCE, load_confidence
from worldstereo_ros.utils.atomic_files import write_json
from worldstereo_ros.utils.errors import InputError

SAMPLED_PIXELS = 4000  # of a frame; neighbouring pixels add little


class Calibration:
    """Collects predicted and actual errors of pipelines."""

    def __init__(self) -> None:
        self._pixels: dict[tuple[str, str], PixelSamples] = {}
        self._blocks: dict[tuple[str, str], PixelSamples] = {}
        self._kinds: dict[str, str] = {}
        self._random = np.random.default_rng(0)

    def add(
        self,
        sequence: str,
        kind: str,
        pipeline: str,
        image: np.ndarray,
        truth: np.ndarray,
        confidence: np.ndarray,
        observed: np.ndarray,
        *,
        depth_confidence: np.ndarray | None = None,
        depth: np.ndarray | None = None,
        true_depth: np.ndarray | None = None,
    ) -> None:
        """Adds a frame.

        Args:
            sequence: its name.
            kind: group of sequences that it belongs to.
            pipeline: name.
            image, truth: (H, W, 3) uint8.
            confidence: (H, W) float32 in 0..1.
            observed: (H, W) bool.
            depth_confidence: (H, W) float32 in 0..1, with the next two; None = not evaluated.
            depth, true_depth: (H, W) float32 metres, 0 = unknown.
        """
        self._kinds[sequence] = kind
        expected = load_confidence(pipeline).expected_error(confidence, observed)
        error = np.abs(image.astype(np.float32) - truth).mean(axis=2) / 255
        unknown = np.full(error.shape, np.nan, np.float32)
        ratio = unknown if depth is None or true_depth is None else depth_ratio(depth, true_depth)
        arrays = (
            *(confidence, expected, error, observed),
            *(unknown if depth_confidence is None else depth_confidence, ratio),
        )
        indices = self._random.choice(error.size, min(SAMPLED_PIXELS, error.size), replace=False)
        samples = [array.reshape(-1)[indices] for array in arrays]
        self._pixels.setdefault((sequence, pipeline), PixelSamples()).add(*samples)
        confidences, expectations, errors, observed_fractions, *depths = (block_means(array) for array in arrays)
        blocks = self._blocks.setdefault((sequence, pipeline), PixelSamples())
        blocks.add(confidences, expectations, errors, observed_fractions > 0.5, *depths)

    def rows(self) -> list[CalibrationRow]:
        """One row for each kind of data, and one for each sequence of kinds with several."""
        rows: list[CalibrationRow] = []
        pipelines = list(dict.fromkeys(pipeline for _, pipeline in self._pixels))
        for kind in dict.fromkeys(self._kinds.values()):
            members = [sequence for sequence, other in self._kinds.items() if other == kind]
            for pipeline in pipelines:
                keys = [(sequence, pipeline) for sequence in members if (sequence, pipeline) in self._pixels]
                groups = [(key[0], [key]) for key in keys] if len(keys) > 1 else []
                for name, group in [*groups, (kind, keys)] if keys else []:
                    pixels, blocks = (
                        merge_samples(store[key] for key in group) for store in (self._pixels, self._blocks)
                    )
                    rows.append(calibration_row(name, pipeline, pixels, blocks))
        return rows

    def totals(self) -> list[CalibrationRow]:
        """The rows of whole kinds only."""
        kinds = set(self._kinds.values())
        return [row for row in self.rows() if row.data in kinds]

    def write(self, path: Path) -> None:
        """Writes the rows (.json) or plots them (.png, .jpg).

        Raises:
            InputError: another ending, or no pipeline gave a confidence.
        """
        check_ending(path)
        if not self._pixels:
            raise InputError("No pipeline gave a confidence; there is no calibration to write.")
        if path.suffix.lower() == ".json":
            content = {"tolerance": COLOUR_TOLERANCE, "rows": [asdict(row) for row in self.rows()]}
            write_json(path, content)
        else:
            write_image(path, plot_calibration(self.totals(), COLOUR_TOLERANCE))


def check_ending(path: Path) -> None:
    """Checks that a file can be written by `Calibration.write`. Raises InputError."""
    if path.suffix.lower() not in (".png", ".jpg", ".json"):
        raise InputError(f"{path} ends in '{path.suffix}'; .png or .jpg for a plot or .json for values was expected.")


COLUMNS = [
    Column("data", attrgetter("data"), label=True),
    Column("pipeline", attrgetter("pipeline"), label=True),
    Column("frames", attrgetter("frames")),
    Column("imagined", attrgetter("imagined"), "{:.0%}"),
    Column("rank corr. pixels", attrgetter("rank"), "{:.2f}"),
    Column("of imagined", attrgetter("rank_imagined"), "{:.2f}"),
    Column("of observed", attrgetter("rank_observed"), "{:.2f}"),
    Column("rank corr. blocks", attrgetter("rank_blocks"), "{:.2f}"),
    Column("of imagined", attrgetter("rank_blocks_imagined"), "{:.2f}"),
    Column("confidence", attrgetter("confidence"), "{:.2f}"),
    Column("accuracy", attrgetter("right"), "{:.2f}"),
    Column("ECE", attrgetter("calibration_error"), "{:.2f}"),
    Column("imagined: confidence", attrgetter("confidence_imagined"), "{:.2f}"),
    Column("accuracy", attrgetter("right_imagined"), "{:.2f}"),
    Column("ECE", attrgetter("calibration_error_imagined"), "{:.2f}"),
    Column("depth: confidence", attrgetter("depth_confidence_imagined"), "{:.2f}"),
    Column("accuracy", attrgetter("right_depth_imagined"), "{:.2f}"),
    Column("ECE", attrgetter("calibration_error_depth_imagined"), "{:.2f}"),
    Column("rank corr.", attrgetter("rank_depth_imagined"), "{:.2f}"),
    Column("expected error", attrgetter("expected"), "{:.3f}"),
    Column("error", attrgetter("error"), "{:.3f}"),
]


def calibration_table(rows: list[CalibrationRow]) -> Table:
    """A table for the terminal."""
    title = (
        f"Calibration; correct = colour within {COLOUR_TOLERANCE:g} of its range, depth within a factor of "
        f"{DEPTH_TOLERANCE:g}. See docs/concepts/confidence.md"
    )
    return build_table(rows, COLUMNS, title=title)
