"""Distances for a panorama that came without: a monocular depth model looks at perspective views of it.

Such a model is right about every view up to a scale (and, less so, a shift of inverse depth), another one in each view.
Where views overlap they see the same directions, so all are brought to one scale by least squares over the overlaps,
each is then fitted to what its neighbours say, and the rest of the disagreement is blended away.
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
from worldstereo_ros.panorama.perspective_views import FIELD, look, panorama_views, rings
from worldstereo_ros.panorama.stitching import border_weight, look_up, panorama_directions, sample

WIDTH, HEIGHT = 320, 240  # of the views that the model looks at
COARSE = 80, 60  # of the views that are compared
ROWS = 256  # of the distances, unless the panorama has fewer: they are smooth
FEWEST = 50  # directions without which two views say nothing of each other
SHARPNESS = 3.0  # power of the weight that falls from the middle of a view to its border
HELD = 100.0  # directions' worth of weight with which every view is held to the model's own scale


def panorama_distance(
    image: np.ndarray, estimator: DepthEstimator, *, camera: Camera | None = None, align: bool = True
) -> np.ndarray:
    """Distances along the ray for a panorama, in the model's scale.

    Args:
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        estimator: gives depth to perspective views.
        camera: of those views; None: 75 degrees across, 320x240.
        align: bring the views to one scale; else they are only blended.

    Returns:
        (h, 2 h) float32 metres, h = min(H, 256); 0 where the model sees none, as in the sky.

    Raises:
        ImageError: no full sphere.
        DepthError: the model gave no depth for any view.
    """
    camera = Camera.from_fov(WIDTH, HEIGHT, FIELD) if camera is None else camera
    poses = np.stack([look(*angles) for ring in rings(camera) for angles in ring])
    views = [
        replace(view, depth=clean_depth(estimator(view.image, camera)))
        for view in panorama_views(image, camera=camera, panorama_from_camera=poses)
    ]
    views = [view for view in views if view.depth is not None and (view.depth > 0).any()]
    if not views:
        raise DepthError("The depth model gave no depth for any view of the panorama.")
    if align and len(views) > 1:
        views = _fitted(_scaled(views))
    return _blended(views, min(image.shape[0], ROWS))


def _blended(views: Sequence[View], height: int) -> np.ndarray:
    """(H, 2 H) float32: the weighted geometric mean of what the views say; 0 where most of them say nothing."""
    directions = panorama_directions(height)
    total, weights, shown = (np.zeros((height, 2 * height), np.float32) for _ in range(3))
    for view in views:
        columns, rows, inside = look_up(view, np.eye(4), directions)
        ray = sample(_rays(view), columns, rows, nearest=True)
        weight = inside * border_weight(columns, rows, view) ** SHARPNESS
        shown += weight
        weight = np.where(ray > 0, weight, np.float32(0))
        total += weight * np.log(np.where(ray > 0, ray, np.float32(1)))
        weights += weight
    known = weights > 0.5 * shown
    return np.where(known, np.exp(total / np.where(known, weights, np.float32(1))), 0).astype(np.float32)


def _rays(view: View) -> np.ndarray:
    """(H, W) float32: distances along the ray of a view with depth, 0 = unknown."""
    return (_depth(view) * np.linalg.norm(view.camera.rays(), axis=-1)).astype(np.float32)


def _scaled(views: list[View]) -> list[View]:
    """The views with their depths brought to one scale, whose mean logarithm is that of the model."""
    small = [view.resized(*COARSE) for view in views]
    ratios = []
    for i, one in enumerate(small):
        own = _rays(one)
        for j, other in enumerate(small):
            if i >= j:
                continue
            theirs = _looked_up(other, one)
            both = (own > 0) & (theirs > 0)
            if both.sum() >= FEWEST:
                ratios.append((i, j, int(both.sum()), float(np.median(np.log(theirs[both] / own[both])))))
    shifts = solve_pairwise_offsets(len(views), ratios, prior_weight=HELD)
    return [
        replace(view, depth=(_depth(view) * scale).astype(np.float32))
        for view, scale in zip(views, np.exp(shifts), strict=True)
    ]


def _fitted(views: list[View]) -> list[View]:
    """Each view fitted in scale and shift to what its neighbours say, one after the other."""
    small = [view.resized(*COARSE) for view in views]
    fitted = list(views)
    for i, one in enumerate(small):
        logs, counts = np.zeros(one.image.shape[:2], np.float32), np.zeros(one.image.shape[:2], np.float32)
        for j, other in enumerate(small):
            theirs = _looked_up(other, one) if i != j else np.zeros(logs.shape, np.float32)
            logs += np.log(np.where(theirs > 0, theirs, np.float32(1)))
            counts += theirs > 0
        length = np.linalg.norm(one.camera.rays(), axis=-1)
        said = np.where(counts > 0, np.exp(logs / np.maximum(counts, 1)) / length, 0).astype(np.float32)
        try:
            found = align_depth(_depth(one), said, kind="depth", tolerance=0.08, min_inliers=0.4, hypotheses=100)
        except DepthError:  # its neighbours disagree too much to say better
            continue
        small[i] = replace(one, depth=found.depth)
        with np.errstate(divide="ignore"):
            inverse = found.scale / _depth(views[i]) + found.shift
            depth = np.where((_depth(views[i]) > 0) & (inverse > 0), 1 / inverse, 0)
        fitted[i] = replace(views[i], depth=clean_depth(depth))
    return fitted


def _depth(view: View) -> np.ndarray:
    assert view.depth is not None
    return view.depth


def _looked_up(other: View, one: View) -> np.ndarray:
    """(H, W) float32 metres along the ray that `other` says of the pixels of `one`, 0 = nothing."""
    columns, rows, inside = look_up(other, one.world_from_camera, one.camera.rays())
    return np.where(inside, sample(_rays(other), columns, rows, nearest=True), np.float32(0))
