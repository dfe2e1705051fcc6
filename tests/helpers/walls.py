"""A wall of coloured squares, which models of toy size are shown, and the way that they are asked for."""

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class Wall:
    """It stands 2 m ahead; `square` is how many pixels of the camera each of its squares is wide and high."""

    camera: Camera
    square: int

    def view(self, stamp: int = 1, sideways: float = 0.0) -> View:
        """What the camera sees, from so many metres to the right."""
        height, width = self.camera.height, self.camera.width
        squares = (height // self.square, width // self.square, 3)
        image = np.random.default_rng(3).integers(30, 220, squares, dtype=np.uint8)
        image = image.repeat(self.square, 0).repeat(self.square, 1)
        pose = np.eye(4)
        pose[0, 3] = sideways
        return View(image, self.camera, pose, np.full((height, width), 2.0, np.float32), stamp_ns=stamp)

    def views(self) -> list[View]:
        """From two places."""
        return [self.view(1), self.view(2, 0.2)]

    def world(self, pipeline) -> WorldModel:
        """One that has seen both views."""
        world = WorldModel(pipeline)
        for view in self.views():
            world.observe(view)
        return world


WALL = Wall(Camera.from_fov(64, 48, np.radians(70)), 8)  # of the small model's sizes at toy size
ODD_WALL = Wall(Camera.from_fov(60, 45, np.radians(70)), 5)  # of a size that has to be fitted to a model's


def away(count: int, angle: float = 2.0) -> np.ndarray:
    """A path that turns away from what was seen."""
    return trajectory("turn", np.eye(4), count, angle=angle)
