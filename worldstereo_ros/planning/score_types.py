"""Scores of paths, and the weights of what makes a path good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.utils.errors import InputError

GOOD_CLEARANCE_M = 0.5  # beyond which more clearance is worth nothing


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of the score; each quantity is brought to 0..1 first.

    Attributes:
        collision: of the collision probability, subtracted.
        clearance: of the least clearance, up to `GOOD_CLEARANCE_M`.
        imagined: of the share of the way that no sensor saw free, subtracted.
        gain: of the information, relative to the best path.
        length: of the length, relative to the longest path, subtracted.
    """

    collision: float = 4.0
    clearance: float = 0.5
    imagined: float = 0.5
    gain: float = 1.0
    length: float = 0.5

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) and value >= 0 for value in vars(self).values()):
            raise InputError(f"The weights are {vars(self)}; finite numbers from 0 were expected.")


@dataclass(frozen=True)
class PathScore:
    """The score of one path of N poses.

    Attributes:
        name: of the path.
        length: metres, horizontally.
        collision_probability: that the robot touches something on the way, given the hypotheses.
        clearance: least distance between the robot and cells that are called occupied, metres; infinite without any.
        imagined_share: share of the cells that the robot would cover that are imagined or estimated.
        unknown_share: share of these cells of which nothing is known, also of those outside the map.
        information_gain: expected information of the views along the path, bits.
        new_area: expected area that is seen for the first time, square metres.
        score: weighted sum; higher is better.
        outside: number of poses outside the map.
        pose_collision: (N,) float32 probability on the way from the pose before to this one.
        pose_clearance: (N,) float32 metres, least on the same stretch.
        pose_imagined: (N,) float32 share of the cells at the pose, as above; pose_unknown likewise.
        pose_gain: (N,) float32 bits of the view at the pose alone; NaN for poses from which it was not computed.
        pose_new_area: (N,) float32 likewise, square metres.
    """

    name: str
    length: float
    collision_probability: float
    clearance: float
    imagined_share: float
    unknown_share: float
    information_gain: float
    new_area: float
    score: float
    outside: int
    pose_collision: np.ndarray
    pose_clearance: np.ndarray
    pose_imagined: np.ndarray
    pose_unknown: np.ndarray
    pose_gain: np.ndarray
    pose_new_area: np.ndarray


@dataclass(frozen=True)
class PathScores:
    """Scores of the paths in the order in which they were given.

    Attributes:
        scores: one a path.
        best: index of the winner.
        reason: why it wins, in a sentence.
        hypotheses: number of hypotheses that the probabilities are means over.
    """

    scores: list[PathScore]
    best: int
    reason: str
    hypotheses: int

    @property
    def winner(self) -> PathScore:
        """The best path."""
        return self.scores[self.best]
