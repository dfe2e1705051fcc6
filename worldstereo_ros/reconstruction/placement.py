"""Where a photograph without a pose was taken, by what captures with poses show: its pose, or why it has none.

Features of the photograph are matched to those of the captures. A feature that two captures or more show is
triangulated from their poses, which needs no depth; one that a sensor measured has its depth. The pose follows from
these points (RANSAC over PnP) and has to pass the guards of `PlacementSettings`: repeated patterns, a plane seen from
far away and a few matches by chance all give some pose, and a wrong one would put surfaces where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import rotation_angles
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction.guards import sampson_distances
from worldstereo_ros.reconstruction.relocalisation import (
    depth_at_features,
    detect_features,
    locate,
    match_features,
    pose_uncertainty,
)

WORKING_SIDE_PX = 1600  # longer side that larger images are reduced to
MAX_FEATURES = 2000  # of an image
STRONGEST = 500  # features, by which the captures are compared first
COMPARED_CAPTURES = 12  # of which all features are compared: those that share most of the strongest ones
NEIGHBOURS = 6  # captures that are returned: those that share most points with the photograph
TOLERANCE = 0.0025  # of the longer side: pixels within which a point agrees with a pose, 2.4 of 960
MIN_TOLERANCE_PX = 1.5
MIN_ANGLE_DEG = 1.5  # between the rays of a triangulated point
MAX_NEAR = 0.3  # a second pose is the same place if it is this share of the depth away, and
MAX_NEAR_DEG = 10.0  # turned by no more
# Of thirty placements of photographs of a fox among eight to twenty others, the error of the position was 2.6 times
# what points with independent errors leave open (nine in ten: at most 3.9 times), of the rotation 2.1 (3.5) times.
POINTS_PER_INDEPENDENT = 8


@dataclass(frozen=True)
class PlacementSettings:
    """What a pose has to pass.

    Attributes:
        min_points: points that agree with it.
        min_share: share of all points that agree; with fewer, chance may have found it.
        min_agreement: share of the matches with the capture that fits best that lie on their epipolar lines; most of
            them were not used for the pose.
        min_checked: matches with a capture from which on it is asked.
        max_rival: points of the best other pose, over those of this one; more is a repeated pattern.
        max_rotation_deg: standard deviation of the rotation that the points leave open.
        max_position: standard deviation of the position, in shares of the median depth.
    """

    min_points: int = 30
    min_share: float = 0.2
    min_agreement: float = 0.5
    min_checked: int = 20
    max_rival: float = 0.5
    max_rotation_deg: float = 1.0
    max_position: float = 0.03


@dataclass(frozen=True)
class Placement:
    """Where a photograph was taken.

    Attributes:
        world_from_camera: (4, 4) pose; None if it has none that can be trusted.
        reason: why it has none; empty if it has one.
        points: (N, 3) float64 points that agree with the pose.
        compared: number of points that the pose was found among.
        neighbours: indices of the captures that share most of these points, the best first.
        position_error: standard deviation of the position in the unit of the poses; 0 without a pose.
        rotation_error_deg: that of the rotation.
    """

    world_from_camera: np.ndarray | None
    reason: str
    points: np.ndarray
    compared: int
    neighbours: tuple[int, ...] = ()
    position_error: float = 0.0
    rotation_error_deg: float = 0.0


@dataclass(frozen=True)
class _Features:
    """Features of an image, the strongest first: pixels (N, 2) float64, descriptors (N, 128), depth (N,), 0 = none."""

    image: np.ndarray
    pixels: np.ndarray
    descriptors: np.ndarray
    depth: np.ndarray


class PhotographPlacer:
    """Places photographs among captures. Features of captures are kept from one photograph to the next."""

    def __init__(self, settings: PlacementSettings | None = None) -> None:
        self._settings = settings or PlacementSettings()
        self._kept: dict[int, _Features] = {}

    def place(self, photograph: np.ndarray, camera: Camera, captures: Sequence[View]) -> Placement:
        """Finds the pose of a photograph.

        Args:
            photograph: (H, W, 3) uint8 RGB, without distortion.
            camera: its intrinsics.
            captures: observations with poses, in one frame and unit. Only depth that was measured is used.
        """
        if not captures:
            return _refused("There is no capture with a pose yet to compare it with.")
        own = _detect(View(photograph, camera, np.eye(4)))
        if len(own.pixels) < self._settings.min_points:
            return _refused(
                f"It shows {len(own.pixels)} features; at least {self._settings.min_points} are needed. Take it with "
                "more light, or of a place with texture."
            )
        features = [self._features_of(view) for view in captures]
        self._kept = {id(one.image): one for one in features}  # forget captures that are gone
        shared = [len(match_features(own.descriptors[:STRONGEST], one.descriptors[:STRONGEST])) for one in features]
        compared = [int(i) for i in np.argsort(np.negative(shared), kind="stable")[:COMPARED_CAPTURES]]
        matches = {i: match_features(own.descriptors, features[i].descriptors) for i in compared}
        points, rows, supporters = _points(own, features, captures, matches)
        return self._judged(own, camera, captures, features, matches, points, rows, supporters)

    def _features_of(self, view: View) -> _Features:
        kept = self._kept.get(id(view.image))
        if kept is not None and kept.image is view.image:
            return _Features(kept.image, kept.pixels, kept.descriptors, _measured_depth(view, kept.pixels))
        return _detect(view)

    def _judged(
        self,
        own: _Features,
        camera: Camera,
        captures: Sequence[View],
        features: Sequence[_Features],
        matches: dict[int, np.ndarray],
        points: np.ndarray,
        rows: np.ndarray,
        supporters: np.ndarray,
    ) -> Placement:
        """The pose that most of the points agree with, if it passes all guards."""
        limits, count = self._settings, len(points)
        most = max((len(pairs) for pairs in matches.values()), default=0)
        known = f"{count} of known position; {limits.min_points} at least are needed"
        overlap = "Take photographs between it and the captures, or of a place that they show."
        if count < limits.min_points:
            if most >= limits.min_points:
                return _refused(
                    f"It shares {most} features with one capture, and {known}: those that two captures show, or whose "
                    f"depth was measured. {overlap}",
                    count,
                )
            return _refused(
                f"It does not overlap the map: it shares {most} features with the capture that shows most of it, and "
                f"{known}. {overlap}",
                count,
            )
        pixels, tolerance = own.pixels[rows], _tolerance(camera)
        pose, inliers = locate(pixels, points, camera, tolerance, minimum=limits.min_points)
        share = len(inliers) / count
        if pose is None or share < limits.min_share:
            return _refused(
                f"No pose is certain: {len(inliers)} of {count} shared points agree on one, and {limits.min_points} "
                f"and {limits.min_share:.0%} are needed. {overlap}",
                count,
            )
        depth = points[inliers] @ invert_pose(pose)[2, :3] + invert_pose(pose)[2, 3]
        median = float(np.median(depth))
        if (depth <= 0).mean() > 0.02 or median <= 0:
            return _refused("No pose is certain: points that it sees would lie behind it.", count)
        rotation, position = pose_uncertainty(pixels[inliers], points[inliers], camera, pose)
        if rotation > limits.max_rotation_deg or position > limits.max_position * median:
            return _refused(
                f"Its {len(inliers)} shared points leave its pose open (by {rotation:.1f} degrees and "
                f"{position / median:.0%} of their distance). {overlap}",
                count,
            )
        rival = self._rival(pixels, points, inliers, camera, pose, median, tolerance)
        if rival > limits.max_rival * len(inliers):
            return _refused(
                f"Two poses fit it, with {len(inliers)} and {rival} points: the place has a pattern that repeats. Take "
                "a photograph that shows more around it.",
                count,
            )
        agreement, checked = _agreement(own, camera, captures, features, matches, pose)
        tested = [one for one, of in zip(agreement, checked, strict=True) if of >= limits.min_checked]
        if tested and max(tested) < limits.min_agreement:
            return _refused(
                f"The pose that {len(inliers)} points give contradicts the rest of the picture: at most "
                f"{max(tested):.0%} of the features that it shares with a capture fit. {overlap}",
                count,
            )
        votes = supporters[inliers].sum(axis=0)
        order = [int(i) for i in np.argsort(-votes, kind="stable")[:NEIGHBOURS] if votes[i] > 0]
        # Errors of points that come from one capture are alike, so that they count for fewer independent ones.
        factor = POINTS_PER_INDEPENDENT**0.5
        return Placement(pose, "", points[inliers], count, tuple(order), factor * position, factor * rotation)

    def _rival(
        self,
        pixels: np.ndarray,
        points: np.ndarray,
        inliers: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        depth: float,
        tolerance: float,
    ) -> int:
        """Number of the remaining points that agree on one other pose, at another place."""
        rest = np.setdiff1d(np.arange(len(points)), inliers)
        minimum = max(12, round(self._settings.max_rival * len(inliers)))
        other, agreeing = locate(pixels[rest], points[rest], camera, tolerance, minimum=minimum)
        if other is None:
            return 0
        near = np.linalg.norm(other[:3, 3] - pose[:3, 3]) <= MAX_NEAR * depth
        turned = float(np.degrees(rotation_angles(other[:3, :3], pose[:3, :3])))
        return 0 if near and turned <= MAX_NEAR_DEG else len(agreeing)


def _refused(reason: str, compared: int = 0) -> Placement:
    return Placement(None, reason, np.zeros((0, 3)), compared)


def _tolerance(camera: Camera) -> float:
    return max(MIN_TOLERANCE_PX, TOLERANCE * max(camera.width, camera.height))


def _detect(view: View) -> _Features:
    """Features of a view, the strongest first. A large image is reduced first; pixels are those of the view."""
    width, height = view.camera.width, view.camera.height
    factor = min(1.0, WORKING_SIDE_PX / max(width, height))
    image = view.image if factor == 1 else view.resized(round(width * factor), round(height * factor)).image
    pixels, descriptors = detect_features(image, MAX_FEATURES)
    scale = np.array([width / image.shape[1], height / image.shape[0]])
    pixels = (pixels + 0.5) * scale - 0.5
    return _Features(view.image, pixels, descriptors, _measured_depth(view, pixels))


def _measured_depth(view: View, pixels: np.ndarray) -> np.ndarray:
    """(N,) measured depth at the pixels; 0 where there is none."""
    if view.depth is None:
        return np.zeros(len(pixels))
    return depth_at_features(np.where(view.estimated_mask, np.float32(0), view.depth), pixels)


# --- points of known position ----------------------------------------------------------------------------------------


def _points(
    own: _Features, features: Sequence[_Features], captures: Sequence[View], matches: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the features of a photograph, from the captures that show them.

    Returns:
        ((N, 3) float64 points, (N,) int64 features of the photograph, (N, M) bool which of M captures shows each).
    """
    seen = np.full((len(captures), len(own.pixels)), -1, np.int64)  # feature of the capture
    for i, pairs in matches.items():
        seen[i, pairs[:, 0]] = pairs[:, 1]
    best = np.zeros((len(own.pixels), 3))
    most = np.zeros(len(own.pixels), np.int64)
    shown = np.zeros((len(own.pixels), len(captures)), bool)

    def offer(rows: np.ndarray, places: np.ndarray, needed: int) -> None:
        """Takes the places for features of which more captures show them there than at the best place so far."""
        agree = np.zeros((len(rows), len(captures)), bool)
        for i in matches:
            known = seen[i, rows] >= 0
            uv, z = project(places[known], captures[i].camera, captures[i].world_from_camera)
            error = np.linalg.norm(uv - features[i].pixels[seen[i, rows[known]]], axis=1)
            agree[known, i] = (z > 0) & (error <= _tolerance(captures[i].camera))
        count = agree.sum(axis=1)
        better = (count >= needed) & (count > most[rows])
        best[rows[better]], most[rows[better]], shown[rows[better]] = places[better], count[better], agree[better]

    listed = sorted(matches)
    for i in listed:  # measured
        rows = np.flatnonzero(seen[i] >= 0)
        depth = features[i].depth[seen[i, rows]]
        rows, depth = rows[depth > 0], depth[depth > 0]
        pixels = features[i].pixels[seen[i, rows]]
        offer(rows, _rays(pixels, captures[i], unit=False) * depth[:, None] + captures[i].world_from_camera[:3, 3], 1)
    for a, i in enumerate(listed):
        for j in listed[a + 1 :]:
            rows = np.flatnonzero((seen[i] >= 0) & (seen[j] >= 0))
            one = _rays(features[i].pixels[seen[i, rows]], captures[i])
            other = _rays(features[j].pixels[seen[j, rows]], captures[j])
            places, angle = _meet(captures[i].world_from_camera, one, captures[j].world_from_camera, other)
            kept = angle >= np.radians(MIN_ANGLE_DEG)
            offer(rows[kept], places[kept], 2)
    found = np.flatnonzero(most > 0)
    return best[found], found, shown[found]


