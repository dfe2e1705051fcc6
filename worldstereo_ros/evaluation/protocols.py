"""Evaluation protocols: which views of a sequence are observed, and which are imagined and evaluated.

docs/benchmarks/evaluation.md has a table of the protocols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.evaluation.world_sequences import PosedSequence, WorldSequence, world_panorama
from worldstereo_ros.geometry.poses import estimate_up_direction, heading, interpolate_poses
from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.imagine import ring_order, seam_joint
from worldstereo_ros.panorama.perspective_views import (
    observation_camera,
    observation_poses,
    panorama_views,
    pose_from_angles,
    rings,
)
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices

PROTOCOLS = ("single", "sparse", "mono", "revisit", "loop", "panorama", "cloud")
SPARSE_VIEWS = 5
REVISIT_VIEWS = 6  # on the way out, and as many on the way back
REVISIT_LENGTH_M = 1.0  # approximate length of the way out
LOOP_VIEWS = 12  # on the way out, of the turn, and on the way back
LOOP_LENGTH_M = 1.5  # approximate length of the way out
PANORAMA_DISTANCE_M = 1.0  # approximate distance between the observed and the imagined panorama
PANORAMA_HEIGHT_PX = 512  # of the observed panorama
RING_ORDER = "round"  # in which the views of a ring are imagined


@dataclass(frozen=True)
class Scenario:
    """One sequence under one protocol.

    Attributes:
        observed_views: views that the pipeline is given, in order; without depth in the protocol mono.
        target_views: ground truth, one view for each evaluated pose of `path`.
        path: (F, 4, 4) world_from_camera of the views to imagine.
        evaluated: indices into `path`, one for each of `target_views`.
        remember: whether imagined views are added to memory.
        cuts: indices into `path` at which a new call to the pipeline begins. Views of one clip agree without memory;
            those of different calls agree through memory alone.
        pairs: (first, second) indices into `path` of the same pose on the way out and on the way back.
        ring: indices into `path` of the views of one full turn, in order.
        seam: the joint of the ring that closes the turn: that of view `ring[seam]` with the next one.
        true_views: the observed views with their depth, if the protocol withholds it; otherwise empty.
    """

    observed_views: list[View]
    target_views: PosedSequence
    path: np.ndarray
    evaluated: list[int]
    remember: bool = False
    cuts: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    ring: tuple[int, ...] = ()
    seam: int = -1
    true_views: tuple[View, ...] = ()

    @property
    def views_with_depth(self) -> list[View]:
        """The observed views with their depth, also if the protocol withholds it from the pipeline."""
        return list(self.true_views) or self.observed_views

    @property
    def legs(self) -> list[np.ndarray]:
        """(F, 4, 4) poses of each call to the pipeline."""
        return np.split(self.path, self.cuts)


def repeated(scenario: Scenario, times: int) -> Scenario:
    """The same views requested several times, each time remembered; those of the last time are evaluated.

    Args:
        scenario: any.
        times: number of requests; each is a call of its own.
    """
    count = len(scenario.path)
    first = (times - 1) * count  # of the last request
    starts = [request * count for request in range(times)]
    cuts = [start + cut for start in starts for cut in ((0, *scenario.cuts) if start else scenario.cuts)]
    return replace(
        scenario,
        path=np.concatenate([scenario.path] * times),
        evaluated=[first + index for index in scenario.evaluated],
        remember=True,
        cuts=tuple(cuts),
        pairs=tuple((first + a, first + b) for a, b in scenario.pairs),
        ring=tuple(first + index for index in scenario.ring),
    )


def make_scenario(sequence: PosedSequence, protocol: str, every: int = 1) -> Scenario:
    """Makes the scenario of a protocol on a posed sequence.

    Args:
        sequence: posed, with depth. Depth is ground truth even where the protocol withholds it from the pipeline.
        protocol: one of `PROTOCOLS`.
        every: evaluate every n-th held-out frame.

    Raises:
        InputError: the protocol is unknown, or the sequence has no poses, no depth or too few frames.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"The protocol '{protocol}' is unknown; one of {', '.join(PROTOCOLS)} was expected.")
    if not sequence.posed or not sequence.has_depth:
        raise InputError(
            f"{sequence.path} has no {'depth' if sequence.posed else 'poses'}; a sequence with both was expected."
        )
    count = len(sequence)
    observed = sparse_indices(count) if protocol in ("sparse", "cloud") else [0]
    if protocol == "revisit":
        out = interpolate_poses(_first_metres(sequence.poses, REVISIT_LENGTH_M), REVISIT_VIEWS + 1)[1:]
        path = np.concatenate([out, out[-2::-1], sequence.poses[:1]])
        turn = len(out)
        pairs = tuple((first, 2 * turn - 2 - first) for first in range(turn - 1))
        return Scenario(
            [sequence[0]], sequence.subset([0]), path, [len(path) - 1], remember=True, cuts=(turn,), pairs=pairs
        )
    if protocol == "loop":
        return _loop(sequence)
    if protocol == "panorama":
        return _panorama(sequence)
    held_out = [index for index in range(count) if index not in observed][::every]
    if not held_out:
        raise InputError(
            f"{sequence.path} has {count} frames; {protocol} observes {len(observed)} of them and needs more."
        )
    views = [sequence[index] for index in observed]
    scenario = Scenario(views, sequence.subset(held_out), sequence.poses[held_out], list(range(len(held_out))))
    if protocol == "mono":
        without_depth = [replace(view, depth=None) for view in views]
        return replace(scenario, observed_views=without_depth, true_views=tuple(views))
    return scenario


