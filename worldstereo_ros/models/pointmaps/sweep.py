"""Matching of frames around a prior: how well other frames agree with each of several depths of a pixel.

A plane sweep (Collins 1996), of surfaces that have the shape of the prior: its depth times exp(offset). Images are
normalised locally, so that products of them, averaged over a window, are about the normalised cross-correlation.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.geometry import box_mean, pixel_rays

DISTANCES = (2, 4, 8)  # to the frames before and after that a frame is compared with
OFFSETS = (-0.6, -0.4, -0.25, -0.15, -0.07, 0.0, 0.07, 0.15, 0.25, 0.4, 0.6)  # of the log depth
SCALE = 2  # pixels of the image per pixel of the result
WINDOW = 7  # of the correlation, in pixels of the result
NORMAL_WINDOW = 7  # of the local normalisation, in pixels of the image
MIN_DEPTH = 1e-3
SWEEP_CHANNELS = (len(DISTANCES) + 1) * len(OFFSETS) + len(DISTANCES)


@torch.no_grad()
def sweep(images: torch.Tensor, log_depth: torch.Tensor, poses: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Correlates each frame with others, for depths around a prior.

    Args:
        images: (b, F, 3, H, W) in [-1, 1].
        log_depth: (b, F, H, W) of the prior.
        poses: (b, F, 4, 4) first_from_camera, of the same scale.
        intrinsics: (b, 4).

    Returns:
        (b, F, SWEEP_CHANNELS, H / 2, W / 2) float32: for each distance and offset the mean correlation with the frames
        that see the point, 0 where none does; then for each offset the highest one; then for each distance the
        fraction of frames that see the point of the prior.
    """
    b, f, _, height, width = images.shape
    with torch.autocast(images.device.type, enabled=False):
        grey = images.float().mean(2).flatten(0, 1)[:, None]
        mean = box_mean(grey, NORMAL_WINDOW)
        variance = (box_mean(grey.square(), NORMAL_WINDOW) - mean.square()).clamp_min(0)
        features = ((grey - mean) / (variance + 1e-3).sqrt()).unflatten(0, (b, f))
        points = pixel_rays(intrinsics, height, width)[:, None] * log_depth.float().exp()[:, :, None]
        h, w = height // SCALE, width // SCALE
        factors = torch.tensor(OFFSETS, device=images.device).exp()
        fx, fy, cx, cy = (part.float().view(b, 1, 1, 1, 1) for part in intrinsics.unbind(1))
        shape = (b, f, len(OFFSETS), h, w)
        best, parts, shares = torch.full(shape, -1.0, device=images.device), [], []
        from_first = torch.linalg.inv(poses.float())
        for distance in DISTANCES:
            total, seen = (torch.zeros(shape, device=images.device) for _ in range(2))
            for source in (-distance, distance):
                if distance >= f:
                    continue
                here = slice(max(0, -source), min(f, f - source))
                there = slice(max(0, source), min(f, f + source))
                between = from_first[:, there] @ poses[:, here].float()  # source_from_reference
                turned = torch.einsum("bfij,bfjhw->bfihw", between[..., :3, :3], points[:, here])
                x, y, z = (
                    turned[:, :, i, None] * factors.view(1, 1, -1, 1, 1) + between[:, :, i, 3, None, None, None]
                    for i in range(3)
                )
                front = z > MIN_DEPTH
                z = z.clamp_min(MIN_DEPTH)
                # Positions in [-1, 1] between the outer borders of the image, as grid_sample has them.
                u = ((fx * x / z + cx) + 0.5) / width * 2 - 1
                v = ((fy * y / z + cy) + 0.5) / height * 2 - 1
                inside = front & (u.abs() < 1) & (v.abs() < 1)
                count = u.shape[1]
                grid = torch.stack((u, v), dim=-1).clamp(-2, 2).reshape(b * count, -1, width, 2)
                sampled = functional.grid_sample(
                    features[:, there].flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False
                ).view(b * count, len(OFFSETS), height, width)
                product = functional.avg_pool2d(sampled * features[:, here].flatten(0, 1), SCALE)
                inside = inside[..., ::SCALE, ::SCALE]
                score = box_mean(product, WINDOW).clamp(-1, 1).view(b, count, len(OFFSETS), h, w)
                total[:, here] += score * inside
                seen[:, here] += inside
                best[:, here] = torch.where(inside, torch.maximum(best[:, here], score), best[:, here])
            parts.append(total / seen.clamp_min(1))
            shares.append(seen[:, :, OFFSETS.index(0.0)] / 2)
        best = torch.where(best > -1, best, torch.zeros_like(best))
        return torch.cat((*parts, best, torch.stack(shares, dim=2)), dim=2)
