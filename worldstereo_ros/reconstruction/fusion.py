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


def fuse(
    views: Sequence[View], *, device: str = "cpu", on_progress: Callable[[int, int], None] | None = None
) -> tuple[CloudMemory, ViewBank]:
    """Fuses views into memories.

    What was observed comes first, from all views, so that estimated depth of one view leaves no second surface beside
    what another one observed.

    Args:
        views: views with depth.
        device: where the cloud is rendered.
        on_progress: called with the number of steps that are done, and of all.

    Raises:
        InputError: no view has depth.
    """
    progress = on_progress or (lambda done, of: None)
    count = len(views)
    cloud = CloudMemory(voxel_size=voxel_size(views), carve=False)
    bank = ViewBank(min(MAX_VIEWS, max(64, count)), max_bytes=max(DEFAULT_BYTES, MAX_BANK_BYTES))
    for row, view in enumerate(views):
        assert view.depth is not None
        if (observed := (view.depth > 0) & ~view.estimated_mask).any():
            depth = np.where(observed, view.depth, np.float32(0))
            cloud.insert(replace(view, depth=depth, estimated=None, depth_confidence=None))
        bank.add(view)
        progress(row + 1, 2 * count)
    for row, view in enumerate(views):
        assert view.depth is not None
        if (estimated := (view.depth > 0) & view.estimated_mask).any():
            everywhere = np.ones_like(estimated)
            depth = np.where(estimated, view.depth, np.float32(0))
            insert_estimated(cloud, replace(view, depth=depth, estimated=everywhere), device)
        progress(count + row + 1, 2 * count)
    return cloud, bank


def voxel_size(views: Sequence[View]) -> float:
    """Edge of a voxel: the size of a pixel at the median depth, in the unit of the poses.

    Raises:
        InputError: no view has depth.
    """
    sizes, reach = [], 0.0
    for view in views:
        assert view.depth is not None
        known = view.depth[view.depth > 0]
        if len(known):
            sample = known[:: max(1, len(known) // SAMPLES)]
            sizes.append(float(np.median(sample)) / view.camera.fx)
            reach = max(reach, float(np.abs(view.world_from_camera[:3, 3]).max()) + 2 * float(sample.max()))
    if not sizes:
        raise InputError(
            "No photograph has depth that others confirm: nothing but poses could be reconstructed. Take more "
            "photographs of the same place, from positions a step apart."
        )
    return max(float(np.median(sizes)) * VOXEL_PIXELS, reach / MAX_RADIUS)
