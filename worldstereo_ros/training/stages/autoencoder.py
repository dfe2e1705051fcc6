"""Stage 1: pictures to latents and back."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.training.data.dataset import (
    WorldDataset,
    as_uint8,
    augment_colours,
    draw_pictures,
    psnr,
    sheet,
    structural_similarity,
)
from worldstereo_ros.training.data.loaders import ImageSampler
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

LATENT_NOISE = 0.08  # deviation, of latents of deviation 1: what a denoiser leaves behind must not show
NORMAL = 0.02  # weight of latents having mean 0 and deviation 1
STRUCTURE, SQUARE = 0.15, 2.0  # weights of 1 - SSIM and of the squared error beside that of the absolute one


class AutoencoderStage:
    """Trains the autoencoder on single pictures; see `loop.Stage`."""

    name = "autoencoder"

    def __init__(self, run: Run, training: WorldDataset, validation: WorldDataset) -> None:
        self.run, self.settings = run, run.settings.stages[self.name]
        new = not run.has(self.name)
        self.model = run.autoencoder(trained=True)
        run.compile(self.model)
        seeds = run.seeds(self.name)
        self._random = np.random.default_rng([*seeds, 1])
        self._generator = run.generator([*seeds, 2])
        self.parameter_groups = [
            ParameterGroup("autoencoder", parameters_of(self.model), self._loss, self.settings.learning_rate)
        ]
        random = np.random.default_rng(0)
        shown = [draw_pictures(validation, 16, random) for _ in range(6)]
        self._validation = [batch.float().div(127.5).sub(1) for batch in shown]
        if new:
            alike = [batch for batch in self._validation if batch.shape == self._validation[0].shape]
            self.model.calibrate(torch.cat(alike).to(run.device))
        self._feed = run.stream(ImageSampler(self.settings.batch), training, [*seeds, 3])

    def start_step(self) -> None:
        """Draws the pictures of a step."""
        pictures = self._feed.take()
        assert pictures is not None
        self._pictures = augment_colours(pictures.float() / 255, self._random)

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        latents = self.model.encode_images(self._pictures)
        noise = torch.randn(latents.shape, generator=self._generator, device=latents.device, dtype=latents.dtype)
        decoded = self.model.decode_latents(latents + LATENT_NOISE * noise).float()
        absolute = functional.l1_loss(decoded, self._pictures)
        structure = 1 - structural_similarity(decoded, self._pictures)
        square = functional.mse_loss(decoded, self._pictures)
        mean, deviation = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        normal = (mean.square() + (deviation - 1).square()).mean()
        return absolute + STRUCTURE * structure + SQUARE * square + NORMAL * normal, {
            "absolute": float(absolute.detach()),
            "ssim": 1 - float(structure.detach()),
        }

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """PSNR and SSIM of decoded validation pictures; pictures above, decoded below."""
        levels, likeness, loss, latents = [], [], [], []
        rows: list[np.ndarray] = []
        for pictures in self._validation:
            pictures = pictures.to(self.run.device)
            with self.run.accelerator.autocast():
                coded = self.model.encode_images(pictures)
                decoded = self.model.decode_latents(coded).float().clamp(-1, 1)
            latents.append(coded.float().transpose(0, 1).flatten(1))
            levels.append(psnr(decoded, pictures))
            likeness.append(structural_similarity(decoded, pictures))
            loss.append(functional.l1_loss(decoded, pictures))
            if len(rows) < 4 and (not rows or rows[0].shape == as_uint8(pictures[:8]).shape):
                rows += [as_uint8(pictures[:8]), as_uint8(decoded[:8])]
        figures = {
            "loss": float(torch.stack(loss).mean()),
            "psnr": float(torch.cat(levels).mean()),
            "ssim": float(torch.stack(likeness).mean()),
        }
        every = torch.cat(latents, dim=1)
        self.model.register_to_config(
            latents_mean=tuple(float(n) for n in every.mean(1)), latents_std=tuple(float(n) for n in every.std(1))
        )
        return figures, sheet(rows)

    def save(self) -> None:
        """Writes the weights, with the statistics of the last validation's latents."""
        self.run.save_autoencoder(self.model)

    def close(self) -> None:
        """Ends the processes that draw pictures."""
        self._feed.close()
