"""Speed of the geometric stereo pipeline beside OpenCV's remap with Telea inpainting, in one run.

    python benchmarks/bench_stereo.py --size 640x480 --frames 40 --model small

A board moves before a textured wall while the camera walks sideways; depth and poses are given, as by a depth sensor.
The pipelines take turns, frame by frame, so that other load on the machine meets all of them alike. `remap+telea` is
what a few lines of OpenCV do: colours looked up at x + d of the same pixel, occlusions by comparing disparities, and
cv2.inpaint. With --model the network paints, too; `painted` is the share of the pixels that no frame has seen, on which
its time depends.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, GeometricStereo, StereoFrame
from worldstereo_ros.pipelines.stereo.settings import StereoSettings

BASE_M, WALL_M, BOARD_M = 0.065, 4.0, 1.5


def make_texture() -> np.ndarray:
    """(512, 512, 3) uint8 blurred noise, seamless."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2, borderType=cv2.BORDER_WRAP)
    return cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)


def walk(camera: Camera, index: int, texture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image, depth, pose) of a frame of the walk."""
    x = 0.02 * index
    rays = camera.rays()
    depth = np.full(rays.shape[:2], WALL_M, np.float32)
    board = np.abs(rays[..., 0] * BOARD_M + x - 0.3 * np.sin(0.1 * index)) < 0.35
    board &= np.abs(rays[..., 1] * BOARD_M) < 0.5
    depth[board] = BOARD_M
    points = rays[..., :2] * depth[..., None]
    points[..., 0] += np.float32(x)
    columns, rows = (((points[..., k] * 120 + 300 * board) % texture.shape[1 - k]).astype(np.float32) for k in (0, 1))
    image = cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    pose = np.eye(4)
    pose[0, 3] = x
    return image, depth, pose


def remap_telea(image: np.ndarray, depth: np.ndarray, camera: Camera, base: float) -> np.ndarray:
    """The other eye by OpenCV alone."""
    disparity = np.float32(camera.fx * base) / depth
    rows, columns = np.indices(depth.shape, dtype=np.float32)
    there = columns + disparity
    found = cv2.remap(disparity, there, rows, cv2.INTER_NEAREST, borderValue=-1)
    made = cv2.remap(image, columns + np.maximum(found, 0), rows, cv2.INTER_LINEAR)
    hole = (np.abs(found - disparity) > 1).astype(np.uint8)
    return cv2.inpaint(made, hole, 3, cv2.INPAINT_TELEA)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--frames", type=int, default=40, help="of which the first five are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="", help="also paint with it: small, or the folder of a training run")
    parser.add_argument("--base", type=float, default=BASE_M, help="metres; a larger one opens larger holes")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    camera = Camera.from_fov(width, height, np.radians(70))
    texture = make_texture()
    cv2.setNumThreads(options.threads)
    settings = {
        "warp + background": StereoSettings(base=options.base, memory=0, steady=False, threads=options.threads),
        "geometric (memory of 6, steady)": StereoSettings(base=options.base, threads=options.threads),
    }
    pipelines = {name: GeometricStereo(camera, chosen) for name, chosen in settings.items()}
    if options.model:
        import torch

        from worldstereo_ros.pipelines.stereo.painting import load_painter

        torch.set_num_threads(options.threads)
        without = StereoSettings(base=options.base, memory=0, threads=options.threads)
        for name, chosen in (("network", settings["geometric (memory of 6, steady)"]), ("network, no memory", without)):
            pipelines[name] = GeometricStereo(camera, chosen, painter=load_painter(options.model))
    makers: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray | StereoFrame]] = {
        "OpenCV remap + Telea": lambda image, depth, pose: remap_telea(image, depth, camera, options.base),
        **{name: pipeline.make for name, pipeline in pipelines.items()},
    }
    wall: dict[str, list[float]] = {name: [] for name in makers}
    cpu: dict[str, list[float]] = {name: [] for name in makers}
    painted: dict[str, list[float]] = {name: [] for name in makers}
    before = 0
    for index in range(options.frames):
        image, depth, pose = walk(camera, index, texture)
        for name, maker in makers.items():
            start, used = time.perf_counter(), time.process_time()
            made = maker(image, depth, pose)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
            if isinstance(made, StereoFrame):
                painted[name].append(float((made.source == PAINTED).mean()))
        if index == options.frames // 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{width}x{height}, {options.frames - 5} frames, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'':34}{'ms/frame':>10}{'best':>8}{'CPU ms':>8}{'frames/s':>10}{'painted':>9}")
    for name in makers:
        seconds, best = float(np.median(wall[name][5:])), min(wall[name][5:])
        busy = float(np.median(cpu[name][5:]))
        share = f"{np.mean(painted[name][5:]):9.1%}" if painted[name] else ""
        print(f"{name:34}{1e3 * seconds:10.1f}{1e3 * best:8.1f}{1e3 * busy:8.1f}{1 / seconds:10.1f}" + share)
    print(f"memory grew by {grown:.1f} MiB in the second half")


if __name__ == "__main__":
    main()
