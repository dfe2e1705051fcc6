"""Several reconstructions of the same photographs from different first pairs, and how far they agree.

Incremental mapping is greedy. From a first pair that shows one wall it may grow into the second solution that a plane
allows, with the same photographs and nearly as many points: of an office, with known intrinsics, eight first pairs gave
solutions from 0.4 to 17 per cent off. What tells them apart are the verified matches of all pairs, of which the right
one explains most and best. How far those that explain them nearly as well differ is what the photographs leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.similarity import align_poses, rotation_angles
from worldstereo_ros.reconstruction.features import as_rays
from worldstereo_ros.reconstruction.guards import matching_distances
from worldstereo_ros.reconstruction.sparse_model import SparseModel
from worldstereo_ros.utils.errors import InputError

STARTS = 12  # photographs that a mapping starts from, in addition to the one that the mapper prefers
# Enough, if this share of the photographs is registered and another start explains this share of what the best does.
ENOUGH, AGREE = 0.9, 0.99
NEARLY = 0.97  # of what the best model explains of the same pairs: a model that counts as another answer
MIN_COMMON = 0.75  # share of its photographs that another answer has, too: parts are determined less well than a whole
MAX_SHARED = 0.5  # of the photographs of a model; one that shares more with a better model is another answer


def starting_photographs(count: int) -> list[int]:
    """Numbers of the photographs from which the mapper starts again: the middle one first, then others among all."""
    starts = sorted({int((part + 0.5) * count / STARTS) for part in range(STARTS)})
    return sorted(starts, key=lambda number: abs(number - count / 2))


@dataclass(frozen=True)
class Explanation:
    """How well a model explains the verified matches of pairs.

    Attributes:
        scores: (one, other) -> sum over its matches of 1 - (d / limit)^2, of the distance d to the epipolar line, 0
            beyond the limit (MSAC; Torr and Zisserman 2000).
    """

    scores: dict[tuple[int, int], float]

    @property
    def total(self) -> float:
        """Sum over all pairs."""
        return sum(self.scores.values())


def explain(model: SparseModel, pixels: Mapping[tuple[int, int], np.ndarray]) -> Explanation:
    """Scores the verified matches of the pairs whose photographs are both registered.

    Args:
        model: the registration.
        pixels: see `features.read_matches`.
    """
    calibrations = dict(zip(model.photographs.tolist(), model.calibrations, strict=True))
    scores = {}
    for pair, (distances, limit) in matching_distances(model, as_rays(dict(pixels), calibrations)).items():
        scores[pair] = float(np.maximum(1 - (distances / limit) ** 2, 0).sum())
    return Explanation(scores)


def choose_models(
    models: Sequence[SparseModel], pixels: Mapping[tuple[int, int], np.ndarray]
) -> list[tuple[SparseModel, list[SparseModel]]]:
    """The models that explain most, one of each group of photographs, the largest explanation first.

    Returns:
        Each with the other models of its photographs that explain them nearly as well.
    """
    explained = [(model, explain(model, pixels)) for model in models]
    explained.sort(key=lambda pair: -pair[1].total)
    chosen: list[tuple[SparseModel, Explanation, list[SparseModel]]] = []
    for model, explanation in explained:
        better = [kept for kept in chosen if _common(model, kept[0]) > MAX_SHARED * min(len(model), len(kept[0]))]
        for kept, best, others in better:
            pairs = explanation.scores.keys() & best.scores.keys()
            share = sum(explanation.scores[p] for p in pairs), NEARLY * sum(best.scores[p] for p in pairs)
            if _common(model, kept) >= max(3, MIN_COMMON * len(kept)) and share[0] >= share[1]:
                others.append(model)
        if not better:
            chosen.append((model, explanation, []))
    return [(model, others) for model, _, others in chosen]


def _common(one: SparseModel, other: SparseModel) -> int:
    return len(np.intersect1d(one.photographs, other.photographs))


def spread(model: SparseModel, others: Sequence[SparseModel]) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square difference of the poses of a model to those of others, after the best similarity of each.

    Returns:
        ((N,) of the centres in the unit of the model, (N,) of the rotations in degrees); 0 where no other has the
        photograph.
    """
    squares, count = np.zeros((len(model), 2)), np.zeros(len(model))
    for other in others:
        _, rows, columns = np.intersect1d(model.photographs, other.photographs, return_indices=True)
        reference = model.world_from_camera[rows]
        try:
            moved = align_poses(other.world_from_camera[columns], reference).poses(other.world_from_camera[columns])
        except InputError:  # its centres contradict its rotations: it has nothing in common with the model
            squares[rows] += np.square([np.ptp(reference[:, :3, 3], axis=0).max(), 180.0])
            count[rows] += 1
            continue
        squares[rows, 0] += ((moved[:, :3, 3] - reference[:, :3, 3]) ** 2).sum(axis=1)
        squares[rows, 1] += np.degrees(rotation_angles(moved[:, :3, :3], reference[:, :3, :3])) ** 2
        count[rows] += 1
    positions, degrees = np.sqrt(squares / np.maximum(count, 1)[:, None]).T
    return positions, degrees
