"""Checks of a registration, so that a wrong pose does not pass in silence.

A bundle adjustment finds some pose for any few matches: three wide photographs without intrinsics give a model on
twelve points in which a camera is off by 88 degrees, with a small reprojection error. What gives it away is how few
points it has, and that the matches of the photographs, taken pair by pair, contradict it.

A group of photographs of a wall may settle on the second solution that a plane allows: turned by tens of degrees, and
several times too large. Its matches fit within a pixel, as right ones do, but only half as well as the best epipolar
geometry of each pair alone. Right poses fit as well as that, since they are its cause. Such photographs, and what holds
together with the others only through them, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.reconstruction.sparse_model import SparseModel, triangulation_angles

MIN_POINTS, MIN_PHOTOGRAPH_POINTS = 100, 30
MIN_ANGLE_DEG = 1.5  # median triangulation angle; smaller ones leave distances open
MAX_REPROJECTION_PX = 2.0  # mean, at the size of the working copies
MIN_AGREEMENT = 0.5  # share of the matches of a photograph that its pose agrees with
MAX_EPIPOLAR_ERROR = 0.0025  # of the longer side: 4 pixels of 1600
MIN_CHECKED_MATCHES = 30
MIN_FOCAL, MAX_FOCAL = 0.35, 6.0  # focal length over the longer side: 110 to 9.5 degrees
MAX_EXIF_RATIO = 1.4  # between the focal length found and that of EXIF
# Median error of matches under the poses, over that under the best geometry of the pair alone; right poses have 0.6 to
# 1.4, wrong ones of the second solution of a plane 1.5 to 2.5.
MAX_WORSE_THAN_PAIR = 1.75
MIN_WORSE_PX = 0.3  # smaller errors are those of the features
COMPARED_PAIRS, MIN_PAIR_MATCHES = 4, 50  # of each photograph, those with most matches
PAIR_ERROR = 0.001  # of the longer side, in the fit of a pair alone
MIN_BASELINE = 1e-9  # of two cameras, in the unit of the poses; closer ones are at one place
MIN_TIE = 15  # matches of two photographs that are tied to each other
MIN_UNCALIBRATED = 4  # photographs; three or fewer do not determine unknown intrinsics


@dataclass(frozen=True)
class PairMatches:
    """Verified matches between two photographs: pixels in each, without lens distortion, as rays with z = 1."""

    rays_one: np.ndarray
    rays_other: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What a check says about a model.

    Attributes:
        accepted: rows of the model that hold, ascending; empty if the model is refused.
        reasons: number of a photograph -> why it is left out.
        refused: why the whole model is refused; empty if it is not.
    """

    accepted: np.ndarray
    reasons: dict[int, str]
    refused: str = ""


def check_model(
    model: SparseModel,
    matches: Mapping[tuple[int, int], PairMatches],
    *,
    intrinsics_known: Sequence[bool],
    exif_focal: Sequence[float | None] = (),
) -> Verdict:
    """Checks a model; photographs that do not hold are left out, and the rest is checked again.

    Args:
        model: the registration.
        matches: verified matches of pairs of photographs (numbers in the list of all), independent of the model.
        intrinsics_known: whether the intrinsics of each row came along, or its focal length in EXIF.
        exif_focal: focal length in pixels by EXIF of each row, None where it has none.
    """
    rows = np.arange(len(model))
    reasons: dict[int, str] = {}
    pairs, fits = _compare_with_pairs(model, matches), _fitting_matches(model, matches)
    for _ in range(len(model)):
        part = model.subset(rows)
        refused = _whole(part, [intrinsics_known[int(row)] for row in rows])
        if refused:
            return Verdict(np.zeros(0, np.int64), {int(model.photographs[row]): refused for row in rows}, refused)
        worst = _worst(part, fits, [exif_focal[int(row)] for row in rows] if len(exif_focal) else [])
        worst = worst or _worse_than_pairs(part, pairs)
        if worst is None:
            loose = _loose(part, fits)
            if not len(loose):
                return Verdict(rows, reasons)
            for row in loose:
                reasons[int(part.photographs[row])] = (
                    f"None of the {len(part) - len(loose)} photographs that are used shares {MIN_TIE} features with it "
                    "that fit its pose, so its place among them is open. Take photographs that lead from them to it."
                )
            rows = np.delete(rows, loose)
            continue
        row, reason = worst
        reasons[int(part.photographs[row])] = reason
        rows = np.delete(rows, row)
    return Verdict(rows, reasons)


