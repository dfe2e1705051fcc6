"""Tiled decoding: latents are decoded in overlapping tiles that are blended, so that large images need little memory.

The decoder's attention sees one tile at a time, so that the result differs slightly from that of a whole decode. Models
that were evaluated with tiles, such as AnyRecon, need the same tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """Size and distance of tiles, in latent pixels.

    Attributes:
        size: (rows, columns) of a tile.
        stride: (rows, columns) from one tile to the next; at most the size.
    """

    size: tuple[int, int] = (30, 52)
    stride: tuple[int, int] = (15, 26)

    def __post_init__(self) -> None:
        if any(not 1 <= step <= size for size, step in zip(self.size, self.stride, strict=True)):
            raise InputError(
                f"Tiles of {self.size} have a stride of {self.stride}; strides of at least 1 and at most the size "
                "were expected."
            )

    def starts(self, axis: int, length: int) -> list[int]:
        """First rows (axis 0) or columns (axis 1) of the tiles that cover `length` latent pixels."""
        size, stride = self.size[axis], self.stride[axis]
        # A tile whose predecessor reaches the end would add nothing.
        return [start for start in range(0, length, stride) if start == 0 or start - stride + size < length]


def decode_tiled(autoencoder: KeyframeAutoencoder, latents: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Decodes normalised latents tile by tile.

    Neighbouring tiles are blended by weights that rise linearly over their overlap; at the border of the image they are
    1. The weight of a pixel is the smaller one of its row and its column.

    Args:
        autoencoder: decodes the tiles.
        latents: (N, C, h, w).
        tiling: the tiles.

    Returns:
        (N, 3, 8h, 8w) in [-1, 1], dtype of the autoencoder, on the CPU.

    Raises:
        InputError: `latents` has another shape.
    """
    if latents.ndim != 4 or latents.shape[1] != autoencoder.latent_channels:
        expected = f"(N, {autoencoder.latent_channels}, h, w)"
        raise InputError(f"latents has shape {tuple(latents.shape)}; {expected} was expected.")
    count, _, height, width = latents.shape
    scale, dtype = autoencoder.spatial_compression_ratio, autoencoder.dtype
    total = torch.zeros(count, autoencoder.image_channels, height * scale, width * scale, dtype=dtype)
    weights = torch.zeros(1, 1, height * scale, width * scale, dtype=dtype)
    overlap = tuple((size - step) * scale for size, step in zip(tiling.size, tiling.stride, strict=True))
    for top in tiling.starts(0, height):
        bottom = min(top + tiling.size[0], height)
        rows = _ramp((bottom - top) * scale, overlap[0], top == 0, top + tiling.size[0] >= height)
        for left in tiling.starts(1, width):
            right = min(left + tiling.size[1], width)
            columns = _ramp((right - left) * scale, overlap[1], left == 0, left + tiling.size[1] >= width)
            weight = torch.minimum(rows[:, None], columns[None, :]).to(dtype)
            tile = autoencoder.decode_unclamped(latents[:, :, top:bottom, left:right]).to("cpu", dtype)
            place = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
            total[place] += tile * weight
            weights[place] += weight
    return (total / weights).clamp(-1, 1)


def decode_frames_tiled(
    autoencoder: KeyframeAutoencoder, latents: torch.Tensor, tiling: Tiling, batch_size: int = 1
) -> Iterator[torch.Tensor]:
    """Yields the (3, 8h, 8w) frames of a video in order, each as soon as its batch is decoded.

    Args:
        autoencoder, tiling: see `decode_tiled`.
        latents: (C, F, h, w) of one video.
        batch_size: frames that are decoded together.
    """
    for part in latents.transpose(0, 1).split(batch_size):
        yield from decode_tiled(autoencoder, part, tiling)


def _ramp(length: int, overlap: int, first: bool, last: bool) -> torch.Tensor:
    """(length,) float32 weights of the rows or columns of a tile; `first` and `last`: it lies at that border."""
    weights = torch.ones(length)
    rise = (torch.arange(overlap) + 1) / max(overlap, 1)
    # A tile at the end may be shorter than the overlap.
    if not first and overlap:
        weights[:overlap] = rise[:length]
    if not last and overlap:
        weights[-overlap:] = rise.flip(0)[-length:]
    return weights
