"""Parts of a result: tied to each other by similarities, joined, selected, and brought to the scale of odometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity, mean_rotation
from worldstereo_ros.pipelines.pointmaps.estimate import scale_by_odometry, scaled
from worldstereo_ros.pipelines.pointmaps.types import GUESS, Pointmaps

MIN_TIED_FRAMES = 2  # of the overlap whose poses both windows found
MAX_TIE_PIXELS = 20_000
MIN_TIE_CONFIDENCE = 0.05


def tie_windows(before: Pointmaps, now: Pointmaps) -> Similarity | None:
    """Similarity from a window's world to that of the one before, by the frames that both have.

    The scale is the median ratio of depths, weighted by confidence; it is 1 where something measured it. Rotation and
    translation are means over the poses.

    Returns:
        None where fewer than `MIN_TIED_FRAMES` poses are known in both.
    """
    both = before.frame_ok & now.frame_ok
    if both.sum() < MIN_TIED_FRAMES:
        return None
    scale = 1.0
    if not (before.metric and now.metric):
        ratios, weights = [], []
        old, new = before.depth, now.depth
        for f in np.flatnonzero(both):
            usable = before.valid[f] & now.valid[f] & ~before.dynamic[f] & ~now.dynamic[f]
            rows = np.flatnonzero(usable)[:: max(1, int(usable.sum()) // MAX_TIE_PIXELS)]
            ratios.append(np.log(old[f].ravel()[rows] / new[f].ravel()[rows]))
            weights.append(np.minimum(before.confidence[f].ravel()[rows], now.confidence[f].ravel()[rows]))
        joined, weight = np.concatenate(ratios), np.maximum(np.concatenate(weights), MIN_TIE_CONFIDENCE)
        if len(joined):
            order = np.argsort(joined)
            at = int(np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum()))
            scale = float(np.exp(joined[order][min(at, len(joined) - 1)]))
    rotation = mean_rotation(before.poses[both, :3, :3] @ np.swapaxes(now.poses[both, :3, :3], 1, 2))
    shift = (before.poses[both, :3, 3] - scale * now.poses[both, :3, 3] @ rotation.T).mean(axis=0)
    return Similarity(scale, rotation, shift)


def select(maps: Pointmaps, frames: slice | np.ndarray) -> Pointmaps:
    """Some of the frames."""
    names = ("points", "confidence", "valid", "dynamic", "poses", "frame_ok", "shot", "pose_covariance")
    return replace(maps, **{name: getattr(maps, name)[frames] for name in names})


def moved_by(maps: Pointmaps, similarity: Similarity) -> Pointmaps:
    """Point maps in another world and unit."""
    grown = maps if similarity.scale == 1 else scaled(maps, similarity.scale, maps.scale_from)
    rigid = Similarity(1.0, similarity.rotation, similarity.translation)
    points = grown.points @ rigid.rotation.T.astype(np.float32) + rigid.translation.astype(np.float32)
    return replace(grown, points=points, poses=rigid.poses(grown.poses))


def without(maps: Pointmaps, frames: np.ndarray, reason: str) -> Pointmaps:
    """Point maps without those of some frames."""
    off = frames[:, None, None]
    return replace(
        maps,
        points=np.where(off[..., None], np.float32(np.nan), maps.points),
        confidence=np.where(off, np.float32(0), maps.confidence),
        valid=maps.valid & ~off,
        dynamic=maps.dynamic & ~off,
        frame_ok=maps.frame_ok & ~frames,
        messages=(*(maps.messages if len(maps) > 1 else ()), reason),
    )


def join(parts: Sequence[Pointmaps]) -> Pointmaps:
    """One result from those of consecutive frames, with a sentence about frames that were lost."""
    names = ("points", "confidence", "valid", "dynamic", "poses", "frame_ok", "shot", "pose_covariance")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    messages = [text for part in parts for text in part.messages]
    found = joined["frame_ok"]
    if not found.all():
        lost = np.flatnonzero(~found)
        listed = ", ".join(str(f) for f in lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        messages.append(f"The pose of {len(lost)} of {len(found)} frames was not found: {listed}.")
    if (shots := int(joined["shot"].max()) + 1) > 1:
        starts = np.flatnonzero(np.diff(joined["shot"])) + 1
        where = ", ".join(map(str, starts))
        messages.append(f"There are {shots} shots, each in a world of its own; new ones begin at frames {where}.")
    metric = all(part.metric for part in parts)
    scale_from = parts[0].scale_from if metric else GUESS
    if not metric:
        messages.append(
            "Lengths are a guess of the depth network: nothing that measures them was given (metric: false)."
        )
    return replace(parts[0], **joined, messages=tuple(dict.fromkeys(messages)), scale_from=scale_from)


def with_odometry(maps: Pointmaps, odometry: np.ndarray) -> Pointmaps:
    """Point maps of the scale of odometry of the same times, shot by shot.

    If one shot has too little motion to tell its scale, all stay as they are, with a sentence.
    """
    factors = {}
    for shot in np.unique(maps.shot):
        rows = (maps.shot == shot) & maps.frame_ok
        factors[shot] = scale_by_odometry(maps.poses[rows], odometry[rows])
    if any(factor is None for factor in factors.values()):
        return replace(maps, messages=(*maps.messages, "The odometry moves too little to tell the scale."))
    parts = [scaled(select(maps, maps.shot == shot), factor) for shot, factor in factors.items() if factor is not None]
    messages = tuple(text for text in maps.messages if "metric: false" not in text)
    return replace(join(parts), messages=messages)
