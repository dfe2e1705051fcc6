"""Corridors."""

from __future__ import annotations

import math

from worldstereo_ros.scenes.objects import furniture, materials, posters
from worldstereo_ros.scenes.objects.building import (
    FloorPlan,
    Opening,
    add_skirting,
    add_surroundings,
    door,
    draw_daylight,
    sign,
    wall,
    wall_corners,
    window,
)
from worldstereo_ros.scenes.objects.furniture import WHITE
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, hsv, varied
from worldstereo_ros.scenes.raytracing.scene import Scene


def corridor(seed: int) -> Scene:
    """A corridor of 12 to 22 m with doors, signs, lamps, benches and windows at its ends."""
    b = Builder(seed)
    r = b.random
    half_x, half_y, height = r.uniform(6, 11), r.uniform(0.95, 1.5), r.uniform(2.5, 2.9)
    sky, ambient, sun = draw_daylight(r, azimuth=r.choice([0.0, math.pi]))
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
    for i, (start, end) in enumerate(wall_corners(half_x, half_y)):
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
        add_skirting(walls[-1], trim)
    number = 100 * r.integer(1, 4)
    plan = FloorPlan(half_x, half_y, [])
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
            if o.kind == "door":
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
            if thing == 0 and w.is_free(at, 0.4, 0, 1.3) and plan.claim_at(w, at, 0.3, 0.2):
                furniture.extinguisher(w.mount(at, 0, "extinguisher"))
                sign(w, at, 1.5, "FIRE", 0.2, 0.12, (0.6, 0.03, 0.02), (0.95, 0.95, 0.95))
            elif thing == 1 and half_y > 1.15 and w.is_free(at, 0.7, 0, 1.0) and plan.claim_at(w, at, 1.2, 0.4):
                top = materials.wood(r)
                furniture.table(
                    w.mount(at, 0, "bench").at(0.22, 0, 0, math.pi / 2), 1.15, 0.36, 0.44, top, materials.metal(r)
                )
            elif thing == 2 and w.is_free(at, 0.3, 0, 1.0) and plan.claim_at(w, at, 0.4, 0.4):
                furniture.plant(w.mount(at, 0, "plant").at(0.22, 0), r.uniform(0.9, 1.5))
            elif thing in (3, 4) and w.is_free(at, 0.6, 1.0, 2.1):
                wide = r.uniform(0.5, 0.85)
                tall = wide * r.uniform(0.7, 1.3)
                image = materials.image(b.add_image(posters.poster(r, wide / tall)))
                furniture.frame(w.mount(at, 1.55, "picture"), wide, tall, image, materials.wood(r))
            elif thing == 5 and w.is_free(at, 0.3, 0, 0.6) and plan.claim_at(w, at, 0.34, 0.34):
                furniture.bin_(w.mount(at, 0, "bin").at(0.18, 0))
            at += r.uniform(0.9, 1.8)
    count = max(3, round(2 * half_x / r.uniform(2.4, 3.2)))
    colour = materials.COOL if r.chance(0.7) else materials.WARM
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
    add_surroundings(b, half_x, half_y, sun)
    return Scene.build(b, "corridor", seed, ambient=ambient, sky=sky, key=r.uniform(0.54, 0.64),
                       bounds=((-half_x, -half_y, 0.0), (half_x, half_y, height)))  # fmt: skip
