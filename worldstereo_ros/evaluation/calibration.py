"""Is what a pipeline says of its own pictures true? Predicted error against actual error, pixel by pixel.

Two questions, which have little to do with each other: are the pixels in the right *order* (rank correlation of
expected and actual error), and are the *numbers* right (of the pixels with confidence 0.7, are 70 % right?).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table
from scipy.stats import spearmanr

from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.confidence import TOLERANCE, load_confidence
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.contact_sheet import FAINT, INK, PAPER
from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR

PIXELS = 4000  # of a frame; neighbours say the same
BLOCK = 16  # pixels: planners look at areas
BINS = 10
LEAST = 0.002  # share of all pixels: what a bin needs to be drawn
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass
class Pixels:
    """Samples of frames: confidence, expected and actual error (N,) float32 in 0..1, observed (N,) bool."""

    confidence: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    error: list[np.ndarray] = field(default_factory=list)
    observed: list[np.ndarray] = field(default_factory=list)

    def add(self, confidence: np.ndarray, expected: np.ndarray, error: np.ndarray, observed: np.ndarray) -> None:
        """Takes further ones."""
        for values, new in zip(vars(self).values(), (confidence, expected, error, observed), strict=True):
            values.append(new)

    def joined(self) -> tuple[np.ndarray, ...]:
        """(confidence, expected, error, observed), each in one array."""
        return tuple(np.concatenate(values) for values in vars(self).values())


@dataclass(frozen=True)
class Bin:
    """Pixels of nearly the same prediction: their share of all, what was predicted and what was found."""

    share: float
    predicted: float
    actual: float


@dataclass(frozen=True)
class Figures:
    """How reliable one pipeline is on one sequence, or on all of a kind.

    Attributes:
        data: name of the sequence, or what several have in common. pipeline: its name.
        frames: asked ones, of all protocols.
        imagined: share of the pixels that are not claimed as observed.
        rank, rank_imagined, rank_observed: Spearman correlation of expected and actual error over pixels; None where
            there are none.
        rank_blocks, rank_blocks_imagined: of their means over blocks; a block is imagined if most of its pixels are.
        confidence: mean; right: share of the pixels whose error is within the tolerance.
        calibration_error: mean distance of the two over bins of confidence (ECE).
        expected, error: mean absolute errors of colour, 1 = from black to white.
        confidence_bins: confidence against the share that is right, bins of equal width.
        error_bins: expected against actual error, bins of equal number.
    """

    data: str
    pipeline: str
    frames: int
    imagined: float
    rank: float | None
    rank_imagined: float | None
    rank_observed: float | None
    rank_blocks: float | None
    rank_blocks_imagined: float | None
    confidence: float
    right: float
    calibration_error: float
    expected: float
    error: float
    confidence_bins: list[Bin]
    error_bins: list[Bin]


class Reliability:
    """Collects what pipelines predicted and what was true."""

    def __init__(self) -> None:
        self._pixels: dict[tuple[str, str], Pixels] = {}
        self._blocks: dict[tuple[str, str], Pixels] = {}
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
    ) -> None:
        """Takes one asked frame.

        Args:
            sequence: its name. kind: what it has in common with others.
            pipeline: name.
            image, truth: (H, W, 3) uint8.
            confidence: (H, W) float32 in 0..1. observed: (H, W) bool.
        """
        self._kinds[sequence] = kind
        expected = load_confidence(pipeline).expected_error(confidence, observed)
        error = np.abs(image.astype(np.float32) - truth).mean(axis=2) / 255
        chosen = self._random.choice(error.size, min(PIXELS, error.size), replace=False)
        confidences, expectations, errors, claims = (
            array.reshape(-1)[chosen] for array in (confidence, expected, error, observed)
        )
        self._pixels.setdefault((sequence, pipeline), Pixels()).add(confidences, expectations, errors, claims)
        confidences, expectations, errors, claims = (
            _blocks(array) for array in (confidence, expected, error, observed)
        )
        self._blocks.setdefault((sequence, pipeline), Pixels()).add(confidences, expectations, errors, claims > 0.5)

    def figures(self) -> list[Figures]:
        """Of each kind of data, and of each sequence where there are several of a kind."""
        rows: list[Figures] = []
        pipelines = list(dict.fromkeys(pipeline for _, pipeline in self._pixels))
        for kind in dict.fromkeys(self._kinds.values()):
            members = [sequence for sequence, other in self._kinds.items() if other == kind]
            for pipeline in pipelines:
                keys = [(sequence, pipeline) for sequence in members if (sequence, pipeline) in self._pixels]
                groups = [(key[0], [key]) for key in keys] if len(keys) > 1 else []
                for name, group in [*groups, (kind, keys)] if keys else []:
                    pixels, blocks = (_together(store, group) for store in (self._pixels, self._blocks))
                    rows.append(_figures(name, pipeline, pixels, blocks))
        return rows

    def totals(self) -> list[Figures]:
        """`figures` of whole kinds alone."""
        kinds = set(self._kinds.values())
        return [row for row in self.figures() if row.data in kinds]

    def write(self, path: Path) -> None:
        """Writes the figures (.json) or draws them (.png, .jpg).

        Raises:
            ValueError: another ending, or nothing was collected.
        """
        check_ending(path)
        if not self._pixels:
            raise InputError("No pipeline said how sure it is, so there is no reliability to show.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".json":
            content = {"tolerance": TOLERANCE, "rows": [asdict(row) for row in self.figures()]}
            path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        else:
            write_image(path, draw(self.totals()))


def check_ending(path: Path) -> None:
    """Refuses a file that is neither a picture nor JSON, before any work is done. Raises ValueError."""
    if path.suffix.lower() not in (".png", ".jpg", ".json"):
        raise InputError(
            f"{path} ends in '{path.suffix}'; .png or .jpg for the plot or .json for figures was expected."
        )


def _together(store: dict[tuple[str, str], Pixels], keys: list[tuple[str, str]]) -> Pixels:
    out = Pixels()
    for key in keys:
        for values, more in zip(vars(out).values(), vars(store[key]).values(), strict=True):
            values.extend(more)
    return out


def _blocks(array: np.ndarray) -> np.ndarray:
    """(N,) means over blocks; what is left over at the right and below is left out."""
    rows, columns = array.shape[0] // BLOCK, array.shape[1] // BLOCK
    cut = array[: rows * BLOCK, : columns * BLOCK].astype(np.float32)
    return cut.reshape(rows, BLOCK, columns, BLOCK).mean(axis=(1, 3)).reshape(-1)


def _rank(expected: np.ndarray, error: np.ndarray, chosen: np.ndarray | None = None) -> float | None:
    if chosen is not None:
        expected, error = expected[chosen], error[chosen]
    if len(expected) < 3 or np.ptp(expected) == 0 or np.ptp(error) == 0:
        return None
    return float(spearmanr(expected, error).statistic)


def _figures(data: str, pipeline: str, pixels: Pixels, blocks: Pixels) -> Figures:
    confidence, expected, error, observed = pixels.joined()
    _, block_expected, block_error, block_observed = blocks.joined()
    right = error <= TOLERANCE
    bins = [
        Bin(float(chosen.mean()), float(confidence[chosen].mean()), float(right[chosen].mean()))
        for number in range(BINS)
        if (chosen := np.minimum((confidence * BINS).astype(int), BINS - 1) == number).any()
    ]
    groups = [group for group in np.array_split(np.argsort(expected, kind="stable"), BINS) if len(group)]
    return Figures(
        data=data,
        pipeline=pipeline,
        frames=len(pixels.error),
        imagined=float((~observed).mean()),
        rank=_rank(expected, error),
        rank_imagined=_rank(expected, error, ~observed),
        rank_observed=_rank(expected, error, observed),
        rank_blocks=_rank(block_expected, block_error),
        rank_blocks_imagined=_rank(block_expected, block_error, ~block_observed),
        confidence=float(confidence.mean()),
        right=float(right.mean()),
        calibration_error=sum(part.share * abs(part.predicted - part.actual) for part in bins),
        expected=float(expected.mean()),
        error=float(error.mean()),
        confidence_bins=bins,
        error_bins=[
            Bin(len(group) / len(error), float(expected[group].mean()), float(error[group].mean())) for group in groups
        ],
    )


HEADINGS = {
    "rank": ("rank, pixels", "{:.2f}"),
    "rank_imagined": ("of imagined", "{:.2f}"),
    "rank_observed": ("of observed", "{:.2f}"),
    "rank_blocks": ("rank, blocks", "{:.2f}"),
    "rank_blocks_imagined": ("of imagined", "{:.2f}"),
    "confidence": ("confidence", "{:.2f}"),
    "right": ("right", "{:.2f}"),
    "calibration_error": ("off by", "{:.2f}"),
    "expected": ("expected error", "{:.3f}"),
    "error": ("error", "{:.3f}"),
}


def format_table(rows: list[Figures]) -> Table:
    """A table for the terminal."""
    table = Table(title=f"How sure and how right, within {TOLERANCE:g} of a colour's range; see docs/confidence.md")
    for heading in ("data", "pipeline"):
        table.add_column(heading, no_wrap=True)
    for heading in ("frames", "imagined", *(heading for heading, _ in HEADINGS.values())):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [
            "-" if getattr(row, name) is None else form.format(getattr(row, name))
            for name, (_, form) in HEADINGS.items()
        ]
        table.add_row(row.data, row.pipeline, str(row.frames), f"{row.imagined:.0%}", *cells)
    return table


# --- the plot --------------------------------------------------------------------------------------------------------

SIZE, LEFT, TOP, BELOW, GAP = 360, 92, 92, 64, 40  # pixels of a panel and around it
COLOURS = (OBSERVED_COLOUR, IMAGINED_COLOUR, (110, 90, 170), (60, 140, 80), FAINT)


def draw(rows: list[Figures]) -> np.ndarray:
    """(H, W, 3) uint8: for each kind of data two panels, confidence against share right, expected against actual error.

    A dot's area is the share of the pixels; on the diagonal a prediction is true.
    """
    kinds = list(dict.fromkeys(row.data for row in rows))
    pipelines = list(dict.fromkeys(row.pipeline for row in rows))
    panel = LEFT + SIZE + GAP
    canvas = np.full((len(kinds) * (TOP + SIZE + BELOW) + 16, 2 * panel, 3), PAPER, np.uint8)
    limit = max([0.1, *(max(part.predicted, part.actual) for row in rows for part in row.error_bins)])
    limit = float(np.ceil(limit * 20) / 20)
    for number, kind in enumerate(kinds):
        top = number * (TOP + SIZE + BELOW)
        _write(canvas, kind, (LEFT, top + 34), 0.7, INK, 2)
        mine = [row for row in rows if row.data == kind]
        for at, row in enumerate(mine):
            rank = "" if row.rank is None else f", rank {row.rank:.2f}"
            text = f"{row.pipeline}: off by {row.calibration_error:.2f}{rank}"
            place = (LEFT + at * 290, top + 66)
            colour = COLOURS[pipelines.index(row.pipeline) % len(COLOURS)]
            cv2.circle(canvas, (place[0] + 6, place[1] - 5), 6, colour, -1, cv2.LINE_AA)
            _write(canvas, text, (place[0] + 20, place[1]), 0.46, INK)
        for column, (name, x_title, y_title, most) in enumerate(
            (
                ("confidence_bins", "confidence", f"share of pixels right within {TOLERANCE:g}", 1.0),
                ("error_bins", "expected error", "actual error", limit),
            )
        ):
            x0, y0 = LEFT + column * panel, top + TOP
            _axes(canvas, x0, y0, most, x_title, y_title)
            for row in mine:
                colour = COLOURS[pipelines.index(row.pipeline) % len(COLOURS)]
                bins = [part for part in getattr(row, name) if part.share >= LEAST]
                points = [
                    (round(x0 + SIZE * part.predicted / most), round(y0 + SIZE * (1 - part.actual / most)))
                    for part in bins
                ]
                for one, other in itertools.pairwise(points):
                    cv2.line(canvas, one, other, colour, 2, cv2.LINE_AA)
                for part, point in zip(bins, points, strict=True):
                    cv2.circle(canvas, point, round(3 + 16 * float(np.sqrt(part.share))), colour, -1, cv2.LINE_AA)
    return canvas


def _axes(canvas: np.ndarray, x0: int, y0: int, most: float, x_title: str, y_title: str) -> None:
    cv2.rectangle(canvas, (x0, y0), (x0 + SIZE, y0 + SIZE), FAINT, 1)
    cv2.line(canvas, (x0, y0 + SIZE), (x0 + SIZE, y0), FAINT, 1, cv2.LINE_AA)
    for step in range(6):
        value, along = most * step / 5, SIZE * step // 5
        _write(canvas, f"{value:.2g}", (x0 + along - 10, y0 + SIZE + 20), 0.42, FAINT)
        _write(canvas, f"{value:.2g}", (x0 - 38, y0 + SIZE - along + 5), 0.42, FAINT)
    _write(canvas, x_title, (x0 + SIZE // 2 - 40, y0 + SIZE + 44), 0.46, INK)
    # Text stands upright only: the title of the vertical axis is written on a strip that is turned.
    strip = np.full((20, SIZE, 3), PAPER, np.uint8)
    width = cv2.getTextSize(y_title, _FONT, 0.46, 1)[0][0]
    _write(strip, y_title, ((SIZE - width) // 2, 14), 0.46, INK)
    canvas[y0 : y0 + SIZE, x0 - 66 : x0 - 46] = cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE)


def _write(
    canvas: np.ndarray, text: str, at: tuple[int, int], size: float, colour: tuple[int, ...], weight: int = 1
) -> None:
    cv2.putText(canvas, text, at, _FONT, size, colour, weight, cv2.LINE_AA)
