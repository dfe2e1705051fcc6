"""Depth of a photograph from its neighbours, by a plane sweep with semi-global smoothing.

For each of 96 planes parallel to the photograph, evenly spaced in inverse depth, the neighbours are projected onto the
plane (Collins, CVPR 1996) and correlated with the photograph: zero-mean normalised cross-correlation over 7x7 pixels,
the mean of the two best neighbours, since the others may be occluded. The costs are smoothed along four directions
(Hirschmüller, PAMI 2008), and the best plane is refined by a parabola. What other photographs do not confirm is thrown
away (`cross_check`).

On a CPU the loops are compiled (`sweep_numba`), on CUDA they are those of torch (`sweep_torch`), with the same results
up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction import sweep_numba
from worldstereo_ros.reconstruction.sweep_settings import SweepSettings
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import run_in_threads, split_range

__all__ = [
    "SweepSettings", "SweepView", "cross_check", "drop_small_regions", "plane_inverse_depths", "sweep",
    "warp_matrices",
]  # fmt: skip

TOLERANCE = 0.015  # relative difference of depths that confirm each other
MIN_COLUMNS = 16  # in a thread
REGION_STEPS = 16  # levels of log depth within `TOLERANCE`


@dataclass(frozen=True)
class SweepView:
    """A photograph for the sweep.

    Attributes:
        grey: (H, W) float32 grey levels 0..255.
        camera: intrinsics of this size.
        world_from_camera: (4, 4) float64.
    """

    grey: np.ndarray
    camera: Camera
    world_from_camera: np.ndarray

    @classmethod
    def of(cls, view: View) -> SweepView:
        """The sweep's view of a view."""
        return cls(cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY).astype(np.float32), view.camera, view.world_from_camera)


def plane_inverse_depths(near: float, far: float, count: int) -> np.ndarray:
    """(D,) float32 inverse depths of the planes, ascending: evenly spaced from 1 / far to 1 / near.

    Raises:
        InputError: near and far are not 0 < near < far, or there are fewer than three planes.
    """
    if not (0 < near < far and np.isfinite(far)) or count < 3:
        raise InputError(f"The planes lie from {near} to {far} ({count}); 0 < near < far, 3 planes were expected.")
    return np.linspace(1 / far, 1 / near, count).astype(np.float32)


