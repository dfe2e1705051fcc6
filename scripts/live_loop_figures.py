#!/usr/bin/env python3
"""Prints how far a path is off while it is made, with and without loop closure, on walks there and back.

Worlds are rendered anew on the way back, a hand's breadth beside the way there; of a recording the same images come
back, darker and with noise. With `--rounds` the walk is made several times, its poses drift by a random walk instead of
being estimated, and depth is measured: this tells what the closer costs at its limit of keyframes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_ros.evaluation.world_sequences import WorldSequence, open_data
from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.pointmaps import Pointmaps
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_DEPTH
from worldstereo_ros.pipelines.pointmaps.windows import OVERLAP, PointmapStream
from worldstereo_ros.ros.node.pointmap_loops import PointmapLoops
from worldstereo_ros.ros.node.pointmap_path import PointmapPath

BESIDE = (0.08, 0.05, 0.0)  # metres, in the camera's axes
TURN_DEG = 2.0
GAIN, NOISE = 0.85, 4.0  # of images of a recording that come back
DRIFT_RAD, DRIFT_SHARE = 0.004, 0.03  # of each step, with --rounds: its rotation, and its length
STEP_NS = 100_000_000


@dataclass
class Live:
    """What is said about the path while it is made.

    Attributes:
        path, world: pose of each frame as it was said first, without and with corrections.
        costs: processor seconds of the closer for each part.
        seconds: processor seconds of the estimation.
    """

    path: list[np.ndarray] = field(default_factory=list)
    world: list[np.ndarray] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    seconds: float = 0.0
    status: dict[str, object] = field(default_factory=dict)


def there_and_back(sequence: object) -> list[View]:
    """The views of a walk, and those of the way back."""
    views = [sequence[row] for row in range(len(sequence))]  # type: ignore[arg-type, index]
    back = views[-2::-1]
    if isinstance(sequence, WorldSequence):
        beside = np.eye(4)
        beside[:3, :3] = Rotation.from_euler("y", TURN_DEG, degrees=True).as_matrix()
        beside[:3, 3] = BESIDE
        other = sequence.seen_from(np.stack([view.world_from_camera @ beside for view in back]))
        return views + [other[row] for row in range(len(other))]
    random = np.random.default_rng(0)
    return views + [_darker(view, random) for view in back]


def _darker(view: View, random: np.random.Generator) -> View:
    noisy = GAIN * view.image + random.normal(0, NOISE, view.image.shape)
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return View(image, view.camera, view.world_from_camera, view.depth)


def estimated(views: list[View], method: str, window: int, live: Live) -> Iterator[tuple[Pointmaps, list[np.ndarray]]]:
    """Parts of the point maps with their images."""
    stream = PointmapStream(views[0].camera, method=method, window=window, overlap=OVERLAP)
    waiting: list[np.ndarray] = []
    for number in range(len(views) + 1):
        start = time.process_time()
        if number < len(views):
            waiting.append(views[number].image)
            parts = stream.push(views[number].image)
        else:
            parts = stream.finish()
        live.seconds += time.process_time() - start
        for part in parts:
            yield part, waiting[: len(part)]
            waiting = waiting[len(part) :]


def drifting(views: list[View], rounds: int) -> Iterator[tuple[Pointmaps, list[np.ndarray]]]:
    """Parts of five frames with measured depth, along poses that drift."""
    random = np.random.default_rng(1)
    order = [*range(len(views))] + [*range(1, len(views))] * (rounds - 1)
    poses, steps = [np.eye(4)], _steps(views, order)
    for step in steps:
        wrong = step.copy()
        wrong[:3, :3] = step[:3, :3] @ Rotation.from_rotvec(random.normal(0, DRIFT_RAD, 3)).as_matrix()
        wrong[:3, 3] *= 1 + random.normal(0, DRIFT_SHARE)
        poses.append(poses[-1] @ wrong)
    for first in range(0, len(order), 5):
        rows = order[first : first + 5]
        yield (
            _measured([views[row] for row in rows], np.stack(poses[first : first + 5])),
            [views[row].image for row in rows],
        )


def _steps(views: list[View], order: list[int]) -> np.ndarray:
    truth = np.stack([views[row].world_from_camera for row in order])
    return invert_pose(truth[:-1]) @ truth[1:]


def _measured(views: list[View], poses: np.ndarray) -> Pointmaps:
    camera: Camera = views[0].camera
    depth = np.stack([np.zeros(view.image.shape[:2]) if view.depth is None else view.depth for view in views])
    points = np.stack([unproject(z.astype(np.float32), camera, pose) for z, pose in zip(depth, poses, strict=True)])
    count, valid = len(views), depth > 0
    return Pointmaps(
        np.where(valid[..., None], points, np.nan).astype(np.float32), valid.astype(np.float32), valid,
        np.zeros_like(valid), poses, camera, GIVEN_DEPTH, np.ones(count, bool), np.zeros(count, np.int64),
        np.tile(np.eye(6) * 1e-6, (count, 1, 1)),
    )  # fmt: skip


def follow(parts: Iterator[tuple[Pointmaps, list[np.ndarray]]], live: Live) -> None:
    """Makes the path as the node does."""
    path, count = PointmapPath(np.eye(4)), 0
    loops = PointmapLoops(True, lambda function: None, lambda text: print(f"  {text}", flush=True))
    for maps, images in parts:
        frames = path.extend(maps, int(maps.shot[0]), np.full((len(maps), 4, 4), np.nan))
        for each in frames:
            live.path.append(each.pose)
            live.world.append(loops.correct(each.pose, path) @ each.pose)
        start = time.process_time()
        loops.add(maps, images, frames, path, [STEP_NS * (count + f) for f in range(len(maps))], remembered=False)
        live.costs.append(time.process_time() - start)
        loops.finish_part(path)
        count += len(maps)
    live.status = loops.status


def last_third(poses: list[np.ndarray], truth: np.ndarray) -> tuple[float, float]:
    """Root mean square error in metres of the last third and of its last frame, aligned by the first third."""
    third, found = len(truth) // 3, np.stack(poses)
    similarity = pose_errors(found[:third], truth[:third]).similarity
    off = np.linalg.norm(similarity.poses(found)[:, :3, 3] - truth[:, :3, 3], axis=1)
    return float(np.sqrt(np.mean(off[-third:] ** 2))), float(off[-1])


def main() -> None:
    """Prints a line for each walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="posed sequences, or worlds:SPLIT:COUNT")
    parser.add_argument("--method", default="map", choices=("vo", "map"))
    parser.add_argument("--window", type=int, default=9, help="images that are solved together, as in the node")
    parser.add_argument("--rounds", type=int, default=0, help="see above; needs measured depth")
    options = parser.parse_args()
    for sequence in [each for data in options.data for each in open_data(data, needs_depth=False)]:
        views, live = there_and_back(sequence), Live()
        truth = np.stack([view.world_from_camera for view in views])
        if options.rounds:
            parts = drifting(views, options.rounds)
            truth = np.concatenate([truth, *[truth[1:]] * (options.rounds - 1)])
        else:
            parts = estimated(views, options.method, options.window, live)
        follow(parts, live)
        (off, end), (closed, closed_end) = last_third(live.path, truth), last_third(live.world, truth)
        cost = 1000 * np.array(live.costs)
        print(
            f"{sequence.path.name}: {len(truth)} frames, {len(cost)} parts; last third {off:.3f} m, with loops closed "
            f"{closed:.3f} m; end {end:.3f} and {closed_end:.3f} m; closer {cost.mean():.0f} ms a part, at most "
            f"{cost.max():.0f}; estimation {1000 * live.seconds / len(cost):.0f} ms a part; {live.status}",
            flush=True,
        )


if __name__ == "__main__":
    main()
