"""Views to learn from: every training world is walked through once and photographed along the way.

A world is a file of a few megabytes: its views at the model's size, some of them at twice that size with their depth
(the ones a cloud is made of), and where they were taken. Batches are cut out of such walks (`clips.py`). Worlds are
drawn by processes of their own and kept in a folder while training runs: on a CPU one view is shown many times, on
a GPU machine worlds come as fast as they are used up.
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

KIND_WEIGHTS = {"room": 0.4, "corridor": 0.15, "warehouse": 0.25, "lot": 0.2}  # unless the settings say otherwise
FINE = 2  # how many times larger the views are that make clouds
FINE_EVERY = 4  # of the views of a walk
WALKS, WALK_VIEWS = 2, 48
STEP, TURN = 0.15, 0.16  # metres and radians from view to view, at most


@dataclass(frozen=True)
class RenderedWorld:
    """N views of one world, tensors on the CPU.

    Attributes:
        image: (N, 3, h, w) uint8.
        depth: (N, h, w) float16 metres, 0 = nothing hit.
        pose: (N, 4, 4) float32 world_from_camera, OpenCV axes.
        walk: (N,) int64, which walk a view is of; views of a walk follow each other.
        matrix: (3, 3) float32 intrinsics of the views at (h, w).
        fine: (S,) int64, the views that are there at twice the size too.
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
        """The same walks through the world's mirror image: left and right exchanged."""
        matrix = self.matrix.clone()
        matrix[0, 2] = self.image.shape[-1] - 1 - matrix[0, 2]
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        flipped = {name: getattr(self, name).flip(-1) for name in ("image", "depth", "fine_image", "fine_depth")}
        return replace(self, pose=mirror @ self.pose @ mirror, matrix=matrix, **flipped)

    def save(self, file: Path) -> None:
        """Writes the world aside and moves it into place."""
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, str(part))
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> RenderedWorld:
        """Maps what `save` wrote: memory is taken for what is looked at, and processes share it.

        Raises:
            ValueError: the file is not a world.
        """
        with safe_open(str(file), framework="pt") as reader:
            names = set(reader.keys())
            wanted = {f.name for f in fields(cls)}
            if names != wanted:
                raise InputError(f"{file} is no world: it holds {sorted(names)}; {sorted(wanted)} were expected.")
            return cls(**{name: reader.get_tensor(name) for name in wanted})


def draw_world(
    split: str,
    index: int,
    sizes: Sequence[tuple[int, int]],
    *,
    shadow_prob: float = 1.0,
    kinds: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
) -> RenderedWorld:
    """World `index` of a split, walked through and photographed.

    Args:
        split: "training", "validation" or "test" (`scenes.splits`).
        index: which world; kind, camera, size and walks follow from it.
        sizes: ((height, width), ...) to choose from; the first is drawn as often as all others together.
        shadow_prob: share of the worlds with shadows, which cost a second to work out.
        kinds: shares of the kinds of scene; None: `KIND_WEIGHTS`.
        device: where views are drawn.
    """
    random = Random(7_919 * index + 13)
    shares = dict(kinds or KIND_WEIGHTS)
    steps = np.cumsum(list(shares.values())) / sum(shares.values())
    kind = list(shares)[min(int(np.searchsorted(steps, random.uniform(0, 1))), len(shares) - 1)]
    height, width = sizes[0] if len(sizes) == 1 or random.chance(0.5) else random.choice(list(sizes[1:]))
    camera = Camera.from_fov(width, height, math.radians(random.uniform(55, 95)))
    seed = seed_of(split, index)
    scene = make_scene(kind, seed)
    light = "soft" if random.chance(shadow_prob) else "plain"
    poses = [
        make_path(scene, random.choice(list(PATHS)), WALK_VIEWS, seed=walk, step=STEP, turn=TURN)
        for walk in range(WALKS)
    ]
    table = np.concatenate(poses)
    fine_camera = camera.resized(width * FINE, height * FINE)
    frames = render_batch(pack([scene], device=device, light=light), fine_camera, table[None])
    fine_image = frames.image[0].permute(0, 3, 1, 2)
    fine_depth = frames.depth[0]
    image = functional.avg_pool2d(fine_image.float(), FINE).add(0.5).to(torch.uint8)
    depth = _halved(fine_depth)
    chosen = torch.arange(0, len(table), FINE_EVERY)
    return RenderedWorld(
        image=image.cpu(),
        depth=depth.half().cpu(),
        pose=torch.from_numpy(table).float(),
        walk=torch.arange(WALKS).repeat_interleave(WALK_VIEWS),
        matrix=torch.from_numpy(camera.matrix).float(),
        fine=chosen,
        fine_image=fine_image[chosen.to(fine_image.device)].cpu(),
        fine_depth=fine_depth[chosen.to(fine_depth.device)].half().cpu(),
    )


def draw_worlds(
    folder: Path,
    split: str,
    indices: Iterator[int] | Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    shadow_prob: float = 1.0,
    kinds: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
) -> int:
    """Draws the worlds that `folder` lacks; returns how many that were.

    A world that cannot be made (too full to walk in) is passed over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for index in indices:
        file = folder / f"{split}-{index:09d}.safetensors"
        if file.exists():
            continue
        try:
            world = draw_world(split, index, sizes, shadow_prob=shadow_prob, kinds=kinds, device=device)
        except ValueError:
            continue
        world.save(file)
        drawn += 1
    return drawn


def _halved(depth: torch.Tensor) -> torch.Tensor:
    """(N, h, w) of (N, 2h, 2w): the mean where the four belong to one surface, else one of them.

    A mean across an edge would put points into thin air.
    """
    four = torch.stack([depth[:, i::FINE, j::FINE] for i in range(FINE) for j in range(FINE)])
    low, high = four.amin(0), four.amax(0)
    return torch.where(high < 1.03 * low, four.mean(0), four[0])
