"""Stage depth: monocular depth, trained on single views of the worlds and their exact depth.

Independent of the other stages.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.depth.familiarity import Familiarity
from worldstereo_ros.models.depth_network import CANONICAL_FOCAL_PX, DepthMaps
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.depth_sampling import DepthBatch, DepthSampler, augment_appearance
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.tensor_images import as_uint8, image_grid
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of
from worldstereo_ros.visualization.images import depth_image

# Weights relative to the absolute error of log depth.
LIKELIHOOD_WEIGHT, SURFACE_WEIGHT, GRADIENT_WEIGHT, SCALE_INVARIANT_WEIGHT = 0.2, 0.2, 0.5, 0.5
MAX_SHOWN_DEPTH_M = 8.0  # of the colours in validation images
MIN_REPLAY = 4  # batches that have to be new before any is used again
GRADIENT_SCALES = 4  # resolutions of the gradient loss, each half of the one before


def depth_loss(pred: DepthMaps, batch: DepthBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """The training loss and its parts.

    The sum of the absolute error of log depth, the same up to the scale of each image (Eigen et al. 2014), the
    multi-scale gradient loss (Ranftl et al. 2020, MiDaS), binary cross-entropy of "there is a surface", and the
    negative log-likelihood of the predicted Laplace distributions. Gradients of the last go to the predicted scale
    alone: else the few pixels with a confident and wrong prediction would dominate.

    Args:
        pred: output of the network.
        batch: images and depth.
    """
    weight = (batch.depth > 0).float()
    total = weight.sum().clamp_min(1)
    error = (pred.log_depth - batch.log_depth()) * weight
    absolute = error.abs().sum() / total
    likelihood = ((error.detach().abs() * torch.exp(-pred.log_scale) + pred.log_scale) * weight).sum() / total
    mean = error.sum((1, 2)) / weight.sum((1, 2)).clamp_min(1)
    relative = ((error - mean[:, None, None]).abs() * weight).sum() / total
    gradient = _gradient_loss(error, weight)
    surface = functional.binary_cross_entropy_with_logits(pred.hit, weight)
    loss = (
        absolute
        + LIKELIHOOD_WEIGHT * likelihood
        + GRADIENT_WEIGHT * gradient
        + SCALE_INVARIANT_WEIGHT * relative
        + SURFACE_WEIGHT * surface
    )
    parts = {"absolute": absolute, "likelihood": likelihood, "edges": gradient, "relative": relative, "hit": surface}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def _gradient_loss(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the errors of neighbouring pixels, over `GRADIENT_SCALES` resolutions."""
    sums = []
    for level in range(GRADIENT_SCALES):
        step = 2**level
        e, w = error[:, ::step, ::step], weight[:, ::step, ::step]
        right, below = w[:, :, 1:] * w[:, :, :-1], w[:, 1:] * w[:, :-1]
        sums.append(((e[:, :, 1:] - e[:, :, :-1]).abs() * right).sum() / right.sum().clamp_min(1))
        sums.append(((e[:, 1:] - e[:, :-1]).abs() * below).sum() / below.sum().clamp_min(1))
    return torch.stack(sums).mean()


