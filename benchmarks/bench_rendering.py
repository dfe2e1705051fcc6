"""Speed of splatting 1.4 M points into 640x480 pixels, compared with Open3D's one-pixel projection, in one run.

    python benchmarks/bench_rendering.py [--points N] [--rounds N] [--threads N] [--device cuda]

`render` closes holes, removes occluded points and blends the front surface; Open3D writes one pixel per point. The
lower bound is the time to copy the bytes that any splatting reads and writes: the cloud once, the images once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.rendering.splatting import render

CAMERA = Camera(640, 480, 525.0, 525.0, 319.5, 239.5)
MAX_RATIO = 2.0  # target, to Open3D
BYTES_PER_POINT = 12 + 3 + 1 + 4  # position, colour, provenance, spacing
BYTES_PER_PIXEL = 3 + 4 + 1 + 1


def room_cloud(count: int) -> tuple[np.ndarray, ...]:
    """A cloud of five walls of a 6 x 2.7 x 6 m room around the camera: points, colours, observed, spacing."""
    rng = np.random.default_rng(0)
    part = -(-count // 5)
    u, v = rng.uniform(-1, 1, (2, 5, part))
    flat = np.ones(part)
    walls = [
        np.stack([3 * u[0], 1.2 * flat, 3 * v[0] + 3], axis=1),
        np.stack([3 * u[1], -1.5 * flat, 3 * v[1] + 3], axis=1),
        np.stack([-3 * flat, 1.35 * u[2] - 0.15, 3 * v[2] + 3], axis=1),
        np.stack([3 * flat, 1.35 * u[3] - 0.15, 3 * v[3] + 3], axis=1),
        np.stack([3 * u[4], 1.35 * v[4] - 0.15, 6 * flat], axis=1),
    ]
    points = np.concatenate(walls)[:count].astype(np.float32)
    colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
    spacing = np.full(len(points), np.sqrt(120 / len(points)), np.float32)
    return points, colours, np.ones(len(points), bool), spacing


def open3d_projection(points: np.ndarray, colours: np.ndarray) -> Callable[[], object]:
    import open3d as o3d

    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    cloud.point.colors = o3d.core.Tensor(colours.astype(np.float32) / 255)
    K, extrinsic = o3d.core.Tensor(CAMERA.matrix), o3d.core.Tensor(np.eye(4))
    return lambda: cloud.project_to_rgbd_image(
        CAMERA.width, CAMERA.height, K, extrinsic, depth_scale=1.0, depth_max=20.0
    )


def measure(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each action; they take turns, so that other processes slow down all of them equally."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_400_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    arrays = room_cloud(arguments.points)
    pose = np.eye(4)[None]
    on_device = [torch.from_numpy(array).to(device) for array in arrays]

    def splat(**options: object) -> None:
        render(*on_device, CAMERA, pose, device=device, **options)
        if device.type == "cuda":
            torch.cuda.synchronize()

    size = arguments.points * BYTES_PER_POINT + CAMERA.width * CAMERA.height * BYTES_PER_PIXEL
    source = torch.zeros(size // 2, dtype=torch.uint8, device=device)  # a copy reads and writes
    target = torch.empty_like(source)

    def copy_bytes() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    splat()
    print(f"first call, including loading of compiled code: {time.perf_counter() - start:.2f} s")
    actions: dict[str, Callable[[], object]] = {
        "render": splat,
        "render, holes left open": lambda: splat(close_holes=False),
        "render, one pixel a point": lambda: splat(close_holes=False, max_footprint=0.5),
        "memory traffic (lower bound)": copy_bytes,
    }
    try:
        actions["open3d, one pixel a point"] = open3d_projection(arrays[0], arrays[1])
    except ImportError:
        print("Open3D is not installed; it is not compared.")
    times = measure(actions, arguments.rounds)
    print(f"{arguments.points} points, {CAMERA.width}x{CAMERA.height}, {device}, {arguments.threads} threads, ms:")
    for name, values in times.items():
        print(f"  {name:28} median {np.median(values):7.1f}   min {min(values):7.1f}   max {max(values):7.1f}")
    mine = np.median(times["render"])
    peer = times.get("open3d, one pixel a point")
    if peer:
        ratio = mine / np.median(peer)
        verdict = "met" if ratio <= MAX_RATIO else "MISSED"
        print(f"ratio to Open3D: {ratio:.2f} (target: at most {MAX_RATIO}, {verdict})")
    print(f"ratio to the lower bound: {mine / np.median(times['memory traffic (lower bound)']):.1f}")


if __name__ == "__main__":
    main()
