"""Lots: outdoor areas between buildings, as a car park, a works yard or a court."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worldstereo_ros.scenes.objects import furniture, materials, outdoors, vehicles
from worldstereo_ros.scenes.objects.building import FloorPlan, add_surroundings, draw_daylight, wall_corners
from worldstereo_ros.scenes.objects.facade import front
from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.primitives import Builder, Colour, Material, Random, hsv
from worldstereo_ros.scenes.raytracing.scene import Scene, Sky

PAINT = Material(a=(0.78, 0.78, 0.75), b=(0.5, 0.5, 0.49), noise=0.2, blend=0.7, frequency=(7, 7))
"""Worn line markings."""

PAVEMENT_M = 1.5
"""Width of the pavement in front of a building, metres."""


@dataclass(frozen=True)
class Weather:
    """Sky and light: direction to the sun, its colour, irradiance and angular radius; `lit` = street lamps are on."""

    sky: Sky
    ambient: Ambient
    sun: np.ndarray
    colour: Colour
    power: float
    angle: float
    lit: bool

    @staticmethod
    def draw(r: Random) -> Weather:
        """Draw a clear day, an overcast day, or dusk."""
        sky, _, sun = draw_daylight(r, azimuth=r.uniform(0, 2 * math.pi))
        hour = r.uniform()
        if hour < 0.62:
            return Weather(sky, Ambient((0.6, 0.7, 0.88), (0.62, 0.72, 0.9), 0.3), sun, (1.0, 0.93, 0.82),
                           r.uniform(2.0, 3.4), 0.012, False)  # fmt: skip
        if hour < 0.85:
            grey = Sky(hsv(0.58, 0.12, 0.78), hsv(0.58, 0.04, 0.88), r.uniform(0.5, 0.9), sky.sun, sky.seed)
            return Weather(grey, Ambient((0.95, 0.98, 1.04), (0.95, 0.98, 1.04), 0.3), sun, (1.0, 0.97, 0.93),
                           r.uniform(0.2, 0.6), 0.12, False)  # fmt: skip
        azimuth, low = math.atan2(sun[1], sun[0]), r.uniform(0.12, 0.22)
        sun = np.array([math.cos(azimuth) * math.cos(low), math.sin(azimuth) * math.cos(low), math.sin(low)])
        glow = Sky(hsv(0.62, 0.55, 0.45), hsv(r.uniform(0.04, 0.1), 0.4, 0.8), r.uniform(-0.2, 0.4),
                   tuple(float(v) for v in sun), sky.seed)  # fmt: skip
        return Weather(glow, Ambient((0.22, 0.24, 0.36), (0.22, 0.24, 0.36), 0.35), sun, (1.0, 0.62, 0.35),
                       r.uniform(0.5, 0.9), 0.015, True)  # fmt: skip


def lot(seed: int) -> Scene:
    """An outdoor lot of about 24 x 18 m with closed sides: a car park, a works yard or a court."""
    b = Builder(seed)
    r = b.random
    style = r.choice(["park", "park", "yard", "yard", "court"])
    half_x, half_y = r.uniform(9.5, 13.5), r.uniform(7.5, 10.0)
    weather = Weather.draw(r)
    ground = {
        "park": [materials.asphalt, materials.asphalt, materials.paving],
        "yard": [materials.concrete, materials.gravel, materials.asphalt],
        "court": [materials.paving, materials.paving, materials.gravel],
    }[style]
    floor = r.choice(ground)(r)
    b.box((0, 0, -0.1), (2 * half_x, 2 * half_y, 0.2), floor, name="floor", anchored=True)
    kerb = materials.concrete(r, slab=1.0)
    plan = FloorPlan(half_x - 0.2, half_y - 0.2, [])
    fronts = _sides(b, half_x, half_y, style, plan, kerb)
    if style == "park":
        _bays(b, half_x, half_y, fronts, plan, weather, kerb)
    elif style == "yard":
        _yard(b, half_x, half_y, plan)
    else:
        _court(b, half_x, half_y, plan, kerb)
    _patches(b, half_x, half_y, floor)
    _clutter(b, half_x, half_y, style, plan)
    _lamps(b, half_x, half_y, plan, weather)
    add_surroundings(b, half_x + 5.5, half_y + 5.5, weather.sun)
    b.lights.pop()
    b.sun(weather.sun, weather.colour, weather.power, weather.angle)
    return Scene.build(b, "lot", seed, ambient=weather.ambient, sky=weather.sky, key=r.uniform(0.37, 0.46),
                       texel_budget=90_000, bounds=((-half_x, -half_y, 0.0), (half_x, half_y, 4.5)))  # fmt: skip


def _sides(b: Builder, half_x: float, half_y: float, style: str, plan: FloorPlan, kerb: Material) -> list[bool]:
    """Add the four sides, one with an exit; returns for each side whether it is a building."""
    r = b.random
    fronts = [r.chance(0.6 if style != "yard" else 0.5) for _ in range(4)]
    fronts[r.integer(0, 3)] = True
    gap_at = r.integer(0, 3)
    fronts[gap_at] = False
    stone = r.choice([materials.brick, materials.concrete, materials.plaster])(r)
    open_kind = r.choice(["fence", "wall", "hedge", "high wall"])
    for i, (start, end) in enumerate(wall_corners(half_x, half_y)):
        length, yaw = math.dist(start, end), 0.5 * math.pi * i
        edge = b.at(start[0], start[1], 0.0, yaw)
        if fronts[i]:
            industrial = style == "yard" or (style == "park" and r.chance(0.25))
            cuts = [0.0, length] if length < 17 or r.chance(0.3) else [0.0, r.uniform(0.35, 0.65) * length, length]
            for low, high in pairwise(cuts):
                storeys = r.integer(1, 2) if industrial else r.integer(2, 3)
                front(edge.at(low, 0), high - low, storeys, industrial)
            if style != "yard":
                walk = edge.at(0, 0, name="pavement")
                walk.span((0, 0, 0), (length, PAVEMENT_M - 0.15, 0.12), materials.paving(r), anchored=True)
                walk.span((0, PAVEMENT_M - 0.15, 0), (length, PAVEMENT_M, 0.125), kerb)
            _claim_side(plan, half_x, half_y, i, PAVEMENT_M if style != "yard" else 0.8)
            continue
        parts = [(0.0, length)]
        if i == gap_at:
            middle, wide = r.uniform(0.35, 0.65) * length, r.uniform(4.4, 5.4)
            parts = [(0.0, middle - wide / 2), (middle + wide / 2, length)]
            _way_out(edge.at(middle, 0), wide, stone)
        kind = open_kind if r.chance(0.7) else r.choice(["fence", "wall", "hedge"])
        for low, high in parts:
            place = edge.at(low, 0, name="wall" if "wall" in kind else kind)
            if kind == "fence":
                outdoors.fence(place, high - low)
            elif kind == "hedge":
                outdoors.hedge(place, high - low, r.uniform(1.0, 1.8))
            else:
                outdoors.low_wall(
                    place, high - low, r.uniform(0.5, 1.0) if kind == "wall" else r.uniform(2.0, 2.5), stone
                )
        _claim_side(plan, half_x, half_y, i, 0.35)
    return fronts


def _claim_side(plan: FloorPlan, half_x: float, half_y: float, side: int, depth: float) -> None:
    """Reserve a strip along a side."""
    x, y = [(0.0, -half_y), (half_x, 0.0), (0.0, half_y), (-half_x, 0.0)][side]
    long, deep = (half_x, depth) if side % 2 == 0 else (depth, half_y)
    plan.occupied.append((x - long, y - deep, x + long, y + deep))


def _way_out(b: Builder, wide: float, stone: Material) -> None:
    """Add an exit: road, gate posts, sometimes a barrier."""
    r = b.random
    road = materials.asphalt(r)
    out = b.at(0, 0, outdoor=True, solid=False)
    out.box((0, -15, -0.105), (wide, 30, 0.2), road, name="road")
    out.box((0, -31.5, -0.115), (120, 6, 0.2), road, name="road")
    for x in (-1, 1):
        post = b.at(x * (wide / 2 + 0.02), -0.12, name="gate post")
        post.box((0, 0, 0.75), (0.45, 0.45, 1.5), stone)
        post.box((0, 0, 1.54), (0.55, 0.55, 0.08), materials.concrete(r))
    if r.chance(0.5):
        stripes = Material(a=(0.6, 0.03, 0.02), b=(0.8, 0.8, 0.78), pattern="checks", cell=(1e3, 0.4))
        arm = b.at(-wide / 2 + 0.35, 0.3, name="barrier")
        arm.box((0, 0, 0.5), (0.3, 0.35, 1.0), Material(a=(0.75, 0.5, 0.03), b=(0.7, 0.45, 0.03)))
        arm.cylinder(((wide - 0.8) / 2, 0, 0.92), 0.045, wide - 0.9, stripes, axis="x")


def _bays(b: Builder, half_x: float, half_y: float, fronts: list[bool], plan: FloorPlan, weather: Weather,
          kerb: Material) -> None:  # fmt: skip
    """Add parking bays with cars along the long sides, planted islands, and lane markings."""
    r = b.random
    wide, deep = r.uniform(2.45, 2.7), r.uniform(4.9, 5.2)
    count = int((2 * half_x - 5.0) / wide)
    left, share = -count * wide / 2, r.uniform(0.35, 0.75)
    rows = [-1, 1] if half_y > 8.3 or r.chance(0.3) else [r.choice([-1, 1])]
    for row in rows:
        back = half_y - (PAVEMENT_M + 0.1 if fronts[0 if row < 0 else 2] else 0.9)
        lines = b.at(0, 0, name="line", solid=False)
        for k in range(count + 1):
            lines.box((left + k * wide, row * (back - deep / 2), 0.002), (0.1, deep, 0.004), PAINT)
        if r.chance(0.4):
            lines.box((0, row * back, 0.002), (count * wide + 0.1, 0.1, 0.004), PAINT)
        for k in range(count):
            x, y = left + (k + 0.5) * wide, row * (back - deep / 2)
            if r.chance(share) and plan.claim(x, y, 0.95, 2.45, margin=0.02):
                yaw = r.choice([0.5, 0.5, -0.5]) * row * math.pi + r.normal(0.012)
                place = b.at(x + r.normal(0.06), y + row * r.uniform(-0.12, 0.05), 0, yaw, name="car")
                (vehicles.van if r.chance(0.12) else vehicles.car)(place)
            elif r.chance(0.6):
                b.box((x, row * (back - 0.35), 0.05), (1.7, 0.15, 0.1), kerb, name="stop")
    if len(rows) == 1:
        y = -rows[0] * (half_y - (2.6 if fronts[1 - rows[0]] else 1.5))
        if plan.claim(0, y, half_x * 0.55, 0.8, margin=0.0):
            bed = b.at(0, y, name="bed")
            outdoors.island(bed, half_x * 1.1, 1.5, materials.grass(r), kerb)
            for k in range(3):
                x = half_x * 0.36 * (k - 1)
                outdoors.tree(b.at(x, y, 0.1, name="tree"), r.uniform(3.0, 5.0))
    elif r.chance(0.6):
        for side in (-1, 1):
            x = side * (count * wide / 2 - 1.3)
            if plan.claim(x, 0, 1.3, 0.7, margin=0.0):
                outdoors.island(b.at(x, 0, name="bed"), 2.6, 1.3, materials.grass(r), kerb)
                outdoors.tree(b.at(x, 0, 0.1, name="tree"), r.uniform(2.8, 4.2))
    for k in range(r.integer(1, 3)):
        arrow = b.at(half_x * (0.5 * k - 0.5), r.normal(0.05), 0, math.pi * r.integer(0, 1), name="arrow", solid=False)
        arrow.box((-0.45, 0, 0.002), (1.3, 0.14, 0.004), PAINT)
        for side in (-1, 1):
            arrow.box((0.3, side * 0.2, 0.0018), (0.75, 0.14, 0.0036), PAINT, yaw=-side * 0.75)
    if r.chance(0.5):
        x = (half_x - 1.6) * r.choice([-1, 1])
        for k in range(6):
            b.box((x, 0.9 * (k - 2.5), 0.002), (2.2, 0.45, 0.004), PAINT, name="line", solid=False)


def _yard(b: Builder, half_x: float, half_y: float, plan: FloorPlan) -> None:
    """Add containers along the edges, vehicles and lane markings."""
    r = b.random
    for _ in range(r.integer(2, 4)):
        row, x = r.choice([-1, 1]), r.uniform(-half_x + 4.2, half_x - 4.2)
        y = row * (half_y - r.uniform(2.3, 2.7))
        if plan.claim(x, y, 3.1, 1.3, margin=0.25):
            yaw = math.pi * r.integer(0, 1) + r.normal(0.006)
            outdoors.container(b.at(x, y, 0, yaw, name="container"))
            if r.chance(0.3):
                outdoors.container(b.at(x, y, 2.59, yaw, name="container"))
    for kind in r.shuffled([vehicles.lorry, vehicles.van, vehicles.car])[: r.integer(1, 3)]:
        long = 4.1 if kind is vehicles.lorry else 2.8
        for _ in range(6):
            x, y = r.uniform(-half_x + long + 0.5, half_x - long - 0.5), r.uniform(-half_y + 3, half_y - 3)
            if plan.claim(x, y, long, 1.35, margin=0.9):
                kind(b.at(x, y, 0, math.pi * r.integer(0, 1) + r.normal(0.05), name="vehicle"))
                break
    lines = b.at(0, 0, name="line", solid=False)
    colour = PAINT if r.chance(0.4) else Material(a=(0.7, 0.48, 0.04), b=(0.45, 0.33, 0.06), noise=0.2, blend=0.7)
    for y in (-1.9, 1.9):
        lines.box((0, y, 0.002), (2 * half_x - 3.0, 0.12, 0.004), colour)


def _court(b: Builder, half_x: float, half_y: float, plan: FloorPlan, kerb: Material) -> None:
    """Add beds with trees, planters, benches and parked cars."""
    r = b.random
    for x, y in r.shuffled([(-0.45, -0.3), (0.45, -0.3), (-0.45, 0.35), (0.45, 0.35), (0.0, 0.0)])[: r.integer(2, 4)]:
        x, y, long = x * half_x, y * half_y, r.uniform(2.2, 4.2)
        if plan.claim(x, y, long / 2, 1.1, margin=0.5):
            outdoors.island(b.at(x, y, name="bed"), long, 2.2, materials.grass(r), kerb)
            outdoors.tree(b.at(x, y, 0.1, name="tree"), r.uniform(3.0, 5.5))
            for side in (-1, 1):
                outdoors.shrub(b.at(x + side * 0.32 * long, y + r.normal(0.2), 0.1, name="bush"), r.uniform(0.3, 0.45))
    for _ in range(r.integer(2, 4)):
        x, y = r.uniform(-half_x + 3.5, half_x - 3.5), r.choice([-1, 1]) * (half_y - 2.9)
        if plan.claim(x, y, 2.4, 0.95, margin=0.3):
            vehicles.car(b.at(x, y, 0, math.pi * r.integer(0, 1) + r.normal(0.015), name="car"))
    for _ in range(r.integer(3, 6)):
        x, y, turned = r.uniform(-half_x + 2, half_x - 2), r.uniform(-half_y + 2, half_y - 2), r.integer(0, 3)
        if plan.claim(x, y, 0.95, 0.95, margin=0.3):
            place = b.at(x, y, 0, turned * math.pi / 2, name="bench" if r.chance(0.5) else "planter")
            outdoors.bench(place) if place.names[-1] == "bench" else outdoors.planter(place, 1.8, 0.7)


def _patches(b: Builder, half_x: float, half_y: float, floor: Material) -> None:
    """Add manhole covers, drains and patches to the ground."""
    r = b.random
    iron = Material(a=(0.1, 0.1, 0.1), b=(0.03, 0.03, 0.03), pattern="checks", cell=(0.05, 0.05), noise=0.1)
    for _ in range(r.integer(1, 3)):
        x, y = r.uniform(-0.7, 0.7) * half_x, r.uniform(-0.5, 0.5) * half_y
        if r.chance(0.5):
            b.cylinder((x, y, 0.003), 0.32, 0.006, iron, name="manhole", solid=False)
        else:
            grate = Material(
                a=(0.12, 0.12, 0.12), b=(0.01, 0.01, 0.01), pattern="stripes", cell=(0.03, 1e3), noise=0.05
            )
            b.box((x, y, 0.003), (0.5, 0.5, 0.006), grate, name="drain", solid=False)
    shade = Material(**{**floor.__dict__, "a": tuple(0.72 * c for c in floor.a), "b": tuple(0.72 * c for c in floor.b)})
    for _ in range(r.integer(0, 3)):
        x, y = r.uniform(-0.7, 0.7) * half_x, r.uniform(-0.6, 0.6) * half_y
        size = (r.uniform(0.8, 3.0), r.uniform(0.7, 1.6), 0.002)
        b.box((x, y, 0.001), size, shade, name="patch", solid=False, anchored=True)


def _clutter(b: Builder, half_x: float, half_y: float, style: str, plan: FloorPlan) -> None:
    """Add small objects, most of them near the sides."""
    r = b.random
    things = {
        "park": ["bins", "sign", "cones", "bollards", "bins", "planter"],
        "yard": ["load", "load", "crates", "crates", "barrels", "barrels", "cones", "bins"],
        "court": ["bins", "sign", "planter", "bollards", "crates"],
    }[style]
    for _ in range({"park": 9, "yard": 18, "court": 9}[style]):
        thing, side = r.choice(things), r.integer(0, 3)
        yaw = 0.5 * math.pi * (side + 1)
        # Mostly near a side, with the front towards the centre.
        inward = r.uniform(1.1, 2.6) if r.chance(0.75) else r.uniform(2.6, 6.0)
        along = r.uniform(-0.85, 0.85) * (half_x if side % 2 == 0 else half_y)
        x, y = [(along, inward - half_y), (half_x - inward, along), (along, half_y - inward), (inward - half_x, along)][
            side
        ]
        size = {"bins": 1.1, "sign": 0.3, "cones": 0.9, "bollards": 1.6, "planter": 1.0, "load": 0.75, "crates": 0.95,
                "barrels": 0.65}[thing]  # fmt: skip
        if not plan.claim(x, y, size, size, margin=0.25):
            continue
        place = b.at(x, y, 0, yaw, name=thing)
        if thing == "bins":
            outdoors.wheeled_bins(place, r.integer(1, 3))
        elif thing == "sign":
            text = r.choice(["P", "30", "10", "EXIT", "STOP", "GO", "A", "B"])
            red = (0.55, 0.03, 0.03)
            outdoors.post_sign(place, text, red if text == "STOP" else (0.02, 0.12, 0.42), (0.9, 0.9, 0.9))
        elif thing == "cones":
            for k in range(r.integer(2, 3)):
                furniture.cone(b.at(x + 0.75 * (k - 1), y + r.normal(0.1), 0, name="cone"))
        elif thing == "bollards":
            outdoors.bollards(place.at(0, 0, 0, math.pi / 2), 2.8, 1.4)
        elif thing == "planter":
            outdoors.planter(place.at(0, 0, 0, math.pi / 2), 1.8, 0.7)
        elif thing == "load":
            furniture.load(place.at(0, 0, 0, r.choice([0.0, 0.0, 0.5]) * math.pi + r.normal(0.03)), r.uniform(0.4, 1.5))
        elif thing == "crates":
            big = r.uniform(0.7, 0.95)
            outdoors.crate(place.at(-0.35, -0.42, 0, r.normal(0.03)), big)
            if r.chance(0.6):
                outdoors.crate(place.at(-0.4, 0.5, 0, r.normal(0.05)), r.uniform(0.55, 0.8))
            if r.chance(0.5):
                outdoors.crate(place.at(-0.33, -0.4, big, r.normal(0.08)), 0.75 * big)
        else:
            outdoors.barrels(place.at(0, 0, 0, r.uniform(0, 1.5)), r.integer(1, 4))


def _lamps(b: Builder, half_x: float, half_y: float, plan: FloorPlan, weather: Weather) -> None:
    """Add lamp posts along the sides, with their arms towards the centre."""
    r = b.random
    colour, height = (materials.WARM if r.chance(0.6) else materials.COOL), r.uniform(4.2, 5.4)
    for x, y, yaw in r.shuffled([
        (0.55, -1, 0.5), (-0.55, -1, 0.5), (0.55, 1, -0.5), (-0.55, 1, -0.5), (1, 0.1, 1.0), (-1, -0.1, 0.0),
    ])[: r.integer(2, 4)]:  # fmt: skip
        place_x = x * (half_x - 0.55 if abs(x) == 1 else half_x)
        place_y = y * (half_y - 0.55 if abs(y) == 1 else half_y)
        outdoors.lamp_post(b.at(place_x, place_y, 0, yaw * math.pi, name="lamp post"), height, colour,
                           r.uniform(14, 22) if weather.lit else 0.0)  # fmt: skip
        plan.occupied.append((place_x - 0.1, place_y - 0.1, place_x + 0.1, place_y + 0.1))
