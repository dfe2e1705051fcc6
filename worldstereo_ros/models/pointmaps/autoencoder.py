"""The point-map autoencoder: the image autoencoder, whose weights it starts from, with points instead of colours.

Points over the mean distance of the clip are coded by asinh (`geometry.encode_points`). Beside three coordinates the
decoder gives the scale of their error and whether there is a surface. Sora3R adapts the video autoencoder of Open-Sora
in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import BLOCK_PX, ImageAutoencoder
from worldstereo_ros.models.blocks import Upsample, zero_module
from worldstereo_ros.models.pointmaps.geometry import SKY_DISTANCE, decode_points, encode_points, lengths

MIN_LOG_SCALE, MAX_LOG_SCALE = -3.5, 2.0
FIRST_LOG_SCALE = -2.0
FIRST_VALID = 2.0


class PointmapAutoencoder(ImageAutoencoder):
    """Encodes point maps, each frame on its own; arguments of `ImageAutoencoder`."""

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
        super().__init__(widths, encoder_blocks, decoder_blocks, z_dim, latents_mean, latents_std)
        self.heads = Upsample(widths[0], 2)
        zero_module(self.heads.conv)

    @classmethod
    def from_image_autoencoder(cls, image: ImageAutoencoder) -> PointmapAutoencoder:
        """Starts from the weights of an image autoencoder, in float32."""
        config = {k: v for k, v in image.config.items() if not k.startswith("_")}
        model = cls(**config)
        model.load_state_dict({k: v.float() for k, v in image.state_dict().items()}, strict=False)
        return model

    def encode_points(self, points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Encodes points to latents (b * F, z_dim, h, w) without normalisation; see `encode_pointmaps`."""
        return self.encode_images(coded(points, valid).flatten(0, 1))

    def encode_pointmaps(self, points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Encodes videos of points to normalised latents.

        Args:
            points: (b, F, 3, H, W) over the mean distance, axes of the first camera; far where there is no surface.
            valid: (b, F, H, W) bool, True = a surface.

        Returns:
            (b, z_dim, F, H / 8, W / 8) float32.
        """
        code = coded(points, valid)
        latents = self.encode_batch(code.flatten(0, 1))
        return latents.unflatten(0, code.shape[:2]).transpose(1, 2)

    def decode_heads(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decodes latents of `encode_images` to coded points (N, 3, H, W), log scale and valid logit (N, H, W)."""
        layers: list[nn.Module] = list(self.decoder)
        x = latents
        for layer in layers[:-1]:
            x = layer(x)
        code = functional.pixel_shuffle(self.synthesis(latents), BLOCK_PX) + layers[-1](x)
        heads = self.heads(x).float()
        log_scale = (heads[:, 0] + FIRST_LOG_SCALE).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        return code.float(), log_scale, heads[:, 1] + FIRST_VALID

    def decode_pointmaps(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decodes normalised latents (b, z_dim, F, h, w).

        Returns:
            Points (b, F, 3, 8h, 8w) over the mean distance; log scale and valid logit (b, F, 8h, 8w).
        """
        mean, std = self._latent_statistics(latents.device)
        flat = latents.transpose(1, 2).flatten(0, 1)
        code, *heads = self.decode_heads((flat.float() * std + mean).to(self.dtype))
        code, log_scale, valid = (x.unflatten(0, (len(latents), -1)) for x in (code, *heads))
        return decode_points(code), log_scale, valid

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Sets mean and standard deviation (z_dim,) of the latents, which are part of the configuration."""
        values: dict[str, Any] = {"latents_mean": mean.tolist(), "latents_std": std.clamp_min(1e-3).tolist()}
        self.register_to_config(**values)


def coded(points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Codes points (b, F, 3, H, W) over the mean distance; those without a surface are at a fixed distance."""
    far = points * (SKY_DISTANCE / lengths(points).clamp_min(1e-12))[:, :, None]
    return encode_points(torch.where(valid[:, :, None], points, far))
