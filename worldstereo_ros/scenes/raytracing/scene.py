"""Scenes, skies, and the frames that are rendered of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.motion import MovingObject
from worldstereo_ros.scenes.raytracing.primitives import Builder, Light, Primitives


@dataclass(frozen=True)
class Sky:
    """Background: linear colours at zenith and horizon, amount of clouds, direction to the sun, seed of the clouds."""

    zenith: tuple[float, ...] = (0.16, 0.36, 0.8)
    horizon: tuple[float, ...] = (0.7, 0.82, 0.95)
    clouds: float = 0.4
    sun: tuple[float, ...] = (0.4, 0.3, 0.85)
    seed: float = 0.0

    def row(self) -> list[float]:
        """The values as one row for `textures.sky`."""
        return [*self.zenith, *self.horizon, self.clouds, *self.sun, self.seed]


@dataclass(frozen=True)
class SceneFrames:
    """Rendered frames, with ground truth exact to float32.

    Attributes:
        image: (F, H, W, 3) uint8 RGB.
        depth: (F, H, W) float32 metres along the optical axis; 0 = no surface (sky).
        normals: (F, H, W, 3) float32 unit vectors in world axes, facing the camera; zeros where depth is 0.
        instance: (F, H, W) int32 object ids, indices into `Scene.names`; 0 where depth is 0.
    """

    image: torch.Tensor
    depth: torch.Tensor
    normals: torch.Tensor
    instance: torch.Tensor


@dataclass
class Scene:
    """A procedural world: x forward, y left, z up (as in ROS), metres, the floor at z = 0.

    Attributes:
        kind, seed: which world it is, see `make_scene`.
        primitives: P solids; moving objects at their place at time 0.
        materials: (M, columns) float32, `textures.COLUMNS`.
        images: (n, S, S, 3) float32 linear RGB, textures of posters, signs and screens.
        lights: lamps and the sun.
        ambient, sky: ambient light and background.
        bounds: lowest and highest corner of the space that cameras and robots stay in.
        names: names of the objects, by instance id; id 0 is "nothing".
        key: target mean brightness of rendered images, 0..1.
        texel_budget: approximate number of surface points at which light is baked.
        moving_objects: objects that move.
        cache: packed scenes by device and lighting, filled by `packing.pack_cached`.
    """

    kind: str
    seed: int
    primitives: Primitives
    materials: torch.Tensor
    images: torch.Tensor
    lights: list[Light]
    ambient: Ambient
    sky: Sky
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    names: list[str]
    key: float = 0.45
    texel_budget: int = 40_000
    moving_objects: tuple[MovingObject, ...] = ()
    cache: dict = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def build(builder: Builder, kind: str, seed: int, *, ambient: Ambient, sky: Sky, bounds: tuple, **kw) -> Scene:
        """Create the scene that a builder collected."""
        images = np.stack(builder.images) if builder.images else np.zeros((1, 2, 2, 3), dtype=np.float32)
        return Scene(
            kind, seed, builder.primitives(), torch.tensor(builder.materials, dtype=torch.float32),
            torch.from_numpy(images), list(builder.lights), ambient, sky, bounds, list(builder.names), **kw,
        )  # fmt: skip
