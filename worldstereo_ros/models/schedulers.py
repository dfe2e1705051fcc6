"""Schedulers: few-step Euler for the distilled model (DMD), UniPC for the others."""

from __future__ import annotations

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

from worldstereo_ros.models.checkpoints.bounds import MAX_TIMESTEPS, check_integer, check_numbers
from worldstereo_ros.models.checkpoints.weights import read_json
from worldstereo_ros.utils.errors import InputError


@dataclass
class DMDSchedulerOutput(BaseOutput):
    """Output of `DMDScheduler.step`.

    Attributes:
        prev_sample: the sample at the next, lower noise level; shape and dtype of the input sample.
    """

    prev_sample: torch.Tensor


class DMDScheduler(SchedulerMixin, ConfigMixin):
    """Euler steps over the few noise levels that the model was distilled for (DMD, arXiv 2311.18828).

    The noise levels t are `steps` values, evenly spaced from `num_train_timesteps` down to `start_timestep` and scaled
    to 0..1. Each is shifted towards noise, sigma = s t / (1 + (s - 1) t), and the last one is followed by zero. A
    sample is (1 - sigma) x + sigma noise, and the model predicts the velocity, noise - x.

    Args:
        start_timestep: last noise level before zero, before the shift (`dmd_start_steps` of a checkpoint).
        num_train_timesteps: first noise level, and the scale of timesteps (`dmd_end_steps`).
        shift: s above (`gen_shift`).
        steps: number of steps (`dmd_steps`).

    Raises:
        InputError: no steps, an empty range, or a shift that is not positive.
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
                "0 <= start_timestep <= num_train_timesteps, num_train_timesteps > 0 and shift > 0 are needed."
            )
        self.set_timesteps()

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Sets `timesteps` (n,) and `sigmas` (n + 1,), both float32, and resets the step index.

        Args:
            num_inference_steps: number of steps; None = as many as the model was distilled for.
            device: device of the timesteps.

        Raises:
            InputError: fewer than one step.
        """
        steps = self.config.steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise InputError(f"num_inference_steps is {steps}; at least one is needed.")
        end, shift = self.config.num_train_timesteps, self.config.shift
        # In descending order, so that a single step starts at pure noise.
        level = torch.from_numpy(np.linspace(end, self.config.start_timestep, steps, dtype=np.float32)) / end
        sigmas = shift * level / (1 + (shift - 1) * level)
        self.num_inference_steps = steps
        self.timesteps = (sigmas * end).to(device)
        self.sigmas = torch.cat((sigmas, torch.zeros(1)))  # on the CPU: `step` reads single values
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Index of the next step; None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the first step, for image-to-image.

        Args:
            begin_index: index of the first step.
        """
        self._step_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample unchanged: this schedule needs no scaling."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        **unused: Any,
    ) -> DMDSchedulerOutput | tuple[torch.Tensor]:
        """Takes one Euler step, computed in float32.

        Args:
            model_output: velocity that the model predicted.
            timestep: the element of `timesteps` that the prediction is for.
            sample: the sample that the prediction is for, same shape.
            return_dict: False returns a tuple.
            unused: arguments of other schedulers (`generator`), ignored.

        Raises:
            InputError: all steps are done; call `set_timesteps` first.
        """
        if self._step_index is None:
            self._step_index = int((self.timesteps.cpu() - float(timestep)).abs().argmin())
        if self._step_index >= self.num_inference_steps:
            raise InputError(f"All {self.num_inference_steps} steps are done; call set_timesteps to start again.")
        delta = float(self.sigmas[self._step_index + 1]) - float(self.sigmas[self._step_index])
        self._step_index += 1
        previous = (sample.float() + delta * model_output.float()).to(sample.dtype)
        return DMDSchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns (1 - sigma) original + sigma noise, with sigma = timesteps / num_train_timesteps.

        Args:
            original: (b, ...) clean samples.
            noise: noise of the same shape.
            timesteps: (b,) timesteps.
        """
        sigma = timesteps.float() / self.config.num_train_timesteps
        sigma = sigma.view(-1, *(1,) * (original.ndim - 1)).to(original.device)
        return ((1 - sigma) * original.float() + sigma * noise.float()).to(original.dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def make_scheduler(config: Mapping[str, Any], base: Path | None = None) -> SchedulerMixin:
    """Creates the scheduler of a checkpoint: `DMDScheduler` if its configuration has `dmd_steps`, else UniPC.

    Args:
        config: content of the checkpoint's `config.json`.
        base: folder of the base model; UniPC is configured by its `scheduler/scheduler_config.json` if there is one.

    Raises:
        InputError: the values make no valid schedule, or the base's file does not describe a UniPC scheduler.
        CheckpointError: the base's file cannot be read, is no JSON object, or a number in it is out of range.
    """
    if "dmd_steps" in config:
        return DMDScheduler(
            start_timestep=config.get("dmd_start_steps", 250),
            num_train_timesteps=config.get("dmd_end_steps", 1000),
            shift=config.get("gen_shift", 5.0),
            steps=config["dmd_steps"],
        )
    file = None if base is None else base / "scheduler" / "scheduler_config.json"
    if file is not None and file.is_file():
        # An object: diffusers takes a string, such as "owner/name", for a hub id and fetches it.
        content = read_json(file)
        check_numbers(file, content)
        if "num_train_timesteps" in content:
            check_integer(file, content, "num_train_timesteps", 1, MAX_TIMESTEPS)
        try:
            scheduler = UniPCMultistepScheduler.from_config(content)
            scheduler.set_timesteps(2)  # many values are first looked at here, which would be in the first job
            if not torch.isfinite(scheduler.sigmas).all():
                raise InputError("its noise levels are not finite")
            return scheduler
        except Exception as error:  # diffusers raises many types for values that it does not expect
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(f"{file} does not describe a UniPC scheduler: {reason}.") from None
    # The configuration of Wan 2.1's 480P image-to-video model.
    return UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
