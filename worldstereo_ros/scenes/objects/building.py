"""Walls with doors and windows, the surroundings of a building, and a floor plan that avoids collisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from worldstereo_ros.scenes.objects import materials, posters
from worldstereo_ros.scenes.objects.furniture import DARK, WHITE
from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.primitives import Builder, Colour, Material, Random, hsv
from worldstereo_ros.scenes.raytracing.scene import Sky

WALL_THICKNESS_M = 0.18
"""Thickness of walls, metres."""


@dataclass(frozen=True)
class Opening:
    """An opening in a wall, from `start` to `end` along it and `low` to `high`: a "door", "window" or "gate"."""

    start: float
    end: float
    low: float
    high: float
    kind: str

    @property
    def middle(self) -> float:
        """Centre along the wall, metres."""
        return 0.5 * (self.start + self.end)

    @property
    def width(self) -> float:
        """Width, metres."""
        return self.end - self.start


@dataclass(frozen=True)
class Wall:
    """A wall in the frame of its builder: x along the wall from 0 to `length`, y into the room, z up."""

    builder: Builder
    length: float
    height: float
    openings: tuple[Opening, ...]
    occupied: list[tuple[float, float, float]] = field(default_factory=list)
    """Objects in front of the wall: start and end along it, and height, metres."""

    def mount(self, along: float, z: float, name: str, **options) -> Builder:
        """A builder for an object on the wall: back at x = 0, front towards +x, into the room."""
        return self.builder.at(along, 0.0, z, math.pi / 2, name=name, **options)

    def is_free(self, along: float, half: float, low: float, high: float) -> bool:
        """Whether this part of the wall has no opening and no object in front of it."""
        hidden = any(start < along + half and end > along - half and tall > low for start, end, tall in self.occupied)
        return not hidden and not any(
            o.start < along + half and o.end > along - half and o.low < high and o.high > low for o in self.openings
        )


def wall(b: Builder, start: Sequence[float], end: Sequence[float], height: float, openings: Sequence[Opening],
         inside: Material, outside: Material, wainscot: tuple[float, Material] | None = None) -> Wall:  # fmt: skip
    """Add a wall from start to end (x, y), with the room on its left, in pieces around its openings.

    `wainscot` is a height and the material of the wall below it.
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    place = b.at(start[0], start[1], 0.0, math.atan2(dy, dx), name="wall")
    openings = sorted(openings, key=lambda o: o.start)

    def piece(x0: float, x1: float, z0: float, z1: float) -> None:
        limits = [z0, z1] if wainscot is None or not z0 < wainscot[0] < z1 else [z0, wainscot[0], z1]
        for low, high in pairwise(limits):
            material = wainscot[1] if wainscot is not None and high <= wainscot[0] else inside
            faces = {"-y": outside, "-x": WHITE, "+x": WHITE, "-z": WHITE}
            place.span((x0, -WALL_THICKNESS_M, low), (x1, 0.0, high), material, faces=faces, anchored=True)

    at = -WALL_THICKNESS_M
    for opening in openings:
        piece(at, opening.start, 0.0, height)
        piece(opening.start, opening.end, 0.0, opening.low)
        piece(opening.start, opening.end, opening.high, height)
        at = opening.end
    piece(at, length + WALL_THICKNESS_M, 0.0, height)
    return Wall(b.at(start[0], start[1], 0.0, math.atan2(dy, dx)), length, height, tuple(openings))


def add_skirting(w: Wall, material: Material, height: float = 0.09) -> None:
    """Add a skirting board, interrupted at doors."""
    place, at = w.builder.at(0, 0, name="skirting"), 0.0
    for opening in [o for o in w.openings if o.low < height]:
        place.span((at, 0.0, 0.0), (opening.start - 0.07, 0.016, height), material)
        at = opening.end + 0.07
    place.span((at, 0.0, 0.0), (w.length, 0.016, height), material)


def door(w: Wall, o: Opening, leaf: Material, trim: Material) -> None:
    """Add a closed door: leaf with panels and handle, trim."""
    place = w.builder.at(o.start, 0.0, name="door")
    for x in (-0.03, o.width + 0.03):
        place.box((x, 0.008, o.high / 2), (0.07, 0.03, o.high), trim)
    place.box((o.width / 2, 0.008, o.high + 0.035), (o.width + 0.13, 0.03, 0.07), trim)
    # The leaf overlaps the wall on all sides, so that no daylight passes through a gap.
    hinge, wide = place.at(0.0, -0.06), o.width
    hinge.box((wide / 2, -0.04, o.high / 2), (wide + 0.02, 0.08, o.high + 0.02), leaf)
    for low, high in ((0.12, 0.45), (0.52, 0.93)):
        middle, tall = (low + high) / 2 * o.high, (high - low) * o.high - 0.05
        hinge.box((wide / 2, 0.004, middle), (wide - 0.26, 0.012, tall), leaf)
    metal = materials.metal(w.builder.random)
    hinge.cylinder((wide - 0.08, 0.03, 1.02), 0.013, 0.06, metal, axis="y")
    hinge.cylinder((wide - 0.13, 0.06, 1.02), 0.011, 0.13, metal, axis="x")


