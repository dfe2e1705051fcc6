"""Loop closure: places that are seen again, and the path that fits them.

Keyframes are retrieved by the image feature of the view bank, matched by descriptors, placed by PnP-RANSAC both ways,
and compared as a whole: depth and brightness of one warped into the other. A poster that hangs in two rooms passes the
first tests and fails the last one. A place that looks the same altogether is refused where the drift of the path cannot
explain it (`pose_graph.close_loops`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity, rotation_angles
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.memory.bank import image_feature
from worldstereo_ros.pipelines.pointmaps.pose_graph import (
    Edges,
    Similarities,
    chain_edges,
    close_loops,
    interpolate,
)
from worldstereo_ros.pipelines.pointmaps.tracks import match_rows, root_sift
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_POSES, Pointmaps
from worldstereo_ros.pipelines.pointmaps.visual_odometry import lift, solve_pose

KEYFRAME_STEP = 4  # frames between keyframes, at first
MAX_KEYFRAMES = 600  # where there are more, every other one is dropped and the step doubles
MIN_GAP = 30  # frames between two that may close a loop: about two windows
FEATURES, CONTRAST = 600, 0.003
SMALL_PX = 96  # longer side of what is compared as a whole
CANDIDATES = 6  # keyframes that each is matched with
MIN_LIKENESS = 0.3  # cosine of the features of images
MIN_MATCHES, MIN_INLIERS, MIN_INLIER_SHARE = 20, 16, 0.3
TOLERANCE_PX = 4.0  # of PnP, at a width of 640: depth maps bend
MAX_TURN_RAD, MAX_SHIFT_DEPTHS, MAX_SCALE = 0.1, 0.2, 0.3  # between the two ways
DEPTH_AGREES, MIN_DEPTH_SHARE = 0.3, 0.5  # of logarithms; share of the pixels
MIN_SEEN_SHARE, MIN_CORRELATION = 0.25, 0.4  # of the pixels that both see
MAX_LOOPS = 24
# Standard deviations of a loop, and of the chain between keyframes; the latter are those of worlds' walks, generously.
LOOP_SIGMA = (0.02, 0.04, 0.08)  # radians, median depths, logarithm
CHAIN_TURN, CHAIN_SHIFT, CHAIN_LENGTH, CHAIN_SCALE = 0.01, 0.006, 0.05, 0.04  # depths; share of the step
WEAK_LINK = np.array([0.05, 0.1, 0.5])  # of the chain where nothing of two keyframes can be matched
MEASURED_SCALE = 0.002
DRIFT_QUANTILE = 0.999


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


@dataclass(frozen=True)
class Closure:
    """The path with its loops closed.

    Attributes:
        poses: (F, 4, 4) of all frames.
        scale: (F,) factor of the unit of each frame's depth.
        loops: those that were used.
        refused: number of candidates that looked right and were refused, since the path's drift does not explain them.
    """

    poses: np.ndarray
    scale: np.ndarray
    loops: tuple[Loop, ...] = ()
    refused: int = 0

    @property
    def message(self) -> str:
        """A sentence about the loops; empty without any."""
        parts = []
        if self.loops:
            shown = ", ".join(f"{loop.first} and {loop.second}" for loop in self.loops[:3])
            more = f" and {len(self.loops) - 3} more pairs" if len(self.loops) > 3 else ""
            parts.append(f"Places were seen again (frames {shown}{more}): the path is corrected by them.")
        if self.refused:
            parts.append(
                f"{self.refused} pairs of frames look alike, but the path cannot have drifted so far: they are not "
                "taken for one place."
            )
        return " ".join(parts)


class LoopCloser:
    """Collects keyframes while point maps come, and closes loops at the end."""

    def __init__(self) -> None:
        self.keyframes: list[Keyframe] = []
        self._step = KEYFRAME_STEP
        self._poses: list[np.ndarray] = []
        self._shots: list[int] = []
        self._given = False

    def add(self, maps: Pointmaps, images: Sequence[np.ndarray]) -> None:
        """Takes the point maps of the next frames, and their images (H, W, 3) uint8 of any size."""
        self._given |= maps.scale_from == GIVEN_POSES
        depth: np.ndarray | None = None
        for f, image in enumerate(images):
            frame = len(self._poses)
            self._poses.append(maps.poses[f])
            self._shots.append(int(maps.shot[f]))
            if self._given or frame % self._step or not maps.frame_ok[f]:
                continue
            if depth is None:
                depth = np.where(maps.dynamic, np.float32(0), maps.depth)
            self.keyframes.append(make_keyframe(image, depth[f], maps, f, frame))
        if len(self.keyframes) > MAX_KEYFRAMES:
            self._step *= 2
            self.keyframes = [each for each in self.keyframes if each.frame % self._step == 0]

    def close(self) -> Closure:
        """The corrected path; that of the start where no place is seen again or the poses were given."""
        poses = np.stack(self._poses) if self._poses else np.zeros((0, 4, 4))
        scale, refused = np.ones(len(poses)), 0
        used: list[Loop] = []
        shots = np.array(self._shots)
        for shot in np.unique(shots):
            keyframes = [each for each in self.keyframes if each.shot == shot]
            found = find_loops(keyframes)
            if not found:
                continue
            frames = np.flatnonzero(shots == shot)
            closed = _closed(keyframes, found, poses[frames], frames)
            poses[frames], scale[frames] = closed.poses, closed.scale
            used += closed.loops
            refused += closed.refused
        return Closure(poses, scale, tuple(used), refused)


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


def find_loops(keyframes: Sequence[Keyframe]) -> list[Loop]:
    """Verified loops among the keyframes of one shot, the surest first."""
    if len(keyframes) < 2:
        return []
    features = np.stack([each.feature for each in keyframes])
    numbers = np.array([each.frame for each in keyframes])
    likeness = features @ features.T
    likeness[np.abs(numbers[:, None] - numbers[None]) < MIN_GAP] = -1
    pairs: set[tuple[int, int]] = set()
    for row in range(len(keyframes)):
        for column in np.argsort(-likeness[row])[:CANDIDATES]:
            if likeness[row, column] >= MIN_LIKENESS:
                pairs.add((min(row, int(column)), max(row, int(column))))
    found = [verify_loop(keyframes[a], keyframes[b]) for a, b in sorted(pairs)]
    loops = sorted((loop for loop in found if loop is not None), key=lambda loop: -loop.inliers)
    kept: list[Loop] = []
    for loop in loops:  # of two that tell the same, the surer one
        if all(abs(loop.first - o.first) + abs(loop.second - o.second) > KEYFRAME_STEP for o in kept):
            kept.append(loop)
    return kept[:MAX_LOOPS]


def verify_loop(first: Keyframe, second: Keyframe) -> Loop | None:
    """The relative similarity of two keyframes; None unless everything says that they show one place."""
    one, two = match_rows(_unit(first.descriptors), _unit(second.descriptors))
    if len(one) < MIN_MATCHES:
        return None
    there = _place(first, second, one, two)
    back = _place(second, first, two, one)
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


def _unit(descriptors: np.ndarray) -> np.ndarray:
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _place(one: Keyframe, two: Keyframe, rows: np.ndarray, others: np.ndarray) -> tuple[Similarity, int] | None:
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


def _closed(keyframes: Sequence[Keyframe], loops: Sequence[Loop], poses: np.ndarray, frames: np.ndarray) -> Closure:
    """The frames of one shot after its loops are closed."""
    at = np.array([each.frame for each in keyframes])
    start = Similarities.of_poses(np.stack([each.pose for each in keyframes]))
    depth = np.array([each.median_depth for each in keyframes])
    measured = all(each.measured for each in keyframes)
    sigma = np.stack([_link_sigma(a, b, measured) for a, b in itertools.pairwise(keyframes)])
    place = {frame: row for row, frame in enumerate(at.tolist())}
    first = np.array([place[loop.first] for loop in loops])
    relative = Similarities(
        np.log([loop.relative.scale for loop in loops]),
        np.stack([loop.relative.rotation for loop in loops]),
        np.stack([loop.relative.translation for loop in loops]),
    )
    turn, shift, grown = LOOP_SIGMA
    grown = MEASURED_SCALE if measured else grown
    loop_sigma = np.stack([np.full(len(loops), turn), shift * depth[first], np.full(len(loops), grown)], axis=1)
    edges = Edges(first, np.array([place[loop.second] for loop in loops]), relative, loop_sigma)
    nodes, used_rows = close_loops(start, chain_edges(start, sigma), edges, DRIFT_QUANTILE)
    kept = tuple(loop for loop, good in zip(loops, used_rows, strict=True) if good)
    if not kept:
        return Closure(poses, np.ones(len(poses)), (), len(loops))
    moved, scale = interpolate(nodes, start, at, poses, frames)
    return Closure(moved, scale, kept, int((~used_rows).sum()))


def _link_sigma(one: Keyframe, two: Keyframe, measured: bool) -> np.ndarray:
    """(3,) standard deviations of the way from one keyframe to the next, see `Edges`.

    The two are placed anew by their descriptors and depth maps: where this contradicts the path, or nothing can be
    matched, the path may have lost its scale there.
    """
    way = invert_pose(one.pose) @ two.pose
    depth, length = one.median_depth, float(np.linalg.norm(way[:3, 3]))
    spread = np.sqrt((two.frame - one.frame) / KEYFRAME_STEP)  # of a random walk
    base = np.array([CHAIN_TURN, CHAIN_SHIFT * depth, CHAIN_SCALE]) * spread
    base[1] = np.hypot(base[1], CHAIN_LENGTH * length)
    rows, others = match_rows(_unit(one.descriptors), _unit(two.descriptors))
    contradiction = WEAK_LINK * [1, depth, 1]
    for first, second, a, b, wanted in (
        (one, two, rows, others, way),
        (two, one, others, rows, invert_pose(way)),
    ):
        found = _place(first, second, a, b) if len(a) >= MIN_MATCHES else None
        if found is not None:
            relative, _ = found
            shift = float(np.linalg.norm(relative.translation - wanted[:3, 3]))
            turn = float(rotation_angles(relative.rotation, wanted[:3, :3]))
            contradiction = np.minimum(contradiction, [turn, shift, abs(np.log(relative.scale))])
    sigma = np.hypot(base, contradiction)
    if measured:
        sigma[2] = MEASURED_SCALE * spread
    return sigma


def apply_closure(maps: Pointmaps, closure: Closure) -> Pointmaps:
    """Point maps of all frames with their loops closed."""
    if not closure.loops:
        return maps if not closure.message else replace(maps, messages=(*maps.messages, closure.message))
    points = np.empty_like(maps.points)
    covariance = maps.pose_covariance.copy()
    for f in range(len(maps)):
        old, new, scale = maps.poses[f], closure.poses[f], closure.scale[f]
        turn = (scale * new[:3, :3] @ old[:3, :3].T).astype(np.float32)
        points[f] = (maps.points[f] - old[:3, 3].astype(np.float32)) @ turn.T + new[:3, 3].astype(np.float32)
        covariance[f, :3] *= scale
        covariance[f, :, :3] *= scale
    return replace(
        maps, points=points, poses=closure.poses.copy(), pose_covariance=covariance,
        messages=(*maps.messages, closure.message),
    )  # fmt: skip
