"""Trains the point-map network: autoencoder, rectified flow, and finetuning in one step, within one time budget.

autoencoder   point maps, from the weights of the image autoencoder
flow          velocities at all noise levels; maps at the resolution of pixels at full noise
finetune      one step without noise: maps, and decoded point maps where there is no prior

Clips come from a pool on the training device that processes fill meanwhile. A prior is simulated for each clip each
time (`data.prior_simulation`), and dropped in a share of them. A second pass, whose prior is the first one's result, is
trained in a share of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.weights import open_weights, read_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.models.pointmaps.model import (
    AUTOENCODER_FOLDER,
    NETWORK_FOLDER,
    PointmapModel,
    load_pointmap_model,
)
from worldstereo_ros.models.pointmaps.network import PointmapNetwork
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.training.data.moving_walks import WalkSource
from worldstereo_ros.training.data.pointmap_batches import Batch, ClipFeed, ValidationClips, true_points
from worldstereo_ros.training.data.walk_feed import WalkFeed
from worldstereo_ros.training.flow_matching import noised, shifted
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.pointmap_losses import autoencoder_loss, map_loss, point_loss
from worldstereo_ros.training.pointmap_settings import PRESETS, PointmapTraining, preset, process_age_s
from worldstereo_ros.training.pointmap_validation import summary, validate, write_picture
from worldstereo_ros.training.timed_trainer import TimedTrainer, training_device
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

__all__ = ["PRESETS", "PointmapTraining", "preset", "train_pointmaps"]

FINISH_S = 12.0  # kept for the last validation and saving
STATISTICS_BATCHES = 4
POINT_WEIGHT = 0.05  # of decoded point maps beside the maps, whose gradient is smaller


def load_image_autoencoder(device: torch.device) -> ImageAutoencoder:
    """The bundled small model's autoencoder, frozen."""
    folder = bundled_folder(DEFAULT_MODEL) / "base" / "vae"
    file = folder / "config.json"
    model = build_on_meta(ImageAutoencoder, file, read_json(file), "autoencoder")
    load_weights(model, open_weights(folder, BASE_STEM), device, torch.float32)
    return model.requires_grad_(False).eval()


