"""Statistics of calibration: rank correlation and expected calibration error of samples of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE

BLOCK_PX = 16  # planners use areas rather than single pixels
BINS = 10


@dataclass
class PixelSamples:
    """Samples of frames.

    Attributes:
        confidence, expected, error: (N,) float32 in 0..1 of each frame: of colour, expected and actual error.
        observed: (N,) bool.
        depth_confidence: (N,) float32 in 0..1, NaN where unavailable.
        ratio: (N,) float32, see `depth_ratio`.
    """

    confidence: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    error: list[np.ndarray] = field(default_factory=list)
    observed: list[np.ndarray] = field(default_factory=list)
    depth_confidence: list[np.ndarray] = field(default_factory=list)
    ratio: list[np.ndarray] = field(default_factory=list)

    def add(self, *arrays: np.ndarray) -> None:
        """Adds the samples of a frame, in the order of the attributes."""
        for values, new in zip(vars(self).values(), arrays, strict=True):
            values.append(new)

    def concatenated(self) -> tuple[np.ndarray, ...]:
        """The samples of all frames, in the order of the attributes."""
        return tuple(np.concatenate(values) for values in vars(self).values())


@dataclass(frozen=True)
class Bin:
    """Pixels of similar prediction: their fraction of all pixels, the mean prediction and the mean actual value."""

    share: float
    predicted: float
    actual: float


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration of one pipeline on one sequence, or on all sequences of a kind.

    Attributes:
        data: name of the sequence or of the kind.
        pipeline: its name.
        frames: evaluated frames, of all protocols.
        imagined: fraction of the pixels that are not marked as observed.
        rank, rank_imagined, rank_observed: Spearman correlation of expected and actual error over pixels; None
            without pixels.
        rank_blocks, rank_blocks_imagined: the same over means of blocks; a block is imagined if most of its pixels are.
        confidence: mean.
        right: fraction of the pixels whose error is within the tolerance.
        calibration_error: expected calibration error (ECE): mean distance of confidence and accuracy over bins.
        confidence_imagined, right_imagined, calibration_error_imagined: the same over imagined pixels.
        depth_confidence_imagined, right_depth_imagined, calibration_error_depth_imagined, rank_depth_imagined: the same
            of depth over imagined pixels with true depth; None if the pipeline gives no confidence of depth.
        expected, error: mean absolute errors of colour, 1 = from black to white.
        confidence_bins: confidence against the fraction of correct pixels, bins of equal width.
        imagined_bins, depth_bins: the same over imagined pixels, of colour and of depth.
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
    confidence_imagined: float | None
    right_imagined: float | None
    calibration_error_imagined: float | None
    depth_confidence_imagined: float | None
    right_depth_imagined: float | None
    calibration_error_depth_imagined: float | None
    rank_depth_imagined: float | None
    expected: float
    error: float
    confidence_bins: list[Bin]
    imagined_bins: list[Bin]
    depth_bins: list[Bin]
    error_bins: list[Bin]


def merge_samples(parts: Iterable[PixelSamples]) -> PixelSamples:
    """The samples of all parts."""
    out = PixelSamples()
    for part in parts:
        for values, more in zip(vars(out).values(), vars(part).values(), strict=True):
            values.extend(more)
    return out


def block_means(array: np.ndarray) -> np.ndarray:
    """(N,) means over blocks; incomplete blocks at the right and bottom border are left out."""
    rows, columns = array.shape[0] // BLOCK_PX, array.shape[1] // BLOCK_PX
    cut = array[: rows * BLOCK_PX, : columns * BLOCK_PX].astype(np.float32)
    return cut.reshape(rows, BLOCK_PX, columns, BLOCK_PX).mean(axis=(1, 3)).reshape(-1)


def rank_correlation(confidence: np.ndarray, error: np.ndarray) -> float | None:
    """Spearman correlation of confidence with correctness: 1 = every pixel of higher confidence has a smaller error.

    Args:
        confidence: (N,) higher = more certain.
        error: (N,) smaller = better: a colour error, or a ratio of depths, which may be infinite.

    Returns:
        The correlation of `confidence` and `-error`; None with fewer than three pixels or without any variation.
    """
    if len(confidence) < 3 or (confidence == confidence[0]).all() or (error == error[0]).all():
        return None
    return float(spearmanr(confidence, -np.asarray(error)).statistic)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float | None:
    """Expected calibration error (ECE): mean distance of confidence and share of right pixels over bins of confidence.

    Args:
        confidence: (N,) in 0..1.
        right: (N,) bool, or the probability that each pixel is right.
        bins: number of bins of equal width, each weighted by its number of pixels.

    Returns:
        The error in 0..1; None without pixels. Source: Naeini et al., AAAI 2015.
    """
    if len(confidence) == 0:
        return None
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    # Sum of (confidence - right) of a bin = its number of pixels times the distance of the means.
    distance = np.bincount(number, np.asarray(confidence, np.float64) - right, minlength=bins)
    return float(np.abs(distance).sum() / len(confidence))


def depth_ratio(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The factor by which a depth is wrong, at least 1: the larger over the smaller of the two.

    Args:
        depth, truth: (...) metres, 0 = unknown.

    Returns:
        (...) float32; infinite where only the depth is unknown, NaN where the true depth is.
    """
    depth, truth = np.asarray(depth, np.float32), np.asarray(truth, np.float32)
    ratio = np.full(truth.shape, np.nan, np.float32)
    known = truth > 0
    ratio[known] = np.inf
    both = known & (depth > 0)
    ratio[both] = np.maximum(depth[both] / truth[both], truth[both] / depth[both])
    return ratio


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Confidence against the fraction of right pixels in bins of equal width; empty bins are left out."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    masks = [mask for index in range(BINS) if (mask := number == index).any()]
    return [Bin(float(mask.mean()), float(confidence[mask].mean()), float(right[mask].mean())) for mask in masks]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _rank_correlation(expected: np.ndarray, error: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    if mask is not None:
        expected, error = expected[mask], error[mask]
    return rank_correlation(-expected, error)


def calibration_row(data: str, pipeline: str, pixels: PixelSamples, blocks: PixelSamples) -> CalibrationRow:
    """Computes a row.

    Args:
        data, pipeline: names.
        pixels: samples of pixels.
        blocks: means over blocks, see `block_means`.
    """
    confidence, expected, error, observed, depth_confidence, ratio = pixels.concatenated()
    _, block_expected, block_error, block_observed, *_ = blocks.concatenated()
    right, right_depth = error <= COLOUR_TOLERANCE, ratio <= DEPTH_TOLERANCE
    bins = _bins(confidence, right)
    imagined = ~observed
    with_depth = imagined & ~np.isnan(ratio) & ~np.isnan(depth_confidence)
    groups = [group for group in np.array_split(np.argsort(expected, kind="stable"), BINS) if len(group)]
    return CalibrationRow(
        data=data,
        pipeline=pipeline,
        frames=len(pixels.error),
        imagined=float((~observed).mean()),
        rank=_rank_correlation(expected, error),
        rank_imagined=_rank_correlation(expected, error, ~observed),
        rank_observed=_rank_correlation(expected, error, observed),
        rank_blocks=_rank_correlation(block_expected, block_error),
        rank_blocks_imagined=_rank_correlation(block_expected, block_error, ~block_observed),
        confidence=float(confidence.mean()),
        right=float(right.mean()),
        calibration_error=sum(part.share * abs(part.predicted - part.actual) for part in bins),
        confidence_imagined=_mean(confidence[imagined]),
        right_imagined=_mean(right[imagined]),
        calibration_error_imagined=expected_calibration_error(confidence[imagined], right[imagined]),
        depth_confidence_imagined=_mean(depth_confidence[with_depth]),
        right_depth_imagined=_mean(right_depth[with_depth]),
        calibration_error_depth_imagined=expected_calibration_error(
            depth_confidence[with_depth], right_depth[with_depth]
        ),
        rank_depth_imagined=rank_correlation(depth_confidence[with_depth], ratio[with_depth]),
        expected=float(expected.mean()),
        error=float(error.mean()),
        confidence_bins=bins,
        imagined_bins=_bins(confidence[imagined], right[imagined]),
        depth_bins=_bins(depth_confidence[with_depth], right_depth[with_depth]),
        error_bins=[
            Bin(len(group) / len(error), float(expected[group].mean()), float(error[group].mean())) for group in groups
        ],
    )
