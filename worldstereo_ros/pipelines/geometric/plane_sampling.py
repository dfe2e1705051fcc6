"""What observations show of a plane, in plane coordinates, and examples of the detail of planes."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import scipy.fft
import scipy.ndimage

from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.jit import compiled

TEXELS = 256  # along each side of an example
LEVELS = 4  # of its pyramid
ATLAS_COLUMNS = TEXELS + TEXELS // 2
MAX_CENTRES = 1024
MIN_COSINE = 0.15  # between a line of sight and the normal
ON_PLANE_M, ON_PLANE_PER_M = 0.03, 0.018  # distance in depth within which a pixel shows the plane
GAP_TEXELS = 9  # without depth, narrower than this
EDGE_TEXELS = 2  # left out beside depth edges
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
        profile: (TEXELS, 3) float32 grey levels of what is the same all along a row, such as a skirting board; not part
            of the atlas. None: nothing is.
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
    profile: np.ndarray | None = None


def sample_plane(
    view: View, normal: np.ndarray, offset: float, axes: np.ndarray, origin: np.ndarray, texel: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a view shows of a plane.

    Args:
        view: observation with depth.
        normal, offset: of the plane.
        axes: (2, 3) in the plane.
        origin: (2,) of texel (0, 0) along the axes, metres.
        texel: size, metres.
        size: texels along each side.

    Returns:
        (size, size, 3) float32 colour, (size, size) bool where the view shows the plane and nothing else, and
        (size, size) float32 texels that a pixel covers.
    """
    assert view.depth is not None
    camera, pose = view.camera, view.world_from_camera
    start = (offset * normal + origin @ axes - pose[:3, 3]) @ pose[:3, :3]
    intrinsics = np.array([camera.fx, camera.fy, camera.cx, camera.cy, camera.width - 1, camera.height - 1], np.float64)
    u, v, z, cosine = (np.empty((size, size), np.float32) for _ in range(4))
    towards = float(normal @ pose[:3, 3] - offset)
    _project(start, axes @ pose[:3, :3], texel, intrinsics, towards, u, v, z, cosine)
    inside = u >= 0
    colour = cv2.remap(view.image, u, v, cv2.INTER_LINEAR).astype(np.float32)
    measured = cv2.remap(view.depth.astype(np.float32), u, v, cv2.INTER_NEAREST)
    shown = inside & (np.abs(measured - z) < ON_PLANE_M + ON_PLANE_PER_M * z)
    # Depth sensors leave gaps on a surface; what they measured elsewhere is another one.
    closed = cv2.morphologyEx(shown.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((GAP_TEXELS,) * 2, np.uint8)) > 0
    shown |= closed & inside & (measured <= 0)
    kernel = np.ones((2 * EDGE_TEXELS + 1,) * 2, np.uint8)
    shown = cv2.erode(shown.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    footprint = z / np.float32(camera.fx * texel) / np.sqrt(np.maximum(cosine, np.float32(MIN_COSINE)))
    return colour, shown, footprint


@compiled
def _project(start, steps, texel, intrinsics, towards, out_u, out_v, out_z, out_cosine):
    """Projects a grid of texels into a camera.

    Args:
        start: (3,) corner of the grid, in the camera's frame, metres.
        steps: (2, 3) directions of the columns and of the rows.
        texel: size, metres.
        intrinsics: (6,) fx, fy, cx, cy, and the last column and row.
        towards: distance of the camera from the plane, metres.
        out_u, out_v: (size, size) float32 column and row in the image; -1 where the camera does not see the texel.
        out_z, out_cosine: (size, size) float32 depth in metres, and cosine between ray and normal.
    """
    fx, fy, cx, cy, last_column, last_row = intrinsics
    for i in range(out_u.shape[0]):
        down = (i + 0.5) * texel
        for j in range(out_u.shape[1]):
            across = (j + 0.5) * texel
            x = start[0] + across * steps[0, 0] + down * steps[1, 0]
            y = start[1] + across * steps[0, 1] + down * steps[1, 1]
            z = start[2] + across * steps[0, 2] + down * steps[1, 2]
            safe = max(z, 1e-6)
            u, v = fx * x / safe + cx, fy * y / safe + cy
            cosine = towards / max(np.sqrt(x * x + y * y + z * z), 1e-9)
            out_z[i, j], out_cosine[i, j] = safe, cosine
            seen = z > 0 and 0 < u < last_column and 0 < v < last_row and cosine > MIN_COSINE
            out_u[i, j], out_v[i, j] = (u, v) if seen else (-1.0, -1.0)


def low_pass(colour: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
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


def pack_detail(
    detail: np.ndarray,
    usable: np.ndarray,
    origin: np.ndarray,
    texel: float,
    radius: int,
    periods: np.ndarray,
    correlation: float,
    upright: bool,
) -> DetailExample:
    """An example of detail (TEXELS, TEXELS, 3); see `DetailExample`."""
    rows, columns = np.nonzero(usable)
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_CENTRES]
    atlas = np.zeros((TEXELS, ATLAS_COLUMNS, 3), np.float32)
    atlas[:, :TEXELS] = detail
    level, row = detail, 0
    for _ in range(LEVELS - 1):
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        atlas[row : row + len(level), TEXELS : TEXELS + len(level)] = level
        row += len(level)
    centres = np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)
    return DetailExample(origin, texel, atlas, usable, centres, radius, periods, correlation, upright)


def find_periods(grey: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Periods (2,) float32 of a texture along its axes, texels, 0 = none, and the correlation one period away."""
    size = 2 * len(grey)
    weight = valid.astype(np.float32)
    values = grey * weight
    spectra = [scipy.fft.rfft2(array, (size, size)) for array in (weight, values, values**2)]

    def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Along the two axes, for shifts of 0..MAX_PERIOD: (2, MAX_PERIOD + 1)."""
        whole = scipy.fft.irfft2(np.conj(a) * b, (size, size))
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
