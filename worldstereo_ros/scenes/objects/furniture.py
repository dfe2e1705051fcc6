"""Furniture and small objects. Each function builds one object at the origin of the builder's frame, on its floor.

Objects for a wall have their back at x = 0 and their front towards +x; others are centred.
"""

from __future__ import annotations

import math

from worldstereo_ros.scenes.objects import materials, posters
from worldstereo_ros.scenes.raytracing.primitives import Builder, Colour, Material, hsv

DARK = Material(a=(0.03, 0.03, 0.035), b=(0.05, 0.05, 0.055), gloss=0.2)
WHITE = Material(a=(0.8, 0.8, 0.78), b=(0.74, 0.74, 0.72), noise=0.02)


def table(b: Builder, length: float, width: float, height: float, top: Material, legs: Material) -> None:
    """A table with four legs; a round one if length equals width."""
    if abs(length - width) < 1e-6:
        b.cylinder((0, 0, height - 0.02), length / 2, 0.04, top)
        b.cylinder((0, 0, height / 2), 0.05, height - 0.04, legs)
        b.cylinder((0, 0, 0.015), length / 4, 0.03, legs)
        return
    b.box((0, 0, height - 0.02), (length, width, 0.04), top)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box(
                (x * (length / 2 - 0.06), y * (width / 2 - 0.06), (height - 0.04) / 2),
                (0.06, 0.06, height - 0.04),
                legs,
            )


def tabletop_objects(b: Builder, length: float, width: float, height: float) -> None:
    """A few small objects on a table top."""
    r = b.random
    spots = r.shuffled([(x, y) for x in (-0.32, 0.0, 0.32) for y in (-0.28, 0.28)])[: r.integer(2, 5)]
    for x, y in spots:
        place = b.at(x * length, y * width, height, r.uniform(0, 6.28))
        thing = r.integer(0, 4)
        colour = materials.metal(r, r.colour((0.4, 0.9), (0.4, 0.95)))
        if thing == 0:
            place.cylinder((0, 0, 0.05), 0.04, 0.1, colour, name="cup")
        elif thing == 1:
            place = place.at(0, 0, name="books")
            for i in range(r.integer(1, 4)):
                place.box((0, 0, 0.02 + 0.035 * i), (0.24, 0.17, 0.033), materials.cloth(r), yaw=r.normal(0.15))
        elif thing == 2:
            place.sphere((0, 0, 0.07), 0.07, colour, name="ball")
        elif thing == 3:
            place = place.at(0, 0, name="vase")
            place.sphere((0, 0, 0.09), (0.07, 0.07, 0.09), colour)
            place.sphere((0, 0, 0.28), (0.12, 0.12, 0.13), materials.leaves(r))
        else:
            place = place.at(0, 0, name="fruit bowl")
            place.cylinder((0, 0, 0.03), 0.14, 0.05, WHITE)
            for i in range(4):
                angle = 1.57 * i + r.uniform(0, 1)
                fruit = materials.metal(r, hsv(r.choice([0.02, 0.09, 0.15, 0.25]), 0.85, 0.85))
                place.sphere((0.065 * math.cos(angle), 0.065 * math.sin(angle), 0.085), 0.045, fruit)


def chair(b: Builder, seat: Material, legs: Material) -> None:
    """A chair that faces +x."""
    b.box((0, 0, 0.45), (0.44, 0.44, 0.05), seat)
    b.box((-0.2, 0, 0.75), (0.04, 0.42, 0.36), seat)
    for x in (-1, 1):
        for y in (-1, 1):
            high = 0.62 if x < 0 else 0.43
            b.box((0.19 * x, 0.19 * y, high / 2), (0.035, 0.035, high), legs)


def sofa(b: Builder, width: float, cover: Material) -> None:
    """A sofa, back at x = 0."""
    b.box((0.45, 0, 0.22), (0.86, width, 0.28), cover)
    b.box((0.11, 0, 0.5), (0.22, width, 0.56), cover)
    for y in (-1, 1):
        b.box((0.45, y * (width / 2 + 0.08), 0.32), (0.86, 0.18, 0.56), cover)
    cushion = materials.cloth(b.random)
    count = max(2, round(width / 0.7))
    for i in range(count):
        middle = (i + 0.5) / count * width - width / 2
        b.box((0.55, middle, 0.42), (0.62, width / count - 0.03, 0.13), cover)
        if b.random.chance(0.5):
            b.sphere((0.3, middle, 0.62), (0.09, 0.2, 0.18), cushion)
    for x in (0.1, 0.8):
        for y in (-1, 1):
            b.box((x, y * width / 2, 0.04), (0.05, 0.05, 0.08), DARK)


