"""Fuses the views of a reconstruction into the memories of the world model: the cloud and the bank of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worldstereo_ros.depth.estimated_views import insert_estimated
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.bank import DEFAULT_BYTES, MAX_VIEWS, ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.utils.errors import InputError

VOXEL_PIXELS = 1.0  # edge of a voxel in pixels at the median depth
MAX_BANK_BYTES = 2 * 10**9
SAMPLES = 4096  # of the depth of each view
MAX_RADIUS = 900_000  # voxels from the origin, which the cloud's keys reach
MAX_POINTS = 20_000_000  # 2 GB; a cloud of more gets larger voxels
GROWTH = 1.3  # of the voxels of a cloud that does not hold all


def fuse(
    views: Sequence[View],
    *,
    device: str = "cpu",
    max_points: int = MAX_POINTS,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[CloudMemory, ViewBank]:
    """Fuses views into memories.

    What was observed comes first, from all views, so that estimated depth of one view leaves no second surface beside
    what another one observed. Where the points of all views are more than the cloud holds, its voxels grow until they
    fit: none is forgotten for another.

    Args:
        views: views with depth.
        device: where the cloud is rendered.
        max_points: largest number of points.
        on_progress: called with the number of steps that are done, and of all.
        on_note: called with sentences about what did not fit.

    Raises:
        InputError: no view has depth.
    """
    progress = on_progress or (lambda done, of: None)
    smallest, known = _survey(views)
    size, note = smallest, on_note or (lambda sentence: None)
    while (cloud := _fused_cloud(views, size, min(max_points, max(known, 1)), device, progress)) is None:
        size *= GROWTH
    if size > smallest:
        note(
            f"The cloud has voxels of {size / smallest:.1f} pixels instead of one, so that the points of all "
            f"{len(views)} photographs fit into {max_points:,}."
        )
    count = len(views)
    bank = ViewBank(min(MAX_VIEWS, max(64, count)), max_bytes=max(DEFAULT_BYTES, MAX_BANK_BYTES))
    for view in views:
        bank.add(view)
    if len(bank) < count:
        note(
            f"The map holds the images of {len(bank)} of the {count} photographs, which are as many as fit into "
            f"{MAX_BANK_BYTES / 1e9:g} GB; the cloud is made of all. A smaller --size keeps more."
        )
    return cloud, bank


def _fused_cloud(
    views: Sequence[View], size: float, max_points: int, device: str, progress: Callable[[int, int], None]
) -> CloudMemory | None:
    """The cloud of all views with voxels of a size; None if it holds too few points for them."""
    count, cloud = len(views), CloudMemory(voxel_size=size, max_points=max_points, carve=False)
    for row, view in enumerate(views):
        assert view.depth is not None
        if (observed := (view.depth > 0) & ~view.estimated_mask).any():
            depth = np.where(observed, view.depth, np.float32(0))
            report = cloud.insert(replace(view, depth=depth, estimated=None, depth_confidence=None))
            if report.evicted or report.dropped:
                return None
        progress(row + 1, 2 * count)
    for row, view in enumerate(views):
        assert view.depth is not None
        if (estimated := (view.depth > 0) & view.estimated_mask).any():
            everywhere = np.ones_like(estimated)
            depth = np.where(estimated, view.depth, np.float32(0))
            report = insert_estimated(cloud, replace(view, depth=depth, estimated=everywhere), device)
            if report.evicted or report.dropped:
                return None
        progress(count + row + 1, 2 * count)
    return cloud


def voxel_size(views: Sequence[View]) -> float:
    """Edge of a voxel: the size of a pixel at the median depth, in the unit of the poses.

    Raises:
        InputError: no view has depth.
    """
    return _survey(views)[0]


def _survey(views: Sequence[View]) -> tuple[float, int]:
    """(edge of a voxel, number of pixels with depth). Raises InputError if no view has depth."""
    sizes, reach, count = [], 0.0, 0
    for view in views:
        assert view.depth is not None
        known = view.depth[view.depth > 0]
        count += len(known)
        if len(known):
            sample = known[:: max(1, len(known) // SAMPLES)]
            sizes.append(float(np.median(sample)) / view.camera.fx)
            reach = max(reach, float(np.abs(view.world_from_camera[:3, 3]).max()) + 2 * float(sample.max()))
    if not sizes:
        raise InputError(
            "No photograph has depth that others confirm: nothing but poses could be reconstructed. Take more "
            "photographs of the same place, from positions a step apart."
        )
    return max(float(np.median(sizes)) * VOXEL_PIXELS, reach / MAX_RADIUS), count
