"""Stage 1: the image autoencoder."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.training.data.dataset import WorldDataset, augment_colours, sample_images
from worldstereo_ros.training.data.loaders import ImageSampler
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.tensor_images import as_uint8, image_grid, psnr, ssim
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

LATENT_NOISE = 0.08  # standard deviation of noise on latents, for robustness to the remaining noise of denoising
# Weights relative to the absolute error.
NORMALISATION_WEIGHT, SSIM_WEIGHT, SQUARED_WEIGHT = 0.02, 0.15, 2.0
VALIDATION_BATCHES, VALIDATION_BATCH = 6, 16


class AutoencoderStage:
    """Trains the autoencoder on single images; see `trainer.Stage`."""

    name = "autoencoder"

    def __init__(self, run: RunFolder, training: WorldDataset, validation: WorldDataset) -> None:
        self.run, self.config = run, run.config.stages[self.name]
        new = not run.has(self.name)
        self.model = run.autoencoder(trained=True)
        run.compile(self.model)
        seed = run.random_seed(self.name)
        self.random = np.random.default_rng([*seed, 1])
        self.generator = run.generator([*seed, 2])
        self.parameter_groups = [
            ParameterGroup("autoencoder", parameters_of(self.model), self._loss, self.config.learning_rate)
        ]
        random = np.random.default_rng(0)
        batches = [sample_images(validation, VALIDATION_BATCH, random) for _ in range(VALIDATION_BATCHES)]
        self._validation = [batch.float().div(127.5).sub(1) for batch in batches]
        if new:
            same_size = [batch for batch in self._validation if batch.shape == self._validation[0].shape]
            self.model.calibrate(torch.cat(same_size).to(run.device))
        self._stream = run.stream(ImageSampler(self.config.batch), training, [*seed, 3])

    def start_step(self) -> None:
        """Samples the images of a step."""
        images = self._stream.take()
        assert images is not None
        self._images = augment_colours(images.float() / 255, self.random)

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        latents = self.model.encode_images(self._images)
        noise = torch.randn(latents.shape, generator=self.generator, device=latents.device, dtype=latents.dtype)
        decoded = self.model.decode_latents(latents + LATENT_NOISE * noise).float()
        absolute = functional.l1_loss(decoded, self._images)
        dissimilarity = 1 - ssim(decoded, self._images)
        squared = functional.mse_loss(decoded, self._images)
        mean, deviation = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        normalisation = (mean.square() + (deviation - 1).square()).mean()
        loss = absolute + SSIM_WEIGHT * dissimilarity + SQUARED_WEIGHT * squared + NORMALISATION_WEIGHT * normalisation
        return loss, {
            "absolute": float(absolute.detach()),
            "ssim": 1 - float(dissimilarity.detach()),
        }

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """PSNR and SSIM of decoded validation images; an image of rows with originals and decoded images."""
        psnrs, ssims, losses, latents = [], [], [], []
        rows: list[np.ndarray] = []
        for images in self._validation:
            images = images.to(self.run.device)
            with self.run.accelerator.autocast():
                encoded = self.model.encode_images(images)
                decoded = self.model.decode_latents(encoded).float().clamp(-1, 1)
            latents.append(encoded.float().transpose(0, 1).flatten(1))
            psnrs.append(psnr(decoded, images))
            ssims.append(ssim(decoded, images))
            losses.append(functional.l1_loss(decoded, images))
            if len(rows) < 4 and (not rows or rows[0].shape == as_uint8(images[:8]).shape):
                rows += [as_uint8(images[:8]), as_uint8(decoded[:8])]
        metrics = {
            "loss": float(torch.stack(losses).mean()),
            "psnr": float(torch.cat(psnrs).mean()),
            "ssim": float(torch.stack(ssims).mean()),
        }
        all_latents = torch.cat(latents, dim=1)
        self.model.register_to_config(
            latents_mean=tuple(float(n) for n in all_latents.mean(1)),
            latents_std=tuple(float(n) for n in all_latents.std(1)),
        )
        return metrics, image_grid(rows)

    def save(self) -> None:
        """Writes the weights, with mean and standard deviation of the last validation's latents."""
        self.run.save_autoencoder(self.model)

    def close(self) -> None:
        """Stops the loader processes."""
        self._stream.close()
