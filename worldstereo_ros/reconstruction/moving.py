"""Things that moved between photographs: matches that agree with each other and contradict the poses."""

from __future__ import annotations

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
AFFINE_ERROR = 0.004  # of the longer side


def describe_moving(
    photos: Photographs, database: Path, model: SparseModel, verified: dict[tuple[int, int], np.ndarray]
) -> list[str]:
    """Says between which photographs something moved; empty if nothing did.

    Of the matches of a pair before their geometric verification, those far from the epipolar geometry of the poses are
    looked at. If many of them follow one affine motion that is not far from what stands still, a thing moved; a pattern
    that repeats itself jumps from one of its places to another.
    """
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    pairs = [pair for pair in verified if pair[0] in row_of and pair[1] in row_of]
    pairs = sorted(pairs, key=lambda pair: -len(verified[pair]))[:MAX_PAIRS]
    moved: dict[tuple[int, int], int] = {}
    with open_database(database) as opened:
        ids = image_ids(opened)
        for one, other in pairs:
            id_one, id_other = ids[photos[one].file.name], ids[photos[other].file.name]
            matches = np.asarray(opened.read_matches(id_one, id_other)).reshape(-1, 2)
            first = np.asarray(opened.read_keypoints(id_one), np.float64)[matches[:, 0], :2] - 0.5
            second = np.asarray(opened.read_keypoints(id_other), np.float64)[matches[:, 1], :2] - 0.5
            count = moving_matches(first, second, model, row_of[one], row_of[other])
            if count:
                moved[one, other] = count
    if not moved:
        return []
    most = max(moved, key=lambda pair: moved[pair])
    names = f"{photos[most[0]].name} and {photos[most[1]].name}"
    return [
        f"Something moved between {len(moved)} pairs of photographs, most of it between {names} ({moved[most]} "
        "features). Where photographs contradict each other, no distance counts as observed."
    ]


def moving_matches(first: np.ndarray, second: np.ndarray, model: SparseModel, one: int, other: int) -> int:
    """Number of matches of the largest common motion that contradicts the poses; 0 if there is none.

    Args:
        first, second: (M, 2) pixels of the matches in both photographs.
        model: registration.
        one, other: rows of the photographs.
    """
    if len(first) < MIN_MOVED:
        return 0
    cameras = model.calibrations[one].camera, model.calibrations[other].camera
    rays = [undistorted_rays(pixels, model.calibrations[row]) for pixels, row in ((first, one), (second, other))]
    relative = invert_pose(model.world_from_camera[other]) @ model.world_from_camera[one]
    limit = np.mean([MAX_EPIPOLAR_ERROR * max(camera.width, camera.height) / camera.fx for camera in cameras])
    far = sampson_distances(rays[0], rays[1], relative) > FAR * limit
    if far.sum() < MIN_MOVED:
        return 0
    threshold = AFFINE_ERROR * max(cameras[1].width, cameras[1].height)
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
    if np.linalg.norm(motion - still) > MAX_JUMP * max(cameras[1].width, cameras[1].height):
        return 0
    return count if count >= max(MIN_MOVED, MIN_MOVED_SHARE * far.sum(), MIN_SHARE * len(first)) else 0
