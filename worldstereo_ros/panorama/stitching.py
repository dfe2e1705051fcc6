"""Stitches perspective views from one position into an equirectangular panorama: the inverse of `perspective_views.py`.

Every direction is looked up in every view that shows it. Low frequencies are blended over the whole overlap of two
views and high frequencies over its middle (two bands of the multiresolution spline of Burt and Adelson, 1983), which
leaves neither a step in brightness nor a doubled edge at a joint. Exposure is aligned before (`imaging/exposure.py`).
Observed pixels take precedence over estimated ones, and these over imagined ones. Axes of the panorama: see
`perspective_views.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import check_size
from worldstereo_ros.imaging.exposure import align_exposure, apply_gain
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.imaging.overlap import Overlap
from worldstereo_ros.utils.errors import InputError

MAX_BASELINE_M = 0.01  # distance of a view from the position of the panorama
LOW_POWER, HIGH_POWER = 1.0, 8.0  # powers of the border weight, for low and for high frequencies
BAND_SIGMA_WIDTHS = 0.04  # standard deviation that separates the two bands, in view widths
# Of pixels of a class, relative to observed ones
CLASS_WEIGHTS = {Provenance.OBSERVED: 1.0, Provenance.ESTIMATED: 0.1, Provenance.IMAGINED: 0.01}
SURFACE_TOLERANCE_RATIO = 0.05  # relative difference of two distances that are averaged
MAX_SAMPLES = 4000  # directions at which two views are compared
MIN_SAMPLES = 40  # common directions of two views that are compared


@dataclass(frozen=True)
class Panorama:
    """An equirectangular image of the full sphere.

    Attributes:
        image: (H, 2 H, 3) uint8 RGB.
        covered: (H, 2 H) bool, True where a view shows the direction; the rest of `image` is filled smoothly.
        provenance: (H, 2 H) uint8 values of `Provenance`; unknown where no view shows the direction.
        distance: (H, 2 H) float32 metres along the ray, of views whose class there is that of the pixel or a higher
            one, so that the distance of an observed pixel was measured; 0 = unknown; None if no view has depth.
        world_from_camera: (4, 4) pose.
    """

    image: np.ndarray
    covered: np.ndarray
    provenance: np.ndarray
    distance: np.ndarray | None
    world_from_camera: np.ndarray

    @property
    def observed(self) -> np.ndarray:
        """(H, 2 H) bool, True where a camera saw the pixel and a sensor measured its distance."""
        return self.provenance == Provenance.OBSERVED

    @property
    def estimated(self) -> np.ndarray:
        """(H, 2 H) bool, True where a camera saw the pixel, at a distance that a model estimated."""
        return self.provenance == Provenance.ESTIMATED

    @property
    def height(self) -> int:
        """Rows; there are twice as many columns."""
        return self.image.shape[0]


def panorama_from_views(
    views: Sequence[View],
    height: int = 512,
    *,
    world_from_camera: np.ndarray | None = None,
    align: bool = True,
) -> Panorama:
    """Stitches views from one position into a panorama.

    Args:
        views: within `MAX_BASELINE_M` of the position of the panorama, of any cameras, in any order.
        height: rows of the panorama; it has twice as many columns.
        world_from_camera: (4, 4) pose of the panorama, at the position of the views; None: that of the first view.
        align: align the exposure of the views.

    Raises:
        InputError: there are no views, the views are from several positions, the height is less than 8 or too large,
            or the pose is not finite.
    """
    views = list(views)
    _check(views, height)
    pose = views[0].world_from_camera if world_from_camera is None else np.asarray(world_from_camera, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise InputError(f"world_from_camera of the panorama is not a finite 4x4 matrix; its shape is {pose.shape}.")
    baseline = max(float(np.linalg.norm(view.world_from_camera[:3, 3] - pose[:3, 3])) for view in views)
    if baseline > MAX_BASELINE_M:
        raise InputError(
            f"A view is {baseline:.2f} m from the position of the panorama; at most {MAX_BASELINE_M} m were expected. "
            "Views along a path overlap with parallax and cannot be stitched."
        )
    gains = align_exposure(len(views), _overlaps(views) if align else {})
    directions = panorama_directions(height)
    low, high = np.zeros((height, 2 * height, 4), np.float32), np.zeros((height, 2 * height, 4), np.float32)
    shares = {kind: np.zeros((height, 2 * height), np.float32) for kind in CLASS_WEIGHTS}
    for view, gain in zip(views, gains, strict=True):
        view = _limit_resolution(view, height)
        columns, rows, inside = project_directions(view, pose, directions)
        border = border_weight(columns, rows, view) * inside
        classes = sample(view.provenance, columns, rows, nearest=True)
        weight = np.zeros_like(border)
        for kind, class_weight in CLASS_WEIGHTS.items():
            weight[classes == kind] = class_weight
        weight *= border
        colours = apply_gain(view.image, gain.astype(np.float32))
        smooth = cv2.GaussianBlur(
            colours, (0, 0), BAND_SIGMA_WIDTHS * view.camera.width, borderType=cv2.BORDER_REPLICATE
        )
        for sums, band, power in ((low, smooth, LOW_POWER), (high, colours - smooth, HIGH_POWER)):
            band_weight = weight * border ** (power - 1)
            sums[..., :3] += band_weight[..., None] * sample(band, columns, rows)
            sums[..., 3] += band_weight
        for kind, share in shares.items():
            share += weight * border ** (HIGH_POWER - 1) * (classes == kind)
    covered = low[..., 3] > 0
    image = np.zeros((height, 2 * height, 3), np.float32)
    image[covered] = low[covered][:, :3] / low[covered][:, 3:]
    # Weights of the high band underflow in the outermost corners of a view, which get the low band alone.
    detailed = high[..., 3] > 1e-20
    image[detailed] += high[detailed][:, :3] / high[detailed][:, 3:]
    if covered.any() and not covered.all():
        image = fill_sphere(image, covered)
    kinds = np.array(list(shares), np.uint8)
    provenance = np.where(covered, kinds[np.stack(list(shares.values())).argmax(axis=0)], np.uint8(0))
    return Panorama(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        covered=covered,
        provenance=provenance,
        distance=_blend_distance(views, pose, directions, provenance),
        world_from_camera=pose,
    )


def panorama_directions(height: int) -> np.ndarray:
    """(H, 2 H, 3) float32 unit vectors of the pixels of a panorama, in its own axes."""
    longitude = ((np.arange(2 * height) + 0.5) / height - 1) * np.pi
    latitude = ((np.arange(height) + 0.5) / height - 0.5) * np.pi  # downwards
    longitude, latitude = np.meshgrid(longitude, latitude)
    across = np.cos(latitude)
    return np.stack([across * np.sin(longitude), np.sin(latitude), across * np.cos(longitude)], -1).astype(np.float32)


def project_directions(
    view: View, pose: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects directions into a view from the same position.

    Args:
        view: the view.
        pose: (4, 4) world_from_camera of the axes of `directions`; only its rotation is used.
        directions: (..., 3).

    Returns:
        Columns and rows (...) float32, pixel centres at integers, 0 where not inside; inside (...) bool, True where the
        view shows the direction.
    """
    rotation = view.world_from_camera[:3, :3].T @ pose[:3, :3]
    x, y, z = np.moveaxis(directions @ rotation.T.astype(np.float32), -1, 0)
    camera = view.camera
    ahead = z > 1e-3
    depth = np.where(ahead, z, np.float32(1))
    column = (camera.fx * x / depth + camera.cx).astype(np.float32)
    row = (camera.fy * y / depth + camera.cy).astype(np.float32)
    inside = (column >= -0.5) & (row >= -0.5) & (column <= camera.width - 0.5) & (row <= camera.height - 0.5) & ahead
    return np.where(inside, column, np.float32(0)), np.where(inside, row, np.float32(0)), inside


