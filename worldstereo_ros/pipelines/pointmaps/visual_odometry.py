"""Visual odometry: the pose of each frame from those before it, at the scale of their depth maps.

Two ways compete for each frame. PnP-RANSAC takes points of earlier frames: those that were triangulated, and others
lifted by the depth map of a keyframe. Depth maps of a network bend space, so that few lifted points may fit; then the
essential matrix, which needs no depth, gives rotation and direction, and depths only give the length of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps.tracks import Tracks

MIN_POINTS = 12
MIN_INLIER_SHARE = 0.3
REPROJECTION_PX = 2.0  # at a width of 640
MIN_SHARED_SHARE = 0.5  # of a keyframe's points; where fewer are seen, the frame becomes the next keyframe
GOOD_INLIER_SHARE = 0.8  # of PnP; with less, the essential matrix is tried, too
MIN_ADVANTAGE = 1.2  # of its share of inliers over that of PnP
EPIPOLAR_TOLERANCE = 0.5  # of the tolerance of PnP
MIN_PARALLAX = 1.0  # median motion beyond rotation, in tolerances of PnP, that a direction takes
MIN_ANGLE_DEG = 1.0  # between the rays of a triangulated point
MAX_KEYFRAME_MOTION = 0.12  # median motion since the keyframe, as a share of the width


@dataclass(frozen=True)
class Odometry:
    """Poses of F frames.

    Attributes:
        world_from_camera: (F, 4, 4); the first is the identity. A lost frame has the pose of the one before.
        found: (F,) bool, the pose was found.
        inlier_share: (F,) share of the shared points that fit.
        log_scale: (F,) logarithmic scale of each depth map relative to the first one.
        points: (N, 3) world positions of the tracks that were triangulated; NaN for the others.
    """

    world_from_camera: np.ndarray
    found: np.ndarray
    inlier_share: np.ndarray
    log_scale: np.ndarray
    points: np.ndarray


def sample_map(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) values of a map (H, W) at pixels (N, 2), bilinear; NaN outside and where a neighbour is not finite."""
    inside = np.isfinite(pixels).all(axis=1)
    at = np.where(inside[:, None], pixels, 0).astype(np.float32)
    found = cv2.remap(
        values.astype(np.float32), at[:, 0].reshape(1, -1), at[:, 1].reshape(1, -1), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    ).ravel().astype(np.float64) if len(at) else np.zeros(0)  # fmt: skip
    height, width = values.shape
    inside &= (at >= -0.5).all(axis=1) & (at[:, 0] <= width - 0.5) & (at[:, 1] <= height - 0.5)
    return np.where(inside, found, np.nan)


def log_depth_of(depth: np.ndarray) -> np.ndarray:
    """Logarithm of depth; NaN where it is unknown (0) or not finite."""
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, np.log(np.where(known, depth, 1)), np.nan)


