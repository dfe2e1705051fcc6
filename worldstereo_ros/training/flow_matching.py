"""Rectified flow over keyframe latents: what a step is trained on, and the inputs of the transformer.

z_t = (1 - s) z_0 + s n with noise n and level s; the model predicts the velocity n - z_0 (arXiv 2209.03003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.pipelines.worldstereo.conditioning import Keyframes
from worldstereo_ros.pipelines.worldstereo.model_inputs import build_model_inputs
from worldstereo_ros.training.data.clip_sampling import ClipBatch

ENCODE_BATCH_SIZE = 64  # frames; the small autoencoder takes more at a time than a full-size one


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
    latents = autoencoder.encode(batch.images, ENCODE_BATCH_SIZE).float()
    keyframes = Keyframes(
        start=batch.images[:, :, 0],
        holes=batch.holes,
        plucker=batch.plucker,
        poses=batch.poses,
        references=batch.references,
        reference_index=batch.reference_index,
        reference_poses=batch.reference_poses,
        renders=batch.renders[:, :, 1:] if control else None,
        layouts=batch.layouts[:, :, 1:] if layout else None,
        plane_channels=batch.plane_channels.float() if layout else None,
    )
    built = build_model_inputs(
        keyframes,
        autoencoder,
        memory_branch=memory,
        start_latents=latents[:, :, :1],
        encode_batch_size=ENCODE_BATCH_SIZE,
    )
    text = torch.zeros(len(latents), 1, text_dim, device=latents.device)
    return LatentClips(latents, built.condition, {"encoder_hidden_states": text, **built.arguments})


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
