"""Stage 5: distribution matching distillation to a few denoising steps (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

The student generates clips in the few steps of its schedule. The gradient of a generated clip is the difference of the
denoised clips of the teacher and of a fake score, which is trained on clips of the student. It flows through the last
of a random number of steps. DMD's regression loss is computed to the true clip. The control and memory branches are
those of the teacher and stay frozen.
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional

from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.distribution_matching import generate_to_step, matching_loss
from worldstereo_ros.training.flow_matching import LatentClips, flow_loss
from worldstereo_ros.training.run_folder import RunFolder, is_trained
from worldstereo_ros.training.stages.diffusion import DiffusionStage
from worldstereo_ros.training.trainer import ParameterGroup, freeze, parameters_of


class DistillStage(DiffusionStage):
    """Distils the model; see the module and `trainer.Stage`."""

    def __init__(self, run: RunFolder, training: WorldDataset, validation: WorldDataset, name: str = "distill") -> None:
        super().__init__(name, run, training, validation)

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        self.teacher = self.run.transformer("teacher")
        freeze([self.teacher])
        # Teacher, student and fake score share the frozen control branch.
        control = self.teacher.controlnet
        self.model.controlnet = control
        self.fake = copy.deepcopy(self.teacher)
        self.fake.controlnet = control
        for name, parameter in self.fake.named_parameters():
            parameter.requires_grad_(is_trained("distill", name))
        critic_rate = self.config.critic_learning_rate or self.config.learning_rate
        critic = ParameterGroup(
            "fake", parameters_of(self.fake), self._fake_loss, critic_rate, self.config.critic_updates, averaged=False
        )
        return [
            critic,
            ParameterGroup("student", parameters_of(self.model), self._student_loss, self.config.learning_rate),
        ]

    def levels(self) -> torch.Tensor:
        """Noise levels of the student's steps."""
        scheduler = DMDScheduler(**self.run.schedule(self.name))
        return scheduler.sigmas[:-1]

    def _noise(self, clips: LatentClips) -> torch.Tensor:
        shape, device = clips.latents.shape, clips.latents.device
        return torch.randn(shape, generator=self.generator, device=device)

    def _generate(self, clips: LatentClips, *, gradient: bool) -> torch.Tensor:
        """Latents that the student generates up to a random step of its schedule, from which it denoises completely."""
        levels = self.levels().to(clips.latents.device)
        last = int(self.random.integers(len(levels)))
        return generate_to_step(self.model, clips, levels, last, self._noise(clips), gradient=gradient)

    def _fake_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self.clips
        generated = LatentClips(self._generate(clips, gradient=False), clips.condition, clips.inputs)
        return flow_loss(self.fake, generated, self.run.config.shift, self.generator), {}

    def _student_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self.clips
        generated = self._generate(clips, gradient=True)
        shift = self.run.config.shift
        matching = matching_loss(generated, clips, self.teacher, self.fake, shift, self.generator)
        regression = functional.mse_loss(generated, clips.latents)
        return matching + self.config.regression * regression, {
            "matching": float(matching.detach()),
            "regression": float(regression.detach()),
        }
