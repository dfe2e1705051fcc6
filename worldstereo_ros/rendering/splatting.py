"""Point splatting: renders a coloured cloud to colour, depth, coverage and provenance.

Each point is a disc as large as the local spacing of the cloud, so that surfaces are closed. The first pass finds the
nearest depth of each pixel, the second pass averages the points on that front surface, which reduces noise. A final
step closes cracks and pinholes through which a farther surface would be visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.rendering import _splat_torch
from worldstereo_ros.utils.errors import InputError

_splat_numba: ModuleType | None
try:
    from worldstereo_ros.rendering import _splat_numba
except ImportError:  # rendering works without numba, but is slow
    _splat_numba = None

SURFACE_THICKNESS = 1.5  # thickness of a surface of scattered points, in spacings
SEPARATE_SURFACE_RATIO = 0.95  # a surface nearer than this fraction of the depth is another surface
MAX_THREADS = 8
MAX_SCRATCH_BYTES = 256 * 2**20


@dataclass
class Rendering:
    """A cloud rendered into F cameras; torch tensors on the device that rendered them.

    Attributes:
        colour: (F, H, W, 3) uint8 RGB, holes mid-grey (128).
        depth: (F, H, W) float32 metres along the optical axis, 0 in holes.
        covered: (F, H, W) bool, True where the cloud covers the pixel.
        provenance: (F, H, W) uint8 `Provenance` of the points that the pixel shows, 0 (unknown) in holes.

    Raises:
        InputError: the provenance is not uint8.
    """

    colour: torch.Tensor
    depth: torch.Tensor
    covered: torch.Tensor
    provenance: torch.Tensor

    def __post_init__(self) -> None:
        if self.provenance.dtype != torch.uint8:
            raise InputError(f"The provenance is {self.provenance.dtype}; uint8 values of Provenance were expected.")

    @property
    def observed(self) -> torch.Tensor:
        """(F, H, W) bool, True where the pixel shows observed points."""
        return self.provenance == Provenance.OBSERVED

    @property
    def estimated(self) -> torch.Tensor:
        """(F, H, W) bool, True where the pixel shows estimated points."""
        return self.provenance == Provenance.ESTIMATED


@torch.no_grad()
def render(
    points: np.ndarray | torch.Tensor,
    colours: np.ndarray | torch.Tensor,
    provenance: np.ndarray | torch.Tensor,
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

    On the same surface, observed points occlude estimated ones and these occlude imagined ones; a pixel shows points of
    one class only. The result does not depend on the order of the points, the number of threads, or the backend.

    Args:
        points: (N, 3) float32, world, metres. Points that are not finite are skipped.
        colours: (N, 3) uint8 RGB.
        provenance: (N,) uint8 `Provenance`, or bool with True = observed and False = imagined.
        spacing: (N,) float32 metres between neighbouring points; determines the size of the discs.
        camera: intrinsics and image size of all frames.
        world_from_camera: (F, 4, 4) poses, OpenCV axes.
        device: device to render on; the result stays there.
        closure: diameter of a disc in spacings; 1.42 closes a square grid at any angle.
        max_footprint: largest radius of a disc in pixels; bounds the cost for points close to the camera.
        surface_tolerance: points within this fraction of the front depth (plus 1.5 spacings) belong to the front
            surface.
        close_holes: close cracks and pinholes up to five pixels wide that are surrounded by a surface.
        near: near plane, metres.
        backend: "numba" (CPU only), "torch", or "auto" (numba on the CPU if it is installed).
        threads: maximum number of CPU threads; None = as many as torch uses.

    Raises:
        InputError: shapes, types or the provenance do not fit, or the backend does not support the device.
    """
    device = torch.device(device)
    if backend == "auto":
        backend = "numba" if device.type == "cpu" and _splat_numba is not None else "torch"
    if backend not in ("numba", "torch"):
        raise InputError(f"The backend '{backend}' is unknown; 'auto', 'numba' or 'torch' was expected.")
    if backend == "numba" and (device.type != "cpu" or _splat_numba is None):
        raise InputError(f"The numba backend needs numba and the CPU, the device is {device}; use backend='auto'.")
    poses = check_poses(world_from_camera)
    cloud = _validate_cloud(points, colours, provenance, spacing, device)
    # The sums of a pixel are 63-bit integers: they hold weights of 1 to 16 for up to 8 million points in a pixel.
    grades = 15 if len(cloud[0]) < 1 << 23 else 0
    jump = SEPARATE_SURFACE_RATIO if close_holes else 0.0
    # Rounded to float32, so that both backends compute with the same values.
    settings = tuple(
        float(np.float32(n)) for n in (max(max_footprint, 0.5), 1 + surface_tolerance, SURFACE_THICKNESS, jump)
    )
    size = (len(poses), camera.height, camera.width)
    result = Rendering(
        colour=torch.empty((*size, 3), dtype=torch.uint8, device=device),
        depth=torch.empty(size, dtype=torch.float32, device=device),
        covered=torch.empty(size, dtype=torch.bool, device=device),
        provenance=torch.empty(size, dtype=torch.uint8, device=device),
    )
    layers = (result.colour, result.depth, result.covered, result.provenance)
    all_camera_values = [_camera_values(camera, pose, near, closure) for pose in poses]
    if backend == "numba" and _splat_numba is not None:
        arrays = [tensor.numpy() for tensor in cloud]
        max_threads = max(1, min(MAX_THREADS, MAX_SCRATCH_BYTES // (36 * camera.width * camera.height)))
        buffers = _splat_numba.scratch(
            min(threads or torch.get_num_threads(), max_threads), camera.height, camera.width
        )
        exact = (*(np.float32(number) for number in settings), grades)
        for k, camera_values in enumerate(all_camera_values):
            _splat_numba.splat(*arrays, camera_values, exact, [layer[k].numpy() for layer in layers], buffers)
        return result
    for k, camera_values in enumerate(all_camera_values):
        on_device = torch.from_numpy(camera_values).to(device)
        frame = _splat_torch.splat(cloud, on_device, camera.width, camera.height, (*settings, grades))
        for layer, image in zip(layers, frame, strict=True):
            layer[k] = image
    return result


def _validate_cloud(points, colours, provenance, spacing, device) -> tuple[torch.Tensor, ...]:
    """Returns the cloud as contiguous tensors on the device.

    Raises:
        InputError: shapes or types do not fit, or a provenance is none of the classes that a point may have.
    """
    named = {"points": points, "colours": colours, "provenance": provenance, "spacing": spacing}
    tensors = {name: torch.as_tensor(array) for name, array in named.items()}
    if tensors["provenance"].dtype == torch.bool:
        kinds = torch.where(tensors["provenance"], int(Provenance.OBSERVED), int(Provenance.IMAGINED))
        tensors["provenance"] = kinds.to(torch.uint8)
    count = tensors["points"].shape[0] if tensors["points"].ndim else 0
    shapes = {"points": (count, 3), "colours": (count, 3), "provenance": (count,), "spacing": (count,)}
    types = {"points": torch.float32, "colours": torch.uint8, "provenance": torch.uint8, "spacing": torch.float32}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise InputError(f"The cloud's {name} have shape {tuple(tensor.shape)}; {shapes[name]} was expected.")
        exact = name in ("points", "spacing") and tensor.is_floating_point()
        if tensor.dtype != types[name] and not exact:
            raise InputError(f"The cloud's {name} are {tensor.dtype}; {types[name]} was expected.")
    kinds = tensors["provenance"]
    if count and not (kinds.min() >= Provenance.IMAGINED and kinds.max() <= Provenance.OBSERVED):
        raise InputError(
            f"The cloud's provenance has values from {int(kinds.min())} to {int(kinds.max())}; 1 (imagined), "
            "2 (estimated) or 3 (observed) was expected."
        )
    return tuple(tensors[name].to(device, types[name]).contiguous() for name in named)


def _camera_values(camera: Camera, world_from_camera: np.ndarray, near: float, closure: float) -> np.ndarray:
    """Returns the 21 float32 camera values that the loops use.

    They are: camera centre as a coarse and a fine part (subtraction is then exact far from the world origin), rotation
    camera_from_world by rows, fx, fy, cx, cy, near plane, and disc radius in pixels per spacing at depth 1.
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
