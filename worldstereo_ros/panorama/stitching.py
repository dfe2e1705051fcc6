"""Perspective views taken at one place, put together to an equirectangular panorama: the inverse of `panorama.py`.

Every direction is looked up in every view that shows it. Broad colours are blended over the whole overlap of two views
and details over its middle alone (two of the bands of Burt and Adelson's multiresolution spline, 1983), so that neither
a step in brightness nor a doubled edge is left at a joint. Before that the views are brought to one exposure
(`photometry.py`). What a sensor saw goes before what was imagined. Axes of the panorama: see `panorama.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import check_size
from worldstereo_ros.imaging.exposure import align_exposure
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.imaging.overlap import Overlap
from worldstereo_ros.utils.errors import InputError

APART = 0.01  # metres between views that count as taken at one place
BROAD, SHARP = 1.0, 8.0  # powers of the weight that falls from the middle of a view to its border: colours, details
BLUR = 0.04  # of a view's width: what is smoother than this is blended broadly
IMAGINED_WEIGHT = 0.01  # of imagined pixels where a sensor saw the direction
SAME_SURFACE = 0.05  # relative difference of two distances that are averaged
SAMPLES = 4000  # directions that two views are compared at
FEWEST = 40  # directions without which two views are not compared


@dataclass(frozen=True)
class Panorama:
    """A picture of the full sphere and what is known of it.

    Attributes:
        image: (H, 2 H, 3) uint8 RGB.
        known: (H, 2 H) bool, True where a view shows the direction; the rest of `image` is filled smoothly.
        observed: (H, 2 H) bool, True where a sensor saw what is there.
        distance: (H, 2 H) float32 metres along the ray, 0 = unknown; None where no view has depth.
        world_from_camera: (4, 4) its pose.
    """

    image: np.ndarray
    known: np.ndarray
    observed: np.ndarray
    distance: np.ndarray | None
    world_from_camera: np.ndarray

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
    """Views from one place as a panorama.

    Args:
        views: all taken within a centimetre of each other, of any cameras, in any order.
        height: rows of the panorama; it has twice as many columns.
        world_from_camera: (4, 4) pose of the panorama; its position must be that of the views. None: of the first view.
        align: bring the views to one exposure.

    Raises:
        ValueError: no views, views of several places, or a height below 8 or too large. (Bad images and poses are
            refused by `View`.)
    """
    views = list(views)
    _check(views, height)
    pose = views[0].world_from_camera if world_from_camera is None else np.asarray(world_from_camera, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise InputError("world_from_camera of the panorama must be a finite 4x4 matrix.")
    away = max(float(np.linalg.norm(view.world_from_camera[:3, 3] - pose[:3, 3])) for view in views)
    if away > APART:
        raise InputError(
            f"A view was taken {away:.2f} m from the panorama's place; views of one place (within {APART} m) are put "
            "together. Views along a path overlap with parallax and make no panorama."
        )
    gains = align_exposure(len(views), _overlaps(views) if align else {})
    directions = panorama_directions(height)
    broad, sharp = np.zeros((height, 2 * height, 4), np.float32), np.zeros((height, 2 * height, 4), np.float32)
    observed = np.zeros((height, 2 * height), np.float32)
    for view, gain in zip(views, gains, strict=True):
        view = _no_finer_than(view, height)
        columns, rows, inside = look_up(view, pose, directions)
        border = border_weight(columns, rows, view) * inside
        seen = sample(view.observed_mask.astype(np.float32), columns, rows, nearest=True)
        trust = border * (IMAGINED_WEIGHT + (1 - IMAGINED_WEIGHT) * seen)
        picture = view.image.astype(np.float32) * gain.astype(np.float32)
        smooth = cv2.GaussianBlur(picture, (0, 0), BLUR * view.camera.width, borderType=cv2.BORDER_REPLICATE)
        for sums, layer, power in ((broad, smooth, BROAD), (sharp, picture - smooth, SHARP)):
            weight = trust * border ** (power - 1)
            sums[..., :3] += weight[..., None] * sample(layer, columns, rows)
            sums[..., 3] += weight
        observed += trust * border ** (SHARP - 1) * seen
    known = broad[..., 3] > 0
    image = np.zeros((height, 2 * height, 3), np.float32)
    image[known] = broad[known][:, :3] / broad[known][:, 3:]
    # Weights of details underflow in the outermost corners of a view; the smooth colours are all there is then.
    detailed = sharp[..., 3] > 1e-20
    image[detailed] += sharp[detailed][:, :3] / sharp[detailed][:, 3:]
    if known.any() and not known.all():
        image = fill_sphere(image, known)
    return Panorama(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        known=known,
        observed=known & (observed > 0.5 * sharp[..., 3]),
        distance=_distance(views, pose, directions),
        world_from_camera=pose,
    )


def panorama_directions(height: int) -> np.ndarray:
    """(H, 2 H, 3) float32 unit vectors of the pixels of a panorama, in its own axes."""
    longitude = ((np.arange(2 * height) + 0.5) / height - 1) * np.pi
    latitude = ((np.arange(height) + 0.5) / height - 0.5) * np.pi  # downwards
    longitude, latitude = np.meshgrid(longitude, latitude)
    across = np.cos(latitude)
    return np.stack([across * np.sin(longitude), np.sin(latitude), across * np.cos(longitude)], -1).astype(np.float32)


def look_up(view: View, pose: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(column, row, inside): where a view shows directions (..., 3) in the axes of `pose`, both taken at one place.

    Columns and rows are float32 with pixel centres at integers; 0 where not inside.
    """
    turn = view.world_from_camera[:3, :3].T @ pose[:3, :3]
    x, y, z = np.moveaxis(directions @ turn.T.astype(np.float32), -1, 0)
    camera = view.camera
    ahead = z > 1e-3
    depth = np.where(ahead, z, np.float32(1))
    column = (camera.fx * x / depth + camera.cx).astype(np.float32)
    row = (camera.fy * y / depth + camera.cy).astype(np.float32)
    inside = (column >= -0.5) & (row >= -0.5) & (column <= camera.width - 0.5) & (row <= camera.height - 0.5) & ahead
    return np.where(inside, column, np.float32(0)), np.where(inside, row, np.float32(0)), inside