def window(w: Wall, o: Opening, trim: Material, daylight: float, tint: Colour) -> None:
    """Add a window without glass: frame, bars, sill, and a panel light for daylight."""
    place = w.builder.at(o.start, 0.0, name="window")
    tall, wide = o.high - o.low, o.width
    y, deep, bar = -WALL_THICKNESS_M * 0.6, 0.06, 0.045
    for x in (bar / 2, wide - bar / 2):
        place.box((x, y, o.low + tall / 2), (bar, deep, tall), trim)
    for z in (o.low + bar / 2, o.high - bar / 2):
        place.box((wide / 2, y, z), (wide - 2 * bar, deep, bar), trim)
    panes = max(1, round(wide / 0.8))
    for i in range(1, panes):
        place.box((wide * i / panes, y, o.low + tall / 2), (0.035, deep * 0.8, tall - 2 * bar), trim)
    if w.builder.random.chance(0.5):
        place.box((wide / 2, y, o.low + tall * 0.62), (wide - 2 * bar, deep * 0.8, 0.035), trim)
    place.box((wide / 2, 0.05, o.low - 0.015), (wide + 0.12, 0.12, 0.03), trim)
    place.light(
        (wide / 2, -0.02, o.low + tall / 2), tint, daylight * wide * tall, normal=(0, 1, 0), size=(wide / 2, tall / 2)
    )


def curtains(w: Wall, o: Opening, cloth: Material) -> None:
    """Add a rod and two open curtains."""
    place = w.builder.at(o.start, 0.0, name="curtains", solid=False)
    place.cylinder((o.width / 2, 0.09, o.high + 0.12), 0.014, o.width + 0.9, DARK, axis="x")
    for x in (-0.16, o.width + 0.16):
        for i in range(4):
            place.cylinder((x - 0.13 + 0.085 * i, 0.09, (o.high + 0.12) / 2 + 0.05), 0.05, o.high + 0.0, cloth)


def gate(w: Wall, o: Opening, trim: Material, daylight: float, tint: Colour, drop: float) -> None:
    """Add a loading gate; `drop` is the closed fraction of its shutter."""
    place = w.builder.at(o.start, 0.0, name="gate")
    stripes = Material(a=(0.8, 0.55, 0.02), b=(0.03, 0.03, 0.03), pattern="stripes", cell=(0.15, 1e3))
    for x in (-0.08, o.width + 0.08):
        place.box((x, 0.03, o.high / 2), (0.16, 0.08, o.high), trim)
        place.box((x, 0.075, 0.5), (0.15, 0.02, 1.0), stripes)
    place.box((o.width / 2, 0.06, o.high + 0.15), (o.width + 0.4, 0.3, 0.3), trim)
    low = o.high * (1 - drop)
    slats = Material(
        a=(0.62, 0.64, 0.66), b=(0.62, 0.64, 0.66), cell=(1e3, 0.12), joint=(0.3, 0.3, 0.3), joint_width=0.015
    )
    place.span((0.0, -0.1, low), (o.width, -0.06, o.high), slats)
    if drop < 0.9:
        place.light(
            (o.width / 2, -0.02, low / 2), tint, daylight * o.width * low, normal=(0, 1, 0), size=(o.width / 2, low / 2)
        )


@dataclass
class FloorPlan:
    """Occupied rectangles of a floor: x0, y0, x1, y1 in metres."""

    half_x: float
    half_y: float
    occupied: list[tuple[float, float, float, float]]

    def claim(self, x: float, y: float, half_x: float, half_y: float, margin: float = 0.08) -> bool:
        """Reserve a rectangle if it is free and inside the floor; returns whether it was."""
        if abs(x) + half_x > self.half_x + 1e-6 or abs(y) + half_y > self.half_y + 1e-6:
            return False
        for x0, y0, x1, y1 in self.occupied:
            if (
                x - half_x - margin < x1
                and x + half_x + margin > x0
                and y - half_y - margin < y1
                and y + half_y + margin > y0
            ):
                return False
        self.occupied.append((x - half_x, y - half_y, x + half_x, y + half_y))
        return True

    def claim_at(self, w: Wall, along: float, width: float, depth: float, margin: float = 0.08) -> bool:
        """Reserve the floor in front of a wall, `width` along it and `depth` into the room, as `claim`."""
        middle = w.builder.origin + w.builder.rotation @ np.array([along, depth / 2 + 0.02, 0.0])
        half = np.abs(w.builder.rotation @ np.array([width / 2, depth / 2, 0.0]))
        return self.claim(float(middle[0]), float(middle[1]), float(half[0]), float(half[1]), margin)


