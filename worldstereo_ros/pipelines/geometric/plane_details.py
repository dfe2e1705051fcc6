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
from typing import NamedTuple

import cv2
import numpy as np
import scipy.ndimage

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.plane_detection import PlaneTexture

UPRIGHT_COSINE = 0.7  # between up and the normal of a wall
TEXELS = 256  # along each side of an example
LEVELS = 4  # of its pyramid
ATLAS_COLUMNS = TEXELS + TEXELS // 2
MAX_EXAMPLE_VIEWS = 3
MIN_COSINE = 0.15  # between a line of sight and the normal
MAX_FOOTPRINT = 3.0  # texels that a pixel may cover
ON_PLANE_M, ON_PLANE_PER_M = 0.03, 0.018  # distance in depth within which a pixel shows the plane
LOW_PASS_M = 0.12  # standard deviation that separates detail from light
GAP_TEXELS = 9  # without depth, narrower than this
EDGE_TEXELS = 2  # left out beside depth edges
COLOUR_FAMILY, COLOUR_TOLERANCE = 3.0, 8.0  # deviations from the colour of the plane, in medians, plus grey levels
# A texel whose surroundings have more than this much of the detail of the calmest quarter shows a thing, not texture.
CALM_M = 0.35  # standard deviation of the surroundings
CALM_QUANTILE, CALM_FACTOR, CALM_TOLERANCE = 0.25, 2.0, 2.0
MAX_DETAIL = 18.0  # RMS grey levels of a texture; with more it shows a thing
MIN_EXAMPLE_AREA_M2 = 0.05
WINDOW_RADII = (48, 32, 24, 16, 12, 8)  # texels; the largest with `MIN_CENTRES` is used
MIN_CENTRES, MAX_CENTRES = 64, 1024
# Periods
MIN_PERIOD, MAX_PERIOD = 6, 96  # texels
MIN_CORRELATION = 0.06  # of a periodic texture with itself, one period away
CHANCE = 12.0  # four standard deviations of the correlation of unrelated textures, for one independent texel of nine
PEAK_SURROUNDINGS = 10  # texels on each side
STRONG = 0.6  # of the highest correlation; the shortest of such lags is the period
MIN_OVERLAP = 0.2  # of the valid texels, for a correlation