def view_difference(one: View, other: View) -> float | None:
    """Mean absolute difference (grey levels) of two views of one place, over the directions that both show.

    None where they share too little to say.
    """
    colours = _common(one, other)
    return None if colours is None else float(np.abs(colours[:, 0] - colours[:, 1]).mean())


@dataclass(frozen=True)
class Closure:
    """How well a turn closes.

    Attributes:
        seam: mean absolute difference (grey levels) of the two views that close the turn, where they overlap.
        inner: the mean of the same figure over all other joints.
    """

    seam: float
    inner: float

    @property
    def ratio(self) -> float:
        """Seam over inner joints: about 1 where there is no seam."""
        return self.seam / max(self.inner, 1e-6)


def closure(ring: Sequence[View], seam: int = -1) -> Closure | None:
    """The joint that closes a full turn, against the other joints.

    Args:
        ring: views of one place in the order in which one turns.
        seam: which joint closes it: that of `ring[seam]` with the next view.

    Returns:
        None where neighbours do not overlap.
    """
    joints = [view_difference(one, other) for one, other in zip(ring, [*ring[1:], *ring[:1]], strict=True)]
    known = [joint for joint in joints if joint is not None]
    if len(ring) < 3 or len(known) < len(ring):
        return None
    last = known.pop(seam)
    return Closure(last, float(np.mean(known)))


