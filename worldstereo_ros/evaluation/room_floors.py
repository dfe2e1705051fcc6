"""Floors of several rooms with doors, of boxes: what of such a floor a robot has not seen decides its way."""

from __future__ import annotations

import itertools

import numpy as np

from worldstereo_ros.scenes import Scene
from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material
from worldstereo_ros.scenes.raytracing.scene import Sky

KIND = "floor"
WALL_M, HEIGHT_M = 0.16, 2.2
DOOR_M = 1.0
MORE_DOORS = 0.25  # share of the walls between rooms that have a door beyond those that connect all rooms
GREY = Material(a=(0.6, 0.6, 0.6), b=(0.5, 0.5, 0.5))


def make_floor(seed: int) -> Scene:
    """A floor of 3 x 2 or 3 x 3 rooms of 2.8 to 4.2 m with furniture.

    Doors connect all rooms along a random spanning tree; some more walls have one.
    """
    random = np.random.default_rng(seed)
    counts = (3, int(random.integers(2, 4)))
    edges = [np.concatenate([[0.0], np.cumsum(random.uniform(2.8, 4.2, count))]) for count in counts]
    edges = [edge - 0.5 * edge[-1] for edge in edges]
    (x0, x1), (y0, y1) = ((float(edge[0]), float(edge[-1])) for edge in edges)
    builder = Builder(seed)
    builder.box((0, 0, -0.1), (x1 - x0 + 0.4, y1 - y0 + 0.4, 0.2), GREY, name="floor")
    for x in (x0, x1):
        _wall(builder, (x, y0), (x, y1), [])
    for y in (y0, y1):
        _wall(builder, (x0, y), (x1, y), [])
    open_walls = _doors(random, counts)
    rooms = list(itertools.product(range(counts[0]), range(counts[1])))
    for i, j in rooms:
        for axis in (0, 1):
            other = (i + 1, j) if axis == 0 else (i, j + 1)
            if other not in rooms:
                continue
            at = float(edges[axis][(i, j)[axis] + 1])
            across = edges[1 - axis][(i, j)[1 - axis] : (i, j)[1 - axis] + 2]
            low, high = float(across[0]), float(across[1])
            doors = [float(random.uniform(low + 0.4, high - 0.4 - DOOR_M))] if ((i, j), other) in open_walls else []
            ends = ((at, low), (at, high)) if axis == 0 else ((low, at), (high, at))
            _wall(builder, *ends, doors)
    for i, j in rooms:
        _furnish(builder, random, edges[0][i : i + 2], edges[1][j : j + 2])
    return Scene.build(
        builder, KIND, seed, ambient=Ambient((1, 1, 1), (1, 1, 1), 0.3), sky=Sky(),
        bounds=((x0, y0, 0.0), (x1, y1, HEIGHT_M)),
    )  # fmt: skip


def _doors(random: np.random.Generator, counts: tuple[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of neighbouring rooms with a door between them."""
    rooms = list(itertools.product(range(counts[0]), range(counts[1])))
    pairs = [(a, b) for a in rooms for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1)) if b in rooms]
    group = {room: room for room in rooms}
    chosen = set()
    for index in random.permutation(len(pairs)):  # Kruskal's algorithm with random weights
        a, b = pairs[index]
        if group[a] != group[b]:
            old = group[b]
            group = {room: group[a] if of == old else of for room, of in group.items()}
            chosen.add((a, b))
        elif random.random() < MORE_DOORS:
            chosen.add((a, b))
    return chosen


def _wall(builder: Builder, start: tuple[float, float], end: tuple[float, float], doors: list[float]) -> None:
    """A wall along x or y with doors that begin at coordinates along it."""
    axis = 0 if start[1] == end[1] else 1
    at, half = start[1 - axis], 0.5 * WALL_M
    starts = [start[axis] - half, *(door + DOOR_M for door in doors)]
    ends = [*doors, end[axis] + half]
    for low, high in zip(starts, ends, strict=True):
        corners = np.array([[low, at - half], [high, at + half]])
        if axis == 1:
            corners = corners[:, ::-1]
        builder.span((*corners[0], 0.0), (*corners[1], HEIGHT_M), GREY, name="wall")


def _furnish(builder: Builder, random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> None:
    """Up to two boxes, one in a corner and one in the middle, away from doors."""
    if random.random() < 0.6:
        size = random.uniform(0.3, 0.6, 2)
        corner = np.array([x[random.integers(2)], y[random.integers(2)]])
        inward = np.sign(np.array([x.mean(), y.mean()]) - corner)
        centre = corner + inward * (0.5 * WALL_M + 0.5 * size)
        builder.box((*centre, 0.4), (*size, 0.8), GREY, name="cupboard")
    if random.random() < 0.6:
        size = random.uniform(0.4, 0.8, 2)
        centre = np.array([x.mean(), y.mean()]) + random.uniform(-0.3, 0.3, 2)
        builder.box((*centre, 0.35), (*size, 0.7), GREY, name="table")
