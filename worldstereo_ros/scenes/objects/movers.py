"""Things that move through worlds: carts, little robots, balls, boxes, drones, and cars on lots.

They are put into a world that is finished, on tracks that keep clear of everything in it and of each other at all
times. The world itself stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo_ros.scenes.objects import furniture, materials, vehicles
from worldstereo_ros.scenes.objects.posters import SIDE
from worldstereo_ros.scenes.paths import distance
from worldstereo_ros.scenes.raytracing.motion import Mover, Track
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, Primitives, Random, hsv
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.scenes.raytracing.textures import COLUMNS
from worldstereo_ros.utils.errors import InputError

MARGIN = 0.06
"""Metres that movers keep from everything."""

STEPPED_OVER = 0.02
"""What is no higher than this (floors, rugs, painted lines) is driven over, metres."""

SAMPLES = 96
"""Places of a track that are looked at."""

ATTEMPTS = 120

SHORTEST = 0.15
"""Tracks get shorter from attempt to attempt, but not below this part of what suits the mover."""


@dataclass(frozen=True)
class Kind:
    """A kind of mover, its builder, and its outline.

    Attributes:
        build: puts it up about the origin of a frame, facing +x, standing on z = 0.
        half: metres from the origin to its ends along x and to its sides.
        height: metres.
        speed: lowest and highest, metres a second.
        flies: moves freely in height.
        ways: the headings it may have, see `Track`.
    """

    build: Callable[[Builder], None]
    half: tuple[float, float]
    height: float
    speed: tuple[float, float]
    ways: tuple[str, ...]
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


def draw(name: str, random: Random) -> Kind:
    """One of a kind: "cart", "robot", "ball", "box", "drone" or "car"."""
    turning = ("along", "along", "fixed")
    if name == "cart":
        return Kind(vehicles.cart, (0.44, 0.3), 0.95, (0.4, 1.0), turning)
    if name == "robot":
        return Kind(vehicles.robot, (0.37, 0.27), 0.95, (0.4, 1.2), turning)
    if name == "ball":
        radius = random.uniform(0.1, 0.22)
        return Kind(lambda b: _ball(b, radius), (radius, radius), 2 * radius, (0.4, 1.2), ("roll",), radius=radius)
    if name == "box":
        size = random.uniform(0.35, 0.55)
        return Kind(
            lambda b: _box(b, size), (0.52 * size, 0.42 * size), 0.12 + 0.7 * size, (0.2, 0.6), ("spin", "fixed")
        )
    if name == "drone":
        return Kind(_drone, (0.3, 0.28), 0.18, (0.4, 1.2), ("along", "spin"), flies=True)
    return Kind(vehicles.car, (2.5, 1.06), 1.8, (1.0, 2.5), ("fixed", "fixed", "along"))


NAMES = ("cart", "robot", "ball", "box", "drone")


@dataclass(frozen=True)
class _Swept:
    """Where a mover passes: centres (N, 3) of balls of one radius that cover it all the way."""

    centres: np.ndarray
    radius: float

    @staticmethod
    def of(track: Track, kind: Kind) -> _Swept:
        """The balls that cover a mover on its track: some along its length, some above each other."""
        poses = track.poses(torch.linspace(0, track.period, SAMPLES + 1)[:-1]).numpy()
        if kind.radius:
            return _Swept(poses[:, :3, 3].copy(), kind.radius)
        long, wide = kind.half
        count, layers = max(1, math.ceil(long / wide)), max(1, math.ceil(kind.height / (2 * wide)))
        part, layer = long / count, kind.height / layers
        along = (2 * np.arange(count) + 1 - count) * part
        up = (np.arange(layers) + 0.5) * layer
        local = np.stack([np.repeat(along, layers), np.zeros(count * layers), np.tile(up, count)], axis=1)
        centres = np.einsum("nij,kj->nki", poses[:, :3, :3], local) + poses[:, None, :3, 3]
        return _Swept(centres.reshape(-1, 3), math.sqrt(part**2 + wide**2 + (0.5 * layer) ** 2))

    def clear_of(self, other: _Swept) -> bool:
        """Whether the two never meet, whatever the times."""
        gap = np.linalg.norm(self.centres[:, None] - other.centres[None], axis=-1).min()
        return bool(gap > self.radius + other.radius + MARGIN)


def _track(scene: Scene, kind: Kind, random: Random, size: float) -> Track:
    """Some track inside the bounds; `size` 1 for one as long as suits the kind, less for a shorter one."""
    (x0, y0, _), (x1, y1, top) = scene.bounds
    middle = (random.uniform(x0, x1), random.uniform(y0, y1))
    yaw = random.choice([0.0, 0.5]) * math.pi if random.chance(0.5) else random.uniform(-math.pi, math.pi)
    if x1 - x0 > 3 * (y1 - y0):
        # In a corridor, along it.
        yaw = random.choice([0.0, math.pi]) + random.normal(0.03)
    heading = random.choice(kind.ways)
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


def _standing(track: Track, reach: float, low: Primitives) -> Track:
    """The track, raised onto the highest of what is driven over."""
    at = track.position(torch.linspace(0, track.period, SAMPLES))
    near, far = at.amin(0)[:2] - reach, at.amax(0)[:2] + reach
    under = ((low.centre - low.extent)[:, :2] < far).all(1) & ((low.centre + low.extent)[:, :2] > near).all(1)
    top = float((low.centre + low.extent)[under, 2].amax()) if under.any() else 0.0
    x, y, z = track.centre
    return replace(track, centre=(x, y, z + max(top, 0.0)))


def with_movers(scene: Scene, count: int) -> Scene:
    """A scene with things that move through it; always the same ones for the same scene.

    The first n of more movers are those of n movers. They cast no shadow, and the light on them is the mean of where
    they are at time 0, a little more of it on what looks up.

    Args:
        scene: one without movers; it is left as it is.
        count: how many.

    Raises:
        ValueError: the scene has movers, the count is negative, or no room is found for so many.
    """
    if scene.movers:
        raise InputError(f"The scene has {len(scene.movers)} movers already; add them to one without.")
    if count < 0:
        raise InputError(f"{count} movers were asked for; 0 or more was expected.")
    random, b = Random(scene.seed * 1_000_033 + 77), Builder(scene.seed + 991)
    b.names = list(scene.names)
    top = (scene.primitives.centre + scene.primitives.extent)[:, 2]
    low, high = scene.primitives.select(top <= STEPPED_OVER), scene.primitives.select(top > STEPPED_OVER)
    movers: list[Mover] = []
    taken: list[_Swept] = []
    order = random.shuffled([*NAMES, "car"] if scene.kind == "lot" else NAMES)
    for index in range(count):
        # Each kind in turn; where one finds no room, the next, and the small ones once more at the end.
        for name in [*(order[(index + k) % len(order)] for k in range(len(order))), "drone", "ball", "ball"]:
            found = _place(scene, low, high, name, random, taken)
            if found is not None:
                break
        else:
            raise InputError(
                f"Only {index} of {count} movers found room in the {scene.kind} of seed {scene.seed}; ask for fewer "
                "or choose another seed."
            )
        kind, track, swept = found
        taken.append(swept)
        start = track.poses(torch.zeros(1))[0].numpy()
        place = b.at(0, 0, name=name, body=index + 1, casts=False, solid=False)
        place.origin, place.rotation = start[:3, 3].copy(), start[:3, :3].copy()
        # A ball's track is that of its middle.
        kind.build(place.at(0, 0, -kind.radius))
        movers.append(Mover(place.instance, index + 1, name, track))
    return _joined(scene, b, movers) if movers else scene


def _place(
    scene: Scene, low: Primitives, high: Primitives, name: str, random: Random, taken: list[_Swept]
) -> tuple[Kind, Track, _Swept] | None:
    """A mover of this kind and a track where it meets nothing; None where none is found."""
    bounds = np.array(scene.bounds)
    kind = draw(name, random)
    for attempt in range(ATTEMPTS):
        track = _track(scene, kind, random, max(0.98**attempt, SHORTEST))
        if not kind.flies:
            track = _standing(track, max(kind.half), low)
        swept = _Swept.of(track, kind)
        room = swept.radius + MARGIN
        if (swept.centres[:, :2] < bounds[0, :2] + room).any() or (swept.centres > bounds[1] - room).any():
            continue
        lowest, highest = (torch.from_numpy(at) for at in (swept.centres.min(0) - room, swept.centres.max(0) + room))
        near = ((high.centre - high.extent < highest) & (high.centre + high.extent > lowest)).all(1)
        if near.any():
            # A few places first: most tracks are refused by them.
            close = high.select(near)
            if distance(close, swept.centres[::16]).min() < room or distance(close, swept.centres).min() < room:
                continue
        if all(swept.clear_of(other) for other in taken):
            return kind, track, swept
    return None


def _joined(scene: Scene, b: Builder, movers: list[Mover]) -> Scene:
    """The scene with what a builder collected beside it."""
    added = b.primitives()
    added = replace(added, material=added.material + len(scene.materials))
    table = torch.tensor(b.materials, dtype=torch.float32)
    pictures, first = scene.pictures, len(scene.pictures)
    if b.pictures:
        new = torch.from_numpy(np.stack(b.pictures))
        # A scene without pictures has a small blank one.
        first, pictures = (first, torch.cat([pictures, new])) if pictures.shape[1] == SIDE else (0, new)
    column = COLUMNS.index("picture")
    table[:, column] += torch.where(table[:, column] >= 0, float(first), 0.0)
    return replace(
        scene, primitives=Primitives.joined([scene.primitives, added]), materials=torch.cat([scene.materials, table]),
        pictures=pictures, names=list(b.names), movers=tuple(movers), cache={},
    )  # fmt: skip
