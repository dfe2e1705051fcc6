"""Things that moved between photographs: matches that agree with each other and contradict the poses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.reconstruction.features import image_ids, open_database, undistorted_rays
from worldstereo_ros.reconstruction.guards import MAX_EPIPOLAR_ERROR, sampson_distances
from worldstereo_ros.reconstruction.photographs import Photographs
from worldstereo_ros.reconstruction.sparse_model import SparseModel

MIN_MOVED = 40  # matches of one motion
MIN_MOVED_SHARE = 0.3  # of those that contradict the poses; scattered ones are mistakes of the matching
MIN_SHARE = 0.08  # of all matches of the pair; a pattern that repeats itself in places gives fewer
FAR = 3.0  # in multiples of the error that a fitting match may have
MAX_JUMP = 0.35  # of the longer side, beside what stands still; what jumps farther is a pattern that repeats itself
MAX_PAIRS = 200  # looked at: those with most verified matches
# Another motion of the camera: cells a side of a grid over the picture; fewest cells in which its features prevail, and
# over those in which features that fit prevail; its share of what contradicts the poses; pairs that show it.
GRID, MIN_CELLS, MIN_SPREAD, MIN_AGREEING, MIN_CONTRADICTING = 8, 12, 0.8, 0.6, 2
AFFINE_ERROR = 0.004  # of the longer side


def describe_moving(
    photos: Photographs, database: Path, model: SparseModel, verified: dict[tuple[int, int], np.ndarray]
) -> list[str]:
    """Says between which photographs something moved; empty if nothing did.

    Of the matches of a pair before their geometric verification, those far from the epipolar geometry of the poses are
    looked at. If many of them follow one affine motion that is not far from what stands still, a thing moved; a pattern
    that repeats itself jumps from one of its places to another.
    """
    moved: dict[tuple[int, int], int] = {}
    for rows, first, second in _raw_matches(photos, database, model, verified):
        if count := moving_matches(first, second, model, *rows):
            moved[rows] = count
    if not moved:
        return []
    most = max(moved, key=lambda pair: moved[pair])
    many = f"{len(moved)} pairs of photographs, most of it between " if len(moved) > 1 else ""
    return [
        f"Something moved between {many}{_names(photos, model, most)} ({moved[most]} features). Where photographs "
        "contradict each other, no distance counts as observed."
    ]


def follows_moving(
    photos: Photographs, database: Path, model: SparseModel, verified: dict[tuple[int, int], np.ndarray]
) -> str:
    """Says that the poses of a model follow a thing that moved instead of the place; empty if they do not.

    A thing with much texture may have more features than what stands still. Then the matches of the place contradict
    the poses, agree with each other on another motion of the camera, and fill as much of the picture as those that fit.
    """
    found: list[tuple[int, str]] = []
    for rows, first, second in _raw_matches(photos, database, model, verified):
        far, fits, limit, rays = _contradictions(first, second, model, *rows)
        if far.sum() < MIN_MOVED or fits.sum() < MIN_MOVED:
            continue
        cv2.setRNGSeed(1)
        essential, inliers = cv2.findEssentialMat(
            rays[0][far, :2], rays[1][far, :2], np.eye(3), method=cv2.RANSAC, prob=0.999, threshold=0.5 * limit,
            maxIters=500,
        )  # fmt: skip
        if essential is None or inliers is None:
            continue
        agree = np.zeros(len(far), bool)
        agree[np.flatnonzero(far)[inliers.reshape(-1) == 1]] = True
        photo = photos[int(model.photographs[rows[0]])]
        others, own = _cells(first, agree, fits, photo.width, photo.height)
        enough = agree.sum() >= max(MIN_MOVED, MIN_AGREEING * far.sum())
        if enough and others >= max(MIN_CELLS, MIN_SPREAD * own):
            found.append((int(agree.sum()), _names(photos, model, rows)))
    if len(found) < MIN_CONTRADICTING:
        return ""
    count, names = max(found)
    return (
        f"The poses follow a thing that moved: between {names} {count} features all over the picture contradict them, "
        "and agree with each other. Leave out the photographs that the thing fills, or cover it in them."
    )


def _raw_matches(
    photos: Photographs, database: Path, model: SparseModel, verified: dict[tuple[int, int], np.ndarray]
) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Yields (two rows of the model, (M, 2) pixels of the matches before their verification in each), best first."""
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    pairs = [pair for pair in verified if pair[0] in row_of and pair[1] in row_of]
    with open_database(database) as opened:
        ids = image_ids(opened)
        for one, other in sorted(pairs, key=lambda pair: -len(verified[pair]))[:MAX_PAIRS]:
            id_one, id_other = ids[photos[one].file.name], ids[photos[other].file.name]
            matches = np.asarray(opened.read_matches(id_one, id_other)).reshape(-1, 2)
            first = np.asarray(opened.read_keypoints(id_one), np.float64)[matches[:, 0], :2] - 0.5
            second = np.asarray(opened.read_keypoints(id_other), np.float64)[matches[:, 1], :2] - 0.5
            yield (row_of[one], row_of[other]), first, second


