"""Speed of procedural worlds: baking of light, rays per second, one large frame.

    python benchmarks/bench_scenes.py [--device cuda] [--threads 2] [--repeats 12]

The fastest of some repeats is reported: other processes on the machine only add to the time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import KINDS, make_path, make_scene, pack, render_batch, seed_of
from worldstereo_ros.scenes.raytracing.packing import pack_cached
from worldstereo_ros.scenes.raytracing.render import render_scene


def fastest_seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def time_kind(kind: str, small: Camera, large: Camera, device: str, repeats: int) -> dict[str, float]:
    """Times of one kind of world: making it, baking its light, rendering at two sizes."""
    scene = make_scene(kind, seed_of("demo", 0))
    path = make_path(scene, "handheld", 4, seed=0)
    row = {
        "primitives": len(scene.primitives),
        "make_s": fastest_seconds(lambda: make_scene(kind, seed_of("demo", 0)), 2, "cpu"),
        "light_s": fastest_seconds(lambda: pack([scene], device=device), 1, device),
    }
    pack_cached(scene, device)
    seconds = fastest_seconds(lambda: render_scene(scene, small, path, device=device), repeats, device)
    row["million_rays_per_s"] = 4 * small.width * small.height / seconds / 1e6
    row["frame_640x480_s"] = fastest_seconds(
        lambda: render_scene(scene, large, path[:1], device=device), repeats, device
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=4, help="worlds in one batch")
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = arguments.device, arguments.repeats
    small = Camera.from_fov(160, 120, math.radians(80))
    large = Camera.from_fov(640, 480, math.radians(80))
    results: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        results[kind] = time_kind(kind, small, large, device, repeats)
    # Moving objects: each frame has its own time.
    moving = make_scene("warehouse", seed_of("demo", 0), moving_objects=4)
    path = make_path(moving, "handheld", 4, seed=0)
    pack_cached(moving, device, light="plain")
    seconds = fastest_seconds(
        lambda: render_scene(moving, small, path, device=device, light="plain", times=[0.0, 0.3, 0.6, 0.9]),
        repeats,
        device,
    )
    results["warehouse, 4 moving objects"] = {
        "primitives": len(moving.primitives),
        "million_rays_per_s": 4 * small.width * small.height / seconds / 1e6,
    }
    scenes = [make_scene("room", seed_of("demo", i)) for i in range(arguments.scenes)]
    poses = np.stack([make_path(scene, "handheld", 8, seed=1) for scene in scenes])
    packed = pack(scenes, device=device, light="plain")
    seconds = fastest_seconds(lambda: render_batch(packed, small, poses), repeats, device)
    results["batch of rooms"] = {
        "scenes": len(scenes),
        "primitives": sum(len(scene.primitives) for scene in scenes) / len(scenes),
        "million_rays_per_s": poses.shape[0] * poses.shape[1] * small.width * small.height / seconds / 1e6,
    }
    print(f"{device}, {arguments.threads} threads, best of {repeats}")
    for name, row in results.items():
        print(f"{name:>27}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
