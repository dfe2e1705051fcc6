"""Rectified flow over keyframe latents: what a step is trained on, and the inputs of the transformer.

z_t = (1 - s) z_0 + s n with noise n and level s; the model predicts the velocity n - z_0 (arXiv 2209.03003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.training.data.clip_sampling import ClipBatch

MASK_CHANNELS = 4
ENCODED_AT_ONCE = 64


@dataclass
class LatentClips:
    """Clips as the transformer takes them.

    Attributes:
        latents: (b, 16, F, h, w), what the pictures are.
        condition: (b, 20, F, h, w), the mask of what is known and the condition latents.
        inputs: the other arguments of the transformer.
    """

    latents: torch.Tensor
    condition: torch.Tensor
    inputs: dict[str, Any]


@torch.no_grad()
def encode_clips(
    batch: ClipBatch,
    autoencoder: ImageAutoencoder,
    text_dim: int,
    *,
    control: bool,
    memory: bool,
    layout: bool = False,
) -> LatentClips:
    """Pictures to latents, and all that a transformer with or without branches, and with a layout, is told."""
    latents = autoencoder.encode(batch.images, ENCODED_AT_ONCE).float()
    b, _, F = latents.shape[:3]
    known = torch.zeros_like(latents[:, :MASK_CHANNELS])
    known[:, :, 0] = 1
    grey = autoencoder.encode(torch.zeros_like(batch.images[:1, :, :1])).float()
    seeds = torch.cat((latents[:, :, :1], grey.expand(b, -1, F - 1, -1, -1)), dim=2)
    inputs: dict[str, Any] = {"encoder_hidden_states": torch.zeros(b, 1, text_dim, device=latents.device)}
    if control:
        later = autoencoder.encode(batch.renders[:, :, 1:], ENCODED_AT_ONCE).float()
        inputs["render_latent"] = torch.cat((latents[:, :, :1], later), dim=2)
        inputs["render_mask"], inputs["camera_embedding"] = batch.holes, batch.plucker
        if layout:  # the planes' picture is what the model starts from, the smooth one is told beside it
            guessed = autoencoder.encode(batch.layouts[:, :, 1:], ENCODED_AT_ONCE).float()
            smooth, inputs["render_latent"] = inputs["render_latent"], torch.cat((latents[:, :, :1], guessed), dim=2)
            inputs["layout"] = torch.cat((smooth - inputs["render_latent"], batch.plane_channels.float()), dim=1)
    if memory:
        inputs["camera_qt"] = batch.poses
        if batch.references.shape[2]:
            references = autoencoder.encode(batch.references, ENCODED_AT_ONCE).float()
            ones = torch.ones_like(references[:, :MASK_CHANNELS])
            inputs["reference_latent"] = torch.cat((references, ones, references), dim=1)
            inputs["ref_index"], inputs["camera_qt_ref"] = batch.reference_index, batch.reference_poses
    return LatentClips(latents, torch.cat((known, seeds), dim=1), inputs)


def shifted(level: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels 0..1 moved towards noise: s t / (1 + (s - 1) t)."""
    return shift * level / (1 + (shift - 1) * level)


def noised(latents: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Latents (b, ...) with noise at levels (b,)."""
    level = level.view(-1, *(1,) * (latents.ndim - 1))
    return (1 - level) * latents + level * noise


def velocity(
    model: WorldStereoTransformer, latents: torch.Tensor, level: torch.Tensor, clips: LatentClips
) -> torch.Tensor:
    """What the model says at levels (b,), float32."""
    hidden = torch.cat((latents, clips.condition), dim=1)
    return model(hidden, level * 1000, return_dict=False, **clips.inputs)[0].float()


def flow_loss(
    model: WorldStereoTransformer, clips: LatentClips, shift: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mean squared error of the velocity at random levels."""
    b, device = len(clips.latents), clips.latents.device
    # Levels spread evenly over the batch: less noise in the loss than b free draws.
    start = torch.rand((), generator=generator, device=device)
    level = shifted((torch.arange(b, device=device) + start) / b, shift)
    noise = torch.randn(clips.latents.shape, generator=generator, device=device)
    said = velocity(model, noised(clips.latents, noise, level), level, clips)
    return (said - (noise - clips.latents)).square().mean()


def sample(
    model: WorldStereoTransformer, clips: LatentClips, levels: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Euler steps through `levels` (from 1 downwards), then to zero."""
    latents = noise
    ends = torch.cat((levels[1:], levels.new_zeros(1)))
    for level, end in zip(levels, ends, strict=True):
        latents = latents + (end - level) * velocity(model, latents, level.expand(len(noise)), clips)
    return latents
