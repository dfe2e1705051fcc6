"""Vehicles made of boxes and cylinders, centred at the origin of the builder's frame, on its floor, facing +x."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.scenes.objects import materials, posters
from worldstereo_ros.scenes.objects.furniture import DARK, WHITE
from worldstereo_ros.scenes.raytracing.primitives import BOX, Builder, Material, Random, hsv

RUBBER = Material(a=(0.012, 0.012, 0.013), b=(0.02, 0.02, 0.02), noise=0.1, frequency=(20, 20))
CHROME = Material(a=(0.45, 0.46, 0.48), b=(0.3, 0.3, 0.32), noise=0.05, gloss=0.5)
HEADLIGHT = Material(a=(0.75, 0.78, 0.8), b=(0.55, 0.58, 0.62), noise=0.05, gloss=0.5)
TAILLIGHT = Material(a=(0.45, 0.01, 0.01), b=(0.3, 0.01, 0.01), noise=0.05, gloss=0.5)


def slab(b: Builder, start: tuple[float, float], end: tuple[float, float], width: float, thick: float,
          material: Material, y: float = 0.0, **options) -> None:  # fmt: skip
    """Add a slab whose upper side runs from `start` to `end` (x, z), start behind end, with `width` along y."""
    dx, dz = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dz)
    c, s = dx / length, dz / length
    rotation = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    middle = (0.5 * (start[0] + end[0]) + 0.5 * thick * s, y, 0.5 * (start[1] + end[1]) - 0.5 * thick * c)
    b.add(BOX, middle, (length / 2, width / 2, thick / 2), material, rotation=rotation, **options)


def wheels(b: Builder, axles: tuple[float, ...], width: float, radius: float, arch: bool = True) -> None:
    """Add a pair of wheels at each axle position along x; `width` is measured outside the tyres."""
    for x in axles:
        for side in (-1, 1):
            y = side * (width / 2 - 0.1)
            if arch:
                b.cylinder((x, side * (width / 2 - 0.11), radius + 0.045), radius + 0.04, 0.2, DARK, axis="y")
            b.cylinder((x, y, radius), radius, 0.2, RUBBER, axis="y")
            b.cylinder((x, y + 0.006 * side, radius), 0.62 * radius, 0.2, CHROME, axis="y")


def number_plate(b: Builder, x: float, z: float) -> None:
    """Add a number plate that faces away from the origin along x."""
    r = b.random
    text = f"{r.choice('ABDEFHKLMNPRSTUVX')}{r.choice('ABCDEFGH')} {r.integer(100, 999)}"
    image = materials.image(b.add_image(posters.sign(text, (0.8, 0.8, 0.78), (0.02, 0.02, 0.03), 4.7, border=False)))
    b.box((x, 0, z), (0.02, 0.52, 0.11), WHITE, faces={"+x": image, "-x": image})


@dataclass(frozen=True)
class Shape:
    """Outline of a car, metres: size, ground clearance, heights of bonnet and belt line, start and end of windscreen
    and rear window along x, wheel radius.
    """

    length: float
    width: float
    height: float
    clear: float
    bonnet: float
    belt: float
    screen: tuple[float, float]
    rear: tuple[float, float]
    wheel: float

    @staticmethod
    def draw(random: Random) -> Shape:
        """Draw a hatchback, a saloon, an estate or a tall car."""
        style = random.integer(0, 3)
        length = random.uniform(*((3.8, 4.15), (4.4, 4.75), (4.5, 4.8), (4.2, 4.6))[style])
        height = random.uniform(*((1.42, 1.5), (1.38, 1.46), (1.42, 1.5), (1.62, 1.74))[style])
        front, back = length / 2, -length / 2
        belt = 0.6 * height + random.uniform(-0.02, 0.02)
        cowl = front - random.uniform(*((0.85, 1.0), (1.1, 1.3), (1.1, 1.25), (1.0, 1.15))[style])
        screen = (cowl - random.uniform(0.5, 0.7), cowl)
        tail, slope = ((0.06, 0.3), (0.55, 0.75), (0.05, 0.28), (0.05, 0.2))[style]
        rear = (back + tail, back + tail + slope)
        clear = 0.27 if style == 3 else 0.2
        return Shape(
            length, random.uniform(1.72, 1.84), height, clear, belt - random.uniform(0.05, 0.12), belt, screen, rear,
            random.uniform(0.3, 0.33) + 0.04 * (style == 3),
        )  # fmt: skip


def car(b: Builder) -> None:
    """A car of about 4.5 m in one of four outlines."""
    r = b.random
    s, paint, glass = Shape.draw(r), materials.car_paint(r), materials.glass(r)
    front, side, top = s.length / 2, s.width / 2, s.height - 0.05
    trunk = s.belt - 0.02 if s.rear[0] > -front + 0.4 else s.belt
    # Body: centre up to the belt line, lower nose, rounded ends, dark sill.
    b.span((-front + 0.1, -side, s.clear), (front - 0.1, side, s.bonnet - 0.1), paint)
    b.span((-front + 0.1, -side, s.bonnet - 0.1), (front - 0.1, side, s.bonnet), paint)
    meet = s.screen[1] - (s.screen[1] - s.screen[0]) * (trunk - s.bonnet) / (top - s.bonnet)
    b.span((-front + 0.1, -side, s.bonnet), (meet, side, trunk), paint)
    b.span((-front + 0.25, -side - 0.004, s.clear - 0.05), (front - 0.25, side + 0.004, s.clear + 0.06), DARK)
    for end, high in ((front - 0.1, s.bonnet), (-front + 0.1, trunk)):
        b.cylinder((end, 0, high - 0.1), 0.1, s.width - 0.02, paint, axis="y")
        sign = math.copysign(1.0, end)
        b.box((end, 0, 0.5 * (s.clear + high - 0.1)), (0.2, s.width - 0.02, high - 0.1 - s.clear), paint)
        b.box((end + 0.03 * sign, 0, s.clear + 0.14), (0.22, s.width - 0.06, 0.2), DARK if r.chance(0.5) else paint)
        number_plate(b, sign * (front + 0.045), s.clear + 0.24 if end > 0 else s.clear + 0.36)
        for y in (-1, 1):
            if end > 0:
                b.box((end + 0.09, y * (side - 0.24), high - 0.2), (0.05, 0.36, 0.13), HEADLIGHT)
            else:
                b.box((end - 0.09, y * (side - 0.14), high - 0.19), (0.05, 0.24, 0.2), TAILLIGHT)
    b.box((front, 0, s.bonnet - 0.24), (0.03, 0.8, 0.1), DARK)
    # Greenhouse: upright core, slanted front and rear windows, pillars, roof.
    inner = s.width - 0.2
    b.span((s.rear[1], -inner / 2, s.bonnet), (s.screen[0], inner / 2, top), glass, casts=False)
    b.span((s.rear[1] - 0.06, -inner / 2 - 0.01, top - 0.03), (s.screen[0] + 0.06, inner / 2 + 0.01, s.height), paint)
    slab(b, (s.rear[0], trunk), (s.rear[1], top), inner, 0.3, glass, casts=False)
    slab(b, (s.screen[0], top), (s.screen[1], s.bonnet), inner, 0.3, glass, casts=False)
    for y in (-1, 1):
        edge = y * (inner / 2 - 0.02)
        slab(b, (s.rear[0], trunk + 0.01), (s.rear[1], top + 0.01), 0.07, 0.3, paint, edge)
        slab(b, (s.screen[0], top + 0.01), (s.screen[1], s.bonnet + 0.01), 0.06, 0.07, paint, edge)
    pillar = 0.5 * (s.rear[1] + s.screen[0]) - 0.05
    for x, wide in ((pillar, 0.09), (s.rear[1], 0.12)):
        b.box((x, 0, 0.5 * (s.belt + top)), (wide, inner + 0.012, top - s.belt), paint)
    axle = 0.3 * s.length
    for x in (s.screen[1] - 0.1, pillar, s.rear[1] + 0.12):
        if abs(x) < axle - 0.35 or x == pillar:
            b.box((x, 0, 0.5 * (s.clear + s.belt) + 0.05), (0.012, s.width + 0.004, s.belt - s.clear - 0.12), DARK)
    for x in (pillar + 0.12, s.rear[1] + 0.25):
        b.box((x, 0, s.belt - 0.1), (0.16, s.width + 0.03, 0.025), CHROME if r.chance(0.3) else paint)
    for y in (-1, 1):
        b.box((s.screen[1] - 0.35, y * (side + 0.06), s.belt + 0.08), (0.1, 0.17, 0.11), paint)
    wheels(b, (axle, -axle + 0.04), s.width + 0.03, s.wheel)


def van(b: Builder) -> None:
    """A delivery van, usually with lettering."""
    r = b.random
    paint = materials.car_paint(r) if r.chance(0.4) else Material(a=(0.75, 0.75, 0.74), b=(0.7, 0.7, 0.7), noise=0.03)
    length, width, height, glass = r.uniform(4.8, 5.5), r.uniform(1.9, 2.0), r.uniform(1.95, 2.4), materials.glass(r)
    front, side, bonnet = length / 2, width / 2, 1.12
    cowl, brow = front - 0.35, front - 1.05
    b.span((-front, -side, 0.26), (brow, side, height), paint)
    b.span((brow, -side, 0.26), (front - 0.08, side, bonnet), paint)
    b.cylinder((front - 0.12, 0, bonnet - 0.12), 0.12, width - 0.02, paint, axis="y")
    b.span((front - 0.1, -side + 0.01, 0.3), (front + 0.04, side - 0.01, 0.62), DARK)
    b.span((-front - 0.05, -side + 0.01, 0.3), (-front, side - 0.01, 0.55), DARK)
    slab(b, (brow - 0.02, height), (cowl, bonnet), width - 0.06, 0.7, paint)
    slab(b, (brow + 0.06, height - 0.09), (cowl + 0.012, bonnet + 0.02), width - 0.3, 0.05, glass)
    for y in (-1, 1):
        b.box((brow - 0.1, y * side, 1.45), (0.8, 0.012, 0.5), glass)
        b.box((brow - 0.62, y * side, 1.05), (0.014, 0.008, 1.3), DARK)
        b.box((brow - 1.75, y * side, 1.1), (0.014, 0.008, 1.5), DARK)
        b.box((front - 0.02, y * (side - 0.24), 0.86), (0.06, 0.34, 0.2), HEADLIGHT)
        b.box((-front, y * (side - 0.1), 1.0), (0.03, 0.13, 0.4), TAILLIGHT)
        b.box((brow + 0.3, y * (side + 0.1), 1.35), (0.1, 0.18, 0.26), DARK)
        b.box((-front, y * 0.42, 1.55), (0.015, 0.6, 0.5), glass)
    number_plate(b, front + 0.045, 0.46)
    number_plate(b, -front - 0.055, 0.42)
    if r.chance(0.75):
        lettering(b, r, -0.12 * length, 0.68 * height, 0.45 * length, side, paint)
    wheels(b, (front - 0.95, -front + 0.95), width + 0.03, 0.34)


def lettering(b: Builder, r: Random, x: float, z: float, long: float, side: float, ground: Material) -> None:
    """Add a word to both sides of a vehicle or container."""
    ink = r.colour((0.6, 0.95), (0.2, 0.6)) if sum(ground.a) > 0.6 else (0.85, 0.85, 0.83)
    text, tall = r.choice(posters.WORDS), long / r.uniform(3.2, 4.5)
    image = materials.image(b.add_image(posters.sign(text, ground.a, ink, long / tall, border=False)))
    b.box((x, 0, z), (long, 2 * side + 0.008, tall), ground, faces={"-y": image, "+y": image})


def lorry(b: Builder) -> None:
    """A lorry of about 7 m with a box or a tarpaulin."""
    r = b.random
    paint, glass = materials.car_paint(r), materials.glass(r)
    cargo, wide, tall = r.uniform(4.3, 5.2), 2.3, r.uniform(2.2, 2.5)
    back, cab = -cargo / 2 - 0.9, cargo / 2 - 0.75
    tarpaulin = hsv(r.uniform(), r.uniform(0.3, 0.8), r.uniform(0.4, 0.8)) if r.chance(0.5) else (0.72, 0.72, 0.7)
    cover = Material(a=tarpaulin, b=tuple(0.92 * c for c in tarpaulin), cell=(0.9, 1e3), ripple=0.03, noise=0.04)
    b.span((back, -0.45, 0.62), (cab + 1.7, 0.45, 0.88), DARK)
    b.span((back, -wide / 2, 0.92), (back + cargo, wide / 2, 0.92 + tall), cover)
    for z in (0.97, 0.9 + tall):
        b.box((back + cargo / 2, 0, z), (cargo + 0.02, wide + 0.02, 0.1), CHROME)
    if r.chance(0.8):
        lettering(b, r, back + cargo / 2, 0.95 + 0.55 * tall, 0.6 * cargo, wide / 2, cover)
    # Cab with a slanted windscreen.
    b.span((cab, -1.08, 0.5), (cab + 1.7, 1.08, 1.5), paint)
    b.span((cab, -1.08, 1.5), (cab + 1.42, 1.08, 2.55), paint)
    slab(b, (cab + 1.4, 2.55), (cab + 1.7, 1.5), 2.16, 0.3, paint)
    slab(b, (cab + 1.46, 2.42), (cab + 1.71, 1.55), 1.9, 0.06, glass)
    for y in (-1, 1):
        b.box((cab + 0.95, y * 1.08, 1.95), (0.8, 0.014, 0.66), glass)
        b.box((cab + 0.5, y * 1.08, 1.5), (0.014, 0.01, 1.6), DARK)
        b.box((cab + 1.69, y * 0.8, 0.85), (0.06, 0.36, 0.2), HEADLIGHT)
        b.box((cab + 1.5, y * 1.24, 1.95), (0.1, 0.18, 0.45), DARK)
        b.box((back - 0.01, y * 0.95, 0.75), (0.05, 0.3, 0.14), TAILLIGHT)
    b.span((cab + 1.6, -1.06, 0.42), (cab + 1.76, 1.06, 0.68), DARK)
    number_plate(b, cab + 1.77, 0.55)
    wheels(b, (cab + 0.8, back + 1.1), 2.2, 0.44, arch=False)


def cart(b: Builder, length: float = 0.8) -> None:
    """A hand cart: platform, four wheels, push bar, boxes."""
    r = b.random
    width, frame = 0.65 * length, materials.metal(r, r.colour((0.5, 0.9), (0.3, 0.8)))
    b.box((0, 0, 0.2), (length, width, 0.05), frame)
    for x in (-1, 1):
        for y in (-1, 1):
            b.cylinder((x * 0.36 * length, y * (width / 2 - 0.05), 0.085), 0.085, 0.05, RUBBER, axis="y")
    for y in (-1, 1):
        b.cylinder((-length / 2 + 0.03, y * (width / 2 - 0.03), 0.55), 0.015, 0.7, CHROME)
    b.cylinder((-length / 2 + 0.03, 0, 0.9), 0.017, width, CHROME, axis="y")
    for k in range(r.integer(1, 2)):
        size = (0.6 * length, 0.75 * width, r.uniform(0.22, 0.3))
        b.box((0.05, 0, 0.226 + 0.31 * k + size[2] / 2), size, materials.cardboard(r), yaw=r.normal(0.04))


def robot(b: Builder) -> None:
    """A small delivery robot: body, six wheels, sensor bar, flag."""
    r = b.random
    paint = materials.car_paint(r)
    b.box((0, 0, 0.32), (0.62, 0.44, 0.28), paint)
    b.box((-0.03, 0, 0.5), (0.5, 0.4, 0.09), WHITE)
    b.box((0.3, 0, 0.34), (0.03, 0.36, 0.12), DARK)
    for y in (-0.1, 0.1):
        b.sphere((0.315, y, 0.34), 0.035, materials.lamp((0.5, 0.9, 1.0), 0.25))
    for x in (-0.22, 0.0, 0.22):
        for y in (-1, 1):
            b.cylinder((x, y * 0.22, 0.1), 0.1, 0.07, RUBBER, axis="y")
    b.cylinder((-0.26, 0.15, 0.72), 0.008, 0.4, DARK)
    b.box((-0.31, 0.15, 0.88), (0.1, 0.006, 0.08), materials.metal(r, (0.8, 0.2, 0.03)))