def bookshelf(b: Builder, width: float, height: float, shelves: int, wood: Material) -> None:
    """A bookshelf with books, boxes and balls, back at x = 0."""
    r, deep = b.random, 0.32
    b.box((0.01, 0, height / 2), (0.02, width, height), wood)
    for y in (-1, 1):
        b.box((deep / 2, y * (width / 2 - 0.012), height / 2), (deep, 0.024, height), wood)
    step = (height - 0.08) / shelves
    for i in range(shelves + 1):
        b.box((deep / 2, 0, 0.06 + step * i), (deep - 0.002, width - 0.04, 0.024), wood)
        if i == shelves:
            break
        low = 0.072 + step * i
        place = b.at(0, 0, low)
        left = -width / 2 + 0.04
        while left < width / 2 - 0.25:
            long = min(r.uniform(0.25, 0.7), width / 2 - 0.04 - left)
            middle = left + long / 2
            if r.chance(0.65):
                tall = r.uniform(0.6, 0.85) * (step - 0.03)
                front = materials.image(b.add_image(posters.books(r, long / tall)))
                block = place.at(0, 0, name="books")
                block.box((0.02 + 0.11, middle, tall / 2), (0.22, long, tall), materials.cloth(r), faces={"+x": front})
            elif r.chance(0.6):
                size = min(r.uniform(0.12, 0.3), long - 0.02, step - 0.06)
                if r.chance(0.5):
                    place.box((0.16, middle, size * 0.4), (0.22, size, size * 0.8), materials.cardboard(r), name="box")
                else:
                    place.sphere((0.16, middle, size * 0.4), size * 0.4, materials.metal(r, r.colour()), name="ball")
            left += long + 0.02


def cabinet(b: Builder, width: float, height: float, wood: Material) -> None:
    """A cabinet or chest of drawers, back at x = 0."""
    r, deep = b.random, 0.42
    b.box((deep / 2, 0, height / 2 + 0.03), (deep, width, height - 0.06), wood)
    b.box((deep / 2 - 0.02, 0, 0.03), (deep - 0.06, width - 0.04, 0.06), DARK)
    b.box((deep / 2 + 0.01, 0, height + 0.012), (deep + 0.04, width + 0.03, 0.025), wood)
    columns, rows = max(1, round(width / 0.5)), r.integer(1, 3)
    wide, tall = width / columns, (height - 0.08) / rows
    for i in range(columns):
        for j in range(rows):
            y, z = -width / 2 + wide * (i + 0.5), 0.06 + tall * (j + 0.5)
            b.box((deep + 0.006, y, z), (0.014, wide - 0.025, tall - 0.025), wood)
            b.box((deep + 0.025, y, z + tall * 0.3), (0.02, 0.12, 0.016), materials.metal(r))


def plant(b: Builder, height: float) -> None:
    """A plant in a pot."""
    r = b.random
    b.cylinder((0, 0, 0.16), 0.15, 0.32, materials.plaster(r, r.colour((0.1, 0.6), (0.4, 0.9))))
    b.cylinder(
        (0, 0, 0.325), 0.13, 0.01, Material(a=(0.05, 0.03, 0.02), b=(0.08, 0.05, 0.03), blend=0.5, frequency=(30, 30))
    )
    b.cylinder((0, 0, 0.32 + (height - 0.5) / 2), 0.02, height - 0.5, materials.wood(r))
    leaf = materials.leaves(r)
    for i in range(r.integer(4, 7)):
        angle, out = 2.4 * i, r.uniform(0.08, 0.2)
        size = r.uniform(0.12, 0.22)
        z = height - 0.45 + 0.4 * i / 6 + r.uniform(-0.05, 0.1)
        b.sphere((out * math.cos(angle), out * math.sin(angle), z), (size, size, size * 0.75), leaf)


def floor_lamp(b: Builder, colour: Colour, power: float) -> None:
    """A standing lamp with a shade."""
    b.cylinder((0, 0, 0.015), 0.15, 0.03, DARK)
    b.cylinder((0, 0, 0.75), 0.013, 1.5, DARK)
    b.cylinder((0, 0, 1.55), 0.19, 0.3, materials.lamp(colour, 0.55), casts=False)
    b.light((0, 0, 1.55), colour, power, size=(0.12, 0.12))


def pendant(b: Builder, ceiling: float, drop: float, colour: Colour, power: float) -> None:
    """A pendant lamp."""
    b.cylinder((0, 0, ceiling - drop / 2), 0.008, drop, DARK, casts=False)
    b.sphere((0, 0, ceiling - drop - 0.1), 0.14, materials.lamp(colour, 0.8), casts=False)
    b.light((0, 0, ceiling - drop - 0.1), colour, power, size=(0.14, 0.14))


def ceiling_panel(b: Builder, ceiling: float, length: float, width: float, colour: Colour, power: float) -> None:
    """A flat ceiling lamp."""
    b.box((0, 0, ceiling - 0.02), (length + 0.06, width + 0.06, 0.04), WHITE, casts=False)
    b.box((0, 0, ceiling - 0.03), (length, width, 0.04), materials.lamp(colour, 1.0), casts=False)
    b.light((0, 0, ceiling - 0.1), colour, power, normal=(0, 0, -1), size=(length / 2, width / 2))