def _whole(model: SparseModel, intrinsics_known: Sequence[bool]) -> str:
    """Why a whole model is refused; empty if it holds."""
    if len(model) < 2:
        return "No two photographs could be registered to each other."
    if len(model) < MIN_UNCALIBRATED and not all(intrinsics_known):
        return (
            f"{len(model)} photographs without intrinsics do not determine poses; {MIN_UNCALIBRATED} at least, or "
            "intrinsics (a calibration, or the focal length in EXIF), are needed."
        )
    if len(model.points) < MIN_POINTS:
        return f"{len(model.points)} points were triangulated; at least {MIN_POINTS} are needed to trust the poses."
    angle = float(np.degrees(np.median(triangulation_angles(model))))
    if angle < MIN_ANGLE_DEG:
        return (
            f"The camera moved too little: rays meet at {angle:.1f} degrees in the median, and {MIN_ANGLE_DEG} are "
            "needed. Take photographs from places farther apart, not by turning on the spot."
        )
    error = float(np.average(model.errors))
    if error > MAX_REPROJECTION_PX:
        return f"Points are off by {error:.1f} pixels in the mean; at most {MAX_REPROJECTION_PX} were expected."
    return ""


def _worst(
    model: SparseModel, fits: Mapping[tuple[int, int], np.ndarray], exif_focal: Sequence[float | None]
) -> tuple[int, str] | None:
    """The row that holds least, with the reason; None if all hold."""
    counts = np.bincount(model.observed_by, minlength=len(model))
    row = int(counts.argmin())
    if counts[row] < MIN_PHOTOGRAPH_POINTS:
        return row, f"Its pose rests on {counts[row]} points; at least {MIN_PHOTOGRAPH_POINTS} are needed to trust it."
    for row, calibration in enumerate(model.calibrations):
        camera = calibration.camera
        focal = camera.fx / max(camera.width, camera.height)
        if not MIN_FOCAL <= focal <= MAX_FOCAL:
            return row, f"Its focal length came out as {focal:.2f} of its longer side, which no usual lens has."
        exif = exif_focal[row] if len(exif_focal) else None
        if exif and max(camera.fx / exif, exif / camera.fx) > MAX_EXIF_RATIO:
            return row, f"Its focal length came out as {camera.fx:.0f} pixels, and its EXIF says {exif:.0f}."
    behind = [float((model.depths_of(row) <= 0).mean()) for row in range(len(model))]
    row = int(np.argmax(behind))
    if behind[row] > 0.02:
        return row, f"{behind[row]:.0%} of the points that it sees lie behind it, so its pose is wrong."
    share, checked = _agreement(model, fits)
    share = np.where(checked >= MIN_CHECKED_MATCHES, share, 1.0)
    row = int(share.argmin())
    if share[row] < MIN_AGREEMENT:
        return row, (
            f"Its pose contradicts its picture: {share[row]:.0%} of the {checked[row]} features that it shares with "
            "others fit. Something moved, or the place repeats itself."
        )
    return None


