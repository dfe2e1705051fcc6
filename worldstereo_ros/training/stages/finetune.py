"""Stage 6: all parts of the distilled model together, on the true clips, along its own few steps.

Branches that were trained on the undistilled backbone drive the distilled one as they are. A small model has no
capacity to spare, though: what its branches and its backbone do for each other can be made to fit.

Latents are normalised, so an error in the finest detail counts as much as one in brightness, of which most of a picture
is made and of which more can be known. `pixel_share` weighs channels by what they change in the picture instead.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.flow_matching import LatentClips
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.stages.distill import DistillStage
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

LOOKED_AT, CHANGE = 4, 0.3  # keyframes, and the deviation of the change, by which channels are weighed


class FinetuneStage(DistillStage):
    """See the module, and `loop.Stage`."""

    def __init__(self, run: Run, training: WorldDataset, validation: WorldDataset) -> None:
        super().__init__(run, training, validation, "finetune")

    _channels: torch.Tensor | None = None  # weights (1, channels, 1, 1, 1), worked out from the first clips

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("student", parameters_of(self.model), self._regression, self.settings.learning_rate)]

    def _regression(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self._clips
        error = (self._paint(clips, gradient=True) - clips.latents).square()
        return (error * self._weights(clips)).mean(), {}

    def _weights(self, clips: LatentClips) -> torch.Tensor:
        """(b, channels, F, h, w) of the error, 1 in the mean."""
        shape, settings = clips.latents.shape, self.settings
        if settings.pixel_share == 0 and settings.covered_weight == 1:
            return torch.ones(1, device=clips.latents.device)
        if self._channels is None:
            energy = channel_energy(self.autoencoder, clips.latents[:1, :, :LOOKED_AT])
            self._channels = 1 + settings.pixel_share * (energy * len(energy) - 1).view(1, -1, 1, 1, 1)
        holes = functional.adaptive_avg_pool3d(clips.inputs["render_mask"].float(), (shape[2], shape[3], shape[4]))
        where = settings.covered_weight + (1 - settings.covered_weight) * holes
        return self._channels * (where / where.mean().clamp_min(1e-6))


@torch.no_grad()
def channel_energy(autoencoder: ImageAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """(channels,) share of each channel in what the same change of a latent does to the picture, squared; sums to 1.

    Args:
        autoencoder: decodes.
        latents: (1, channels, F, h, w), around which it is looked at.
    """
    before = autoencoder.decode(latents).float()
    energy = []
    for channel in range(latents.shape[1]):
        generator = torch.Generator().manual_seed(channel)
        changed = latents.clone()
        changed[:, channel] += CHANGE * torch.randn(latents[:, channel].shape, generator=generator).to(latents)
        energy.append((autoencoder.decode(changed).float() - before).square().mean())
    return torch.stack(energy) / torch.stack(energy).sum()