def lift(pixels: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """(N, 3) camera points of pixels (N, 2) at depths (N,)."""
    rays = np.stack([(pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy], axis=1)
    return np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depth[:, None]


def solve_pose(
    points: np.ndarray, pixels: np.ndarray, camera: Camera, tolerance_px: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pose of a camera by PnP-RANSAC, refined on its inliers.

    Args:
        points: (N, 3) in some frame.
        pixels: (N, 2) where the camera sees them.
        camera: intrinsics.
        tolerance_px: largest reprojection error of an inlier.

    Returns:
        (camera_from_points (4, 4), (N,) bool inliers); None where too few fit.
    """
    if len(points) < MIN_POINTS:
        return None
    cv2.setRNGSeed(1)
    try:
        solved, turn, shift, rows = cv2.solvePnPRansac(
            points, pixels, camera.matrix, None, reprojectionError=tolerance_px, iterationsCount=300,
            confidence=0.999, flags=cv2.SOLVEPNP_EPNP,
        )  # fmt: skip
    except cv2.error:
        return None
    if not solved or rows is None or len(rows) < MIN_POINTS:
        return None
    inlier = np.zeros(len(points), bool)
    inlier[rows.ravel()] = True
    pose = np.eye(4)
    for _ in range(3):
        turn, shift = cv2.solvePnPRefineLM(points[inlier], pixels[inlier], camera.matrix, None, turn, shift)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
        if not np.isfinite(pose).all():
            return None
        there = points @ pose[:3, :3].T + pose[:3, 3]
        ahead = there[:, 2] > 1e-6
        z = np.where(ahead, there[:, 2], 1)
        image = there[:, :2] / z[:, None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        inlier = ahead & (np.linalg.norm(image - pixels, axis=1) < tolerance_px)
        if inlier.sum() < MIN_POINTS:
            return None
    return pose, inlier


@dataclass
class _Map:
    """Points so far: their world positions, NaN where they are unknown."""

    tracks: Tracks
    logs: np.ndarray  # (N, F) log depth of the maps at the tracks
    camera: Camera
    poses: np.ndarray
    scale: np.ndarray
    points: np.ndarray

    def known_in(self, frame: int) -> np.ndarray:
        """(N, 3) world points: triangulated, else lifted by the depth map of a frame; NaN where neither is."""
        pixels = self.tracks.pixels[:, frame]
        lifted = lift(pixels, np.exp(self.logs[:, frame] + self.scale[frame]), self.camera)
        lifted = lifted @ self.poses[frame, :3, :3].T + self.poses[frame, :3, 3]
        return np.where(np.isfinite(self.points), self.points, lifted)

    def triangulate(self, frame: int, found: np.ndarray, tolerance_px: float) -> None:
        """Adds points that a new frame and the first found frame with them see from different places."""
        seen = self.tracks.seen & found
        first = seen.argmax(axis=1)
        rows = np.flatnonzero(seen[:, frame] & (first < frame) & ~np.isfinite(self.points[:, 0]))
        for start in np.unique(first[rows]):
            chosen = rows[first[rows] == start]
            relative = invert_pose(self.poses[frame]) @ self.poses[start]
            one, two = self.tracks.pixels[chosen, start], self.tracks.pixels[chosen, frame]
            depth, good = triangulate(one, two, relative, self.camera, tolerance_px)
            local = lift(one[good], depth[good], self.camera)
            self.points[chosen[good]] = local @ self.poses[start, :3, :3].T + self.poses[start, :3, 3]


def triangulate(
    one: np.ndarray, two: np.ndarray, two_from_one: np.ndarray, camera: Camera, tolerance_px: float,
    min_angle_deg: float = MIN_ANGLE_DEG,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Depths of points seen by two cameras, in the first one, by the midpoint of the two rays.

    Args:
        one, two: (N, 2) pixels.
        two_from_one: (4, 4).
        camera: intrinsics of both.
        tolerance_px: largest reprojection error in the second image.
        min_angle_deg: least angle between the rays.

    Returns:
        (N,) depths, and (N,) bool: they are positive, of rays at an angle, and fit.
    """
    rays = lift(one, np.ones(len(one)), camera)
    there = lift(two, np.ones(len(two)), camera)
    turned, shift = rays @ two_from_one[:3, :3].T, two_from_one[:3, 3]
    # turned * z1 + shift = there * z2, least squares.
    aa, bb, ab = (turned**2).sum(axis=1), (there**2).sum(axis=1), (turned * there).sum(axis=1)
    at, bt = turned @ shift, there @ shift
    determinant = np.maximum(aa * bb - ab**2, 1e-12)
    depth = (ab * bt - bb * at) / determinant
    angle = np.degrees(np.arcsin(np.sqrt(np.clip(1 - ab**2 / (aa * bb), 0, 1))))
    point = turned * depth[:, None] + shift
    ahead = (point[:, 2] > 1e-6) & (depth > 1e-6)
    z = np.where(ahead, point[:, 2], 1)
    image = point[:, :2] / z[:, None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    return depth, ahead & (angle > min_angle_deg) & (np.linalg.norm(image - two, axis=1) < tolerance_px)


def relative_pose(
    one: np.ndarray, two: np.ndarray, camera: Camera, tolerance_px: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Rotation and direction between two cameras by the essential matrix (MAGSAC++).

    Args:
        one, two: (N, 2) pixels.
        camera: intrinsics of both.
        tolerance_px: distance from the epipolar line of an inlier.

    Returns:
        (two_from_one (4, 4) with a translation of length 1, (N,) bool inliers, median motion in pixels of the inliers
        that the rotation alone does not explain); None where too few fit.
    """
    if len(one) < MIN_POINTS:
        return None
    cv2.setRNGSeed(1)
    try:
        essential, mask = cv2.findEssentialMat(one, two, camera.matrix, cv2.USAC_MAGSAC, 0.999, tolerance_px)
        if essential is None or essential.shape != (3, 3) or mask.sum() < MIN_POINTS:
            return None
        count, turn, shift, front = cv2.recoverPose(essential, one, two, camera.matrix, mask=mask.copy())
    except cv2.error:
        return None
    inlier = mask.ravel() > 0
    if count < MIN_POINTS or count < 0.7 * inlier.sum():
        return None
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, shift.ravel()
    return pose, inlier & (front.ravel() > 0), rotation_residual(one[inlier], two[inlier], turn, camera)


def rotation_residual(one: np.ndarray, two: np.ndarray, turn: np.ndarray, camera: Camera) -> float:
    """Median distance in pixels between where a pure rotation takes pixels (N, 2) and where they are."""
    rays = lift(one, np.ones(len(one)), camera) @ turn.T
    z = np.where(rays[:, 2] > 1e-6, rays[:, 2], np.nan)
    image = rays[:, :2] / z[:, None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    distance = np.linalg.norm(image - two, axis=1)
    return float(np.nanmedian(distance)) if np.isfinite(distance).any() else 0.0


def track_camera(tracks: Tracks, depth: np.ndarray, camera: Camera) -> Odometry:
    """Visual odometry through a clip.

    Args:
        tracks: points followed through F frames.
        depth: (F, H, W) metres or another unit, 0 = unknown.
        camera: intrinsics.
    """
    frames = len(depth)
    logs = np.full((len(tracks), frames), np.nan)
    for f in range(frames):
        logs[:, f] = sample_map(log_depth_of(depth[f]), tracks.pixels[:, f])
    world = _Map(
        tracks, logs, camera, np.tile(np.eye(4), (frames, 1, 1)), np.zeros(frames), np.full((len(tracks), 3), np.nan)
    )
    found, share = np.zeros(frames, bool), np.zeros(frames)
    found[0], share[0] = True, 1.0
    tolerance = REPROJECTION_PX * max(camera.width / 640, 0.5)
    key, at_first = 0, int(np.isfinite(logs[:, 0]).sum())
    for f in range(1, frames):
        starts = [g for g in dict.fromkeys((key, f - 1, *range(f - 2, max(-1, f - 6), -1))) if found[g]]
        chosen: tuple[np.ndarray, float, int] | None = None
        for start in starts:
            pose, fits = _locate(world, start, f, tolerance)
            if pose is not None and fits >= MIN_INLIER_SHARE:
                chosen = pose, fits, start
                break
        if chosen is None:
            world.poses[f], world.scale[f] = world.poses[f - 1], world.scale[f - 1]
            continue
        world.poses[f], share[f], start = chosen
        found[f] = True
        world.triangulate(f, found, tolerance)
        world.scale[f] = _scale_of(world, start, f)
        both = tracks.seen[:, start] & tracks.seen[:, f]
        motion = np.median(np.linalg.norm(tracks.pixels[both, f] - tracks.pixels[both, start], axis=1))
        if start != key or both.sum() < MIN_SHARED_SHARE * at_first or motion > MAX_KEYFRAME_MOTION * camera.width:
            key, at_first = f, int(tracks.seen[:, f].sum())
    return Odometry(world.poses, found, share, world.scale, world.points)


def _locate(world: _Map, start: int, frame: int, tolerance: float) -> tuple[np.ndarray | None, float]:
    """Pose of a frame from a start frame, and the share of the points that fit."""
    tracks, camera = world.tracks, world.camera
    known = world.known_in(start)
    usable = np.isfinite(known[:, 0]) & tracks.seen[:, frame]
    pnp = solve_pose(known[usable], tracks.pixels[usable, frame], camera, tolerance)
    both = tracks.seen[:, start] & tracks.seen[:, frame]
    pose, fits = (None, 0.0) if pnp is None else (invert_pose(pnp[0]), float(pnp[1].mean()))
    if pnp is not None and fits > GOOD_INLIER_SHARE:
        return pose, fits
    one, two = tracks.pixels[both, start], tracks.pixels[both, frame]
    pair = relative_pose(one, two, camera, EPIPOLAR_TOLERANCE * tolerance)
    if pair is None or pair[2] < MIN_PARALLAX * tolerance or pair[1].mean() < MIN_ADVANTAGE * fits:
        return pose, fits
    relative, inlier, _ = pair
    depth, good = triangulate(one, two, relative, camera, tolerance, 0.3)
    world_from_start = world.poses[start]
    local = (known[both] - world_from_start[:3, 3]) @ world_from_start[:3, :3]
    good &= inlier & np.isfinite(local[:, 2]) & (local[:, 2] > 0)
    mapped = good & np.isfinite(world.points[both, 0])
    if mapped.sum() >= MIN_POINTS:
        good = mapped
    if good.sum() < MIN_POINTS // 2:
        return pose, fits
    relative[:3, 3] *= np.exp(np.median(np.log(local[good, 2] / depth[good])))
    return world_from_start @ invert_pose(relative), float(inlier.mean())


def _scale_of(world: _Map, start: int, frame: int) -> float:
    """Logarithmic scale of a frame's depth map: that of its points whose positions are known."""
    known = world.known_in(start)
    pose = world.poses[frame]
    z = (known - pose[:3, 3]) @ pose[:3, 2]
    usable = np.isfinite(z) & (z > 0) & np.isfinite(world.logs[:, frame])
    if usable.sum() < MIN_POINTS:
        return float(world.scale[start])
    return float(np.median(np.log(z[usable]) - world.logs[usable, frame]))