def sweep(
    view: SweepView,
    neighbours: Sequence[SweepView],
    near: float,
    far: float,
    settings: SweepSettings = SweepSettings(),
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the depth of a view by correlation with its neighbours.

    Args:
        view: the view, at least 8x8 pixels.
        neighbours: one or more other views, of any size.
        near, far: depths of the nearest and the farthest plane.
        settings: of the sweep.
        device: torch device; on the CPU `torch.get_num_threads()` threads are used.

    Returns:
        ((H, W) float32 depth, 0 = unknown; (H, W) float32 correlation of the chosen plane, at most 1).

    Raises:
        InputError: there is no neighbour, or the depths are out of range.
    """
    if not neighbours:
        raise InputError("The photograph has no neighbour to compare it with.")
    inverse_depths = plane_inverse_depths(near, far, settings.planes)
    reference = np.rint(view.grey * sweep_numba.LEVELS).astype(np.int32)
    warps, offsets = warp_matrices(view, neighbours)
    images, sizes = _stacked([neighbour.grey for neighbour in neighbours])
    if torch.device(device).type != "cpu":
        from worldstereo_ros.reconstruction.sweep_torch import sweep_planes

        return sweep_planes(reference, images, sizes, warps, offsets, inverse_depths, settings, torch.device(device))
    height, width = reference.shape
    cost = np.empty((height, width, settings.planes), np.float32)
    threads = max(1, torch.get_num_threads())
    rows = split_range(height, threads)
    run_in_threads(
        sweep_numba.matching_cost,
        [(reference, images, sizes, warps, offsets, inverse_depths, cost, y0, y1) for y0, y1 in rows],
    )
    total = np.zeros_like(cost)
    numbers = tuple(np.float32(v) for v in (settings.p1, settings.p2, settings.p2_min, settings.contrast))
    levels = view.grey
    run_in_threads(sweep_numba.smooth_rows, [(cost, levels, *numbers, total, y0, y1) for y0, y1 in rows])
    columns = split_range(width, min(threads, max(1, width // MIN_COLUMNS)))
    run_in_threads(sweep_numba.smooth_columns, [(cost, levels, *numbers, total, x0, x1) for x0, x1 in columns])
    depth, score = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    least = np.float32(settings.min_score)
    run_in_threads(
        sweep_numba.best_planes, [(total, cost, inverse_depths, least, depth, score, y0, y1) for y0, y1 in rows]
    )
    return depth, score


def warp_matrices(view: SweepView, neighbours: Sequence[SweepView]) -> tuple[np.ndarray, np.ndarray]:
    """Homographies of the planes, neighbour pixel from pixel of the view: `warps` + inverse depth * `offsets`.

    Returns:
        ((N, 3, 3) float32 homographies of the plane at infinity, (N, 3) float32 added to their third column).
    """
    inverse = np.linalg.inv(view.camera.matrix)
    warps, offsets = [], []
    for neighbour in neighbours:
        relative = invert_pose(neighbour.world_from_camera) @ view.world_from_camera
        warps.append(neighbour.camera.matrix @ relative[:3, :3] @ inverse)
        offsets.append(neighbour.camera.matrix @ relative[:3, 3])
    return np.stack(warps).astype(np.float32), np.stack(offsets).astype(np.float32)


def _stacked(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) float32 images, each in the upper left, and (N, 2) int64 rows and columns of each."""
    sizes = np.array([image.shape for image in images], np.int64)
    stacked = np.zeros((len(images), *sizes.max(axis=0)), np.float32)
    for out, image in zip(stacked, images, strict=True):
        out[: image.shape[0], : image.shape[1]] = image
    return stacked, sizes


def cross_check(
    depth: np.ndarray,
    view: SweepView,
    others: Sequence[tuple[np.ndarray, SweepView]],
    *,
    needed: int = 2,
    tolerance: float = TOLERANCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the depths that other views confirm: their own depth of the same point is the same.

    Args:
        depth: (H, W) float32, 0 = unknown.
        view: where it was estimated.
        others: depth and view of other photographs.
        needed: number of views that have to agree.
        tolerance: largest relative difference of the depths.

    Returns:
        ((H, W) float32 mean of the depth and of those that confirm it, 0 elsewhere; (H, W) uint8 number of views that
        confirm it).
    """
    count, total = np.zeros(depth.shape, np.uint8), np.zeros(depth.shape, np.float32)
    camera = view.camera
    inverse = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy])
    bands = split_range(len(depth), max(1, torch.get_num_threads()))
    for other_depth, other in others:
        seen_by = np.array([other.camera.fx, other.camera.fy, other.camera.cx, other.camera.cy])
        relative = invert_pose(other.world_from_camera) @ view.world_from_camera
        shared = depth, inverse, other_depth, seen_by, relative, float(tolerance), count, total
        run_in_threads(sweep_numba.count_agreeing, [(*shared, y0, y1) for y0, y1 in bands])
    kept = count >= needed
    mean = (depth + total) / (1 + count.astype(np.float32))
    return np.where(kept, mean, np.float32(0)), np.where(kept, count, 0).astype(np.uint8)


def drop_small_regions(depth: np.ndarray, least: int, tolerance: float = TOLERANCE) -> np.ndarray:
    """Removes depths that no surface of some size around them supports.

    Correlation of texture that repeats, such as fur, is high at wrong depths too, and in both directions; but such
    depths differ from pixel to pixel, while those of a surface continue.

    Args:
        depth: (H, W) float32, 0 = unknown.
        least: pixels of a surface.
        tolerance: largest relative difference of neighbouring pixels of a surface.

    Returns:
        (H, W) float32, 0 in regions of fewer pixels.
    """
    known = depth > 0
    if least <= 1 or not known.any():
        return depth
    nearest = float(depth[known].min())
    steps = np.log(np.where(known, depth, nearest) / nearest) * (REGION_STEPS / np.log1p(tolerance))
    levels = np.where(known, np.minimum(np.rint(steps) + 1, np.iinfo(np.int16).max), 0).astype(np.int16)
    # It counts pixels of value 0 as unknown, and regions of up to as many pixels as speckles.
    cv2.filterSpeckles(levels, 0, least - 1, REGION_STEPS)
    return np.where(levels > 0, depth, np.float32(0))