def _names(photos: Photographs, model: SparseModel, rows: tuple[int, int]) -> str:
    return " and ".join(photos[int(model.photographs[row])].name for row in rows)


def _cells(pixels: np.ndarray, one: np.ndarray, other: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Cells of a grid over the picture in which most of the features are of one kind, and of the other."""
    column, row = (pixels // [width / GRID, height / GRID]).astype(int).clip(0, GRID - 1).T
    counts = [np.bincount((row * GRID + column)[kind], minlength=GRID**2) for kind in (one, other)]
    return int((counts[0] > counts[1]).sum()), int((counts[1] > counts[0]).sum())


def _contradictions(
    first: np.ndarray, second: np.ndarray, model: SparseModel, one: int, other: int
) -> tuple[np.ndarray, np.ndarray, float, list[np.ndarray]]:
    """((M,) bool far from the poses, (M,) bool fitting them, error of a fitting match in rays, rays of both)."""
    cameras = model.calibrations[one].camera, model.calibrations[other].camera
    rays = [undistorted_rays(pixels, model.calibrations[row]) for pixels, row in ((first, one), (second, other))]
    relative = invert_pose(model.world_from_camera[other]) @ model.world_from_camera[one]
    limit = float(np.mean([MAX_EPIPOLAR_ERROR * max(camera.width, camera.height) / camera.fx for camera in cameras]))
    errors = sampson_distances(rays[0], rays[1], relative)
    return errors > FAR * limit, errors <= limit, limit, rays


def moving_matches(first: np.ndarray, second: np.ndarray, model: SparseModel, one: int, other: int) -> int:
    """Number of matches of the largest common motion that contradicts the poses; 0 if there is none.

    Args:
        first, second: (M, 2) pixels of the matches in both photographs.
        model: registration.
        one, other: rows of the photographs.
    """
    if len(first) < MIN_MOVED:
        return 0
    far = _contradictions(first, second, model, one, other)[0]
    if far.sum() < MIN_MOVED:
        return 0
    longer = max(model.calibrations[other].camera.width, model.calibrations[other].camera.height)
    threshold = AFFINE_ERROR * longer
    cv2.setRNGSeed(1)
    _, inliers = cv2.estimateAffine2D(
        first[far], second[far], method=cv2.RANSAC, ransacReprojThreshold=threshold, maxIters=1000
    )
    if inliers is None:
        return 0
    moved = inliers.reshape(-1) == 1
    count = int(moved.sum())
    motion = np.median((second - first)[far][moved], axis=0) if count else np.zeros(2)
    still = np.median((second - first)[~far], axis=0) if (~far).any() else motion
    if np.linalg.norm(motion - still) > MAX_JUMP * longer:
        return 0
    return count if count >= max(MIN_MOVED, MIN_MOVED_SHARE * far.sum(), MIN_SHARE * len(first)) else 0
