"""Evaluation of depth from single images, beside baselines that do not use the image.

Errors of metric depth are computed as they are and after median scaling (Zhou et al. 2017), since the scale of a single
image is ambiguous. Means are over pixels with known depth, then over frames. The confidence of estimators that have one
is compared with their accuracy over all pixels of a sequence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimators import NONE, SMALL, DepthEstimator, estimate_depth, load_depth_estimator
from worldstereo_ros.evaluation.calibration_metrics import BINS, depth_ratio
from worldstereo_ros.evaluation.depth_baselines import BASELINES, CONSTANT_M, HEIGHT_M, WALL_M
from worldstereo_ros.evaluation.depth_sheets import draw_sheet
from worldstereo_ros.evaluation.inputs import open_whole
from worldstereo_ros.evaluation.metrics import depth_error, scaled_depth_error
from worldstereo_ros.evaluation.output import note_printer, print_table
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.evaluation.world_sequences import PosedSequence
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.atomic_files import write_text
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class DepthRow:
    """Errors of one estimator on one sequence, means over frames.

    Attributes:
        sequence, estimator: names.
        frames: number of frames with an estimate.
        refused: number of frames without an estimate, such as images of the sky alone.
        abs_rel, delta_1_25: metric errors, see `metrics.depth_error`.
        aligned_abs_rel, aligned_delta_1_25: errors after median scaling.
        scale: median over frames of the scale factor; 1 = metric.
        seconds: time of a frame.
        confidence: mean confidence of the estimator that depth is right within a factor of 1.25; δ<1.25 is the share
            that is. None for estimators without a confidence.
        calibration_error: expected calibration error of it, see `calibration_metrics.expected_calibration_error`.
        calibration: for each bin of the confidence its share of the pixels, and its sums of the confidence and of the
            right pixels, as shares of all pixels.
        abs_rel_constant: metric error of the baseline `constant` on the same pixels of the same frames.
    """

    sequence: str
    estimator: str
    frames: int
    refused: int = 0
    abs_rel: float | None = None
    delta_1_25: float | None = None
    aligned_abs_rel: float | None = None
    aligned_delta_1_25: float | None = None
    scale: float | None = None
    seconds: float | None = None
    confidence: float | None = None
    calibration_error: float | None = None
    calibration: list[list[float]] | None = None
    abs_rel_constant: float | None = None


@dataclass
class _FrameErrors:
    """Errors of one estimator on the frames of one sequence."""

    errors: list[tuple[float, ...]] = field(default_factory=list)
    refused: int = 0
    confidences: list[float] = field(default_factory=list)
    bins: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 3)))
    constants: list[float] = field(default_factory=list)

    def add(self, depth: np.ndarray, truth: np.ndarray, seconds: float) -> bool:
        """Adds the depth (H, W) of a frame; returns False if no pixel can be compared."""
        errors = scaled_depth_error(depth, truth)
        if errors is None:
            return False
        self.errors.append((*errors, seconds))
        constant = np.where(depth > 0, np.float32(CONSTANT_M), 0)
        error, _ = depth_error(constant, truth)
        self.constants.append(float(error or 0.0))
        return True

    def add_confidence(self, confidence: np.ndarray, depth: np.ndarray, truth: np.ndarray) -> None:
        """Counts the pixels of a frame, all (H, W), by their confidence."""
        valid = (depth > 0) & (truth > 0)
        of_pixels = confidence[valid].astype(np.float64)
        right = depth_ratio(depth[valid], truth[valid]) <= DEPTH_TOLERANCE
        number = np.minimum((of_pixels * BINS).astype(int), BINS - 1)
        for column, weights in enumerate((None, of_pixels, right)):
            self.bins[:, column] += np.bincount(number, weights, minlength=BINS)
        self.confidences.append(float(of_pixels.mean()))

    def row(self, sequence: str, estimator: str) -> DepthRow:
        if not self.errors:
            return DepthRow(sequence, estimator, 0, self.refused)
        table = np.array(self.errors)
        abs_rel, delta, aligned, aligned_delta = (float(n) for n in table[:, :4].mean(axis=0))
        scale, seconds = float(np.median(table[:, 4])), float(table[:, 5].mean())
        row = DepthRow(
            *(sequence, estimator, len(table), self.refused, abs_rel, delta, aligned, aligned_delta, scale, seconds),
            abs_rel_constant=float(np.mean(self.constants)),
        )
        if not self.confidences:
            return row
        calibration = self.bins / self.bins[:, 0].sum()
        return replace(
            row,
            confidence=float(np.mean(self.confidences)),
            calibration_error=_calibration_error(calibration),
            calibration=calibration.tolist(),
        )


def _calibration_error(calibration: np.ndarray) -> float:
    """Expected calibration error of bins (BINS, 3), see `DepthRow.calibration`."""
    return float(np.abs(calibration[:, 1] - calibration[:, 2]).sum())


def depth_errors(
    data: Sequence[str | Path | PosedSequence],
    estimators: dict[str, DepthEstimator],
    *,
    every: int = 1,
    progress: Callable[[str], None] = lambda text: None,
    examples: list[tuple[View, dict[str, np.ndarray]]] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[DepthRow]:
    """Evaluates estimators and `BASELINES` on single images.

    Args:
        data: see `world_sequences.open_data`.
        estimators: estimators by name.
        every: evaluate every n-th frame.
        progress: called with a line of text.
        examples: list to which the middle frame of every sequence is added, with the depth of each estimator.
        on_note: called with sentences about damaged frames, which are left out.

    Raises:
        InputError: a sequence is unknown, or none of its frames has depth.
        DatasetError: no frame of a sequence can be read.
    """
    all_estimators = {**estimators, **{name: make() for name, make in BASELINES.items()}}
    rows: list[DepthRow] = []
    warmed_up = False
    for sequence in (sequence for one in data for sequence in open_whole(one, on_note)):
        frames = {name: _FrameErrors() for name in all_estimators}
        numbers = range(0, len(sequence), every)
        with_depth = 0
        for number in numbers:
            view = sequence[number]
            if view.depth is None or not (view.depth > 0).any():
                continue
            with_depth += 1
            progress(f"{sequence.path.name}: frame {number + 1} of {len(sequence)}")
            predictions: dict[str, np.ndarray] = {}
            if not warmed_up:  # the first call compiles and allocates, which is not part of the time of a frame
                warmed_up = True
                for estimator in all_estimators.values():
                    with suppress(DepthError):
                        estimator(view.image, view.camera)
            for name, estimator in all_estimators.items():
                begin = time.perf_counter()
                try:
                    estimate = estimate_depth(estimator, view.image, view.camera)
                except DepthError:
                    frames[name].refused += 1
                    continue
                seconds = time.perf_counter() - begin
                if not frames[name].add(estimate.depth, view.depth, seconds):
                    frames[name].refused += 1
                    continue
                if estimate.confidence is not None:
                    frames[name].add_confidence(estimate.confidence, estimate.depth, view.depth)
                predictions[name] = estimate.depth
            if examples is not None and number == numbers[len(numbers) // 2]:
                examples.append((view, predictions))
        if not with_depth:
            raise InputError(f"{sequence.path.name} has no depth; evaluation needs true depth.")
        rows += [frames[name].row(sequence.path.name, name) for name in all_estimators]
    return rows


def imagined_errors(
    data: Sequence[str | Path | PosedSequence],
    pipelines: Sequence[str],
    *,
    every: int = 1,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
    on_note: Callable[[str], None] | None = None,
) -> list[DepthRow]:
    """Evaluates the depth of imagined pixels, those that memory does not cover.

    The first view of a sequence is observed. Each pipeline has one row for its own depth, and one for the depth in
    memory, filled smoothly.

    Args:
        data: see `world_sequences.open_data`.
        pipelines: names of `load_pipeline`.
        every: imagine every n-th frame.
        device: device of the pipelines.
        progress: called with a line of text.
        on_note: called with sentences about damaged frames, which are left out.

    Raises:
        InputError: a pipeline or sequence is unknown.
        DatasetError: no frame of a sequence can be read.
    """
    rows: list[DepthRow] = []
    loaded = {name: load_pipeline(name, device) for name in pipelines}
    for sequence in (sequence for one in data for sequence in open_whole(one, on_note)):
        targets = sequence.subset(range(every, len(sequence), every))
        for name, pipeline in loaded.items():
            progress(f"{sequence.path.name}: {name} imagines {len(targets)} views")
            frames = {f"{name}, imagined": _FrameErrors(), f"{name}, smooth fill": _FrameErrors()}
            world = WorldModel(pipeline, device=device)
            world.observe(sequence[0])
            begin = time.perf_counter()
            for view, truth in zip(world.imagine(targets.poses, targets.camera), targets, strict=True):
                seconds = time.perf_counter() - begin
                assert view.depth is not None
                assert view.covered is not None
                assert truth.depth is not None
                hole = ~view.covered
                filled = fill_depth(np.where(hole, np.float32(0), view.depth))
                for errors_of_frames, depth in zip(frames.values(), (view.depth, filled), strict=True):
                    errors_of_frames.add(np.where(hole, depth, 0), truth.depth, seconds)
                begin = time.perf_counter()
            rows += [of_frames.row(sequence.path.name, label) for label, of_frames in frames.items()]
    return rows


def means(rows: Sequence[DepthRow]) -> list[DepthRow]:
    """One row for each estimator: means over sequences; no rows for a single sequence.

    The calibration is that of the pixels of all sequences, each sequence with the same weight.
    """
    if len({row.sequence for row in rows}) < 2:
        return []
    averages = []
    for name in dict.fromkeys(row.estimator for row in rows):
        members = [row for row in rows if row.estimator == name and row.frames]

        def mean(key: str, members: list[DepthRow] = members) -> float | None:
            return float(np.mean([getattr(row, key) for row in members])) if members else None

        keys = (
            "abs_rel",
            "delta_1_25",
            "aligned_abs_rel",
            "aligned_delta_1_25",
            "scale",
            "seconds",
            "abs_rel_constant",
        )
        frames, refused = sum(row.frames for row in members), sum(row.refused for row in rows if row.estimator == name)
        values: dict[str, Any] = {key: mean(key) for key in keys}
        average = DepthRow("mean", name, frames, refused, **values)
        calibrations = [row.calibration for row in members if row.calibration is not None]
        if members and len(calibrations) == len(members):
            calibration = np.mean(calibrations, axis=0)
            average = replace(
                average,
                confidence=mean("confidence"),
                calibration_error=_calibration_error(calibration),
                calibration=calibration.tolist(),
            )
        averages.append(average)
    return averages


COLUMNS = [
    Column("sequence", attrgetter("sequence"), label=True, fold=True),
    Column("estimator", attrgetter("estimator"), label=True, fold=True),
    Column("frames", lambda row: f"{row.frames} (-{row.refused})" if row.refused else row.frames),
    Column("AbsRel", attrgetter("abs_rel"), "{:.3f}"),
    Column("of a constant", attrgetter("abs_rel_constant"), "{:.3f}"),
    Column("δ<1.25", attrgetter("delta_1_25"), "{:.3f}"),
    Column("AbsRel aligned", attrgetter("aligned_abs_rel"), "{:.3f}"),
    Column("δ<1.25 aligned", attrgetter("aligned_delta_1_25"), "{:.3f}"),
    Column("scale", attrgetter("scale"), "{:.2f}"),
    Column("confidence", attrgetter("confidence"), "{:.2f}"),
    Column("ECE", attrgetter("calibration_error"), "{:.3f}"),
    Column("s/frame", attrgetter("seconds"), "{:.3f}"),
]


def depth_table(rows: Sequence[DepthRow]) -> Table:
    """A table for the terminal: the rows and their means."""
    return build_table([*rows, *means(rows)], COLUMNS)


def run(
    data: Sequence[str | Path],
    *,
    depth_model: str = "",
    every: int = 1,
    json_file: Path | None = None,
    sheet: Path | None = None,
    pipelines: Sequence[str] = (),
    device: str = "cpu",
) -> list[DepthRow]:
    """Evaluates depth and prints the table; `worldstereo evaluate --depth` calls it.

    Args:
        data: see `world_sequences.open_data`.
        depth_model: see `depth.load_depth_estimator`; "" for the bundled network, "none" for the baselines alone.
        every: evaluate every n-th frame.
        json_file: file for the rows.
        sheet: file for the contact sheet of images, true and estimated depth.
        pipelines: evaluate the depth of views that these imagine instead, see `imagined_errors`.
        device: torch device.

    Raises:
        InputError: a model or sequence is unknown, or a sequence has no depth.
        DatasetError: no frame of a sequence can be read.
    """
    console = Console()
    if pipelines:
        with console.status("loading") as status:
            rows = imagined_errors(
                data, pipelines, every=every, device=device, progress=status.update, on_note=note_printer(console)
            )
        _report(console, rows, json_file, {"every": every})
        return rows
    estimators: dict[str, DepthEstimator] = {}
    estimator = load_depth_estimator(depth_model or SMALL, device)
    if estimator is not None:
        estimators[depth_model or SMALL] = estimator
    examples: list[tuple[View, dict[str, np.ndarray]]] = []
    with console.status("loading") as status:
        rows = depth_errors(
            data, estimators,
            every=every, progress=status.update, examples=examples, on_note=note_printer(console),
        )  # fmt: skip
    baselines = {"height": HEIGHT_M, "wall": WALL_M, "constant": CONSTANT_M}
    _report(console, rows, json_file, {"depth_model": depth_model or SMALL, "every": every, **baselines})
    if sheet is not None:
        draw_sheet(examples, [name for name in estimators if name != NONE] or list(BASELINES), sheet)
        console.print(f"Contact sheet: [bold]{sheet}[/]")
    return rows


def _report(console: Console, rows: list[DepthRow], json_file: Path | None, settings: dict[str, Any]) -> None:
    """Prints the table and writes the JSON."""
    print_table(console, depth_table(rows))
    if json_file is not None:
        content = {**settings, "rows": [asdict(row) for row in (*rows, *means(rows))]}
        write_text(json_file, json.dumps(content, indent=1) + "\n")