def _rays(pixels: np.ndarray, view: View, *, unit: bool = True) -> np.ndarray:
    """(N, 3) directions in the world of pixels (N, 2), of length 1, or with a depth of 1."""
    camera = view.camera
    x, y = (pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy
    rays = np.stack([x, y, np.ones(len(pixels))], axis=1)
    if unit:
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return rays @ view.world_from_camera[:3, :3].T


def _meet(
    one: np.ndarray, rays: np.ndarray, other: np.ndarray, other_rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((N, 3) points half way between pairs of rays, (N,) angles between them); of parallel ones the angle is 0."""
    between = other[:3, 3] - one[:3, 3]
    cosine = np.clip((rays * other_rays).sum(axis=1), -1, 1)
    determinant = np.maximum(1 - cosine**2, 1e-12)
    a, b = rays @ between, other_rays @ between
    s, t = (a - cosine * b) / determinant, (cosine * a - b) / determinant
    return 0.5 * (one[:3, 3] + rays * s[:, None] + other[:3, 3] + other_rays * t[:, None]), np.arccos(cosine)


def _agreement(
    own: _Features,
    camera: Camera,
    captures: Sequence[View],
    features: Sequence[_Features],
    matches: dict[int, np.ndarray],
    pose: np.ndarray,
) -> tuple[list[float], list[int]]:
    """(share of the matches with each capture on their epipolar lines under a pose, number of matches)."""
    shares, counts = [], []
    placed = View(own.image, camera, np.eye(4))
    for i, pairs in matches.items():
        view = captures[i]
        one = _rays(own.pixels[pairs[:, 0]], placed, unit=False)
        local = View(view.image, view.camera, np.eye(4))
        other = _rays(features[i].pixels[pairs[:, 1]], local, unit=False)
        limit = _tolerance(camera) / camera.fx
        fits = sampson_distances(one, other, invert_pose(view.world_from_camera) @ pose) <= limit
        shares.append(float(fits.mean()) if len(pairs) else 0.0)
        counts.append(len(pairs))
    return shares, counts
