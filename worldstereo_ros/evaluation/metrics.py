"""The figures of the evaluation. docs/evaluation.md says in words what each of them means."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import project, unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError

RELATIVE, ABSOLUTE = 0.05, 0.02  # seen: within 5 % + 2 cm of the depth of a seed
SSIM_WINDOW = 7
EQUAL = 100.0


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB of uint8 images (H, W, 3), over all channels of the pixels in `mask`.

    None where the mask is empty; `EQUAL` (100 dB) for equal images, so that it can be averaged and written as JSON.
    """
    _check(image, truth)
    error = (image.astype(np.float64) - truth) ** 2
    if mask is not None:
        error = error[mask]
    if error.size == 0:
        return None
    mean = float(error.mean())
    return EQUAL if mean == 0 else min(EQUAL, float(10 * np.log10(255.0**2 / mean)))


def colour_and_contrast(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> tuple[float | None, float | None]:
    """How far colours and contrast of uint8 images (H, W, 3) are off, over the pixels in `mask`.

    Returns:
        (grey levels by which the mean colours differ, the mean of the channels' absolute differences; ratio of the
        standard deviations of brightness). None where the mask is empty, or the truth has one brightness.
    """
    _check(image, truth)
    keep = np.ones(image.shape[:2], bool) if mask is None else mask
    if not keep.any():
        return None, None
    a, b = image[keep].astype(np.float64), truth[keep].astype(np.float64)
    spread = float(b.mean(axis=1).std())
    offset = float(np.abs(a.mean(axis=0) - b.mean(axis=0)).mean())
    return offset, float(a.mean(axis=1).std()) / spread if spread > 0 else None


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004) of uint8 images (H, W, 3): the mean over the channels.

    Uniform 7x7 windows that lie inside the image, sample covariance, K1 = 0.01, K2 = 0.03, range 255: what
    scikit-image computes unless told otherwise, and what the reference figures were made with.
    """
    _check(image, truth)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise InputError(f"The images are {image.shape[1]}x{image.shape[0]}; SSIM needs at least 7x7 pixels.")
    a, b = image.astype(np.float64), truth.astype(np.float64)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    border = SSIM_WINDOW // 2
    inside = (slice(border, image.shape[0] - border), slice(border, image.shape[1] - border))

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, (SSIM_WINDOW, SSIM_WINDOW))[inside]

    mean_a, mean_b = mean(a), mean(b)
    var_a = unbiased * (mean(a * a) - mean_a**2)
    var_b = unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def seen_pixels(truth: View, seeds: Iterable[View]) -> np.ndarray:
    """(H, W) bool: pixels of a view with true depth that at least one seed saw.

    The true 3-D point is projected into each seed; seen means that the seed's pixel it falls on has depth and that it
    differs by at most 5 % + 2 cm from the point's. Pixels without true depth are False.
    """
    if truth.depth is None:
        raise InputError("The asked view has no true depth, so it is unknown what was seen of it.")
    known = truth.depth > 0
    points = unproject(truth.depth, truth.camera, truth.world_from_camera)[known]
    seen = np.zeros(len(points), bool)
    for seed in seeds:
        if seed.depth is None:
            continue
        uv, z = project(points, seed.camera, seed.world_from_camera)
        with np.errstate(invalid="ignore"):
            u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
            inside = (z > 0) & (u >= 0) & (v >= 0) & (u < seed.camera.width) & (v < seed.camera.height)
        there = np.zeros(len(points), np.float32)
        there[inside] = seed.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
        seen |= (there > 0) & (np.abs(there - z) <= RELATIVE * there + ABSOLUTE)
    out = np.zeros(known.shape, bool)
    out[known] = seen
    return out


def depth_error(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """(AbsRel, share with ratio below 1.25) over the pixels where both depths (H, W), metres, are known (> 0)."""
    both = (depth > 0) & (truth > 0)
    if not both.any():
        return None, None
    a, b = depth[both].astype(np.float64), truth[both].astype(np.float64)
    return float(np.mean(np.abs(a - b) / b)), float(np.mean(np.maximum(a / b, b / a) < 1.25))


def cloud_scores(points: np.ndarray, truth: np.ndarray, radius: float = 0.05) -> tuple[float, float, float]:
    """(precision, recall, F1) of a cloud (N, 3) against a true one (M, 3), metres.

    Precision: share of the points with a true one within `radius`; recall: the other way round. Both clouds are
    thinned to one point per voxel of half the radius first, so that density does not count (as Tanks and Temples do).
    """
    from scipy.spatial import cKDTree

    if len(points) == 0 or len(truth) == 0:
        return 0.0, 0.0, 0.0
    points, truth = thinned(points, radius / 2), thinned(truth, radius / 2)
    precision = float(np.isfinite(cKDTree(truth).query(points, distance_upper_bound=radius, workers=2)[0]).mean())
    recall = float(np.isfinite(cKDTree(points).query(truth, distance_upper_bound=radius, workers=2)[0]).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def thinned(points: np.ndarray, voxel: float) -> np.ndarray:
    """(K, 3) float64: the mean of the points of each voxel with this edge (metres)."""
    import open3d as o3d

    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.asarray(points, np.float64)))
    return np.asarray(cloud.voxel_down_sample(voxel).points)


def _check(image: np.ndarray, truth: np.ndarray) -> None:
    if image.shape != truth.shape or image.ndim != 3 or image.dtype != np.uint8 or truth.dtype != np.uint8:
        raise InputError(
            f"The images are {image.dtype} {image.shape} and {truth.dtype} {truth.shape}; "
            "two uint8 images of one shape (H, W, 3) were expected."
        )
