"""Sentences about the provenance of clouds and views, for the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldstereo_ros.geometry.views import View
    from worldstereo_ros.memory.cloud import CloudMemory


def point_counts(cloud: CloudMemory) -> str:
    """How many points of each class a cloud has: "12 observed, 0 estimated, 7 imagined points"."""
    observed, estimated = cloud.observed_count, cloud.estimated_count
    return f"{observed:,} observed, {estimated:,} estimated, {len(cloud) - observed - estimated:,} imagined points"


def pixel_shares(views: Sequence[View]) -> str:
    """Shares of the classes in the pixels of views of one size: "62% observed, 0% estimated, 38% imagined pixels"."""
    observed = sum(float(view.observed_mask.mean()) for view in views) / len(views)
    estimated = sum(float(view.estimated_mask.mean()) for view in views) / len(views)
    return f"{observed:.0%} observed, {estimated:.0%} estimated, {1 - observed - estimated:.0%} imagined pixels"


def estimated_depth_warning(views: Sequence[View], estimator: str) -> str:
    """Says which views have estimated depth, and how sure the estimator is of it; empty if all depth is measured.

    Args:
        views: observations as remembered, with their depth.
        estimator: name of the depth estimator.
    """
    import numpy as np

    estimated = [view for view in views if view.estimated_mask.any()]
    if not estimated:
        return ""
    if len(estimated) == len(views):
        text = "There is no measured depth: all distances are estimated, and no point counts as observed."
    else:
        text = f"{len(estimated)} of {len(views)} views have no measured depth: their distances are estimated."
    confidences = [v.depth_confidence[v.estimated_mask] for v in estimated if v.depth_confidence is not None]
    if not confidences:
        return f"{text} {estimator} does not say how sure it is of them."
    sure = float(np.concatenate(confidences).mean())
    return f"{text} By its own account {estimator} is within 25 % of the true distance for {sure:.0%} of the pixels."
