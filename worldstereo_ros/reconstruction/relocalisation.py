"""Where an imagined picture was taken, by what it shows: its pose against the captures, and whether it drifted.

Features (SIFT, Lowe 2004) of the picture are matched to those of the captures whose depth is known, and the pose
follows from these points (RANSAC over PnP). A picture whose content slid away from the pose that was asked for would
put surfaces where there are none, so it stays out of the geometry.

The decision is in pixels, since a rotation and a shift of the camera can look nearly the same: the median distance
between where the points are seen in the picture and where they should be at the pose that was asked for. More than
`MAX_DRIFT` of the image's diagonal is drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import rotation_angles
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.anyrecon.captures import visible_shares

MAX_DRIFT = 0.015  # of the image's diagonal: 8 px at 270x480, 6 px at 320x240
MAX_FEATURES = 1500  # of a picture
RATIO = 0.8  # of the distances to the nearest and the second nearest feature
COMPARED_CAPTURES = 4  # those that saw most of what the picture shows
MIN_INLIERS = 12  # fewer do not determine a pose that can be trusted
EXPECTED_FEATURES = 100  # of the captures in the picture; from this many on, too few that agree mean drift
MIN_CONTRAST = 0.02  # of SIFT; half of its default, since small pictures have few strong features
MAX_UNCERTAINTY_DEG = 1.0  # standard deviation of the rotation that the features leave open
INLIER_SHARE = 0.004  # of the diagonal: largest distance of a point that agrees with a pose; at least 1.5 px
MAX_EDGE = 0.03  # relative depth range of 3x3 pixels; more is an edge, where depth and picture need not agree
VISIBLE_RATIO = 0.05  # relative difference of depths within which a point is visible


@dataclass(frozen=True)
class PoseCheck:
    """Pose of an imagined picture by what it shows.

    Attributes:
        expected: features that should be visible in the picture, of the capture that shares most with it.
        matches: features of the picture that were found in the captures.
        inliers: of them, those that agree on one pose.
        degrees: angle between that pose and the one that was asked for; None if too few agree, or if they lie so close
            together that they leave the pose open by more than `MAX_UNCERTAINTY_DEG`.
        distance: distance of their centres in the unit of the poses; None as for `degrees`.
        share_of_depth: the same, of the median depth of these features.
        pixels: median distance of these features from where they should be; None if too few agree.
        drifted: the picture does not show what the captures show there.
    """

    expected: int
    matches: int
    inliers: int
    degrees: float | None = None
    distance: float | None = None
    share_of_depth: float | None = None
    pixels: float | None = None
    drifted: bool = False

    @property
    def located(self) -> bool:
        """Whether enough features agree to tell where they are in the picture."""
        return self.pixels is not None

    def __str__(self) -> str:
        if self.pixels is None:
            if self.drifted:
                return (
                    f"{self.inliers} of about {self.expected} features of the captures are found where they should be: "
                    "drifted"
                )
            return f"not located ({self.inliers} of {self.matches} features agree)"
        pose = ""
        if self.degrees is not None:
            pose = f"{self.degrees:.2f} degrees, {self.share_of_depth:.2%} of the depth and "
        return (
            f"off by {pose}{self.pixels:.1f} px "
            f"({self.inliers} of {self.matches} features agree){': drifted' if self.drifted else ''}"
        )


@dataclass(frozen=True)
class _Features:
    """Features of a capture with their places: descriptors (N, 128) float32, points (N, 3) float64 in the world."""

    descriptors: np.ndarray
    points: np.ndarray


class Relocaliser:
    """Locates pictures against captures.

    Args:
        captures: photographs; those without depth are left out. Depth that was measured or confirmed by other
            photographs is used; if all depth of a capture is estimated, that.
    """

    def __init__(self, captures: Sequence[View]) -> None:
        self._captures = [view for view in captures if view.depth is not None and (view.depth > 0).any()]
        self._features: dict[int, _Features] = {}

    def check(self, view: View) -> PoseCheck:
        """Locates a picture.

        Args:
            view: the picture, with the pose that was asked for. With depth, the captures that saw the same surfaces
                are compared; without, those that are nearest.
        """
        found = [self._features_of(index) for index in self._compared(view)]
        expected = max((_expected(features.points, view) for features in found), default=0)
        keypoints, descriptors = detect_features(view.image)
        matched = [match_features(descriptors, features.descriptors) for features in found]
        pixels = np.concatenate([np.zeros((0, 2)), *(keypoints[pairs[:, 0]] for pairs in matched)])
        places = np.concatenate(
            [np.zeros((0, 3)), *(one.points[pairs[:, 1]] for one, pairs in zip(found, matched, strict=True))]
        )
        return _judge(view, expected, pixels, places)

    def _compared(self, view: View) -> list[int]:
        """The captures that saw most of what the picture shows."""
        if not self._captures:
            return []
        if view.depth is not None and (view.depth > 0).any():
            shares = visible_shares(self._captures, view.depth[None], view.camera, view.world_from_camera[None])[0]
        else:
            centres = np.stack([capture.world_from_camera[:3, 3] for capture in self._captures])
            shares = 1 / (1e-9 + np.linalg.norm(centres - view.world_from_camera[:3, 3], axis=1))
        order = np.argsort(-shares, kind="stable")[:COMPARED_CAPTURES]
        return [int(index) for index in order if shares[index] > 0]

    def _features_of(self, index: int) -> _Features:
        if index not in self._features:
            view = self._captures[index]
            assert view.depth is not None
            keypoints, descriptors = detect_features(view.image)
            depth = np.where(view.estimated_mask, np.float32(0), view.depth)
            if not (depth > 0).any():
                depth = view.depth
            z = depth_at_features(depth, keypoints)
            camera, pose = view.camera, view.world_from_camera
            rays = np.stack(
                [(keypoints[:, 0] - camera.cx) / camera.fx, (keypoints[:, 1] - camera.cy) / camera.fy, np.ones(len(z))],
                axis=1,
            )
            known = z > 0
            points = (rays * z[:, None])[known] @ pose[:3, :3].T + pose[:3, 3]
            self._features[index] = _Features(descriptors[known], points)
        return self._features[index]


def detect_features(image: np.ndarray, limit: int = MAX_FEATURES) -> tuple[np.ndarray, np.ndarray]:
    """Features of an image (RootSIFT), the strongest first.

    Args:
        image: (H, W, 3) uint8 RGB.
        limit: largest number of features.

    Returns:
        ((N, 2) float64 places in pixels, (N, 128) float32 descriptors of norm 1).
    """
    detector = cv2.SIFT_create(nfeatures=limit, contrastThreshold=MIN_CONTRAST)  # type: ignore[attr-defined]
    keypoints, descriptors = detector.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    places = np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2)
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9)
    order = np.argsort([-keypoint.response for keypoint in keypoints], kind="stable")
    return places[order], np.sqrt(descriptors / total).astype(np.float32)[order]


def depth_at_features(depth: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) float64 depth at pixels (N, 2); 0 where it is unknown, or at an edge, where depth and picture may differ."""
    kernel = np.ones((3, 3), np.uint8)
    spread = cv2.dilate(depth, kernel) - cv2.erode(depth, kernel)
    smooth = np.where(spread <= MAX_EDGE * depth, depth, np.float32(0))
    u, v = np.rint(pixels).astype(np.int64).T
    return smooth[v.clip(0, len(depth) - 1), u.clip(0, depth.shape[1] - 1)].astype(np.float64)


