"""Outdoor objects: trees, lamp posts, containers, crates, kerbs, fences, hedges and low walls.

As in `furniture`, each function builds one object in the builder's frame. Fences, hedges and walls run along x from 0
to a length, with their front towards +y.
"""

from __future__ import annotations

import math

from worldstereo_ros.scenes.objects import materials, posters
from worldstereo_ros.scenes.objects.furniture import DARK, WHITE
from worldstereo_ros.scenes.objects.vehicles import CHROME, RUBBER, lettering
from worldstereo_ros.scenes.raytracing.primitives import Builder, Colour, Material, hsv, varied

SOIL = Material(a=(0.06, 0.04, 0.025), b=(0.03, 0.02, 0.012), noise=0.25, blend=0.6, frequency=(12, 12))


def tree(b: Builder, height: float) -> None:
    """A tree with a round, conical or narrow crown."""
    r = b.random
    bark = Material(a=(0.16, 0.11, 0.07), b=(0.07, 0.05, 0.035), noise=0.25, blend=0.8, frequency=(14, 3))
    leaf, trunk = materials.leaves(r), 0.022 * height + 0.03
    style = r.integer(0, 3)
    if style == 0:
        b.cylinder((0, 0, 0.1 * height), trunk, 0.2 * height, bark)
        for k in range(5):
            wide = (0.27 - 0.05 * k) * height
            b.sphere((0, 0, (0.28 + 0.16 * k) * height), (wide, wide, 0.15 * height), leaf)
        return
    if style == 1:
        b.cylinder((0, 0, 0.15 * height), trunk, 0.3 * height, bark)
        b.sphere((0, 0, 0.6 * height), (0.14 * height, 0.14 * height, 0.4 * height), leaf)
        for k in range(3):
            b.sphere((r.normal(0.04 * height), r.normal(0.04 * height), (0.4 + 0.15 * k) * height), 0.13 * height, leaf)
        return
    b.cylinder((0, 0, 0.28 * height), trunk, 0.56 * height, bark)
    other = varied(leaf, r, 0.1)
    for k in range(r.integer(5, 7)):
        angle, out = 2.4 * k, (0.0 if k == 0 else 0.16) * height
        size = r.uniform(0.15, 0.21) * height
        z = (0.68 + 0.12 * math.sin(1.9 * k)) * height
        b.sphere((out * math.cos(angle), out * math.sin(angle), z), (size, size, 0.8 * size), other if k % 2 else leaf)


def shrub(b: Builder, size: float) -> None:
    """A low bush."""
    leaf = materials.leaves(b.random)
    for _ in range(3):
        x, y, part = b.random.normal(0.3 * size), b.random.normal(0.3 * size), size * b.random.uniform(0.7, 1.0)
        b.sphere((x, y, 0.6 * part), (part, part, 0.75 * part), leaf)


def lamp_post(b: Builder, height: float, colour: Colour, power: float) -> None:
    """A lamp post with its arm towards +x; lit if power > 0."""
    paint = materials.metal(b.random, b.random.choice([(0.06, 0.09, 0.08), (0.3, 0.31, 0.32), (0.05, 0.05, 0.055)]))
    b.cylinder((0, 0, 0.35), 0.085, 0.7, paint)
    b.cylinder((0, 0, height / 2), 0.05, height, paint)
    b.cylinder((0.45, 0, height - 0.04), 0.03, 1.0, paint, axis="x")
    b.box((1.05, 0, height - 0.02), (0.6, 0.2, 0.09), paint, casts=False)
    pane = materials.lamp(colour, 1.0) if power else materials.metal(b.random, (0.7, 0.7, 0.68))
    b.box((1.07, 0, height - 0.075), (0.46, 0.15, 0.03), pane, casts=False)
    if power:
        b.light((1.07, 0, height - 0.15), colour, power, normal=(0, 0, -1), size=(0.23, 0.1))


