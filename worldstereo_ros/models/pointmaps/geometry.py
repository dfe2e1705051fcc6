"""Geometry of clips in torch, batched: rays, points, the coding of point maps, and blurs of sparse maps.

A clip has b videos of F frames. Poses are `first_from_camera` (b, F, 4, 4): the world is the first camera, as in
Sora3R. Intrinsics are (b, 4): fx, fy, cx, cy in pixels, with pixel centres at integers.
"""

from __future__ import annotations

import torch
from torch.nn import functional

CODE_GAIN = 4.0  # points are coded as asinh(4 p / mean distance) / 3, which is 0.7 at the mean distance
CODE_SCALE = 3.0
MAX_CODE = 1.6  # about 15 mean distances
SKY_DISTANCE = 8.0  # distance of points without a surface, in mean distances


def pixel_rays(intrinsics: torch.Tensor, height: int, width: int, scale: float = 1.0) -> torch.Tensor:
    """Viewing rays with z = 1.

    Args:
        intrinsics: (b, 4) of the full size.
        height, width: size of the map.
        scale: pixels of the full size per pixel of the map; a pixel of it is the middle of a block of pixels.

    Returns:
        (b, 3, height, width) float32, camera axes.
    """
    fx, fy, cx, cy = (part[:, None, None] for part in intrinsics.float().unbind(1))
    y = (torch.arange(height, device=intrinsics.device, dtype=torch.float32) + 0.5) * scale - 0.5
    x = (torch.arange(width, device=intrinsics.device, dtype=torch.float32) + 0.5) * scale - 0.5
    shape = (len(intrinsics), height, width)
    rays = ((x[None, None] - cx) / fx, (y[None, :, None] - cy) / fy, torch.ones((), device=intrinsics.device))
    return torch.stack([part.expand(shape) for part in rays], dim=1)


def world_points(depth: torch.Tensor, poses: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Unprojects depth.

    Args:
        depth: (b, F, H, W) along the optical axis.
        poses: (b, F, 4, 4) first_from_camera.
        intrinsics: (b, 4).

    Returns:
        (b, F, 3, H, W) float32 points in the axes of the first camera.
    """
    rays = pixel_rays(intrinsics, *depth.shape[-2:])
    points = rays[:, None] * depth.float()[:, :, None]
    poses = poses.float()
    return torch.einsum("bfij,bfjhw->bfihw", poses[:, :, :3, :3], points) + poses[:, :, :3, 3, None, None]


def lengths(points: torch.Tensor, axis: int = 2) -> torch.Tensor:
    """Lengths of vectors along an axis; without gradients at 0. On a CPU `norm` takes ten times as long."""
    return points.square().sum(axis).sqrt()


def mean_distance(points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean distance (b,) of valid points (b, F, 3, H, W) to the first camera; 1 where none is valid."""
    distance, mask = lengths(points), valid.float()
    total = mask.sum((1, 2, 3))
    mean = (distance * mask).sum((1, 2, 3)) / total.clamp_min(1)
    return torch.where((total > 0) & (mean > 1e-6), mean, torch.ones_like(mean))


def encode_points(points: torch.Tensor) -> torch.Tensor:
    """Codes points over the mean distance, any shape, to about [-1, 1]: asinh keeps near and far ones apart."""
    return (torch.asinh(CODE_GAIN * points) / CODE_SCALE).clamp(-MAX_CODE, MAX_CODE)


def decode_points(code: torch.Tensor) -> torch.Tensor:
    """Inverse of `encode_points`."""
    return torch.sinh(CODE_SCALE * code.clamp(-MAX_CODE, MAX_CODE)) / CODE_GAIN


def gaussian_matrix(size: int, sigma: float, device: torch.device | str) -> torch.Tensor:
    """(size, size) float32 weights exp(-d^2 / 2 sigma^2) between positions of an axis; peaks are 1."""
    at = torch.arange(size, device=device, dtype=torch.float32)
    return torch.exp(-0.5 * ((at[:, None] - at) / sigma).square())


def gaussian_sums(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Sums of maps (..., H, W) under a Gaussian window of peak 1; nothing lies outside. Exact at any `sigma`."""
    rows, columns = (gaussian_matrix(size, sigma, maps.device) for size in maps.shape[-2:])
    return rows @ maps.float() @ columns


def gaussian_blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blurs maps (..., H, W), normalised at the borders."""
    return gaussian_sums(maps, sigma) / gaussian_sums(torch.ones_like(maps[(0,) * (maps.ndim - 2)]), sigma)


def box_mean(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Means of maps (N, C, H, W) over size x size windows; what lies outside is not counted."""
    return functional.avg_pool2d(maps, size, stride=1, padding=size // 2, count_include_pad=False)


def relative_poses(poses: torch.Tensor) -> torch.Tensor:
    """Poses (b, F, 4, 4) in the axes of the first camera: the first one becomes the identity."""
    return torch.linalg.inv(poses[:, :1].double()).matmul(poses.double()).float()
