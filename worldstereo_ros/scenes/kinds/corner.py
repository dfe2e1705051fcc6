"""A corridor with a corner behind which something stands: the world of `worldstereo demo --drive`.

It is no kind of `KINDS`, from whose order and number the worlds of training and evaluation follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.scenes.objects import furniture, materials, posters
from worldstereo_ros.scenes.objects.building import (
    WALL_THICKNESS_M,
    Opening,
    Wall,
    add_skirting,
    add_surroundings,
    door,
    draw_daylight,
    sign,
    wall,
    window,
)
from worldstereo_ros.scenes.objects.furniture import WHITE
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material, varied
from worldstereo_ros.scenes.raytracing.scene import Scene

FIRST_LEG_M, SECOND_LEG_M, HALF_WIDTH_M = 6.2, 7.6, 1.15  # up to the corner, and from there on
BACK_M = 0.9  # of the first leg, behind the start
DOOR_M = 0.92

Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class CornerWorld:
    """The world, and the way through it.

    Attributes:
        scene: the world; the floor is at z = 0.
        route: (N, 2) corners of the way through the middle, metres: start, corner, end.
        inner_corner: (2,) where the walls meet that hide the second leg.
        obstacle: (2,) middle of what stands in the way behind the corner.
    """

    scene: Scene
    route: np.ndarray
    inner_corner: np.ndarray
    obstacle: np.ndarray


def corner_world(seed: int) -> CornerWorld:
    """Creates a corridor of two legs at a right angle, to the left or to the right, with a stack of boxes behind it.

    Args:
        seed: an integer; `splits.seed_of` gives those for demos.
    """
    b = Builder(seed)
    r = b.random
    side = r.choice([-1.0, 1.0])  # 1 = to the left
    half, height = HALF_WIDTH_M, r.uniform(2.5, 2.8)
    extent_x, extent_y = BACK_M + FIRST_LEG_M + half, half + SECOND_LEG_M
    origin = np.array([BACK_M - 0.5 * extent_x, side * (half - 0.5 * extent_y)])  # of the start: bounds are centred

    def at(x: float, y: float) -> tuple[float, float]:
        """World (x, y) of a point in a frame whose origin is the start and whose second leg goes to +y."""
        return float(origin[0] + x), float(origin[1] + side * y)

    sky, ambient, sun = draw_daylight(r, azimuth=side * math.pi / 2)
    walls = _walls(b, at, side, height)
    _lamps(b, at, height)
    obstacle = np.array(at(FIRST_LEG_M - r.uniform(0.3, 0.42), r.uniform(2.4, 2.8)))
    _boxes(b, obstacle)
    _things(walls)
    add_surroundings(b, 0.5 * extent_x, 0.5 * extent_y, sun)
    bounds = ((-0.5 * extent_x, -0.5 * extent_y, 0.0), (0.5 * extent_x, 0.5 * extent_y, height))
    scene = Scene.build(b, "corridor", seed, ambient=ambient, sky=sky, key=r.uniform(0.56, 0.64), bounds=bounds)
    route = np.array([at(0, 0), at(FIRST_LEG_M, 0), at(FIRST_LEG_M, SECOND_LEG_M - 1.2)])
    return CornerWorld(scene, route, np.array(at(FIRST_LEG_M - half, half)), obstacle)


def _walls(b: Builder, at: Place, side: float, height: float) -> list[Wall]:
    """Floor, ceiling and walls, with doors along them and a window at the end of each leg."""
    r = b.random
    half, far = HALF_WIDTH_M, FIRST_LEG_M + HALF_WIDTH_M
    paint, lower = materials.plaster(r), materials.plaster(r, r.colour((0.15, 0.5), (0.35, 0.6)))
    trim = varied(WHITE, r, 0.05)
    wainscot = (r.uniform(0.95, 1.15), lower)
    ground = r.choice([materials.tiles, materials.floor])(r)
    ceiling = Material(
        a=(0.78, 0.78, 0.76), b=(0.72, 0.72, 0.7), joint=(0.45, 0.45, 0.45), cell=(0.6, 0.6), joint_width=0.018,
        noise=0.05, frequency=(9, 9),
    )  # fmt: skip
    edge = WALL_THICKNESS_M
    legs = (-BACK_M - edge, -half - edge, far + edge, half), (far - 2 * half, half, far + edge, SECOND_LEG_M)
    for x0, y0, x1, y1 in legs:
        (left, low), (right, high) = at(x0, y0), at(x1, y1)
        middle, size = (0.5 * (left + right), 0.5 * (low + high)), (abs(right - left), abs(high - low))
        b.box((*middle, -0.1), (*size, 0.2), ground, name="floor", anchored=True)
        b.box((*middle, height + 0.1), (*size, 0.2), ceiling, name="ceiling", anchored=True)
    # The corridor on the left of each wall. At the inner corner walls end a thickness earlier, since each is built
    # that much longer.
    corners = [
        ((-BACK_M, -half), (far, -half)),
        ((far, -half), (far, SECOND_LEG_M)),
        ((far, SECOND_LEG_M), (far - 2 * half, SECOND_LEG_M)),
        ((far - 2 * half, SECOND_LEG_M), (far - 2 * half, half + edge)),
        ((far - 2 * half - edge, half), (-BACK_M, half)),
        ((-BACK_M, half), (-BACK_M, -half)),
    ]
    leaf = r.choice([materials.wood, lambda r: materials.plaster(r, r.colour((0.2, 0.6), (0.3, 0.7)))])(r)
    walls, number = [], 100 * r.integer(1, 4)
    for index, (start, end) in enumerate(corners):
        if side < 0:
            start, end = end, start
        length = math.dist(start, end)
        openings = []
        if index in (2, 5):
            openings.append(Opening(length / 2 - 0.55, length / 2 + 0.55, 0.9, 2.15, "window"))
        else:
            place = r.uniform(0.7, 1.3)
            while place + DOOR_M + 0.5 < length:
                if r.chance(0.8):
                    openings.append(Opening(place, place + DOOR_M, 0.0, 2.05, "door"))
                place += r.uniform(2.1, 2.7)
        built = wall(b, at(*start), at(*end), height, openings, paint, paint, wainscot if index not in (2, 5) else None)
        add_skirting(built, trim)
        for opening in openings:
            if opening.kind == "window":
                window(built, opening, trim, r.uniform(0.9, 1.3), (0.85, 0.93, 1.0))
                continue
            number += 1
            door(built, opening, leaf, trim)
            if opening.end + 0.4 < length:
                sign(built, opening.end + 0.25, 1.55, str(number), 0.22, 0.14, (0.05, 0.12, 0.3), (0.9, 0.9, 0.9))
        walls.append(built)
    return walls


def _lamps(b: Builder, at: Place, height: float) -> None:
    for x, y in ((0.6, 0), (3.2, 0), (5.6, 0), (FIRST_LEG_M, 1.9), (FIRST_LEG_M, 5.2)):
        place = b.at(*at(x, y), name="lamp", solid=False)
        furniture.ceiling_panel(place, height, 1.1, 0.28, materials.COOL, b.random.uniform(0.8, 1.1))


def _boxes(b: Builder, place: np.ndarray) -> None:
    """A stack of two cardboard boxes."""
    r = b.random
    turn = r.normal(0.2)
    furniture.cardboard_box(b.at(place[0], place[1], 0, turn, name="box"), (0.55, 0.6, 0.42))
    furniture.cardboard_box(b.at(place[0] + 0.03, place[1] - 0.02, 0.42, turn + 0.3, name="box"), (0.4, 0.42, 0.3))


def _things(walls: list[Wall]) -> None:
    """Pictures, extinguishers and plants along the walls, where there is room."""
    for w in walls:
        b, r = w.builder, w.builder.random
        place = 0.5
        while place < w.length - 0.6:
            thing = r.integer(0, 3)
            if thing == 0 and w.is_free(place, 0.3, 0, 1.3):
                furniture.extinguisher(w.mount(place, 0, "extinguisher"))
            elif thing > 0 and w.is_free(place, 0.55, 1.0, 2.1):
                wide = r.uniform(0.55, 0.85)
                tall = wide * r.uniform(0.7, 1.2)
                image = materials.image(b.add_image(posters.poster(r, wide / tall)))
                furniture.frame(w.mount(place, 1.6, "picture"), wide, tall, image, materials.wood(r))
                w.occupied.append((place - wide / 2, place + wide / 2, tall))
            place += r.uniform(0.7, 1.3)
