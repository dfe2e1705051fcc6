"""Joins shots that show one place: after a cut the path continues in the world of the shot before.

Unlike a loop within a shot, nothing says how far the camera can have moved meanwhile. Several pairs of keyframes must
therefore place one shot in the other alike. Two places that look the same from several views would still be joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity, rotation_angles
from worldstereo_ros.pipelines.pointmaps.keyframes import (
    CANDIDATES,
    MAX_SCALE,
    MAX_SHIFT_DEPTHS,
    MAX_TURN_RAD,
    MIN_LIKENESS,
    Keyframe,
    Loop,
    verify_loop,
)

MIN_AGREEING = 2  # pairs of keyframes, with two different ones of both shots
MAX_PAIRS = 40  # of two shots that are compared in full


@dataclass(frozen=True)
class Joined:
    """Shots that were joined.

    Attributes:
        poses: (F, 4, 4) of all frames.
        scale: (F,) factor of the unit of each frame's depth.
        shots: (F,) shot of each frame; joined ones have the number of the longest of them.
        pairs: (shot, shot that it was joined to), in the order in which they were joined.
    """

    poses: np.ndarray
    scale: np.ndarray
    shots: np.ndarray
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def message(self) -> str:
        """A sentence about the shots; empty where none were joined."""
        shown = ", ".join(f"{one} to {two}" for one, two in self.pairs[:3])
        more = f" and {len(self.pairs) - 3} more" if len(self.pairs) > 3 else ""
        return f"Shots that show one place were joined ({shown}{more})." if self.pairs else ""


def join_shots(keyframes: Sequence[Keyframe], poses: np.ndarray, scale: np.ndarray, shots: np.ndarray) -> Joined:
    """Moves shots to the world of the longest shot that shows the same place.

    Args:
        keyframes: of all shots.
        poses: (F, 4, 4) world_from_camera of all frames, in the worlds of their shots.
        scale: (F,) factor of the unit of each frame's depth.
        shots: (F,) numbers.
    """
    poses, scale, shots = poses.copy(), scale.copy(), shots.copy()
    numbers, counts = np.unique(shots, return_counts=True)
    waiting = [int(number) for number in numbers[np.argsort(-counts, kind="stable")]]
    own = {number: [each for each in keyframes if each.shot == number] for number in waiting}
    pairs: list[tuple[int, int]] = []
    while waiting:
        root = waiting.pop(0)
        group, grown = [root], True
        while grown:
            grown = False
            for shot in list(waiting):
                for other in group:
                    moved = place_shot(own[other], own[shot], poses, scale)
                    if moved is None:
                        continue
                    rows = shots == shot
                    poses[rows] = moved.similarity.poses(poses[rows])
                    scale[rows] *= moved.similarity.scale
                    shots[rows] = root
                    pairs.append((shot, other))
                    group.append(shot)
                    waiting.remove(shot)
                    grown = True
                    break
    return Joined(poses, scale, shots, tuple(pairs))


@dataclass(frozen=True)
class Placement:
    """Where a shot is in the world of another one.

    Attributes:
        similarity: from the world of the shot to that of the other one.
        pair: the two keyframes that say it best; the first is of the other shot.
    """

    similarity: Similarity
    pair: Loop


def place_shot(
    target: Sequence[Keyframe],
    source: Sequence[Keyframe],
    poses: np.ndarray | Mapping[int, np.ndarray],
    scale: np.ndarray | Mapping[int, float],
    verify: Callable[[Keyframe, Keyframe], Loop | None] = verify_loop,
) -> Placement | None:
    """Where the world of one shot is in that of another; None unless several pairs of keyframes say it.

    Args:
        target, source: keyframes of the shots.
        poses, scale: of all frames, by their numbers.
        verify: tells whether two keyframes show one place, and how they lie.
    """
    found: list[tuple[Keyframe, Keyframe, Similarity, Loop]] = []
    for one, two in _candidates(target, source):
        loop = verify(one, two)
        if loop is not None:
            world = _similarity(one, poses, scale).after(loop.relative)
            found.append((one, two, world.after(_similarity(two, poses, scale).inverse()), loop))
    best: tuple[int, int, Placement] | None = None
    for one, two, world, loop in found:
        alike = [(a, b) for a, b, other, _ in found if _agree(world, other, one, two, poses, scale)]
        votes = min(len({a.frame for a, _ in alike}), len({b.frame for _, b in alike}))
        if votes >= MIN_AGREEING and (best is None or (votes, loop.inliers) > best[:2]):
            best = votes, loop.inliers, Placement(world, loop)
    return None if best is None else best[2]


def _candidates(target: Sequence[Keyframe], source: Sequence[Keyframe]) -> list[tuple[Keyframe, Keyframe]]:
    """Pairs whose images are alike, the most alike first."""
    if not target or not source:
        return []
    likeness = np.stack([each.feature for each in target]) @ np.stack([each.feature for each in source]).T
    pairs = {
        (int(row), column)
        for column in range(len(source))
        for row in np.argsort(-likeness[:, column])[:CANDIDATES]
        if likeness[row, column] >= MIN_LIKENESS
    }
    order = sorted(pairs, key=lambda pair: (-likeness[pair], pair))
    return [(target[row], source[column]) for row, column in order[:MAX_PAIRS]]


def _similarity(
    keyframe: Keyframe, poses: np.ndarray | Mapping[int, np.ndarray], scale: np.ndarray | Mapping[int, float]
) -> Similarity:
    """From a keyframe's axes, in the unit that its depth had, to the world."""
    pose = poses[keyframe.frame]
    return Similarity(float(scale[keyframe.frame]), pose[:3, :3], pose[:3, 3])


def _agree(
    one: Similarity,
    two: Similarity,
    target: Keyframe,
    source: Keyframe,
    poses: np.ndarray | Mapping[int, np.ndarray],
    scale: np.ndarray | Mapping[int, float],
) -> bool:
    """Whether two similarities place a keyframe alike."""
    pose = poses[source.frame]
    first, second = one.poses(pose), two.poses(pose)
    unit = target.median_depth * float(scale[target.frame])
    return bool(
        rotation_angles(first[:3, :3], second[:3, :3]) < MAX_TURN_RAD
        and np.linalg.norm(first[:3, 3] - second[:3, 3]) < MAX_SHIFT_DEPTHS * unit
        and abs(np.log(one.scale / two.scale)) < MAX_SCALE
    )
