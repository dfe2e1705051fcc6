"""What is given and what is asked, for one sequence. docs/evaluation.md has the table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.camera import interpolate_poses
from worldstereo_ros.evaluation.worlds import Posed
from worldstereo_ros.views import View

PROTOCOLS = ("single", "sparse", "mono", "revisit", "cloud")
SPARSE_SEEDS = 5
AWAY_VIEWS = 6  # of the path away; as many lead back
AWAY_METRES = 1.0  # about how far it goes


@dataclass(frozen=True)
class Task:
    """One sequence under one protocol.

    Attributes:
        given: the seeds, in the order in which they are shown.
        asked: frames of the sequence that serve as truth, one for every pose of `path` that is judged.
        path: (F, 4, 4) world_from_camera of the views to imagine.
        judged: indices into `path`, one for each of `asked`.
        remember: imagined views go back into memory.
        turn: where in `path` the way back begins. It is imagined by a call of its own, once the way out is remembered:
            within one clip, views agree without any memory. 0: there is no way back.
        pairs: (first, second) indices into `path` of the same pose on the way out and on the way back.
    """

    given: list[View]
    asked: Posed
    path: np.ndarray
    judged: list[int]
    remember: bool = False
    turn: int = 0
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def legs(self) -> list[np.ndarray]:
        """(F, 4, 4) poses of each call that imagines a part of `path`."""
        return [self.path[: self.turn], self.path[self.turn :]] if self.turn else [self.path]


def make_task(sequence: Posed, protocol: str, every: int = 1) -> Task:
    """The task of a protocol on a posed sequence.

    Args:
        sequence: posed, with depth (which is the truth even where it is not given).
        protocol: one of `PROTOCOLS`.
        every: ask only every n-th of the frames that are not given.

    Raises:
        ValueError: the protocol is not known, or the sequence lacks what it needs.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"The protocol '{protocol}' is not known; it is one of {', '.join(PROTOCOLS)}.")
    if not sequence.posed or not sequence.has_depth:
        raise ValueError(f"{sequence.path} has no {'depth' if sequence.posed else 'poses'}: it cannot be evaluated on.")
    count = len(sequence)
    given = sparse_seeds(count) if protocol in ("sparse", "cloud") else [0]
    if protocol == "revisit":
        away = interpolate_poses(_stretch(sequence.poses, AWAY_METRES), AWAY_VIEWS + 1)[1:]
        path = np.concatenate([away, away[-2::-1], sequence.poses[:1]])
        turn = len(away)
        pairs = tuple((first, 2 * turn - 2 - first) for first in range(turn - 1))
        return Task([sequence[0]], sequence.subset([0]), path, [len(path) - 1], remember=True, turn=turn, pairs=pairs)
    asked = [index for index in range(count) if index not in given][::every]
    if not asked:
        raise ValueError(f"{sequence.path} has {count} frames, which leaves none to ask after the {len(given)} given.")
    views = [sequence[index] for index in given]
    if protocol == "mono":
        views = [replace(view, depth=None) for view in views]
    return Task(views, sequence.subset(asked), sequence.poses[asked], list(range(len(asked))))


def sparse_seeds(count: int) -> list[int]:
    """`SPARSE_SEEDS` evenly spaced frames of `count`, shuffled, always in the same way."""
    even = np.unique(np.linspace(0, count - 1, min(SPARSE_SEEDS, count)).round().astype(int))
    return [int(index) for index in np.random.default_rng(0).permutation(even)]


def _stretch(poses: np.ndarray, metres: float) -> np.ndarray:
    """The first poses, up to the one at which about so many metres have been walked."""
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1))])
    return poses[: max(2, int(np.searchsorted(walked, metres)) + 1)]
