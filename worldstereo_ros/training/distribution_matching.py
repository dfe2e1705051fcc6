"""Distribution matching distillation to few steps (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worldstereo_ros.training.flow_matching import LatentClips, noised, shifted, velocity

MIN_LEVEL, MAX_LEVEL = 0.02, 0.98  # noise levels at which the scores are compared


def generate_to_step(
    model: Any,
    clips: LatentClips,
    levels: torch.Tensor,
    last: int,
    noise: torch.Tensor,
    *,
    gradient: bool,
) -> torch.Tensor:
    """Latents that a student generates up to a step of its schedule, from which it denoises completely.

    Args:
        model: the student.
        clips: conditions of the clips.
        levels: (n,) noise levels of its steps, decreasing from 1.
        last: index of the step that denoises completely; only this one has a gradient.
        noise: noise of the shape of the latents.
        gradient: whether the last step has a gradient.
    """
    latents = noise
    with torch.no_grad():
        for step in range(last):
            pred = velocity(model, latents, levels[step].expand(len(latents)), clips)
            latents = latents + (levels[step + 1] - levels[step]) * pred
    with torch.set_grad_enabled(gradient):
        return latents - levels[last] * velocity(model, latents, levels[last].expand(len(latents)), clips)


def matching_loss(
    generated: torch.Tensor,
    clips: LatentClips,
    teacher: Any,
    fake: Any,
    shift: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """A loss whose gradient is the difference of what two scores denoise a generated clip to.

    Args:
        generated: latents of the student, with a gradient.
        clips: conditions of the clips.
        teacher: the score of the true distribution.
        fake: the score of what the student generates.
        shift: shift of the noise levels.
        generator: draws noise levels and noise.
    """
    with torch.no_grad():
        b, device = len(generated), generated.device
        level = MIN_LEVEL + (MAX_LEVEL - MIN_LEVEL) * torch.rand(b, generator=generator, device=device)
        level = shifted(level, shift)
        noise = torch.randn(generated.shape, generator=generator, device=device)
        noisy = noised(generated.detach(), noise, level)
        level_of_clip = level.view(-1, 1, 1, 1, 1)
        true_clip = noisy - level_of_clip * velocity(teacher, noisy, level, clips)
        fake_clip = noisy - level_of_clip * velocity(fake, noisy, level, clips)
        scale = (generated - true_clip).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
        direction = (fake_clip - true_clip) / scale
    return 0.5 * functional.mse_loss(generated, (generated - direction).detach())
