"""Rectified flow of Open-Sora 1.2: from noise at level 1 to latents at level 0 along the velocity x - n."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from worldstereo_ros.utils.errors import InputError

BASE_PIXELS = 512 * 512
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # latents, levels (b,) -> x - n


def level_shift(height: int, width: int, latent_frames: int) -> float:
    """Shift of noise levels by the size of a video: more pixels and frames need more noise to be hidden.

    Args:
        height, width: pixels.
        latent_frames: frames of the latents. Open-Sora computes 5 for each 17 whole frames, and nothing (which ends
            sampling at once) for 2 to 16 frames; here it is always the number that there are.
    """
    return math.sqrt(height * width / BASE_PIXELS) * math.sqrt(latent_frames)


def shift_levels(levels: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels in 0..1 under a shift r: r t / (1 + (r - 1) t)."""
    return shift * levels / (1 + (shift - 1) * levels)


def sampling_levels(steps: int, height: int, width: int, latent_frames: int) -> list[float]:
    """The steps + 1 noise levels of a sampler, from 1 to 0.

    Raises:
        InputError: `steps` is below 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 was expected.")
    even = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return [float(level) for level in shift_levels(even, level_shift(height, width, latent_frames))]


def sample_flow(velocity: Velocity, noise: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Follows the velocity with Euler steps.

    Args:
        velocity: gives x - n for latents (b, ...) at noise levels (b,).
        noise: (b, ...) at the first level.
        levels: decreasing noise levels.
    """
    latents = noise
    for level, end in itertools.pairwise(levels):
        latents = latents + (level - end) * velocity(latents, torch.full((len(latents),), level, device=latents.device))
    return latents
