"""The set of rendered worlds, single images from it, and colour augmentation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.utils.errors import InputError

FINE_CROP_PROB = 0.35  # probability that an image is a crop of a view at twice the size


class WorldDataset:
    """The newest worlds in a folder, at most `cache_size` of them.

    Args:
        folder: where worlds are written, possibly while this dataset is in use.
        split: training, validation or test.
        cache_size: maximum number of worlds in memory.
    """

    def __init__(self, folder: Path, split: str, cache_size: int) -> None:
        self.folder, self.split, self.cache_size = folder, split, cache_size
        self.worlds: dict[str, RenderedWorld] = {}
        self.refresh()

    def refresh(self) -> None:
        """Loads worlds that were written since the last call and drops the oldest.

        Raises:
            InputError: there are no worlds.
        """
        names = sorted(p.name for p in self.folder.glob(f"{self.split}-*.safetensors"))[-self.cache_size :]
        for name in set(self.worlds) - set(names):
            del self.worlds[name]
        for name in names:
            if name not in self.worlds:
                with suppress(FileNotFoundError):  # a rendering process has deleted it to make room
                    self.worlds[name] = RenderedWorld.load(self.folder / name)
        if not self.worlds:
            raise InputError(f"There are no {self.split} worlds in {self.folder}; render them first (`render_worlds`).")
        self.order = sorted(self.worlds)

    def sample_worlds(self, count: int, random: np.random.Generator) -> list[RenderedWorld]:
        """Samples `count` worlds, with replacement, whose views have the same size."""
        first = self.worlds[self.order[int(random.integers(len(self.order)))]]
        same_size = [n for n in self.order if self.worlds[n].image.shape == first.image.shape]
        return [self.worlds[same_size[int(i)]] for i in random.integers(len(same_size), size=count)]


def sample_images(dataset: WorldDataset, count: int, random: np.random.Generator) -> torch.Tensor:
    """Samples images: views and crops of views at twice the size, half of them mirrored.

    Returns:
        (count, 3, h, w) uint8.
    """
    images = []
    for world in dataset.sample_worlds(count, random):
        height, width = world.image.shape[-2:]
        if random.random() < FINE_CROP_PROB:
            fine = world.fine_image[int(random.integers(len(world.fine_image)))]
            y, x = int(random.integers(fine.shape[1] - height + 1)), int(random.integers(fine.shape[2] - width + 1))
            image = fine[:, y : y + height, x : x + width]
        else:
            image = world.image[int(random.integers(len(world.image)))]
        images.append(image.flip(-1) if random.random() < 0.5 else image)
    return torch.stack(images)


def augment_colours(images: torch.Tensor, random: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """Augments images as if taken by different cameras.

    Each image gets its own exposure, white balance, contrast, saturation, gamma and noise.

    Args:
        images: (N, ..., 3, h, w) float in [0, 1].
        random: random number generator.
        strength: 0 leaves the images unchanged.

    Returns:
        Images of the same shape in [-1, 1].
    """
    shape = (len(images),) + (1,) * (images.ndim - 1)

    def log_uniform(low: float, high: float) -> torch.Tensor:
        values = np.exp(strength * random.uniform(np.log(low), np.log(high), size=len(images)))
        return torch.from_numpy(values).to(images).view(shape)

    balance = torch.from_numpy(np.exp(strength * random.uniform(-0.15, 0.15, size=(len(images), 3)))).to(images)
    out = images * log_uniform(0.6, 1.35) * balance.view(len(images), *(1,) * (images.ndim - 4), 3, 1, 1)
    grey = out.mean(-3, keepdim=True)
    out = grey + (out - grey) * log_uniform(0.5, 1.4)
    out = out.clamp(1e-4, 1) ** log_uniform(0.75, 1.3)
    deviation = torch.from_numpy(strength * 0.02 * random.random(size=len(images)) ** 2).to(out).view(shape)
    generator = torch.Generator(out.device).manual_seed(int(random.integers(2**62)))
    out = out + deviation * torch.randn(out.shape, generator=generator, device=out.device)
    return out.clamp(0, 1) * 2 - 1
