"""Metrics of imagined images, depth and clouds against ground truth.

docs/benchmarks/evaluation.md describes each of them. The formulas of PSNR and SSIM are shared with training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import project, unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError

# A pixel was seen by a view if its depth agrees with the view's within this ratio plus this distance.
SEEN_DEPTH_RATIO, SEEN_DEPTH_M = 0.05, 0.02
SSIM_WINDOW_PX = 7
MAX_PSNR_DB = 100.0


def psnr_from_mse(mse: float, peak: float) -> float:
    """PSNR in dB of a mean squared error, at most `MAX_PSNR_DB`, so that it can be averaged and written as JSON.

    Args:
        mse: mean squared error; NaN gives NaN.
        peak: range of the values: 255 for uint8, 2 for images in [-1, 1].
    """
    # In this order, min returns NaN for NaN: the other order would give a diverged model the maximum.
    return MAX_PSNR_DB if mse == 0 else min(float(10 * np.log10(peak**2 / mse)), MAX_PSNR_DB)


def ssim_from_means(a: Any, b: Any, aa: Any, bb: Any, ab: Any, *, peak: float, bias_correction: float = 1.0) -> Any:
    """SSIM of each window (Wang et al. 2004, equation 13) with K1 = 0.01 and K2 = 0.03.

    Works on NumPy arrays and on torch tensors, through which gradients flow.

    Args:
        a, b: means of the two images over each window.
        aa, bb, ab: means of their squares and of their product.
        peak: range of the values.
        bias_correction: factor on variances and covariance; n / (n - 1) for windows of n pixels gives the sample
            covariance.
    """
    var_a, var_b = bias_correction * (aa - a * a), bias_correction * (bb - b * b)
    covariance = bias_correction * (ab - a * b)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return ((2 * a * b + c1) * (2 * covariance + c2)) / ((a * a + b * b + c1) * (var_a + var_b + c2))


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB, over all channels.

    Args:
        image, truth: (H, W, 3) uint8.
        mask: (H, W) bool, the pixels to compare; None for all.

    Returns:
        None if the mask is empty; `MAX_PSNR_DB` for equal images.
    """
    _check_images(image, truth)
    error = (image.astype(np.float64) - truth) ** 2
    if mask is not None:
        error = error[mask]
    return psnr_from_mse(float(error.mean()), 255.0) if error.size else None