def match_features(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(M, 2) int64 pairs of descriptors that are each other's nearest, and clearly so."""
    if len(one) < 2 or len(other) < 2:
        return np.zeros((0, 2), np.int64)
    similarity = one @ other.T  # of unit vectors
    nearest = similarity.argmax(axis=1)
    rows = np.arange(len(one))
    best = similarity[rows, nearest]
    similarity[rows, nearest] = -1
    second = similarity.max(axis=1)
    similarity[rows, nearest] = best
    distance, next_distance = (np.sqrt(np.maximum(2 - 2 * values, 0)) for values in (best, second))
    rows = np.flatnonzero(distance < RATIO * next_distance)
    back = similarity[:, nearest[rows]].argmax(axis=0)
    rows = rows[back == rows]
    return np.stack([rows, nearest[rows]], axis=1).astype(np.int64)


def _expected(points: np.ndarray, view: View) -> int:
    """How many of the points (N, 3) should be visible in a picture."""
    uv, z = project(points, view.camera, view.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u < view.camera.width) & (v < view.camera.height)
    if view.depth is None:
        return int(inside.sum())
    depth = view.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
    return int((np.abs(depth - z[inside]) <= VISIBLE_RATIO * z[inside]).sum())


def _judge(view: View, expected: int, pixels: np.ndarray, points: np.ndarray) -> PoseCheck:
    camera = view.camera
    diagonal = float(np.hypot(camera.width, camera.height))
    pose, inliers = locate(pixels, points, camera, max(1.5, INLIER_SHARE * diagonal))
    if pose is None or len(inliers) < MIN_INLIERS:
        return PoseCheck(expected, len(pixels), len(inliers), drifted=expected >= EXPECTED_FEATURES)
    asked = view.world_from_camera
    uv, z = project(points[inliers], camera, asked)
    shift = np.where(z > 0, np.linalg.norm(uv - pixels[inliers], axis=1), diagonal)
    moved = float(np.median(shift))
    drifted = moved > MAX_DRIFT * diagonal
    if pose_uncertainty(pixels[inliers], points[inliers], camera, pose)[0] > MAX_UNCERTAINTY_DEG:
        return PoseCheck(expected, len(pixels), len(inliers), pixels=moved, drifted=drifted)
    depth = points[inliers] @ invert_pose(asked)[2, :3] + invert_pose(asked)[2, 3]
    distance = float(np.linalg.norm(pose[:3, 3] - asked[:3, 3]))
    return PoseCheck(
        expected,
        len(pixels),
        len(inliers),
        degrees=float(np.degrees(rotation_angles(pose[:3, :3], asked[:3, :3]))),
        distance=distance,
        share_of_depth=distance / max(float(np.median(np.abs(depth))), 1e-12),
        pixels=moved,
        drifted=drifted,
    )


def pose_uncertainty(pixels: np.ndarray, points: np.ndarray, camera: Camera, pose: np.ndarray) -> tuple[float, float]:
    """Standard deviations of a pose, in the directions that its pairs of pixels and points leave most open.

    Args:
        pixels: (N, 2) where the points are seen.
        points: (N, 3) in the world.
        camera: intrinsics.
        pose: (4, 4) world_from_camera.

    Returns:
        (rotation in degrees, position in the unit of the poses).
    """
    local = points - pose[:3, 3]  # around the camera, so that its position is not that of a far origin
    rotation = cv2.Rodrigues(pose[:3, :3].T)[0]
    projected, jacobian = cv2.projectPoints(local, rotation, np.zeros(3), camera.matrix.astype(np.float64), np.zeros(4))
    by_pose = jacobian[:, :6]
    variance = float(((projected.reshape(-1, 2) - pixels) ** 2).sum()) / max(1, 2 * len(pixels) - 6)
    distance = float(np.linalg.norm(local, axis=1).mean())
    by_pose = by_pose * np.array([1.0] * 3 + [distance] * 3)
    covariance = variance * np.linalg.pinv(by_pose.T @ by_pose, rcond=1e-14)
    turned, moved = (
        max(0.0, float(np.linalg.eigvalsh(block)[-1])) for block in (covariance[:3, :3], covariance[3:, 3:])
    )
    return float(np.degrees(np.sqrt(turned))), distance * float(np.sqrt(moved))


def locate(
    pixels: np.ndarray, points: np.ndarray, camera: Camera, tolerance: float, *, minimum: int = MIN_INLIERS
) -> tuple[np.ndarray | None, np.ndarray]:
    """Pose of a camera from points that it sees (RANSAC over PnP, refined on those that agree).

    Args:
        pixels: (N, 2) float64.
        points: (N, 3) float64 in the world.
        camera: intrinsics.
        tolerance: pixels within which a pair agrees.
        minimum: pairs that have to agree.

    Returns:
        (world_from_camera (4, 4) of most of the pairs, None if fewer than `minimum` agree; indices of those that do).
    """
    none = np.zeros(0, np.int64)
    if len(pixels) < minimum:
        return None, none
    matrix, straight = camera.matrix.astype(np.float64), np.zeros(4)
    points, pixels = np.ascontiguousarray(points), np.ascontiguousarray(pixels)
    try:
        found, rotation, translation, inliers = cv2.solvePnPRansac(
            points, pixels, matrix, straight,
            iterationsCount=1000, reprojectionError=tolerance, confidence=0.999, flags=cv2.SOLVEPNP_SQPNP,
        )  # fmt: skip
        if not found or inliers is None or len(inliers) < minimum:
            return None, none if inliers is None else inliers.reshape(-1)
        inliers = inliers.reshape(-1)
        rotation, translation = cv2.solvePnPRefineLM(
            points[inliers], pixels[inliers], matrix, straight, rotation, translation
        )
    except cv2.error:  # degenerate points
        return None, none
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3], camera_from_world[:3, 3] = cv2.Rodrigues(rotation)[0], translation.reshape(3)
    return invert_pose(camera_from_world), inliers
