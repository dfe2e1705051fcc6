"""Stage 6: fine-tunes all parts of the distilled model together, on true clips and in its own few steps.

The branches of the distilled model were trained with the backbone before distillation, which a small model cannot
compensate.

Latents are normalised, so that errors in fine detail count as much as errors in brightness, which contribute most to
the image and are easier to predict. `pixel_share` weights the channels by their effect on the image instead.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.flow_matching import LatentClips
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.stages.distill import DistillStage
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

PROBED_FRAMES, PERTURBATION = 4, 0.3  # keyframes, and standard deviation, for measuring the effect of channels


class FinetuneStage(DistillStage):
    """Fine-tunes the distilled model; see the module and `trainer.Stage`."""

    _channel_weights: torch.Tensor | None = None  # (1, channels, 1, 1, 1), measured on the first clips

    def __init__(self, run: RunFolder, training: WorldDataset, validation: WorldDataset) -> None:
        super().__init__(run, training, validation, "finetune")

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("student", parameters_of(self.model), self._regression, self.config.learning_rate)]

    def _regression(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self.clips
        error = (self._generate(clips, gradient=True) - clips.latents).square()
        return (error * self.loss_weights(clips)).mean(), {"new_clips": float(self.new_clips)}

    def loss_weights(self, clips: LatentClips) -> torch.Tensor:
        """(b, channels, F, h, w), or broadcastable to it: weights of the squared error, with mean 1."""
        shape, config = clips.latents.shape, self.config
        if config.pixel_share == 0 and config.covered_weight == 1:
            return torch.ones(1, device=clips.latents.device)
        if self._channel_weights is None:
            energy = channel_energy(self.autoencoder, clips.latents[:1, :, :PROBED_FRAMES])
            self._channel_weights = 1 + config.pixel_share * (energy * len(energy) - 1).view(1, -1, 1, 1, 1)
        holes = functional.adaptive_avg_pool3d(clips.inputs["render_mask"].float(), (shape[2], shape[3], shape[4]))
        position_weights = config.covered_weight + (1 - config.covered_weight) * holes
        return self._channel_weights * (position_weights / position_weights.mean().clamp_min(1e-6))


@torch.no_grad()
def channel_energy(autoencoder: ImageAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Effect of each latent channel on the decoded image.

    Args:
        autoencoder: decodes latents.
        latents: (1, channels, F, h, w), the latents to perturb.

    Returns:
        (channels,) mean squared change of the image under the same perturbation of each channel, normalised to sum 1.
    """
    original = autoencoder.decode(latents).float()
    energy = []
    for channel in range(latents.shape[1]):
        generator = torch.Generator().manual_seed(channel)
        perturbed = latents.clone()
        perturbed[:, channel] += PERTURBATION * torch.randn(latents[:, channel].shape, generator=generator).to(latents)
        energy.append((autoencoder.decode(perturbed).float() - original).square().mean())
    return torch.stack(energy) / torch.stack(energy).sum()
