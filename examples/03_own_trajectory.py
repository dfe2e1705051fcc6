#!/usr/bin/env python3
"""Imagine the views along a trajectory of your own: camera poses built with numpy.

python examples/03_own_trajectory.py

A pose is a (4, 4) matrix `world_from_camera`: columns are the camera's x (right), y (down) and z (forward) axes and its
position, in metres. The result is in example_out/trajectory/.
"""

from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.results import write_results
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/trajectory")
UP = np.array([0.0, 0.0, 1.0])  # of the procedural worlds, as in ROS


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 4) world_from_camera of an upright camera at `position` that looks at `target`."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, UP)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(forward, right), forward, position])
    return pose


def main() -> None:
    """Observe three views, imagine an arc that rises and swings around what the last one looks at."""
    scene, camera = make_scene("room", seed_of("demo", 1)), Camera.from_fov(320, 240, 1.2)
    observed = [render_view(scene, camera, pose) for pose in make_path(scene, "handheld", 9, seed=3)[::4]]
    world = WorldModel(load_pipeline("small"))
    for view in observed:
        world.observe(view)

    start = observed[-1].world_from_camera
    eye, forward, right = start[:3, 3], start[:3, 2], start[:3, 0]
    target = eye + 2.0 * forward
    waypoints = [start] + [look_at(eye + s * 0.5 * right + s * 0.15 * UP, target) for s in (0.5, 1.0)]
    path = interpolate_poses(np.stack(waypoints), 8)  # evenly spaced in metres and radians

    imagined = list(world.imagine(path, camera, remember=True))
    truth = [render_view(scene, camera, pose).image for pose in path]
    write_results(OUT, imagined, observed, world.cloud, truth, title="a trajectory of my own")
    length = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).sum()
    print(f"imagined {len(imagined)} views along {length:.2f} m")
    print(f"wrote {OUT / 'contact_sheet.png'} and {OUT / 'imagined.mp4'}")


if __name__ == "__main__":
    main()
