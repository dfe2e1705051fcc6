"""Living rooms and offices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from worldstereo_ros.scenes.objects import furniture, materials, posters
from worldstereo_ros.scenes.objects.building import (
    FloorPlan,
    Opening,
    Wall,
    add_skirting,
    add_surroundings,
    curtains,
    door,
    draw_daylight,
    wall,
    wall_corners,
    window,
)
from worldstereo_ros.scenes.objects.furniture import WHITE
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, varied
from worldstereo_ros.scenes.raytracing.scene import Scene


def room(seed: int) -> Scene:
    """A living room or office of about 5 x 4 m with furniture, windows and a door."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(2.3, 3.6), r.uniform(1.9, 3.0), r.uniform(2.45, 3.0)
    paint = materials.plaster(r)
    accent = r.choice([materials.brick, materials.panels, materials.plaster, materials.panels])(r)
    trim = varied(WHITE, r, 0.05) if r.chance(0.6) else materials.wood(r)
    wooden, legs = materials.wood(r), r.choice([materials.metal(r), materials.wood(r), furniture.DARK])
    sky, ambient, sun = draw_daylight(r, azimuth=(window_wall := r.integer(0, 3)) * math.pi / 2 - math.pi / 2)
    door_wall = (window_wall + r.integer(1, 3)) % 4
    second = (window_wall + r.choice([1, 3])) % 4

    plan = FloorPlan(half_x, half_y, [])
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
    for i, (start, end) in enumerate(wall_corners(half_x, half_y)):
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
        add_skirting(walls[-1], trim)
    leaf = varied(trim, r) if r.chance(0.5) else materials.wood(r)
    drapes = materials.cloth(r) if r.chance(0.6) else None
    for w in walls:
        for o in w.openings:
            if o.kind == "door":
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
    colour = materials.WARM if r.chance(0.6) else materials.COOL
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
    add_surroundings(b, half_x, half_y, sun)
    return Scene.build(b, "room", seed, ambient=ambient, sky=sky, key=r.uniform(0.54, 0.64),
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip


def _furnish_middle(b: Builder, plan: FloorPlan, half_x: float, half_y: float, wood: Material, legs: Material) -> None:
    """Add a rug, and a table with chairs or a low table."""
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
            furniture.tabletop_objects(b.at(x, y), length, width, 0.74)
            seat = materials.cloth(r) if r.chance(0.5) else varied(wood, r)
            for k in range(4):
                if r.chance(0.8):
                    side = -1 if k % 2 else 1
                    cx, cy = x + (0.25 if k < 2 else -0.25) * length, y + side * (width / 2 + r.uniform(0.05, 0.3))
                    furniture.chair(b.at(cx, cy, 0, -side * math.pi / 2 + r.normal(0.25), name="chair"), seat, legs)
    elif plan.claim(x, y, 0.6, 0.4):
        furniture.table(b.at(x, y, name="low table"), 1.1, 0.65, 0.4, wood, legs)
        furniture.tabletop_objects(b.at(x, y), 1.1, 0.65, 0.4)


def _furnish_walls(
    b: Builder, plan: FloorPlan, walls: list[Wall], height: float, wood: Material, legs: Material
) -> None:
    """Add shelves, a sofa, a desk, cabinets, plants and lamps along the walls where there is space."""
    r = b.random

    def place(width: float, depth: float, tall: float, name: str, build: Callable[[Builder], None]) -> None:
        for _ in range(24):
            w = r.choice(walls)
            if w.length <= width + 0.2:
                continue
            along = r.uniform(width / 2 + 0.06, w.length - width / 2 - 0.06)
            if w.is_free(along, width / 2 + 0.25, 0.0, tall) and plan.claim_at(w, along, width, depth):
                w.occupied.append((along - width / 2, along + width / 2, tall))
                build(w.mount(along, 0.0, name).at(0.02, 0))
                return

    def potted(high: float, p: Builder) -> None:
        furniture.plant(p.at(0.25, 0), high)

    def carton(size: tuple[float, float, float], p: Builder) -> None:
        furniture.cardboard_box(p.at(0.25, 0, 0, r.normal(0.2)), size)

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
        place(size, 0.5, high, "cabinet", partial(furniture.cabinet, width=size, height=high, wood=varied(wood, r)))
    for _ in range(r.integer(1, 2)):
        high = r.uniform(0.9, 1.7)
        place(0.5, 0.5, 0.8, "plant", partial(potted, high))
    if r.chance(0.6):
        power = r.uniform(0.5, 1.0)
        place(0.45, 0.45, 1.7, "floor lamp", lambda p: furniture.floor_lamp(p.at(0.22, 0), materials.WARM, power))
    for _ in range(r.integer(0, 3)):
        place(0.5, 0.5, 0.5, "box", partial(carton, (r.uniform(0.25, 0.45), r.uniform(0.25, 0.5), r.uniform(0.2, 0.4))))
    if r.chance(0.5):
        place(0.32, 0.32, 0.5, "bin", lambda p: furniture.bin_(p.at(0.16, 0)))


def _decorate(b: Builder, walls: list[Wall], height: float) -> None:
    """Add posters, paintings and clocks to free parts of the walls."""
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
                and w.is_free(along, width / 2 + 0.3, z - tall / 2, z + tall / 2)
                and r.chance(0.75)
            ):
                if r.chance(0.15):
                    face = materials.image(b.add_image(posters.clock(r)))
                    place = w.mount(along, z + 0.25, "clock", solid=False)
                    place.cylinder((0.02, 0, 0), 0.16, 0.04, furniture.DARK, axis="x", faces={"+z": face})
                else:
                    image = materials.image(b.add_image(posters.poster(r, width / tall)))
                    furniture.frame(w.mount(along, z, "picture"), width, tall, image, materials.wood(r))
            at += width + r.uniform(0.4, 1.2)
