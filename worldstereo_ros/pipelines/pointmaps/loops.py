"""Loop closure: places that are seen again, and the path that fits them.

Keyframes are retrieved by the image feature of the view bank and verified (`keyframes.verify_loop`). A place that looks
the same altogether is refused where the drift of the path cannot explain it (`pose_graph.close_loops`). Then shots that
show one place are joined (`joining`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import rotation_angles
from worldstereo_ros.pipelines.pointmaps.joining import join_shots
from worldstereo_ros.pipelines.pointmaps.keyframes import (
    CANDIDATES,
    MIN_LIKENESS,
    MIN_MATCHES,
    Keyframe,
    Loop,
    make_keyframe,
    place,
    unit,
    verify_loop,
)
from worldstereo_ros.pipelines.pointmaps.pose_graph import (
    Edges,
    Similarities,
    chain_edges,
    close_loops,
    interpolate,
)
from worldstereo_ros.pipelines.pointmaps.tracks import match_rows
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_POSES, Pointmaps

KEYFRAME_STEP = 4  # frames between keyframes, at first
MAX_KEYFRAMES = 600  # where there are more, every other one is dropped and the step doubles
MIN_GAP = 30  # frames between two that may close a loop: about two windows
MAX_LOOPS = 24
# Standard deviations of a loop, and of the chain between keyframes; the latter are those of worlds' walks, generously.
LOOP_SIGMA = (0.02, 0.04, 0.08)  # radians, median depths, logarithm
CHAIN_TURN, CHAIN_SHIFT, CHAIN_LENGTH, CHAIN_SCALE = 0.01, 0.006, 0.05, 0.04  # depths; share of the step
WEAK_LINK = np.array([0.05, 0.1, 0.5])  # of the chain where nothing of two keyframes can be matched
MEASURED_SCALE = 0.002
DRIFT_QUANTILE = 0.999


@dataclass(frozen=True)
class Closure:
    """The path with its loops closed, and shots of one place joined.

    Attributes:
        poses: (F, 4, 4) of all frames.
        scale: (F,) factor of the unit of each frame's depth.
        loops: those that were used.
        refused: number of candidates that looked right and were refused, since the path's drift does not explain them.
        shots: (F,) shot of each frame after joining.
        joined: a sentence about shots that were joined; empty without any.
    """

    poses: np.ndarray
    scale: np.ndarray
    loops: tuple[Loop, ...] = ()
    refused: int = 0
    shots: np.ndarray | None = None
    joined: str = ""

    @property
    def message(self) -> str:
        """Sentences about loops and shots; empty without any."""
        parts = [self.joined] if self.joined else []
        if self.loops:
            shown = ", ".join(f"{loop.first} and {loop.second}" for loop in self.loops[:3])
            more = f" and {len(self.loops) - 3} more pairs" if len(self.loops) > 3 else ""
            parts.append(f"Places were seen again (frames {shown}{more}): the path is corrected by them.")
        if self.refused:
            parts.append(
                f"{self.refused} pairs of frames look alike, but the path cannot have drifted so far: they are not "
                "taken for one place."
            )
        return " ".join(parts)


class LoopCloser:
    """Collects keyframes while point maps come, and closes loops at the end."""

    def __init__(self) -> None:
        self.keyframes: list[Keyframe] = []
        self._step = KEYFRAME_STEP
        self._poses: list[np.ndarray] = []
        self._shots: list[int] = []
        self._given = False

    def add(self, maps: Pointmaps, images: Sequence[np.ndarray]) -> None:
        """Takes the point maps of the next frames, and their images (H, W, 3) uint8 of any size."""
        self._given |= maps.scale_from == GIVEN_POSES
        depth: np.ndarray | None = None
        for f, image in enumerate(images):
            frame = len(self._poses)
            self._poses.append(maps.poses[f])
            self._shots.append(int(maps.shot[f]))
            if self._given or frame % self._step or not maps.frame_ok[f]:
                continue
            if depth is None:
                depth = np.where(maps.dynamic, np.float32(0), maps.depth)
            self.keyframes.append(make_keyframe(image, depth[f], maps, f, frame))
        if len(self.keyframes) > MAX_KEYFRAMES:
            self._step *= 2
            self.keyframes = [each for each in self.keyframes if each.frame % self._step == 0]

    def close(self) -> Closure:
        """The corrected path; that of the start where no place is seen again or the poses were given."""
        poses = np.stack(self._poses) if self._poses else np.zeros((0, 4, 4))
        scale, refused = np.ones(len(poses)), 0
        used: list[Loop] = []
        shots = np.array(self._shots)
        for shot in np.unique(shots):
            keyframes = [each for each in self.keyframes if each.shot == shot]
            found = find_loops(keyframes)
            if not found:
                continue
            frames = np.flatnonzero(shots == shot)
            closed = _closed(keyframes, found, poses[frames], frames)
            poses[frames], scale[frames] = closed.poses, closed.scale
            used += closed.loops
            refused += closed.refused
        joined = join_shots(self.keyframes, poses, scale, shots)
        return Closure(joined.poses, joined.scale, tuple(used), refused, joined.shots, joined.message)


def find_loops(keyframes: Sequence[Keyframe]) -> list[Loop]:
    """Verified loops among the keyframes of one shot, the surest first."""
    if len(keyframes) < 2:
        return []
    features = np.stack([each.feature for each in keyframes])
    numbers = np.array([each.frame for each in keyframes])
    likeness = features @ features.T
    likeness[np.abs(numbers[:, None] - numbers[None]) < MIN_GAP] = -1
    pairs: set[tuple[int, int]] = set()
    for row in range(len(keyframes)):
        for column in np.argsort(-likeness[row])[:CANDIDATES]:
            if likeness[row, column] >= MIN_LIKENESS:
                pairs.add((min(row, int(column)), max(row, int(column))))
    found = [verify_loop(keyframes[a], keyframes[b]) for a, b in sorted(pairs)]
    loops = sorted((loop for loop in found if loop is not None), key=lambda loop: -loop.inliers)
    kept: list[Loop] = []
    for loop in loops:  # of two that tell the same, the surer one
        if all(abs(loop.first - o.first) + abs(loop.second - o.second) > KEYFRAME_STEP for o in kept):
            kept.append(loop)
    return kept[:MAX_LOOPS]


def _closed(keyframes: Sequence[Keyframe], loops: Sequence[Loop], poses: np.ndarray, frames: np.ndarray) -> Closure:
    """The frames of one shot after its loops are closed."""
    at = np.array([each.frame for each in keyframes])
    start = Similarities.of_poses(np.stack([each.pose for each in keyframes]))
    depth = np.array([each.median_depth for each in keyframes])
    measured = all(each.measured for each in keyframes)
    sigma = np.stack([link_sigma(a, b, measured) for a, b in itertools.pairwise(keyframes)])
    rows = {frame: row for row, frame in enumerate(at.tolist())}
    first = np.array([rows[loop.first] for loop in loops])
    relative = Similarities.of([loop.relative for loop in loops])
    turn, shift, grown = LOOP_SIGMA
    grown = MEASURED_SCALE if measured else grown
    loop_sigma = np.stack([np.full(len(loops), turn), shift * depth[first], np.full(len(loops), grown)], axis=1)
    edges = Edges(first, np.array([rows[loop.second] for loop in loops]), relative, loop_sigma)
    nodes, used_rows = close_loops(start, chain_edges(start, sigma), edges, DRIFT_QUANTILE)
    kept = tuple(loop for loop, good in zip(loops, used_rows, strict=True) if good)
    if not kept:
        return Closure(poses, np.ones(len(poses)), (), len(loops))
    moved, scale = interpolate(nodes, start, at, poses, frames)
    return Closure(moved, scale, kept, int((~used_rows).sum()))


def link_sigma(one: Keyframe, two: Keyframe, measured: bool) -> np.ndarray:
    """(3,) standard deviations of the way from one keyframe to the next, see `Edges`.

    The two are placed anew by their descriptors and depth maps: where this contradicts the path, or nothing can be
    matched, the path may have lost its scale there.
    """
    way = invert_pose(one.pose) @ two.pose
    depth, length = one.median_depth, float(np.linalg.norm(way[:3, 3]))
    spread = np.sqrt((two.frame - one.frame) / KEYFRAME_STEP)  # of a random walk
    base = np.array([CHAIN_TURN, CHAIN_SHIFT * depth, CHAIN_SCALE]) * spread
    base[1] = np.hypot(base[1], CHAIN_LENGTH * length)
    rows, others = match_rows(unit(one.descriptors), unit(two.descriptors))
    contradiction = WEAK_LINK * [1, depth, 1]
    for first, second, a, b, wanted in (
        (one, two, rows, others, way),
        (two, one, others, rows, invert_pose(way)),
    ):
        found = place(first, second, a, b) if len(a) >= MIN_MATCHES else None
        if found is not None:
            relative, _ = found
            shift = float(np.linalg.norm(relative.translation - wanted[:3, 3]))
            turn = float(rotation_angles(relative.rotation, wanted[:3, :3]))
            contradiction = np.minimum(contradiction, [turn, shift, abs(np.log(relative.scale))])
    sigma = np.hypot(base, contradiction)
    if measured:
        sigma[2] = MEASURED_SCALE * spread
    return sigma


def apply_closure(maps: Pointmaps, closure: Closure) -> Pointmaps:
    """Point maps of all frames with their loops closed and shots of one place joined."""
    if not closure.loops and not closure.joined:
        return maps if not closure.message else replace(maps, messages=(*maps.messages, closure.message))
    points = np.empty_like(maps.points)
    covariance = maps.pose_covariance.copy()
    for f in range(len(maps)):
        old, new, scale = maps.poses[f], closure.poses[f], closure.scale[f]
        turn = (scale * new[:3, :3] @ old[:3, :3].T).astype(np.float32)
        points[f] = (maps.points[f] - old[:3, 3].astype(np.float32)) @ turn.T + new[:3, 3].astype(np.float32)
        covariance[f, :3] *= scale
        covariance[f, :, :3] *= scale
    return replace(
        maps, points=points, poses=closure.poses.copy(), pose_covariance=covariance,
        shot=maps.shot if closure.shots is None else closure.shots, messages=(*maps.messages, closure.message),
    )  # fmt: skip
