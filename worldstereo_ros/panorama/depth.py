"""Distances of a panorama, estimated by a monocular depth model from perspective views of it.

Such a model is accurate in each view up to a scale and a smooth distortion, which differ from view to view. Overlapping
views share directions: least squares over the overlaps brings all views to one scale, then smooth corrections of all
views are solved jointly (`distances.align_distances`), and blending removes the remaining differences. These are
measured before blending hides them, and lower the confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimators import DepthEstimator, estimate_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import clean_depth
from worldstereo_ros.imaging.exposure import solve_pairwise_offsets
from worldstereo_ros.panorama.distances import (
    DistanceAgreement,
    align_distances,
    distance_agreement,
    distances_seen_by,
    ray_distances,
)
from worldstereo_ros.panorama.perspective_views import STITCHING_FOV_RAD, panorama_views, pose_from_angles, rings
from worldstereo_ros.panorama.stitching import border_weight, panorama_directions, project_directions, sample

WIDTH_PX, HEIGHT_PX = 320, 240  # of the views for the depth model
ALIGNMENT_SIZE_PX = 80, 60  # of the views that are compared
MAX_HEIGHT_PX = 256  # of the result: distances are smooth
MIN_OVERLAP = 50  # common directions of two views that are compared
BLEND_POWER = 3.0  # of the weight that decreases from the centre of a view to its border
PRIOR_WEIGHT = 100.0  # of the model's own scale, in directions
MIN_FREEDOM = 0.02  # 1 - the sum of squared shares of the views in a direction; less is as good as one view


@dataclass(frozen=True)
class PanoramaDistance:
    """Estimated distances of a panorama.

    Attributes:
        distance: (h, 2 h) float32 metres along the ray, 0 where the model gives none, as in the sky.
        confidence: (h, 2 h) float32 in 0..1, probability that the distance is within a factor of `DEPTH_TOLERANCE` of
            the true one, by the model, times the probability that by this measure the views of the direction agree.
            None if the model gives no confidence.
        agreement: of the distances of overlapping views after alignment, before blending; None if none overlap.
        unaligned: the same before alignment.
    """

    distance: np.ndarray
    confidence: np.ndarray | None
    agreement: DistanceAgreement | None
    unaligned: DistanceAgreement | None


def panorama_distance(
    image: np.ndarray, estimator: DepthEstimator, *, camera: Camera | None = None, align: bool = True
) -> PanoramaDistance:
    """Estimates distances along the ray, in the scale of the depth model.

    Args:
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        estimator: estimates the depth of perspective views.
        camera: camera of these views; None: 75 degrees wide, 320x240.
        align: bring the views into agreement before blending.

    Returns:
        Distances (h, 2 h), h = min(H, 256).

    Raises:
        ImageError: the image is not a full sphere.
        DepthError: the model returned no depth for any view.
    """
    camera = Camera.from_fov(WIDTH_PX, HEIGHT_PX, STITCHING_FOV_RAD) if camera is None else camera
    poses = np.stack([pose_from_angles(*angles) for ring in rings(camera) for angles in ring])
    views = [_with_depth(view, estimator) for view in panorama_views(image, camera=camera, panorama_from_camera=poses)]
    views = [view for view in views if view.depth is not None and (view.depth > 0).any()]
    if not views:
        raise DepthError("The depth model returned no depth for any view of the panorama.")
    unaligned = distance_agreement(views)
    if align and len(views) > 1:
        views = align_distances(_equalise_scales(views))
    distance, confidence = _blend(views, min(image.shape[0], MAX_HEIGHT_PX))
    return PanoramaDistance(distance, confidence, distance_agreement(views), unaligned)


def _with_depth(view: View, estimator: DepthEstimator) -> View:
    estimate = estimate_depth(estimator, view.image, view.camera)
    return replace(view, depth=clean_depth(estimate.depth), depth_confidence=estimate.confidence)


def _blend(views: Sequence[View], height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Distance and confidence (H, 2 H) float32.

    The distance is the weighted geometric mean of those of the views; 0 where most have none. The confidence is the
    weighted mean of theirs, lowered by the spread of their distances.
    """
    directions = panorama_directions(height)
    total, squares, weights, squared_weights, coverage, confidence = (
        np.zeros((height, 2 * height), np.float32) for _ in range(6)
    )
    has_confidence = all(view.depth_confidence is not None for view in views)
    for view in views:
        columns, rows, inside = project_directions(view, np.eye(4), directions)
        distance = sample(ray_distances(view), columns, rows, nearest=True)
        weight = inside * border_weight(columns, rows, view) ** BLEND_POWER
        coverage += weight
        weight = np.where(distance > 0, weight, np.float32(0))
        log = np.log(np.where(distance > 0, distance, np.float32(1)))
        total += weight * log
        squares += weight * log * log
        weights += weight
        squared_weights += weight * weight
        if has_confidence and view.depth_confidence is not None:
            confidence += weight * sample(view.depth_confidence.astype(np.float32), columns, rows)
    valid = weights > 0.5 * coverage
    divisor = np.where(valid, weights, np.float32(1))
    mean = total / divisor
    distance = np.where(valid, np.exp(mean), 0).astype(np.float32)
    if not has_confidence:
        return distance, None
    # Unbiased variance: a view with nearly all the weight is compared with the little weight of the others.
    freedom = np.maximum(1 - squared_weights / divisor**2, MIN_FREEDOM)
    spread = np.sqrt(np.maximum(squares / divisor - mean * mean, 0) / freedom)
    confidence = confidence / divisor * _probability_of_agreement(spread)
    return distance, np.where(valid, confidence, 0).astype(np.float32)


def _probability_of_agreement(spread: np.ndarray) -> np.ndarray:
    """Probability that a normal error of a standard deviation `spread` (log distance) is within `DEPTH_TOLERANCE`."""
    ratio = math.log(DEPTH_TOLERANCE) / (math.sqrt(2) * np.maximum(spread, 1e-6))
    return torch.erf(torch.from_numpy(ratio)).numpy()


def _equalise_scales(views: list[View]) -> list[View]:
    """Scales the depth of the views to agree in their overlaps; the mean logarithm of the scales is 0."""
    small = [view.resized(*ALIGNMENT_SIZE_PX) for view in views]
    ratios = []
    for i, one in enumerate(small):
        distances = ray_distances(one)
        for j, other in enumerate(small):
            if i >= j:
                continue
            others = distances_seen_by(other, one)
            both = (distances > 0) & (others > 0)
            if both.sum() >= MIN_OVERLAP:
                ratios.append((i, j, int(both.sum()), float(np.median(np.log(others[both] / distances[both])))))
    log_scales = solve_pairwise_offsets(len(views), ratios, prior_weight=PRIOR_WEIGHT)
    return [
        replace(view, depth=(_depth(view) * scale).astype(np.float32))
        for view, scale in zip(views, np.exp(log_scales), strict=True)
    ]


def _depth(view: View) -> np.ndarray:
    assert view.depth is not None
    return view.depth
