"""Motion of the camera through one window: odometry, the joint solve, and whether the result can be believed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps.dense_depth import SENSOR_SIGMA, Anchors, DepthMaps
from worldstereo_ros.pipelines.pointmaps.joint_solve import Observations, Solution, SolveSettings, solve_jointly
from worldstereo_ros.pipelines.pointmaps.parallax import Turning, find_turning
from worldstereo_ros.pipelines.pointmaps.tracks import Tracks
from worldstereo_ros.pipelines.pointmaps.visual_odometry import (
    MIN_POINTS,
    Odometry,
    lift,
    log_depth_of,
    sample_map,
    track_camera,
)

SIGMA_PX = 0.5  # of tracked positions, at a width of 640
INLIER_SIGMAS = 4.0
MAX_POINTS = 1500  # of a window that are solved for
MIN_FITTING, MIN_FITTING_SHARE = 10, 0.3  # observations of a frame that its pose explains
MAX_STEP_DEPTHS = 3.0  # step between frames, in median depths of the scene; more is no motion of a camera
MIN_PARALLAX_PX = 2.0  # of an anchor, at a width of 640


@dataclass(frozen=True)
class Motion:
    """Motion of the camera through F frames.

    Attributes:
        world_from_camera: (F, 4, 4); the first is the identity.
        found: (F,) bool.
        log_scale: (F,) of each depth map, so that it fits the poses.
        anchors: depths of static points with parallax.
        turning: the camera only turns, or stands still; None if it moves.
        covariance: (F, 6, 6) see `Pointmaps.pose_covariance`.
        moving: (N,) bool, tracks that no static point explains.
        focal_factor: of the focal lengths that were assumed.
        fit: share of the observations that the poses explain.
        messages: what went wrong.
    """

    world_from_camera: np.ndarray
    found: np.ndarray
    log_scale: np.ndarray
    anchors: Anchors
    turning: Turning | None
    covariance: np.ndarray
    moving: np.ndarray
    focal_factor: float = 1.0
    fit: float = 1.0
    messages: list[str] = field(default_factory=list)


def no_anchors() -> Anchors:
    """Anchors of a clip without parallax."""
    return Anchors(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


def estimate_motion(
    tracks: Tracks,
    maps: DepthMaps,
    camera: Camera,
    *,
    method: str = "map",
    given: np.ndarray | None = None,
    solve_focal: bool = False,
) -> Motion:
    """Estimates the motion of the camera through one window of one shot.

    Args:
        tracks: points followed through the frames.
        maps: depth of the frames.
        camera: intrinsics.
        method: "vo" for odometry alone; else it is followed by the joint solve.
        given: (F, 4, 4) world_from_camera that are known; the first is the identity.
        solve_focal: the focal length is assumed and may change.
    """
    frames = len(maps.depth)
    count = int(tracks.seen[:, 0].sum()) if len(tracks) else 0
    if given is None and len(tracks) < MIN_POINTS:
        lost = np.zeros(frames, bool)
        lost[0] = True
        text = f"Only {len(tracks)} points can be followed ({MIN_POINTS} are needed): the frames show too little detail"
        return Motion(
            np.tile(np.eye(4), (frames, 1, 1)), lost, np.zeros(frames), no_anchors(), None,
            _unknown(lost), np.zeros(len(tracks), bool), messages=[f"{text}, are blurred, or share nothing."],
        )  # fmt: skip
    turning = find_turning(tracks, camera) if given is None and count else None
    if turning is not None:
        return _turned(tracks, maps, camera, turning)
    if given is None:
        odometry = track_camera(tracks, maps.depth, camera)
    else:
        odometry = Odometry(
            given, np.ones(frames, bool), np.ones(frames), np.zeros(frames), np.full((len(tracks), 3), np.nan)
        )
    if method == "vo" and given is None:
        return _odometry_alone(tracks, odometry)
    return _joint(tracks, maps, camera, odometry, given is not None, solve_focal)


def _unknown(found: np.ndarray) -> np.ndarray:
    covariance = np.zeros((len(found), 6, 6))
    covariance[~found] = np.diag([np.inf] * 6)
    return covariance


def _odometry_alone(tracks: Tracks, odometry: Odometry) -> Motion:
    covariance = _unknown(odometry.found)
    share = np.maximum(odometry.inlier_share, 0.05)
    # Odometry has no normal matrix; its errors grow with what does not fit.
    steps = np.linalg.norm(np.diff(odometry.world_from_camera[:, :3, 3], axis=0, prepend=0), axis=1)
    sizes = np.cumsum(np.where(odometry.found, steps, 0)) * 0.1 / np.sqrt(share) + 1e-3
    for f in np.flatnonzero(odometry.found[1:]) + 1:
        covariance[f] = np.diag([sizes[f] ** 2] * 3 + [(0.01 / share[f]) ** 2] * 3)
    return Motion(
        odometry.world_from_camera, odometry.found, odometry.log_scale, no_anchors(), None, covariance,
        np.zeros(len(tracks), bool), fit=float(odometry.inlier_share[1:].mean()),
    )  # fmt: skip


def _turned(tracks: Tracks, maps: DepthMaps, camera: Camera, turning: Turning) -> Motion:
    frames = len(maps.depth)
    covariance = np.zeros((frames, 6, 6))
    pixel = SIGMA_PX * max(camera.width / 640, 0.5) / camera.fx
    logs = log_depth_of(maps.depth[0])
    depth = float(np.exp(np.nanmedian(logs))) if np.isfinite(logs).any() else 1.0
    covariance[1:] = np.diag([(pixel * depth) ** 2] * 3 + [pixel**2] * 3)
    what = "stands still" if turning.still else "only turns"
    origin = "that of the depth network alone"
    if maps.measured.any():
        origin = "the measured one" if maps.measured.all() else f"the measured one, where there is none {origin}"
    text = f"The camera {what}: there is no parallax, and depth is {origin}."
    return Motion(
        turning.world_from_camera, np.ones(frames, bool), _steady_scale(tracks, maps), no_anchors(), turning,
        covariance, np.zeros(len(tracks), bool), messages=[text],
    )  # fmt: skip


def _steady_scale(tracks: Tracks, maps: DepthMaps) -> np.ndarray:
    """(F,) scales that keep the depths of tracks as in the first frame, for a camera that stays in its place."""
    frames = len(maps.depth)
    logs = np.stack([sample_map(log_depth_of(maps.depth[f]), tracks.pixels[:, f]) for f in range(frames)], axis=1)
    scale = np.zeros(frames)
    for f in range(1, frames):
        difference = logs[:, f - 1] + scale[f - 1] - logs[:, f]
        difference = difference[np.isfinite(difference)]
        scale[f] = 0.97 * float(np.median(difference)) if len(difference) >= MIN_POINTS else scale[f - 1]
    return scale


def _joint(
    tracks: Tracks, maps: DepthMaps, camera: Camera, odometry: Odometry, fixed: bool, solve_focal: bool
) -> Motion:
    frames, unit = len(maps.depth), max(camera.width / 640, 0.5)
    seen = tracks.seen & odometry.found[None]
    kept = np.flatnonzero(seen.sum(axis=1) >= 2)
    if len(kept) > MAX_POINTS:  # drawn evenly: more tell little more, and take longer
        kept = np.sort(np.random.default_rng(0).permutation(kept)[:MAX_POINTS])
    seen = seen[kept]
    anchor = seen.argmax(axis=1) if len(kept) else np.zeros(0, np.int64)
    pixel = tracks.pixels[kept, anchor]
    prior, sigma = np.full(len(kept), np.nan), np.full(len(kept), 0.5)
    for f in range(frames):
        rows = anchor == f
        prior[rows] = sample_map(log_depth_of(maps.depth[f]), pixel[rows])
        sigma[rows] = sample_map(maps.sigma[f], pixel[rows])
    sigma = np.clip(np.nan_to_num(sigma, nan=0.5), SENSOR_SIGMA, 1.0)
    start = prior + odometry.log_scale[anchor]
    pose = odometry.world_from_camera[anchor]
    z = np.einsum("ni,ni->n", odometry.points[kept] - pose[:, :3, 3], pose[:, :3, 2])
    start = np.where(z > 1e-3, np.log(np.maximum(z, 1e-3)), start)
    start = np.where(np.isfinite(start), start, np.nanmedian(start) if np.isfinite(start).any() else 0.0)
    point, frame = np.nonzero(seen)
    other = frame != anchor[point]
    point, frame = point[other], frame[other]
    held = np.ones(frames, bool) if fixed else np.arange(frames) == 0
    held |= ~odometry.found
    observations = Observations(anchor, pixel, prior, sigma, point, frame, tracks.pixels[kept[point], frame], held)
    measured = maps.measured.all()
    settings = SolveSettings(
        sigma_px=SIGMA_PX * unit,
        solve_focal=solve_focal and not fixed,
        sigma_scale=3.0 if fixed else 0.01 if measured else 0.5,
        sigma_walk=0.01 if measured else 0.05,
    )
    solution = solve_jointly(observations, camera, odometry.world_from_camera, start, settings)
    return _judged(observations, solution, settings, camera, odometry, tracks, kept, fixed)


def _judged(
    observations: Observations, solution: Solution, settings: SolveSettings, camera: Camera, odometry: Odometry,
    tracks: Tracks, kept: np.ndarray, fixed: bool,
) -> Motion:  # fmt: skip
    """What can be believed of a solution."""
    frames = len(observations.fixed)
    if solution.focal_factor != 1:
        factor = solution.focal_factor
        camera = Camera(camera.width, camera.height, camera.fx * factor, camera.fy * factor, camera.cx, camera.cy)
    poses = solution.world_from_camera.copy()
    good = solution.errors_px < INLIER_SIGMAS * settings.sigma_px
    fits = np.bincount(observations.frame, good, frames)
    total = np.bincount(observations.frame, minlength=frames)
    # A point belongs to the frame where it begins, too.
    fits += np.bincount(observations.anchor[observations.point], good, frames)
    total += np.bincount(observations.anchor[observations.point], minlength=frames)
    found = odometry.found & (fits >= MIN_FITTING) & (fits >= MIN_FITTING_SHARE * np.maximum(total, 1))
    depths = np.exp(solution.log_depth)
    middle = float(np.median(depths)) if len(depths) else 1.0
    messages = []
    if fixed:
        if not found.all():
            messages.append("The given poses do not fit what the frames show: check their convention and their stamps.")
        found = np.ones(frames, bool)
    else:
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0, prepend=poses[:1, :3, 3]), axis=1)
        found &= (steps <= MAX_STEP_DEPTHS * middle) & np.isfinite(poses).all(axis=(1, 2))
        found[0] = True
        for f in range(1, frames):
            if not found[f]:
                poses[f] = poses[f - 1]
    sightings = np.bincount(observations.point, minlength=len(depths))
    share = np.bincount(observations.point, good, len(depths)) / np.maximum(sightings, 1)
    static = share > 0.7
    moving = np.zeros(len(tracks), bool)
    moving[kept] = (share < 0.3) & (sightings >= 2)
    covariance = _unknown(found)
    for known in np.flatnonzero(found):
        covariance[known] = _camera_covariance(solution.covariance[known])
    return Motion(
        poses, found, solution.log_scale, _anchors(observations, poses, depths, static, found, camera), None,
        covariance, moving, solution.focal_factor, float(good.mean()) if len(good) else 0.0, messages,
    )  # fmt: skip


def _camera_covariance(left: np.ndarray) -> np.ndarray:
    """From a perturbation of camera_from_world (rotation, translation) to the camera's (position, rotation)."""
    # camera_from_world' = exp(xi) camera_from_world moves the camera by -xi in its own axes.
    order = [3, 4, 5, 0, 1, 2]
    return left[np.ix_(order, order)]


