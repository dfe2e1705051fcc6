"""Walks through procedural worlds with moving things, and a pool of them on the training device.

A walk is a camera's path of `WALK_VIEWS` frames, a tenth of a second apart. Processes render walks on the training
device while training runs; clips of several speeds are drawn from the pool.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import add_moving_objects, clearance, make_path, make_scene, pack, render_batch, seed_of
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.training.data.array_files import ArrayFields
from worldstereo_ros.training.data.world_files import KIND_WEIGHTS
from worldstereo_ros.utils.errors import InputError

WALK_VIEWS = 37  # clips of 13 frames up to a stride of 3
FRAME_S = 0.1
STRIDES = (1, 2, 3)
PATH_KINDS = ("handheld", "ground")  # one walk each, of a world
STEP_M = (0.03, 0.12)  # range of the longest step between frames of a walk
TURN_RAD = (0.02, 0.07)
MAX_MOVERS = 5
SHADOW_PROB = 0.5
MIN_CLEARANCE_M = 0.12  # between the camera and moving things
REVERSE_PROB = 0.3
HERE = 1_000_000  # first world that the training process renders beside others
HURRIED_WORLDS = 25  # of each process, before it rests as long as it works


@dataclass(frozen=True)
class Walk(ArrayFields):
    """One rendered walk; arrays, so that processes can send it.

    Attributes:
        image: (N, h, w, 3) uint8.
        depth: (N, h, w) float16 metres, 0 = no surface.
        moving: (N, h, w) bool, pixels of moving things.
        poses: (N, 4, 4) float32 world_from_camera.
        intrinsics: (4,) float32.
    """

    image: np.ndarray
    depth: np.ndarray
    moving: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray


@dataclass(frozen=True)
class MovingClips:
    """b clips of F frames with the truth.

    Attributes:
        images: (b, F, 3, h, w) float in [0, 1].
        depth: (b, F, h, w) float32 metres, 0 = no surface.
        moving: (b, F, h, w) bool.
        poses: (b, F, 4, 4) float32 first_from_camera.
        intrinsics: (b, 4).
    """

    images: torch.Tensor
    depth: torch.Tensor
    moving: torch.Tensor
    poses: torch.Tensor
    intrinsics: torch.Tensor


def render_walks(
    split: str,
    index: int,
    sizes: Sequence[tuple[int, int]],
    *,
    device: torch.device | str = "cpu",
    views: int = WALK_VIEWS,
    supersample: int = 2,
    movers: int | None = None,
) -> list[Walk]:
    """Renders the walks of world `index` of a split, one handheld and one on the ground; deterministic.

    Args:
        split: training, validation or test.
        index: number of the world; kind, camera, size, movers and walks follow from it.
        sizes: (height, width) to choose from.
        device: device of the renderer.
        views: frames of a walk.
        supersample: rays of a pixel along each axis.
        movers: number of moving things; None = 0 to 5. Fewer where there is no room.

    Returns:
        The walks; fewer where the camera would come too close to a moving thing, or there is no free path.
    """
    random = Random(6_121 * index + 29)
    cumulative = np.cumsum(list(KIND_WEIGHTS.values())) / sum(KIND_WEIGHTS.values())
    kind = list(KIND_WEIGHTS)[min(int(np.searchsorted(cumulative, random.uniform(0, 1))), len(KIND_WEIGHTS) - 1)]
    height, width = random.choice(list(sizes))
    camera = Camera.from_fov(width, height, math.radians(random.uniform(50, 95)))
    scene = make_scene(kind, seed_of(split, index))
    count = int(random.uniform(0, MAX_MOVERS + 0.999)) if movers is None else movers
    while count > 0:
        try:
            scene = add_moving_objects(scene, count)
            break
        except InputError:
            count -= 1
    packed = pack([scene], device=device, light="soft" if random.chance(SHADOW_PROB) else "plain")
    ids = torch.tensor([mover.instance for mover in scene.moving_objects], dtype=torch.int32, device=device)
    walks = []
    for path in PATH_KINDS:
        step, turn = random.uniform(*STEP_M), random.uniform(*TURN_RAD)
        times = random.uniform(0, 20) + FRAME_S * np.arange(views)
        try:
            poses = make_path(scene, path, views, seed=index, step=step, turn=turn)
        except ValueError:
            continue
        if ids.numel() and clearance(scene, poses[:, :3, 3], times).min() < MIN_CLEARANCE_M:
            continue
        frames = render_batch(packed, camera, poses[None], times=times[None], supersample=supersample)
        moving = torch.isin(frames.instance[0], ids)
        walks.append(
            Walk(
                frames.image[0].cpu().numpy(),
                frames.depth[0].half().cpu().numpy(),
                moving.cpu().numpy(),
                poses.astype(np.float32),
                np.array([camera.fx, camera.fy, camera.cx, camera.cy], dtype=np.float32),
            )
        )
    return walks


class WalkPool:
    """Walks of one size on a device; the oldest are replaced when it is full.

    Args:
        size: (height, width).
        capacity: walks.
        device: where they are kept; a walk of 96x128 takes 2.7 MB.
        views: frames of a walk.
    """

    def __init__(
        self, size: tuple[int, int], capacity: int, device: torch.device | str, views: int = WALK_VIEWS
    ) -> None:
        self.count = 0
        self._image = torch.empty(capacity, views, *size, 3, dtype=torch.uint8, device=device)
        self._depth = torch.empty(capacity, views, *size, dtype=torch.float16, device=device)
        self._moving = torch.empty(capacity, views, *size, dtype=torch.bool, device=device)
        self._poses = np.empty((capacity, views, 4, 4), dtype=np.float32)
        self._intrinsics = np.empty((capacity, 4), dtype=np.float32)

    def __len__(self) -> int:
        return min(self.count, len(self._poses))

    def add(self, walk: Walk) -> None:
        """Copies a walk to the device."""
        slot = self.count % len(self._poses)
        self._image[slot].copy_(torch.from_numpy(walk.image))
        self._depth[slot].copy_(torch.from_numpy(walk.depth))
        self._moving[slot].copy_(torch.from_numpy(walk.moving))
        self._poses[slot], self._intrinsics[slot] = walk.poses, walk.intrinsics
        self.count += 1

    def draw(self, count: int, frames: int, random: np.random.Generator) -> MovingClips:
        """Draws clips: random walks, strides and starts, some backwards, half of them mirrored."""
        walks = random.integers(len(self), size=count)
        views = self._poses.shape[1]
        strides = [s for s in STRIDES if (frames - 1) * s < views]
        stride = random.choice(strides, size=count)
        start = np.array([random.integers(views - (frames - 1) * s) for s in stride])
        order = start[:, None] + stride[:, None] * np.arange(frames)
        back = random.random(count) < REVERSE_PROB
        order[back] = order[back, ::-1]
        return self.take(walks, order, mirror=random.random(count) < 0.5)

    def take(self, walks: np.ndarray, order: np.ndarray, mirror: np.ndarray | None = None) -> MovingClips:
        """Clips of given walks (b,) and frames (b, F), some mirrored (b,)."""
        device = self._image.device
        rows, columns = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (walks[:, None], order))
        image = self._image[rows, columns].permute(0, 1, 4, 2, 3).float() / 255
        depth, moving = self._depth[rows, columns].float(), self._moving[rows, columns]
        poses = self._poses[walks[:, None], order].astype(np.float64)
        poses = np.linalg.inv(poses[:, :1]) @ poses
        intrinsics = self._intrinsics[walks].copy()
        if mirror is not None and mirror.any():
            flip = torch.from_numpy(mirror).to(device)
            image = torch.where(flip.view(-1, 1, 1, 1, 1), image.flip(-1), image)
            depth = torch.where(flip.view(-1, 1, 1, 1), depth.flip(-1), depth)
            moving = torch.where(flip.view(-1, 1, 1, 1), moving.flip(-1), moving)
            reflection = np.diag([-1.0, 1, 1, 1])
            poses[mirror] = reflection @ poses[mirror] @ reflection
            intrinsics[mirror, 2] = image.shape[-1] - 1 - intrinsics[mirror, 2]
        return MovingClips(
            image,
            depth,
            moving,
            torch.from_numpy(poses.astype(np.float32)).to(device),
            torch.from_numpy(intrinsics).to(device),
        )


class WalkSource:
    """Renders training walks in processes, or in this one where there are none.

    Args:
        sizes: (height, width) of walks.
        workers: processes; 0 = `poll` renders a world each time.
        device: device of the renderer.
        views, supersample: see `render_walks`.
        first: number of the first world.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        workers: int,
        device: torch.device,
        *,
        views: int = WALK_VIEWS,
        supersample: int = 2,
        first: int = 0,
    ) -> None:
        self._arguments: dict[str, Any] = {"sizes": tuple(sizes), "views": views, "supersample": supersample}
        self._device, self._next, self._ready = device, first, 0.0
        context = torch.multiprocessing.get_context("spawn")  # a forked process must not use CUDA
        self._queue: Any = context.Queue(maxsize=max(2, 4 * workers)) if workers else None
        self._processes = [
            context.Process(
                target=_render_continuously,
                args=(self._queue, first + worker, workers, str(device), self._arguments, os.getpid()),
                daemon=True,
            )
            for worker in range(workers)
        ]
        for process in self._processes:
            process.start()

    def alive(self) -> bool:
        """Whether a process still renders."""
        return any(process.is_alive() for process in self._processes)

    def poll(self, limit: int = 4, *, urgent: bool = False) -> Iterator[Walk]:
        """Yields walks that are ready, at most `limit`.

        Where no process renders, this one does, for about a fifth of the time, or always if it is `urgent`.
        """
        if not self.alive():
            if urgent or time.monotonic() >= self._ready:
                yield from self.render_here()
            return
        for _ in range(limit):
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return

    def render_here(self) -> list[Walk]:
        """Renders a world in this process."""
        started = time.monotonic()
        # Far from the worlds of the processes.
        index = self._next + HERE if self._processes else self._next
        try:
            walks = render_walks("training", index, device=self._device, **self._arguments)
        except (InputError, ValueError):
            walks = []  # a world without room
        self._next += 1
        self._ready = time.monotonic() + 4 * (time.monotonic() - started)
        return walks

    def close(self) -> None:
        """Stops the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)


def _render_continuously(
    results: Any, first: int, step: int, device: str, arguments: dict[str, Any], parent: int
) -> None:
    """Renders worlds until the training process ends. Runs in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process handles Ctrl-C and stops this process
    torch.set_num_threads(1)
    index, hurried = first, first + HURRIED_WORLDS * step
    while os.getppid() == parent:
        started = time.monotonic()
        try:
            walks = render_walks("training", index, device=device, **arguments)
        except (InputError, ValueError):
            walks = []  # a world without room
        index += step
        if index > hurried:
            time.sleep(time.monotonic() - started)  # training needs the device more
        for walk in walks:
            while os.getppid() == parent:
                try:
                    results.put(walk, timeout=5)
                    break
                except queue.Full:
                    time.sleep(0.05)
