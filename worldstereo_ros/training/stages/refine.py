"""Stage refine: trains the refiner against a discriminator of patches, on views that the finished model imagined.

The terms, in unseen pixels alone:

- the squared error of blurred images, which keeps low frequencies at the mean, where a wrong guess costs most;
- the relativistic pairing loss of R3GAN (Huang et al. 2024, arXiv 2501.05441), with a discriminator that sees the
  geometry of the hole and judges small and large patches; true pixels surround the hole in both images;
- differences of features from those of the true image, of the discriminator (Wang et al. 2018, pix2pixHD) and of the
  depth network, whose receptive field is wide (after LaMa, Suvorov et al. 2022, with a network for segmentation);
- for the discriminator, gradient penalties on true and on refined images (R1 and R2), every few steps.

For the first part of the training the squared error of the image itself stands in for the discriminator.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.evaluation.hole_metrics import detail, inside
from worldstereo_ros.evaluation.metrics import psnr_from_mse
from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.hole_refiner import PatchDiscriminator, refine
from worldstereo_ros.training.data.refiner_view_pool import GrowingPool
from worldstereo_ros.training.data.refiner_views import ViewMakers
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.tensor_images import image_grid
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

BLUR_PX = 2.0  # standard deviation
RECONSTRUCTION_WEIGHT = 30.0
MATCHING_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0  # of features of the discriminator and of the depth network
PENALTY_WEIGHT, PENALTY_EVERY = 2.0, 8  # steps
# Of the discriminator: probability of the plane, noise left out, depth, level, and what is unseen.
CONDITIONS = (2, 5, 6)
VALIDATION_VIEWS = 24
SHOWN_VIEWS, SHOWN_SIZE = 8, (320, 240)


class RefineStage:
    """Trains the refiner; see the module and `trainer.Stage`."""

    name = "refine"

    def __init__(self, run: RunFolder) -> None:
        self.run, self.config = run, run.config.stages[self.name]
        seed = run.random_seed(self.name)
        self._random = np.random.default_rng([*seed, 1])
        self._warmup = 0 if run.has(self.name) else self.config.critic_start
        self._step = 0
        self.model = run.refiner()
        torch.manual_seed(run.config.seed)
        width = self.config.critic_width
        self.discriminator = PatchDiscriminator(len(CONDITIONS) + 1, [n * width for n in (1, 2, 3, 4)]).to(run.device)
        self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._features = FeatureNetwork(run.depth_network({})) if run.has("depth") else None
        self._generator = torch.Generator(run.device).manual_seed(int(self._random.integers(1 << 31)))
        # The views are made with the fine-tuned model, whose images the refiner gets at inference.
        count, worlds = self.config.precomputed_views, run.config.worlds
        makers = ViewMakers(
            run.folder / "views", run.finetuned, worlds.loaders, run.device.type if worlds.on_device else "cpu"
        )
        self._pool = GrowingPool(makers, count, min(VALIDATION_VIEWS, count), self.config.initial_views, run.device)
        self.parameter_groups = [
            ParameterGroup("refiner", parameters_of(self.model), self._loss, self.config.learning_rate, momentum=0.0),
            ParameterGroup(
                "discriminator",
                parameters_of(self.discriminator),
                self._discriminator_loss,
                self.config.critic_learning_rate or self.config.learning_rate,
                averaged=False,
                momentum=0.0,
            ),
        ]

    def start_step(self) -> None:
        """Draws crops."""
        self._step += 1
        self._pool.check()
        self._batch = self._pool.training.crops(self.config.batch, self.config.crop, self._generator)

    @property
    def _adversarial(self) -> bool:
        return self._step > self._warmup

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        sources, plain, unseen, truth = self._batch
        refined = self._refine(sources, plain)
        self._refined = unseen * refined + (1 - unseen) * truth
        pixels = 3 * unseen.sum().clamp_min(1)
        error = ((blur(self._refined) - blur(truth)).square() * unseen).sum() / pixels
        if not self._adversarial:
            error = error + ((refined - truth).square() * unseen).sum() / pixels
            return RECONSTRUCTION_WEIGHT * error, {"error": float(error.detach())}
        with torch.no_grad():
            real, true_features = self._judge(truth)
        self.discriminator.requires_grad_(False)
        scores, features = self._judge(self._refined)
        self.discriminator.requires_grad_(True)
        fooled = _pairing(scores, real, unseen)
        matched = relative_difference(features, true_features, unseen)
        loss = RECONSTRUCTION_WEIGHT * error + fooled + MATCHING_WEIGHT * matched
        values = {"error": float(error.detach()), "fooled": float(fooled.detach()), "matched": float(matched.detach())}
        if self._features is not None:
            with torch.no_grad():
                true_features = self._features(truth)
            difference = relative_difference(self._features(self._refined), true_features, unseen)
            loss = loss + FEATURE_WEIGHT * difference
            values["features"] = float(difference.detach())
        values["views"] = float(len(self._pool.training))
        return loss, values

    def _discriminator_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        _, _, unseen, truth = self._batch
        if not self._adversarial:  # nothing to train yet
            return torch.stack([p.sum() for p in self.discriminator.parameters()]).sum() * 0, {}
        penalised = self._step % PENALTY_EVERY == 0
        pair = [images.detach().requires_grad_(penalised) for images in (self._refined, truth)]
        fake, real = (self._judge(images)[0] for images in pair)
        loss = _pairing(real, fake, unseen)
        values = {"told_apart": float(loss.detach())}
        if not penalised:
            return loss, values
        penalty = loss.new_zeros(())
        for images, scores in zip(pair, (fake, real), strict=True):
            means = [(score * mask).sum() / mask[0].numel() for score, mask in zip(scores, masks(unseen), strict=True)]
            gradient = torch.autograd.grad(torch.stack(means).sum(), images, create_graph=True)[0]
            penalty = penalty + gradient.square().sum((1, 2, 3)).mean()
        return loss + PENALTY_WEIGHT / 2 * PENALTY_EVERY * penalty, values

    def _refine(self, sources: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        weights, residual = self.model(*(x.contiguous(memory_format=torch.channels_last) for x in (sources, plain)))
        return refine(sources, weights.float(), residual.float())

    def _judge(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        images = images.contiguous(memory_format=torch.channels_last)
        scores, features = self.discriminator(images, self._conditions())
        return [score.float() for score in scores], features

    def _conditions(self) -> torch.Tensor:
        _, plain, unseen, _ = self._batch
        return torch.cat((plain[:, list(CONDITIONS)], unseen), dim=1)

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """PSNR and detail of unseen pixels, as imagined before and as refined.

        The image has rows of truth, the regression model's images and refined ones. The loss is the squared error of
        blurred images.
        """
        errors: list[list[float]] = []
        energy = np.zeros(3)
        rows: list[list[np.ndarray]] = [[], [], []]
        found = len(self._pool.validation)
        for index in np.linspace(0, found - 1, min(found, VALIDATION_VIEWS)).astype(int):
            sources, plain, unseen, truth = self._pool.validation.views([int(index)])
            with self.run.accelerator.autocast():
                refined = self._refine(sources, plain).clamp(-1, 1)
            before = sources[:, :3]
            refined = torch.where(plain[:, 1:2] > 0.5, before, refined)
            pixels = 3 * unseen.sum().clamp_min(1)
            of_view = [(image - truth).square() for image in (before, refined)]
            of_view += [(blur(image) - blur(truth)).square() for image in (before, refined)]
            errors.append([float((error * unseen).sum() / pixels) for error in of_view])
            core = inside(unseen[0, 0].cpu().numpy() > 0)
            images = [_bytes(image) for image in (truth, before, refined)]
            energy += [float((detail(image)[core] ** 2).sum()) for image in images]
            if len(rows[0]) < SHOWN_VIEWS:
                for row, image in zip(rows, images, strict=True):
                    row.append(cv2.resize(image, SHOWN_SIZE, interpolation=cv2.INTER_AREA))
        mean = np.mean(errors, axis=0)
        return {
            "loss": float(mean[3]),
            "psnr_before": psnr_from_mse(mean[0], 2.0),
            "psnr": psnr_from_mse(mean[1], 2.0),
            "psnr_blurred_before": psnr_from_mse(mean[2], 2.0),
            "psnr_blurred": psnr_from_mse(mean[3], 2.0),
            "detail_before": float(np.sqrt(energy[1] / max(energy[0], 1e-9))),
            "detail": float(np.sqrt(energy[2] / max(energy[0], 1e-9))),
        }, image_grid([np.stack(row) for row in rows])

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_refiner(self.model)

    def close(self) -> None:
        """Ends the processes that make views."""
        self._pool.close()


class FeatureNetwork(torch.nn.Module):
    """Features of the depth network at a quarter, an eighth and a sixteenth of the size; frozen."""

    def __init__(self, network: DepthNetwork) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self._found: list[torch.Tensor] = []
        for part in (network.in_quarter, network.in_eighth, network.attention[-1]):
            part.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._found.append(output)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features (b, c, h, w) of images (b, 3, H, W) in [-1, 1], whose principal points are their centres."""
        height, width = images.shape[-2:]
        centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=images.device).expand(len(images), 2)
        self._found = []
        self.network(images, centre)
        quarter, eighth, tokens = self._found
        self._found = []
        return [quarter, eighth, tokens.transpose(1, 2).unflatten(2, (height // 16, width // 16))]


def relative_difference(features: list[torch.Tensor], true: list[torch.Tensor], unseen: torch.Tensor) -> torch.Tensor:
    """Mean over layers of the mean absolute difference of features, relative to their size, where nothing was seen.

    Args:
        features, true: maps (b, c, h, w) of each layer.
        unseen: (b, 1, H, W), 1 where nothing was seen.
    """
    found = []
    for one, other in zip(features, true, strict=True):
        mask = functional.adaptive_max_pool2d(unseen, one.shape[-2:])
        pixels = one.shape[1] * mask.sum().clamp_min(1)
        difference = ((one.float() - other.float()).abs() * mask).sum() / pixels
        found.append(difference / ((other.float().abs() * mask).sum() / pixels).clamp_min(1e-3))
    return torch.stack(found).mean()


def blur(images: torch.Tensor) -> torch.Tensor:
    """(b, c, H, W), low-pass filtered."""
    radius = int(3 * BLUR_PX)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-((x / BLUR_PX) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(across, kernel.transpose(-1, -2), groups=images.shape[1])


def masks(unseen: torch.Tensor) -> list[torch.Tensor]:
    """Where the scores of the discriminator count, for both sizes of patches."""
    return [functional.max_pool2d(unseen, 4), functional.max_pool2d(unseen, 16)]


def _pairing(higher: list[torch.Tensor], lower: list[torch.Tensor], unseen: torch.Tensor) -> torch.Tensor:
    """Relativistic pairing loss: low where the first scores are higher than the second; mean of both sizes."""
    losses = [
        (functional.softplus(b - a) * mask).sum() / mask.sum().clamp_min(1)
        for a, b, mask in zip(higher, lower, masks(unseen), strict=True)
    ]
    return torch.stack(losses).mean()


def _bytes(images: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) in [-1, 1] to (H, W, 3) uint8."""
    return ((images[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
