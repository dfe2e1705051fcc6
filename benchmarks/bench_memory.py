"""Fusing 640x480 RGB-D frames while the memory grows to five million points, beside Open3D's voxel down-sampling.

    python benchmarks/bench_memory.py [--points N] [--plot FILE.png] [--threads N]

A camera flies along an endless wavy wall; each frame is about half new. After the memory is full it goes on, so that
every new point evicts an old one. Open3D down-samples the grown cloud with the new frame's points, which is what
fusing costs without a hash of what is there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.cloud import CloudMemory

CAMERA = Camera(640, 480, 525.0, 525.0, 319.5, 239.5)
VOXEL = 0.01
STEP = 1.6  # metres between frames
ROW = 200  # frames in a row of the wall, before the next row begins


def wall_frame(index: int, rng: np.random.Generator) -> View:
    """The view number `index` of the flight, 3 m from the wall."""
    pose = np.eye(4)
    pose[0, 3] = STEP * (index % ROW)
    pose[1, 3] = 3.0 * (index // ROW)
    rays = CAMERA.rays()
    depth = np.full(rays.shape[:2], 3.0, np.float32)
    for _ in range(6):  # the wave is gentle, so this converges
        x, y = pose[0, 3] + rays[..., 0] * depth, pose[1, 3] + rays[..., 1] * depth
        depth = (3 + 0.15 * np.sin(2 * x) + 0.1 * np.cos(3 * y)).astype(np.float32)
    image = rng.integers(0, 256, (CAMERA.height // 8, CAMERA.width // 8, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(image, 8, axis=0), 8, axis=1)
    return View(image, CAMERA, pose, depth, stamp_ns=index)


def open3d_ms(memory: CloudMemory, view: View) -> float:
    """The faster of Open3D's two voxel down-samplings of what is remembered and the frame, milliseconds."""
    import open3d as o3d

    new = unproject(view.depth, CAMERA, view.world_from_camera).reshape(-1, 3)
    points = np.concatenate([memory.points, new])
    colours = np.concatenate([memory.colours, view.image.reshape(-1, 3)]).astype(np.float32) / 255
    tensor = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    tensor.point.colors = o3d.core.Tensor(colours)
    start = time.perf_counter()
    tensor.voxel_down_sample(VOXEL)
    fastest = time.perf_counter() - start
    del tensor
    legacy = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    legacy.colors = o3d.utility.Vector3dVector(colours)
    start = time.perf_counter()
    legacy.voxel_down_sample(VOXEL)
    fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e3


def plot(path: Path, offered: np.ndarray, times: np.ndarray, full: int, peer: list[tuple[int, float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), dpi=120)
    if peer:
        axes.plot(*np.array(peer).T / [[1e6], [1]], "o-", color="#c44e52", label="Open3D voxel_down_sample")
    axes.plot(offered[:full] / 1e6, times[:full], ".", color="#4c72b0", markersize=4, label="ours, growing")
    axes.plot(offered[full:] / 1e6, times[full:], ".", color="#dd8452", markersize=4, label="ours, full: evicting")
    axes.axvline(offered[full] / 1e6, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="points seen so far (millions)", ylabel="one 640x480 frame (ms)", yscale="log", ylim=(5, None))
    axes.set_title("Cost of fusing a frame as the memory grows, and when it is full")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=5_000_000, help="size the memory grows to")
    parser.add_argument("--plot", type=Path, help="PNG file for the plot of cost against size")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    memory = CloudMemory(VOXEL, max_points=arguments.points)
    warm = CloudMemory(VOXEL, max_points=1_000_000)
    warm.insert(wall_frame(0, rng))
    sizes, times, cpu, peer, added = [], [], [], [], []
    full = None
    index = 0
    try:
        import open3d  # noqa: F401
    except ImportError:
        print("Open3D is not installed: no peer to compare with.")
        next_peer = float("inf")
    else:
        next_peer = 100_000.0
    while full is None or index < full + 40:
        view = wall_frame(index, rng)
        if len(memory) >= next_peer:
            peer.append((len(memory), open3d_ms(memory, view)))
            next_peer = max(next_peer * 1.8, len(memory) + 1)
        sizes.append(len(memory))
        start, cpu_start = time.perf_counter(), time.process_time()
        report = memory.insert(view)
        times.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
        added.append(report.added)
        index += 1
        if full is None and report.evicted:
            full = index
    sizes, times, processor = np.array(sizes), np.array(times), np.array(cpu)
    print(f"{index} frames of 640x480, {np.mean(added):.0f} new points each, up to {len(memory)} points, ms a frame:")
    print(f"  first frame: {times[0]:.1f}")
    tenth = max(full // 10, 3)
    for name, part in {
        "first tenth of the growth": slice(1, tenth + 1),
        "last tenth of the growth": slice(full - tenth, full),
        "all of the growth": slice(1, full),
        "full, evicting": slice(full, None),
    }.items():
        print(
            f"  {name:26} median {np.median(times[part]):6.1f}   worst {times[part].max():6.1f}"
            f"   processor time: median {np.median(processor[part]):6.1f}   worst {processor[part].max():6.1f}"
        )
    slope = np.polyfit(sizes[1:full] / 1e6, processor[1:full], 1)[0]
    print(f"  slope of the processor time: {slope:+.2f} ms per million points")
    for size, theirs in peer:
        ours = np.median(times[np.argsort(np.abs(sizes - size))[:9]])
        print(f"  at {size:>9} points: ours {ours:6.1f}, Open3D {theirs:8.1f}, ratio {ours / theirs:.3f}")
    if arguments.plot:
        plot(arguments.plot, np.cumsum(added) - added, times, full, peer)
        print(f"plot: {arguments.plot}")


if __name__ == "__main__":
    main()
