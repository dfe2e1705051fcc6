"""Point maps and camera poses from the frames of one moving camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator, SmallDepth
from worldstereo_ros.depth.familiarity import laplace_confidence
from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.pointmaps.dense_depth import (
    DepthMaps,
    correct_depth,
    dense_prior,
    network_clip,
    predict_depth,
)
from worldstereo_ros.pipelines.pointmaps.dynamic import find_moving
from worldstereo_ros.pipelines.pointmaps.motion import Motion, estimate_motion
from worldstereo_ros.pipelines.pointmaps.tracks import Tracks, track_points
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_DEPTH, GIVEN_ODOMETRY, GIVEN_POSES, GUESS, Pointmaps
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.models.pointmaps.types import PointmapPrior
    from worldstereo_ros.pipelines.pointmaps.dense_depth import Refiner

VO, MAP, SMALL = "vo", "map", "small"
METHODS = (VO, MAP, SMALL)
MAX_PIXELS = 320_000  # of a point map; larger frames are reduced
ASSUMED_FOV_DEG = 60.0  # along the longer side, of cameras without intrinsics
MIN_FOCAL_PARALLAX = 30  # anchors, from where on an assumed focal length may change
MAX_FOCAL_FACTOR = 2.0
MOVING_PROB = 0.5
ODOMETRY_SHARE = 0.5  # of the logarithmic scale of depth maps, with odometry alone
GOOD_FIT = 0.75  # share of explained observations; with less, descriptors are matched at every step
MIN_SIDE_PX = 32


@dataclass(frozen=True)
class Window:
    """Frames of one window and what is known of them.

    Attributes:
        images: (F, H, W, 3) uint8 RGB.
        camera: intrinsics.
        depth: (F, H, W) measured, 0 = unknown, or None.
        poses: (F, 4, 4) known world_from_camera, or None.
        camera_known: the focal length is not assumed.
    """

    images: np.ndarray
    camera: Camera
    depth: np.ndarray | None = None
    poses: np.ndarray | None = None
    camera_known: bool = True


def reduced_camera(camera: Camera) -> Camera:
    """The camera of point maps: that of the frames, reduced to `MAX_PIXELS`."""
    factor = min(1.0, math.sqrt(MAX_PIXELS / (camera.width * camera.height)))
    if factor == 1.0:
        return camera
    return camera.resized(
        max(MIN_SIDE_PX, round(camera.width * factor)), max(MIN_SIDE_PX, round(camera.height * factor))
    )


def assumed_camera(height: int, width: int) -> Camera:
    """The camera of frames without intrinsics: `ASSUMED_FOV_DEG` wide along the longer side."""
    focal = 0.5 * max(height, width) / math.tan(math.radians(ASSUMED_FOV_DEG) / 2)
    return Camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))


def check_frame(image: np.ndarray, camera: Camera | None = None, index: int = 0) -> np.ndarray:
    """A frame as (H, W, 3) uint8; grey ones get three equal channels.

    Raises:
        InputError: it is another array, too small, or not of the camera's size.
    """
    image = np.asarray(image)
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"Frame {index} has shape {image.shape} and dtype {image.dtype}; (H, W, 3) uint8 was expected."
        )
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise InputError(
            f"Frame {index} is {image.shape[1]}x{image.shape[0]}; at least {MIN_SIDE_PX} pixels a side were expected."
        )
    if camera is not None and image.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"Frame {index} is {image.shape[1]}x{image.shape[0]}; {camera.width}x{camera.height}, as its camera, was "
            "expected."
        )
    return image


def reduce_frame(image: np.ndarray, target: Camera) -> np.ndarray:
    """A frame at the size of a camera."""
    if image.shape[:2] == (target.height, target.width):
        return image
    return resize_image(image, target.width, target.height)


def reduce_depth(depth: np.ndarray, target: Camera) -> np.ndarray:
    """Measured depth at the size of a camera: the nearest pixel, since depths of two surfaces are not to be mixed."""
    import cv2

    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    if depth.shape == (target.height, target.width):
        return depth
    return cv2.resize(depth, (target.width, target.height), interpolation=cv2.INTER_NEAREST_EXACT)


def estimate_window(
    window: Window,
    *,
    method: str = MAP,
    estimator: DepthEstimator | None = None,
    refiner: Refiner | None = None,
) -> Pointmaps:
    """Point maps of one window of one shot.

    Args:
        window: 2 frames or more.
        method: vo, map or small.
        estimator: depth estimator; None for the bundled network.
        refiner: network of the method small: gets the geometric prior and returns a refined one.

    Raises:
        InputError: the method is unknown, or lacks its refiner.
        DepthError: depth cannot be estimated.
    """
    if method not in METHODS:
        raise InputError(f"The method '{method}' is unknown; {', '.join(METHODS)} were expected.")
    if method == SMALL and refiner is None:
        raise InputError("The method 'small' needs a refiner, see `load_refiner`; 'map' is the geometry alone.")
    images, camera = window.images, window.camera
    maps = predict_depth(images, camera, window.depth, estimator or SmallDepth())
    given = None if window.poses is None else invert_pose(window.poses[0]) @ check_poses(window.poses, "The given path")
    free = not window.camera_known and method != VO and given is None
    tracks, motion = _find_motion(images, maps, camera, method, given, free)
    messages = list(motion.messages)
    if free:
        camera, maps, motion, text = _with_focal(tracks, maps, camera, motion, method)
        messages = [*motion.messages, text]
    dynamic_prob = None
    if method == VO:
        # The scale of odometry drifts, that of the network's depth maps does not but varies: half of each.
        scale = np.where(maps.measured, 0.0, ODOMETRY_SHARE * motion.log_scale)
        depth = (maps.depth * np.exp(scale)[:, None, None]).astype(np.float32)
        dense = DepthMaps(depth, maps.sigma, maps.measured)
    else:
        dense, dynamic_prob = correct_depth(
            maps, motion.anchors, motion.world_from_camera, camera, images, refiner if method == SMALL else None,
            log_scale=motion.log_scale,
        )  # fmt: skip
    moving, doubtful = find_moving(images, dense.depth, dense.sigma, motion.world_from_camera, camera, motion.found)
    if doubtful:
        messages.append("Most of some frame does not fit the camera's motion: what moves there is not known.")
    if dynamic_prob is not None:
        # Both say it, or one of them loudly: flow sees what the network has never seen, and the other way round.
        moving = (dynamic_prob > MOVING_PROB) | (moving & (dynamic_prob > 0.2))
    return _assemble(dense, moving, motion, camera, _scale_from(window), tuple(messages), method)


def prior_of_window(
    window: Window, estimator: DepthEstimator | None = None
) -> tuple[torch.Tensor, torch.Tensor, PointmapPrior]:
    """What the method small gives its network, for training: images, intrinsics and the geometric prior.

    Raises:
        DepthError: depth cannot be estimated.
    """
    maps = predict_depth(window.images, window.camera, window.depth, estimator or SmallDepth())
    _, motion = _find_motion(window.images, maps, window.camera, SMALL, None, False)
    prior, small = dense_prior(maps, motion.anchors, motion.world_from_camera, motion.log_scale)
    return *network_clip(window.images, window.camera, *small.shape[1:]), prior


def _find_motion(
    images: np.ndarray, maps: DepthMaps, camera: Camera, method: str, given: np.ndarray | None, solve_focal: bool
) -> tuple[Tracks, Motion]:
    """Motion by optical flow; where that explains too little, also by descriptors, and the better one of the two."""
    tracks = track_points(images)
    motion = estimate_motion(tracks, maps, camera, method=method, given=given, solve_focal=solve_focal)
    if given is not None or motion.turning is not None or (motion.found.all() and motion.fit >= GOOD_FIT):
        return tracks, motion
    more = track_points(images, describe=True)
    again = estimate_motion(more, maps, camera, method=method, solve_focal=solve_focal)
    # More frames first; then descriptors, which do not slip along edges and repeated textures as optical flow does.
    return (more, again) if again.found.sum() >= motion.found.sum() else (tracks, motion)


def _scale_from(window: Window) -> str:
    if window.poses is not None:
        return GIVEN_POSES
    return GIVEN_DEPTH if window.depth is not None and (window.depth > 0).any() else GUESS


def _with_focal(
    tracks: Tracks, maps: DepthMaps, camera: Camera, motion: Motion, method: str
) -> tuple[Camera, DepthMaps, Motion, str]:
    """The camera whose focal length the motion tells, and the motion seen with it."""
    factor = motion.focal_factor
    told = len(motion.anchors.frame) >= MIN_FOCAL_PARALLAX and 1 / MAX_FOCAL_FACTOR < factor < MAX_FOCAL_FACTOR
    width = math.degrees(2 * math.atan(0.5 * camera.width / camera.fx))
    if not told or abs(factor - 1) < 1e-3:
        text = (
            f"The camera is assumed to be {width:.0f} degrees wide: intrinsics are unknown, and the motion tells none."
        )
        return camera, maps, estimate_motion(tracks, maps, camera, method=method), text
    found = Camera(camera.width, camera.height, camera.fx * factor, camera.fy * factor, camera.cx, camera.cy)
    # Depth that a network estimates is proportional to the focal length.
    scaled = replace(maps, depth=np.where(maps.measured[:, None, None], maps.depth, maps.depth * np.float32(factor)))
    width = math.degrees(2 * math.atan(0.5 * camera.width / found.fx))
    text = f"The intrinsics are unknown; by the motion of points the camera is {width:.0f} degrees wide."
    return found, scaled, estimate_motion(tracks, scaled, found, method=method), text


def _assemble(
    dense: DepthMaps, moving: np.ndarray, motion: Motion, camera: Camera, scale_from: str,
    messages: tuple[str, ...], method: str,
) -> Pointmaps:  # fmt: skip
    frames = len(dense.depth)
    valid = (dense.depth > 0) & motion.found[:, None, None]
    points = np.stack([unproject(dense.depth[f], camera, motion.world_from_camera[f]) for f in range(frames)])
    points[~valid] = np.nan
    confidence = np.where(valid, laplace_confidence(dense.sigma), 0).astype(np.float32)
    return Pointmaps(
        points, confidence, valid, moving & valid, motion.world_from_camera, camera, scale_from, motion.found,
        np.zeros(frames, np.int64), motion.covariance, messages, method,
    )  # fmt: skip


def scale_by_odometry(estimated: np.ndarray, odometry: np.ndarray) -> float | None:
    """Factor from the unit of estimated poses to that of odometry of the same span: wheels, TF.

    Distances between pairs of frames are compared, so that the two need neither a common frame nor the place of the
    camera on the robot, as long as turns are gentle.

    Args:
        estimated, odometry: (F, 4, 4) poses at the same times.

    Returns:
        The factor; None where the odometry moves less than 1 cm or the estimate not at all.
    """

    def distances(poses: np.ndarray) -> np.ndarray:
        centres = poses[:, :3, 3]
        rows, columns = np.triu_indices(len(centres), k=1)
        return np.linalg.norm(centres[rows] - centres[columns], axis=1)

    ours, theirs = distances(estimated), distances(odometry)
    far = theirs >= 0.5 * theirs.max(initial=0)
    if theirs.max(initial=0) < 0.01 or not (ours[far] > 1e-6).any():
        return None
    usable = far & (ours > 1e-6)
    return float(np.exp(np.median(np.log(theirs[usable] / ours[usable]))))


def scaled(maps: Pointmaps, factor: float, scale_from: str = GIVEN_ODOMETRY) -> Pointmaps:
    """Point maps in another unit of length."""
    poses = maps.poses.copy()
    poses[:, :3, 3] *= factor
    covariance = maps.pose_covariance.copy()
    covariance[:, :3, :3] *= factor**2
    covariance[:, :3, 3:] *= factor
    covariance[:, 3:, :3] *= factor
    points = (maps.points * np.float32(factor)).astype(np.float32)
    return replace(maps, points=points, poses=poses, pose_covariance=covariance, scale_from=scale_from)


def as_frames(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frames of one size as uint8 RGB. Raises InputError for fewer than 2, or of different sizes."""
    if len(frames) < 2:
        raise InputError(f"{len(frames)} frames were given; 2 at least were expected.")
    checked = [check_frame(frame, None, index) for index, frame in enumerate(frames)]
    for index, frame in enumerate(checked):
        if frame.shape != checked[0].shape:
            raise InputError(
                f"Frame {index} has shape {frame.shape} and the first one {checked[0].shape}; frames of one size were "
                "expected."
            )
    return checked
