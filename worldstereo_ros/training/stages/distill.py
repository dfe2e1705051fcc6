"""Stage 5: distribution matching distillation, 40 steps to a few (DMD2, arXiv 2405.14867; DMD, arXiv 2311.18828).

The student paints in the few steps of its schedule. The gradient of a painted clip is the difference between what the
teacher and a fake score (which is kept trained on what the student paints) make of it with noise on it. It goes
through the last step of a random prefix of the schedule. Beside it stands DMD's regression, here to the true clip.
Control and memory branches stay as they were trained on the teacher's backbone.
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional

from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.flow_matching import LatentClips, flow_loss, noised, shifted, velocity
from worldstereo_ros.training.run_folder import Run, is_trained
from worldstereo_ros.training.stages.diffusion import DiffusionStage
from worldstereo_ros.training.trainer import ParameterGroup, freeze, parameters_of

LOW, HIGH = 0.02, 0.98  # noise at which the scores are compared


class DistillStage(DiffusionStage):
    """See the module, and `loop.Stage`."""

    def __init__(self, run: Run, training: WorldDataset, validation: WorldDataset, name: str = "distill") -> None:
        super().__init__(name, run, training, validation)

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        self.teacher = self.run.transformer("teacher")
        freeze([self.teacher])
        # Everything of the fake score but the frozen branches, which all three share.
        branches = self.teacher.controlnet
        self.model.controlnet = branches
        self.fake = copy.deepcopy(self.teacher)
        self.fake.controlnet = branches
        for name, parameter in self.fake.named_parameters():
            parameter.requires_grad_(is_trained("distill", name))
        self._painted: torch.Tensor | None = None
        critic_rate = self.settings.critic_learning_rate or self.settings.learning_rate
        critic = ParameterGroup(
            "fake", parameters_of(self.fake), self._fake_loss, critic_rate, self.settings.critic_updates, averaged=False
        )
        return [
            critic,
            ParameterGroup("student", parameters_of(self.model), self._student_loss, self.settings.learning_rate),
        ]

    def levels(self) -> torch.Tensor:
        """The student's noise levels."""
        scheduler = DMDScheduler(**self.run.schedule(self.name))
        return scheduler.sigmas[:-1]

    def _noise(self, clips: LatentClips) -> torch.Tensor:
        shape, device = clips.latents.shape, clips.latents.device
        return torch.randn(shape, generator=self._generator, device=device)

    def _paint(self, clips: LatentClips, *, gradient: bool) -> torch.Tensor:
        """Clips as the student paints them, up to a random step of its schedule, from which it jumps to the end."""
        levels = self.levels().to(clips.latents.device)
        last = int(self._random.integers(len(levels)))
        latents = self._noise(clips)
        with torch.no_grad():
            for step in range(last):
                said = velocity(self.model, latents, levels[step].expand(len(latents)), clips)
                latents = latents + (levels[step + 1] - levels[step]) * said
        with torch.set_grad_enabled(gradient):
            return latents - levels[last] * velocity(self.model, latents, levels[last].expand(len(latents)), clips)

    def _fake_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self._clips
        painted = LatentClips(self._paint(clips, gradient=False), clips.condition, clips.inputs)
        return flow_loss(self.fake, painted, self.run.settings.shift, self._generator), {}

    def _student_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self._clips
        painted = self._paint(clips, gradient=True)
        with torch.no_grad():
            b, device = len(painted), painted.device
            level = LOW + (HIGH - LOW) * torch.rand(b, generator=self._generator, device=device)
            level = shifted(level, self.run.settings.shift)
            seen = noised(painted.detach(), self._noise(clips), level)
            wide = level.view(-1, 1, 1, 1, 1)
            real = seen - wide * velocity(self.teacher, seen, level, clips)
            fake = seen - wide * velocity(self.fake, seen, level, clips)
            scale = (painted - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
            direction = (fake - real) / scale
        matching = 0.5 * functional.mse_loss(painted, (painted - direction).detach())
        regression = functional.mse_loss(painted, clips.latents)
        return matching + self.settings.regression * regression, {
            "matching": float(matching.detach()),
            "regression": float(regression.detach()),
        }
