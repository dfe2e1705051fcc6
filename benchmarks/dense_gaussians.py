"""A rasteriser of 3-D Gaussians in plain torch, dense: every Gaussian at every pixel, with automatic derivatives.

The same image as `rendering.gaussians`, written from the equations without tiles, boxes or early stops. It is the peer
in `bench_gaussian_splats.py` and the reference in the tests.
"""

from __future__ import annotations

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera

LOW_PASS, FRUSTUM_MARGIN, MIN_ALPHA, MAX_ALPHA = 0.3, 0.3, 1 / 255, 0.999


def rotations(quaternions: torch.Tensor) -> torch.Tensor:
    """(N, 3, 3) rotations of quaternions (N, 4) in the order w, x, y, z."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


def project_gaussians(
    means: torch.Tensor, quaternions: torch.Tensor, scales: torch.Tensor, camera: Camera, world_from_camera: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(centres (N, 2) in pixels, covariances (N, 2, 2) in pixels, depths (N,)) of Gaussians by EWA splatting."""
    pose = torch.as_tensor(world_from_camera, dtype=means.dtype)
    rotation = pose[:3, :3].T
    local = (means - pose[:3, 3]) @ rotation.T
    depth = local[:, 2]
    ratio = local[:, :2] / depth[:, None]
    focal = torch.tensor([camera.fx, camera.fy], dtype=means.dtype)
    centre = torch.tensor([camera.cx, camera.cy], dtype=means.dtype)
    size = torch.tensor([camera.width, camera.height], dtype=means.dtype)
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    limited = torch.minimum(
        torch.maximum(ratio, -(centre + 0.5) / focal - margin), (size - 0.5 - centre) / focal + margin
    )
    jacobian = means.new_zeros(len(means), 2, 3)
    jacobian[:, 0, 0], jacobian[:, 1, 1] = camera.fx / depth, camera.fy / depth
    jacobian[:, :, 2] = -focal * limited / depth[:, None]
    axes = jacobian @ rotation @ rotations(quaternions) * scales[:, None]
    covariance = axes @ axes.transpose(1, 2) + LOW_PASS * torch.eye(2, dtype=means.dtype)
    return ratio * focal + centre, covariance, depth


def render_dense(
    means: torch.Tensor,
    quaternions: torch.Tensor,
    scales: torch.Tensor,
    opacities: torch.Tensor,
    colours: torch.Tensor,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    near: float = 0.01,
    pixels: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders on black; returns ((H, W, 3) colour, (H, W) alpha). Arguments are those of `render_gaussians`.

    Args:
        pixels: number of pixels that are computed at once; bounds the memory.
    """
    centres, covariances, depth = project_gaussians(means, quaternions, scales, camera, world_from_camera)
    seen = torch.nonzero(depth > near)[:, 0]
    order = seen[torch.argsort(depth[seen])]
    centres, inverse = centres[order], torch.linalg.inv(covariances[order])
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    at = torch.stack([x.reshape(-1), y.reshape(-1)], 1).to(means.dtype)
    images, alphas = [], []
    for part in at.split(pixels):
        offset = part[:, None] - centres[None]
        power = -0.5 * torch.einsum("pni,nij,pnj->pn", offset, inverse, offset)
        alpha = (opacities[order] * power.exp()).clamp(max=MAX_ALPHA)
        alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0)
        through = torch.cumprod(1 - alpha, 1)
        before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
        images.append((alpha * before) @ colours[order])
        alphas.append(1 - through[:, -1] if len(order) else part[:, 0] * 0)
    shape = (camera.height, camera.width)
    return torch.cat(images).reshape(*shape, 3), torch.cat(alphas).reshape(shape)