class DetailExample(NamedTuple):
    """The detail of a plane, as observed.

    Attributes:
        origin: (2,) of texel (0, 0) along the canonical axes, metres.
        texel: size, metres.
        atlas: (TEXELS, ATLAS_COLUMNS, 3) float32 grey levels: the detail, and beside it its pyramid.
        usable: (TEXELS, TEXELS) bool: texels whose whole window is valid.
        centres: (N, 2) float32 columns and rows of usable texels, in random order.
        radius: of the window, texels.
        periods: (2,) float32 along the axes, texels; 0 = not periodic.
        correlation: of the texture with itself one period away; 0 = not periodic.
        upright: whether the plane is a wall, whose texture depends on the height.
    """

    origin: np.ndarray
    texel: float
    atlas: np.ndarray
    usable: np.ndarray
    centres: np.ndarray
    radius: int
    periods: np.ndarray
    correlation: float
    upright: bool


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
    detail, valid = _rectify([views[index] for index in chosen], normal, offset, axes, origin, texel)
    return _make_example(detail, valid, origin, texel, abs(float(normal @ up)) < UPRIGHT_COSINE)


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
    grid = (np.arange(TEXELS) + 0.5) * texel
    base = offset * normal + origin @ axes
    detail = np.zeros((TEXELS, TEXELS, 3), np.float32)
    finest = np.full((TEXELS, TEXELS), np.inf, np.float32)
    kernel = np.ones((2 * EDGE_TEXELS + 1,) * 2, np.uint8)
    for view in views:
        assert view.depth is not None
        camera, pose = view.camera, view.world_from_camera
        start = (base - pose[:3, 3]) @ pose[:3, :3]
        step_u, step_v = axes @ pose[:3, :3]
        local = start + grid[None, :, None] * step_u + grid[:, None, None] * step_v
        z = local[..., 2]
        safe = np.maximum(z, 1e-6)
        u = (camera.fx * local[..., 0] / safe + camera.cx).astype(np.float32)
        v = (camera.fy * local[..., 1] / safe + camera.cy).astype(np.float32)
        towards = normal @ pose[:3, 3] - offset
        cosine = towards / np.maximum(np.linalg.norm(local, axis=-1), 1e-9)
        inside = (z > 0) & (u > 0) & (v > 0) & (u < camera.width - 1) & (v < camera.height - 1) & (cosine > MIN_COSINE)
        u, v = np.where(inside, u, np.float32(-1)), np.where(inside, v, np.float32(-1))
        colour = cv2.remap(view.image, u, v, cv2.INTER_LINEAR).astype(np.float32)
        measured = cv2.remap(view.depth.astype(np.float32), u, v, cv2.INTER_NEAREST)
        shown = inside & (np.abs(measured - z) < ON_PLANE_M + ON_PLANE_PER_M * z)
        # Depth sensors leave gaps on a surface; what they measured elsewhere is another one.
        closed = cv2.morphologyEx(shown.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((GAP_TEXELS,) * 2, np.uint8)) > 0
        shown |= closed & inside & (measured <= 0)
        shown = cv2.erode(shown.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
        if shown.sum() < MIN_CENTRES:
            continue
        low = _low_pass(colour, shown, LOW_PASS_M / texel)
        shown &= _is_calm(colour - low, shown, CALM_M / texel)
        if shown.sum() < MIN_CENTRES:
            continue
        low = _low_pass(colour, shown, LOW_PASS_M / texel)
        shown &= _of_one_colour(low, shown)
        low = _low_pass(colour, shown, LOW_PASS_M / texel)
        footprint = (safe / camera.fx / np.sqrt(np.maximum(cosine, MIN_COSINE)) / texel).astype(np.float32)
        better = shown & (footprint < np.minimum(finest, np.float32(MAX_FOOTPRINT)))
        detail[better] = (colour - low)[better]
        finest[better] = footprint[better]
    return detail, np.isfinite(finest)


def _low_pass(colour: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian low-pass of (H, W, 3) inside a mask (H, W) bool."""
    weight = mask.astype(np.float32)
    # At an eighth of the size: the filter is wide.
    scale = max(1, int(deviation / 4))
    size = (max(1, colour.shape[1] // scale), max(1, colour.shape[0] // scale))
    sums = cv2.resize(colour * weight[..., None], size, interpolation=cv2.INTER_AREA)
    total = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
    sums, total = (cv2.GaussianBlur(values, (0, 0), deviation / scale) for values in (sums, total))
    low = sums / np.maximum(total, 1e-4)[..., None]
    return cv2.resize(low, (colour.shape[1], colour.shape[0]), interpolation=cv2.INTER_LINEAR)


def _is_calm(detail: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
    """(H, W) bool: texels whose surroundings have about as much detail as the calmest quarter of the plane."""
    energy = np.sqrt(np.maximum(_low_pass((detail**2).mean(axis=-1, keepdims=True).repeat(3, -1), mask, deviation), 0))
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
    rows, columns = np.nonzero(usable)
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_CENTRES]
    periods, correlation = _periods(detail.mean(axis=-1), valid)
    atlas = np.zeros((TEXELS, ATLAS_COLUMNS, 3), np.float32)
    atlas[:, :TEXELS] = detail
    level, row = detail, 0
    for _ in range(LEVELS - 1):
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        atlas[row : row + len(level), TEXELS : TEXELS + len(level)] = level
        row += len(level)
    centres = np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)
    return DetailExample(origin, texel, atlas, usable, centres, radius, periods, correlation, upright)


def _periods(grey: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Periods (2,) float32 of a texture along its axes, texels, 0 = none, and the correlation one period away."""
    size = 2 * TEXELS
    weight = valid.astype(np.float32)
    values = grey * weight
    spectra = [np.fft.rfft2(array, (size, size)) for array in (weight, values, values**2)]

    def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Along the two axes, for shifts of 0..MAX_PERIOD: (2, MAX_PERIOD + 1)."""
        whole = np.fft.irfft2(np.conj(a) * b, (size, size))
        return np.stack([whole[0, : MAX_PERIOD + 1], whole[: MAX_PERIOD + 1, 0]])

    overlap, product = correlate(spectra[0], spectra[0]), correlate(spectra[1], spectra[1])
    # Each of the two copies has its own energy where both are valid.
    first, second = correlate(spectra[0], spectra[2]), correlate(spectra[2], spectra[0])
    both = np.sqrt(np.maximum(first, 1e-3) * np.maximum(second, 1e-3))
    ratio = np.where(overlap > MIN_OVERLAP * weight.sum(), product / both, 0)
    periods, correlations = np.zeros(2, np.float32), [1.0]
    for axis in range(2):
        line = ratio[axis]
        # Above its surroundings, by more than chance.
        around = scipy.ndimage.median_filter(line, 2 * PEAK_SURROUNDINGS + 1, mode="nearest")
        chance = CHANCE / np.sqrt(np.maximum(overlap[axis], 1))
        inner = np.arange(MIN_PERIOD, MAX_PERIOD)
        peak = (line[inner] >= line[inner - 1]) & (line[inner] >= line[inner + 1])
        peak &= np.minimum(line - around, line)[inner] > MIN_CORRELATION + chance[inner]
        if not peak.any():
            continue
        found = inner[peak]
        lag = int(found[line[found] > STRONG * line[found].max()][0])
        before, here, after = line[lag - 1 : lag + 2]
        curvature = before + after - 2 * here
        shift = (before - after) / (2 * curvature) if curvature < 0 else 0.0
        periods[axis] = lag + float(np.clip(shift, -0.5, 0.5))
        correlations.append(float(here))
    return periods, min(correlations) if len(correlations) > 1 else 0.0
