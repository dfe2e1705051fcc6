"""What the demo tells the node: what the robot saw, where it asks to look, and what is truly there.

A story comes from a procedural world, a posed RGB-D sequence, or a bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.views import View
from worldstereo_ros.scenes.raytracing.render import render_scene, render_view
from worldstereo_ros.utils.errors import InputError

LARGEST_WIDTH = 640


@dataclass(frozen=True)
class DemoScenario:
    """What was seen, and the path asked for.

    Attributes:
        title: one line for the pictures.
        observed_views: views with depth that a sensor took, in order.
        path: (F, 4, 4) world_from_camera to imagine.
        truth: (H, W, 3) uint8 what is really seen there, one a pose; None where nobody knows.
    """

    title: str
    observed_views: Sequence[View]
    path: np.ndarray
    truth: Sequence[np.ndarray] | None


def scene_scenario(
    kind: str, seed: int, views: int, *, given: int = 10, width: int = 640, height: int = 480
) -> DemoScenario:
    """A robot drives into a procedural world, looks around, and asks for the way on, where it has not been.

    Raises:
        ValueError: no such kind of world.
    """
    from worldstereo_ros.scenes import make_path, make_scene, seed_of

    scene = make_scene(kind, seed_of("demo", seed))
    camera = Camera.from_fov(width, height, np.radians(75))
    drive = make_path(scene, "ground", 240, seed_of("demo", seed))
    driven, ahead = drive[:120], drive[110:]
    seen = [render_view(scene, camera, pose) for pose in interpolate_poses(driven, given)]
    path = interpolate_poses(ahead, views)
    truth = list(render_scene(scene, camera, path).image.cpu().numpy())
    return DemoScenario(
        f"a procedural {kind}, seed {seed}: {given} views seen, {views} asked for ahead", seen, path, truth
    )


def sequence_scenario(folder: Path, views: int, *, given: int = 12) -> DemoScenario:
    """Evenly spaced frames of a posed RGB-D sequence are given, frames between them are asked for.

    Raises:
        ValueError: the sequence has no depth, no poses, or too few frames.
    """
    from worldstereo_ros.io.datasets import open_sequence

    sequence = open_sequence(folder)
    if not (sequence.has_depth and sequence.posed):
        raise InputError(f"{folder} has no depth or no poses; the demo needs a posed RGB-D sequence.")
    return _held_out(folder.name, list(range(len(sequence))), lambda i: sequence[i], views, given)


def bag_scenario(
    bag: Path,
    views: int,
    *,
    given: int = 12,
    image_topic: str = "",
    depth_topic: str = "",
    camera_info_topic: str = "",
    pose_topic: str = "",
) -> DemoScenario:
    """As `sequence_scenario`, from the RGB-D frames of a bag. The topics are those of `bags.read_views`."""
    from worldstereo_ros.io.bags.views import read_views

    frames = list(
        read_views(
            bag, image_topic, depth_topic=depth_topic, camera_info_topic=camera_info_topic, pose_topic=pose_topic
        )
    )
    return _held_out(bag.name, list(range(len(frames))), lambda i: frames[i], views, given)


def _held_out(name: str, frames: list[int], load, views: int, given: int) -> DemoScenario:
    if len(frames) < 4:
        raise InputError(f"{name} has {len(frames)} frames; the demo needs at least 4.")
    seen = sorted({int(i) for i in np.linspace(0, len(frames) - 1, min(given, len(frames) // 2)).round()})
    others = [i for i in frames if i not in seen]
    asked = [others[int(i)] for i in np.linspace(0, len(others) - 1, min(views, len(others))).round()]
    truth = [_fitted(load(i)) for i in asked]
    return DemoScenario(
        f"{name}: {len(seen)} of {len(frames)} frames given, {len(asked)} others asked for",
        [_fitted(load(i)) for i in seen],
        np.stack([view.world_from_camera for view in truth]),
        [view.image for view in truth],
    )


def _fitted(view: View) -> View:
    """The view, made smaller where it is wider than the demo wants."""
    camera = view.camera
    if camera.width <= LARGEST_WIDTH:
        return view
    return view.resized(LARGEST_WIDTH, round(camera.height * LARGEST_WIDTH / camera.width))
