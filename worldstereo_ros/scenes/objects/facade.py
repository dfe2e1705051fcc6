"""Street fronts of houses and halls: doors, windows, shutters and signs on one side of a solid block.

A front runs along x from 0 to its length and faces +y; the block is behind it.
"""

from __future__ import annotations

import math

from worldstereo_ros.scenes.objects import materials, posters
from worldstereo_ros.scenes.objects.furniture import DARK, WHITE
from worldstereo_ros.scenes.objects.vehicles import CHROME, slab
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, hsv, varied

STOREY_M = 3.1
"""Height of a storey, metres."""


def pane(b: Builder, x: float, low: float, wide: float, tall: float, trim: Material, glass: Material) -> None:
    """A window: surround, glass, bars, sill."""
    # Flat attachments cast no shadow: it would darken the texels around them.
    place, middle = b.at(x, 0, low, name="window", casts=False), tall / 2
    place.box((0, 0.02, middle), (wide + 0.16, 0.05, tall + 0.16), trim)
    place.box((0, 0.03, middle), (wide, 0.05, tall), glass)
    place.box((0, 0.045, middle), (0.05, 0.045, tall), trim)
    if tall > 1.2:
        place.box((0, 0.045, 0.68 * tall), (wide, 0.04, 0.045), trim)
    place.box((0, 0.07, -0.06), (wide + 0.24, 0.2, 0.05), WHITE, casts=True)


def blinds(b: Builder, x: float, low: float, wide: float, tall: float, paint: Material) -> None:
    """Two folded-back wooden shutters beside a window."""
    slats = Material(**{**paint.__dict__, "cell": (1e3, 0.07), "joint": tuple(0.4 * c for c in paint.a),
                        "joint_width": 0.015})  # fmt: skip
    place = b.at(x, 0, low, name="shutters")
    for side in (-1, 1):
        place.box((side * (wide / 2 + 0.08 + 0.27 * wide), 0.03, tall / 2), (0.5 * wide, 0.05, tall + 0.06), slats)


def entrance(b: Builder, x: float, leaf: Material, trim: Material, glass: Material) -> None:
    """A door with a step, a light above, sometimes a pane and a canopy."""
    r, place = b.random, b.at(x, 0, name="door")
    place.box((0, 0.03, 1.1), (1.16, 0.08, 2.2), trim)
    place.box((0, 0.045, 1.06), (0.96, 0.08, 2.08), leaf, casts=False)
    if r.chance(0.5):
        place.box((0, 0.05, 1.55), (0.6, 0.08, 0.75), glass, casts=False)
    for z in (0.5, 1.4)[: 1 if r.chance(0.5) else 2]:
        place.box((0, 0.052, z), (0.7, 0.075, 0.62), varied(leaf, r, 0.1) if z < 1 else glass, casts=False)
    place.cylinder((0.38, 0.13, 1.02), 0.016, 0.14, CHROME, axis="x")
    place.box((0, 0.3, 0.045), (1.5, 0.6, 0.09), materials.concrete(r))
    if r.chance(0.5):
        place.box((0, 0.42, 2.42), (1.7, 0.84, 0.08), trim)


def shutter(b: Builder, x: float, wide: float, tall: float, trim: Material) -> None:
    """A rolling shutter or a sectional gate, closed, between guards."""
    r, place = b.random, b.at(x, 0, name="shutter")
    colour = r.choice(
        [(0.6, 0.62, 0.63), hsv(0.6, 0.6, 0.5), hsv(0.33, 0.4, 0.4), hsv(0.02, 0.7, 0.55), (0.8, 0.8, 0.78)]
    )
    slats = Material(a=colour, b=tuple(0.9 * c for c in colour), cell=(1e3, r.choice([0.1, 0.14, 0.5])),
                     joint=tuple(0.35 * c for c in colour), joint_width=0.018, noise=0.08)  # fmt: skip
    place.box((0, 0.03, tall / 2), (wide, 0.06, tall), slats)
    stripes = Material(a=(0.8, 0.55, 0.02), b=(0.03, 0.03, 0.03), pattern="checks", cell=(1e3, 0.15))
    for side in (-1, 1):
        edge = side * (wide / 2 + 0.08)
        place.box((edge, 0.05, tall / 2), (0.16, 0.12, tall), trim)
        place.box((edge, 0.35, 0.4), (0.14, 0.14, 0.8), stripes)
    place.box((0, 0.12, tall + 0.17), (wide + 0.32, 0.26, 0.34), trim)


