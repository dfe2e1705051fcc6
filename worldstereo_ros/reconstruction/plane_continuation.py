"""Planes of observed depth that continue into estimated depth: walls, floors and tables have few holes.

A depth network bends what is flat: of four photographs of a procedural world, two fifths of the estimated pixels were
within 5 % of the truth, and two thirds with planes. Where the observed points of a photograph and of those that
overlap it lie on a plane, the plane is the better guess for the pixels beside them, as long as it is not too far from
the estimate; where several planes are in question, the one nearest to it. What is continued remains estimated.

Planes are found by RANSAC (Fischler and Bolles 1981): triples of neighbouring points of one photograph, the one with
the most points on it first, refitted by least squares. Distances are relative to those from the cameras, so that the
unit of length does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.views import View

POINTS = 6000  # of all views
MAX_PLANES = 10
TRIALS = 1500
REACH = 0.15  # of the image's width, within which the points of a triple lie
TOLERANCE = 0.01  # distance of a point from its plane, relative to that from the camera; observed depth errs less
MIN_SHARE = 0.03  # of all points, on a plane
MIN_POINTS = 60
MIN_SLOPE = 0.1  # sine of the angle between a plane and the line of sight: 6 degrees
REFITS = 3
ON_PLANE = 0.015  # of the logarithm of depth, for observed pixels
MAX_CHANGE = 0.4  # of the logarithm of depth, by which an estimate may be replaced
MIN_SEEDS = 50  # observed pixels on the plane that an area of estimated ones adjoins
# How often depth that was continued is within a factor of 1.25 of the truth, by how much it changed an estimate: a line
# and a lower bound, measured in worlds of the validation split (`scripts/plane_continuation_figures.py`).
RIGHT_WITHOUT_CHANGE, RIGHT_PER_CHANGE, LEAST_RIGHT = 0.97, -1.25, 0.74


class Plane(NamedTuple):
    """normal . x = offset, world frame; `normal` is (3,) and of unit length."""

    normal: np.ndarray
    offset: float


def find_planes(observed: Iterable[tuple[View, np.ndarray]], seed: int = 0) -> list[Plane]:
    """Finds planes of observed points, the one with the most points first.

    Args:
        observed: views, each with its observed depth (H, W); 0 = unknown.
        seed: of the trials; equal seeds give equal planes.
    """
    random = np.random.default_rng(seed)
    parts = [part for view, depth in observed if len((part := _points(view, depth))[0])]
    if not parts:
        return []
    points, pixels, depth, sight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    photograph = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    chosen = np.sort(random.permutation(len(points))[:POINTS])
    points, pixels, tolerance = points[chosen], pixels[chosen], TOLERANCE * depth[chosen]
    normals, offsets = _trials(points, pixels, photograph[chosen], sight[chosen], random)
    # As numbers, since products of booleans are thirty times slower.
    on_trial = (np.abs(normals @ points.T - offsets[:, None]) < tolerance).astype(np.float32)
    rest = np.ones(len(points), bool)
    least = max(MIN_POINTS, MIN_SHARE * len(points))
    planes: list[Plane] = []
    while len(planes) < MAX_PLANES and len(normals):
        on_plane = (on_trial[int((on_trial @ rest.astype(np.float32)).argmax())] > 0) & rest
        for _ in range(REFITS):
            if on_plane.sum() < least:
                return planes
            plane = _fit(points[on_plane])
            distance = np.abs(points @ plane.normal - plane.offset)
            on_plane = rest & (distance < tolerance)
        planes.append(plane)
        rest &= distance >= 1.5 * tolerance
    return planes


def continue_planes(
    view: View, observed: np.ndarray, completed: np.ndarray, planes: Iterable[Plane]
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces estimated depth by that of planes whose observed part it adjoins.

    Args:
        view: the photograph.
        observed: (H, W) depth along the optical axis, 0 = unknown.
        completed: (H, W) the same with estimates, 0 = unknown.
        planes: of `find_planes`.

    Returns:
        (depth (H, W) float32, in which observed pixels and those that are unknown in `completed` are unchanged; its
        confidence (H, W) float32, the probability that it is within a factor of 1.25 of the truth, 0 where no plane
        continues).
    """
    known, estimated = observed > 0, (observed <= 0) & (completed > 0)
    logarithm = np.log(np.where(completed > 0, completed, 1))
    out, nearest = completed.astype(np.float32), np.full(completed.shape, np.inf)
    directions = view.camera.rays() @ view.world_from_camera[:3, :3].T
    for normal, offset in planes:
        across = directions @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (offset - normal @ view.world_from_camera[:3, 3]) / across
        ahead = np.isfinite(depth) & (depth > 0)
        change = np.where(ahead, np.abs(np.log(np.where(ahead, depth, 1)) - logarithm), np.inf)
        seeds = known & (change < ON_PLANE)
        count, areas = cv2.connectedComponents((seeds | (estimated & (change < MAX_CHANGE))).astype(np.uint8))
        adjoins = np.bincount(areas[seeds], minlength=count) >= MIN_SEEDS
        adjoins[0] = False  # what is in no area
        chosen = adjoins[areas] & estimated & (change < nearest)
        out[chosen], nearest[chosen] = depth[chosen], change[chosen]
    continued = np.isfinite(nearest)
    right = RIGHT_WITHOUT_CHANGE + RIGHT_PER_CHANGE * np.where(continued, nearest, 0)
    confidence = np.where(continued, np.maximum(right, LEAST_RIGHT), 0)
    return out, confidence.astype(np.float32)


def _points(view: View, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3) in the world frame, their pixels (N, 2) in widths of the image, depth (N,), and sight (N, 3)."""
    rows, columns = np.nonzero(depth > 0)
    points = unproject(depth, view.camera, view.world_from_camera)[rows, columns].astype(np.float64)
    sight = points - view.world_from_camera[:3, 3]
    sight /= np.maximum(np.linalg.norm(sight, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    pixels = np.stack([columns, rows], axis=1) / view.camera.width
    return points, pixels, depth[rows, columns].astype(np.float64), sight


def _trials(
    points: np.ndarray, pixels: np.ndarray, photograph: np.ndarray, sight: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Planes through triples of neighbouring points of a photograph: normals (T, 3) and offsets (T,)."""
    columns, rows = np.ascontiguousarray(pixels.T)
    triples = []
    for first in random.integers(0, len(points), TRIALS):
        beside = (np.abs(columns - columns[first]) < REACH) & (np.abs(rows - rows[first]) < REACH)
        near = np.flatnonzero(beside & (photograph == photograph[first]))
        triples.append([first, *near[random.integers(0, len(near), 2)]])
    corners = points[np.array(triples)]
    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normals = np.cross(one, other)
    lengths = np.linalg.norm(normals, axis=1)
    spread = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    normals /= np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    seen = np.abs((normals * sight[np.array(triples)[:, 0]]).sum(axis=1)) > MIN_SLOPE
    usable = seen & (lengths > 1e-3 * spread)  # the others lie on a line
    return normals[usable], (normals * corners[:, 0]).sum(axis=1)[usable]


def _fit(points: np.ndarray) -> Plane:
    """Least squares."""
    centre = points.mean(axis=0)
    normal = np.linalg.eigh((points - centre).T @ (points - centre))[1][:, 0]
    return Plane(normal, float(normal @ centre))
