"""Moves the memories with a path that was corrected: every point and view as the camera of its time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldstereo_ros.geometry.path_correction import PathCorrection
from worldstereo_ros.memory._lift_numba import HALF_RANGE
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.utils.errors import InputError


def move_memories(cloud: CloudMemory, bank: ViewBank, correction: PathCorrection) -> None:
    """Moves all points and views by the times at which they were seen last; nothing is forgotten.

    A point that several views fused moves with the newest of them. Two copies of a surface, seen before and after a
    loop, become one where the correction brings them into one voxel. Imagined points and views have the time of the
    observation that they are based on.

    Args:
        cloud, bank: memories; changed in place.
        correction: from their world to the corrected one, by stamps of observations.

    Raises:
        InputError: a point would lie beyond the range of the cloud. The memories are unchanged.
    """
    columns = {}
    if len(cloud):
        # Oldest first, so that what was updated last is still evicted last.
        order = np.argsort(cloud.stamp_ns, kind="stable")
        names = ("points", "colours", "provenance", "weight", "stamp_ns", "spacing", "confidence", "depth_confidence")
        columns = {name: getattr(cloud, name)[order] for name in names}
        columns["points"], scale = correction.points(columns["points"], columns["stamp_ns"])
        columns["spacing"] = columns["spacing"] * scale
        if not np.abs(columns["points"]).max() < cloud.voxel_size * (HALF_RANGE - 1):
            raise InputError("The corrected path leads beyond the range of voxels; the memories stay as they are.")
    views = []
    for view in bank.views:
        pose, factor = correction.pose(view.world_from_camera, view.stamp_ns)
        depth = None if view.depth is None else view.depth * np.float32(factor)
        views.append(replace(view, world_from_camera=pose, depth=depth))
    # Nothing below raises.
    if columns:
        cloud.clear()
        cloud.insert_points(**columns)
    for index, view in enumerate(views):
        bank.replace(index, view)
