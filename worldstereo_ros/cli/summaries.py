"""Sentences about the provenance of clouds and views, and about damaged frames, for the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from worldstereo_ros.geometry.views import View
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.panorama.depth import PanoramaDistance


def point_counts(cloud: CloudMemory) -> str:
    """How many points of each class a cloud has: "12 observed, 0 estimated, 7 imagined points"."""
    observed, estimated = cloud.observed_count, cloud.estimated_count
    return f"{observed:,} observed, {estimated:,} estimated, {len(cloud) - observed - estimated:,} imagined points"


def pixel_shares(views: Sequence[View]) -> str:
    """Shares of the classes in the pixels of views of one size: "62% observed, 0% estimated, 38% imagined pixels"."""
    observed = sum(float(view.observed_mask.mean()) for view in views) / len(views)
    estimated = sum(float(view.estimated_mask.mean()) for view in views) / len(views)
    imagined = max(0.0, 1 - observed - estimated)  # rounding may leave less than nothing, shown as -0%
    return f"{observed:.0%} observed, {estimated:.0%} estimated, {imagined:.0%} imagined pixels"


def damaged_frames_note(reasons: Sequence[str]) -> str:
    """Says how many damaged frames were left out, and why the first was; empty if there are none."""
    if not reasons:
        return ""
    return f"{len(reasons)} damaged frame{'s' if len(reasons) > 1 else ''} left out. The first: {reasons[0]}"


def estimated_depth_warning(views: Sequence[View], estimator: str) -> str:
    """Says which views have estimated depth, and with what confidence; empty if all depth is measured.

    Args:
        views: observations as remembered, with their depth.
        estimator: name of the depth estimator.
    """
    import numpy as np

    estimated = [view for view in views if view.estimated_mask.any()]
    if not estimated:
        return ""
    if any(view.depth is not None and ((view.depth > 0) & view.observed_mask).any() for view in estimated):
        text = f"{len(estimated)} of {len(views)} views have estimated depth where none was measured."
    elif len(estimated) == len(views):
        text = "There is no measured depth: all distances are estimated, and no point counts as observed."
    else:
        text = f"{len(estimated)} of {len(views)} views have no measured depth: their distances are estimated."
    confidences = [v.depth_confidence[v.estimated_mask] for v in estimated if v.depth_confidence is not None]
    return f"{text} {_confidence_sentence(np.concatenate(confidences) if confidences else None, estimator)}"


def estimated_distance_warning(estimated: PanoramaDistance, estimator: str) -> str:
    """Says that the distances of a panorama are estimated, how far its views agree, and with what confidence.

    Args:
        estimated: the distances.
        estimator: name of the depth estimator.
    """
    text = "The distances are estimated: no point counts as observed, and straight edges may bend."
    agreement = estimated.agreement
    if agreement is not None:
        text += (
            f" Overlapping views differ by {agreement.median:.1%} in the median and {agreement.percentile_90:.1%} in "
            f"the 90th percentile, {agreement.worst_joint:.1%} at the worst of {agreement.joints} seams"
        )
        text += f" ({estimated.unaligned.median:.1%} before alignment)." if estimated.unaligned is not None else "."
    confidence = None if estimated.confidence is None else estimated.confidence[estimated.distance > 0]
    return f"{text} {_confidence_sentence(confidence, estimator)}"


def _confidence_sentence(confidence: np.ndarray | None, estimator: str) -> str:
    """Says which share of estimated distances is right by the confidence (N,) of their estimator, if it has any."""
    if confidence is None:
        return f"{estimator} has no confidence for them."
    return (
        f"By its own confidence, {estimator} is within 25 % of the true distance for {confidence.mean():.0%} of the "
        "pixels."
    )


def figures_table(figures: dict[str, Any]) -> Table:
    """The figures of a demo as a table, a column for each pipeline."""
    from rich.table import Table

    columns = {figures["model"]: figures, **figures["beside"]}
    table = Table("", *columns, box=None, show_header=len(columns) > 1, pad_edge=False)
    labels = {
        "views": "imagined views",
        "observed_fraction": "fraction of observed pixels",
        "estimated_fraction": "fraction of estimated pixels",
        "psnr": "PSNR, all pixels (dB)",
        "ssim": "SSIM",
        "psnr_observed": "PSNR, observed pixels (dB)",
        "psnr_estimated": "PSNR, estimated pixels (dB)",
        "psnr_imagined": "PSNR, imagined pixels (dB)",
        "points": "points in the cloud",
        "points_observed": "  observed",
        "points_estimated": "  estimated",
        "seconds_to_first_view": "seconds to the first view",
        "seconds_per_view": "seconds per view",
        "seconds_in_all": "seconds in total",
    }
    for name, label in labels.items():
        if figures.get(name) is not None:
            table.add_row(label, *(str(column.get(name, "")) for column in columns.values()))
    return table
