"""Rendering and memory compared with their memory floor: the time to move the bytes that they must read and write.

    python benchmarks/bench_memory_floor.py                  # on the CPU
    python benchmarks/bench_memory_floor.py --device cuda
    python benchmarks/bench_memory_floor.py --toy            # small sizes, to try the script

The floor counts every input once and every output once, at the rate of a large copy in the memory of the device where
the kernel runs; that rate is measured in the same run. Splatting runs on the device; fusing, and the warping of
observed views, run on the CPU on every machine. Times are the least of some repeats. Bytes that stay in a cache move
faster than the floor's, so sizes are chosen larger than the cache of a GPU (50 MB).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_memory import VOXEL_M, wall_frame
from bench_rendering import BYTES_PER_PIXEL, BYTES_PER_POINT, CAMERA, room_cloud

from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.world import WorldModel

CPU = torch.device("cpu")
VIEW_BYTES = 3 + 4  # of a pixel of an observed view: colour and depth
WARPED_BYTES = 3 + 4 + 1 + 1  # of a pixel of the result: colour, depth, provenance, mask


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    work()
    best = math.inf
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second of a copy of `size` bytes, read and written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / least_seconds(lambda: target.copy_(source), device, 5)


def upload_rate(device: torch.device, size: int) -> float:
    """Bytes a second from the host's pageable memory to the device."""
    source = torch.ones(size, dtype=torch.uint8)
    return size / least_seconds(lambda: source.to(device, copy=True), device, 3)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds and floor of every kernel, by name."""
    device = torch.device(options.device)
    size = 1 << (24 if options.toy else 29)
    rates = {CPU: copy_rate(CPU, min(size, 1 << 28))}
    rates[device] = copy_rate(device, size) if device != CPU else rates[CPU]
    camera = CAMERA.resized(160, 120) if options.toy else CAMERA
    frames, repeats = (2, 2) if options.toy else (4, 3)
    rows: dict[str, dict[str, Any]] = {
        f"copy on the {'CPU' if place == CPU else 'GPU'}": {"on": place.type, "gb_per_s": rate / 1e9}
        for place, rate in rates.items()
    }

    def add(name: str, where: torch.device, moved: float, work: Callable[[], Any], extra_s: float = 0.0) -> None:
        seconds = least_seconds(work, where, repeats)
        floor = moved / rates[where] + extra_s
        rows[name] = {
            "on": str(where),
            "ms": 1e3 * seconds,
            "floor_ms": 1e3 * floor,
            "times_the_floor": seconds / floor,
            "mb": moved / 1e6,
        }

    cloud = room_cloud(options.points)
    on_device = [torch.from_numpy(array).to(device) for array in cloud]
    poses = np.tile(np.eye(4), (frames, 1, 1))
    pixels = camera.width * camera.height
    moved = frames * (options.points * BYTES_PER_POINT + pixels * BYTES_PER_PIXEL)
    for name, settings in (
        ("splatting", {}),
        ("splatting, holes left open", {"close_holes": False}),
        ("splatting, one pixel a point", {"close_holes": False, "max_footprint": 0.5}),
    ):
        add(name, device, moved, lambda s=settings: render(*on_device, camera, poses, device=device, **s))  # type: ignore
    if device.type == "cuda":
        upload = options.points * BYTES_PER_POINT / upload_rate(device, 1 << 26)
        add(
            "splatting, cloud in the host's memory",
            device,
            moved,
            lambda: render(*cloud, camera, poses, device=device),
            upload,
        )

    rng = np.random.default_rng(0)
    views = iter([wall_frame(index, rng) for index in range(repeats + 2)])
    memory = CloudMemory(VOXEL_M, max_points=5_000_000)
    memory.insert(next(views))
    added: list[int] = []
    begin_bytes = CAMERA.width * CAMERA.height * VIEW_BYTES
    # Each point of the frame is looked up and, if it is new, written.
    add("fusing a frame", CPU, begin_bytes, lambda: added.append(memory.insert(next(views)).added))
    row = rows["fusing a frame"]
    row["mb"] += 2 * BYTES_PER_POINT * float(np.mean(added)) / 1e6
    row["floor_ms"] = row["mb"] * 1e9 / rates[CPU]
    row["times_the_floor"] = row["ms"] / row["floor_ms"]

    scenario = scene_scenario("room", 0, frames, observed_count=4, width=camera.width, height=camera.height)
    world = WorldModel(GeometricPipeline(), device=device)
    for view in scenario.observed_views:
        world.observe(view)
    seen = len(scenario.observed_views) * VIEW_BYTES + WARPED_BYTES
    add(
        "a path of the geometric pipeline",
        CPU,
        frames * (pixels * seen + len(world.cloud.points) * BYTES_PER_POINT),
        lambda: list(world.imagine(scenario.path, scenario.observed_views[0].camera)),
    )
    return rows


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA GPU; remove --device cuda to measure the CPU.")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.points = options.points or (20_000 if options.toy else 4_000_000 if options.device == "cuda" else 1_000_000)
    rows = measure(options)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.points} points")
    for name, row in rows.items():
        if "ms" in row:
            ratio = f"{row['times_the_floor']:8.1f} times the floor"
            print(f"  {name:<38} on {row['on']:<5} {row['ms']:9.2f} ms, floor {row['floor_ms']:8.3f} ms, {ratio}")
        else:
            print(f"  {name:<38} on {row['on']:<5} {row['gb_per_s']:9.1f} GB/s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--points", type=int, default=0, help="of the cloud; 0: 4 million on a GPU, 1 million on a CPU, 20,000 of a toy"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the default of torch")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