def add_surroundings(b: Builder, half_x: float, half_y: float, sun: np.ndarray) -> None:
    """Add ground, trees and houses around a building of this half size, and the sun."""
    r: Random = b.random
    out = b.at(0, 0, outdoor=True, solid=False)
    ground = materials.grass(r) if r.chance(0.6) else materials.concrete(r, slab=2.5)
    out.box((0, 0, -0.6), (160, 160, 1.0), ground, name="ground", anchored=True)

    def edge(angle: float) -> float:
        """Distance of the building's edge in a direction."""
        return min(half_x / max(abs(math.cos(angle)), 1e-6), half_y / max(abs(math.sin(angle)), 1e-6))

    for _ in range(r.integer(5, 8)):
        angle = r.uniform(0, 6.28)
        distance = edge(angle) + r.uniform(2.2, 9)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        tree = out.at(x, y, -0.1, name="tree")
        height = r.uniform(2.5, 5.5)
        tree.cylinder((0, 0, height / 2 - 0.2), r.uniform(0.09, 0.18), height, materials.wood(r))
        leaf = materials.leaves(r)
        for i in range(3):
            size = r.uniform(0.7, 1.4)
            tree.sphere((r.normal(0.5), r.normal(0.5), height - 0.3 + 0.45 * i), (size, size, size * 0.8), leaf)
    for i in range(r.integer(4, 6)):
        angle = r.uniform(-0.4, 0.4) + i * 1.4
        distance = edge(angle) + r.uniform(11, 24)
        house = out.at(
            distance * math.cos(angle), distance * math.sin(angle), -0.1, angle + r.normal(0.2), name="house"
        )
        wide, deep, tall = r.uniform(6, 13), r.uniform(5, 8), r.uniform(3, 9)
        front = materials.brick(r) if r.chance(0.4) else materials.plaster(r)
        colour = tuple(0.5 * (x + y) for x, y in zip(front.a, front.b, strict=True))
        drawn = posters.facade(r, colour, max(2, round(wide / 2.4)), max(1, round(tall / 2.8)))
        facade = materials.image(b.add_image(drawn))
        house.box((0, 0, tall / 2), (deep, wide, tall), front, faces={"-x": facade, "-y": facade, "+y": facade})
        house.box((0, 0, tall + 0.15), (deep + 0.5, wide + 0.5, 0.3), materials.metal(r, hsv(0.03, 0.4, 0.4)))
    b.sun(sun, (1.0, 0.93, 0.82), r.uniform(2.2, 3.6))


def draw_daylight(random: Random, azimuth: float) -> tuple[Sky, Ambient, np.ndarray]:
    """Draw sky, ambient light and direction to the sun for a daytime with the sun near this azimuth (radians)."""
    elevation, azimuth = random.uniform(0.3, 0.85), azimuth + random.normal(0.45)
    sun = np.array(
        [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
    )
    hue, seed = random.uniform(0.56, 0.62), random.uniform(0, 200)
    sky = Sky(
        hsv(hue, random.uniform(0.45, 0.75), 0.8), hsv(hue - 0.02, random.uniform(0.05, 0.25), 0.95),
        random.uniform(-0.1, 0.7), tuple(float(v) for v in sun), seed,
    )  # fmt: skip
    base = random.uniform(0.05, 0.12)
    return sky, Ambient((base, base, base * 1.05), (0.62, 0.72, 0.9)), sun


def sign(w: Wall, along: float, z: float, text: str, width: float, height: float, ground: Colour, ink: Colour) -> None:
    """Add a sign to a wall."""
    image = w.builder.add_image(posters.sign(text, ground, ink, width / height))
    w.mount(along, z, "sign", solid=False).box(
        (0.008, 0, 0), (0.016, width, height), WHITE, faces={"+x": materials.image(image)}
    )


def wall_corners(half_x: float, half_y: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Start and end of the four walls, with the room on their left: the -y, +x, +y and -x sides."""
    c = [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
    return [(c[i], c[(i + 1) % 4]) for i in range(4)]
