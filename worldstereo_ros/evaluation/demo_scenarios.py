"""Scenarios of the demo: observed views, a path to imagine, and ground truth.

A scenario comes from a procedural world, a posed RGB-D sequence, or a bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.depth_units import parse_depth_unit
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.views import View
from worldstereo_ros.scenes.raytracing.render import render_scene, render_view
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices

MAX_WIDTH_PX = 640


@dataclass(frozen=True)
class DemoScenario:
    """Observed views and the path to imagine.

    Attributes:
        title: one line of text.
        observed_views: views with depth, in order.
        path: (F, 4, 4) world_from_camera of the views to imagine.
        truth: (H, W, 3) uint8 for each pose of `path`; None if unavailable.
    """

    title: str
    observed_views: Sequence[View]
    path: np.ndarray
    truth: Sequence[np.ndarray] | None


def scene_scenario(
    kind: str, seed: int, views: int, *, observed_count: int = 10, width: int = 640, height: int = 480
) -> DemoScenario:
    """A robot drives through a procedural world; the scenario's path is the rest of its way.

    Args:
        kind: one of `scenes.KINDS`.
        seed: random seed of the world.
        views: poses of the path.
        observed_count: number of observed views.
        width, height: pixels.

    Raises:
        InputError: the kind is unknown.
    """
    from worldstereo_ros.scenes import make_path, make_scene, seed_of

    scene = make_scene(kind, seed_of("demo", seed))
    camera = Camera.from_fov(width, height, np.radians(75))
    drive = make_path(scene, "ground", 240, seed_of("demo", seed))
    observed = [render_view(scene, camera, pose) for pose in interpolate_poses(drive[:120], observed_count)]
    path = interpolate_poses(drive[110:], views)
    truth = list(render_scene(scene, camera, path).image.cpu().numpy())
    return DemoScenario(
        f"a procedural {kind}, seed {seed}: {observed_count} observed views, {views} views to imagine",
        observed,
        path,
        truth,
    )


def sequence_scenario(folder: Path, views: int, *, observed_count: int = 12, depth_unit: str = "auto") -> DemoScenario:
    """Evenly spaced frames of a posed RGB-D sequence are observed, frames between them are imagined.

    Args:
        folder: the sequence.
        views: poses of the path.
        observed_count: number of observed views.
        depth_unit: see `geometry.depth_units.parse_depth_unit`.

    Raises:
        InputError: the sequence has no depth, no poses, or too few frames, or its unit is arbitrary.
    """
    from worldstereo_ros.io.datasets import open_sequence

    sequence = open_sequence(folder)
    if (metres_per_count := parse_depth_unit(depth_unit)) is not None:
        sequence = replace(sequence, depth_scale=1 / metres_per_count)
    if not (sequence.has_depth and sequence.posed):
        raise InputError(f"{folder} has no depth or no poses; the demo needs a posed RGB-D sequence.")
    if not sequence.metric:
        raise InputError(
            f"The unit of {folder} is arbitrary (`metric` is false), and the lengths of ROS messages are metres. Scale "
            "its poses and depth to metres, or use `worldstereo imagine`, which needs no ROS."
        )
    return _held_out(folder.name, list(range(len(sequence))), lambda i: sequence[i], views, observed_count)


def bag_scenario(bag: Path, views: int, *, observed_count: int = 12, **options: Any) -> DemoScenario:
    """The same as `sequence_scenario` for the RGB-D frames of a bag; `options` are those of `io.bags.views.read_views`.

    Raises:
        BagError: see `read_views`.
        InputError: the bag has too few frames, or an option is invalid.
    """
    from worldstereo_ros.io.bags.views import read_views

    frames = list(read_views(bag, **options))
    return _held_out(bag.name, list(range(len(frames))), lambda i: frames[i], views, observed_count)


def _held_out(name: str, frames: list[int], load, views: int, observed_count: int) -> DemoScenario:
    if len(frames) < 4:
        raise InputError(f"{name} has {len(frames)} frames; the demo needs at least 4.")
    observed = evenly_spaced_indices(len(frames), min(observed_count, len(frames) // 2))
    others = [i for i in frames if i not in observed]
    targets = [others[i] for i in evenly_spaced_indices(len(others), views)]
    truth = [_limit_width(load(i)) for i in targets]
    return DemoScenario(
        f"{name}: {len(observed)} of {len(frames)} frames observed, {len(targets)} others to imagine",
        [_limit_width(load(i)) for i in observed],
        np.stack([view.world_from_camera for view in truth]),
        [view.image for view in truth],
    )


def _limit_width(view: View) -> View:
    """The view, scaled down to at most `MAX_WIDTH_PX`."""
    camera = view.camera
    if camera.width <= MAX_WIDTH_PX:
        return view
    return view.resized(MAX_WIDTH_PX, round(camera.height * MAX_WIDTH_PX / camera.width))
