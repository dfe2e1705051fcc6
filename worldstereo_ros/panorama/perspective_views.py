"""Perspective views of an equirectangular panorama, for the memories and for depth models.

The panorama belongs to a camera whose optical axis points at the centre of the image: x right, y down, z forward.
Columns go once around from left (behind) over the centre (ahead) to the right (behind again), rows from straight up to
straight down. `world_from_camera` is the pose of that camera.

The default 27 views are those of WorldStereo's published panorama banks: nine directions 40 degrees apart, each level,
and tilted up and down by atan(1/2) = 26.57 degrees; 120 x 90 degrees, 832x480 pixels. They cover everything but two
caps of 18 degrees around the poles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError, check_size
from worldstereo_ros.utils.errors import InputError

BANK_SIZE_PX = (832, 480)
BANK_FOV_RAD = (math.radians(120), math.radians(90))
_BANK_STEP_RAD, _BANK_TILT_RAD = math.radians(40), math.atan(0.5)

# Views of the full sphere that are imagined, or given to a depth model
STITCHING_FOV_RAD = math.radians(75)  # horizontal
STITCHING_ASPECT = 4 / 3
LEVEL_STEP, TILTED_STEP = 0.4, 0.65  # angle between neighbours in a ring, as fraction of the horizontal field of view
RING_STEP = 5 / 6  # angle between rings, as fraction of the vertical field of view

# The published banks have a world with z up, in which the centre of the panorama points along -x.
PUBLISHED_WORLD_FROM_PANORAMA = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def bank_poses() -> np.ndarray:
    """(27, 4, 4) panorama_from_camera of the published layout, in its order.

    Straight ahead: level, up, down; then the other eight directions to the right, all level, all up, all down.
    """
    directions = np.arange(1, 9) * _BANK_STEP_RAD
    tilts = (0.0, _BANK_TILT_RAD, -_BANK_TILT_RAD)
    angles = [(0.0, tilt) for tilt in tilts] + [(right, tilt) for tilt in tilts for right in directions]
    return np.stack([pose_from_angles(right, up) for right, up in angles])


def observation_poses() -> np.ndarray:
    """(29, 4, 4) panorama_from_camera of the views that are observed: the published ones, straight up, straight down.

    The published ones leave out two caps around the poles.
    """
    caps = [pose_from_angles(0.0, up) for up in (0.5 * math.pi, -0.5 * math.pi)]
    return np.concatenate([bank_poses(), np.stack(caps)])


def bank_camera(width: int = BANK_SIZE_PX[0], height: int = BANK_SIZE_PX[1]) -> Camera:
    """The camera of the published layout at any size: 120 degrees wide and 90 degrees high."""
    fx = 0.5 * width / math.tan(0.5 * BANK_FOV_RAD[0])
    fy = 0.5 * height / math.tan(0.5 * BANK_FOV_RAD[1])
    return Camera(width, height, fx, fy, 0.5 * (width - 1), 0.5 * (height - 1))


def observation_camera(height: int) -> Camera:
    """The published camera, with no finer resolution than a panorama of `height` rows."""
    width = min(BANK_SIZE_PX[0], 2 * math.ceil(math.tan(0.5 * BANK_FOV_RAD[0]) * max(height, 8) / math.pi))
    return bank_camera(width, round(width * BANK_SIZE_PX[1] / BANK_SIZE_PX[0]))


def pose_from_angles(right: float, up: float) -> np.ndarray:
    """(4, 4) panorama_from_camera of a camera turned to the right, then tilted up, in radians."""
    c, s, d, t = math.cos(right), math.sin(right), math.cos(up), math.sin(up)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]])
    return pose


def stitching_camera(height: int) -> Camera:
    """A camera for views to stitch, with the resolution of a panorama of `height` rows at its centre.

    Raises:
        InputError: `height` is less than 8.
    """
    if not height >= 8:
        raise InputError(f"The panorama's height is {height}; a whole number of at least 8 rows was expected.")
    width = max(16, 2 * math.ceil(math.tan(STITCHING_FOV_RAD / 2) * height / math.pi))
    return Camera.from_fov(width, round(width / STITCHING_ASPECT), STITCHING_FOV_RAD)


def rings(camera: Camera) -> list[list[tuple[float, float]]]:
    """Angles of views that together cover the full sphere.

    Returns:
        One list of (right, up) angles in radians for each ring: level, then above, below, and so on. The last two lists
        hold one view each, straight up and straight down.
    """
    horizontal, vertical = (
        2 * math.atan(0.5 * size / focal) for size, focal in ((camera.width, camera.fx), (camera.height, camera.fy))
    )
    found = [_ring(math.ceil(2 * math.pi / (LEVEL_STEP * horizontal)), 0.0)]
    tilt = RING_STEP * vertical
    # The view straight up covers a cap with a radius of half its smaller field of view.
    while not (
        found[1:] and tilt - RING_STEP * vertical + 0.5 * vertical > 0.5 * math.pi - 0.4 * min(horizontal, vertical)
    ):
        tilt = min(tilt, 0.5 * math.pi)
        ahead = math.cos(tilt) + math.sin(tilt) * math.tan(0.5 * vertical)
        covered = 2 * math.atan2(math.tan(0.5 * horizontal), ahead)
        count = math.ceil(2 * math.pi / (TILTED_STEP * covered))
        found += [_ring(count, tilt), _ring(count, -tilt)]
        if tilt >= 0.5 * math.pi:
            break
        tilt += RING_STEP * vertical
    return [*found, [(0.0, 0.5 * math.pi)], [(0.0, -0.5 * math.pi)]]


def panorama_views(
    image: np.ndarray,
    distance: np.ndarray | None = None,
    *,
    world_from_camera: np.ndarray | None = None,
    camera: Camera | None = None,
    panorama_from_camera: np.ndarray | None = None,
    estimated: bool = False,
    confidence: np.ndarray | None = None,
    stamp_ns: int = 0,
) -> Iterator[View]:
    """Renders perspective views of a panorama.

    Args:
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        distance: (h, 2 h) float32 metres along the ray (not along an axis), 0 = unknown; None: views without depth.
        world_from_camera: (4, 4) pose of the panorama (see the module); None: the origin of the world.
        camera: camera of every view; None: the published one.
        panorama_from_camera: (N, 4, 4) poses of the views; None: the 27 published ones.
        estimated: the distances were estimated, not measured: label the views so.
        confidence: (h, 2 h) float32 in 0..1 of the distances, for `View.depth_confidence`.
        stamp_ns: stamp of every view in nanoseconds.

    Returns:
        An iterator over N views, with depth along their optical axes if `distance` is given.

    Raises:
        ImageError: the image is not a full sphere, not uint8 RGB, or too large; raised before the first view.
    """
    _check(image, distance, confidence)
    camera = bank_camera() if camera is None else camera
    local = bank_poses() if panorama_from_camera is None else np.asarray(panorama_from_camera, dtype=np.float64)
    origin = np.eye(4) if world_from_camera is None else np.asarray(world_from_camera, dtype=np.float64)
    return _views(image, distance, confidence, camera, local, origin, estimated, stamp_ns)


def _views(
    image: np.ndarray,
    distance: np.ndarray | None,
    confidence: np.ndarray | None,
    camera: Camera,
    local: np.ndarray,
    origin: np.ndarray,
    estimated: bool,
    stamp_ns: int,
) -> Iterator[View]:
    image, supersampling = _limit_resolution(image, camera)
    fine = camera.resized(camera.width * supersampling, camera.height * supersampling)
    fine_rays, rays = fine.rays(), camera.rays()
    length = np.linalg.norm(rays, axis=-1)
    padded = _pad_sphere(image)
    for pose in local:
        column, row = _project_sphere(fine_rays @ pose[:3, :3].T.astype(np.float32), image.shape[0])
        colour = cv2.remap(padded, column + _PAD_PX, row + _PAD_PX, cv2.INTER_LINEAR)
        if supersampling > 1:
            colour = cv2.resize(colour, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        depth = depth_confidence = None
        if distance is not None:
            height, width = distance.shape
            column, row = _project_sphere(rays @ pose[:3, :3].T.astype(np.float32), height)
            pixels = np.clip(np.rint(row), 0, height - 1).astype(int), np.rint(column).astype(int) % width
            nearest = distance[pixels]
            depth = np.where(np.isfinite(nearest) & (nearest > 0), nearest / length, 0).astype(np.float32)
            depth_confidence = None if confidence is None else confidence[pixels].astype(np.float32)
        yield View(
            colour,
            camera,
            origin @ pose,
            depth,
            stamp_ns=stamp_ns,
            estimated=np.ones(colour.shape[:2], bool) if estimated else None,
            depth_confidence=depth_confidence,
        )


def _check(image: np.ndarray, distance: np.ndarray | None, confidence: np.ndarray | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"The panorama is {image.dtype} of shape {image.shape}; uint8 (H, W, 3) was expected.")
    height, width = image.shape[:2]
    check_size(width, height, "The panorama")
    if abs(width - 2 * height) > 2 or height < 8:
        raise ImageError(
            f"The panorama is {width}x{height}; an equirectangular image of the full sphere is twice as wide as high. "
            "Pad a panorama that covers less; a perspective image is for `worldstereo imagine`, or the topic `image`."
        )
    if distance is not None and (distance.ndim != 2 or abs(distance.shape[1] - 2 * distance.shape[0]) > 2):
        raise ImageError(f"The panorama's distances have shape {distance.shape}; (H, 2 H) was expected.")
    if confidence is not None and (distance is None or confidence.shape != distance.shape):
        raise ImageError(
            f"The confidence of the panorama's distances has shape {confidence.shape}; the shape of the distances, "
            f"{None if distance is None else distance.shape}, was expected."
        )


_PAD_PX = 2


def _pad_sphere(image: np.ndarray) -> np.ndarray:
    """Pads two pixels on every side: around the seam, and over the poles from the opposite side."""
    opposite = np.roll(image, image.shape[1] // 2, axis=1)
    tall = np.concatenate([opposite[:_PAD_PX][::-1], image, opposite[-_PAD_PX:][::-1]])
    return np.concatenate([tall[:, -_PAD_PX:], tall, tall[:, :_PAD_PX]], axis=1)


def _project_sphere(directions: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row (float32, pixel centres at integers) of directions (H, W, 3) in panorama axes."""
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    width = 2 * height
    column = np.arctan2(x, z) * np.float32(width / (2 * np.pi)) + np.float32(0.5 * width - 0.5)
    row = np.arctan2(y, np.hypot(x, z)) * np.float32(height / np.pi) + np.float32(0.5 * height - 0.5)
    return column, row


def _limit_resolution(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, int]:
    """The image, and the supersampling (along each axis) that avoids aliasing.

    Resolution per radian is lowest at the centre of a view. An image more than twice as fine is reduced first: this
    loses details only near the borders of a view, and a neighbouring view has these closer to its centre.
    """
    height = image.shape[0]
    density = height / math.pi  # pixels per radian
    coarsest = min(camera.fx, camera.fy)
    if density > 2 * coarsest:
        height = max(8, math.ceil(2 * coarsest * math.pi))
    if image.shape[:2] != (height, 2 * height):
        image = cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    return image, 2 if density > 1.05 * coarsest else 1


def _ring(count: int, tilt: float) -> list[tuple[float, float]]:
    return [(2 * math.pi * index / count, tilt) for index in range(count)]
