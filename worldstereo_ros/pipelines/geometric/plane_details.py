"""Details of surfaces, continued over planes where nothing was seen.

The image on a plane is split into light and colour (low frequencies, which `layout.py` extrapolates) and detail. The
detail that observations saw of a plane is an example of its texture. It is continued without limit by tiling and
blending (Heitz and Neyret 2018, "High-Performance By-Example Noise using a Histogram-Preserving Blending Operator"):
the plane is covered by triangles, each vertex shows the example at a random place, and three of them are blended with
their variance kept. Where the example is periodic, the places differ by whole periods, so that tiles and boards
continue in phase. The result is a function of the place on the plane, the same from every viewpoint.

Only texels that lie on the plane count: those of other surfaces, at depth edges, and of another colour (pictures,
signs) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.plane_detection import PlaneTexture
from worldstereo_ros.pipelines.geometric.plane_patterns import find_pattern
from worldstereo_ros.pipelines.geometric.plane_sampling import (
    LEVELS,
    MIN_COSINE,
    ON_PLANE_M,
    ON_PLANE_PER_M,
    TEXELS,
    DetailExample,
    find_periods,
    low_pass,
    pack_detail,
    sample_plane,
)

UPRIGHT_COSINE = 0.7  # between up and the normal of a wall
MAX_EXAMPLE_VIEWS = 3
MAX_FOOTPRINT = 3.0  # texels that a pixel may cover
LOW_PASS_M = 0.12  # standard deviation that separates detail from light
COLOUR_FAMILY, COLOUR_TOLERANCE = 3.0, 8.0  # deviations from the colour of the plane, in medians, plus grey levels
# A texel whose surroundings have more than this much of the detail of the calmest quarter shows a thing, not texture.
CALM_M = 0.35  # standard deviation of the surroundings
CALM_QUANTILE, CALM_FACTOR, CALM_TOLERANCE = 0.25, 2.0, 2.0
MAX_DETAIL = 18.0  # RMS grey levels of a texture; with more it shows a thing
# Pixels and texels are interpolated, so that a texture is drawn with about half of the fine detail that its plane has
# where it was seen. Weak textures are sharpened to make up for it, at each level of the pyramid. Strong ones are not:
# where they are out of phase, their error grows with the square of the contrast.
SHARPENING, SHARPENED_TEXELS = 1.5, 1.5  # of what a filter with this standard deviation takes away
STRONG_DETAIL = (8.0, 16.0)  # RMS grey levels of a texture, from which sharpening fades and at which there is none
MIN_EXAMPLE_AREA_M2 = 0.05
WINDOW_RADII = (48, 32, 24, 16, 12, 8)  # texels; the largest with `MIN_CENTRES` is used
MIN_CENTRES = 64  # texels


def canonical_axes(normal: np.ndarray, up: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(2, 3) axes in a plane that are the same for all planes of a kind: for a wall horizontal and up.

    Args:
        normal: (3,) unit normal of the plane.
        up, axis: (3,) of the room.
    """
    if abs(float(normal @ up)) < UPRIGHT_COSINE:
        second = up - (up @ normal) * normal
        second /= np.linalg.norm(second)
        return np.stack([np.cross(second, normal), second])
    first = axis - (axis @ normal) * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first)])


def detail_example(
    views: Sequence[View], texture: PlaneTexture, up: np.ndarray, axis: np.ndarray
) -> DetailExample | None:
    """The example of a plane; None if too little of it was seen clearly.

    Args:
        views: observations with depth.
        texture: of the plane.
        up, axis: of the room.
    """
    parameters = texture.parameters.astype(np.float64)
    normal, offset = parameters[:3], parameters[3]
    axes = canonical_axes(normal, up, axis)
    rows, columns = np.nonzero(texture.distance == 0)
    cell_axes = parameters[4:10].reshape(2, 3)
    cells_uv = parameters[10:12] + (np.stack([columns, rows], axis=1) + 0.5) * parameters[12]
    points = offset * normal + cells_uv @ cell_axes
    footprints = np.full((len(views), len(points)), np.inf)
    for index, view in enumerate(views):
        footprints[index] = _footprints(points, normal, view)
    best = footprints.min(axis=0)
    if not np.isfinite(best).any():
        return None
    uv = points @ axes.T
    extent = float((uv.max(axis=0) - uv.min(axis=0)).max())
    texel = max(float(np.quantile(best[np.isfinite(best)], 0.3)), extent / (2 * TEXELS), 1e-4)
    clear = best < 2 * texel
    centre = np.median(uv[clear], axis=0) if clear.any() else uv.mean(axis=0)
    middle = (uv.max(axis=0) + uv.min(axis=0)) / 2
    size = uv.max(axis=0) - uv.min(axis=0) + parameters[12]
    centre = np.where(size <= TEXELS * texel, middle, centre)
    origin = centre - TEXELS / 2 * texel
    visible = (footprints < MAX_FOOTPRINT * texel).sum(axis=1)
    chosen = [index for index in np.argsort(-visible, kind="stable")[:MAX_EXAMPLE_VIEWS] if visible[index] > 0]
    best_views = [views[index] for index in chosen]
    pattern = find_pattern(best_views, normal, offset, axes, middle, extent, texel)
    if pattern is not None:
        return sharpened(pattern)
    detail, valid = _rectify(best_views, normal, offset, axes, origin, texel)
    example = _make_example(detail, valid, origin, texel, abs(float(normal @ up)) < UPRIGHT_COSINE)
    return None if example is None else sharpened(example)


