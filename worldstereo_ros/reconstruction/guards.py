"""Checks of a registration, so that a wrong pose does not pass in silence.

A bundle adjustment finds some pose for any few matches: three wide photographs without intrinsics give a model on
twelve points in which a camera is off by 88 degrees, with a small reprojection error. What gives it away is how few
points it has, and that the matches of the photographs, taken pair by pair, contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
MIN_UNCALIBRATED = 4  # photographs; three or fewer do not determine intrinsics that nobody knows


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
    for _ in range(len(model)):
        part = model.subset(rows)
        refused = _whole(part, [intrinsics_known[int(row)] for row in rows])
        if refused:
            return Verdict(np.zeros(0, np.int64), {int(model.photographs[row]): refused for row in rows}, refused)
        worst = _worst(part, matches, [exif_focal[int(row)] for row in rows] if len(exif_focal) else [])
        if worst is None:
            return Verdict(rows, reasons)
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
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches], exif_focal: Sequence[float | None]
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
    share, checked = epipolar_agreement(model, matches)
    share = np.where(checked >= MIN_CHECKED_MATCHES, share, 1.0)
    row = int(share.argmin())
    if share[row] < MIN_AGREEMENT:
        return row, (
            f"Its pose contradicts its picture: {share[row]:.0%} of the {checked[row]} features that it shares with "
            "others fit. Something moved, or the place repeats itself."
        )
    return None


def epipolar_agreement(
    model: SparseModel, matches: Mapping[tuple[int, int], PairMatches]
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the verified matches of each photograph that fit the poses of the model.

    A match fits if its Sampson distance (Hartley and Zisserman 2004, equation 11.9) is at most `MAX_EPIPOLAR_ERROR` of
    the longer side, and the rays meet in front of both cameras.

    Returns:
        ((N,) shares, 1 without matches; (N,) numbers of matches).
    """
    row_of = {int(number): row for row, number in enumerate(model.photographs)}
    good, count = np.zeros(len(model)), np.zeros(len(model), np.int64)
    for (one, other), pair in matches.items():
        if one not in row_of or other not in row_of:
            continue
        i, j = row_of[one], row_of[other]
        other_from_one = invert_pose(model.world_from_camera[j]) @ model.world_from_camera[i]
        cameras = model.calibrations[i].camera, model.calibrations[j].camera
        limit = np.mean([MAX_EPIPOLAR_ERROR * max(c.width, c.height) / c.fx for c in cameras])
        fits = sampson_distances(pair.rays_one, pair.rays_other, other_from_one) <= limit
        fits &= _in_front(pair.rays_one, pair.rays_other, other_from_one)
        for row in (i, j):
            good[row] += fits.sum()
            count[row] += len(fits)
    return np.where(count > 0, good / np.maximum(count, 1), 1.0), count


def sampson_distances(rays_one: np.ndarray, rays_other: np.ndarray, other_from_one: np.ndarray) -> np.ndarray:
    """(M,) Sampson distances of matches to the epipolar geometry of a pose, in units of the plane z = 1.

    Args:
        rays_one, rays_other: (M, 3) rays with z = 1.
        other_from_one: (4, 4) relative pose.
    """
    x, y, z = other_from_one[:3, 3] / max(float(np.linalg.norm(other_from_one[:3, 3])), 1e-12)
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ other_from_one[:3, :3]
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
