"""A scene: primitives, materials and light, and how to put several on a device at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.motion import Mover
from worldstereo_ros.scenes.raytracing.primitives import Builder, Light, Primitives

"""Lamps that glossy surfaces show."""


@dataclass(frozen=True)
class Sky:
    """What is seen where nothing is: colours overhead and at the horizon, amount of clouds, direction to the sun."""

    zenith: tuple[float, ...] = (0.16, 0.36, 0.8)
    horizon: tuple[float, ...] = (0.7, 0.82, 0.95)
    clouds: float = 0.4
    sun: tuple[float, ...] = (0.4, 0.3, 0.85)
    seed: float = 0.0

    def row(self) -> list[float]:
        """The settings as one row for `textures.sky`."""
        return [*self.zenith, *self.horizon, self.clouds, *self.sun, self.seed]


@dataclass(frozen=True)
class SceneFrames:
    """What cameras see, exact to float32.

    Attributes:
        image: (F, H, W, 3) uint8 RGB.
        depth: (F, H, W) float32 metres along the optical axis; 0 = sky, nothing hit.
        normals: (F, H, W, 3) float32 unit vectors in world axes, facing the camera; zeros where depth is 0.
        instance: (F, H, W) int32 ids of objects; 0 where depth is 0. `Scene.names` says what they are.
    """

    image: torch.Tensor
    depth: torch.Tensor
    normals: torch.Tensor
    instance: torch.Tensor


@dataclass
class Scene:
    """A world: x forward, y left, z up (as in ROS), metres, the floor at z = 0.

    Attributes:
        kind, seed: what it was made from.
        primitives: P of them.
        materials: (M, columns) float32, `textures.COLUMNS`.
        pictures: (n, S, S, 3) float32 linear.
        lights: lamps and the sun.
        ambient, sky: light without a lamp, and what is seen outside.
        bounds: lowest and highest corner of the space where a camera or robot may be.
        names: of the objects, by instance id; 0 is "nothing".
        key: how bright the picture is on average, 0..1.
        texel_budget: about how many points of surfaces the light is worked out for.
        movers: what moves; `primitives` has it where it is at time 0.
        cache: the scene packed for a device and a lighting, filled by `packing.packed`.
    """

    kind: str
    seed: int
    primitives: Primitives
    materials: torch.Tensor
    pictures: torch.Tensor
    lights: list[Light]
    ambient: Ambient
    sky: Sky
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    names: list[str]
    key: float = 0.45
    texel_budget: int = 40_000
    movers: tuple[Mover, ...] = ()
    cache: dict = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def build(builder: Builder, kind: str, seed: int, *, ambient: Ambient, sky: Sky, bounds: tuple, **kw) -> Scene:
        """The scene that a builder collected."""
        pictures = np.stack(builder.pictures) if builder.pictures else np.zeros((1, 2, 2, 3), dtype=np.float32)
        return Scene(
            kind, seed, builder.primitives(), torch.tensor(builder.materials, dtype=torch.float32),
            torch.from_numpy(pictures), list(builder.lights), ambient, sky, bounds, list(builder.names), **kw,
        )  # fmt: skip
