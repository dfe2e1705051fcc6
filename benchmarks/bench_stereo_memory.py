"""Resident memory of the geometric stereo pipeline over many frames.

    python benchmarks/bench_stereo_memory.py --frames 10000 --size 320x240 --plot FILE.png

The scene of bench_stereo.py, walked to and fro, so that it never ends. Poses are given, or followed in the images with
--follow; with --model small the bundled network paints. The figure that counts is the growth after the first tenth, in
which caches fill.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from bench_stereo import BASE_M, make_texture, walk

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.stereo.settings import GEOMETRIC, StereoSettings
from worldstereo_ros.pipelines.stereo.streaming import StereoStream

PATH_FRAMES = 60  # there, and as many back
SAMPLES = 100
MIB = 2.0**20


def resident_mib() -> float:
    """Resident memory of this process, MiB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MIB
    raise OSError("/proc/self/status has no VmRSS")


def main() -> None:
    """Measures, and prints resident memory at ten places of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=GEOMETRIC, help="geometric, small, or the folder of a training run")
    parser.add_argument("--follow", action="store_true", help="give no poses; they are followed in the images")
    parser.add_argument("--plot", type=Path, help="PNG of resident memory over frames")
    options = parser.parse_args()
    if options.frames < SAMPLES:
        parser.error(f"--frames is {options.frames}; at least {SAMPLES} are needed.")
    width, height = (int(side) for side in options.size.split("x"))
    camera = Camera.from_fov(width, height, np.radians(70))
    texture = make_texture()
    cv2.setNumThreads(options.threads)
    stream = StereoStream(StereoSettings(base=BASE_M, threads=options.threads), None)
    if options.model != GEOMETRIC:
        from worldstereo_ros.pipelines.stereo.painting import load_painter
        from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo

        stream = StereoStream(
            stream.settings, None,
            make_pipeline=lambda camera, settings: GeometricStereo(
                camera, settings, painter=load_painter(options.model)
            ),
        )  # fmt: skip
    frames = [walk(camera, index, texture) for index in range(PATH_FRAMES)]
    there_and_back = [*range(PATH_FRAMES), *range(PATH_FRAMES - 2, 0, -1)]
    counts, memory = [], []
    start = time.perf_counter()
    for index in range(options.frames):
        image, depth, pose = frames[there_and_back[index % len(there_and_back)]]
        stream.push(image.copy(), camera, depth.copy(), index / 30, None if options.follow else pose)
        if (index + 1) % (options.frames // SAMPLES) == 0:
            counts.append(index + 1)
            memory.append(resident_mib())
            if len(counts) % (SAMPLES // 10) == 0:
                print(f"frame {counts[-1]:6d}: {memory[-1]:7.1f} MiB, {time.perf_counter() - start:6.0f} s", flush=True)
    settled = np.asarray(memory[SAMPLES // 10 - 1 :])
    slope = np.polyfit(np.asarray(counts[SAMPLES // 10 - 1 :]), settled, 1)[0] * 1000
    print(
        f"{width}x{height}, {options.frames} frames, {options.model}: {settled[0]:.1f} MiB after a tenth, "
        f"{settled[-1]:.1f} at the end, {settled.max():.1f} at most; {slope:+.3f} MiB in 1000 frames"
    )
    if options.plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(counts, memory)
        axes.set(xlabel="frames", ylabel="resident memory, MiB", ylim=(0, 1.1 * max(memory)))
        figure.savefig(options.plot)


if __name__ == "__main__":
    main()