class PointmapTrainer(TimedTrainer):
    """State of a run: networks, averages, pool, clock and log.

    Args:
        settings: how to train.
        folder: folder of the run.
        started: `time.monotonic()` at which the budget starts.
    """

    def __init__(self, settings: PointmapTraining, folder: Path, started: float) -> None:
        device = training_device(settings.device)
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        source = WalkSource(
            settings.sizes, settings.workers, device, views=settings.views, supersample=settings.supersample
        )
        depth_network = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth", device)
        image_autoencoder = load_image_autoencoder(device)
        if (folder / NETWORK_FOLDER / "config.json").is_file():
            self.model = load_pointmap_model(folder, image_autoencoder, device)
            self.resumed = True
        else:
            network = PointmapNetwork(**(settings.network or {})).to(device)
            autoencoder = PointmapAutoencoder.from_image_autoencoder(image_autoencoder).to(device)
            self.model = PointmapModel(network, autoencoder, image_autoencoder)
            self.resumed = False
        parts: dict[str, nn.Module] = {
            NETWORK_FOLDER: self.model.network, AUTOENCODER_FOLDER: self.model.autoencoder,
        }  # fmt: skip
        for part in parts.values():
            part.requires_grad_(True).train()
        self.feed = ClipFeed(settings, self.model, depth_network, source)
        super().__init__(settings, folder, started, device, parts, self.feed)
        self.validation: list[ValidationClips] = []

    def autoencoder_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the autoencoder."""
        clips = self.feed.draw_clips(max(1, self.feed.batch // 2))
        points, hit = true_points(clips)
        with self.autocast():
            return autoencoder_loss(self.model.autoencoder, points, hit, error=self.settings.code_error)

    def flow_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the velocity at all levels, and of the maps at full noise, in half of the clips each."""
        batch = self.feed.draw()
        b = len(batch.images)
        order = torch.from_numpy(self.feed.random.permutation(b)).to(self.device)
        full = order < (b + 1) // 2
        with torch.no_grad():
            target = self.model.autoencoder.encode_pointmaps(batch.points(), batch.hit)
        noise = torch.randn_like(target)
        level = shifted(torch.sigmoid(torch.randn(b, device=self.device)), 3.0)
        level = torch.where(full, torch.ones_like(level), level)
        with self.autocast():
            velocity, prediction = self.model.network(noised(target, noise, level), level, batch.inputs)
        flow = (velocity - (noise - target)).square().mean()
        maps, parts = _map_loss(prediction, batch, full.nonzero()[:, 0])
        return flow + maps, {"flow": flow.detach(), **parts}

    def finetune_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one step without noise: maps of all clips, points of those without a prior and of one with."""
        batch = self.feed.draw()
        b = len(batch.images)
        zero, level = torch.zeros_like(batch.inputs.image_latents), torch.ones(b, device=self.device)
        if self.feed.random.random() < self.settings.second_pass:
            with torch.no_grad(), self.autocast():
                _, first = self.model.network(zero, level, batch.inputs)
            again = batch.simulated.prior.refined(first)
            batch = self.feed.make_batch(
                batch.clips, batch.images, batch.simulated, batch.has_prior, again, batch.inputs.image_latents
            )
        with self.autocast():
            velocity, prediction = self.model.network(zero, level, batch.inputs)
        everything = torch.arange(b, device=self.device)
        loss, parts = _map_loss(prediction, batch, everything)
        some = slice(0, int((~batch.has_prior).sum()) + 1)  # at level 1 the latent is noise minus velocity
        with self.autocast():
            points, log_scale, valid = self.model.autoencoder.decode_pointmaps(zero[some] - velocity[some])
        decoded = point_loss(
            points, log_scale, valid, batch.points()[some], batch.hit[some], batch.clips.moving[some],
            batch.poses()[some], batch.clips.intrinsics[some],
        )  # fmt: skip
        return loss + POINT_WEIGHT * decoded, {"points": decoded.detach(), **parts}

    def checkpoint(self, name: str, sampler_steps: tuple[int, ...] = (1,)) -> dict[str, float]:
        """Writes the averaged weights, then validates with them."""
        self.save()
        metrics: dict[str, float] = {}
        try:
            with self.averaged():
                results = [validate(self.model, each, sampler_steps) for each in self.validation]
            if results:
                counts = np.array([len(v.images) for v in self.validation], dtype=np.float64)
                for key in results[0][0]:
                    values = np.array([r[0].get(key, np.nan) for r in results])
                    known = np.isfinite(values)
                    metrics[key] = (
                        float((values * counts)[known].sum() / counts[known].sum()) if known.any() else np.nan
                    )
                append_log(
                    self.folder / "log.jsonl",
                    {"step": self.steps, "seconds": self.elapsed(), "stage": name,
                     **{f"validation_{key}": value for key, value in metrics.items()}},
                )  # fmt: skip
                self.say(f"{name} validation: {summary(metrics)}")
                picked = np.linspace(0, len(self.validation[0].images) - 1, 5).astype(int)
                write_picture(self.folder / "validation.png", self.validation[0], results[0][1], sorted(set(picked)))
        except Exception as error:  # training is worth more than a picture of it
            self.say(f"validation failed: {type(error).__name__}: {error}")
        self.last_validation = time.monotonic()
        return metrics


def _map_loss(
    prediction: PointmapPrediction, batch: Batch, which: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    chosen = PointmapPrediction(
        *(getattr(prediction, name)[which] for name in ("log_depth", "log_scale", "dynamic", "valid"))
    )
    return map_loss(
        chosen, batch.log_depth()[which], batch.hit[which], batch.clips.moving[which], batch.has_prior[which]
    )


def train_pointmaps(
    settings: PointmapTraining, folder: Path, *, steps: int | None = None, age_s: float | None = None
) -> dict[str, float]:
    """Trains all stages and writes the model to a folder (`load_pointmap_model`), with a log and a picture.

    A folder that has a model already is finetuned further.

    Args:
        settings: how to train.
        folder: folder of the run.
        steps: steps of each stage at most.
        age_s: seconds of the budget that are gone already; None = the age of the process.

    Returns:
        Metrics of the last validation.

    Raises:
        TrainingConfigError: the device is not available, or nothing could be rendered in time.
        CheckpointError: a bundled network, or the model in the folder, is damaged.
    """
    started = time.monotonic() - (process_age_s() if age_s is None else age_s)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = PointmapTrainer(settings, folder, started)
    with trainer.saving(trainer.feed.source.close):
        return _train(trainer, settings, folder, steps)


def train_autoencoder(
    trainer: TimedTrainer,
    autoencoder: PointmapAutoencoder,
    step: Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    feed: WalkFeed,
    end: float,
    steps: int | None,
) -> None:
    """Trains the autoencoder of point maps, and measures the mean and the deviation of its latents.

    Args:
        trainer: of the run.
        autoencoder: a part of the trainer.
        step: gives the loss and its parts.
        feed: gives clips to measure latents of.
        end: seconds of the budget until which it is trained.
        steps: steps at most; None: as many as fit.
    """
    groups = [{"params": list(autoencoder.parameters()), "lr": trainer.settings.learning_rate}]
    trainer.run("autoencoder", end, step, groups, 0.3, steps)
    autoencoder.load_state_dict(trainer.averages[AUTOENCODER_FOLDER])
    with torch.no_grad(), trainer.autocast():
        latents = [
            autoencoder.encode_points(*true_points(feed.draw_clips(feed.batch))).float()
            for _ in range(STATISTICS_BATCHES)
        ]
    flat = torch.cat([each.transpose(0, 1).flatten(1) for each in latents], dim=1)
    autoencoder.set_statistics(flat.mean(1), flat.std(1))


def _train(trainer: PointmapTrainer, settings: PointmapTraining, folder: Path, steps: int | None) -> dict[str, float]:
    budget = settings.minutes * 60
    device = str(trainer.device)
    append_log(
        folder / "log.jsonl",
        {"round": 0, "resumed": trainer.resumed, "device": device, "settings": asdict(settings)},
    )
    trainer.say(f"on {device}; {'resumed' if trainer.resumed else 'from scratch'}")
    trainer.validation = trainer.feed.render_validation(lambda: trainer.elapsed() > 0.15 * budget)
    trainer.say(f"{sum(len(v.images) for v in trainer.validation)} validation clips")
    trainer.feed.fill(lambda: trainer.elapsed() > 0.4 * budget)
    trainer.say(f"{trainer.feed.walks()} walks to start with; renderers alive: {trainer.feed.source.alive()}")
    finish = min(FINISH_S, 0.05 * budget) if trainer.device.type == "cuda" else 0.1 * budget
    start, end = trainer.elapsed(), budget - finish
    shares = np.cumsum(settings.shares) / sum(settings.shares)
    ends = [start + (end - start) * float(share) for share in shares]
    network, autoencoder = trainer.model.network, trainer.model.autoencoder
    rate = settings.learning_rate
    if not trainer.resumed:
        train_autoencoder(trainer, autoencoder, trainer.autoencoder_step, trainer.feed, ends[0], steps)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.analysis.requires_grad_(False)
    groups = [{"params": list(network.parameters()), "lr": rate}]
    if not trainer.resumed:
        trainer.run("flow", ends[1], trainer.flow_step, groups, 1.0, steps)
    decoder = [p for p in autoencoder.parameters() if p.requires_grad]
    groups = [{"params": list(network.parameters()), "lr": rate}, {"params": decoder, "lr": 0.2 * rate}]
    trainer.run("finetune", ends[2], trainer.finetune_step, groups, 0.25, steps)
    return trainer.checkpoint("finetune", (1, 4, 8))
