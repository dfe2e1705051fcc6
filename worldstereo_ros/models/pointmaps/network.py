"""The network of point maps: a transformer over joined latents, as Sora3R, with a branch at the resolution of pixels.

The transformer gets the noisy latent of the point map beside the latents of the images and of a prior, and predicts the
velocity of a rectified flow. The prior is the mean of that flow (`render_prior.with_render_prior`): untrained, one step
returns it. Without a prior the mean is 0, and what is left is the published method.

Latents of 8x8 pixels cannot say where an edge runs, or how well frames match. A branch of convolutions therefore gives
the tokens images, depth and matching of frames (`sweep`) at the resolution of pixels, and decodes them, with skips, to
a residual of the prior's log depth, the scale of its error, and what moves. Untrained, the residual is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import Downsample, ResidualBlock, Upsample, zero_module
from worldstereo_ros.models.factorised_transformer import FactorisedTransformer
from worldstereo_ros.models.pointmaps.correlation import MOTION_CHANNELS
from worldstereo_ros.models.pointmaps.sweep import SCALE, SWEEP_CHANNELS
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.models.worldstereo.render_prior import with_render_prior
from worldstereo_ros.utils.errors import InputError

PATCH_PX = 4  # side of the cell of pixels that a feature at the highest resolution describes
COLOURS = 3
PIXEL_CHANNELS = 8  # colours, log depth, log sigma, residual and weight of anchors, whether there is a prior
GEOMETRY_CHANNELS = 8  # direction of the ray and place of the camera in the world, direction in the camera
CONDITION_CHANNELS = 3  # doubt, residual and weight of anchors, beside the latents
OUTPUTS = 4
MIN_LOG_SCALE, MAX_LOG_SCALE = -5.0, 1.5
MAX_RESIDUAL = 3.0
FIRST_DYNAMIC, FIRST_VALID = -3.0, 3.0


@dataclass(frozen=True)
class NetworkInputs:
    """Inputs of the network for b videos of F frames; the clip's scale is divided out.

    Attributes:
        image_latents: (b, z, F, h, w) of the images; h = H / 8.
        prior_latents: (b, z, F, h, w) of the prior's point map; 0 without a prior.
        doubt: (b, 1, F, h, w) 0..1, how far the point map may be from the prior; 1 without a prior.
        anchors: (b, 2, F, h, w) residual and weight.
        pixels: (b, F, PIXEL_CHANNELS, H, W).
        matching: (b, F, SWEEP_CHANNELS, H / 2, W / 2).
        geometry: (b, F, GEOMETRY_CHANNELS, H / 4, W / 4).
        has_prior: (b,) bool.
        log_depth: (b, F, H, W) of the prior in its own scale.
        log_sigma: (b, F, H, W) of the prior.
        features: (b, F, depth_channels, H / 4, W / 4) of the depth network; None for networks that do not read them.
        motion: (b, F, MOTION_CHANNELS, H / 8, W / 8), see `frame_motion`; None for networks with a prior.
    """

    image_latents: torch.Tensor
    prior_latents: torch.Tensor
    doubt: torch.Tensor
    anchors: torch.Tensor
    pixels: torch.Tensor
    matching: torch.Tensor
    geometry: torch.Tensor
    has_prior: torch.Tensor
    log_depth: torch.Tensor
    log_sigma: torch.Tensor
    features: torch.Tensor | None = None
    motion: torch.Tensor | None = None


class PointmapNetwork(ModelMixin, ConfigMixin):
    """Predicts the velocity of point-map latents, and maps at the resolution of pixels.

    Args:
        latent_channels: channels of the latents of images and of point maps.
        width, heads, depth, mlp_ratio: of the transformer; `depth` counts pairs of blocks.
        pixel_widths: channels of the branch of convolutions at 1/4 and 1/8 of the resolution.
        deviations: standard deviations of a latent around the prior's, without doubt and with full doubt.
        prior: the branch of convolutions reads a prior and the matching around it; else colours alone, and the motion
            between frames (`frame_motion`).
        depth_channels: features of the depth network that it reads, too; 0 = none.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        width: int = 192,
        heads: int = 3,
        depth: int = 4,
        mlp_ratio: float = 2.0,
        pixel_widths: tuple[int, ...] = (48, 80),
        deviations: tuple[float, ...] = (0.1, 1.0),
        prior: bool = True,
        depth_channels: int = 0,
    ) -> None:
        super().__init__()
        if len(pixel_widths) != 2 or len(deviations) != 2:
            raise InputError(f"pixel_widths {pixel_widths} and deviations {deviations} must have two numbers each.")
        self.transformer = FactorisedTransformer(
            3 * latent_channels + CONDITION_CHANNELS, latent_channels, width=width, heads=heads, depth=depth,
            mlp_ratio=mlp_ratio, text_dim=None, fps=False,
        )  # fmt: skip
        quarter, eighth = pixel_widths
        channels = (PIXEL_CHANNELS if prior else COLOURS) * PATCH_PX**2 + GEOMETRY_CHANNELS + depth_channels
        if prior:
            channels += SWEEP_CHANNELS * (PATCH_PX // SCALE) ** 2
        self.stem = nn.Conv2d(channels, quarter, 3, padding=1)
        self.in_quarter = nn.Sequential(nn.GroupNorm(1, quarter), ResidualBlock(quarter), ResidualBlock(quarter))
        self.down = Downsample(quarter, eighth)
        self.motion = None if prior else nn.Conv2d(MOTION_CHANNELS, eighth, 1)
        self.in_eighth = nn.Sequential(nn.GroupNorm(1, eighth), ResidualBlock(eighth), ResidualBlock(eighth))
        self.to_tokens = nn.Linear(4 * eighth, width)
        self.norm = nn.LayerNorm(width)
        self.from_tokens = nn.Linear(width, 4 * eighth)
        self.out_eighth = nn.Sequential(nn.GroupNorm(1, eighth), ResidualBlock(eighth))
        self.up = Upsample(eighth, quarter)
        self.out_quarter = nn.Sequential(ResidualBlock(quarter), ResidualBlock(quarter))
        self.head = nn.Conv2d(quarter, OUTPUTS * PATCH_PX**2, 3, padding=1)
        zero_module(self.head)

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, inputs: NetworkInputs
    ) -> tuple[torch.Tensor, PointmapPrediction]:
        """Predicts velocity and maps.

        Args:
            noisy: (b, z, F, h, w) point-map latent at the noise level: (1 - s) x + s n.
            level: (b,) noise level s, 0..1.
            inputs: the clip.

        Returns:
            Velocity n - x (b, z, F, h, w) float32, and the maps, which are trained at level 1 alone.
        """
        b, _, f, h, w = noisy.shape
        quarter, eighth = self._encode(inputs)
        cells = functional.pixel_unshuffle(eighth, 2).flatten(2).transpose(1, 2)
        extra = self.to_tokens(cells).unflatten(0, (b, f))
        joined = torch.cat((noisy, inputs.image_latents, inputs.prior_latents, inputs.doubt, inputs.anchors), dim=1).to(
            self.stem.weight.dtype
        )
        tokens, time = self.transformer.features(joined, level * 1000, extra_tokens=extra)
        correction = self.transformer.unpatch(self.transformer.final_layer(tokens, time), (f, h, w))
        first, second = self.config.deviations
        velocity = with_render_prior(
            correction, noisy, inputs.prior_latents, inputs.doubt, level, (float(first), float(second))
        )
        spread = self.from_tokens(self.norm(tokens).flatten(0, 1)).transpose(1, 2).unflatten(2, (h // 2, w // 2))
        eighth = self.out_eighth(eighth + functional.pixel_shuffle(spread, 2))
        quarter = self.out_quarter(quarter + self.up(eighth))
        maps = functional.pixel_shuffle(self.head(functional.silu(quarter)), PATCH_PX).float().unflatten(0, (b, f))
        return velocity, PointmapPrediction(
            log_depth=inputs.log_depth + maps[:, :, 0].clamp(-MAX_RESIDUAL, MAX_RESIDUAL),
            log_scale=(inputs.log_sigma + maps[:, :, 1]).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE),
            dynamic=maps[:, :, 2] + FIRST_DYNAMIC,
            valid=maps[:, :, 3] + FIRST_VALID,
        )

    def _encode(self, inputs: NetworkInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (b * F, C, H / 4, W / 4) and (b * F, C, H / 8, W / 8)."""
        pixels = inputs.pixels if self.motion is None else inputs.pixels[:, :, :COLOURS]
        parts = [functional.pixel_unshuffle(pixels.flatten(0, 1), PATCH_PX)]
        if self.motion is None:
            parts.append(functional.pixel_unshuffle(inputs.matching.flatten(0, 1), PATCH_PX // SCALE))
        parts.append(inputs.geometry.flatten(0, 1))
        if inputs.features is not None:
            parts.append(inputs.features.flatten(0, 1))
        x = torch.cat([part.to(self.stem.weight.dtype) for part in parts], dim=1)
        quarter = self.in_quarter(self.stem(x))
        eighth = self.down(quarter)
        if self.motion is not None and inputs.motion is not None:
            eighth = eighth + self.motion(inputs.motion.flatten(0, 1).to(self.stem.weight.dtype))
        return quarter, self.in_eighth(eighth)