def container(b: Builder, length: float = 6.06) -> None:
    """A freight container along x, its doors towards +x."""
    r, wide, tall = b.random, 2.44, 2.59
    hue, saturation, value = r.choice(
        [(0.6, 0.75, 0.5), (0.02, 0.75, 0.55), (0.06, 0.85, 0.75), (0.4, 0.5, 0.4), (0.58, 0.1, 0.6), (0.13, 0.75, 0.8)]
    )
    colour = hsv(hue + r.normal(0.01), saturation, value * r.uniform(0.85, 1.1))
    side = Material(a=colour, b=tuple(0.75 * c for c in colour), cell=(0.28, 1e3), ripple=0.2, noise=0.12, blend=0.2,
                    frequency=(1.2, 0.6))  # fmt: skip
    steel = Material(a=tuple(0.8 * c for c in colour), b=tuple(0.6 * c for c in colour), noise=0.1, gloss=0.2)
    b.box((0, 0, tall / 2), (length - 0.12, wide - 0.08, tall - 0.1), side)
    for y in (-1, 1):
        for x in (-1, 1):
            b.box((x * (length / 2 - 0.07), y * (wide / 2 - 0.07), tall / 2), (0.14, 0.14, tall), steel)
        for z in (0.07, tall - 0.05):
            b.box((0, y * (wide / 2 - 0.05), z), (length - 0.28, 0.1, 0.14 if z < 1 else 0.1), steel)
        # Each door: a leaf with two bars and their handles.
        b.box((length / 2 - 0.03, y * 0.56, tall / 2), (0.06, 1.08, tall - 0.3), steel)
        for k in (0.25, 0.85):
            b.cylinder((length / 2 + 0.02, y * k, tall / 2), 0.02, tall - 0.3, CHROME)
            b.box((length / 2 + 0.03, y * k - 0.12, 1.1), (0.02, 0.3, 0.04), CHROME)
    if r.chance(0.7):
        lettering(b, r, r.uniform(-0.15, 0.15) * length, r.uniform(1.4, 1.8), 0.42 * length, wide / 2 - 0.02, side)


def crate(b: Builder, size: float) -> None:
    """A wooden crate: boards in a frame."""
    r = b.random
    wood = materials.wood(r)
    boards = Material(**{**wood.__dict__, "cell": (1e3, 0.14), "joint_width": 0.012, "joint": (0.03, 0.02, 0.01)})
    inner, rail = size - 0.05, 0.09 * size + 0.02
    b.box((0, 0, size / 2), (inner, inner, inner), boards)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box((x * (size - rail) / 2, y * (size - rail) / 2, size / 2), (rail, rail, size), wood)
    for z in (rail / 2, size - rail / 2):
        b.box((0, 0, z), (size - 0.01, size - 0.01, rail), wood)


def barrels(b: Builder, count: int) -> None:
    """A group of up to four barrels."""
    r = b.random
    paint = materials.metal(r, r.colour((0.5, 0.9), (0.25, 0.7)))
    for x, y in [(-0.31, -0.31), (0.31, -0.31), (-0.31, 0.31), (0.31, 0.31)][:count]:
        b.cylinder((x, y, 0.44), 0.285, 0.88, paint)
        for z in (0.02, 0.3, 0.59, 0.86):
            b.cylinder((x, y, z), 0.295, 0.035, paint)


def wheeled_bins(b: Builder, count: int) -> None:
    """A row of refuse bins with lids, fronts towards +x."""
    r = b.random
    for k in range(count):
        y = 0.72 * (k - (count - 1) / 2)
        colour = hsv(
            *r.choice([(0.35, 0.6, 0.3), (0.6, 0.7, 0.35), (0.13, 0.8, 0.7), (0.0, 0.0, 0.2), (0.05, 0.6, 0.3)])
        )
        body = Material(a=colour, b=tuple(0.85 * c for c in colour), noise=0.04)
        b.box((0, y, 0.52), (0.62, 0.56, 0.84), body)
        b.box((0.02, y, 0.98), (0.7, 0.6, 0.07), varied(body, r, 0.1))
        for side in (-1, 1):
            b.cylinder((-0.26, y + 0.24 * side, 0.1), 0.1, 0.05, RUBBER, axis="y")


def bench(b: Builder) -> None:
    """A bench along y that faces +x."""
    wood, iron = materials.wood(b.random), DARK
    for k in range(3):
        b.box((-0.08 + 0.15 * k, 0, 0.44), (0.12, 1.7, 0.04), wood)
    for k in range(2):
        b.box((-0.2, 0, 0.62 + 0.16 * k), (0.04, 1.7, 0.12), wood)
    for y in (-0.7, 0.7):
        b.box((0.05, y, 0.21), (0.42, 0.05, 0.42), iron)
        b.box((-0.23, y, 0.42), (0.04, 0.05, 0.84), iron)


