"""Keyframes that a place is recognised by, and whether two of them show one place.

They are matched by descriptors, placed by PnP-RANSAC both ways, and compared as a whole: depth and brightness of one
warped into the other. A poster that hangs in two rooms passes the first tests and fails the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity, rotation_angles
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.memory.bank import image_feature
from worldstereo_ros.pipelines.pointmaps.tracks import match_rows, root_sift
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.pipelines.pointmaps.visual_odometry import lift, solve_pose

FEATURES, CONTRAST = 600, 0.003
SMALL_PX = 96  # longer side of what is compared as a whole
CANDIDATES = 6  # keyframes that each is matched with
MIN_LIKENESS = 0.3  # cosine of the features of images
MIN_MATCHES, MIN_INLIERS, MIN_INLIER_SHARE = 20, 16, 0.3
TOLERANCE_PX = 4.0  # of PnP, at a width of 640: depth maps bend
MAX_TURN_RAD, MAX_SHIFT_DEPTHS, MAX_SCALE = 0.1, 0.2, 0.3  # between the two ways
DEPTH_AGREES, MIN_DEPTH_SHARE = 0.3, 0.5  # of logarithms; share of the pixels
MIN_SEEN_SHARE, MIN_CORRELATION = 0.25, 0.4  # of the pixels that both see


@dataclass(frozen=True)
class Keyframe:
    """What is kept of a frame to recognise its place.

    Attributes:
        frame: its number.
        shot: of which shot.
        pose: (4, 4) world_from_camera.
        camera: intrinsics.
        feature: (D,) of the whole image.
        pixels: (K, 2) keypoints that do not move.
        descriptors: (K, 128) uint8.
        depth: (K,) of the keypoints.
        small_grey, small_depth: (h, w) of the reduced frame; depth 0 = unknown or moving.
        measured: depth is of a sensor or has a scale that does not drift.
    """

    frame: int
    shot: int
    pose: np.ndarray
    camera: Camera
    feature: np.ndarray
    pixels: np.ndarray
    descriptors: np.ndarray
    depth: np.ndarray
    small_grey: np.ndarray
    small_depth: np.ndarray
    measured: bool

    @property
    def small_camera(self) -> Camera:
        """Intrinsics of the reduced frame."""
        height, width = self.small_grey.shape
        return self.camera.resized(width, height)

    @property
    def median_depth(self) -> float:
        """Median depth of the reduced frame; 1 where none is known."""
        known = self.small_depth[self.small_depth > 0]
        return float(np.median(known)) if known.size else 1.0


@dataclass(frozen=True)
class Loop:
    """Two frames of one place.

    Attributes:
        first, second: their numbers.
        relative: similarity from the axes of the second camera to those of the first.
        inliers: matched points that fit.
    """

    first: int
    second: int
    relative: Similarity
    inliers: int


def make_keyframe(image: np.ndarray, depth: np.ndarray, maps: Pointmaps, index: int, frame: int) -> Keyframe:
    """A keyframe of an image of any size.

    Args:
        image: (H, W, 3) uint8.
        depth: (h, w) of the point maps; 0 = unknown or moving.
        maps: the point maps that it is of.
        index: of the frame in them.
        frame: of the frame in the video.
    """
    camera = maps.camera
    if image.shape[:2] != depth.shape:
        image = resize_image(image, camera.width, camera.height)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    known = depth > 0
    pixels, descriptors = root_sift(grey, FEATURES, CONTRAST, known.astype(np.uint8))
    column = np.clip(np.rint(pixels[:, 0]).astype(np.int64), 0, camera.width - 1)
    row = np.clip(np.rint(pixels[:, 1]).astype(np.int64), 0, camera.height - 1)
    usable = known[row, column]
    factor = min(1.0, SMALL_PX / max(camera.width, camera.height))
    size = max(16, round(camera.width * factor)), max(16, round(camera.height * factor))
    return Keyframe(
        frame, int(maps.shot[index]), maps.poses[index], camera, image_feature(image), pixels[usable],
        np.clip(np.rint(512 * descriptors[usable]), 0, 255).astype(np.uint8), depth[row, column][usable],
        resize_image(grey, *size), cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT), maps.metric,
    )  # fmt: skip


def verify_loop(first: Keyframe, second: Keyframe) -> Loop | None:
    """The relative similarity of two keyframes; None unless everything says that they show one place."""
    one, two = match_rows(unit(first.descriptors), unit(second.descriptors))
    if len(one) < MIN_MATCHES:
        return None
    there = place(first, second, one, two)
    back = place(second, first, two, one)
    if there is None or back is None:
        return None
    (forward, inliers), (backward, _) = there, back
    around = forward.after(backward)
    if (
        rotation_angles(around.rotation, np.eye(3)) > MAX_TURN_RAD
        or np.linalg.norm(around.translation) > MAX_SHIFT_DEPTHS * first.median_depth
        or abs(np.log(around.scale)) > MAX_SCALE
    ):
        return None
    # A scale that does not drift is 1, and any other would only bring in the error of depth.
    if first.measured and second.measured:
        if abs(np.log(forward.scale)) > MAX_SCALE:
            return None
        forward = replace(forward, scale=1.0)
    if not agree(first, second, forward):
        return None
    return Loop(first.frame, second.frame, forward, inliers)


def unit(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors of norm 1."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def place(one: Keyframe, two: Keyframe, rows: np.ndarray, others: np.ndarray) -> tuple[Similarity, int] | None:
    """Similarity from the second camera's axes to the first one's, by points that the first one knows."""
    points = lift(one.pixels[rows].astype(np.float64), one.depth[rows].astype(np.float64), one.camera)
    tolerance = TOLERANCE_PX * max(two.camera.width / 640, 0.5)
    solved = solve_pose(points, two.pixels[others].astype(np.float64), two.camera, tolerance)
    if solved is None or solved[1].sum() < MIN_INLIERS or solved[1].mean() < MIN_INLIER_SHARE:
        return None
    pose, inlier = solved
    z = points[inlier] @ pose[2, :3] + pose[2, 3]
    scale = float(np.exp(np.median(np.log(z / two.depth[others][inlier]))))
    first_from_second = invert_pose(pose)
    return Similarity(scale, first_from_second[:3, :3], first_from_second[:3, 3]), int(inlier.sum())


def agree(first: Keyframe, second: Keyframe, relative: Similarity) -> bool:
    """Whether the whole of one frame, warped into the other, is what that one shows: its depth and its brightness.

    Args:
        first, second: keyframes.
        relative: from the axes of the second camera to those of the first.
    """
    camera = second.small_camera
    rows, columns = np.nonzero(second.small_depth > 0)
    if not len(rows):
        return False
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    points = relative.points(lift(pixels, second.small_depth[rows, columns].astype(np.float64), camera))
    target = first.small_camera
    z = np.maximum(points[:, 2], 1e-6)
    x = np.rint(points[:, 0] / z * target.fx + target.cx).astype(np.int64)
    y = np.rint(points[:, 1] / z * target.fy + target.cy).astype(np.int64)
    inside = (points[:, 2] > 1e-6) & (x >= 0) & (x < target.width) & (y >= 0) & (y < target.height)
    if inside.mean() < MIN_SEEN_SHARE:
        return False
    x, y, z, rows, columns = x[inside], y[inside], z[inside], rows[inside], columns[inside]
    known = first.small_depth[y, x]
    with np.errstate(divide="ignore"):
        off = np.abs(np.log(z) - np.log(np.where(known > 0, known, np.nan)))
    near = off < DEPTH_AGREES
    if near.sum() < MIN_DEPTH_SHARE * max(1, int(np.isfinite(off).sum())):
        return False
    # Blurred, so that the bend of a depth map by some pixels does not matter.
    one, two = (_normalised(each.small_grey) for each in (first, second))
    a, b = one[y[near], x[near]], two[rows[near], columns[near]]
    spread = float(a.std() * b.std())
    return spread > 1e-6 and float(((a - a.mean()) * (b - b.mean())).mean()) / spread >= MIN_CORRELATION


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Grey levels relative to their surroundings, blurred."""
    values = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.2)
    mean = cv2.GaussianBlur(values, (0, 0), 8)
    deviation = np.sqrt(np.maximum(cv2.GaussianBlur((values - mean) ** 2, (0, 0), 8), 1.0))
    return (values - mean) / deviation
