"""Point splatting: a coloured cloud and cameras in; colour, depth, coverage and provenance out.

Each point is a disc as wide as the cloud is dense there, so that surfaces close. Two passes: the nearest depth of
every pixel first, then the weighted mean of all points that lie on that front surface, which averages noise away.
A last look at the image closes cracks and pinholes through which a surface behind would shine.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.rendering import _splat_torch
from worldstereo_ros.utils.errors import InputError

_splat_numba: ModuleType | None
try:
    from worldstereo_ros.rendering import _splat_numba
except ImportError:  # numba is a dependency, but rendering alone works without it, slowly
    _splat_numba = None

SLAB = 1.5  # spacings: how thick a surface of scattered points is
JUMP = 0.95  # a surface nearer than this part of the depth is another surface
MAX_THREADS = 8
MAX_SCRATCH = 256 * 2**20  # bytes


@dataclass
class Rendering:
    """What F cameras see of a cloud; torch tensors on the device that rendered them.

    Attributes:
        colour: (F, H, W, 3) uint8 RGB, holes mid-grey (128).
        depth: (F, H, W) float32 metres along the optical axis, 0 in holes.
        covered: (F, H, W) bool, True where the cloud gave the pixel.
        observed: (F, H, W) bool, True where the pixel shows observed points; False for imagined ones and holes.
    """

    colour: torch.Tensor
    depth: torch.Tensor
    covered: torch.Tensor
    observed: torch.Tensor


@torch.no_grad()
def render(
    points: np.ndarray | torch.Tensor,
    colours: np.ndarray | torch.Tensor,
    observed: np.ndarray | torch.Tensor,
    spacing: np.ndarray | torch.Tensor,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    device: str | torch.device = "cpu",
    closure: float = 1.5,
    max_footprint: float = 6.0,
    surface_tolerance: float = 0.02,
    close_holes: bool = True,
    near: float = 0.05,
    backend: str = "auto",
    threads: int | None = None,
) -> Rendering:
    """Renders a cloud into F cameras.

    An observed point beats an imagined one on the same surface, and their colours never mix in a pixel.
    The result does not depend on the order of the points, on the number of threads, or on the backend.

    Args:
        points: (N, 3) float32, world, metres. Points that are not finite are skipped.
        colours: (N, 3) uint8 RGB.
        observed: (N,) bool, True = a sensor saw it.
        spacing: (N,) float32 metres between neighbouring points: sets the size of the discs.
        camera: intrinsics and size of all frames.
        world_from_camera: (F, 4, 4) poses, OpenCV axes.
        device: where to render, and where the result lies.
        closure: diameter of a disc in spacings. 1.42 closes a square grid at any angle.
        max_footprint: largest radius of a disc in pixels; bounds the cost when the camera stands in the cloud.
        surface_tolerance: points within this fraction of the front depth (plus 1.5 spacings) are the front surface.
        close_holes: close cracks and pinholes up to five pixels wide that a surface surrounds.
        near: points nearer than this (metres) are not drawn.
        backend: "numba" (CPU only), "torch", or "auto": numba on the CPU where it is installed.
        threads: of the CPU, at most; None = as many as torch uses.

    Raises:
        ValueError: shapes or types do not fit, or the backend cannot serve the device.
    """
    device = torch.device(device)
    if backend == "auto":
        backend = "numba" if device.type == "cpu" and _splat_numba is not None else "torch"
    if backend not in ("numba", "torch"):
        raise InputError(f"The backend '{backend}' is not known; it is 'auto', 'numba' or 'torch'.")
    if backend == "numba" and (device.type != "cpu" or _splat_numba is None):
        raise InputError(f"The numba backend needs numba and the CPU, not {device}; use backend='auto'.")
    poses = check_poses(world_from_camera)
    cloud = _checked(points, colours, observed, spacing, device)
    # The sums of a pixel are 63-bit integers: weights of 1 to 16 fit for eight million points in one pixel.
    grades = 15 if len(cloud[0]) < 1 << 23 else 0
    jump = JUMP if close_holes else 0.0
    # Rounded to float32 as the loops use them, so that both backends compute with the same numbers.
    settings = tuple(float(np.float32(n)) for n in (max(max_footprint, 0.5), 1 + surface_tolerance, SLAB, jump))
    size = (len(poses), camera.height, camera.width)
    result = Rendering(
        colour=torch.empty((*size, 3), dtype=torch.uint8, device=device),
        depth=torch.empty(size, dtype=torch.float32, device=device),
        covered=torch.empty(size, dtype=torch.bool, device=device),
        observed=torch.empty(size, dtype=torch.bool, device=device),
    )
    layers = (result.colour, result.depth, result.covered, result.observed)
    numbers = [_frame_numbers(camera, pose, near, closure) for pose in poses]
    if backend == "numba" and _splat_numba is not None:
        arrays = [tensor.numpy() for tensor in cloud]
        most = max(1, min(MAX_THREADS, MAX_SCRATCH // (36 * camera.width * camera.height)))
        working = _splat_numba.scratch(min(threads or torch.get_num_threads(), most), camera.height, camera.width)
        exact = (*(np.float32(number) for number in settings), grades)
        for k, frame_numbers in enumerate(numbers):
            _splat_numba.splat(*arrays, frame_numbers, exact, [layer[k].numpy() for layer in layers], working)
        return result
    for k, frame_numbers in enumerate(numbers):
        on_device = torch.from_numpy(frame_numbers).to(device)
        frame = _splat_torch.splat(cloud, on_device, camera.width, camera.height, (*settings, grades))
        for layer, image in zip(layers, frame, strict=True):
            layer[k] = image
    return result


def _checked(points, colours, observed, spacing, device) -> tuple[torch.Tensor, ...]:
    """The cloud as contiguous tensors on the device; says what is wrong before anything is computed."""
    named = {"points": points, "colours": colours, "observed": observed, "spacing": spacing}
    tensors = {name: torch.as_tensor(array) for name, array in named.items()}
    count = tensors["points"].shape[0] if tensors["points"].ndim else 0
    shapes = {"points": (count, 3), "colours": (count, 3), "observed": (count,), "spacing": (count,)}
    types = {"points": torch.float32, "colours": torch.uint8, "observed": torch.bool, "spacing": torch.float32}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise InputError(f"The cloud's {name} have shape {tuple(tensor.shape)}; {shapes[name]} was expected.")
        exact = name in ("points", "spacing") and tensor.is_floating_point()
        if tensor.dtype != types[name] and not exact:
            raise InputError(f"The cloud's {name} are {tensor.dtype}; {types[name]} was expected.")
    return tuple(tensors[name].to(device, types[name]).contiguous() for name in named)


def _frame_numbers(camera: Camera, world_from_camera: np.ndarray, near: float, closure: float) -> np.ndarray:
    """The 21 float32 numbers of one frame that the kernels use.

    Camera centre as a coarse and a fine part (so that subtracting it is exact far from the world's origin), rotation
    camera_from_world by rows, fx, fy, cx, cy, near plane, and pixels of disc radius per spacing at depth 1.
    """
    centre = world_from_camera[:3, 3]
    coarse = centre.astype(np.float32)
    radius = 0.5 * closure * np.sqrt(camera.fx * camera.fy)
    return np.concatenate(
        [
            coarse,
            (centre - coarse),
            world_from_camera[:3, :3].T.ravel(),
            [camera.fx, camera.fy, camera.cx, camera.cy, near, radius],
        ]
    ).astype(np.float32)
