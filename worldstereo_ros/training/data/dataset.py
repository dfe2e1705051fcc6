"""Batches cut out of walks through worlds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.utils.errors import InputError


class WorldDataset:
    """The worlds that training draws from: those in a folder, the newest first, at most so many at a time.

    Args:
        folder: where worlds are written, possibly while this reads them.
        split: whose worlds.
        cache_size: most worlds in memory.
    """

    def __init__(self, folder: Path, split: str, cache_size: int) -> None:
        self.folder, self.split, self.cache_size = folder, split, cache_size
        self.worlds: dict[str, RenderedWorld] = {}
        self.refresh()

    def refresh(self) -> None:
        """Looks for worlds that were written since, and lets the oldest go.

        Raises:
            ValueError: there is none at all.
        """
        names = sorted(p.name for p in self.folder.glob(f"{self.split}-*.safetensors"))[-self.cache_size :]
        for name in set(self.worlds) - set(names):
            del self.worlds[name]
        for name in names:
            if name not in self.worlds:
                with suppress(FileNotFoundError):  # it made room for newer ones just now
                    self.worlds[name] = RenderedWorld.load(self.folder / name)
        if not self.worlds:
            raise InputError(f"There are no {self.split} worlds in {self.folder}; they are drawn first.")
        self.order = sorted(self.worlds)

    def of_one_size(self, count: int, random: np.random.Generator) -> list[RenderedWorld]:
        """`count` worlds (with repetition) whose views have one size."""
        first = self.worlds[self.order[int(random.integers(len(self.order)))]]
        like = [n for n in self.order if self.worlds[n].image.shape == first.image.shape]
        return [self.worlds[like[int(i)]] for i in random.integers(len(like), size=count)]


def draw_pictures(dataset: WorldDataset, count: int, random: np.random.Generator) -> torch.Tensor:
    """(count, 3, h, w) uint8 pictures: views, and windows of finer views; sometimes mirrored."""
    pictures = []
    for world in dataset.of_one_size(count, random):
        height, width = world.image.shape[-2:]
        if random.random() < 0.35:
            fine = world.fine_image[int(random.integers(len(world.fine_image)))]
            y, x = int(random.integers(fine.shape[1] - height + 1)), int(random.integers(fine.shape[2] - width + 1))
            picture = fine[:, y : y + height, x : x + width]
        else:
            picture = world.image[int(random.integers(len(world.image)))]
        pictures.append(picture.flip(-1) if random.random() < 0.5 else picture)
    return torch.stack(pictures)


def augment_colours(pictures: torch.Tensor, random: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """Pictures in [-1, 1] as cameras of different makes would give them.

    Exposure, white balance, contrast and saturation of each picture, and noise that is stronger in the dark.

    Args:
        images: (N, ..., 3, h, w) float in [0, 1].
        random: draws.
        strength: 0: as they are.
    """
    shape = (len(pictures),) + (1,) * (pictures.ndim - 1)

    def draw(low: float, high: float) -> torch.Tensor:
        values = np.exp(strength * random.uniform(np.log(low), np.log(high), size=len(pictures)))
        return torch.from_numpy(values).to(pictures).view(shape)

    balance = torch.from_numpy(np.exp(strength * random.uniform(-0.15, 0.15, size=(len(pictures), 3)))).to(pictures)
    out = pictures * draw(0.6, 1.35) * balance.view(len(pictures), *(1,) * (pictures.ndim - 4), 3, 1, 1)
    grey = out.mean(-3, keepdim=True)
    out = grey + (out - grey) * draw(0.5, 1.4)
    out = out.clamp(1e-4, 1) ** draw(0.75, 1.3)
    deviation = torch.from_numpy(strength * 0.02 * random.random(size=len(pictures)) ** 2).to(out).view(shape)
    generator = torch.Generator(out.device).manual_seed(int(random.integers(2**62)))
    out = out + deviation * torch.randn(out.shape, generator=generator, device=out.device)
    return out.clamp(0, 1) * 2 - 1


def structural_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of pictures (N, 3, h, w) in [-1, 1], over windows of 7x7; differentiable."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 7, 1)

    a, b = a.float() * 0.5 + 0.5, b.float() * 0.5 + 0.5
    ma, mb = mean(a), mean(b)
    va, vb, ab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * ma * mb + c1) * (2 * ab + c2)) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR of each of N pictures in [-1, 1], (N,)."""
    error = (a.float().clamp(-1, 1) - b.float()).square().flatten(1).mean(1) / 4
    return -10 * torch.log10(error.clamp_min(1e-10))


def as_uint8(pictures: torch.Tensor) -> np.ndarray:
    """(N, 3, h, w) in [-1, 1] to (N, h, w, 3) uint8."""
    return pictures.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures (n, h, w, 3) uint8 as one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