def _anchors(
    observations: Observations,
    poses: np.ndarray,
    depths: np.ndarray,
    static: np.ndarray,
    found: np.ndarray,
    camera: Camera,
) -> Anchors:
    """Depths of static points with enough parallax, in every frame that sees them."""
    if not len(depths):
        return no_anchors()
    local = lift(observations.pixel, depths, camera)
    first, point, frame = observations.anchor[observations.point], observations.point, observations.frame
    relative = invert_pose(poses[frame]) @ poses[first]
    turned = np.einsum("mij,mj->mi", relative[:, :3, :3], local[point])
    there = turned + relative[:, :3, 3]
    ahead = (there[:, 2] > 1e-6) & (turned[:, 2] > 1e-6) & found[frame] & found[first]
    focal = np.array([camera.fx, camera.fy])
    safe = [np.where(ahead, z, 1)[:, None] for z in (turned[:, 2], there[:, 2])]
    moved = np.linalg.norm((turned[:, :2] / safe[0] - there[:, :2] / safe[1]) * focal, axis=1)
    parallax = np.zeros(len(depths))
    np.maximum.at(parallax, point, np.where(ahead, moved, 0))
    usable = static & (parallax > MIN_PARALLAX_PX * max(camera.width / 640, 0.5))
    rows = usable[point] & ahead
    own = usable & found[observations.anchor]
    return Anchors(
        np.concatenate([observations.anchor[own], frame[rows]]),
        np.concatenate([observations.pixel[own], observations.seen_at[rows]]),
        np.concatenate([np.log(depths[own]), np.log(there[rows, 2])]),
        np.concatenate([parallax[own], parallax[point[rows]]]),
        np.concatenate([np.flatnonzero(own), point[rows]]),
    )
