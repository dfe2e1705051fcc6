"""An equirectangular panorama as perspective views, which seed the memories.

The panorama is taken for a camera whose optical axis points at the middle of the picture: x right, y down, z forward
(the centre column). Columns go once around from left (behind) over the centre (ahead) to the right (behind again), rows
from straight up to straight down. `world_from_camera` is the pose of that camera.

The 27 views are those of the published WorldStereo panorama banks: nine directions 40 degrees apart, each level, and
tilted up and down by atan(1/2) = 26.57 degrees; 120 x 90 degrees of 832x480 pixels. They see everything but two caps
of 18 degrees around the poles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError, check_size
from worldstereo_ros.utils.errors import InputError

BANK_SIZE = (832, 480)
BANK_FOV = (math.radians(120), math.radians(90))
_STEP, _TILT = math.radians(40), math.atan(0.5)

# Views all round, where the layout is ours to choose: those that are imagined, or shown to a depth model.
FIELD = math.radians(75)  # across, of the views that are imagined
ASPECT = 4 / 3
LEVEL_STEP, TILTED_STEP = 0.4, 0.65  # from view to view, as parts of what a view shows across
RISE = 5 / 6  # from ring to ring, as part of what a view shows from top to bottom

# The published banks lie in a world with z up, in which the middle of the panorama points along -x.
PUBLISHED_WORLD_FROM_PANORAMA = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def bank_poses() -> np.ndarray:
    """(27, 4, 4) panorama_from_camera of the published layout, in its order.

    Straight ahead: level, up, down; then the other eight directions to the right, all level, all up, all down.
    """
    turns = np.arange(1, 9) * _STEP
    angles = [(0.0, 0.0), (0.0, _TILT), (0.0, -_TILT)]
    angles += [(turn, tilt) for tilt in (0.0, _TILT, -_TILT) for turn in turns]
    return np.stack([look(turn, tilt) for turn, tilt in angles])


def bank_camera(width: int = BANK_SIZE[0], height: int = BANK_SIZE[1]) -> Camera:
    """120 degrees wide and 90 high, whatever the size."""
    fx = 0.5 * width / math.tan(0.5 * BANK_FOV[0])
    fy = 0.5 * height / math.tan(0.5 * BANK_FOV[1])
    return Camera(width, height, fx, fy, 0.5 * (width - 1), 0.5 * (height - 1))


def seed_camera(height: int) -> Camera:
    """The published camera, no finer than a panorama of so many rows."""
    width = min(BANK_SIZE[0], 2 * math.ceil(math.tan(0.5 * BANK_FOV[0]) * max(height, 8) / math.pi))
    return bank_camera(width, round(width * BANK_SIZE[1] / BANK_SIZE[0]))


def look(right: float, up: float) -> np.ndarray:
    """(4, 4) panorama_from_camera of a camera turned to the right, then tilted up (radians)."""
    c, s, d, t = math.cos(right), math.sin(right), math.cos(up), math.sin(up)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]])
    return pose


def round_camera(height: int) -> Camera:
    """The camera whose middle is as fine as a panorama of so many rows.

    Raises:
        ValueError: fewer rows than 8.
    """
    if not height >= 8:
        raise InputError(f"The panorama's height is {height}; a whole number of at least 8 rows was expected.")
    width = max(16, 2 * math.ceil(math.tan(FIELD / 2) * height / math.pi))
    return Camera.from_fov(width, round(width / ASPECT), FIELD)


def rings(camera: Camera) -> list[list[tuple[float, float]]]:
    """(right, up) angles in radians of views that together show the whole sphere: level, then above, below, and so on.

    The last two lists hold one view each, straight up and straight down.
    """
    across, upright = (2 * math.atan(0.5 * size / focal) for size, focal in _sizes(camera))
    level = _ring(math.ceil(2 * math.pi / (LEVEL_STEP * across)), 0.0)
    found = [level]
    tilt = RISE * upright
    # Straight up, a view shows what is nearer to the pole than half of its smaller angle.
    while not (found[1:] and tilt - RISE * upright + 0.5 * upright > 0.5 * math.pi - 0.4 * min(across, upright)):
        tilt = min(tilt, 0.5 * math.pi)
        ahead = math.cos(tilt) + math.sin(tilt) * math.tan(0.5 * upright)
        shown = 2 * math.atan2(math.tan(0.5 * across), ahead)
        count = math.ceil(2 * math.pi / (TILTED_STEP * shown))
        found += [_ring(count, tilt), _ring(count, -tilt)]
        if tilt >= 0.5 * math.pi:
            break
        tilt += RISE * upright
    return [*found, [(0.0, 0.5 * math.pi)], [(0.0, -0.5 * math.pi)]]


def panorama_views(
    image: np.ndarray,
    distance: np.ndarray | None = None,
    *,
    world_from_camera: np.ndarray | None = None,
    camera: Camera | None = None,
    panorama_from_camera: np.ndarray | None = None,
    stamp_ns: int = 0,
) -> Iterator[View]:
    """Perspective views of a panorama, one at a time.

    Args:
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        distance: (H, 2 H) float32 metres along the ray (not along an axis), 0 = unknown.
        world_from_camera: (4, 4) pose of the panorama (see the module); the origin of the world where None.
        camera: of every view; the published one where None.
        panorama_from_camera: (N, 4, 4) of the views; the 27 published ones where None.
        stamp_ns: of every view.

    Yields:
        Views, with depth along their optical axes where `distance` is given.

    Raises:
        ImageError: no full sphere, another type, or too large. Before the first view.
    """
    _check(image, distance)
    camera = bank_camera() if camera is None else camera
    local = bank_poses() if panorama_from_camera is None else np.asarray(panorama_from_camera, dtype=np.float64)
    origin = np.eye(4) if world_from_camera is None else np.asarray(world_from_camera, dtype=np.float64)
    return _views(image, distance, camera, local, origin, stamp_ns)


def _views(
    image: np.ndarray,
    distance: np.ndarray | None,
    camera: Camera,
    local: np.ndarray,
    origin: np.ndarray,
    stamp_ns: int,
) -> Iterator[View]:
    image, oversampling = _for_camera(image, camera)
    fine = camera.resized(camera.width * oversampling, camera.height * oversampling)
    fine_rays, rays = fine.rays(), camera.rays()
    length = np.linalg.norm(rays, axis=-1)
    padded = _wrapped(image)
    for pose in local:
        column, row = _pixels(fine_rays @ pose[:3, :3].T.astype(np.float32), image.shape[0])
        colour = cv2.remap(padded, column + _PAD, row + _PAD, cv2.INTER_LINEAR)
        if oversampling > 1:
            colour = cv2.resize(colour, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        depth = None
        if distance is not None:
            height, width = distance.shape
            column, row = _pixels(rays @ pose[:3, :3].T.astype(np.float32), height)
            nearest = distance[np.clip(np.rint(row), 0, height - 1).astype(int), np.rint(column).astype(int) % width]
            depth = np.where(np.isfinite(nearest) & (nearest > 0), nearest / length, 0).astype(np.float32)
        yield View(colour, camera, origin @ pose, depth, stamp_ns=stamp_ns)


def _check(image: np.ndarray, distance: np.ndarray | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"The panorama is {image.dtype} of shape {image.shape}; uint8 (H, W, 3) was expected.")
    height, width = image.shape[:2]
    check_size(width, height, "The panorama")
    if abs(width - 2 * height) > 2 or height < 8:
        raise ImageError(
            f"The panorama is {width}x{height}; an equirectangular picture of the full sphere is twice as wide as "
            "high. Pad a panorama that shows less, or send an ordinary picture as `image`."
        )
    if distance is not None and (distance.ndim != 2 or abs(distance.shape[1] - 2 * distance.shape[0]) > 2):
        raise ImageError(f"The panorama's distances have shape {distance.shape}; (H, 2 H) was expected.")


_PAD = 2


def _wrapped(image: np.ndarray) -> np.ndarray:
    """The picture with two pixels more on every side: around the seam, and over the poles to the other side."""
    over = np.roll(image, image.shape[1] // 2, axis=1)
    tall = np.concatenate([over[:_PAD][::-1], image, over[-_PAD:][::-1]])
    return np.concatenate([tall[:, -_PAD:], tall, tall[:, :_PAD]], axis=1)


def _pixels(directions: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row (float32, pixel centres at integers) of directions (H, W, 3) in panorama axes."""
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    width = 2 * height
    column = np.arctan2(x, z) * np.float32(width / (2 * np.pi)) + np.float32(0.5 * width - 0.5)
    row = np.arctan2(y, np.hypot(x, z)) * np.float32(height / np.pi) + np.float32(0.5 * height - 0.5)
    return column, row


def _for_camera(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, int]:
    """The picture, and how many samples a pixel (along each axis) are averaged so that nothing aliases.

    The middle of a view is its coarsest part. A picture more than twice as fine as that is reduced first: its finest
    details are lost at the edges of a view, where they would be seen stretched, and another view has them anyway.
    """
    height = image.shape[0]
    density = height / math.pi  # pixels a radian
    coarsest = min(camera.fx, camera.fy)
    if density > 2 * coarsest:
        height = max(8, math.ceil(2 * coarsest * math.pi))
    if image.shape[:2] != (height, 2 * height):
        image = cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    return image, 2 if density > 1.05 * coarsest else 1


def _ring(count: int, tilt: float) -> list[tuple[float, float]]:
    return [(2 * math.pi * index / count, tilt) for index in range(count)]


def _sizes(camera: Camera) -> Sequence[tuple[int, float]]:
    return (camera.width, camera.fx), (camera.height, camera.fy)