def fill_sphere(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Equirectangular `values` (H, 2 H, C) float32, smoothly filled where they are not `known`, across the seam too."""
    width = values.shape[1]

    def thrice(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array] * 3, axis=1)

    # Three turns side by side: in the middle one, both borders see what lies beyond them.
    filled = push_pull(thrice(np.where(known[..., None], values, np.float32(0))), thrice(known).astype(np.float32))
    filled = filled[:, width : 2 * width]
    # At a pole all columns are one place: towards it a row gives way to its mean.
    latitude = np.abs((np.arange(len(values)) + 0.5) / len(values) - 0.5) * 180
    share = np.clip((latitude - 70) / 20, 0, 1).astype(np.float32)[:, None, None]
    level = (1 - share) * filled + share * filled.mean(axis=1, keepdims=True)
    return np.where(known[..., None], values, level)


def border_weight(columns: np.ndarray, rows: np.ndarray, view: View) -> np.ndarray:
    """(...) float32: 1 in the middle of a view, falling to a little more than 0 at its border."""
    width, height = view.camera.width, view.camera.height
    across = np.minimum(columns + 0.5, width - 0.5 - columns) / (0.5 * width)
    down = np.minimum(rows + 0.5, height - 0.5 - rows) / (0.5 * height)
    return np.clip(across * down, 1e-4, 1).astype(np.float32)


def sample(layer: np.ndarray, columns: np.ndarray, rows: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """A layer (H, W) or (H, W, C) at columns and rows, between pixels or at the nearest."""
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(layer, columns, rows, interpolation, borderMode=cv2.BORDER_REPLICATE)


# --- inside ----------------------------------------------------------------------------------------------------------


def _check(views: list[View], height: int) -> None:
    if not views:
        raise InputError("No views were given; a panorama needs at least one.")
    if not 8 <= int(height) == height:
        raise InputError(f"The panorama's height is {height}; a whole number of at least 8 rows was expected.")
    check_size(2 * height, height, "The panorama")


def _no_finer_than(view: View, height: int) -> View:
    """The view, shrunk where the panorama would skip its pixels."""
    finer = min(view.camera.fx, view.camera.fy) * np.pi / height
    if finer <= 1.5:
        return view
    return view.resized(max(2, round(view.camera.width / finer)), max(2, round(view.camera.height / finer)))


def _common(one: View, other: View) -> np.ndarray | None:
    """(N, 2, 3) float64 colours of directions that both views show; None where they are too few."""
    camera = one.camera
    stride = max(1, round((camera.width * camera.height / SAMPLES) ** 0.5))
    grid = (slice(stride // 2, None, stride),) * 2
    columns, rows, inside = look_up(other, one.world_from_camera, camera.rays()[grid])
    if inside.sum() < FEWEST:
        return None
    colours = sample(other.image, columns, rows)
    return np.stack([one.image[grid][inside], colours[inside]], axis=1).astype(np.float64)


def _overlaps(views: list[View]) -> dict[tuple[int, int], Overlap]:
    pairs = {}
    for i, one in enumerate(views):
        for j, other in enumerate(views):
            colours = _common(one, other) if i < j else None
            if colours is not None:
                pairs[i, j] = Overlap(colours, float("nan"))
    return pairs


def _distance(views: list[View], pose: np.ndarray, directions: np.ndarray) -> np.ndarray | None:
    """(H, 2 H) float32 metres: of the view that shows a direction best, averaged with those that agree."""
    if all(view.depth is None for view in views):
        return None
    shape = directions.shape[:2]
    best, most = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for average in (False, True):
        for view in views:
            if view.depth is None:
                continue
            columns, rows, inside = look_up(view, pose, directions)
            length = np.linalg.norm(view.camera.rays(), axis=-1).astype(np.float32)
            ray = sample((view.depth * length).astype(np.float32), columns, rows, nearest=True)
            weight = np.where(inside & (ray > 0), border_weight(columns, rows, view), np.float32(0))
            if average:
                weight = weight * (np.abs(ray - best) <= SAME_SURFACE * best)
                total += weight * ray
                weights += weight
            else:
                best, most = np.where(weight > most, ray, best), np.maximum(weight, most)
    return np.where(weights > 0, total / np.maximum(weights, 1e-20), 0).astype(np.float32)