def planter(b: Builder, length: float, width: float) -> None:
    """A planter along x with shrubs."""
    stone = materials.concrete(b.random) if b.random.chance(0.6) else materials.wood(b.random)
    b.box((0, 0, 0.25), (length, width, 0.5), stone)
    b.box((0, 0, 0.501), (length - 0.14, width - 0.14, 0.01), SOIL)
    count = max(1, round(length / 0.7))
    for k in range(count):
        x = length * ((k + 0.5) / count - 0.5)
        shrub(b.at(x, 0, 0.45), b.random.uniform(0.22, 0.34))


def island(b: Builder, length: float, width: float, fill: Material, kerb: Material) -> None:
    """A raised bed along x with kerbs around it."""
    b.box((0, 0, 0.055), (length - 0.3, width - 0.3, 0.11), fill, anchored=True)
    for side in (-1, 1):
        b.box((0, side * (width - 0.15) / 2, 0.065), (length, 0.15, 0.13), kerb)
        b.box((side * (length - 0.15) / 2, 0, 0.065), (0.15, width - 0.3, 0.13), kerb)


def bollards(b: Builder, length: float, step: float) -> None:
    """A row of posts along x."""
    steel = materials.metal(b.random, b.random.choice([(0.05, 0.06, 0.07), (0.5, 0.04, 0.03), (0.4, 0.41, 0.42)]))
    count = max(2, round(length / step) + 1)
    for k in range(count):
        x = length * (k / (count - 1) - 0.5)
        b.cylinder((x, 0, 0.45), 0.055, 0.9, steel)
        b.cylinder((x, 0, 0.75), 0.058, 0.12, WHITE)


def post_sign(b: Builder, text: str, ground: Colour, ink: Colour) -> None:
    """A sign on a post, facing +x."""
    b.cylinder((-0.03, 0, 1.2), 0.025, 2.4, CHROME)
    image = materials.image(b.add_image(posters.sign(text, ground, ink, 1.0)))
    b.box((0, 0, 2.1), (0.02, 0.55, 0.55), CHROME, faces={"+x": image})


def low_wall(b: Builder, length: float, height: float, material: Material) -> None:
    """A wall with a coping."""
    b.span((0, -0.24, 0), (length, 0, height), material, anchored=True)
    b.span((-0.04, -0.29, height), (length + 0.04, 0.05, height + 0.08), materials.concrete(b.random, slab=1.2))


def fence(b: Builder, length: float) -> None:
    """A fence: boards, rails, or corrugated sheet between posts."""
    r = b.random
    style, step = r.integer(0, 3), r.uniform(1.9, 2.6)
    count = max(2, round(length / step) + 1)
    height = r.uniform(1.5, 2.1) if style != 1 else r.uniform(1.0, 1.2)
    wood = materials.wood(r)
    post = materials.metal(r, (0.3, 0.31, 0.32)) if style == 2 else wood
    for k in range(count):
        b.box((length * k / (count - 1), -0.08, height / 2 + 0.03), (0.1, 0.1, height + 0.06), post)
    if style == 1:
        for z in (0.35, 0.68, 1.0):
            b.span((0, -0.03, z - 0.07), (length, 0.01, z + 0.07), wood)
        return
    boards = Material(**{**wood.__dict__, "cell": (0.14, 1e3), "shift": 0.0, "variance": 0.12, "joint_width": 0.012,
                         "joint": (0.02, 0.015, 0.01), "frequency": (26.0, 1.6), "grain": 1.0})  # fmt: skip
    b.span((0, -0.03, 0.06), (length, 0.0, height), materials.sheet(r) if style == 2 else boards)
    for z in (0.3, height - 0.25):
        b.span((0, -0.08, z - 0.04), (length, -0.03, z + 0.04), post)
    if style == 0:
        b.span((0, -0.1, height), (length, 0.04, height + 0.04), wood)


def hedge(b: Builder, length: float, height: float) -> None:
    """A trimmed hedge with a slightly uneven top and front."""
    leaf = materials.leaves(b.random)
    b.span((0, -0.75, 0), (length, -0.1, height), leaf)
    count = max(2, round(length / 1.1))
    for k in range(count):
        x = length * (k + 0.5) / count
        b.sphere((x, -0.42, height - 0.12), (0.75, 0.36, 0.22 + abs(b.random.normal(0.04))), leaf)
        b.sphere((x + b.random.normal(0.2), -0.22, 0.5 * height), (0.6, 0.2, 0.42 * height), leaf)
