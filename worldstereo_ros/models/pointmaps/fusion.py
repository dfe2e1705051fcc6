"""Fusion of the depth of a clip's frames: each pixel moves to where the frames that see its surface agree.

A network that looks at one frame at a time errs in each frame anew, though poses say how the frames belong together.
Each pixel's point is projected into other frames; the logarithms of their depths, over its distance there, are averaged
with the certainties of a Laplace distribution as weights. Frames that differ by far see something else, or it moves.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.geometry import pixel_rays

DISTANCES = (2, 4, 8, 12)  # to the frames before and after
MAX_DIFFERENCE = 0.6  # of log depths that are averaged
ROUNDS = 3
MIN_DEPTH = 1e-3


@torch.no_grad()
def fuse_depth(
    log_depth: torch.Tensor,
    log_sigma: torch.Tensor,
    poses: torch.Tensor,
    intrinsics: torch.Tensor,
    *,
    rounds: int = ROUNDS,
) -> torch.Tensor:
    """Averages the depth of frames.

    Args:
        log_depth: (b, F, H, W).
        log_sigma: (b, F, H, W) logarithm of the scale of its error.
        poses: (b, F, 4, 4) first_from_camera, of the same scale.
        intrinsics: (b, 4).
        rounds: how often; later rounds see what more of the frames agree on.

    Returns:
        (b, F, H, W) float32 log depth. A pixel that no other frame sees stays as it is.
    """
    b, f, height, width = log_depth.shape
    rays = pixel_rays(intrinsics, height, width)[:, None]
    fx, fy, cx, cy = (part.float().view(b, 1, 1, 1) for part in intrinsics.unbind(1))
    poses = poses.float()
    from_first = torch.linalg.inv(poses)
    log_depth, weight = log_depth.float(), (-2 * log_sigma.float()).exp()
    for _ in range(rounds):
        points = rays * log_depth.exp()[:, :, None]
        moved, total = torch.zeros_like(log_depth), weight.clone()
        for step in (sign * distance for distance in DISTANCES if distance < f for sign in (-1, 1)):
            here, there = slice(max(0, -step), min(f, f - step)), slice(max(0, step), min(f, f + step))
            between = from_first[:, there] @ poses[:, here]  # there_from_here
            x, y, z = (
                torch.einsum("bfj,bfjhw->bfhw", between[:, :, row, :3], points[:, here])
                + between[:, :, row, 3, None, None]
                for row in range(3)
            )
            front, z = z > MIN_DEPTH, z.clamp_min(MIN_DEPTH)
            u = ((fx * x / z + cx) + 0.5) / width * 2 - 1
            v = ((fy * y / z + cy) + 0.5) / height * 2 - 1
            inside = front & (u.abs() < 1) & (v.abs() < 1)
            grid = torch.stack((u, v), dim=-1).clamp(-2, 2).flatten(0, 1)
            maps = torch.stack((log_depth[:, there], weight[:, there]), dim=2).flatten(0, 1)
            sampled = functional.grid_sample(
                maps, grid, mode="bilinear", padding_mode="border", align_corners=False
            ).unflatten(0, u.shape[:2])
            difference = sampled[:, :, 0] - z.log()
            share = sampled[:, :, 1] * (inside & (difference.abs() < MAX_DIFFERENCE))
            moved[:, here] += share * difference
            total[:, here] += share
        log_depth = log_depth + moved / total
    return log_depth
