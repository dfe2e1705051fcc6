"""What views say of their pixels, against ground truth: precision, recall and calibration of each class of provenance.

Only pixels with true depth count. Where an observation saw them is decided by true depth (`metrics.seen_pixels`), the
same for all pipelines: *measured* pixels were seen by an observation with depth, *unmeasured* ones by observations
without depth only, *unseen* ones by none.

| class | precision: of the pixels with this label, the share | recall: the share |
| --- | --- | --- |
| observed | that is measured | of measured pixels with this label |
| estimated | whose depth is right | of unmeasured pixels with this label whose depth is right |
| imagined | whose colour is right | of unseen pixels with this label |

A depth is right within a factor of `provenance.DEPTH_TOLERANCE` of the true depth, a colour if the mean absolute
difference over the channels is at most `confidence.COLOUR_TOLERANCE` of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from worldstereo_ros.evaluation.calibration import SAMPLED_PIXELS
from worldstereo_ros.evaluation.calibration_metrics import depth_ratio, expected_calibration_error, rank_correlation
from worldstereo_ros.evaluation.metrics import seen_pixels
from worldstereo_ros.evaluation.output import read_rows, write_rows
from worldstereo_ros.evaluation.report import mean
from worldstereo_ros.evaluation.tables import Column, build_table, format_value
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE, Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE
from worldstereo_ros.utils.errors import InputError

CLASSES = (Provenance.OBSERVED, Provenance.ESTIMATED, Provenance.IMAGINED)
UNSEEN_VIEW = 0.95  # a view counts as unseen if more than this share of its pixels with true depth is


@dataclass(frozen=True)
class TruthRow:
    """One class of provenance of one pipeline on one sequence; None where a figure does not apply.

    Attributes:
        sequence, protocol, pipeline: names.
        label: observed, estimated or imagined; `class` in JSON.
        requests: how often the views were requested, with `remember` if more than once; the last time is evaluated.
        frames: evaluated views.
        pixels: pixels of this class.
        share: fraction of all pixels.
        precision, recall: see the module.
        right_colour, right_depth: fractions of the pixels of this class.
        confidence, depth_confidence: means over the pixels of this class.
        ece_colour: expected calibration error of the confidence; a pixel is right if its colour is.
        ece_depth: the same of the confidence of depth; a pixel is right if its depth is.
        rank_all: Spearman correlation of confidence and negative colour error over the pixels of all classes.
        rank_imagined: the same over imagined pixels; in their row only.
        rank_depth: the same of the confidence of depth and the negative error of depth, over the pixels of this class.
        unseen_views: views that are more than `UNSEEN_VIEW` unseen; in the row of imagined pixels only.
        unseen_confidence, unseen_right_colour: means over the imagined pixels of these views.
    """

    sequence: str
    protocol: str
    pipeline: str
    label: str
    requests: int
    frames: int
    pixels: int
    share: float | None = None
    precision: float | None = None
    recall: float | None = None
    right_colour: float | None = None
    right_depth: float | None = None
    confidence: float | None = None
    depth_confidence: float | None = None
    ece_colour: float | None = None
    ece_depth: float | None = None
    rank_all: float | None = None
    rank_imagined: float | None = None
    rank_depth: float | None = None
    unseen_views: int | None = None
    unseen_confidence: float | None = None
    unseen_right_colour: float | None = None


FIGURES = tuple(field.name for field in fields(TruthRow))[7:]


class LabelledView(Protocol):
    """A view that says of each pixel what it is, such as `ImaginedView` and `EvaluatedView`."""

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    @property
    def depth(self) -> np.ndarray | None:
        """(H, W) float32 metres, 0 = unknown."""

    @property
    def provenance(self) -> np.ndarray | None:
        """(H, W) uint8 values of `Provenance`."""

    @property
    def confidence(self) -> np.ndarray | None:
        """(H, W) float32 in 0..1."""

    @property
    def depth_confidence(self) -> np.ndarray | None:
        """(H, W) float32 in 0..1."""


@dataclass(frozen=True)
class SeenPixels:
    """Which pixels of a view observations saw: (H, W) bool, disjoint, False where true depth is unknown.

    Attributes:
        measured: seen by an observation with depth.
        unmeasured: seen by observations without depth only.
    """

    measured: np.ndarray
    unmeasured: np.ndarray


def find_seen(truth: View, observed_views: Sequence[View], true_views: Sequence[View]) -> SeenPixels:
    """Finds the pixels of a view that observations saw.

    Args:
        truth: the view, with true depth.
        observed_views: what the pipeline is given, some or all without depth.
        true_views: the same views with true depth.

    Raises:
        InputError: `truth` has no depth.
    """
    pairs = list(zip(observed_views, true_views, strict=True))
    measured = seen_pixels(truth, [true for given, true in pairs if given.depth is not None])
    unmeasured = seen_pixels(truth, [true for given, true in pairs if given.depth is None])
    return SeenPixels(measured, unmeasured & ~measured)


@dataclass
class _Counts:
    """Sums over the pixels of one class."""

    labelled: int = 0  # pixels with this label
    correct: int = 0  # those that count for precision
    possible: int = 0  # pixels that should have this label
    found: int = 0  # those of them that count for recall
    right_colour: int = 0
    right_depth: int = 0
    confidence: float = 0.0
    depth_confidence: float = 0.0


@dataclass
class _Samples:
    """Sampled pixels of all frames; confidences are NaN where a view has none."""

    label: list[np.ndarray] = field(default_factory=list)
    confidence: list[np.ndarray] = field(default_factory=list)
    depth_confidence: list[np.ndarray] = field(default_factory=list)
    colour_error: list[np.ndarray] = field(default_factory=list)
    ratio: list[np.ndarray] = field(default_factory=list)

    def concatenated(self) -> tuple[np.ndarray, ...]:
        return tuple(np.concatenate(values) if values else np.zeros(0, np.float32) for values in vars(self).values())


class TruthScorer:
    """Collects the views of one pipeline on one scenario and computes its rows.

    Shares are over all pixels with true depth; calibration and ranks over at most `SAMPLED_PIXELS` of each view, chosen
    at random with a fixed seed.
    """

    def __init__(self, sequence: str, protocol: str, pipeline: str, requests: int = 1) -> None:
        """Starts without views; for the arguments see `TruthRow`."""
        self._names = (sequence, protocol, pipeline)
        self._requests = requests
        self._frames = self._pixels = 0
        self._counts = {label: _Counts() for label in CLASSES}
        self._unseen: list[tuple[int, float, float]] = []
        self._samples = _Samples()
        self._random = np.random.default_rng(0)

    def add(self, view: LabelledView, truth: View, seen: SeenPixels) -> None:
        """Adds a view.

        Args:
            view: what the pipeline returned.
            truth: the same view in truth.
            seen: see `find_seen`.

        Raises:
            InputError: the view has no provenance, or `truth` has no depth or another size.
        """
        if view.provenance is None or truth.depth is None:
            raise InputError("A view with provenance and a true view with depth are needed to evaluate provenance.")
        if view.image.shape != truth.image.shape:
            raise InputError(f"The view has shape {view.image.shape}, the true view {truth.image.shape}.")
        known = truth.depth > 0
        label = view.provenance[known]
        error = np.abs(view.image[known].astype(np.float32) - truth.image[known]).mean(axis=1) / 255
        depth = np.zeros(len(label), np.float32) if view.depth is None else view.depth[known]
        ratio = depth_ratio(depth, truth.depth[known])
        confidence, depth_confidence = (
            np.full(len(label), np.nan, np.float32) if values is None else values[known].astype(np.float32)
            for values in (view.confidence, view.depth_confidence)
        )
        right_colour, right_depth = error <= COLOUR_TOLERANCE, ratio <= DEPTH_TOLERANCE
        measured, unmeasured = seen.measured[known], seen.unmeasured[known]
        unseen = ~(measured | unmeasured)
        # For each class: which of its pixels are right, which pixels should have it, and which of those count.
        rules = {
            Provenance.OBSERVED: (measured, measured, np.True_),
            Provenance.ESTIMATED: (right_depth, unmeasured, right_depth),
            Provenance.IMAGINED: (right_colour, unseen, np.True_),
        }
        for name, (correct, possible, counts) in rules.items():
            mine, total = label == name, self._counts[name]
            total.labelled += int(mine.sum())
            total.correct += int((mine & correct).sum())
            total.possible += int(possible.sum())
            total.found += int((mine & possible & counts).sum())
            total.right_colour += int((mine & right_colour).sum())
            total.right_depth += int((mine & right_depth).sum())
            total.confidence += float(confidence[mine].sum(dtype=np.float64))
            total.depth_confidence += float(depth_confidence[mine].sum(dtype=np.float64))
        imagined = label == Provenance.IMAGINED
        if len(label) and unseen.mean() > UNSEEN_VIEW and imagined.any():
            right = float(right_colour[imagined].mean())
            self._unseen.append((int(imagined.sum()), float(confidence[imagined].mean()), right))
        chosen = self._random.choice(len(label), min(SAMPLED_PIXELS, len(label)), replace=False)
        arrays = (label, confidence, depth_confidence, error, ratio)
        for values, array in zip(vars(self._samples).values(), arrays, strict=True):
            values.append(array[chosen])
        self._frames += 1
        self._pixels += len(label)

    def rows(self) -> list[TruthRow]:
        """One row for each class, in the order of `CLASSES`."""
        label, confidence, depth_confidence, error, ratio = self._samples.concatenated()
        has_confidence, has_depth_confidence = np.isfinite(confidence), np.isfinite(depth_confidence)
        rank_all = rank_correlation(confidence[has_confidence], error[has_confidence])
        rows = []
        for name in CLASSES:
            total, chosen = self._counts[name], has_confidence & (label == name)
            depth_chosen = has_depth_confidence & (label == name)
            row = TruthRow(
                *self._names,
                label=name.name.lower(),
                requests=self._requests,
                frames=self._frames,
                pixels=total.labelled,
                share=_ratio(total.labelled, self._pixels),
                precision=_ratio(total.correct, total.labelled),
                recall=_ratio(total.found, total.possible),
                right_colour=_ratio(total.right_colour, total.labelled),
                right_depth=_ratio(total.right_depth, total.labelled),
                confidence=_ratio(total.confidence, total.labelled),
                depth_confidence=_ratio(total.depth_confidence, total.labelled),
                ece_colour=expected_calibration_error(confidence[chosen], error[chosen] <= COLOUR_TOLERANCE),
                ece_depth=expected_calibration_error(
                    depth_confidence[depth_chosen], ratio[depth_chosen] <= DEPTH_TOLERANCE
                ),
                rank_all=rank_all,
                rank_depth=rank_correlation(depth_confidence[depth_chosen], ratio[depth_chosen]),
            )
            if name == Provenance.IMAGINED:
                row = replace(
                    row, rank_imagined=rank_correlation(confidence[chosen], error[chosen]), **self._unseen_figures()
                )
            rows.append(row)
        return rows

    def _unseen_figures(self) -> dict[str, Any]:
        pixels = sum(count for count, _, _ in self._unseen)
        return {
            "unseen_views": len(self._unseen),
            "unseen_confidence": _ratio(sum(count * value for count, value, _ in self._unseen), pixels),
            "unseen_right_colour": _ratio(sum(count * value for count, _, value in self._unseen), pixels),
        }


def _ratio(part: float, whole: int) -> float | None:
    """The fraction; None if there is no whole, or no value (NaN) for a pixel of it."""
    return float(part / whole) if whole and np.isfinite(part) else None


def truth_means(rows: Sequence[TruthRow]) -> list[TruthRow]:
    """One row for each protocol, pipeline, class and number of requests with several sequences.

    Figures are means over sequences; frames, pixels and unseen views are sums.
    """
    groups: dict[tuple[Any, ...], list[TruthRow]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.pipeline, row.label, row.requests), []).append(row)
    out = []
    for (protocol, pipeline, label, requests), group in groups.items():
        if len(group) > 1:
            figures: dict[str, Any] = {name: mean([getattr(row, name) for row in group]) for name in FIGURES}
            counts = [row.unseen_views for row in group if row.unseen_views is not None]
            figures["unseen_views"] = sum(counts) if counts else None
            frames, pixels = sum(row.frames for row in group), sum(row.pixels for row in group)
            out.append(TruthRow("mean", protocol, pipeline, label, requests, frames, pixels, **figures))
    return out


# --- output ----------------------------------------------------------------------------------------------------------

COLUMNS = (
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("share", "share", "{:.2f}"),
    ("colour\nright", "right_colour", "{:.2f}"),
    ("\nconf.", "confidence", "{:.2f}"),
    ("\nECE", "ece_colour", "{:.2f}"),
    ("depth\nright", "right_depth", "{:.2f}"),
    ("\nconf.", "depth_confidence", "{:.2f}"),
    ("\nECE", "ece_depth", "{:.2f}"),
    ("rank\nall", "rank_all", "{:.2f}"),
    ("\nimag.", "rank_imagined", "{:.2f}"),
)
CAPTION = (
    "precision: observed, a sensor measured what the pixel shows; estimated, its depth is right; imagined, its colour. "
    "recall: of the pixels that could carry the class. right: colour within .1 of the range, depth within 25 %. "
    "conf.: mean confidence. ECE: expected calibration error. rank: confidence against actual error of colour."
)


def truth_table(rows: Sequence[TruthRow]) -> Table:
    """A table for the terminal: the rows of every sequence, then their means."""
    ordered = [*rows, *truth_means(rows)]
    columns = [Column(name, attrgetter(name), label=True) for name in ("sequence", "protocol", "pipeline")]
    columns.append(Column("class", attrgetter("label"), label=True))
    columns.append(Column("frames", attrgetter("frames")))
    columns += [Column(heading, attrgetter(name), form) for heading, name, form in COLUMNS]
    return build_table(
        ordered,
        columns,
        title="Provenance against ground truth; see docs/benchmarks/provenance.md",
        caption=CAPTION,
        bold=lambda row: row.sequence == "mean",
        ends_section=lambda i: i + 1 == len(ordered) or ordered[i + 1].label == CLASSES[0].name.lower(),
    )


def truth_line(row: TruthRow) -> str:
    """A row as one line of text, for progress output."""
    figures = ", ".join(f"{heading} {format_value(getattr(row, name), form)}" for heading, name, form in COLUMNS[:3])
    return f"{row.protocol}, {row.sequence}, {row.pipeline}, {row.label}: {figures}"


def to_dict(row: TruthRow) -> dict[str, Any]:
    """A row for JSON, with the key `class` for its label."""
    return {"class" if name == "label" else name: value for name, value in asdict(row).items()}


def from_dict(row: dict[str, Any]) -> TruthRow:
    """The inverse of `to_dict`. Raises TypeError if keys are missing or unknown."""
    return TruthRow(**{"label" if name == "class" else name: value for name, value in row.items()})


def write_truth(rows: Sequence[TruthRow], path: Path) -> None:
    """Writes the rows and their means, see `output.write_rows`."""
    write_rows(path, [to_dict(row) for row in rows], [to_dict(row) for row in truth_means(rows)])


def read_truth(path: Path) -> list[TruthRow]:
    """Reads the rows that `write_truth` wrote.

    Raises:
        InputError: the file holds something else.
    """
    return read_rows(path, from_dict, "worldstereo evaluate --truth --json")