def sparse_indices(count: int) -> list[int]:
    """Indices of `SPARSE_VIEWS` evenly spaced frames of `count`, shuffled with a fixed random seed."""
    even = evenly_spaced_indices(count, SPARSE_VIEWS)
    return [int(index) for index in np.random.default_rng(0).permutation(even)]


def _loop(sequence: PosedSequence) -> Scenario:
    """Out along recorded frames, a full turn on the spot, and back to the first frame, all in one call."""
    last = len(_first_metres(sequence.poses, LOOP_LENGTH_M)) - 1
    frames = [int(index) for index in np.unique(np.linspace(1, last, min(LOOP_VIEWS, last)).round())]
    back = [*frames[-2::-1], 0]
    angles = np.linspace(0, 2 * math.pi, LOOP_VIEWS + 1)[1:]
    turn = _turn_right(sequence.poses[frames[-1]], estimate_up_direction(sequence.poses), angles)
    path = np.concatenate([sequence.poses[frames], turn, sequence.poses[back]])
    out_end, back_start = len(frames), len(frames) + len(turn)
    pairs = [(first, back_start + out_end - 2 - first) for first in range(out_end - 1)]
    pairs.append((out_end - 1, back_start - 1))
    if isinstance(sequence, WorldSequence):
        targets: PosedSequence = sequence.seen_from(path)
        evaluated = list(range(len(path)))
    else:  # a recorded sequence has no ground truth of the turn
        targets = sequence.subset([*frames, *back])
        evaluated = [*range(out_end), *range(back_start, len(path))]
    return Scenario([sequence[0]], targets, path, evaluated, remember=True, pairs=tuple(pairs))


def _panorama(sequence: PosedSequence) -> Scenario:
    """A panorama at the first pose is observed; one at another position on the walk is imagined, ring by ring."""
    if not isinstance(sequence, WorldSequence):
        raise InputError(
            f"{sequence.path} is a recorded sequence; the protocol panorama needs procedural worlds (worlds:test:4), "
            "which can be rendered from any pose."
        )
    observed_pose, target_pose = panorama_poses(sequence)
    observed = world_panorama(sequence, observed_pose, PANORAMA_HEIGHT_PX)
    path, cuts, all_rings = [], [0], rings(sequence.camera)
    for ring in all_rings:
        path += [target_pose @ pose_from_angles(*ring[index]) for index in ring_order(len(ring), RING_ORDER)]
        cuts.append(len(path))
    level_ring = np.argsort(ring_order(len(all_rings[0]), RING_ORDER))
    poses = np.stack(path)
    camera = observation_camera(PANORAMA_HEIGHT_PX)
    views = panorama_views(
        observed.image,
        observed.distance,
        world_from_camera=observed.world_from_camera,
        camera=camera,
        panorama_from_camera=observation_poses(),
    )
    return Scenario(
        list(views),
        sequence.seen_from(poses),
        poses,
        list(range(len(poses))),
        remember=True,
        cuts=tuple(cuts[1:-1]),
        ring=tuple(int(index) for index in level_ring),
        seam=seam_joint(len(level_ring), RING_ORDER),
    )


def panorama_poses(sequence: WorldSequence) -> tuple[np.ndarray, np.ndarray]:
    """(4, 4) world_from_camera, level, of the observed and of the imagined panorama."""
    observed, target = _first_metres(sequence.poses, PANORAMA_DISTANCE_M)[[0, -1]]
    up = np.array([0.0, 0.0, 1.0])
    return _levelled(observed, up), _levelled(target, up)


def _first_metres(poses: np.ndarray, length: float) -> np.ndarray:
    """The first poses of a path, up to about this length in metres; at least two."""
    distance = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1))])
    return poses[: max(2, int(np.searchsorted(distance, length)) + 1)]


def _turn_right(pose: np.ndarray, up: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses of a camera that turns to the right on the spot, about `up`, by angles (N,) in radians."""
    x, y, z = -up / np.linalg.norm(up)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turns = np.eye(3) + np.sin(angles)[:, None, None] * cross + (1 - np.cos(angles))[:, None, None] * (cross @ cross)
    poses = np.repeat(pose[None], len(angles), axis=0)
    poses[:, :3, :3] = turns @ pose[:3, :3]
    return poses


def _levelled(pose: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4): the pose without roll and pitch."""
    ahead = heading(pose, up)
    level = np.eye(4)
    level[:3, 0], level[:3, 1], level[:3, 2] = np.cross(ahead, up), -up, ahead
    level[:3, 3] = pose[:3, 3]
    return level
