"""The small model's autoencoder: single pictures, a few megabytes, fast on a CPU.

It is diffusers' `AutoencoderTiny` behind a pixel shuffle: blocks of 2x2 pixels are its channels, so that no
convolution runs at full size. Same interface as `KeyframeAutoencoder`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoder import _clips, _pictures

SHUFFLE = 2


class PictureAutoencoder(ModelMixin, ConfigMixin):
    """Pictures to latents of mean 0 and deviation 1 (over the training worlds), and back.

    Args:
        width: channels of all convolutions.
        encoder_blocks, decoder_blocks: residual blocks at a half, a quarter, an eighth of the size.
        z_dim: channels of a latent.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        encoder_blocks: tuple[int, ...] = (1, 2, 3),
        decoder_blocks: tuple[int, ...] = (3, 3, 1),
        z_dim: int = 16,
    ) -> None:
        super().__init__()
        pixels = 3 * SHUFFLE**2
        tiny = AutoencoderTiny(
            in_channels=pixels,
            out_channels=pixels,
            encoder_block_out_channels=(width,) * len(encoder_blocks),
            decoder_block_out_channels=(width,) * len(decoder_blocks),
            num_encoder_blocks=tuple(encoder_blocks),
            num_decoder_blocks=tuple(decoder_blocks),
            latent_channels=z_dim,
        )
        self.encoder, self.decoder = tiny.encoder, tiny.decoder
        # Only while training: `fold_statistics` makes it part of the encoder's last convolution.
        self.statistics: nn.BatchNorm2d | None = None
        self.factor = SHUFFLE * 2 ** (len(encoder_blocks) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.z_dim

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
        if pictures.shape[-2] % self.factor or pictures.shape[-1] % self.factor:
            size = f"{pictures.shape[-2]}x{pictures.shape[-1]}"
            raise ValueError(f"Frames of {size} were given; height and width must be multiples of {self.factor}.")
        latents = torch.cat([self.encode_pictures(part.to(self.dtype)) for part in pictures.split(batch or len(pictures))])
        return _clips(latents, clips).to(frames.dtype)

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
        parts = [self.decode_latents(part.to(self.dtype)) for part in pictures.split(batch or len(pictures))]
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
            raise ValueError(f"latents has shape {tuple(latents.shape)}; ({self.config.z_dim}, F, h, w) was expected.")
        for part in latents.transpose(0, 1).split(batch):
            yield from self.decode_latents(part.to(self.dtype)).clamp(-1, 1).to(latents.dtype)

    def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, z_dim, H/8, W/8), nothing checked or cast: the training's way in."""
        latents = self.encoder(functional.pixel_unshuffle(pictures, SHUFFLE))
        return latents if self.statistics is None else self.statistics(latents.float())

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, z_dim, h, w) to (N, 3, 8h, 8w), not clamped."""
        return functional.pixel_shuffle(self.decoder(latents), SHUFFLE)

    def watch_statistics(self) -> None:
        """Normalises latents by what passes through, as training wants it."""
        self.statistics = nn.BatchNorm2d(self.config.z_dim, affine=False, momentum=0.02)

    @torch.no_grad()
    def fold_statistics(self) -> None:
        """Makes the normalisation part of the encoder's last convolution."""
        if self.statistics is None:
            return
        last = [m for m in self.encoder.modules() if isinstance(m, nn.Conv2d)][-1]
        deviation = (self.statistics.running_var + self.statistics.eps).sqrt()
        last.weight.div_(deviation[:, None, None, None])
        assert last.bias is not None
        last.bias.sub_(self.statistics.running_mean).div_(deviation)
        self.statistics = None