class DepthStage:
    """Trains the depth network on single views; see `trainer.Stage`."""

    name = "depth"

    def __init__(self, run: RunFolder, training: WorldDataset, validation: WorldDataset) -> None:
        self.run, self.config = run, run.config.stages[self.name]
        seed = run.random_seed(self.name)
        self._random = np.random.default_rng([*seed, 1])
        typical: dict[str, Any] = {}
        if not run.has(self.name):
            random = np.random.default_rng([*seed, 2])
            sampled = [DepthSampler(32)(training, random, torch.device("cpu")) for _ in range(8)]
            as_rendered = [DepthSampler(32, clean=True)(training, random, torch.device("cpu")) for _ in range(16)]
            typical = {**typical_of(sampled), "familiar": familiarity_of(as_rendered).to_config()}
        self.model = run.depth_network(typical)
        self.parameter_groups = [
            ParameterGroup("depth", parameters_of(self.model), self._loss, self.config.learning_rate)
        ]
        random = np.random.default_rng(0)
        self._validation = [DepthSampler(16, clean=True)(validation, random, run.device) for _ in range(8)]
        self._stream = run.stream(DepthSampler(self.config.batch), training, [*seed, 3])
        self._recent: deque[DepthBatch] = deque(maxlen=max(1, run.config.worlds.replay))

    def start_step(self) -> None:
        """Samples and augments the views of a step; recent ones with another look while no new ones are ready."""
        replay = self.run.config.worlds.replay
        batch = self._stream.take(wait=not replay or len(self._recent) < min(replay, MIN_REPLAY))
        self._new_views = batch is not None
        if batch is None:
            batch = self._recent[int(self._random.integers(len(self._recent)))]
        elif replay:
            self._recent.append(batch)
        self._batch = batch
        self._images = augment_appearance(batch.images.float() / 255, self._random)

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        images = self._images.contiguous(memory_format=torch.channels_last)
        loss, values = depth_loss(self.model(images, self._batch.centre), self._batch)
        return loss, {**values, "new_views": float(self._new_views)}

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Metric and scale-aligned errors; an image of rows with images, true and predicted depth."""
        metrics: dict[str, list[float]] = {}
        rows: list[np.ndarray] = []
        for batch in self._validation:
            with self.run.accelerator.autocast():
                pred = self.model(batch.images.float() / 127.5 - 1, batch.centre)
            loss, _ = depth_loss(pred, batch)
            surface = batch.depth > 0
            error = pred.log_depth - batch.log_depth()
            log_ratio = torch.where(surface, error, torch.nan)
            scale = log_ratio.flatten(1).nanmedian(1).values[:, None, None]
            values = {
                "loss": float(loss),
                "absrel": float((log_ratio.exp() - 1).abs().nanmean()),
                "delta": float((error.abs()[surface] < math.log(1.25)).float().mean()),
                "aligned_absrel": float(((log_ratio - scale).exp() - 1).abs().nanmean()),
                "hit": float(((pred.hit > 0) == surface).float().mean()),
            }
            for name, value in values.items():
                metrics.setdefault(name, []).append(value)
            if len(rows) < 6 and (not rows or rows[0].shape[1:] == (*batch.depth.shape[1:], 3)):
                log_depth = pred.log_depth + (batch.focal / CANONICAL_FOCAL_PX).log()[:, None, None]
                depth = torch.where(pred.hit > 0, log_depth.exp(), 0)
                images = as_uint8(batch.images[:8].float() / 127.5 - 1)
                rows += [images, coloured(batch.depth[:8]), coloured(depth[:8])]
        return {name: float(np.mean(values)) for name, values in metrics.items()}, image_grid(rows)

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_depth_network(self.model)

    def close(self) -> None:
        """Stops the loader processes."""
        self._stream.close()


def typical_of(batches: list[DepthBatch]) -> dict[str, float]:
    """Medians over the training views: `typical_log` and `typical_depth` of a `DepthNetwork`."""
    logs = torch.cat([batch.log_depth()[batch.depth > 0] for batch in batches])
    metres = torch.cat([batch.depth[batch.depth > 0] for batch in batches])
    return {"typical_log": round(float(logs.median()), 4), "typical_depth": round(float(metres.median()), 3)}


def familiarity_of(batches: list[DepthBatch]) -> Familiarity:
    """Statistics of the training images, which tell the network's users what it was not trained on."""
    return Familiarity.fit(image.permute(1, 2, 0).numpy() for batch in batches for image in batch.images)


def coloured(depth: torch.Tensor) -> np.ndarray:
    """Depth (N, h, w) in metres as images (N, h, w, 3) uint8 RGB."""
    return np.stack([depth_image(one, MAX_SHOWN_DEPTH_M) for one in depth.detach().float().cpu().numpy()])
