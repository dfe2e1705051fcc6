"""Time to fuse 640x480 RGB-D frames while the cloud memory grows to five million points, compared with Open3D.

    python benchmarks/bench_memory.py [--points N] [--plot FILE.png] [--threads N]

A camera moves along an endless wavy wall; about half of each frame is new. It continues when the memory is full, so
that each new point evicts an old one. Open3D down-samples the cloud together with the points of the new frame, which
is how to fuse frames without a spatial hash.
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
VOXEL_M = 0.01
STEP_M = 1.6  # between frames
ROW_FRAMES = 200  # of a row of the wall, before the next row begins


def wall_frame(index: int, rng: np.random.Generator) -> View:
    """View `index` of the walk, 3 m from the wall."""
    pose = np.eye(4)
    pose[0, 3] = STEP_M * (index % ROW_FRAMES)
    pose[1, 3] = 3.0 * (index // ROW_FRAMES)
    rays = CAMERA.rays()
    depth = np.full(rays.shape[:2], 3.0, np.float32)
    for _ in range(6):  # fixed-point iteration; converges, since the wave is flat
        x, y = pose[0, 3] + rays[..., 0] * depth, pose[1, 3] + rays[..., 1] * depth
        depth = (3 + 0.15 * np.sin(2 * x) + 0.1 * np.cos(3 * y)).astype(np.float32)
    image = rng.integers(0, 256, (CAMERA.height // 8, CAMERA.width // 8, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(image, 8, axis=0), 8, axis=1)
    return View(image, CAMERA, pose, depth, stamp_ns=index)


def open3d_ms(memory: CloudMemory, view: View) -> float:
    """Milliseconds of the faster of Open3D's two voxel down-samplings, for the cloud and the new frame."""
    import open3d as o3d

    new = unproject(view.depth, CAMERA, view.world_from_camera).reshape(-1, 3)
    points = np.concatenate([memory.points, new])
    colours = np.concatenate([memory.colours, view.image.reshape(-1, 3)]).astype(np.float32) / 255
    tensor = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    tensor.point.colors = o3d.core.Tensor(colours)
    start = time.perf_counter()
    tensor.voxel_down_sample(VOXEL_M)
    fastest = time.perf_counter() - start
    del tensor
    legacy = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    legacy.colors = o3d.utility.Vector3dVector(colours)
    start = time.perf_counter()
    legacy.voxel_down_sample(VOXEL_M)
    fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e3


def plot(path: Path, inserted: np.ndarray, times: np.ndarray, full: int, open3d_times: list[tuple[int, float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), dpi=120)
    if open3d_times:
        axes.plot(*np.array(open3d_times).T / [[1e6], [1]], "o-", color="#c44e52", label="Open3D voxel_down_sample")
    axes.plot(inserted[:full] / 1e6, times[:full], ".", color="#4c72b0", markersize=4, label="CloudMemory, growing")
    axes.plot(
        inserted[full:] / 1e6, times[full:], ".", color="#dd8452", markersize=4, label="CloudMemory, full: evicting"
    )
    axes.axvline(inserted[full] / 1e6, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="points inserted so far (millions)", ylabel="one 640x480 frame (ms)", yscale="log", ylim=(5, None))
    axes.set_title("Time to fuse a frame while the memory grows, and when it is full")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=5_000_000, help="maximum size of the memory")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot of time against size")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    memory = CloudMemory(VOXEL_M, max_points=arguments.points)
    CloudMemory(VOXEL_M, max_points=1_000_000).insert(wall_frame(0, rng))  # compiles
    sizes, times, cpu, open3d_times, added = [], [], [], [], []
    full = None
    index = 0
    try:
        import open3d  # noqa: F401
    except ImportError:
        print("Open3D is not installed; it is not compared.")
        next_comparison = float("inf")
    else:
        next_comparison = 100_000.0
    while full is None or index < full + 40:
        view = wall_frame(index, rng)
        if len(memory) >= next_comparison:
            open3d_times.append((len(memory), open3d_ms(memory, view)))
            next_comparison = max(next_comparison * 1.8, len(memory) + 1)
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
    print(f"{index} frames of 640x480, {np.mean(added):.0f} new points each, up to {len(memory)} points, ms per frame:")
    print(f"  first frame: {times[0]:.1f}")
    tenth = max(full // 10, 3)
    for name, part in {
        "first tenth of the growth": slice(1, tenth + 1),
        "last tenth of the growth": slice(full - tenth, full),
        "all of the growth": slice(1, full),
        "full, evicting": slice(full, None),
    }.items():
        print(
            f"  {name:26} median {np.median(times[part]):6.1f}   max {times[part].max():6.1f}"
            f"   processor time: median {np.median(processor[part]):6.1f}   max {processor[part].max():6.1f}"
        )
    slope = np.polyfit(sizes[1:full] / 1e6, processor[1:full], 1)[0]
    print(f"  slope of the processor time: {slope:+.2f} ms per million points")
    for size, open3d_time in open3d_times:
        time_here = np.median(times[np.argsort(np.abs(sizes - size))[:9]])
        ratio = time_here / open3d_time
        print(f"  at {size:>9} points: CloudMemory {time_here:6.1f}, Open3D {open3d_time:8.1f}, ratio {ratio:.3f}")
    if arguments.plot:
        plot(arguments.plot, np.cumsum(added) - added, times, full, open3d_times)
        print(f"plot: {arguments.plot}")


if __name__ == "__main__":
    main()
