"""Captures: which photographs a chunk of targets gets as its context.

By visibility, as in the paper: a capture scores the share of the visible points that it saw, with occlusion. As
published, the code counts the points of every capture that lie in the picture, hidden ones as well; see
`published_retrieval.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.view_overlap import near_identical
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO, MIN_DEPTH_M
from worldstereo_ros.pipelines.anyrecon.sequence import MAX_CAPTURES

GRID_SIZE = 40  # points across and down that are looked up in every capture


@dataclass(frozen=True)
class CaptureSelection:
    """The captures of a chunk.

    Attributes:
        indices: their indices, ascending; the first is the one that CLIP sees.
        shares: (F, C) share of the visible points of each target that each of all captures saw, 0..1.
    """

    indices: list[int]
    shares: np.ndarray


def select_captures(
    captures: Sequence[View],
    depth: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    limit: int = MAX_CAPTURES,
) -> CaptureSelection:
    """Selects the captures that saw most of what the targets show.

    Of captures from nearly the same pose only the best is selected. If none saw anything, the one nearest to the
    first target is selected, so that there is always a picture to start from.

    Args:
        captures: all captures.
        depth: (F, H, W) float32 depth of the targets rendered from memory, 0 = none.
        camera: camera of the targets.
        world_from_camera: (F, 4, 4) poses of the targets.
        limit: maximum number of captures.

    Returns:
        The selection; empty without captures.
    """
    if not captures:
        return CaptureSelection([], np.zeros((len(depth), 0)))
    shares = visible_shares(captures, depth, camera, world_from_camera)
    chosen = _best(captures, shares.sum(axis=0), limit)
    if not chosen:
        centres = np.stack([view.world_from_camera[:3, 3] for view in captures])
        chosen = [int(np.linalg.norm(centres - world_from_camera[0, :3, 3], axis=1).argmin())]
    return CaptureSelection(sorted(chosen), shares)


def captures_of_targets(captures: Sequence[View], shares: np.ndarray, *, limit: int = MAX_CAPTURES) -> list[int]:
    """The captures that saw most of each target by itself, for pipelines that choose among captures target by target.

    Args:
        captures: all captures.
        shares: (F, C) of `CaptureSelection`.
        limit: maximum number of captures of one target.

    Returns:
        Their indices, ascending.
    """
    return sorted({index for row in shares for index in _best(captures, row, limit)})


def _best(captures: Sequence[View], score: np.ndarray, limit: int) -> list[int]:
    """Indices of at most `limit` captures with the highest scores above 0, the best of those from nearly one pose."""
    available = score > 0
    chosen: list[int] = []
    while available.any() and len(chosen) < limit:
        best = int(np.where(available, score, -1).argmax())
        chosen.append(best)
        available[best] = False
        if captures[best].metric:  # "nearly the same pose" is in metres
            available &= ~near_identical(captures[best], list(captures))
    return chosen


def visible_shares(
    captures: Sequence[View], depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray
) -> np.ndarray:
    """Share of the visible points of each target that each capture saw.

    A point is seen by a capture if it lies in its picture at the depth that was measured there. A capture without
    depth at that pixel counts as if nothing were in front.

    Args:
        captures, depth, camera, world_from_camera: see `select_captures`.

    Returns:
        (F, C) float64 in 0..1; 0 for targets that show nothing.
    """
    rows = np.unique(np.linspace(0, camera.height - 1, min(GRID_SIZE, camera.height)).round().astype(np.int64))
    columns = np.unique(np.linspace(0, camera.width - 1, min(GRID_SIZE, camera.width)).round().astype(np.int64))
    rays = camera.rays()[np.ix_(rows, columns)].astype(np.float64)
    shares = np.zeros((len(depth), len(captures)))
    for frame, pose in enumerate(world_from_camera):
        distance = np.asarray(depth[frame][np.ix_(rows, columns)], np.float64)
        seen = distance > 0
        if not seen.any():
            continue
        points = (rays[seen] * distance[seen][:, None]) @ pose[:3, :3].T + pose[:3, 3]
        for index, view in enumerate(captures):
            shares[frame, index] = _saw(view, points).mean()
    return shares


def _saw(view: View, points: np.ndarray) -> np.ndarray:
    """(N,) bool, whether a capture saw each point."""
    uv, z = project(points, view.camera, view.world_from_camera)
    nearest = MIN_DEPTH_M if view.metric else 0.0
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > nearest) & (u >= 0) & (v >= 0) & (u < view.camera.width) & (v < view.camera.height)
    if view.depth is None:
        return inside
    measured = view.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
    z = z[inside]
    tolerance = DEPTH_TOLERANCE_RATIO * z + (DEPTH_TOLERANCE_M if view.metric else 0)
    saw = np.zeros(len(points), bool)
    saw[inside] = (measured == 0) | (np.abs(measured - z) <= tolerance)
    return saw
