"""A walk there and back through the painted room, and point maps of it whose path drifts by a known amount."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from helpers import video_scene
from helpers.returning_walk import drifted, maps_of, returning_walk
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps import Pointmaps
from worldstereo_ros.pipelines.pointmaps.estimate import Window
from worldstereo_ros.pipelines.pointmaps.windows import PointmapStream

FRAMES, OVERLAP = 80, 2
AWAY = 1000  # added to the numbers of frames of another room


def poses() -> np.ndarray:
    """(FRAMES, 4, 4) in the room; no two of them are equal."""
    out = returning_walk(FRAMES)
    out[:, 1, 3] += 0.001 * np.arange(FRAMES)
    return out


def truth() -> np.ndarray:
    """(FRAMES, 4, 4) in the axes of the first camera."""
    walk = poses()
    return invert_pose(walk[0]) @ walk


@cache
def _rendered(number: int) -> tuple[np.ndarray, np.ndarray]:
    if number < AWAY:
        image, depth, _ = video_scene.frame(poses()[number])
        return image, depth
    image, depth, _ = video_scene.frame(poses()[number - AWAY])
    # Another room: every third row of blocks of the image is mixed up, which no camera could see in this one.
    random = np.random.default_rng(3)
    blocks = image.reshape(12, 10, 16, 10, 3).swapaxes(1, 2).reshape(192, 10, 10, 3)
    return np.ascontiguousarray(
        blocks[random.permutation(192)].reshape(12, 16, 10, 10, 3).swapaxes(1, 2).reshape(image.shape)
    ), depth


def image(number: int) -> np.ndarray:
    """(H, W, 3) uint8 of a frame; from `AWAY` on of another place."""
    return _rendered(number)[0]


@cache
def _drift() -> tuple[np.ndarray, np.ndarray]:
    return drifted(truth(), turn=0.002, growth=0.003)


def path() -> np.ndarray:
    """(FRAMES, 4, 4) as it is estimated."""
    return _drift()[0]


def _key(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@cache
def _numbers() -> dict[str, int]:
    return {_key(image(number)): number for first in (0, AWAY) for number in range(first, first + FRAMES)}


def estimate(window: Window) -> Pointmaps:
    """Point maps of images of the walk, in the drifting unit and along the drifting path."""
    numbers = [_numbers()[_key(each)] for each in window.images]
    rows = np.array(numbers) % AWAY
    drifting, logs = _drift()
    depths = [_rendered(number)[1] * np.float32(np.exp(logs[row])) for number, row in zip(numbers, rows, strict=True)]
    return maps_of(invert_pose(drifting[rows[0]]) @ drifting[rows], depths)


def open_stream(factory: object, camera: object, parameters: object) -> PointmapStream:
    """In place of `StreamFactory.open`."""
    return PointmapStream(camera, window=parameters.pointmaps.window, overlap=OVERLAP, estimate=estimate)