def _compare_with_pairs(
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches]
) -> dict[tuple[int, int], tuple[float, float]]:
    """How well matches of pairs fit the poses, of the pairs with most matches of each photograph.

    Returns:
        Numbers of two photographs -> (median Sampson distance in pixels under the poses, the same over that under the
        essential matrix that fits the pair best).
    """
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    usable = {pair: len(found.rays_one) for pair, found in matches.items() if pair[0] in row_of and pair[1] in row_of}
    chosen: set[tuple[int, int]] = set()
    for number in row_of:
        own = [pair for pair in usable if number in pair and usable[pair] >= MIN_PAIR_MATCHES]
        chosen |= set(sorted(own, key=lambda pair: -usable[pair])[:COMPARED_PAIRS])
    compared = {}
    for one, other in sorted(chosen):
        i, j = row_of[one], row_of[other]
        pair, camera = matches[one, other], model.calibrations[i].camera
        threshold = PAIR_ERROR * max(camera.width, camera.height) / camera.fx
        cv2.setRNGSeed(1)
        essential, _ = cv2.findEssentialMat(
            pair.rays_one[:, :2], pair.rays_other[:, :2], np.eye(3), method=cv2.RANSAC, prob=0.999,
            threshold=threshold, maxIters=500,
        )  # fmt: skip
        if essential is None or essential.shape != (3, 3):
            continue
        other_from_one = invert_pose(model.world_from_camera[j]) @ model.world_from_camera[i]
        under_poses = float(np.median(sampson_distances(pair.rays_one, pair.rays_other, other_from_one)))
        if under_poses * camera.fx > MAX_EPIPOLAR_ERROR * max(camera.width, camera.height):
            continue  # most matches of this pair alone are mistakes, such as of a pattern; agreement counts those
        alone = float(np.median(_sampson(pair.rays_one, pair.rays_other, essential)))
        compared[one, other] = under_poses * camera.fx, under_poses / max(alone, 1e-9)
    return compared


def _worse_than_pairs(
    model: SparseModel, compared: Mapping[tuple[int, int], tuple[float, float]]
) -> tuple[int, str] | None:
    """The row whose matches fit the poses worst beside the fit of its pairs alone; None if all fit well."""
    worst: tuple[int, str] | None = None
    largest = MAX_WORSE_THAN_PAIR
    present = {int(number) for number in model.photographs}
    for row, number in enumerate(model.photographs):
        own = [v for pair, v in compared.items() if int(number) in pair and present.issuperset(pair)]
        if not own:
            continue
        pixels, ratio = np.median(np.array(own), axis=0)
        if ratio > largest and pixels > MIN_WORSE_PX:
            largest = float(ratio)
            reason = (
                f"Its features fit its pose {ratio:.1f} times worse than the best geometry of each pair alone, so the "
                "pose is wrong. Two poses fit where all is on one wall: take photographs that show more depth."
            )
            worst = row, reason
    return worst