def colour_and_contrast(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> tuple[float | None, float | None]:
    """Offset of the mean colour and ratio of the contrasts.

    Args:
        image, truth: (H, W, 3) uint8.
        mask: (H, W) bool, the pixels to compare; None for all.

    Returns:
        Mean over the channels of the absolute difference of their means, in grey levels; and the ratio of the standard
        deviations of brightness. None if the mask is empty or, for the ratio, if the truth has one brightness.
    """
    _check_images(image, truth)
    keep = np.ones(image.shape[:2], bool) if mask is None else mask
    if not keep.any():
        return None, None
    a, b = image[keep].astype(np.float64), truth[keep].astype(np.float64)
    truth_deviation = float(b.mean(axis=1).std())
    offset = float(np.abs(a.mean(axis=0) - b.mean(axis=0)).mean())
    return offset, float(a.mean(axis=1).std()) / truth_deviation if truth_deviation > 0 else None


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004), the mean over the channels.

    Uniform 7x7 windows inside the image, sample covariance: the defaults of scikit-image, with which the reference
    figures were made.

    Args:
        image, truth: (H, W, 3) uint8, at least 7x7 pixels.

    Raises:
        InputError: the images are too small or do not fit.
    """
    import cv2

    _check_images(image, truth)
    if min(image.shape[:2]) < SSIM_WINDOW_PX:
        raise InputError(f"The images are {image.shape[1]}x{image.shape[0]}; SSIM needs at least 7x7 pixels.")
    a, b = image.astype(np.float64), truth.astype(np.float64)
    border = SSIM_WINDOW_PX // 2
    inside = (slice(border, image.shape[0] - border), slice(border, image.shape[1] - border))
    means = [cv2.blur(values, (SSIM_WINDOW_PX, SSIM_WINDOW_PX))[inside] for values in (a, b, a * a, b * b, a * b)]
    count = SSIM_WINDOW_PX**2
    return float(ssim_from_means(*means, peak=255.0, bias_correction=count / (count - 1)).mean())


def seen_pixels(truth: View, observed_views: Iterable[View]) -> np.ndarray:
    """Which pixels of a view at least one observed view saw.

    The true 3-D point of a pixel is projected into each observed view. It was seen if the pixel it falls on has depth
    that differs by at most 5 % + 2 cm from that of the point.

    Args:
        truth: the view, with true depth.
        observed_views: views with depth; those without are left out.

    Returns:
        (H, W) bool; False where true depth is unknown.

    Raises:
        InputError: `truth` has no depth.
    """
    if truth.depth is None:
        raise InputError("The target view has no true depth; without it, seen pixels cannot be determined.")
    known = truth.depth > 0
    points = unproject(truth.depth, truth.camera, truth.world_from_camera)[known]
    seen = np.zeros(len(points), bool)
    for view in observed_views:
        if view.depth is None:
            continue
        uv, z = project(points, view.camera, view.world_from_camera)
        with np.errstate(invalid="ignore"):
            u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
            inside = (z > 0) & (u >= 0) & (v >= 0) & (u < view.camera.width) & (v < view.camera.height)
        depth = np.zeros(len(points), np.float32)
        depth[inside] = view.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
        seen |= (depth > 0) & (np.abs(depth - z) <= SEEN_DEPTH_RATIO * depth + SEEN_DEPTH_M)
    out = np.zeros(known.shape, bool)
    out[known] = seen
    return out


def depth_error(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """AbsRel and δ<1.25 over the pixels with depth in both.

    Args:
        depth, truth: (H, W) metres, 0 = unknown.

    Returns:
        Mean of |depth - truth| / truth, and the fraction of pixels whose ratio is below 1.25; None without such pixels.
    """
    valid = (depth > 0) & (truth > 0)
    if not valid.any():
        return None, None
    a, b = depth[valid].astype(np.float64), truth[valid].astype(np.float64)
    return float(np.mean(np.abs(a - b) / b)), float(np.mean(np.maximum(a / b, b / a) < 1.25))


def scaled_depth_error(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float, float] | None:
    """Metric errors, errors after median scaling, and the scale.

    Args:
        depth, truth: (H, W) metres, 0 = unknown.

    Returns:
        (AbsRel, δ<1.25, AbsRel aligned, δ<1.25 aligned, scale); None if no pixel has depth in both.
    """
    valid = (depth > 0) & (truth > 0)
    if not valid.any():
        return None
    scale = float(np.median(truth[valid]) / np.median(depth[valid]))
    plain, aligned = depth_error(depth, truth), depth_error(depth * np.float32(scale), truth)
    assert plain[0] is not None
    assert aligned[0] is not None
    return plain[0], plain[1], aligned[0], aligned[1], scale


def cloud_scores(points: np.ndarray, truth: np.ndarray, radius: float = 0.05) -> tuple[float, float, float]:
    """Precision, recall and F1 of a point cloud.

    Precision is the fraction of the points with a true point within `radius`, recall the fraction of the true points
    with a point within it. Both clouds are down-sampled to voxels of half the radius first, so that density does not
    count (Knapitsch et al. 2017, Tanks and Temples).

    Args:
        points: (N, 3) metres.
        truth: (M, 3) metres.
        radius: metres.
    """
    from scipy.spatial import cKDTree

    if len(points) == 0 or len(truth) == 0:
        return 0.0, 0.0, 0.0
    points, truth = voxel_downsample(points, radius / 2), voxel_downsample(truth, radius / 2)
    precision = float(np.isfinite(cKDTree(truth).query(points, distance_upper_bound=radius, workers=2)[0]).mean())
    recall = float(np.isfinite(cKDTree(points).query(truth, distance_upper_bound=radius, workers=2)[0]).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def voxel_downsample(points: np.ndarray, voxel: float) -> np.ndarray:
    """(K, 3) float64: the mean of the points (N, 3) in each voxel of this edge, in metres."""
    import open3d as o3d

    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.asarray(points, np.float64)))
    return np.asarray(cloud.voxel_down_sample(voxel).points)


def _check_images(image: np.ndarray, truth: np.ndarray) -> None:
    if image.shape != truth.shape or image.ndim != 3 or image.dtype != np.uint8 or truth.dtype != np.uint8:
        raise InputError(
            f"The images are {image.dtype} {image.shape} and {truth.dtype} {truth.shape}; "
            "two uint8 images of one shape (H, W, 3) were expected."
        )