def desk(b: Builder, wood: Material, legs: Material) -> None:
    """A desk with a screen and a keyboard, back at x = 0."""
    r = b.random
    inner = b.at(0.36, 0, yaw=math.pi / 2)
    table(inner, 1.4, 0.7, 0.74, wood, legs)
    display = materials.image(b.add_image(posters.screen(r, 1.7)), emission=0.35)
    place = b.at(0.2, r.uniform(-0.2, 0.2), 0.74, r.normal(0.1), name="screen")
    place.box((0, 0, 0.01), (0.18, 0.24, 0.02), DARK)
    place.box((0, 0, 0.1), (0.03, 0.06, 0.2), DARK)
    place.box((0.01, 0, 0.34), (0.03, 0.6, 0.36), DARK)
    place.box((0.024, 0, 0.34), (0.008, 0.57, 0.33), display)
    place.box((0.3, 0, 0.012), (0.14, 0.42, 0.02), DARK, name="keyboard")
    b.cylinder((0.5, 0.5, 0.79), 0.04, 0.1, materials.metal(r, r.colour((0.4, 0.9), (0.4, 0.9))), name="cup")


def frame(b: Builder, width: float, height: float, image: Material, wood: Material) -> None:
    """A framed image on a wall, back at x = 0, centre at z = 0."""
    b.box((0.012, 0, 0), (0.024, width + 0.07, height + 0.07), wood, solid=False)
    b.box((0.016, 0, 0), (0.026, width, height), WHITE, faces={"+x": image}, solid=False)


def cardboard_box(b: Builder, size: tuple[float, float, float]) -> None:
    """A cardboard box with a printed side towards +x."""
    image = materials.image(b.add_image(posters.label(b.random)))
    plain = materials.cardboard(b.random)
    b.box((0, 0, size[2] / 2), size, plain, faces={"+x": image, "-x": image})
    b.box((0, 0, size[2] + 0.001), (size[0] * 0.99, 0.05, 0.003), Material(a=(0.5, 0.36, 0.2), b=(0.5, 0.36, 0.2)))


def pallet(b: Builder, wood: Material) -> None:
    """A pallet of 1.2 x 0.8 m."""
    for y in (-0.35, 0.0, 0.35):
        b.box((0, y, 0.06), (1.2, 0.1, 0.09), wood)
    for i in range(5):
        b.box((-0.54 + 0.27 * i, 0, 0.125), (0.12, 0.8, 0.022), wood)


def load(b: Builder, height: float) -> None:
    """A pallet with boxes, sacks or barrels on it."""
    r = b.random
    pallet(b, materials.wood(r))
    style = r.integer(0, 3)
    if style <= 1:
        rows = max(1, round(height / 0.4))
        for k in range(rows):
            count = 2 if k < rows - 1 else r.integer(1, 2)
            for i in range(count):
                place = b.at(-0.29 + 0.58 * i, 0, 0.136 + 0.4 * k, r.normal(0.02), name="box")
                cardboard_box(place, (0.55, 0.76, 0.395))
    elif style == 2:
        colour = materials.metal(r, r.colour((0.6, 0.9), (0.3, 0.8)))
        for i in range(2):
            place = b.at(-0.29 + 0.58 * i, 0, 0.136, name="barrel")
            place.cylinder((0, 0, 0.44), 0.28, 0.88, colour)
            for z in (0.3, 0.6):
                place.cylinder((0, 0, z), 0.288, 0.03, colour)
    else:
        wrap = materials.cloth(r, r.colour((0.02, 0.3), (0.5, 0.9)))
        for k in range(max(1, round(height / 0.25))):
            b.box((0, 0, 0.136 + 0.25 * k + 0.12), (1.12, 0.76, 0.24), wrap, yaw=r.normal(0.02))


def extinguisher(b: Builder) -> None:
    """A fire extinguisher on a wall, back at x = 0."""
    red = materials.metal(b.random, (0.65, 0.03, 0.02))
    b.cylinder((0.09, 0, 0.75), 0.075, 0.44, red)
    b.sphere((0.09, 0, 0.97), 0.075, red)
    b.cylinder((0.09, 0, 1.06), 0.025, 0.08, DARK)


def bin_(b: Builder) -> None:
    """A waste bin."""
    b.cylinder((0, 0, 0.2), 0.14, 0.4, materials.metal(b.random, b.random.colour((0.0, 0.6), (0.2, 0.7))))
    b.cylinder((0, 0, 0.401), 0.125, 0.004, DARK)


def cone(b: Builder) -> None:
    """A traffic cone made of stacked discs."""
    orange, white = Material(a=(0.85, 0.2, 0.02), b=(0.85, 0.2, 0.02)), WHITE
    b.box((0, 0, 0.015), (0.34, 0.34, 0.03), orange)
    for i in range(6):
        b.cylinder((0, 0, 0.07 + 0.085 * i), 0.13 - 0.019 * i, 0.086, white if i in (2, 4) else orange)
