"""Rectified flow over keyframe latents (Liu et al., arXiv 2209.03003).

z_t = (1 - s) z_0 + s n with noise n and noise level s; the model predicts the velocity n - z_0.
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
    """Encoded clips, as the transformer takes them.

    Attributes:
        latents: (b, 16, F, h, w) of the ground truth.
        condition: (b, 20, F, h, w), see `ModelInputs`.
        inputs: the other arguments of the transformer by name.
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
    """Encodes clips into the inputs of the transformer, with the same function as inference.

    Args:
        batch: the clips.
        autoencoder: encodes images.
        text_dim: dimension of the text embeddings, which are 0.
        control: whether the transformer has a control branch.
        memory: whether it has a memory branch.
        layout: whether it takes extrapolated planes.
    """
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
    """Noise levels in 0..1 with the timestep shift of the schedule: s t / (1 + (s - 1) t)."""
    return shift * level / (1 + (shift - 1) * level)


def noised(latents: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Adds noise to latents (b, ...) at noise levels (b,)."""
    level = level.view(-1, *(1,) * (latents.ndim - 1))
    return (1 - level) * latents + level * noise


def velocity(
    model: WorldStereoTransformer, latents: torch.Tensor, level: torch.Tensor, clips: LatentClips
) -> torch.Tensor:
    """The velocity that the model predicts at noise levels (b,), float32."""
    hidden = torch.cat((latents, clips.condition), dim=1)
    return model(hidden, level * 1000, return_dict=False, **clips.inputs)[0].float()


def flow_loss(
    model: WorldStereoTransformer, clips: LatentClips, shift: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mean squared error of the velocity at random noise levels."""
    b, device = len(clips.latents), clips.latents.device
    # Levels are spread evenly over the batch, which gives a loss of lower variance than b independent samples.
    start = torch.rand((), generator=generator, device=device)
    level = shifted((torch.arange(b, device=device) + start) / b, shift)
    noise = torch.randn(clips.latents.shape, generator=generator, device=device)
    pred = velocity(model, noised(clips.latents, noise, level), level, clips)
    return (pred - (noise - clips.latents)).square().mean()


def sample(
    model: WorldStereoTransformer, clips: LatentClips, levels: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Samples latents with Euler steps through `levels` (decreasing from 1), then to 0."""
    latents = noise
    ends = torch.cat((levels[1:], levels.new_zeros(1)))
    for level, end in zip(levels, ends, strict=True):
        latents = latents + (end - level) * velocity(model, latents, level.expand(len(noise)), clips)
    return latents
