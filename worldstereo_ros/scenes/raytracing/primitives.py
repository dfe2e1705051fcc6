"""Solid primitives, materials and lights, and the builder that collects them into a scene.

Every primitive is a convex solid in its own unit frame, |x|, |y|, |z| <= 1, placed by an axis-aligned scale (its half
size in metres), a rotation and a centre. A box fills that frame, a cylinder is the disc x^2 + y^2 <= 1 swept along z,
a sphere (or ellipsoid) is the unit ball. A quad is a thin box. World axes are those of ROS: x forward, y left, z up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from worldstereo_ros.utils.errors import InputError

BOX, CYLINDER, SPHERE = 0, 1, 2

Colour = tuple[float, ...]
"""Linear RGB, 0..1."""

Vector = Sequence[float] | np.ndarray
"""Three numbers, metres."""


class Random:
    """Random numbers from a private torch generator; the global generator is not used.

    The same seed gives the same numbers on every machine.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(int(seed) & 0x7FFF_FFFF_FFFF_FFFF)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniformly distributed number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def normal(self, scale: float = 1.0) -> float:
        """A normally distributed number with mean 0 and standard deviation `scale`."""
        return scale * float(torch.randn((), generator=self.generator, dtype=torch.float64))

    def integer(self, low: int, high: int) -> int:
        """A uniformly distributed integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def choice(self, options: Sequence):
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def shuffled(self, options: Sequence) -> list:
        """The options in random order."""
        return [options[i] for i in torch.randperm(len(options), generator=self.generator).tolist()]

    def colour(self, saturation: tuple[float, float] = (0.2, 0.7), value: tuple[float, float] = (0.35, 0.8)) -> Colour:
        """A colour of random hue, linear RGB."""
        return hsv(self.uniform(), self.uniform(*saturation), self.uniform(*value))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Convert hue, saturation and value, each 0..1, to linear RGB."""
    phase = np.array([5.0, 3.0, 1.0]) + hue * 6.0
    k = np.mod(phase, 6.0)
    rgb = value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return tuple(float(c) for c in rgb**2.2)


@dataclass(frozen=True)
class Material:
    """A surface: a grid of cells (bricks, tiles, planks, checks, stripes) with joints and noise, or an image.

    Attributes:
        a, b: the two colours that the cells mix, linear RGB 0..1.
        joint: colour of the joints.
        cell: size of a cell along u and v, metres.
        shift: offset of each row against the previous one, in cells; negative = a random offset per row.
        joint_width: metres; 0 = no joints.
        pattern: "mix" (each cell a random mix of a and b), "checks" or "stripes" (along u).
        variance: relative difference in brightness between cells.
        noise: relative amplitude of the value noise on the brightness.
        blend: amplitude of the value noise on the mix of a and b.
        frequency: frequency of the value noise along u and v, cycles per metre.
        grain: 1 = each cell has its own noise (planks), 0 = the noise is continuous.
        ripple: amplitude of a shading ripple along u, one period per cell (corrugated sheet).
        gloss: strength of the specular highlight, 0..1.
        emission: emitted light, as a factor of colour a.
        image: index of an image stretched over the face, -1 = none.
    """

    a: Colour = (0.5, 0.5, 0.5)
    b: Colour = (0.5, 0.5, 0.5)
    joint: Colour = (0.1, 0.1, 0.1)
    cell: tuple[float, float] = (1e3, 1e3)
    shift: float = 0.0
    joint_width: float = 0.0
    pattern: str = "mix"
    variance: float = 0.0
    noise: float = 0.06
    blend: float = 0.0
    frequency: tuple[float, float] = (2.0, 2.0)
    grain: float = 0.0
    ripple: float = 0.0
    gloss: float = 0.0
    emission: float = 0.0
    image: int = -1

    def row(self, seed: float) -> list[float]:
        """The material as one row of the shader's table (`textures.COLUMNS`)."""
        pattern = {"mix": 0.0, "checks": 1.0, "stripes": 2.0}[self.pattern]
        return [
            *self.a, *self.b, *self.joint, 1.0 / self.cell[0], 1.0 / self.cell[1], self.shift, self.joint_width,
            pattern, self.variance, self.noise, self.blend, *self.frequency, self.grain, self.ripple, self.gloss,
            self.emission, float(self.image), seed,
        ]  # fmt: skip


