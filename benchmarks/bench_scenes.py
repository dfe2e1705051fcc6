"""Speed of the procedural worlds: light, rays a second, one large frame.

    python benchmarks/bench_scenes.py [--device cuda] [--threads 2] [--repeats 12]

Times are the best of some repeats: on a shared machine the others only add waiting.
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


def best(work: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def of_kind(kind: str, small: Camera, large: Camera, device: str, repeats: int) -> dict[str, float]:
    """Figures of one kind of world: what makes it, its light, and pictures of two sizes."""
    scene = make_scene(kind, seed_of("demo", 0))
    path = make_path(scene, "handheld", 4, seed=0)
    row = {
        "primitives": len(scene.primitives),
        "make_s": best(lambda: make_scene(kind, seed_of("demo", 0)), 2, "cpu"),
        "light_s": best(lambda: pack([scene], device=device), 1, device),
    }
    pack_cached(scene, device)
    seconds = best(lambda: render_scene(scene, small, path, device=device), repeats, device)
    row["million_rays_per_s"] = 4 * small.width * small.height / seconds / 1e6
    row["frame_640x480_s"] = best(lambda: render_scene(scene, large, path[:1], device=device), repeats, device)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=4, help="worlds at once in the batch")
    parser.add_argument("--json", help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = arguments.device, arguments.repeats
    small = Camera.from_fov(160, 120, math.radians(80))
    large = Camera.from_fov(640, 480, math.radians(80))
    figures: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        figures[kind] = of_kind(kind, small, large, device, repeats)
    # With things that move, every frame at a time of its own.
    moving = make_scene("warehouse", seed_of("demo", 0), movers=4)
    path = make_path(moving, "handheld", 4, seed=0)
    pack_cached(moving, device, light="plain")
    seconds = best(
        lambda: render_scene(moving, small, path, device=device, light="plain", times=[0.0, 0.3, 0.6, 0.9]),
        repeats,
        device,
    )
    figures["warehouse, 4 movers"] = {
        "primitives": len(moving.primitives),
        "million_rays_per_s": 4 * small.width * small.height / seconds / 1e6,
    }
    scenes = [make_scene("room", seed_of("demo", i)) for i in range(arguments.scenes)]
    poses = np.stack([make_path(scene, "handheld", 8, seed=1) for scene in scenes])
    packed = pack(scenes, device=device, light="plain")
    seconds = best(lambda: render_batch(packed, small, poses), repeats, device)
    figures["batch of rooms"] = {
        "scenes": len(scenes),
        "primitives": sum(len(scene.primitives) for scene in scenes) / len(scenes),
        "million_rays_per_s": poses.shape[0] * poses.shape[1] * small.width * small.height / seconds / 1e6,
    }
    print(f"{device}, {arguments.threads} threads, best of {repeats}")
    for name, row in figures.items():
        print(f"{name:>19}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