def _loose(model: SparseModel, fits: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Rows that are not tied to the largest group of photographs by pairs whose matches fit the poses."""
    ties = [
        (i, j)
        for i, j, fitting in _rows_of_pairs(model, fits)
        if len(fitting) >= MIN_TIE and fitting.mean() >= MIN_AGREEMENT
    ]
    one, other = np.array(ties, np.int64).reshape(-1, 2).T
    graph = csr_matrix((np.ones(len(one)), (one, other)), shape=(len(model), len(model)))
    _, group = connected_components(graph, directed=False)
    return np.flatnonzero(group != np.bincount(group).argmax())


def epipolar_agreement(
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches]
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the verified matches of each photograph that fit the poses of the model.

    A match fits if its Sampson distance (Hartley and Zisserman 2004, equation 11.9) is at most `MAX_EPIPOLAR_ERROR` of
    the longer side, and the rays meet in front of both cameras.

    Returns:
        ((N,) shares, 1 without matches; (N,) numbers of matches).
    """
    return _agreement(model, _fitting_matches(model, matches))


def _agreement(model: SparseModel, fits: Mapping[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    good, count = np.zeros(len(model)), np.zeros(len(model), np.int64)
    for i, j, fitting in _rows_of_pairs(model, fits):
        for row in (i, j):
            good[row] += fitting.sum()
            count[row] += len(fitting)
    return np.where(count > 0, good / np.maximum(count, 1), 1.0), count


def _rows_of_pairs(
    model: SparseModel, fits: Mapping[tuple[int, int], np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, row, (M,) bool which of their matches fit the poses) of the pairs of a part of a model."""
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    for (one, other), fitting in fits.items():
        if one in row_of and other in row_of:
            yield row_of[one], row_of[other], fitting


def _fitting_matches(
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches]
) -> dict[tuple[int, int], np.ndarray]:
    """Numbers of two photographs -> (M,) bool, which of their matches fit the poses of the model."""
    return {pair: distances <= limit for pair, (distances, limit) in matching_distances(model, matches).items()}


def matching_distances(
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches]
) -> dict[tuple[int, int], tuple[np.ndarray, float]]:
    """How far the matches of pairs of registered photographs are from their epipolar lines.

    Returns:
        Numbers of two photographs -> ((M,) `sampson_distances`, infinite where the rays do not meet in front of both
        cameras; the largest distance that fits: `MAX_EPIPOLAR_ERROR`).
    """
    found = {}
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    for (one, other), pair in matches.items():
        if one not in row_of or other not in row_of:
            continue
        i, j = row_of[one], row_of[other]
        other_from_one = invert_pose(model.world_from_camera[j]) @ model.world_from_camera[i]
        cameras = model.calibrations[i].camera, model.calibrations[j].camera
        limit = float(np.mean([MAX_EPIPOLAR_ERROR * max(c.width, c.height) / c.fx for c in cameras]))
        distances = sampson_distances(pair.rays_one, pair.rays_other, other_from_one)
        in_front = _in_front(pair.rays_one, pair.rays_other, other_from_one)
        found[one, other] = np.where(in_front, distances, np.inf), limit
    return found


def sampson_distances(rays_one: np.ndarray, rays_other: np.ndarray, other_from_one: np.ndarray) -> np.ndarray:
    """(M,) Sampson distances of matches to the epipolar geometry of a pose, in units of the plane z = 1.

    Cameras at one place have no epipolar geometry; their distance is that of the rays after the rotation.

    Args:
        rays_one, rays_other: (M, 3) rays with z = 1.
        other_from_one: (4, 4) relative pose.
    """
    baseline = float(np.linalg.norm(other_from_one[:3, 3]))
    if baseline < MIN_BASELINE:  # every match fits an essential matrix of zeros
        turned = rays_one @ other_from_one[:3, :3].T
        ahead = turned[:, 2] > MIN_BASELINE
        moved = turned / np.where(ahead, turned[:, 2], 1)[:, None] - rays_other
        return np.where(ahead, np.linalg.norm(moved, axis=1), np.inf)
    x, y, z = other_from_one[:3, 3] / baseline
    return _sampson(rays_one, rays_other, np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ other_from_one[:3, :3])


def _sampson(rays_one: np.ndarray, rays_other: np.ndarray, essential: np.ndarray) -> np.ndarray:
    lines_other, lines_one = rays_one @ essential.T, rays_other @ essential
    residual = (rays_other * lines_other).sum(axis=1)
    gradient = np.sqrt((lines_other[:, :2] ** 2).sum(axis=1) + (lines_one[:, :2] ** 2).sum(axis=1))
    return np.abs(residual) / np.maximum(gradient, 1e-12)


def _in_front(rays_one: np.ndarray, rays_other: np.ndarray, other_from_one: np.ndarray) -> np.ndarray:
    """(M,) bool, whether the rays meet in front of both cameras, up to nearly parallel ones."""
    turned = rays_one @ other_from_one[:3, :3].T
    t = other_from_one[:3, 3]
    # depth_other * r' = depth_one * turned + t, by least squares in the two depths.
    a, b, c = (turned**2).sum(axis=1), (turned * rays_other).sum(axis=1), (rays_other**2).sum(axis=1)
    d, e = turned @ t, rays_other @ t
    determinant = a * c - b * b
    depth_one, depth_other = b * e - c * d, a * e - b * d
    parallel = determinant < 1e-6 * a * c
    return parallel | ((depth_one > 0) & (depth_other > 0))
