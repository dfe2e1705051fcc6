"""What is given and what is asked, for one sequence. docs/evaluation.md has the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.evaluation.world_sequences import Posed, WorldSequence, world_panorama
from worldstereo_ros.geometry.poses import interpolate_poses, estimate_up_direction
from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.imagine import ring_order, seam_joint
from worldstereo_ros.panorama.perspective_views import look, panorama_views, rings, seed_camera
from worldstereo_ros.utils.errors import InputError

PROTOCOLS = ("single", "sparse", "mono", "revisit", "loop", "panorama", "cloud")
SPARSE_VIEWS = 5
AWAY_VIEWS = 6  # of the path away; as many lead back
AWAY_METRES = 1.0  # about how far it goes
LOOP_CLIP = 12  # views out, views of the turn, and views back of a loop
LOOP_METRES = 1.5  # about how far it goes
PANORAMA_METRES = 1.0  # about how far from the given panorama another one is imagined
PANORAMA_HEIGHT = 512  # rows of the given panorama
ORDER = "round"  # of the views of a ring


@dataclass(frozen=True)
class Scenario:
    """One sequence under one protocol.

    Attributes:
        observed_views: the seeds, in the order in which they are shown.
        target_views: frames of the sequence that serve as truth, one for every pose of `path` that is judged.
        path: (F, 4, 4) world_from_camera of the views to imagine.
        evaluated: indices into `path`, one for each of `asked`.
        remember: imagined views go back into memory.
        cuts: where in `path` another call begins, once what comes before is remembered: within one clip, views agree
            without any memory.
        pairs: (first, second) indices into `path` of the same pose on the way out and on the way back.
        ring: indices into `path` of views of one place, in the order in which one turns once around.
        seam: which joint of the ring closes the turn: that of view `ring[seam]` with the next one.
    """

    observed_views: list[View]
    target_views: Posed
    path: np.ndarray
    evaluated: list[int]
    remember: bool = False
    cuts: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    ring: tuple[int, ...] = ()
    seam: int = -1

    @property
    def legs(self) -> list[np.ndarray]:
        """(F, 4, 4) poses of each call that imagines a part of `path`."""
        return np.split(self.path, self.cuts)


def make_scenario(sequence: Posed, protocol: str, every: int = 1) -> Scenario:
    """The task of a protocol on a posed sequence.

    Args:
        sequence: posed, with depth (which is the truth even where it is not given).
        protocol: one of `PROTOCOLS`.
        every: ask only every n-th of the frames that are not given.

    Raises:
        ValueError: the protocol is not known, or the sequence lacks what it needs.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"The protocol '{protocol}' is not known; it is one of {', '.join(PROTOCOLS)}.")
    if not sequence.posed or not sequence.has_depth:
        raise InputError(f"{sequence.path} has no {'depth' if sequence.posed else 'poses'}: it cannot be evaluated on.")
    count = len(sequence)
    given = sparse_indices(count) if protocol in ("sparse", "cloud") else [0]
    if protocol == "revisit":
        away = interpolate_poses(_stretch(sequence.poses, AWAY_METRES), AWAY_VIEWS + 1)[1:]
        path = np.concatenate([away, away[-2::-1], sequence.poses[:1]])
        turn = len(away)
        pairs = tuple((first, 2 * turn - 2 - first) for first in range(turn - 1))
        return Scenario(
            [sequence[0]], sequence.subset([0]), path, [len(path) - 1], remember=True, cuts=(turn,), pairs=pairs
        )
    if protocol == "loop":
        return _loop(sequence)
    if protocol == "panorama":
        return _panorama(sequence)
    asked = [index for index in range(count) if index not in given][::every]
    if not asked:
        raise InputError(f"{sequence.path} has {count} frames, which leaves none to ask after the {len(given)} given.")
    views = [sequence[index] for index in given]
    if protocol == "mono":
        views = [replace(view, depth=None) for view in views]
    return Scenario(views, sequence.subset(asked), sequence.poses[asked], list(range(len(asked))))


def sparse_indices(count: int) -> list[int]:
    """`SPARSE_VIEWS` evenly spaced frames of `count`, shuffled, always in the same way."""
    even = np.unique(np.linspace(0, count - 1, min(SPARSE_VIEWS, count)).round().astype(int))
    return [int(index) for index in np.random.default_rng(0).permutation(even)]


