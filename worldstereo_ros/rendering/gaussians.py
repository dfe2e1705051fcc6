"""Rasteriser of 3-D Gaussians (Kerbl et al. 2023) with derivatives: compiled loops on the CPU, gsplat on CUDA.

A Gaussian has a centre, a rotation, three standard deviations, an opacity and a colour. It is projected by EWA
splatting, and the Gaussians of each pixel are blended from front to back. The images can be differentiated by all
parameters of the Gaussians (not by the pose), so that these can be fitted to photographs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.rendering._gaussian_blending_numba import (
    CHANNELS,
    COLUMNS,
    GRADIENTS,
    TILE,
    blend,
    blend_backward,
    count_tiles,
    fill_tiles,
)
from worldstereo_ros.rendering._gaussian_projection_numba import (
    FRUSTUM_MARGIN,
    gather,
    project,
    project_backward,
)
from worldstereo_ros.utils.errors import InputError, WorldStereoError
from worldstereo_ros.utils.jit import run_in_threads, split_range

MAX_THREADS = 8
MAX_TILE_ENTRIES = 1 << 28  # 1 GiB of indices; so many means Gaussians as large as the image
MIN_DEPTH_ALPHA = 1e-4  # less has no depth
# Constants of the real spherical harmonics of degree 0 and 1.
SH_0, SH_1 = 0.28209479177387814, 0.4886025119029199


class GaussianBackendError(WorldStereoError, RuntimeError):
    """The device cannot rasterise Gaussians; the message says what is missing."""


@dataclass
class GaussianRendering:
    """Gaussians rendered into a camera; differentiable torch tensors.

    Attributes:
        colour: (H, W, 3), the blended colours over the background.
        alpha: (H, W) in 0..1, what the Gaussians hide of the background.
        depth: (H, W), mean depth of the Gaussians, weighted as their colours; 0 where alpha is below
            `MIN_DEPTH_ALPHA`. Unit of the centres.
    """

    colour: torch.Tensor
    alpha: torch.Tensor
    depth: torch.Tensor


def render_gaussians(
    means: torch.Tensor,
    quaternions: torch.Tensor,
    scales: torch.Tensor,
    opacities: torch.Tensor,
    colours: torch.Tensor,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    near: float = 0.01,
    threads: int | None = None,
) -> GaussianRendering:
    """Renders Gaussians into a camera.

    Gaussians with a number that is not finite, and those whose centre is nearer than `near`, are not drawn. The images
    do not depend on the number of threads.

    Args:
        means: (N, 3) centres in the world; float32, or float64 (slower, to check derivatives).
        quaternions: (N, 4) rotations in the order w, x, y, z, of any length but 0.
        scales: (N, 3) standard deviations along the rotated axes, in the unit of the centres, above 0.
        opacities: (N,) in 0..1.
        colours: (N, 3), usually in 0..1; see `colours_from_harmonics`.
        camera: intrinsics and image size; pixel centres at integers.
        world_from_camera: (4, 4) pose, OpenCV axes.
        background: colour where nothing is drawn.
        near: near plane, in the unit of the centres.
        threads: maximum number of CPU threads; None = as many as torch uses.

    Raises:
        InputError: shapes, types or devices do not fit, or the Gaussians are so large that memory would run out.
        GaussianBackendError: the tensors are on a GPU, and gsplat is not installed.
    """
    tensors = {
        "means": means, "quaternions": quaternions, "scales": scales, "opacities": opacities, "colours": colours,
    }  # fmt: skip
    _check(tensors)
    pose = check_poses(np.asarray(world_from_camera)[None], "The camera")[0]
    if means.device.type == "cpu":
        values = _camera_values(camera, pose, near).astype(np.float64 if means.dtype == torch.float64 else np.float32)
        limit = max(1, min(threads or torch.get_num_threads(), MAX_THREADS))
        image, transmittance = _Rasterise.apply(
            *tensors.values(), values, (camera.width, camera.height), tuple(background), limit
        )
    else:
        image, transmittance = _gsplat(tensors, camera, pose, background, near)
    alpha = 1 - transmittance
    depth = torch.where(alpha > MIN_DEPTH_ALPHA, image[..., 3] / alpha.clamp(min=MIN_DEPTH_ALPHA), 0)
    return GaussianRendering(image[..., :3], alpha, depth)


def colours_from_harmonics(harmonics: torch.Tensor, means: torch.Tensor, camera_centre: np.ndarray) -> torch.Tensor:
    """Colours of Gaussians as they are seen from a point (Kerbl et al. 2023, spherical harmonics of degree 0 or 1).

    Args:
        harmonics: (N, K, 3) coefficients, K = 1 (the same colour from everywhere) or 4.
        means: (N, 3) centres in the world.
        camera_centre: (3,) in the world.

    Returns:
        (N, 3), at least 0.

    Raises:
        InputError: another number of coefficients.
    """
    if harmonics.ndim != 3 or harmonics.shape[1] not in (1, 4) or harmonics.shape[2] != 3:
        raise InputError(f"The harmonics have shape {tuple(harmonics.shape)}; (N, 1, 3) or (N, 4, 3) was expected.")
    colours = 0.5 + SH_0 * harmonics[:, 0]
    if harmonics.shape[1] == 4:
        centre = torch.as_tensor(np.asarray(camera_centre), dtype=means.dtype, device=means.device)
        direction = torch.nn.functional.normalize(means.detach() - centre, dim=1)
        x, y, z = direction[:, :1], direction[:, 1:2], direction[:, 2:]
        colours = colours + SH_1 * (z * harmonics[:, 2] - y * harmonics[:, 1] - x * harmonics[:, 3])
    return colours.clamp(min=0)


def _check(tensors: dict[str, torch.Tensor]) -> None:
    first = tensors["means"]
    count = len(first) if first.ndim else 0
    for name, size in (("means", 3), ("quaternions", 4), ("scales", 3), ("opacities", 0), ("colours", 3)):
        expected = (count, size) if size else (count,)
        tensor = tensors[name]
        if tuple(tensor.shape) != expected:
            raise InputError(f"The Gaussians' {name} have shape {tuple(tensor.shape)}; {expected} was expected.")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != first.dtype:
            raise InputError(f"The Gaussians' {name} are {tensor.dtype}; {first.dtype}, float32 or float64, as means.")
        if tensor.device != first.device:
            raise InputError(f"The Gaussians' {name} are on {tensor.device}; means are on {first.device}.")


def _camera_values(camera: Camera, pose: np.ndarray, near: float) -> np.ndarray:
    """The numbers that the loops use of a camera; see `_gaussian_projection_numba.CAMERA_VALUES`."""
    coarse = pose[:3, 3].astype(np.float32).astype(np.float64)
    limits = []
    for focal, centre, size in ((camera.fx, camera.cx, camera.width), (camera.fy, camera.cy, camera.height)):
        margin = FRUSTUM_MARGIN * 0.5 * size / focal
        limits += [-(centre + 0.5) / focal - margin, (size - 0.5 - centre) / focal + margin]
    intrinsics = [camera.fx, camera.fy, camera.cx, camera.cy, near]
    return np.concatenate([coarse, pose[:3, 3] - coarse, pose[:3, :3].T.ravel(), intrinsics, limits])


class _Rasterise(torch.autograd.Function):
    """(image (H, W, CHANNELS), transmittance (H, W)) of Gaussians on the CPU."""

    @staticmethod
    def forward(ctx: Any, means, quaternions, scales, opacities, colours, values, size, background, threads) -> Any:
        arrays = [t.detach().contiguous().numpy() for t in (means, quaternions, scales, opacities, colours)]
        dtype = arrays[0].dtype
        width, height = size
        order, gaussians = _project_and_sort(arrays, values, size, threads)
        lists, ends = _sort_into_tiles(gaussians, size, threads)
        chunks = _split_tiles(ends, threads)
        background = np.array([*background, 0.0], dtype)
        image, transmittance = np.empty((height, width, CHANNELS), dtype), np.empty((height, width), dtype)
        shared = (gaussians, lists, ends, background, image, transmittance)
        run_in_threads(blend, [(*shared, *chunk) for chunk in chunks])
        ctx.saved = (arrays, values, order, *shared)
        ctx.threads = threads
        return torch.from_numpy(image), torch.from_numpy(transmittance)

    @staticmethod
    def backward(ctx: Any, image_gradient: torch.Tensor, transmittance_gradient: torch.Tensor) -> Any:
        arrays, values, order, gaussians, lists, ends, _, image, transmittance = ctx.saved
        dtype = arrays[0].dtype
        slopes = np.empty((*transmittance.shape, CHANNELS + 1), dtype)
        slopes[..., :CHANNELS], slopes[..., CHANNELS] = image_gradient.numpy(), transmittance_gradient.numpy()
        chunks = _split_tiles(ends, ctx.threads)
        layers = np.zeros((len(chunks), len(gaussians), GRADIENTS), dtype)
        shared = (gaussians, lists, ends, image, transmittance, slopes)
        run_in_threads(blend_backward, [(*shared, layers[k], *chunk) for k, chunk in enumerate(chunks)])
        gradients = [np.zeros_like(array) for array in arrays]
        shared = (*arrays[:3], values, gaussians, order, layers, *gradients)
        run_in_threads(project_backward, [(*shared, *part) for part in split_range(len(order), ctx.threads)])
        return (*(torch.from_numpy(gradient) for gradient in gradients), None, None, None, None)


def _project_and_sort(arrays, values, size, threads) -> tuple[np.ndarray, np.ndarray]:
    """(indices (M,) of the Gaussians that are seen, nearest first; the Gaussians (M, COLUMNS) in this order)."""
    count, dtype = len(arrays[0]), arrays[0].dtype
    projected, keys = np.empty((count, COLUMNS), dtype), np.empty(count, np.uint64)
    run_in_threads(project, [(*arrays, values, *size, projected, keys, *part) for part in split_range(count, threads)])
    keys.sort()
    seen = int(np.searchsorted(keys, np.uint64(0xFFFFFFFFFFFFFFFF)))
    order = (keys[:seen] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    gaussians = np.empty((seen, COLUMNS), dtype)
    run_in_threads(gather, [(projected, order, gaussians, *part) for part in split_range(seen, threads)])
    return order, gaussians


def _sort_into_tiles(gaussians, size, threads) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the Gaussians of each tile, nearest first, one tile after the other; limits of the tiles)."""
    width, height = size
    rows, columns = -(-height // TILE), -(-width // TILE)
    counts = np.zeros((rows, columns), np.int64)
    parts = split_range(rows, threads)
    run_in_threads(count_tiles, [(gaussians, width, height, *part, counts) for part in parts])
    ends = np.concatenate([[0], np.cumsum(counts)])
    if ends[-1] > MAX_TILE_ENTRIES:
        raise InputError(
            f"The {len(gaussians):,} Gaussians that are seen cover {ends[-1]:,} tiles of {TILE}x{TILE} pixels; at most "
            f"{MAX_TILE_ENTRIES:,} are drawn. Their scales are too large for a camera this near, or in another unit."
        )
    lists = np.empty(ends[-1], np.int32)
    starts = ends[:-1].reshape(rows, columns).copy()
    run_in_threads(fill_tiles, [(gaussians, width, height, *part, starts, lists) for part in parts])
    return lists, ends


def _split_tiles(ends: np.ndarray, threads: int) -> list[tuple[int, int]]:
    """Ranges of tiles with about the same number of Gaussians each; every tile counts as some itself."""
    work = ends + 16 * np.arange(len(ends))
    limits = np.searchsorted(work, work[-1] * np.arange(threads + 1) / threads)
    limits[-1] = len(ends) - 1
    return [(int(a), int(b)) for a, b in itertools.pairwise(limits) if a < b]


def _gsplat(tensors, camera: Camera, pose: np.ndarray, background: Sequence[float], near: float) -> tuple:
    """(image, transmittance) by gsplat, whose pixel centres are at halves."""
    try:
        from gsplat import rasterization
    except ImportError:
        raise GaussianBackendError(
            f"The Gaussians are on {tensors['means'].device}, and rasterising them there needs gsplat, which is not "
            "installed: pip install gsplat. Or move them to the CPU."
        ) from None
    on_device = {"dtype": tensors["means"].dtype, "device": tensors["means"].device}
    matrix = camera.matrix
    matrix[:2, 2] += 0.5
    image, alpha, _ = rasterization(
        *tensors.values(),
        viewmats=torch.as_tensor(invert_pose(pose)[None], **on_device),
        Ks=torch.as_tensor(matrix[None], **on_device),
        width=camera.width,
        height=camera.height,
        near_plane=near,
        render_mode="RGB+D",
        packed=False,
        backgrounds=None,
    )
    transmittance = 1 - alpha[0, ..., 0]
    colour = torch.as_tensor([*background, 0.0], **on_device)
    return image[0] + transmittance[..., None] * colour, transmittance
