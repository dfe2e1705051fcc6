"""A wall of coloured squares and a path that turns away from it, for models of toy size."""

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class Wall:
    """A wall 2 m ahead of the camera; `square` is the size of its squares in pixels."""

    camera: Camera
    square: int

    def view(self, stamp: int = 1, sideways: float = 0.0) -> View:
        """The wall as seen from `sideways` metres to the right."""
        height, width = self.camera.height, self.camera.width
        squares = (height // self.square, width // self.square, 3)
        image = np.random.default_rng(3).integers(30, 220, squares, dtype=np.uint8)
        image = image.repeat(self.square, 0).repeat(self.square, 1)
        pose = np.eye(4)
        pose[0, 3] = sideways
        return View(image, self.camera, pose, np.full((height, width), 2.0, np.float32), stamp_ns=stamp)

    def views(self) -> list[View]:
        """Views from two positions."""
        return [self.view(1), self.view(2, 0.2)]

    def world(self, pipeline) -> WorldModel:
        """A world model with both views."""
        world = WorldModel(pipeline)
        for view in self.views():
            world.observe(view)
        return world


WALL = Wall(Camera.from_fov(64, 48, np.radians(70)), 8)  # a size of the toy-size small model
ODD_WALL = Wall(Camera.from_fov(60, 45, np.radians(70)), 5)  # a size that the models must resize


def away(count: int, angle: float = 2.0) -> np.ndarray:
    """A path that turns away from the wall."""
    return trajectory("turn", np.eye(4), count, angle=angle)