def view_difference(one: View, other: View) -> float | None:
    """Mean absolute difference in grey levels of two views from one position, over their overlap.

    Returns:
        None if they overlap too little.
    """
    colours = _overlap_colours(one, other)
    return None if colours is None else float(np.abs(colours[:, 0] - colours[:, 1]).mean())


def fill_sphere(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fills an equirectangular image smoothly, also across its seam.

    Args:
        values: (H, 2 H, C) float32.
        valid: (H, 2 H) bool, True = keep the value.
    """
    width = values.shape[1]

    def repeat(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array] * 3, axis=1)

    # Of three turns side by side, the middle one has its neighbourhood on both borders.
    filled = push_pull(repeat(np.where(valid[..., None], values, np.float32(0))), repeat(valid).astype(np.float32))
    filled = filled[:, width : 2 * width]
    # All columns meet at a pole: towards it, a row blends into its mean.
    latitude = np.abs((np.arange(len(values)) + 0.5) / len(values) - 0.5) * 180
    share = np.clip((latitude - 70) / 20, 0, 1).astype(np.float32)[:, None, None]
    level = (1 - share) * filled + share * filled.mean(axis=1, keepdims=True)
    return np.where(valid[..., None], values, level)


def border_weight(columns: np.ndarray, rows: np.ndarray, view: View) -> np.ndarray:
    """(...) float32 weight of pixels: 1 at the centre of a view, nearly 0 at its border."""
    width, height = view.camera.width, view.camera.height
    across = np.minimum(columns + 0.5, width - 0.5 - columns) / (0.5 * width)
    down = np.minimum(rows + 0.5, height - 0.5 - rows) / (0.5 * height)
    return np.clip(across * down, 1e-4, 1).astype(np.float32)


def sample(layer: np.ndarray, columns: np.ndarray, rows: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Samples a layer (H, W) or (H, W, C) at columns and rows, bilinearly or at the nearest pixel."""
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(layer, columns, rows, interpolation, borderMode=cv2.BORDER_REPLICATE)


# --- internals -------------------------------------------------------------------------------------------------------


def _check(views: list[View], height: int) -> None:
    if not views:
        raise InputError("There are no views to stitch; at least one was expected.")
    if not 8 <= int(height) == height:
        raise InputError(f"The panorama's height is {height}; a whole number of at least 8 rows was expected.")
    check_size(2 * height, height, "The panorama")


def _limit_resolution(view: View, height: int) -> View:
    """The view, downsampled if the panorama would skip its pixels."""
    finer = min(view.camera.fx, view.camera.fy) * np.pi / height
    if finer <= 1.5:
        return view
    return view.resized(max(2, round(view.camera.width / finer)), max(2, round(view.camera.height / finer)))


def _overlap_colours(one: View, other: View) -> np.ndarray | None:
    """(N, 2, 3) float64 colours of N directions that both views show; None if there are too few."""
    camera = one.camera
    stride = max(1, round((camera.width * camera.height / MAX_SAMPLES) ** 0.5))
    grid = (slice(stride // 2, None, stride),) * 2
    columns, rows, inside = project_directions(other, one.world_from_camera, camera.rays()[grid])
    if inside.sum() < MIN_SAMPLES:
        return None
    colours = sample(other.image, columns, rows)
    return np.stack([one.image[grid][inside], colours[inside]], axis=1).astype(np.float64)


def _overlaps(views: list[View]) -> dict[tuple[int, int], Overlap]:
    pairs = {}
    for i, one in enumerate(views):
        for j, other in enumerate(views):
            colours = _overlap_colours(one, other) if i < j else None
            if colours is not None:
                pairs[i, j] = Overlap(colours, float("nan"))
    return pairs


def _blend_distance(
    views: list[View], pose: np.ndarray, directions: np.ndarray, provenance: np.ndarray
) -> np.ndarray | None:
    """(H, 2 H) float32 metres: of the view with the direction nearest to its centre, averaged with those that agree.

    Views whose class in a direction is lower than its `provenance` (H, 2 H) do not count: what they show there was not
    measured, or not seen.
    """
    if all(view.depth is None for view in views):
        return None
    shape = directions.shape[:2]
    best, most = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for average in (False, True):
        for view in views:
            if view.depth is None:
                continue
            columns, rows, inside = project_directions(view, pose, directions)
            length = np.linalg.norm(view.camera.rays(), axis=-1).astype(np.float32)
            ray = sample((view.depth * length).astype(np.float32), columns, rows, nearest=True)
            usable = inside & (ray > 0) & (sample(view.provenance, columns, rows, nearest=True) >= provenance)
            weight = np.where(usable, border_weight(columns, rows, view), np.float32(0))
            if average:
                weight = weight * (np.abs(ray - best) <= SURFACE_TOLERANCE_RATIO * best)
                total += weight * ray
                weights += weight
            else:
                best, most = np.where(weight > most, ray, best), np.maximum(weight, most)
    return np.where(weights > 0, total / np.maximum(weights, 1e-20), 0).astype(np.float32)
