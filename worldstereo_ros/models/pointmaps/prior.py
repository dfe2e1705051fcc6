"""A dense prior from a depth network and sparse anchors: the network's log depth, moved by a smooth field.

The field is spread from the anchors by normalised convolution (Knutsson and Westin 1993) from coarse to fine: each
scale adds what the anchors say beyond the coarser ones, where there are enough of them.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.geometry import gaussian_sums
from worldstereo_ros.models.pointmaps.types import PointmapPrior

CELL_PX = 4  # side of the cells that fields are computed on
SCALES = (0.5, 0.25, 0.125, 0.0625, 0.03)  # standard deviations of the windows, in heights of the image
TRUST = 1.0  # anchors in a window that move the field half the way
OUTLIER = 4.0  # anchors whose residual is this many median deviations off do not count
ANCHORED_SIGMA = 0.4  # scale of the error beside anchors, of that of the depth network


def anchored_prior(
    log_depth: torch.Tensor,
    log_sigma: torch.Tensor,
    poses: torch.Tensor,
    anchor_log_depth: torch.Tensor,
    anchor_weight: torch.Tensor,
) -> PointmapPrior:
    """Moves the depth of a network to sparse anchors.

    Args:
        log_depth: (b, F, H, W) of a depth network.
        log_sigma: (b, F, H, W) logarithm of the scale of its error.
        poses: (b, F, 4, 4) first_from_camera, of the scale of the anchors.
        anchor_log_depth: (b, F, H, W) logarithm of triangulated depth; not read where the weight is 0.
        anchor_weight: (b, F, H, W) 0..1; 0 = no anchor. H and W are multiples of 4.

    Returns:
        The prior.
    """
    log_depth, weight = log_depth.float(), anchor_weight.float()
    residual = torch.where(weight > 0, anchor_log_depth.float() - log_depth, torch.zeros_like(log_depth))
    offset = _median(residual, weight)[:, None, None, None]
    spread = _median((residual - offset).abs(), weight)[:, None, None, None].clamp_min(0.02)
    used = weight * ((residual - offset).abs() < OUTLIER * spread)
    field, count = spread_residuals(residual - offset, used)
    moved = log_depth + offset + field
    near = count / (count + TRUST)
    sigma = log_sigma.float().exp() * (1 - (1 - ANCHORED_SIGMA) * near)
    left = torch.where(weight > 0, anchor_log_depth.float() - moved, torch.zeros_like(moved))
    return PointmapPrior(moved, sigma.clamp_min(1e-3).log(), poses.float(), left, weight)


def spread_residuals(residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spreads sparse numbers over an image.

    Args:
        residual: (b, F, H, W) numbers; not read where the weight is 0.
        weight: (b, F, H, W) 0..1.

    Returns:
        Field (b, F, H, W), 0 far from all weights; and the weight (b, F, H, W) around each pixel in a window of an
        eighth of the height.
    """
    height, width = residual.shape[-2:]
    area = CELL_PX**2
    total = functional.avg_pool2d(weight, CELL_PX) * area
    weighted = functional.avg_pool2d(weight * residual, CELL_PX) * area
    field, around = torch.zeros_like(total), torch.zeros_like(total)
    for scale in SCALES:
        sigma = scale * height / CELL_PX
        count = gaussian_sums(total, sigma)
        mean = gaussian_sums(weighted - total * field, sigma) / count.clamp_min(1e-6)
        field = field + mean * count / (count + TRUST)
        if scale == 0.125:
            around = count
    size = (height, width)
    return tuple(functional.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (field, around))  # type: ignore[return-value]


def anchor_weight(deviation: torch.Tensor) -> torch.Tensor:
    """Weights of anchors from the standard deviations of their log depths: 1 up to .05, then falling, down to .15."""
    return (0.05 / deviation.clamp_min(0.05)).clamp(0.15, 1.0)


def _median(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Median (b,) of the values (b, ...) with a weight; 0 where there is none."""
    masked = torch.where(weight > 0, values, torch.full_like(values, torch.nan)).flatten(1)
    return masked.nanmedian(dim=1).values.nan_to_num(0.0)


def no_prior(b: int, f: int, height: int, width: int, device: torch.device | str) -> PointmapPrior:
    """A prior that says nothing: all depths 1, poses the identity."""
    zeros = torch.zeros(b, f, height, width, device=device)
    return PointmapPrior(zeros, zeros, torch.eye(4, device=device).expand(b, f, 4, 4), zeros, zeros)
