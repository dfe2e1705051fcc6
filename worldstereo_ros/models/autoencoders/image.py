"""The autoencoder of the bundled small model: encodes single images, has a few megabytes, runs fast on a CPU.

A latent describes a block of 8x8 pixels by 16 numbers. Untrained, these are the lowest frequencies of the block's
discrete cosine transform: ten of the luma and three of each of the two chroma components. Convolutions at 1/2, 1/4 and
1/8 of the resolution learn a residual to it, in the encoder and in the decoder. The interface is that of
`KeyframeAutoencoder`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.frames import flatten_frames, unflatten_frames
from worldstereo_ros.models.blocks import Downsample, ResidualBlock, Upsample, zero_module
from worldstereo_ros.utils.errors import InputError

BLOCK_PX = 8  # side of the block of pixels that a latent describes
CHROMA_FRACTION = 3 / 16  # of the latent channels, for each of the two chroma components


class ImageAutoencoder(ModelMixin, ConfigMixin):
    """Encodes images to latents of mean 0 and standard deviation 1 (over the training worlds), and decodes them.

    Args:
        widths: channels at 1/2, 1/4 and 1/8 of the resolution.
        encoder_blocks: residual blocks of the encoder at these resolutions.
        decoder_blocks: residual blocks of the decoder at these resolutions.
        z_dim: latent channels.
        latents_mean: (z_dim,) mean of the encoder's output over the training worlds; None = 0.
        latents_std: (z_dim,) standard deviation of the encoder's output over the training worlds; None = 1.

    Raises:
        InputError: an argument has the wrong length.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128),
        encoder_blocks: tuple[int, ...] = (1, 2, 3),
        decoder_blocks: tuple[int, ...] = (2, 3, 3),
        z_dim: int = 16,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or len(encoder_blocks) != 3 or len(decoder_blocks) != 3:
            raise InputError(
                f"widths {widths}, encoder_blocks {encoder_blocks} and decoder_blocks {decoder_blocks} must have three "
                "numbers each, for 1/2, 1/4 and 1/8 of the resolution."
            )
        encoder: list[nn.Module] = []
        for in_width, width, blocks in zip((3, *widths), widths, encoder_blocks, strict=False):
            encoder += [Downsample(in_width, width), *(ResidualBlock(width) for _ in range(blocks))]
        to_image = Upsample(widths[0], 3)
        decoder: list[nn.Module] = [nn.Conv2d(z_dim, widths[-1], 3, padding=1)]
        for level in (2, 1, 0):
            decoder += [ResidualBlock(widths[level]) for _ in range(decoder_blocks[level])]
            decoder += [nn.SiLU(), Upsample(widths[level], widths[level - 1]) if level else to_image]
        to_latent = nn.Conv2d(widths[-1], z_dim, 3, padding=1)
        self.encoder = nn.Sequential(*encoder, nn.SiLU(), to_latent)
        self.decoder = nn.Sequential(*decoder)
        self.analysis = nn.Conv2d(3 * BLOCK_PX**2, z_dim, 1)
        self.synthesis = nn.Conv2d(z_dim, 3 * BLOCK_PX**2, 1)
        zero_module(to_latent)
        zero_module(to_image.conv)
        basis = dct_basis(z_dim)
        with torch.no_grad():
            self.analysis.weight.copy_(basis[..., None, None])
            self.synthesis.weight.copy_(basis.T[..., None, None])
            for layer in (self.analysis, self.synthesis):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        for values in (latents_mean, latents_std):
            if values is not None and len(values) != z_dim:
                raise InputError(f"latents_mean and latents_std must have {z_dim} numbers each, one for a channel.")

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""
        return self.config.z_dim

    @property
    def image_channels(self) -> int:
        """Number of channels of the images."""
        return 3

    @property
    def spatial_compression_ratio(self) -> int:
        """Side of the block of pixels that a latent describes."""
        return BLOCK_PX

    def encode(self, frames: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Encodes each frame to its normalised latent.

        Args:
            frames: (N, 3, H, W) or (b, 3, F, H, W) in [-1, 1]; H and W multiples of 8.
            batch_size: frames that are encoded together; None = all.

        Returns:
            (N, 16, H/8, W/8) or (b, 16, F, H/8, W/8), dtype of `frames`.

        Raises:
            InputError: `frames` has another shape.
        """
        images, num_videos = flatten_frames(frames, "frames", 3)
        if images.shape[-2] % BLOCK_PX or images.shape[-1] % BLOCK_PX:
            size = f"{images.shape[-2]}x{images.shape[-1]}"
            raise InputError(f"frames have size {size}; height and width must be multiples of {BLOCK_PX}.")
        latents = torch.cat([self.encode_batch(part) for part in images.split(batch_size or len(images))])
        return unflatten_frames(latents, num_videos).to(frames.dtype)

    def decode(self, latents: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Decodes normalised latents to frames.

        Args:
            latents: (N, 16, h, w) or (b, 16, F, h, w).
            batch_size: frames that are decoded together; None = all.

        Returns:
            (N, 3, 8h, 8w) or (b, 3, F, 8h, 8w) in [-1, 1], dtype of `latents`.

        Raises:
            InputError: `latents` has another shape.
        """
        images, num_videos = flatten_frames(latents, "latents", self.config.z_dim)
        frames = torch.cat([self.decode_batch(part) for part in images.split(batch_size or len(images))])
        return unflatten_frames(frames, num_videos).to(latents.dtype)

    def decode_frames(self, latents: torch.Tensor, batch_size: int = 1) -> Iterator[torch.Tensor]:
        """Yields the (3, 8h, 8w) frames of a video in order, each as soon as its batch is decoded.

        Args:
            latents: (16, F, h, w) of one video.
            batch_size: frames that are decoded together.

        Raises:
            InputError: `latents` has another shape.
        """
        if latents.ndim != 4 or latents.shape[0] != self.config.z_dim:
            raise InputError(f"latents has shape {tuple(latents.shape)}; ({self.config.z_dim}, F, h, w) was expected.")
        for part in latents.transpose(0, 1).split(batch_size):
            yield from self.decode_batch(part).to(latents.dtype)

    def encode_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, H, W) to normalised float32 latents (N, z_dim, H/8, W/8), without checks."""
        mean, std = self._latent_statistics(images.device)
        return (self.encode_images(images.to(self.dtype)).float() - mean) / std

    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps normalised latents (N, z_dim, h, w) to (N, 3, 8h, 8w) in [-1, 1], without checks."""
        mean, std = self._latent_statistics(latents.device)
        return self.decode_latents((latents.float() * std + mean).to(self.dtype)).clamp(-1, 1)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, H, W) to latents (N, z_dim, H/8, W/8) without checks, casts or normalisation, for training."""
        return self.analysis(functional.pixel_unshuffle(images, BLOCK_PX)) + self.encoder(images)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps latents (N, z_dim, h, w) of `encode_images` to (N, 3, 8h, 8w) without clamping, for training."""
        return functional.pixel_shuffle(self.synthesis(latents), BLOCK_PX) + self.decoder(latents)

    @torch.no_grad()
    def calibrate(self, images: torch.Tensor) -> None:
        """Scales an untrained autoencoder so that the latents of these images have mean 0 and standard deviation 1.

        Args:
            images: (N, 3, H, W) in [-1, 1].
        """
        latents = self.analysis(functional.pixel_unshuffle(images, BLOCK_PX))
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3)).clamp_min(1e-3)
        assert self.analysis.bias is not None
        assert self.synthesis.bias is not None
        self.analysis.weight.div_(std[:, None, None, None])
        self.analysis.bias.sub_(mean).div_(std)
        self.synthesis.bias.add_(self.synthesis.weight[..., 0, 0] @ mean)
        self.synthesis.weight.mul_(std[:, None, None])

    def _latent_statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Not buffers: casting the model to half precision would round them.
        mean = self.config.latents_mean or (0.0,) * self.config.z_dim
        std = self.config.latents_std or (1.0,) * self.config.z_dim
        first, second = (torch.tensor(n, device=device, dtype=torch.float32).view(1, -1, 1, 1) for n in (mean, std))
        return first, second


def dct_basis(count: int) -> torch.Tensor:
    """The lowest frequencies of the discrete cosine transform of 8x8 RGB blocks: luma, then two chroma components.

    Args:
        count: number of basis vectors.

    Returns:
        (count, 3 * 64) float32, orthonormal rows. The second axis is ordered as by `pixel_unshuffle`: channel, row,
        column.
    """
    index = torch.arange(BLOCK_PX, dtype=torch.float64)
    waves = torch.cos(math.pi * (index + 0.5) * index[:, None] / BLOCK_PX) * math.sqrt(2 / BLOCK_PX)
    waves[0] /= math.sqrt(2)
    by_frequency = sorted((i * i + j * j, i, j) for i in range(BLOCK_PX) for j in range(BLOCK_PX))
    patterns = [torch.outer(waves[i], waves[j]).flatten() for _, i, j in by_frequency]
    components = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    components = components / components.norm(dim=1, keepdim=True)
    chroma = max(1, round(count * CHROMA_FRACTION)) if count >= 3 else 0
    counts = (count - 2 * chroma, chroma, chroma)
    rows = [
        torch.outer(component, patterns[k]).flatten()
        for component, n in zip(components, counts, strict=True)
        for k in range(n)
    ]
    return torch.stack(rows).float()
