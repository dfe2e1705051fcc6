"""Noise schedules: the few-step sampler of the distilled model, and UniPC for the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from worldstereo_ros.utils.errors import InputError


@dataclass
class DMDSchedulerOutput(BaseOutput):
    """Result of a step.

    Attributes:
        prev_sample: the less noisy sample, shape and type of the one that went in.
    """

    prev_sample: torch.Tensor


class DMDScheduler(SchedulerMixin, ConfigMixin):
    """Euler steps along the few noise levels that the model was distilled for (DMD, arXiv 2311.18828).

    The noise levels are `steps` values evenly from `num_train_timesteps` down to `start_timestep`, each shifted
    towards noise: s t / (1 + (s - 1) t). After the last one comes zero. A sample is (1 - sigma) x + sigma noise and the
    model predicts the velocity, noise - x.

    Args:
        start_timestep: the last noise level before zero, unshifted (`dmd_start_steps` of a checkpoint).
        num_train_timesteps: the first noise level, and the scale of timesteps (`dmd_end_steps`).
        shift: s above (`gen_shift`).
        steps: how many (`dmd_steps`).

    Raises:
        ValueError: no steps, a range that is empty, or a shift that is not positive.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self, start_timestep: float = 250, num_train_timesteps: int = 1000, shift: float = 5.0, steps: int = 4
    ) -> None:
        if not (0 <= start_timestep <= num_train_timesteps and num_train_timesteps > 0 and shift > 0):
            raise InputError(
                f"The DMD schedule runs from {num_train_timesteps} to {start_timestep} with shift {shift}; "
                "0 <= start <= end, end > 0 and shift > 0 are needed."
            )
        self.set_timesteps()

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Makes `timesteps` (n,) and `sigmas` (n + 1,), both float32, and starts anew.

        Args:
            num_inference_steps: None for as many as the model was distilled for; any other number is a departure.
            device: where the timesteps go.

        Raises:
            ValueError: fewer than one step.
        """
        steps = self.config.steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise InputError(f"{steps} denoising steps were asked for; at least one is needed.")
        end, shift = self.config.num_train_timesteps, self.config.shift
        # From noise downwards, so that a single step starts at pure noise.
        level = torch.from_numpy(np.linspace(end, self.config.start_timestep, steps, dtype=np.float32)) / end
        sigmas = shift * level / (1 + (shift - 1) * level)
        self.num_inference_steps = steps
        self.timesteps = (sigmas * end).to(device)
        self.sigmas = torch.cat((sigmas, torch.zeros(1)))  # stays on the CPU: steps read single numbers of it
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """The step that comes next; None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts at a later step, as image-to-image does."""
        self._step_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """The sample as it is: this schedule scales nothing."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        **unused: Any,
    ) -> DMDSchedulerOutput | tuple[torch.Tensor]:
        """One Euler step, in float32.

        Args:
            model_output: velocity.
            timestep: the one of `timesteps` that the model was given.
            sample: the sample it was given, same shape.
            return_dict: False returns a tuple.
            unused: what other schedulers take (generator).

        Raises:
            ValueError: all steps were done; call `set_timesteps` first.
        """
        if self._step_index is None:
            self._step_index = int((self.timesteps.cpu() - float(timestep)).abs().argmin())
        if self._step_index >= self.num_inference_steps:
            raise InputError(f"All {self.num_inference_steps} steps were done; call set_timesteps to start anew.")
        delta = float(self.sigmas[self._step_index + 1]) - float(self.sigmas[self._step_index])
        self._step_index += 1
        previous = (sample.float() + delta * model_output.float()).to(sample.dtype)
        return DMDSchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """(1 - sigma) original + sigma noise, with sigma = timesteps / num_train_timesteps, timesteps (b,)."""
        sigma = timesteps.float() / self.config.num_train_timesteps
        sigma = sigma.view(-1, *(1,) * (original.ndim - 1)).to(original.device)
        return ((1 - sigma) * original.float() + sigma * noise.float()).to(original.dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def make_scheduler(settings: Mapping[str, Any], base: Path | None = None) -> SchedulerMixin:
    """The scheduler of a checkpoint.

    Args:
        settings: its `config.json`. With `dmd_steps` in it: `DMDScheduler`; else UniPC.
        base: folder of the base model, whose `scheduler/scheduler_config.json` is used for UniPC where there is one.

    Raises:
        ValueError: the settings make no schedule, or the base's file is none of UniPC's.
    """
    if "dmd_steps" in settings:
        return DMDScheduler(
            start_timestep=settings.get("dmd_start_steps", 250),
            num_train_timesteps=settings.get("dmd_end_steps", 1000),
            shift=settings.get("gen_shift", 5.0),
            steps=settings["dmd_steps"],
        )
    file = None if base is None else base / "scheduler" / "scheduler_config.json"
    if file is not None and file.is_file():
        try:
            return UniPCMultistepScheduler.from_config(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            raise InputError(f"{file} does not describe a UniPC schedule: {error}") from None
    # What Wan 2.1's 480P image-to-video model ships with.
    return UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
