"""Time to score plans on what is imagined already, and with imagining them.

    python benchmarks/bench_planning.py [--paths 16] [--views 8] [--imagine]

A robot has seen part of a warehouse and is asked for the best of several paths of eight views each, one of which it
imagined. The map is made of the memories, the scores are computed, and the next best view is chosen.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.planning import imagine_hypotheses, next_best_view, score_paths, world_grid
from worldstereo_ros.scenes import make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.depth import render_depth
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(320, 240, math.radians(70))
IMAGINED = CAMERA.resized(160, 120)
OBSERVED, STEP = 12, 4


def observed_world() -> tuple[WorldModel, np.ndarray]:
    """A world model that saw a part of a warehouse, and its last pose."""
    scene = make_scene("warehouse", seed_of("demo", 0))
    poses = make_path(scene, "ground", OBSERVED * STEP, 0)[::STEP]
    world = WorldModel(load_pipeline("geometric"), CloudMemory(voxel_size=0.02, max_points=1_000_000))
    image = np.full((CAMERA.height, CAMERA.width, 3), 128, np.uint8)
    for pose, depth in zip(poses, render_depth(scene, CAMERA, poses), strict=True):
        world.observe(View(image, CAMERA, pose, depth))
    return world, poses[-1]


def fan(start: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Paths of 20 poses that bend away from a pose, by different angles."""
    out = {}
    for bend in np.linspace(-1.2, 1.2, count):
        angles = bend * np.linspace(0, 1, 20)
        local = np.tile(np.eye(4), (20, 1, 1))
        local[:, 0, 0], local[:, 0, 2] = np.cos(angles), np.sin(angles)
        local[:, 2, 0], local[:, 2, 2] = -np.sin(angles), np.cos(angles)
        local[1:, :3, 3] = np.cumsum(0.15 * local[:-1, :3, 2], axis=0)
        out[f"bend {math.degrees(bend):.0f}"] = start @ local
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--imagine", action="store_true", help="imagine all paths, and print how long that takes")
    options = parser.parse_args()
    world, last = observed_world()
    paths = fan(last, options.paths)
    some = paths if options.imagine else dict(list(paths.items())[:1])
    start = time.perf_counter()
    hypotheses = imagine_hypotheses(world, some, IMAGINED, views=options.views)
    print(f"{len(some)} x {options.views} views of 160x120 imagined in {time.perf_counter() - start:.2f} s")
    # Views that were not imagined here are as many copies of those that were: the map takes as long.
    views = [(hypotheses[0] * -(-options.paths // len(some)))[: options.paths * options.views]]
    poses = [interpolate_poses(path, options.views) for path in paths.values()]
    for repeat in range(3):
        start = time.perf_counter()
        grid = world_grid(world, poses, hypotheses=views)
        made = time.perf_counter()
        scores = score_paths(grid, dict(zip(paths, poses, strict=True)))
        scored = time.perf_counter()
        ranked = next_best_view(grid, last)
        done = time.perf_counter()
        print(
            f"{'first, compiling' if repeat == 0 else 'again'}: scores {scored - start:.3f} s, of which "
            f"{made - start:.3f} s for the map; next best view {done - scored:.3f} s ({len(ranked)} views)"
        )
    print(scores.reason)


if __name__ == "__main__":
    main()
