"""Distances of a panorama, estimated by a monocular depth model from perspective views of it.

Such a model is accurate in each view up to a scale and, to a lesser extent, a shift of inverse depth, which differ from
view to view. Overlapping views share directions: least squares over the overlaps brings all views to one scale, each is
then aligned to its neighbours in scale and shift, and blending removes the remaining differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worldstereo_ros.depth.alignment import DepthError, align_depth
from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import clean_depth
from worldstereo_ros.imaging.exposure import solve_pairwise_offsets
from worldstereo_ros.panorama.perspective_views import STITCHING_FOV_RAD, panorama_views, pose_from_angles, rings
from worldstereo_ros.panorama.stitching import border_weight, panorama_directions, project_directions, sample

WIDTH_PX, HEIGHT_PX = 320, 240  # of the views for the depth model
ALIGNMENT_SIZE_PX = 80, 60  # of the views that are compared
MAX_HEIGHT_PX = 256  # of the result: distances are smooth
MIN_OVERLAP = 50  # common directions of two views that are compared
BLEND_POWER = 3.0  # of the weight that decreases from the centre of a view to its border
PRIOR_WEIGHT = 100.0  # of the model's own scale, in directions


def panorama_distance(
    image: np.ndarray, estimator: DepthEstimator, *, camera: Camera | None = None, align: bool = True
) -> np.ndarray:
    """Estimates distances along the ray, in the scale of the depth model.

    Args:
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        estimator: estimates the depth of perspective views.
        camera: camera of these views; None: 75 degrees wide, 320x240.
        align: bring the views to one scale before blending.

    Returns:
        (h, 2 h) float32 metres, h = min(H, 256); 0 where the model gives none, as in the sky.

    Raises:
        ImageError: the image is not a full sphere.
        DepthError: the model returned no depth for any view.
    """
    camera = Camera.from_fov(WIDTH_PX, HEIGHT_PX, STITCHING_FOV_RAD) if camera is None else camera
    poses = np.stack([pose_from_angles(*angles) for ring in rings(camera) for angles in ring])
    views = [
        replace(view, depth=clean_depth(estimator(view.image, camera)))
        for view in panorama_views(image, camera=camera, panorama_from_camera=poses)
    ]
    views = [view for view in views if view.depth is not None and (view.depth > 0).any()]
    if not views:
        raise DepthError("The depth model returned no depth for any view of the panorama.")
    if align and len(views) > 1:
        views = _align_to_neighbours(_equalise_scales(views))
    return _blend(views, min(image.shape[0], MAX_HEIGHT_PX))


def _blend(views: Sequence[View], height: int) -> np.ndarray:
    """(H, 2 H) float32: the weighted geometric mean of the views' distances; 0 where most have none."""
    directions = panorama_directions(height)
    total, weights, coverage = (np.zeros((height, 2 * height), np.float32) for _ in range(3))
    for view in views:
        columns, rows, inside = project_directions(view, np.eye(4), directions)
        distance = sample(_distances(view), columns, rows, nearest=True)
        weight = inside * border_weight(columns, rows, view) ** BLEND_POWER
        coverage += weight
        weight = np.where(distance > 0, weight, np.float32(0))
        total += weight * np.log(np.where(distance > 0, distance, np.float32(1)))
        weights += weight
    valid = weights > 0.5 * coverage
    return np.where(valid, np.exp(total / np.where(valid, weights, np.float32(1))), 0).astype(np.float32)


def _distances(view: View) -> np.ndarray:
    """(H, W) float32 metres along the ray of a view with depth, 0 = unknown."""
    return (_depth(view) * np.linalg.norm(view.camera.rays(), axis=-1)).astype(np.float32)


def _equalise_scales(views: list[View]) -> list[View]:
    """Scales the depth of the views to agree in their overlaps; the mean logarithm of the scales is 0."""
    small = [view.resized(*ALIGNMENT_SIZE_PX) for view in views]
    ratios = []
    for i, one in enumerate(small):
        distances = _distances(one)
        for j, other in enumerate(small):
            if i >= j:
                continue
            others = _distances_seen_by(other, one)
            both = (distances > 0) & (others > 0)
            if both.sum() >= MIN_OVERLAP:
                ratios.append((i, j, int(both.sum()), float(np.median(np.log(others[both] / distances[both])))))
    log_scales = solve_pairwise_offsets(len(views), ratios, prior_weight=PRIOR_WEIGHT)
    return [
        replace(view, depth=(_depth(view) * scale).astype(np.float32))
        for view, scale in zip(views, np.exp(log_scales), strict=True)
    ]


def _align_to_neighbours(views: list[View]) -> list[View]:
    """Aligns each view in scale and shift to the mean of its neighbours, one after the other."""
    small = [view.resized(*ALIGNMENT_SIZE_PX) for view in views]
    aligned = list(views)
    for i, one in enumerate(small):
        logs, counts = np.zeros(one.image.shape[:2], np.float32), np.zeros(one.image.shape[:2], np.float32)
        for j, other in enumerate(small):
            distances = _distances_seen_by(other, one) if i != j else np.zeros(logs.shape, np.float32)
            logs += np.log(np.where(distances > 0, distances, np.float32(1)))
            counts += distances > 0
        length = np.linalg.norm(one.camera.rays(), axis=-1)
        target = np.where(counts > 0, np.exp(logs / np.maximum(counts, 1)) / length, 0).astype(np.float32)
        try:
            found = align_depth(_depth(one), target, kind="depth", tolerance=0.08, min_inliers=0.4, hypotheses=100)
        except DepthError:  # the neighbours disagree too much
            continue
        small[i] = replace(one, depth=found.depth)
        with np.errstate(divide="ignore"):
            inverse = found.scale / _depth(views[i]) + found.shift
            depth = np.where((_depth(views[i]) > 0) & (inverse > 0), 1 / inverse, 0)
        aligned[i] = replace(views[i], depth=clean_depth(depth))
    return aligned


def _depth(view: View) -> np.ndarray:
    assert view.depth is not None
    return view.depth


def _distances_seen_by(other: View, view: View) -> np.ndarray:
    """(H, W) float32 metres along the ray that `other` has for the pixels of `view`, 0 = none."""
    columns, rows, inside = project_directions(other, view.world_from_camera, view.camera.rays())
    return np.where(inside, sample(_distances(other), columns, rows, nearest=True), np.float32(0))