@dataclass(frozen=True)
class Light:
    """A rectangular lamp, a bulb, or the sun.

    Attributes:
        position: centre, metres; for the sun, the unit vector towards it.
        colour: linear RGB.
        power: radiant intensity; for the sun, irradiance.
        normal: unit vector that a panel faces; zeros for a bulb, which emits in all directions.
        size: half extents in metres: of a panel across and up (of a ceiling panel along x and y); of a bulb, its radius
            twice. For the sun, the angular radius in radians, twice.
        sun: parallel light from one direction.
    """

    position: tuple[float, ...]
    colour: Colour
    power: float
    normal: tuple[float, ...] = (0.0, 0.0, 0.0)
    size: tuple[float, float] = (0.1, 0.1)
    sun: bool = False


@dataclass
class Primitives:
    """P primitives as tensors on the CPU.

    Attributes:
        kind: (P,) int64: BOX, CYLINDER or SPHERE.
        centre: (P, 3) float64 metres.
        half: (P, 3) float64 half sizes, metres.
        rotation: (P, 3, 3) float64 world_from_local.
        instance: (P,) int64, object id from 1; the primitives of one object share it.
        material: (P, 6) int64, one index per face, in the order -x, +x, -y, +y, -z, +z of the local frame.
        shift: (P, 3) float64 metres, origin of the texture in the local frame.
        casts: (P,) bool, casts shadows.
        outdoor: (P,) bool, lit by the sky.
        solid: (P,) bool, an obstacle for cameras and robots.
        body: (P,) int64, index of the moving body that it belongs to, 0 = static.
    """

    kind: torch.Tensor
    centre: torch.Tensor
    half: torch.Tensor
    rotation: torch.Tensor
    instance: torch.Tensor
    material: torch.Tensor
    shift: torch.Tensor
    casts: torch.Tensor
    outdoor: torch.Tensor
    solid: torch.Tensor
    body: torch.Tensor

    def __len__(self) -> int:
        return self.kind.shape[0]

    def select(self, keep: torch.Tensor) -> Primitives:
        """The primitives that a mask or an index selects."""
        return Primitives(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Primitives]) -> Primitives:
        """All primitives of several parts, in order."""
        return Primitives(
            **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Primitives)}
        )

    @property
    def extent(self) -> torch.Tensor:
        """(P, 3) float64 half sizes of the axis-aligned bounding boxes."""
        return (self.rotation.abs() @ self.half[..., None])[..., 0]


