"""Procedural worlds as a real recording would show them: cluttered, unevenly lit, seen by imperfect sensors.

Procedural worlds are cleaner than real rooms, and their cameras are exact. `SimulatedRecording` adds what recordings
have, from nearly nothing to more than usual: patterns and contrast on the surfaces, light that differs from place to
place, exposure and white balance that change between frames, wrong poses, and noisy depth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.sensor import NO_NOISE, SensorNoise, noisy_depth, noisy_image

# The poorest sensor: standard deviations of
POSE_DEG, POSE_M = 2.0, 0.03  # the poses
EXPOSURE_STOPS, WHITE_BALANCE = 0.8, 0.08  # the exposure and the logarithm of the gains of red and blue, by frame
DEPTH_SCALE = 0.03  # the scale of depth
# The most cluttered place: standard deviations of the logarithm of
PATTERN, PATTERN_COLOUR = 0.5, 0.15  # the brightness and the single colours of cells
LIGHT = 0.45  # the light of a part of a room
PATTERN_CELLS_M = (1.2, 0.5, 0.2)
LIGHT_CELL_M = 3.0
CONTRAST = 1.0  # added to a contrast of 1
TABLE_SIZE = 4096  # random numbers of the cells
# Errors of exposure, white balance and pose change slowly along a walk, as those of automatic cameras and of trackers
# do; neighbouring frames agree better than distant ones.
CORRELATION = 0.3  # of a walk, over which errors lose their similarity
INDEPENDENT = 0.25  # share of their variance that is new in each frame
STEPS = 64  # of a walk
CHANNELS = 9  # exposure, gains of red and blue, rotation, translation


class SimulatedRecording:
    """Takes views of a procedural world as a recording would have them; deterministic for one seed.

    Attributes:
        sensor: quality of the sensors, 0 = exact, 1 = the poorest.
        clutter: 0 = the world as it is, 1 = the most cluttered.
    """

    def __init__(self, seed: int, sensor: float, clutter: float) -> None:
        self.sensor, self.clutter = sensor, clutter
        self._seed, self._random = seed, np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = replace(SensorNoise.draw(Random(seed)), drift=0.0) if sensor > 0 else NO_NOISE
        self._depth_scale = np.float32(1 + DEPTH_SCALE * sensor * self._random.normal())
        decay = np.exp(-1 / (STEPS * CORRELATION))
        errors = [self._random.normal(size=CHANNELS)]
        for _ in range(STEPS):
            errors.append(decay * errors[-1] + np.sqrt(1 - decay * decay) * self._random.normal(size=CHANNELS))
        self._slow_errors = np.stack(errors)

    def image(self, view: View, time: float) -> np.ndarray:
        """The image that the camera takes of a view.

        Args:
            view: view of the world, with true depth.
            time: time since the start of the walk, as a share of it, 0..1.

        Returns:
            (H, W, 3) uint8.
        """
        error = self._errors(time) * self.sensor
        gains = np.exp(WHITE_BALANCE * error[1:3])
        red, blue = (float(gain) * own for gain, own in zip(gains, self._noise.white_balance, strict=True))
        exposure = self._noise.exposure + EXPOSURE_STOPS * float(error[0])
        noise = replace(self._noise, exposure=exposure, white_balance=(red, blue))
        return noisy_image(torch.from_numpy(self._clutter(view))[None], noise, self._generator)[0].numpy()

    def pose(self, world_from_camera: np.ndarray, time: float) -> np.ndarray:
        """The pose (4, 4) as the robot knows it at a time."""
        error = self._errors(time) * self.sensor / np.sqrt(3)  # vectors of three
        pose = world_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(np.radians(POSE_DEG) * error[3:6]).as_matrix()
        pose[:3, 3] += POSE_M * error[6:9]
        return pose

    def observe(self, view: View, time: float) -> View:
        """The view with errors of image, depth and pose; `view` and `time` as for `image`."""
        assert view.depth is not None
        depth = noisy_depth(torch.from_numpy(view.depth)[None], view.camera, self._noise, self._generator)[0].numpy()
        pose = self.pose(view.world_from_camera, time)
        return replace(view, image=self.image(view, time), depth=depth * self._depth_scale, world_from_camera=pose)

    def _errors(self, time: float) -> np.ndarray:
        """(CHANNELS,) errors of unit variance at a time."""
        steps = np.linspace(0, 1, len(self._slow_errors))
        slow = np.array([np.interp(time, steps, channel) for channel in self._slow_errors.T])
        new = self._random.normal(size=CHANNELS)
        return np.sqrt(1 - INDEPENDENT) * slow + np.sqrt(INDEPENDENT) * new

    def _clutter(self, view: View) -> np.ndarray:
        """The image with patterns, uneven light and more contrast, all fixed to the surfaces of the world."""
        if self.clutter <= 0 or view.depth is None:
            return view.image
        random = np.random.default_rng(self._seed)  # the same in every view
        points = unproject(view.depth, view.camera, view.world_from_camera).reshape(-1, 3)
        factor = np.ones((len(points), 3))
        for size in (LIGHT_CELL_M, *PATTERN_CELLS_M):
            turn = Rotation.from_rotvec([0, 0, random.uniform(0, np.pi)]).as_matrix()
            cell = np.floor(points @ turn.T / size + random.uniform(0, 1, 3)).astype(np.int64)
            index = (cell[:, 0] * 73856093 ^ cell[:, 1] * 19349663 ^ cell[:, 2] * 83492791) % TABLE_SIZE
            brightness, colour = random.normal(size=(TABLE_SIZE, 1)), random.normal(size=(TABLE_SIZE, 3))
            if size == LIGHT_CELL_M:
                table = LIGHT * brightness
            else:
                present = random.random((TABLE_SIZE, 1)) < random.uniform(0.05, 0.35)
                table = np.where(present, PATTERN * brightness + PATTERN_COLOUR * colour, 0)
            factor *= np.exp(self.clutter * table)[index]
        image = np.clip(view.image.reshape(-1, 3) / 255 * factor, 0.004, 0.996)
        contrast = 1 + CONTRAST * self.clutter * random.uniform(0, 1)
        image = 1 / (1 + np.exp(-contrast * np.log(image / (1 - image))))
        measured = (view.depth > 0).reshape(-1, 1)  # the sky stays as it is
        out = np.where(measured, image * 255 + 0.5, view.image.reshape(-1, 3))
        return out.astype(np.uint8).reshape(view.image.shape)
