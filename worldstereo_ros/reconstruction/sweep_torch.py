"""The plane sweep in torch, for CUDA: the same steps as `sweep_numba`, with the same results up to rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import conv2d

from worldstereo_ros.reconstruction.sweep_numba import LEVELS, MIN_DEVIATION, ONE_VIEW_PENALTY, RADIUS, WINDOW
from worldstereo_ros.reconstruction.sweep_settings import SweepSettings

NONE = -2.0  # score of a neighbour that does not see the window


def sweep_planes(
    reference: np.ndarray,
    images: np.ndarray,
    sizes: np.ndarray,
    warps: np.ndarray,
    offsets: np.ndarray,
    inverse_depths: np.ndarray,
    settings: SweepSettings,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and correlation of a photograph; see `plane_sweep.sweep` and `sweep_numba.matching_cost`."""
    grey = torch.from_numpy(reference.astype(np.float32) / LEVELS).to(device)
    planes = torch.from_numpy(inverse_depths).to(device)
    cost = _matching_cost(
        torch.from_numpy(reference).to(device, torch.float64),
        torch.from_numpy(images).to(device),
        sizes,
        torch.from_numpy(warps).to(device),
        torch.from_numpy(offsets).to(device),
        planes,
    )
    total = torch.zeros_like(cost)
    for axis in (0, 1):
        _smooth(cost, grey, total, axis, settings)
    depth, score = _best_planes(total, cost, planes, settings.min_score)
    return depth.cpu().numpy(), score.cpu().numpy()


def _box(values: torch.Tensor) -> torch.Tensor:
    """(B, H, W) float64 sums over windows, of their part inside the image."""
    ones = torch.ones(1, 1, 1, WINDOW, dtype=values.dtype, device=values.device)
    rows = conv2d(values[:, None], ones, padding=(0, RADIUS))
    return conv2d(rows, ones.transpose(2, 3), padding=(RADIUS, 0))[:, 0]


def _matching_cost(
    reference: torch.Tensor,
    images: torch.Tensor,
    sizes: np.ndarray,
    warps: torch.Tensor,
    offsets: torch.Tensor,
    planes: torch.Tensor,
) -> torch.Tensor:
    """(H, W, D) float32 costs. Sums are exact: float64 of integers."""
    height, width = reference.shape
    device = reference.device
    x = torch.arange(width, device=device, dtype=torch.float32)[None]
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    number = _box(torch.ones_like(reference)[None])[0]
    own, own_square = _box(torch.stack([reference, reference**2]))
    own_variance = number * own_square - own**2
    limit = float(int((MIN_DEVIATION * LEVELS) ** 2)) * number**2
    cost = torch.empty(height, width, len(planes), device=device)
    for d, inverse in enumerate(planes):
        scores = []
        for image, size, warp, offset in zip(images, sizes, warps, offsets, strict=True):
            sample = _sample(image, int(size[0]), int(size[1]), warp, offset * inverse, x, y)
            valid = sample >= 0
            w = torch.where(valid, sample, 0).to(torch.float64)
            total, square, product, seen = _box(torch.stack([w, w**2, reference * w, valid.to(torch.float64)]))
            variance = number * square - total**2
            textured = (variance > limit) & (own_variance > limit)
            product_of = torch.where(textured, variance * own_variance, 1)
            score = torch.where(textured, (number * product - own * total) / product_of.sqrt(), 0)
            scores.append(torch.where(seen == number, score, NONE).to(torch.float32))
        best = torch.stack(scores).topk(min(2, len(scores)), dim=0).values
        first = best[0]
        second = best[1] if len(best) > 1 else torch.full_like(first, NONE)
        mean = torch.where(first > NONE, first - float(ONE_VIEW_PENALTY), 0)
        cost[..., d] = 1 - torch.where(second > NONE, 0.5 * (first + second), mean)
    return cost


def _sample(
    image: torch.Tensor,
    rows: int,
    columns: int,
    warp: torch.Tensor,
    shift: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """(H, W) samples of a neighbour in steps of a grey level, -1 outside; see `sweep_numba._sample_row`."""
    x0, y0, z0 = (warp[k, 1] * y + warp[k, 2] + shift[k] for k in range(3))
    z = warp[2, 0] * x + z0
    inverse = 1 / torch.where(z > 1e-6, z, 1)
    u, v = (warp[0, 0] * x + x0) * inverse, (warp[1, 0] * x + y0) * inverse
    inside = (z > 1e-6) & (u >= 0) & (v >= 0) & (u <= columns - 1) & (v <= rows - 1)
    u, v = torch.where(inside, u, 0), torch.where(inside, v, 0)
    iu, iv = u.to(torch.int64).clamp(max=columns - 2), v.to(torch.int64).clamp(max=rows - 2)
    fu, fv = u - iu, v - iv
    top = image[iv, iu] + fu * (image[iv, iu + 1] - image[iv, iu])
    bottom = image[iv + 1, iu] + fu * (image[iv + 1, iu + 1] - image[iv + 1, iu])
    return torch.where(inside, ((top + fv * (bottom - top)) * LEVELS + 0.5).floor(), -1)


def _smooth(cost: torch.Tensor, grey: torch.Tensor, total: torch.Tensor, axis: int, settings: SweepSettings) -> None:
    """Adds the path costs of both directions along an axis to `total`; see `sweep_numba._path_step`."""
    costs, levels, sums = (values.transpose(0, 1) if axis else values for values in (cost, grey, total))
    count = len(costs)
    for direction in (1, -1):
        at = 0 if direction == 1 else count - 1
        before = costs[at].clone()
        sums[at] += before
        for _ in range(count - 1):
            at += direction
            step = (levels[at] - levels[at - direction]).abs()
            jump = (settings.p2 / (1 + step / settings.contrast)).clamp(min=settings.p2_min)
            lowest = before.amin(dim=1)
            value = torch.minimum(before, (lowest + jump)[:, None])
            value[:, 1:] = torch.minimum(value[:, 1:], before[:, :-1] + settings.p1)
            value[:, :-1] = torch.minimum(value[:, :-1], before[:, 1:] + settings.p1)
            before = value + costs[at] - lowest[:, None]
            sums[at] += before


def _best_planes(
    total: torch.Tensor, cost: torch.Tensor, planes: torch.Tensor, min_score: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and correlation; see `sweep_numba.best_planes`."""
    last = len(planes) - 1
    best = total.argmin(dim=2)
    score = 1 - cost.gather(2, best[..., None])[..., 0]
    inner = best.clamp(1, last - 1)
    low, middle, high = (total.gather(2, (inner + k)[..., None])[..., 0] for k in (-1, 0, 1))
    curvature = low - 2 * middle + high
    shift = torch.where(curvature > 1e-6, 0.5 * (low - high) / torch.where(curvature > 1e-6, curvature, 1), 0)
    inverse = planes[inner] + shift.clamp(-0.5, 0.5) * (planes[inner + 1] - planes[inner])
    known = (best > 0) & (best < last) & (score >= min_score) & (inverse > 0)
    return torch.where(known, 1 / torch.where(known, inverse, 1), 0), score
