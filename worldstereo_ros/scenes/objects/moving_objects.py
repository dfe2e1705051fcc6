"""Moving objects for scenes: carts, robots, balls, boxes, drones, and cars in lots.

They are added to a finished scene on tracks that are free of collisions with the scene and with each other at all
times. The static part of the scene is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo_ros.scenes.objects import furniture, materials, vehicles
from worldstereo_ros.scenes.objects.posters import IMAGE_SIZE_PX
from worldstereo_ros.scenes.paths import box_distance
from worldstereo_ros.scenes.raytracing.motion import MovingObject, Track
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, Primitives, Random, hsv
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.scenes.raytracing.textures import COLUMNS
from worldstereo_ros.utils.errors import InputError

MARGIN_M = 0.06
"""Minimum distance of moving objects to everything else, metres."""

MAX_STEP_OVER_M = 0.02
"""Static objects up to this height (floors, rugs, painted lines) are not obstacles, metres."""

TRACK_SAMPLES = 96
"""Samples of a track for collision checks."""

MAX_ATTEMPTS = 120

MIN_TRACK_SCALE = 0.15
"""Tracks are shortened from attempt to attempt, down to this fraction of the preferred length."""


@dataclass(frozen=True)
class MovingObjectKind:
    """A kind of moving object: its builder, outline and speed.

    Attributes:
        build: builds it at the origin of a frame, facing +x, standing on z = 0.
        half: half length along x and half width, metres.
        height: metres.
        speed: lowest and highest speed, metres per second.
        headings: possible headings, see `Track`.
        flies: whether its height is free.
        radius: radius of a ball, metres; 0 for other kinds.
    """

    build: Callable[[Builder], None]
    half: tuple[float, float]
    height: float
    speed: tuple[float, float]
    headings: tuple[str, ...]
    flies: bool = False
    radius: float = 0.0


def _ball(b: Builder, radius: float) -> None:
    r = b.random
    bright, hue = r.uniform(0.7, 0.95), r.uniform()
    other = hsv(hue + r.uniform(0.3, 0.6), r.uniform(0.0, 0.5), 0.9)
    skin = Material(a=hsv(hue, 0.8, bright), b=other, pattern="checks",
                    cell=(math.pi * radius / 3, 0.5 * radius), noise=0.04, gloss=0.3)  # fmt: skip
    b.sphere((0, 0, radius), radius, skin)


def _box(b: Builder, size: float) -> None:
    furniture.cardboard_box(b.at(0, 0, 0.1), (size, 0.8 * size, 0.7 * size))
    b.box((0, 0, 0.08), (0.96 * size, 0.76 * size, 0.04), materials.wood(b.random))
    for x in (-1, 1):
        for y in (-1, 1):
            b.cylinder((0.36 * x * size, 0.28 * y * size, 0.03), 0.03, 0.03, vehicles.RUBBER, axis="y")


def _drone(b: Builder) -> None:
    paint = materials.car_paint(b.random)
    b.box((0, 0, 0.1), (0.26, 0.16, 0.08), paint)
    b.sphere((0.13, 0, 0.08), 0.035, furniture.DARK)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box((0.09 * x, 0.08 * y, 0.12), (0.2, 0.025, 0.02), furniture.DARK, yaw=x * y * math.pi / 4)
            b.cylinder((0.16 * x, 0.15 * y, 0.15), 0.11, 0.012, furniture.DARK)
        b.box((0, 0.07 * x, 0.02), (0.16, 0.012, 0.012), furniture.DARK)


def draw_kind(name: str, random: Random) -> MovingObjectKind:
    """Draw one object of a kind: "cart", "robot", "ball", "box", "drone" or "car"."""
    turning = ("along", "along", "fixed")
    if name == "cart":
        return MovingObjectKind(vehicles.cart, (0.44, 0.3), 0.95, (0.4, 1.0), turning)
    if name == "robot":
        return MovingObjectKind(vehicles.robot, (0.37, 0.27), 0.95, (0.4, 1.2), turning)
    if name == "ball":
        radius = random.uniform(0.1, 0.22)
        return MovingObjectKind(
            lambda b: _ball(b, radius), (radius, radius), 2 * radius, (0.4, 1.2), ("roll",), radius=radius
        )
    if name == "box":
        size = random.uniform(0.35, 0.55)
        return MovingObjectKind(
            lambda b: _box(b, size), (0.52 * size, 0.42 * size), 0.12 + 0.7 * size, (0.2, 0.6), ("spin", "fixed")
        )
    if name == "drone":
        return MovingObjectKind(_drone, (0.3, 0.28), 0.18, (0.4, 1.2), ("along", "spin"), flies=True)
    return MovingObjectKind(vehicles.car, (2.5, 1.06), 1.8, (1.0, 2.5), ("fixed", "fixed", "along"))


KIND_NAMES = ("cart", "robot", "ball", "box", "drone")


@dataclass(frozen=True)
class _SweptVolume:
    """Volume that a moving object passes through: centres (N, 3) of balls of one radius, metres, that cover it."""

    centres: np.ndarray
    radius: float

    @staticmethod
    def from_track(track: Track, kind: MovingObjectKind) -> _SweptVolume:
        """Cover a moving object on its whole track by balls along its length and height."""
        poses = track.poses(torch.linspace(0, track.period, TRACK_SAMPLES + 1)[:-1]).numpy()
        if kind.radius:
            return _SweptVolume(poses[:, :3, 3].copy(), kind.radius)
        long, wide = kind.half
        count, layers = max(1, math.ceil(long / wide)), max(1, math.ceil(kind.height / (2 * wide)))
        part, layer = long / count, kind.height / layers
        along = (2 * np.arange(count) + 1 - count) * part
        up = (np.arange(layers) + 0.5) * layer
        local = np.stack([np.repeat(along, layers), np.zeros(count * layers), np.tile(up, count)], axis=1)
        centres = np.einsum("nij,kj->nki", poses[:, :3, :3], local) + poses[:, None, :3, 3]
        return _SweptVolume(centres.reshape(-1, 3), math.sqrt(part**2 + wide**2 + (0.5 * layer) ** 2))

    def clear_of(self, other: _SweptVolume) -> bool:
        """Whether the two volumes are disjoint, with a margin."""
        gap = np.linalg.norm(self.centres[:, None] - other.centres[None], axis=-1).min()
        return bool(gap > self.radius + other.radius + MARGIN_M)


def _draw_track(scene: Scene, kind: MovingObjectKind, random: Random, size: float) -> Track:
    """A random track inside the bounds; `size` scales its length, 1 = the preferred length of the kind."""
    (x0, y0, _), (x1, y1, top) = scene.bounds
    middle = (random.uniform(x0, x1), random.uniform(y0, y1))
    yaw = random.choice([0.0, 0.5]) * math.pi if random.chance(0.5) else random.uniform(-math.pi, math.pi)
    if x1 - x0 > 3 * (y1 - y0):
        # In a corridor, drive along it.
        yaw = random.choice([0.0, math.pi]) + random.normal(0.03)
    heading = random.choice(kind.headings)
    reach = size * random.uniform(0.6, 1.0) * min(2.4 + 2 * kind.half[0], 0.45 * max(x1 - x0, y1 - y0))
    line = heading in ("fixed", "roll")
    across = 0.0 if line else reach * random.uniform(0.3, 0.8) * random.choice([-1, 1])
    turns = 2 if not line and random.chance(0.4) else 1
    a = (reach * math.cos(yaw), reach * math.sin(yaw))
    b = (-across * math.sin(yaw), across * math.cos(yaw))
    height, lift = kind.radius, 0.0
    if kind.flies:
        height, lift = random.uniform(0.8, max(0.9, min(2.3, top - 0.7))), random.uniform(0.0, 0.2)
    speed = random.uniform(*kind.speed)
    return Track(
        (*middle, height), a, b, 2 * math.pi * max(reach, turns * abs(across)) / speed, random.uniform(0, 2 * math.pi),
        turns, lift, heading, kind.radius if heading == "roll" else random.choice([-1, 1]) * random.uniform(0.3, 1.0),
    )  # fmt: skip


def _raise_to_ground(track: Track, reach: float, low: Primitives) -> Track:
    """Raise a track onto the highest of the flat objects below it."""
    at = track.position(torch.linspace(0, track.period, TRACK_SAMPLES))
    near, far = at.amin(0)[:2] - reach, at.amax(0)[:2] + reach
    under = ((low.centre - low.extent)[:, :2] < far).all(1) & ((low.centre + low.extent)[:, :2] > near).all(1)
    top = float((low.centre + low.extent)[under, 2].amax()) if under.any() else 0.0
    x, y, z = track.centre
    return replace(track, centre=(x, y, z + max(top, 0.0)))


def add_moving_objects(scene: Scene, count: int) -> Scene:
    """Add moving objects to a scene. The same scene always gets the same objects.

    The first n objects are the same for every count >= n. They cast no shadows; their light is the mean of the light
    at their place at time 0, more from above.

    Args:
        scene: a scene without moving objects; it is not modified.
        count: number of moving objects.

    Returns:
        A new scene.

    Raises:
        InputError: the scene already has moving objects, the count is negative, or there is not enough room for them.
    """
    if scene.moving_objects:
        raise InputError(f"The scene has {len(scene.moving_objects)} moving objects already; expected one without.")
    if count < 0:
        raise InputError(f"The number of moving objects is {count}; expected 0 or more.")
    random, b = Random(scene.seed * 1_000_033 + 77), Builder(scene.seed + 991)
    b.names = list(scene.names)
    top = (scene.primitives.centre + scene.primitives.extent)[:, 2]
    low, high = scene.primitives.select(top <= MAX_STEP_OVER_M), scene.primitives.select(top > MAX_STEP_OVER_M)
    moving_objects: list[MovingObject] = []
    swept_volumes: list[_SweptVolume] = []
    order = random.shuffled([*KIND_NAMES, "car"] if scene.kind == "lot" else KIND_NAMES)
    for index in range(count):
        # Try the kinds in turn, and the small ones again at the end.
        for name in [*(order[(index + k) % len(order)] for k in range(len(order))), "drone", "ball", "ball"]:
            placement = _find_placement(scene, low, high, name, random, swept_volumes)
            if placement is not None:
                break
        else:
            raise InputError(
                f"Only {index} of {count} moving objects found room in the {scene.kind} with seed {scene.seed}; use "
                "fewer or choose another seed."
            )
        kind, track, swept = placement
        swept_volumes.append(swept)
        start = track.poses(torch.zeros(1))[0].numpy()
        place = b.at(0, 0, name=name, body=index + 1, casts=False, solid=False)
        place.origin, place.rotation = start[:3, 3].copy(), start[:3, :3].copy()
        # The track of a ball is that of its centre.
        kind.build(place.at(0, 0, -kind.radius))
        moving_objects.append(MovingObject(place.instance, index + 1, name, track))
    return _append(scene, b, moving_objects) if moving_objects else scene


def _find_placement(
    scene: Scene, low: Primitives, high: Primitives, name: str, random: Random, swept_volumes: list[_SweptVolume]
) -> tuple[MovingObjectKind, Track, _SweptVolume] | None:
    """A moving object of a kind with a collision-free track and its swept volume; None if none was found."""
    bounds = np.array(scene.bounds)
    kind = draw_kind(name, random)
    for attempt in range(MAX_ATTEMPTS):
        track = _draw_track(scene, kind, random, max(0.98**attempt, MIN_TRACK_SCALE))
        if not kind.flies:
            track = _raise_to_ground(track, max(kind.half), low)
        swept = _SweptVolume.from_track(track, kind)
        room = swept.radius + MARGIN_M
        if (swept.centres[:, :2] < bounds[0, :2] + room).any() or (swept.centres > bounds[1] - room).any():
            continue
        lowest, highest = (torch.from_numpy(at) for at in (swept.centres.min(0) - room, swept.centres.max(0) + room))
        near = ((high.centre - high.extent < highest) & (high.centre + high.extent > lowest)).all(1)
        if near.any():
            # A few samples first: they reject most tracks.
            close = high.select(near)
            if box_distance(close, swept.centres[::16]).min() < room or box_distance(close, swept.centres).min() < room:
                continue
        if all(swept.clear_of(other) for other in swept_volumes):
            return kind, track, swept
    return None


def _append(scene: Scene, b: Builder, moving_objects: list[MovingObject]) -> Scene:
    """Append the primitives, materials and images of a builder to a scene."""
    added = b.primitives()
    added = replace(added, material=added.material + len(scene.materials))
    table = torch.tensor(b.materials, dtype=torch.float32)
    images, first = scene.images, len(scene.images)
    if b.images:
        new = torch.from_numpy(np.stack(b.images))
        # A scene without images has a small blank one.
        first, images = (first, torch.cat([images, new])) if images.shape[1] == IMAGE_SIZE_PX else (0, new)
    column = COLUMNS.index("image")
    table[:, column] += torch.where(table[:, column] >= 0, float(first), 0.0)
    return replace(
        scene,
        primitives=Primitives.concatenate([scene.primitives, added]),
        materials=torch.cat([scene.materials, table]),
        images=images,
        names=list(b.names),
        moving_objects=tuple(moving_objects),
        cache={},
    )