def _loop(sequence: Posed) -> Scenario:
    """Out along recorded frames, a full turn on the spot, and back to the first frame, all in one call."""
    reach = len(_stretch(sequence.poses, LOOP_METRES)) - 1
    frames = [int(index) for index in np.unique(np.linspace(1, reach, min(LOOP_CLIP, reach)).round())]
    back = [*frames[-2::-1], 0]
    far = sequence.poses[frames[-1]]
    angles = np.linspace(0, 2 * math.pi, LOOP_CLIP + 1)[1:]
    turn = _turned(far, estimate_up_direction(sequence.poses), angles)
    path = np.concatenate([sequence.poses[frames], turn, sequence.poses[back]])
    there, home = len(frames), len(frames) + len(turn)
    pairs = [(first, home + there - 2 - first) for first in range(there - 1)] + [(there - 1, home - 1)]
    if isinstance(sequence, WorldSequence):
        asked: Posed = sequence.seen_from(path)
        judged = list(range(len(path)))
    else:  # nobody took pictures of the turn
        asked = sequence.subset([*frames, *back])
        judged = [*range(there), *range(home, len(path))]
    return Scenario([sequence[0]], asked, path, judged, remember=True, pairs=tuple(pairs))


def _panorama(sequence: Posed) -> Scenario:
    """A panorama at the first pose is given; all round another place on the walk is asked, ring by ring."""
    if not isinstance(sequence, WorldSequence):
        raise InputError(f"{sequence.path} is recorded: true panoramas can be drawn of worlds (worlds:test:4) alone.")
    here, place = panorama_places(sequence)
    given = world_panorama(sequence, here, PANORAMA_HEIGHT)
    path, cuts, turns = [], [0], rings(sequence.camera)
    for ring in turns:
        path += [place @ look(*ring[index]) for index in ring_order(len(ring), ORDER)]
        cuts.append(len(path))
    level = np.argsort(ring_order(len(turns[0]), ORDER))
    poses = np.stack(path)
    camera = seed_camera(PANORAMA_HEIGHT)
    views = panorama_views(given.image, given.distance, world_from_camera=given.world_from_camera, camera=camera)
    return Scenario(
        list(views),
        sequence.seen_from(poses),
        poses,
        list(range(len(poses))),
        remember=True,
        cuts=tuple(cuts[1:-1]),
        ring=tuple(int(index) for index in level),
        seam=seam_joint(len(level), ORDER),
    )


def panorama_places(sequence: WorldSequence) -> tuple[np.ndarray, np.ndarray]:
    """(4, 4) poses, upright, of the panorama that is given and of the one that is asked."""
    here, there = _stretch(sequence.poses, PANORAMA_METRES)[[0, -1]]
    up = np.array([0.0, 0.0, 1.0])
    return _upright(here, up), _upright(there, up)


def _stretch(poses: np.ndarray, metres: float) -> np.ndarray:
    """The first poses, up to the one at which about so many metres have been walked."""
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1))])
    return poses[: max(2, int(np.searchsorted(walked, metres)) + 1)]


def _turned(pose: np.ndarray, up: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(N, 4, 4): a camera that stays where it is and turns to the right about the world's `up` by angles, radians."""
    x, y, z = -up / np.linalg.norm(up)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turns = np.eye(3) + np.sin(angles)[:, None, None] * cross + (1 - np.cos(angles))[:, None, None] * (cross @ cross)
    poses = np.repeat(pose[None], len(angles), axis=0)
    poses[:, :3, :3] = turns @ pose[:3, :3]
    return poses


def _upright(pose: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) where a camera stands and looks, made level."""
    ahead = pose[:3, 2] - (pose[:3, 2] @ up) * up
    if np.linalg.norm(ahead) < 1e-3:  # it looks straight up or down
        ahead = pose[:3, 1] - (pose[:3, 1] @ up) * up
    ahead = ahead / np.linalg.norm(ahead)
    level = np.eye(4)
    level[:3, 0], level[:3, 1], level[:3, 2] = np.cross(ahead, up), -up, ahead
    level[:3, 3] = pose[:3, 3]
    return level
