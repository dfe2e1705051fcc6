"""The denoising loop that diffusion pipelines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worldstereo_ros.pipelines.base import ModelError, OnStep

# (step, timestep, {"latents": ...}) to a dict with the tensors to replace, or None: diffusers' callback without the
# pipeline.
StepEndCallback = Callable[[int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


@torch.no_grad()
def denoise(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any,
    latents: torch.Tensor,
    *,
    on_step: OnStep,
    on_step_end: StepEndCallback | None = None,
    name: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Takes latents from noise to a sample, one scheduler step at a time.

    Args:
        predict: (latents, timestep) to what the scheduler expects of the model, a velocity for flow matching; float32,
            shape of the latents.
        scheduler: a diffusers scheduler whose timesteps are set.
        latents: noise of any shape, float32.
        on_step: called as on_step("denoising", step, steps) before each step; may raise `Cancelled`.
        on_step_end: called after each step; may replace `latents`.
        name, dtype: name and dtype of the model, for error messages.

    Raises:
        ModelError: latents are not finite after a step.
    """
    timesteps = scheduler.timesteps
    for step, timestep in enumerate(timesteps):
        on_step("denoising", step, len(timesteps))
        latents = scheduler.step(predict(latents, timestep), timestep, latents, return_dict=False)[0]
        if not torch.isfinite(latents).all():
            raise ModelError(
                f"{name} returned values that are not finite in step {step + 1} of {len(timesteps)}. It runs in "
                f"{str(dtype).removeprefix('torch.')}; use bfloat16 or float32. If that does not help, its weights are "
                "damaged."
            )
        if on_step_end is not None:
            latents = (on_step_end(step, timestep, {"latents": latents}) or {}).get("latents", latents)
    return latents


def guide(predictions: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598).

    Args:
        predictions: the prediction with the prompt and, if there is guidance, the one with the negative prompt.
        scale: 1 = the prediction with the prompt.
    """
    if len(predictions) == 1:
        return predictions[0]
    conditional, unconditional = predictions
    return unconditional + scale * (conditional - unconditional)