def sharpened(example: DetailExample) -> DetailExample:
    """An example whose fine detail is drawn with more contrast, see `SHARPENING`."""
    detail = example.atlas[:, :TEXELS]
    strength = float(np.sqrt(np.mean(np.square(detail[example.usable], dtype=np.float64))))
    low, high = STRONG_DETAIL
    gain = np.float32(SHARPENING * np.clip((high - strength) / (high - low), 0, 1))
    atlas = example.atlas.copy()
    levels, row = [atlas[:, :TEXELS]], 0
    for level in range(1, LEVELS):
        size = TEXELS >> level
        levels.append(atlas[row : row + size, TEXELS : TEXELS + size])
        row += size
    for part in levels:
        part += gain * (part - cv2.GaussianBlur(part, (0, 0), SHARPENED_TEXELS))
    return example._replace(atlas=atlas)


def _footprints(points: np.ndarray, normal: np.ndarray, view: View) -> np.ndarray:
    """(N,) metres that a pixel covers at points of a plane; infinite where the view does not show them."""
    camera, pose = view.camera, view.world_from_camera
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = np.maximum(local[:, 2], 1e-6)
    u, v = camera.fx * local[:, 0] / z + camera.cx, camera.fy * local[:, 1] / z + camera.cy
    towards = pose[:3, 3] - points
    cosine = (towards @ normal) / np.maximum(np.linalg.norm(towards, axis=1), 1e-9)
    column, row = np.rint(u).astype(int), np.rint(v).astype(int)
    inside = (local[:, 2] > 0) & (u > 0) & (v > 0) & (u < camera.width - 1) & (v < camera.height - 1)
    inside &= cosine > MIN_COSINE
    assert view.depth is not None
    measured = view.depth[row.clip(0, camera.height - 1), column.clip(0, camera.width - 1)]
    inside &= np.abs(measured - z) < ON_PLANE_M + ON_PLANE_PER_M * z
    return np.where(inside, z / camera.fx / np.sqrt(np.maximum(cosine, MIN_COSINE)), np.inf)


def _rectify(
    views: Sequence[View], normal: np.ndarray, offset: float, axes: np.ndarray, origin: np.ndarray, texel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Detail (TEXELS, TEXELS, 3) float32 of a plane and its valid mask (TEXELS, TEXELS) bool."""
    detail = np.zeros((TEXELS, TEXELS, 3), np.float32)
    finest = np.full((TEXELS, TEXELS), np.inf, np.float32)
    for view in views:
        colour, shown, footprint = sample_plane(view, normal, offset, axes, origin, texel, TEXELS)
        if shown.sum() < MIN_CENTRES:
            continue
        low = low_pass(colour, shown, LOW_PASS_M / texel)
        shown &= _is_calm(colour - low, shown, CALM_M / texel)
        if shown.sum() < MIN_CENTRES:
            continue
        low = low_pass(colour, shown, LOW_PASS_M / texel)
        shown &= _of_one_colour(low, shown)
        low = low_pass(colour, shown, LOW_PASS_M / texel)
        better = shown & (footprint < np.minimum(finest, np.float32(MAX_FOOTPRINT)))
        detail[better] = (colour - low)[better]
        finest[better] = footprint[better]
    return detail, np.isfinite(finest)


def _is_calm(detail: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
    """(H, W) bool: texels whose surroundings have about as much detail as the calmest quarter of the plane."""
    energy = np.sqrt(np.maximum(low_pass((detail**2).mean(axis=-1, keepdims=True).repeat(3, -1), mask, deviation), 0))
    energy = energy[..., 0]
    calmest = np.quantile(energy[mask], CALM_QUANTILE)
    return energy < min(CALM_FACTOR * calmest + CALM_TOLERANCE, MAX_DETAIL)


def _of_one_colour(low: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: texels whose light and colour are those of the plane, which vary linearly over it."""
    rows, columns = np.nonzero(mask)
    step = max(1, len(rows) // 4000)
    design = np.stack([np.ones(len(rows)), rows / TEXELS, columns / TEXELS], axis=1)[::step]
    values = low[rows, columns][::step]
    weights = np.ones(len(values))
    for _ in range(6):  # robust: Cauchy's weights
        scaled = design * weights[:, None]
        fitted = np.linalg.lstsq(scaled.T @ design + 1e-3 * np.eye(3), scaled.T @ values, rcond=None)[0]
        residual = np.linalg.norm(values - design @ fitted, axis=1)
        median = float(np.median(residual))
        weights = 1 / (1 + (residual / max(median, 1.0)) ** 2)
    grid = np.mgrid[: low.shape[0], : low.shape[1]] / TEXELS
    expected = fitted[0] + grid[0][..., None] * fitted[1] + grid[1][..., None] * fitted[2]
    return np.linalg.norm(low - expected, axis=-1) < COLOUR_FAMILY * median + COLOUR_TOLERANCE


def _make_example(
    detail: np.ndarray, valid: np.ndarray, origin: np.ndarray, texel: float, upright: bool
) -> DetailExample | None:
    for radius in WINDOW_RADII:
        window = np.ones((2 * radius + 1,) * 2, np.uint8)
        usable = cv2.erode(valid.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
        if usable.sum() >= max(MIN_CENTRES, MIN_EXAMPLE_AREA_M2 / texel**2):
            break
    else:
        return None
    detail = np.where(valid[..., None], detail, np.float32(0))
    periods, correlation = find_periods(detail.mean(axis=-1), valid)
    return pack_detail(detail, usable, origin, texel, radius, periods, correlation, upright)
