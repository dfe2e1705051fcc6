"""Warehouses."""

from __future__ import annotations

import math

from worldstereo_ros.scenes.objects import furniture, materials, posters
from worldstereo_ros.scenes.objects.building import (
    FloorPlan,
    Opening,
    Wall,
    add_surroundings,
    door,
    draw_daylight,
    gate,
    sign,
    wall,
    wall_corners,
    window,
)
from worldstereo_ros.scenes.objects.furniture import WHITE
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material
from worldstereo_ros.scenes.raytracing.scene import Scene


def warehouse(seed: int) -> Scene:
    """A hall of about 22 x 14 m with racks, loads, pallets, pillars, gates and painted lanes."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(9, 13), r.uniform(6, 8), r.uniform(5.0, 6.5)
    sky, ambient, sun = draw_daylight(r, azimuth=r.choice([0.5, -0.5]) * math.pi)
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
    for i, (start, end) in enumerate(wall_corners(half_x, half_y)):
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
    trim, plan = materials.metal(r, r.colour((0.3, 0.7), (0.2, 0.6))), FloorPlan(half_x - 0.2, half_y - 0.2, [])
    for k, w in enumerate(walls):
        for j, o in enumerate(w.openings):
            if o.kind == "gate":
                gate(w, o, trim, r.uniform(0.9, 1.4), (0.85, 0.93, 1.0), r.choice([0.05, 0.05, 0.5, 1.0]))
                plan.claim_at(w, o.middle, 3.6, 2.5)
                sign(w, o.middle, 4.1, f"GATE {4 * k + j + 1}", 1.6, 0.45, (0.02, 0.1, 0.3), (0.9, 0.9, 0.9))
            elif o.kind == "door":
                door(w, o, materials.metal(r, (0.12, 0.3, 0.2)), trim)
                plan.claim_at(w, o.middle, 1.2, 1.5)
                sign(w, o.middle, 2.35, "EXIT", 0.6, 0.26, (0.01, 0.3, 0.1), (0.95, 0.95, 0.95))
            else:
                window(w, o, trim, r.uniform(0.9, 1.4), (0.85, 0.93, 1.0))
    frame_colour = materials.metal(r, r.choice([(0.02, 0.1, 0.4), (0.05, 0.25, 0.12), (0.1, 0.1, 0.12)]))
    beam_colour = materials.metal(r, r.choice([(0.75, 0.22, 0.02), (0.7, 0.45, 0.02), (0.5, 0.5, 0.52)]))
    yellow = Material(a=(0.75, 0.52, 0.03), b=(0.6, 0.42, 0.04), noise=0.2, blend=0.5, frequency=(3, 3))
    # Rows of racks along x with lanes between them.
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
            tag = materials.image(
                b.add_image(posters.sign(f"{'ABC'[number]}{bay + 1}", (0.8, 0.55, 0.03), (0.03, 0.03, 0.03), 1.0))
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
            lamp.cylinder((0, 0, height - 0.75), 0.23, 0.03, materials.lamp(materials.COOL, 1.0), casts=False)
            lamp.light((0, 0, height - 0.8), materials.COOL, r.uniform(4.0, 6.0), normal=(0, 0, -1), size=(0.25, 0.25))
    add_surroundings(b, half_x, half_y, sun)
    return Scene.build(b, "warehouse", seed, ambient=ambient, sky=sky, key=r.uniform(0.52, 0.62), texel_budget=70_000,
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip
