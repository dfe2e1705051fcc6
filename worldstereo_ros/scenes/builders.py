"""The kinds of worlds: each function turns a seed into a scene."""

from __future__ import annotations

import math
from collections.abc import Callable

from worldstereo_ros.scenes import furniture, materials, pictures
from worldstereo_ros.scenes.building import (
    Opening,
    Plan,
    Wall,
    curtains,
    daytime,
    door,
    gate,
    outside,
    sign,
    skirting,
    wall,
    window,
)
from worldstereo_ros.scenes.furniture import WHITE
from worldstereo_ros.scenes.primitives import Builder, Material, hsv, varied
from worldstereo_ros.scenes.scene import Scene

WARM, COOL = (1.0, 0.78, 0.52), (0.92, 0.97, 1.0)


def _corners(half_x: float, half_y: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Start and end of the four walls, the room on the left hand: the -y, +x, +y and -x sides."""
    c = [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
    return [(c[i], c[(i + 1) % 4]) for i in range(4)]


def room(seed: int) -> Scene:
    """A living room or office of about 5 x 4 m: furniture along the walls and in the middle, windows, a door."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(2.3, 3.6), r.uniform(1.9, 3.0), r.uniform(2.45, 3.0)
    paint = materials.plaster(r)
    accent = r.choice([materials.brick, materials.panels, materials.plaster, materials.panels])(r)
    trim = varied(WHITE, r, 0.05) if r.chance(0.6) else materials.wood(r)
    wooden, legs = materials.wood(r), r.choice([materials.metal(r), materials.wood(r), furniture.DARK])
    sky, ambient, sun = daytime(r, azimuth=(window_wall := r.integer(0, 3)) * math.pi / 2 - math.pi / 2)
    door_wall = (window_wall + r.integer(1, 3)) % 4
    second = (window_wall + r.choice([1, 3])) % 4

    plan = Plan(half_x, half_y, [])
    b.box((0, 0, -0.1), (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2), materials.floor(r), name="floor", anchored=True)
    b.box(
        (0, 0, height + 0.1),
        (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2),
        varied(WHITE, r, 0.04),
        name="ceiling",
        anchored=True,
    )
    walls: list[Wall] = []
    accent_wall = r.integer(0, 3)
    wainscot = (r.uniform(0.8, 1.1), materials.panels(r)) if r.chance(0.25) else None
    for i, (start, end) in enumerate(_corners(half_x, half_y)):
        length = math.dist(start, end)
        openings = []
        if i == window_wall or (i == second and i != door_wall and r.chance(0.45)):
            low = r.choice([0.85, 0.9, 0.55])
            count = 2 if length > 4.6 and r.chance(0.6) else 1
            for k in range(count):
                wide = min(r.uniform(1.0, 1.9), length / count - 0.9)
                middle = length * (k + 0.5) / count + (r.normal(0.2) if count == 1 else 0.0)
                openings.append(
                    Opening(middle - wide / 2, middle + wide / 2, low, min(low + 1.4, height - 0.3), "window")
                )
        if i == door_wall:
            middle = r.uniform(0.9, length - 0.9)
            openings.append(Opening(middle - 0.45, middle + 0.45, 0.0, 2.05, "door"))
        walls.append(wall(b, start, end, height, openings, accent if i == accent_wall else paint, paint, wainscot))
        skirting(walls[-1], trim)
    leaf = varied(trim, r) if r.chance(0.5) else materials.wood(r)
    drapes = materials.cloth(r) if r.chance(0.6) else None
    for w in walls:
        for o in w.openings:
            if o.use == "door":
                door(w, o, leaf, trim)
                plan.claim_at(w, o.middle, 0.9, 0.9)
            else:
                window(w, o, trim, r.uniform(0.9, 1.5), (0.85, 0.93, 1.0))
                if drapes is not None:
                    curtains(w, o, drapes)
    _furnish_middle(b, plan, half_x, half_y, wooden, legs)
    _furnish_walls(b, plan, walls, height, wooden, legs)
    _decorate(b, walls, height)
    lamp = r.integer(0, 2)
    colour = WARM if r.chance(0.6) else COOL
    if lamp == 0:
        furniture.pendant(
            b.at(0, 0, name="lamp", solid=False), height, r.uniform(0.3, 0.55), colour, r.uniform(1.2, 2.6)
        )
    elif lamp == 1:
        for x in (-0.45 * half_x, 0.45 * half_x):
            furniture.ceiling_panel(b.at(x, 0, name="lamp", solid=False), height, 0.6, 0.6, colour, r.uniform(0.9, 1.8))
    else:
        b.at(0, 0, height, name="lamp", solid=False).cylinder(
            (0, 0, -0.05), 0.24, 0.1, materials.lamp(colour, 0.9), casts=False
        )
        b.light((0, 0, height - 0.2), colour, r.uniform(1.6, 3.0), size=(0.24, 0.24))
    outside(b, half_x, half_y, sun)
    return Scene.build(b, "room", seed, ambient=ambient, sky=sky, key=r.uniform(0.54, 0.64),
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip


def _furnish_middle(b: Builder, plan: Plan, half_x: float, half_y: float, wood: Material, legs: Material) -> None:
    """A rug, and a table with chairs or a low table."""
    r = b.random
    x, y = r.normal(0.25), r.normal(0.2)
    if r.chance(0.7):
        wide, deep = r.uniform(1.5, 2.4), r.uniform(1.2, 1.8)
        colour = materials.rug(r)
        border = Material(a=colour.joint, b=colour.joint, noise=0.1, frequency=(40, 40))
        rug = b.at(x, y, name="rug", solid=False)
        rug.box((0, 0, 0.006), (wide, deep, 0.012), border)
        rug.box((0, 0, 0.0075), (wide - 0.16, deep - 0.16, 0.015), colour)
    if r.chance(0.65):
        round_ = r.chance(0.3)
        length = 1.0 if round_ else r.uniform(1.1, 1.6)
        width = 1.0 if round_ else r.uniform(0.7, 0.9)
        if plan.claim(x, y, length / 2 + 0.35, width / 2 + 0.45):
            furniture.table(b.at(x, y, name="table"), length, width, 0.74, wood, legs)
            furniture.things_on_table(b.at(x, y), length, width, 0.74)
            seat = materials.cloth(r) if r.chance(0.5) else varied(wood, r)
            for k in range(4):
                if r.chance(0.8):
                    side = -1 if k % 2 else 1
                    cx, cy = x + (0.25 if k < 2 else -0.25) * length, y + side * (width / 2 + r.uniform(0.05, 0.3))
                    furniture.chair(b.at(cx, cy, 0, -side * math.pi / 2 + r.normal(0.25), name="chair"), seat, legs)
    elif plan.claim(x, y, 0.6, 0.4):
        furniture.table(b.at(x, y, name="low table"), 1.1, 0.65, 0.4, wood, legs)
        furniture.things_on_table(b.at(x, y), 1.1, 0.65, 0.4)


def _furnish_walls(b: Builder, plan: Plan, walls: list[Wall], height: float, wood: Material, legs: Material) -> None:
    """Shelves, a sofa, a desk, cabinets, plants and lamps along the walls where there is room."""
    r = b.random

    def place(width: float, depth: float, tall: float, name: str, build: Callable[[Builder], None]) -> None:
        for _ in range(24):
            w = r.choice(walls)
            if w.length <= width + 0.2:
                continue
            along = r.uniform(width / 2 + 0.06, w.length - width / 2 - 0.06)
            if w.free(along, width / 2 + 0.25, 0.0, tall) and plan.claim_at(w, along, width, depth):
                build(w.mount(along, 0.0, name).at(0.02, 0))
                return

    shelf, tall = r.uniform(0.8, 1.3), min(r.uniform(1.4, 2.2), height - 0.2)
    width = r.uniform(1.4, 2.0)
    cover = materials.cloth(r)
    if r.chance(0.7):
        place(width + 0.36, 0.95, 0.8, "sofa", lambda p: furniture.sofa(p, width, cover))
    place(shelf, 0.34, tall, "shelf", lambda p: furniture.bookshelf(p, shelf, tall, r.integer(3, 5), wood))
    if r.chance(0.6):

        def desk(p: Builder) -> None:
            furniture.desk(p, varied(wood, r), legs)
            furniture.chair(p.at(0.95, 0, 0, math.pi + r.normal(0.3), name="chair"), cover, legs)

        place(1.5, 1.3, 0.8, "desk", desk)
    for _ in range(r.integer(1, 2)):
        size, high = r.uniform(0.6, 1.5), r.uniform(0.6, 1.0)
        place(size, 0.5, high, "cabinet", lambda p, s=size, h=high: furniture.cabinet(p, s, h, varied(wood, r)))
    for _ in range(r.integer(1, 2)):
        high = r.uniform(0.9, 1.7)
        place(0.5, 0.5, 0.8, "plant", lambda p, h=high: furniture.plant(p.at(0.25, 0), h))
    if r.chance(0.6):
        place(0.45, 0.45, 1.7, "floor lamp", lambda p: furniture.floor_lamp(p.at(0.22, 0), WARM, r.uniform(0.5, 1.0)))
    for _ in range(r.integer(0, 3)):
        size = (r.uniform(0.25, 0.45), r.uniform(0.25, 0.5), r.uniform(0.2, 0.4))
        place(0.5, 0.5, 0.5, "box", lambda p, s=size: furniture.cardboard_box(p.at(0.25, 0, 0, r.normal(0.2)), s))
    if r.chance(0.5):
        place(0.32, 0.32, 0.5, "bin", lambda p: furniture.bin_(p.at(0.16, 0)))


def _decorate(b: Builder, walls: list[Wall], height: float) -> None:
    """Posters, paintings and a clock where walls are bare."""
    r = b.random
    for w in walls:
        at = r.uniform(0.4, 0.9)
        while at < w.length - 0.5:
            width = r.uniform(0.4, 0.9)
            tall = width * r.uniform(0.75, 1.4)
            z = min(r.uniform(1.5, 1.7), height - tall / 2 - 0.15)
            along = at + width / 2
            if (
                along + width / 2 < w.length - 0.15
                and w.free(along, width / 2 + 0.3, z - tall / 2, z + tall / 2)
                and r.chance(0.75)
            ):
                if r.chance(0.15):
                    face = materials.picture(b.picture(pictures.clock(r)))
                    place = w.mount(along, z + 0.25, "clock", solid=False)
                    place.cylinder((0.02, 0, 0), 0.16, 0.04, furniture.DARK, axis="x", faces={"+z": face})
                else:
                    image = materials.picture(b.picture(pictures.poster(r, width / tall)))
                    furniture.frame(w.mount(along, z, "picture"), width, tall, image, materials.wood(r))
            at += width + r.uniform(0.4, 1.2)


def corridor(seed: int) -> Scene:
    """A corridor of 12 to 22 m with doors, numbers, lamps, benches and a window at its end."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(6, 11), r.uniform(0.95, 1.5), r.uniform(2.5, 2.9)
    sky, ambient, sun = daytime(r, azimuth=r.choice([0.0, math.pi]))
    paint, lower = materials.plaster(r), materials.plaster(r, r.colour((0.1, 0.45), (0.4, 0.7)))
    trim = varied(WHITE, r, 0.05) if r.chance(0.5) else materials.metal(r, hsv(r.uniform(), 0.3, 0.5))
    wainscot = (r.uniform(0.9, 1.2), lower) if r.chance(0.7) else None
    end_wall = materials.brick(r) if r.chance(0.5) else varied(paint, r)
    b.box(
        (0, 0, -0.1),
        (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2),
        r.choice([materials.tiles, materials.floor])(r),
        name="floor",
        anchored=True,
    )
    tiles = Material(
        a=(0.78, 0.78, 0.76), b=(0.72, 0.72, 0.7), joint=(0.45, 0.45, 0.45), cell=(0.6, 0.6), joint_width=0.018,
        noise=0.05, frequency=(9, 9),
    )  # fmt: skip
    b.box((0, 0, height + 0.1), (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2), tiles, name="ceiling", anchored=True)
    walls = []
    step = r.uniform(2.6, 3.6)
    for i, (start, end) in enumerate(_corners(half_x, half_y)):
        length = math.dist(start, end)
        openings = []
        if i % 2 == 0:
            at = r.uniform(0.8, 1.6)
            while at + 1.8 < length:
                if r.chance(0.2):
                    openings.append(Opening(at, at + 1.3, 0.9, 2.1, "window"))
                elif r.chance(0.85):
                    openings.append(Opening(at, at + 0.92, 0.0, 2.05, "door"))
                at += step
        elif r.chance(0.8):
            openings.append(Opening(length / 2 - 0.55, length / 2 + 0.55, 0.9, 2.2, "window"))
        walls.append(
            wall(
                b,
                start,
                end,
                height,
                openings,
                paint if i % 2 == 0 else end_wall,
                paint,
                wainscot if i % 2 == 0 else None,
            )
        )
        skirting(walls[-1], trim)
    number = 100 * r.integer(1, 4)
    plan = Plan(half_x, half_y, [])
    leaf = r.choice([materials.wood, lambda r: materials.plaster(r, r.colour((0.2, 0.6), (0.3, 0.7)))])(r)
    ground, ink = r.choice(
        [
            ((0.05, 0.12, 0.3), (0.9, 0.9, 0.9)),
            ((0.85, 0.85, 0.82), (0.05, 0.05, 0.06)),
            ((0.02, 0.2, 0.09), (0.9, 0.9, 0.85)),
        ]
    )
    for w in walls:
        for o in w.openings:
            if o.use == "door":
                number += 1
                door(w, o, leaf, trim)
                plan.claim_at(w, o.middle, 1.0, 0.3)
                if o.end + 0.35 < w.length:
                    sign(w, o.end + 0.25, 1.55, str(number), 0.22, 0.14, ground, ink)
            else:
                window(w, o, trim, r.uniform(0.9, 1.4), (0.85, 0.93, 1.0))
    for w in (walls[0], walls[2]):
        at = 0.7
        while at < w.length - 0.7:
            thing = r.integer(0, 5)
            if thing == 0 and w.free(at, 0.4, 0, 1.3) and plan.claim_at(w, at, 0.3, 0.2):
                furniture.extinguisher(w.mount(at, 0, "extinguisher"))
                sign(w, at, 1.5, "FIRE", 0.2, 0.12, (0.6, 0.03, 0.02), (0.95, 0.95, 0.95))
            elif thing == 1 and half_y > 1.15 and w.free(at, 0.7, 0, 1.0) and plan.claim_at(w, at, 1.2, 0.4):
                top = materials.wood(r)
                furniture.table(
                    w.mount(at, 0, "bench").at(0.22, 0, 0, math.pi / 2), 1.15, 0.36, 0.44, top, materials.metal(r)
                )
            elif thing == 2 and w.free(at, 0.3, 0, 1.0) and plan.claim_at(w, at, 0.4, 0.4):
                furniture.plant(w.mount(at, 0, "plant").at(0.22, 0), r.uniform(0.9, 1.5))
            elif thing in (3, 4) and w.free(at, 0.6, 1.0, 2.1):
                wide = r.uniform(0.5, 0.85)
                tall = wide * r.uniform(0.7, 1.3)
                image = materials.picture(b.picture(pictures.poster(r, wide / tall)))
                furniture.frame(w.mount(at, 1.55, "picture"), wide, tall, image, materials.wood(r))
            elif thing == 5 and w.free(at, 0.3, 0, 0.6) and plan.claim_at(w, at, 0.34, 0.34):
                furniture.bin_(w.mount(at, 0, "bin").at(0.18, 0))
            at += r.uniform(0.9, 1.8)
    count = max(3, round(2 * half_x / r.uniform(2.4, 3.2)))
    colour = COOL if r.chance(0.7) else WARM
    for i in range(count):
        x = -half_x + (i + 0.5) * 2 * half_x / count
        furniture.ceiling_panel(
            b.at(x, 0, name="lamp", solid=False),
            height,
            1.1,
            0.28,
            colour,
            0.0 if r.chance(0.1) else r.uniform(0.7, 1.1),
        )
    outside(b, half_x, half_y, sun)
    return Scene.build(b, "corridor", seed, ambient=ambient, sky=sky, key=r.uniform(0.54, 0.64),
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip


def warehouse(seed: int) -> Scene:
    """A hall of about 22 x 14 m: racks with loads, pallets, pillars, gates, painted lanes."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(9, 13), r.uniform(6, 8), r.uniform(5.0, 6.5)
    sky, ambient, sun = daytime(r, azimuth=r.choice([0.5, -0.5]) * math.pi)
    b.box(
        (0, 0, -0.1),
        (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2),
        materials.concrete(r, slab=4.0),
        name="floor",
        anchored=True,
    )
    b.box(
        (0, 0, height + 0.1),
        (2 * half_x + 0.36, 2 * half_y + 0.36, 0.2),
        materials.sheet(r),
        name="ceiling",
        anchored=True,
    )
    siding, base = (
        materials.sheet(r),
        (r.uniform(1.0, 2.2), materials.brick(r) if r.chance(0.6) else materials.concrete(r)),
    )
    walls: list[Wall] = []
    for i, (start, end) in enumerate(_corners(half_x, half_y)):
        length = math.dist(start, end)
        openings = []
        if i == 0 or (i == 2 and r.chance(0.5)):
            count = r.integer(2, 3)
            for k in range(count):
                middle = length * (k + 0.5) / count
                openings.append(Opening(middle - 1.6, middle + 1.6, 0.0, 3.4, "gate"))
        elif i % 2:
            openings.append(Opening(1.0, 1.95, 0.0, 2.1, "door"))
            for k in range(3):
                middle = length * (k + 0.5) / 3
                openings.append(Opening(middle - 1.0, middle + 1.0, height - 1.9, height - 0.8, "window"))
        walls.append(wall(b, start, end, height, openings, siding, siding, base))
    trim, plan = materials.metal(r, r.colour((0.3, 0.7), (0.2, 0.6))), Plan(half_x - 0.2, half_y - 0.2, [])
    for k, w in enumerate(walls):
        for j, o in enumerate(w.openings):
            if o.use == "gate":
                gate(w, o, trim, r.uniform(0.9, 1.4), (0.85, 0.93, 1.0), r.choice([0.05, 0.05, 0.5, 1.0]))
                plan.claim_at(w, o.middle, 3.6, 2.5)
                sign(w, o.middle, 4.1, f"GATE {4 * k + j + 1}", 1.6, 0.45, (0.02, 0.1, 0.3), (0.9, 0.9, 0.9))
            elif o.use == "door":
                door(w, o, materials.metal(r, (0.12, 0.3, 0.2)), trim)
                plan.claim_at(w, o.middle, 1.2, 1.5)
                sign(w, o.middle, 2.35, "EXIT", 0.6, 0.26, (0.01, 0.3, 0.1), (0.95, 0.95, 0.95))
            else:
                window(w, o, trim, r.uniform(0.9, 1.4), (0.85, 0.93, 1.0))
    frame_colour = materials.metal(r, r.choice([(0.02, 0.1, 0.4), (0.05, 0.25, 0.12), (0.1, 0.1, 0.12)]))
    beam_colour = materials.metal(r, r.choice([(0.75, 0.22, 0.02), (0.7, 0.45, 0.02), (0.5, 0.5, 0.52)]))
    yellow = Material(a=(0.75, 0.52, 0.03), b=(0.6, 0.42, 0.04), noise=0.2, blend=0.5, frequency=(3, 3))
    # Racks stand in rows along x, with lanes between them.
    bays = int((2 * half_x - 6.0) // 2.8)
    rows = [-0.05 * half_y, half_y - 1.0] if half_y < 6.8 else [-0.2 * half_y, 0.38 * half_y, half_y - 0.7]
    left = -bays * 1.4
    for number, y in enumerate(rows):
        if not plan.claim(0.0, y, bays * 1.4 + 0.1, 0.6):
            continue
        for bay in range(bays + 1):
            x = left + 2.8 * bay
            rack = b.at(x, y, name="rack")
            for side in (-0.5, 0.5):
                rack.box((0, side, 1.8), (0.1, 0.09, 3.6), frame_colour)
            for z in (0.6, 1.7, 2.8):
                rack.box((0, 0, z), (0.05, 1.0, 0.05), frame_colour)
            tag = materials.picture(
                b.picture(pictures.sign(f"{'ABC'[number]}{bay + 1}", (0.8, 0.55, 0.03), (0.03, 0.03, 0.03), 1.0))
            )
            rack.box((0, -0.553, 1.5), (0.22, 0.012, 0.22), WHITE, faces={"-y": tag})
            if bay == bays:
                break
            for level in (1.25, 2.5):
                for side in (-0.48, 0.48):
                    rack.box((1.4, side, level), (2.7, 0.05, 0.12), beam_colour)
                rack.box((1.4, 0, level + 0.06), (2.7, 0.94, 0.03), materials.wood(r))
            for level in (0.0, 1.335, 2.585):
                for slot in (-0.66, 0.66):
                    if r.chance(0.72):
                        furniture.load(
                            b.at(x + 1.4 + slot + r.normal(0.02), y, level, r.normal(0.015), name="load"),
                            r.uniform(0.4, 0.85),
                        )
        for side in (-0.85, 0.85):
            b.box((0, y + side, 0.0015), (bays * 2.8, 0.1, 0.003), yellow, name="line", solid=False)
    for _ in range(r.integer(5, 9)):
        x, y = r.uniform(-half_x + 1, half_x - 1), r.uniform(-half_y + 1, half_y - 1)
        if plan.claim(x, y, 0.75, 0.75, margin=0.7):
            furniture.load(b.at(x, y, 0, r.uniform(0, 3.1), name="load"), r.uniform(0.3, 1.5))
    for _ in range(r.integer(2, 5)):
        x, y = r.uniform(-half_x + 1, half_x - 1), r.uniform(-half_y + 1, half_y - 1)
        if plan.claim(x, y, 0.2, 0.2, margin=0.5):
            furniture.cone(b.at(x, y, name="cone"))
    stripes = Material(a=(0.8, 0.55, 0.02), b=(0.03, 0.03, 0.03), pattern="checks", cell=(1e3, 0.2))
    for x in (-half_x * 0.5, half_x * 0.5):
        for y in (-half_y + 3.4,):
            if plan.claim(x, y, 0.25, 0.25):
                pillar = b.at(x, y, name="pillar")
                pillar.box((0, 0, height / 2), (0.4, 0.4, height), materials.concrete(r))
                pillar.box((0, 0, 0.6), (0.43, 0.43, 1.2), stripes)
    for x in (-0.72 * half_x, -0.24 * half_x, 0.24 * half_x, 0.72 * half_x):
        b.box((x, 0, height - 0.15), (0.2, 2 * half_y, 0.3), trim, name="beam", solid=False)
        for y in (-0.55 * half_y, 0.1 * half_y, 0.7 * half_y):
            lamp = b.at(x, y, name="lamp", solid=False)
            lamp.cylinder((0, 0, height - 0.45), 0.02, 0.4, furniture.DARK, casts=False)
            lamp.cylinder((0, 0, height - 0.68), 0.26, 0.14, furniture.DARK, casts=False)
            lamp.cylinder((0, 0, height - 0.75), 0.23, 0.03, materials.lamp(COOL, 1.0), casts=False)
            lamp.light((0, 0, height - 0.8), COOL, r.uniform(4.0, 6.0), normal=(0, 0, -1), size=(0.25, 0.25))
    outside(b, half_x, half_y, sun)
    return Scene.build(b, "warehouse", seed, ambient=ambient, sky=sky, key=r.uniform(0.52, 0.62), texel_budget=70_000,
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip


KINDS: dict[str, Callable[[int], Scene]] = {"room": room, "corridor": corridor, "warehouse": warehouse}


def make_scene(kind: str, seed: int) -> Scene:
    """The world of a kind and a seed: always the same one, on every machine, whatever was drawn before.

    Args:
        kind: "room", "corridor" or "warehouse".
        seed: a whole number; `splits` says which are for training, validation, tests and demos.

    Raises:
        ValueError: for a kind that does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no kind of scene {kind!r}. Choose one of {', '.join(KINDS)}.")
    return KINDS[kind](int(seed))
