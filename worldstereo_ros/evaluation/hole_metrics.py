"""Metrics of what was imagined: of the pixels of a view that no observation saw, its holes.

PSNR in holes rewards the mean of all that may be there, which is fog. These figures say whether a hole looks like a
picture: how much detail it has, whether its patches are distributed like true ones, and whether a grid shows.
"""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project, unproject

HIGH_PASS_PX = 2.0  # standard deviation of the low-pass filter whose complement is detail
BORDER_PX = 4  # pixels of a hole that are closer to its border are left out: the filter sees across it
SPECK_PX = 5  # narrower gaps of true depth inside a hole belong to it
GRID_PERIODS_PX = (8, 16)  # edge lengths of a latent cell in the image
PATCH_PX, PYRAMID_LEVELS, PATCHES_PER_LEVEL = 7, 3, 512  # of the sliced Wasserstein distance, patches of a view
PROJECTIONS = 128
MIN_PATCHES = 64  # fewer say nothing about a distribution
KERNEL_DEGREE = 3  # of the kernel distance (Binkowski et al. 2018)
MAX_KERNEL_PATCHES = 4000
# A neighbouring view shows the same surface if its depth agrees with the projected depth within this ratio.
SAME_SURFACE_RATIO = 0.05


def hole_area(unseen: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(H, W) bool: holes of a view, with the specks in them where true depth is missing.

    Args:
        unseen, seen: (H, W) bool, pixels with true depth that no observed view saw, or that one saw.
    """
    closed = cv2.morphologyEx(unseen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((SPECK_PX, SPECK_PX), np.uint8))
    return closed.astype(bool) & ~seen


def inside(hole: np.ndarray, border: int = BORDER_PX) -> np.ndarray:
    """(H, W) bool: pixels of a hole (H, W) bool that are more than `border` pixels from everything else."""
    return cv2.erode(hole.astype(np.uint8), np.ones((2 * border + 1,) * 2, np.uint8), borderValue=1).astype(bool)


def detail(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32: an image (H, W, 3) uint8 without its low frequencies, 1 = from black to white."""
    values = image.astype(np.float32) / 255
    return values - cv2.GaussianBlur(values, (0, 0), HIGH_PASS_PX)


def constant_colour(images: list[np.ndarray]) -> np.ndarray:
    """(3,) float64: mean colour of images (H, W, 3) uint8, all with the same weight."""
    return np.mean([image.reshape(-1, 3).mean(axis=0) for image in images], axis=0)


def grid_strength(image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Gradients that repeat with the period of a latent cell.

    The mean absolute gradient of each column (and row) inside the mask is taken as a signal along the image, and its
    Fourier coefficients at the periods `GRID_PERIODS_PX` are compared with its sum.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, the pixels that count.

    Returns:
        Sum of the amplitudes at these periods, and the sum of all gradients; their ratio is 0 without a grid, and at
        most 1 for each period and direction. Sums can be added over images.
    """
    grey = image.astype(np.float32).mean(axis=2)
    amplitude = total = 0.0
    for axis in (0, 1):
        gradient = np.abs(np.diff(grey, axis=axis))
        both = mask[1:] & mask[:-1] if axis == 0 else mask[:, 1:] & mask[:, :-1]
        profile = np.where(both, gradient, 0).sum(axis=1 - axis, dtype=np.float64)
        total += float(profile.sum())
        for period in GRID_PERIODS_PX:
            phase = np.exp(-2j * np.pi * np.arange(len(profile)) / period)
            # An even share of the mask at each phase is no grid: subtract what the mask alone gives.
            weight = both.sum(axis=1 - axis, dtype=np.float64)
            expected = profile.sum() * (phase @ weight) / weight.sum() if weight.sum() else 0.0
            amplitude += float(abs(phase @ profile - expected))
    return amplitude, total


def hole_patches(image: np.ndarray, hole: np.ndarray, seed: int) -> list[np.ndarray]:
    """Patches of a Laplacian pyramid, from holes alone.

    Args:
        image: (H, W, 3) uint8.
        hole: (H, W) bool.
        seed: of the choice of patches; the same for images that are compared.

    Returns:
        For each of `PYRAMID_LEVELS` (N, 7 * 7 * 3) float32, 1 = from black to white; N is at most `PATCHES_PER_LEVEL`.
    """
    random = np.random.default_rng(seed)
    level, mask = image.astype(np.float32) / 255, hole
    out = []
    for _ in range(PYRAMID_LEVELS):
        smaller = cv2.pyrDown(level)
        band = level - cv2.pyrUp(smaller, dstsize=(level.shape[1], level.shape[0]))
        half = PATCH_PX // 2
        centres = np.argwhere(inside(mask, half)[half : band.shape[0] - half, half : band.shape[1] - half])
        chosen = random.permutation(len(centres))[:PATCHES_PER_LEVEL]
        windows = np.lib.stride_tricks.sliding_window_view(band, (PATCH_PX, PATCH_PX), axis=(0, 1))
        patches = windows[centres[chosen, 0], centres[chosen, 1]] if len(chosen) else np.zeros((0, 3, 1, 1))
        out.append(patches.reshape(len(chosen), -1).astype(np.float32) if len(chosen) else _no_patches())
        level = smaller
        mask = cv2.resize(mask.astype(np.uint8), (level.shape[1], level.shape[0]), interpolation=cv2.INTER_NEAREST) > 0
    return out


def _no_patches() -> np.ndarray:
    return np.zeros((0, 3 * PATCH_PX**2), np.float32)


def sliced_wasserstein(patches: list[np.ndarray], truth: list[np.ndarray]) -> float | None:
    """Sliced Wasserstein distance between two sets of patches (Karras et al. 2018, arXiv 1710.10196, section 5).

    Args:
        patches, truth: for each level (N, D) float32, as many of the one as of the other.

    Returns:
        Mean over levels and `PROJECTIONS` random directions of the 1-Wasserstein distance of the projected patches, 1 =
        from black to white; None if no level has `MIN_PATCHES`.
    """
    distances = []
    for a, b in zip(patches, truth, strict=True):
        if len(a) < MIN_PATCHES:
            continue
        directions = np.random.default_rng(0).normal(size=(a.shape[1], PROJECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        distances.append(float(np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean()))
    return float(np.mean(distances)) if distances else None


def kernel_distance(features: np.ndarray, truth: np.ndarray) -> float | None:
    """Kernel distance (KID, Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD with a cubic kernel.

    Args:
        features, truth: (N, D) and (M, D) float32; of larger sets evenly spaced ones count.

    Returns:
        About 0 for two samples of one distribution, and larger the more they differ; None for fewer than `MIN_PATCHES`.
    """
    if min(len(features), len(truth)) < MIN_PATCHES:
        return None

    def thinned(values: np.ndarray) -> np.ndarray:
        step = max(1, int(np.ceil(len(values) / MAX_KERNEL_PATCHES)))
        return values[::step].astype(np.float64)

    x, y = thinned(features), thinned(truth)
    within = []
    for values in (x, y):
        kernel = (values @ values.T / values.shape[1] + 1) ** KERNEL_DEGREE
        count = len(values)
        within.append((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))
    across = ((x @ y.T / x.shape[1] + 1) ** KERNEL_DEGREE).mean()
    return float(within[0] + within[1] - 2 * across)


def warp_error(
    image: np.ndarray,
    depth: np.ndarray,
    hole: np.ndarray,
    pose: np.ndarray,
    neighbour_image: np.ndarray,
    neighbour_depth: np.ndarray,
    neighbour_pose: np.ndarray,
    camera: Camera,
) -> float | None:
    """How far two views differ where both show the same surface, in a hole of the first.

    Args:
        image, neighbour_image: (H, W, 3) uint8.
        depth, neighbour_depth: (H, W) metres of the views themselves, 0 = unknown.
        hole: (H, W) bool of the first view.
        pose, neighbour_pose: (4, 4) world_from_camera.
        camera: of both views.

    Returns:
        Mean absolute difference, 1 = from black to white, over pixels that the neighbour shows at the same place; None
        if there are none.
    """
    rows, columns = np.nonzero(hole & (depth > 0))
    if not len(rows):
        return None
    points = unproject(depth, camera, pose)[rows, columns]
    uv, z = project(points, camera, neighbour_pose)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        visible = (z > 0) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
    u, v, z, rows, columns = u[visible].astype(int), v[visible].astype(int), z[visible], rows[visible], columns[visible]
    same = np.abs(neighbour_depth[v, u] - z) <= SAME_SURFACE_RATIO * z
    if not same.any():
        return None
    a = image[rows[same], columns[same]].astype(np.float32)
    b = neighbour_image[v[same], u[same]].astype(np.float32)
    return float(np.abs(a - b).mean() / 255)