def rotation_z(yaw: float) -> np.ndarray:
    """(3, 3) rotation about the z axis by `yaw` radians."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_to(axis: str) -> np.ndarray:
    """(3, 3) rotation that maps the local z axis to "x", "y" or "z"."""
    return {
        "z": np.eye(3),
        "x": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    }[axis]


FACES = {"-x": 0, "+x": 1, "-y": 2, "+y": 3, "-z": 4, "+z": 5}


class Builder:
    """Collects primitives, materials, images and lights; `at` returns a builder with a child frame."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.rows: list[dict] = []
        self.materials: list[list[float]] = []
        self.material_index: dict[Material, int] = {}
        self.images: list[np.ndarray] = []
        self.lights: list[Light] = []
        self.names: list[str] = ["nothing"]
        self.rotation = np.eye(3)
        self.origin = np.zeros(3)
        self.instance = 0
        self.options: dict = {}

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0, name: str | None = None, **options) -> Builder:
        """A builder with a child frame at this place; with a name, everything it adds is one object with one id.

        Options (`casts`, `outdoor`, `solid`, `body`) are defaults for everything it adds.
        """
        child = object.__new__(Builder)
        child.__dict__.update(self.__dict__)
        child.origin = self.origin + self.rotation @ np.array([x, y, z], dtype=np.float64)
        child.rotation = self.rotation @ rotation_z(yaw)
        child.options = {**self.options, **options}
        if name is not None:
            child.instance = child.new_instance(name)
        return child

    def new_instance(self, name: str) -> int:
        """Register a new object and return its id."""
        self.names.append(name)
        return len(self.names) - 1

    def add_material(self, material: Material) -> int:
        """Add a material and return its index; equal materials share one row."""
        if material not in self.material_index:
            self.material_index[material] = len(self.materials)
            self.materials.append(material.row(self.random.uniform(0.0, 256.0)))
        return self.material_index[material]

    def add_image(self, image: np.ndarray) -> int:
        """Add an image texture, (S, S, 3) float32 linear 0..1 with one S for the whole scene; returns its index."""
        self.images.append(np.asarray(image, dtype=np.float32))
        return len(self.images) - 1

    def add(self, kind: int, centre: Vector, half: Vector, material: Material, *,
            rotation: np.ndarray | None = None, faces: dict[str, Material] | None = None, anchored: bool = False,
            name: str | None = None, **options) -> None:  # fmt: skip
        """Add a primitive; see `box`, `cylinder` and `sphere`."""
        flags = {"casts": True, "outdoor": False, "solid": True, "body": 0, **self.options, **options}
        local = self.rotation if rotation is None else self.rotation @ rotation
        position = self.origin + self.rotation @ np.asarray(centre, dtype=np.float64)
        ids = [self.add_material(material)] * 6
        for face, other in (faces or {}).items():
            ids[FACES[face]] = self.add_material(other)
        size = np.maximum(np.asarray(half, dtype=np.float64), 5e-4)
        shift = local.T @ position if anchored else self.random.uniform(0.0, 9.0) + size
        instance = self.new_instance(name) if name is not None else self.instance
        if instance == 0:
            raise InputError("A primitive belongs to an object: pass `name` here or to Builder.at.")
        self.rows.append(
            {"kind": kind, "centre": position, "half": size, "rotation": local, "instance": instance, "material": ids,
             "shift": shift, **flags}
        )  # fmt: skip

    def box(self, centre: Vector, size: Vector, material: Material, *, yaw: float = 0.0, **kw) -> None:
        """Add a box: centre and full size in metres, rotated by yaw; `faces` gives some faces other materials.

        `anchored` makes the texture continuous from one box to the next, for walls that consist of several boxes.
        """
        self.add(BOX, centre, np.asarray(size) / 2, material, rotation=rotation_z(yaw) if yaw else None, **kw)

    def span(self, low: Vector, high: Vector, material: Material, **kw) -> None:
        """Add a box from its lowest to its highest corner; an empty box is skipped."""
        a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if (b - a > 1e-6).all():
            self.add(BOX, (a + b) / 2, (b - a) / 2, material, **kw)

    def cylinder(self, centre: Vector, radius: float, height: float, material: Material, *,
                 axis: str = "z", **kw) -> None:  # fmt: skip
        """Add a capped cylinder along a local axis."""
        self.add(CYLINDER, centre, (radius, radius, height / 2), material, rotation=rotation_to(axis), **kw)

    def sphere(self, centre: Vector, radius: float | Vector, material: Material, **kw) -> None:
        """Add a sphere, or an ellipsoid with three radii."""
        self.add(SPHERE, centre, np.broadcast_to(np.asarray(radius, dtype=np.float64), (3,)), material, **kw)

    def light(self, position: Vector, colour: Colour, power: float,
              normal: Vector = (0.0, 0.0, 0.0), size: tuple[float, float] = (0.08, 0.08)) -> None:  # fmt: skip
        """Add a lamp; position and `normal` are in the builder's frame."""
        position_world = self.origin + self.rotation @ np.asarray(position, dtype=np.float64)
        facing = self.rotation @ np.asarray(normal, dtype=np.float64)
        place = tuple(float(v) for v in position_world)
        self.lights.append(Light(place, colour, power, tuple(float(v) for v in facing), size))

    def sun(self, direction: Vector, colour: Colour, power: float, angle: float = 0.01) -> None:
        """Add sunlight from a direction in world axes; `angle` is the sun's angular radius in radians."""
        unit = np.asarray(direction, dtype=np.float64) / np.linalg.norm(direction)
        self.lights.append(Light(tuple(float(v) for v in unit), colour, power, size=(angle, angle), sun=True))

    def primitives(self) -> Primitives:
        """Everything that was added, as tensors."""
        double, whole = torch.float64, torch.int64
        types = {"kind": whole, "centre": double, "half": double, "rotation": double, "instance": whole,
                 "material": whole, "shift": double, "casts": torch.bool, "outdoor": torch.bool,
                 "solid": torch.bool, "body": whole}  # fmt: skip
        return Primitives(
            **{key: torch.as_tensor(np.stack([np.asarray(row[key]) for row in self.rows]), dtype=kind)
               for key, kind in types.items()}
        )  # fmt: skip


def varied(material: Material, random: Random, amount: float = 0.08) -> Material:
    """The material with slightly changed brightness and colour temperature."""
    factor = np.clip(1.0 + np.array([random.normal(amount) for _ in range(3)]) * 0.5 + random.normal(amount), 0.5, 1.5)

    def tint(colour: Colour) -> Colour:
        return tuple(float(v) for v in np.clip(np.asarray(colour) * factor, 0.0, 1.0))

    return replace(material, a=tint(material.a), b=tint(material.b))
