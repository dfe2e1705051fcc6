"""Rendered worlds: files of views along walks through procedural worlds.

A file has a few megabytes: views at the model's size, some of them at twice that size with depth (clouds are made of
them), and camera poses. Training batches are sampled from these walks (`clip_sampling`). Separate processes
render worlds while training runs (`world_workers`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import PATHS, make_path, make_scene, pack, render_batch, seed_of
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.utils.errors import InputError

KIND_WEIGHTS = {"room": 0.4, "corridor": 0.15, "warehouse": 0.25, "lot": 0.2}  # defaults of the configuration
FINE_SCALE = 2  # size of fine views, of which clouds are made, relative to the model's
FINE_STRIDE = 4  # every n-th view of a walk has a fine view
WALKS, WALK_VIEWS = 2, 48  # of a world
MAX_STEP_M, MAX_TURN_RAD = 0.15, 0.16  # between consecutive views


@dataclass(frozen=True)
class RenderedWorld:
    """N views of one world; tensors on the CPU.

    Attributes:
        image: (N, 3, h, w) uint8.
        depth: (N, h, w) float16 metres, 0 = no surface (sky).
        pose: (N, 4, 4) float32 world_from_camera, OpenCV axes.
        walk: (N,) int64, number of the walk of each view; views of a walk are consecutive.
        matrix: (3, 3) float32 intrinsics at (h, w).
        fine: (S,) int64, indices of the views that have a fine view.
        fine_image: (S, 3, 2h, 2w) uint8.
        fine_depth: (S, 2h, 2w) float16.
    """

    image: torch.Tensor
    depth: torch.Tensor
    pose: torch.Tensor
    walk: torch.Tensor
    matrix: torch.Tensor
    fine: torch.Tensor
    fine_image: torch.Tensor
    fine_depth: torch.Tensor

    @property
    def camera(self) -> Camera:
        """Intrinsics of the views."""
        height, width = self.image.shape[-2:]
        k = self.matrix.double()
        return Camera(width, height, float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))

    def mirrored(self) -> RenderedWorld:
        """The same walks through the mirrored world, left and right exchanged."""
        matrix = self.matrix.clone()
        matrix[0, 2] = self.image.shape[-1] - 1 - matrix[0, 2]
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        flipped = {name: getattr(self, name).flip(-1) for name in ("image", "depth", "fine_image", "fine_depth")}
        return replace(self, pose=mirror @ self.pose @ mirror, matrix=matrix, **flipped)

    def save(self, file: Path) -> None:
        """Writes the world to a temporary file and renames it."""
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, str(part))
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> RenderedWorld:
        """Memory-maps a file of `save`: tensors are read on access, and processes share the memory.

        Raises:
            InputError: the file is not a rendered world.
        """
        with safe_open(str(file), framework="pt") as reader:
            names = set(reader.keys())
            expected = {f.name for f in fields(cls)}
            if names != expected:
                raise InputError(
                    f"{file} is not a rendered world: it has the tensors {sorted(names)} instead of {sorted(expected)}."
                )
            return cls(**{name: reader.get_tensor(name) for name in expected})


def render_world(
    split: str,
    index: int,
    sizes: Sequence[tuple[int, int]],
    *,
    shadow_prob: float = 1.0,
    kinds: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
) -> RenderedWorld:
    """Renders world `index` of a split; deterministic.

    Args:
        split: training, validation or test (`scenes.splits`).
        index: number of the world; kind, camera, size and walks follow from it.
        sizes: ((height, width), ...) to choose from; the first is as frequent as all others together.
        shadow_prob: fraction of the worlds with shadows, which take a second to compute.
        kinds: relative frequency of each kind of scene; None: `KIND_WEIGHTS`.
        device: device of the renderer.

    Raises:
        ValueError: the world has no free path.
    """
    random = Random(7_919 * index + 13)
    weights = dict(kinds or KIND_WEIGHTS)
    cumulative = np.cumsum(list(weights.values())) / sum(weights.values())
    kind = list(weights)[min(int(np.searchsorted(cumulative, random.uniform(0, 1))), len(weights) - 1)]
    height, width = sizes[0] if len(sizes) == 1 or random.chance(0.5) else random.choice(list(sizes[1:]))
    camera = Camera.from_fov(width, height, math.radians(random.uniform(55, 95)))
    seed = seed_of(split, index)
    scene = make_scene(kind, seed)
    light = "soft" if random.chance(shadow_prob) else "plain"
    walks = [
        make_path(scene, random.choice(list(PATHS)), WALK_VIEWS, seed=walk, step=MAX_STEP_M, turn=MAX_TURN_RAD)
        for walk in range(WALKS)
    ]
    poses = np.concatenate(walks)
    fine_camera = camera.resized(width * FINE_SCALE, height * FINE_SCALE)
    frames = render_batch(pack([scene], device=device, light=light), fine_camera, poses[None])
    fine_image = frames.image[0].permute(0, 3, 1, 2)
    fine_depth = frames.depth[0]
    image = functional.avg_pool2d(fine_image.float(), FINE_SCALE).add(0.5).to(torch.uint8)
    depth = _downsample_depth(fine_depth)
    fine = torch.arange(0, len(poses), FINE_STRIDE)
    return RenderedWorld(
        image=image.cpu(),
        depth=depth.half().cpu(),
        pose=torch.from_numpy(poses).float(),
        walk=torch.arange(WALKS).repeat_interleave(WALK_VIEWS),
        matrix=torch.from_numpy(camera.matrix).float(),
        fine=fine,
        fine_image=fine_image[fine.to(fine_image.device)].cpu(),
        fine_depth=fine_depth[fine.to(fine_depth.device)].half().cpu(),
    )


def render_worlds(
    folder: Path,
    split: str,
    indices: Iterator[int] | Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    shadow_prob: float = 1.0,
    kinds: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
) -> int:
    """Renders the worlds of `indices` that are missing in `folder`; returns their number.

    Worlds without a free path are skipped. Other arguments: see `render_world`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for index in indices:
        file = folder / f"{split}-{index:09d}.safetensors"
        if file.exists():
            continue
        try:
            world = render_world(split, index, sizes, shadow_prob=shadow_prob, kinds=kinds, device=device)
        except ValueError:
            continue
        world.save(file)
        count += 1
    return count


def _downsample_depth(depth: torch.Tensor) -> torch.Tensor:
    """(N, h, w) of (N, 2h, 2w): the mean of four pixels on one surface, else one of them.

    A mean over a depth edge would be a point on neither surface.
    """
    four = torch.stack([depth[:, i::FINE_SCALE, j::FINE_SCALE] for i in range(FINE_SCALE) for j in range(FINE_SCALE)])
    low, high = four.amin(0), four.amax(0)
    return torch.where(high < 1.03 * low, four.mean(0), four[0])