def shop(b: Builder, x: float, wide: float, trim: Material, glass: Material) -> None:
    """A shop window with a plinth, a word above it and sometimes an awning."""
    r, place = b.random, b.at(x, 0, name="shop")
    place.box((0, 0.03, 1.4), (wide, 0.08, 2.5), trim)
    for side in (-1, 1):
        place.box((side * wide / 4, 0.05, 1.45), (wide / 2 - 0.14, 0.06, 1.9), glass, casts=False)
    ground = r.colour((0.5, 0.9), (0.2, 0.6))
    image = materials.image(b.add_image(posters.sign(r.choice(posters.WORDS), ground, (0.9, 0.9, 0.86), wide / 0.5)))
    place.box((0, 0.08, 2.95), (wide, 0.16, 0.5), trim, faces={"+y": image})
    if r.chance(0.6):
        light = (0.85, 0.85, 0.82) if r.chance(0.6) else ground
        cloth = Material(a=ground, b=light, pattern="checks", cell=(1e3, 0.25), noise=0.05)
        hem = Material(a=ground, b=light, pattern="stripes", cell=(0.25, 1e3), noise=0.05)
        slab(place.at(0, 0, 0, math.pi / 2), (0.16, 2.7), (1.2, 2.25), wide, 0.03, cloth)
        place.box((0, 1.2, 2.18), (wide, 0.02, 0.16), hem)


def extras(b: Builder, x: float, front: Material) -> None:
    """Add an attachment to a facade: a cooler, a sign, a meter box or a poster."""
    r = b.random
    thing = r.integer(0, 3)
    if thing == 0:
        place = b.at(x, 0, r.uniform(2.3, 2.7), name="cooler", solid=False)
        place.box((0, 0.22, 0), (0.8, 0.32, 0.58), WHITE)
        place.cylinder((-0.12, 0.385, 0), 0.23, 0.02, DARK, axis="y")
    elif thing == 1:
        ground, ink = r.choice([((0.02, 0.12, 0.4), (0.9, 0.9, 0.9)), ((0.75, 0.72, 0.1), (0.03, 0.03, 0.03))])
        text = r.choice(["P", "P1", "EXIT", "NO 4", "GATE", "STAFF", "24 H"])
        image = materials.image(b.add_image(posters.sign(text, ground, ink, 1.5)))
        b.box((x, 0.015, 1.8), (0.75, 0.03, 0.5), WHITE, faces={"+y": image}, name="sign", solid=False)
    elif thing == 2:
        b.box((x, 0.1, 0.85), (0.6, 0.2, 0.9), materials.metal(r, hsv(0.3, 0.08, 0.65)), name="meter box")
    else:
        wide, tall = 1.1, 1.5
        image = materials.image(b.add_image(posters.poster(r, wide / tall)))
        b.box((x, 0.012, 1.5), (wide, 0.024, tall), WHITE, faces={"+y": image}, name="poster", solid=False)


def front(b: Builder, length: float, storeys: int, industrial: bool, depth: float = 6.0) -> None:
    """Add a front: a solid block with bays of about three metres with doors, windows, shops or shutters."""
    r = b.random
    height = storeys * STOREY_M + 0.5
    wall = r.choice([materials.sheet, materials.sheet, materials.brick] if industrial else
                    [materials.plaster, materials.brick, materials.plaster])(r)  # fmt: skip
    trim = varied(WHITE, r, 0.05) if r.chance(0.6) else materials.metal(r, hsv(r.uniform(), 0.3, 0.3))
    glass, paint = materials.glass(r), materials.metal(r, r.colour((0.3, 0.8), (0.2, 0.6)))
    block = b.at(0, 0, name="house")
    base = r.uniform(0.35, 1.0)
    block.span((0, -depth, -0.15), (length, 0, height), wall, anchored=True)
    block.span((-0.02, 0, -0.15), (length + 0.02, 0.03, base), materials.concrete(r), anchored=True)
    block.span((-0.15, -depth, height), (length + 0.15, 0.22, height + 0.22), trim)
    if not industrial:
        for level in range(1, storeys):
            block.span((0, 0, level * STOREY_M + 0.02), (length, 0.05, level * STOREY_M + 0.14), trim)
    b.cylinder((0.25, 0.07, height / 2), 0.05, height, CHROME, name="pipe", solid=False)
    bays = max(1, int(length / r.uniform(2.9, 3.5)))
    step, shuttered = length / bays, not industrial and r.chance(0.4)
    wide, tall = r.uniform(0.95, 1.35), r.uniform(1.25, 1.55)
    # Upper floors have windows only; the ground floor differs from bay to bay.
    kinds = (
        ["gate", "gate", "window", "door", "extras"] if industrial else ["window", "window", "door", "shop", "extras"]
    )
    for k in range(bays):
        x = step * (k + 0.5)
        kind = r.choice(kinds)
        if kind == "gate":
            shutter(b, x, min(step - 0.7, 2.6), min(2.7, height - 0.9), paint if r.chance(0.5) else trim)
        elif kind == "door":
            entrance(b, x, paint if r.chance(0.6) else materials.wood(r), trim, glass)
        elif kind == "shop":
            shop(b, x, step - 0.5, paint, glass)
        elif kind == "window":
            pane(b, x, 1.0, wide, tall, trim, glass)
        else:
            extras(b, x, wall)
        for level in range(1, storeys):
            low = level * STOREY_M + (1.3 if industrial else 0.95)
            pane(b, x, low, 1.9 if industrial else wide, 0.9 if industrial else tall, trim, glass)
            if shuttered:
                blinds(b, x, low, wide, tall, paint)
