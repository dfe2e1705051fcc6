"""The small model's autoencoder: single pictures, a few megabytes, fast on a CPU.

A latent is a block of 8x8 pixels in 16 numbers. What an untrained one codes is the lowest frequencies of the block's
cosine transform, ten of brightness and three of each colour; convolutions at a half, a quarter and an eighth of the
size learn what to add to that on the way in and on the way out. None runs at full size. Same interface as
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

from worldstereo_ros.models.autoencoders.keyframe import _clips, _pictures
from worldstereo_ros.utils.errors import InputError

BLOCK = 8  # pixels of a latent, along each side
COLOUR_SHARE = 3 / 16  # of the channels, for each of the two colour differences


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; adds nothing until trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zero(self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        return x + self.conv2(functional.silu(self.conv1(functional.silu(x))))


class Down(nn.Module):
    """Half the size: blocks of 2x2 pixels become channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, out_channels, H/2, W/2)."""
        return self.conv(functional.pixel_unshuffle(x, 2))


class Up(nn.Module):
    """Twice the size: channels become blocks of 2x2 pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, out_channels, 2H, 2W)."""
        return functional.pixel_shuffle(self.conv(x), 2)


class ImageAutoencoder(ModelMixin, ConfigMixin):
    """Pictures to latents of mean 0 and deviation 1 (over the training worlds), and back.

    Args:
        widths: channels at a half, a quarter and an eighth of the size.
        encoder_blocks, decoder_blocks: residual blocks there.
        z_dim: channels of a latent.
        latents_mean, latents_std: of what the encoder gives, over the training worlds; None: 0 and 1.
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
                "numbers each: for a half, a quarter and an eighth of the size."
            )
        down: list[nn.Module] = []
        for before, width, blocks in zip((3, *widths), widths, encoder_blocks, strict=False):
            down += [Down(before, width), *(ResidualBlock(width) for _ in range(blocks))]
        last = Up(widths[0], 3)
        up: list[nn.Module] = [nn.Conv2d(z_dim, widths[-1], 3, padding=1)]
        for level in (2, 1, 0):
            up += [ResidualBlock(widths[level]) for _ in range(decoder_blocks[level])]
            up += [nn.SiLU(), Up(widths[level], widths[level - 1]) if level else last]
        out = nn.Conv2d(widths[-1], z_dim, 3, padding=1)
        self.encoder = nn.Sequential(*down, nn.SiLU(), out)
        self.decoder = nn.Sequential(*up)
        self.analysis = nn.Conv2d(3 * BLOCK**2, z_dim, 1)
        self.synthesis = nn.Conv2d(z_dim, 3 * BLOCK**2, 1)
        _zero(out)
        _zero(last.conv)
        basis = cosine_basis(z_dim)
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
        """Channels of a latent."""
        return self.config.z_dim

    @property
    def factor(self) -> int:
        """Pixels of a latent, along each side."""
        return BLOCK

    def encode(self, frames: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """The latent of every frame.

        Args:
            frames: (N, 3, H, W) or (b, 3, F, H, W) in [-1, 1]; H and W multiples of 8.
            batch: frames that go through side by side; None: all.

        Returns:
            (N, 16, H/8, W/8) or (b, 16, F, H/8, W/8), type of `frames`.

        Raises:
            ValueError: another shape.
        """
        pictures, clips = _pictures(frames, "frames", 3)
        if pictures.shape[-2] % BLOCK or pictures.shape[-1] % BLOCK:
            size = f"{pictures.shape[-2]}x{pictures.shape[-1]}"
            raise InputError(f"Frames of {size} were given; height and width must be multiples of {BLOCK}.")
        parts = [self.encode_images(part.to(self.dtype)) for part in pictures.split(batch or len(pictures))]
        mean, std = self._statistics(frames.device)
        return _clips((torch.cat(parts).float() - mean) / std, clips).to(frames.dtype)

    def decode(self, latents: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """Pictures in [-1, 1] of latents.

        Args:
            latents: (N, 16, h, w) or (b, 16, F, h, w).
            batch: frames that go through side by side; None: all.

        Returns:
            (N, 3, 8h, 8w) or (b, 3, F, 8h, 8w), type of `latents`.

        Raises:
            ValueError: another shape.
        """
        pictures, clips = _pictures(latents, "latents", self.config.z_dim)
        parts = [self._decode(part) for part in pictures.split(batch or len(pictures))]
        return _clips(torch.cat(parts).clamp(-1, 1), clips).to(latents.dtype)

    def decode_frames(self, latents: torch.Tensor, batch: int = 1) -> Iterator[torch.Tensor]:
        """Yields (3, 8h, 8w) pictures in order, each as soon as its `batch` is decoded.

        Args:
            latents: (16, F, h, w) of one clip.
            batch: frames that are decoded together.

        Raises:
            ValueError: another shape.
        """
        if latents.ndim != 4 or latents.shape[0] != self.config.z_dim:
            raise InputError(f"latents has shape {tuple(latents.shape)}; ({self.config.z_dim}, F, h, w) was expected.")
        for part in latents.transpose(0, 1).split(batch):
            yield from self._decode(part).clamp(-1, 1).to(latents.dtype)

    def encode_images(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, z_dim, H/8, W/8), nothing checked, cast or normalised: the training's way in."""
        return self.analysis(functional.pixel_unshuffle(pictures, BLOCK)) + self.encoder(pictures)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, z_dim, h, w), as `encode_images` gives them, to (N, 3, 8h, 8w), not clamped."""
        return functional.pixel_shuffle(self.synthesis(latents), BLOCK) + self.decoder(latents)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents.device)
        return self.decode_latents((latents.float() * std + mean).to(self.dtype))

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Not buffers: a cast of the model to half precision would round them.
        mean = self.config.latents_mean or (0.0,) * self.config.z_dim
        std = self.config.latents_std or (1.0,) * self.config.z_dim
        first, second = (torch.tensor(n, device=device, dtype=torch.float32).view(1, -1, 1, 1) for n in (mean, std))
        return first, second

    @torch.no_grad()
    def calibrate(self, pictures: torch.Tensor) -> None:
        """Scales an untrained coder so that latents of these pictures (N, 3, H, W) have mean 0 and deviation 1."""
        latents = self.analysis(functional.pixel_unshuffle(pictures, BLOCK))
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3)).clamp_min(1e-3)
        assert self.analysis.bias is not None
        assert self.synthesis.bias is not None
        self.analysis.weight.div_(deviation[:, None, None, None])
        self.analysis.bias.sub_(mean).div_(deviation)
        self.synthesis.bias.add_(self.synthesis.weight[..., 0, 0] @ mean)
        self.synthesis.weight.mul_(deviation[:, None, None])


def cosine_basis(count: int) -> torch.Tensor:
    """(count, 3 * 64) orthonormal: the lowest frequencies of 8x8 blocks, of brightness and of two colour differences.

    The order of the second axis is that of `pixel_unshuffle`: channel, row, column.
    """
    place = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi * (place + 0.5) * place[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    order = sorted((i * i + j * j, i, j) for i in range(BLOCK) for j in range(BLOCK))
    planes = [torch.outer(waves[i], waves[j]).flatten() for _, i, j in order]
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    chroma = max(1, round(count * COLOUR_SHARE)) if count >= 3 else 0
    shares = (count - 2 * chroma, chroma, chroma)
    rows = [
        torch.outer(colour, planes[k]).flatten() for colour, n in zip(colours, shares, strict=True) for k in range(n)
    ]
    return torch.stack(rows).float()


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
