"""Fine-tunes Open-Sora 1.2 for point maps, as Sora3R: first the autoencoder, then the transformer.

autoencoder   point maps instead of videos, by Huber's loss and the KL divergence; images keep the published weights
flow          velocities of point-map latents beside the latents of images, with both autoencoders frozen

Worlds, clips and the loop are those of the small network (`pointmaps`).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worldstereo_ros.models.pointmaps.autoencoder import coded
from worldstereo_ros.models.pointmaps.model import save_part
from worldstereo_ros.models.pointmaps.open_sora_autoencoder import (
    OpenSoraVideoAutoencoder,
    PointmapVideoAutoencoder,
    load_open_sora_autoencoder,
)
from worldstereo_ros.models.pointmaps.open_sora_flow import level_shift, shift_levels
from worldstereo_ros.models.pointmaps.published import (
    AUTOENCODER_FOLDER,
    IMAGE_AUTOENCODER_FOLDER,
    TRANSFORMER_FOLDER,
    PublishedPointmaps,
)
from worldstereo_ros.models.pointmaps.stdit3 import WORK_PIXELS, load_stdit3
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.moving_walks import MovingClips, WalkSource
from worldstereo_ros.training.data.pointmap_batches import camera_looks, true_points
from worldstereo_ros.training.data.walk_feed import WalkFeed
from worldstereo_ros.training.flow_matching import noised
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.open_sora_settings import OpenSoraTraining, open_sora_folders
from worldstereo_ros.training.pointmap_losses import KL_WEIGHT, decoder_loss
from worldstereo_ros.training.pointmap_settings import process_age_s
from worldstereo_ros.training.pointmap_validation import point_scores
from worldstereo_ros.training.timed_trainer import TimedTrainer, training_device

STATISTICS_BATCHES = 4
FRAME_RATE = 10.0  # frames a second of the walks
FINISH_SHARE = 0.05  # of the duration, for the last validation and saving
VALIDATION_STEPS = (1, 4, 30)
OPTIMISER = {"eps": 1e-15, "betas": (0.9, 0.999), "weight_decay": 0.0}  # as Open-Sora


class OpenSoraTrainer(TimedTrainer):
    """State of a run.

    Args:
        settings: how to train.
        base: `open-sora:FOLDER`.
        folder: folder of the run; weights in it are trained further.
        started: `time.monotonic()` at which the budget starts.
    """

    max_norm = 1.0
    walk_feed: WalkFeed

    def __init__(self, settings: OpenSoraTraining, base: str, folder: Path, started: float) -> None:
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise TrainingConfigError(
                "Open-Sora's size needs a CUDA GPU, and this machine has no usable one. --config smoke tries the "
                "command with tiny weights."
            )
        device = training_device(settings.device)
        torch.manual_seed(settings.seed)
        self.resumed = (folder / TRANSFORMER_FOLDER / "config.json").is_file()
        if self.resumed:
            model = PublishedPointmaps.from_pretrained(
                folder / TRANSFORMER_FOLDER, folder / AUTOENCODER_FOLDER, device=device
            )
        else:
            transformer, autoencoder = open_sora_folders(base)
            images = load_open_sora_autoencoder(autoencoder, device=device)
            if isinstance(images, PointmapVideoAutoencoder):
                raise TrainingConfigError(f"{autoencoder} is an autoencoder of point maps; one of images was expected.")
            points = PointmapVideoAutoencoder.from_video_autoencoder(images)
            model = PublishedPointmaps(load_stdit3(transformer, widened=True, device=device), points, images)
            _save_autoencoder(folder / IMAGE_AUTOENCODER_FOLDER, images)
        height, width = settings.sizes[0]
        model.transformer.register_to_config(**{WORK_PIXELS: height * width})
        self.model, self.warm_up_steps = model, settings.warm_up_steps
        parts: dict[str, nn.Module] = {
            TRANSFORMER_FOLDER: model.transformer, AUTOENCODER_FOLDER: model.autoencoder,
        }  # fmt: skip
        for part in parts.values():
            part.requires_grad_(True).train()
        if settings.recompute:
            model.transformer.recompute = True
            model.autoencoder.save_memory()
        source = WalkSource(
            settings.sizes, settings.workers, device, views=settings.views, supersample=settings.supersample
        )
        super().__init__(settings, folder, started, device, parts, WalkFeed(settings, source, device))
        self.validation: list[MovingClips] = []

    def autoencoder_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the autoencoder of point maps."""
        points, hit = true_points(self.walk_feed.draw_clips(max(1, self.walk_feed.batch // 2)))
        code = coded(points, hit)
        with self.autocast():
            mean, log_variance = self.model.autoencoder.moments(code.transpose(1, 2))
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            heads = self.model.autoencoder.decode_heads(self.model.autoencoder.normalise(latents), points.shape[1])
        decoded, log_scale, valid = (each.flatten(0, 1).float() for each in heads)
        loss, parts = decoder_loss(
            decoded, log_scale, valid, points.flatten(0, 1), code.flatten(0, 1), hit.flatten(0, 1),
            error=self.settings.code_error,
        )  # fmt: skip
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return loss + KL_WEIGHT * divergence, {"kl": divergence.detach(), **parts}

    def measure_latents(self) -> None:
        """Sets shift and scale of the latents to what point maps have."""
        found = []
        with torch.no_grad(), self.autocast():
            for _ in range(STATISTICS_BATCHES):
                code = coded(*true_points(self.walk_feed.draw_clips(self.walk_feed.batch)))
                found.append(self.model.autoencoder.moments(code.transpose(1, 2))[0].transpose(0, 1).flatten(1))
        flat = torch.cat(found, dim=1)
        # Rounded as files are, so that a loaded model has the same.
        self.model.autoencoder.set_statistics(*(x.to(self.save_dtype).float() for x in (flat.mean(1), flat.std(1))))
        for key in ("shift", "scale"):
            self.averages[AUTOENCODER_FOLDER][key].copy_(self.model.autoencoder.get_buffer(key))

    def flow_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the velocity x - n at random levels."""
        clips = self.walk_feed.draw_clips(self.walk_feed.batch)
        images = camera_looks(clips.images, self.walk_feed.random)
        height, width = images.shape[3:]
        with torch.no_grad(), self.autocast():
            target = self.model.autoencoder.encode_pointmaps(*true_points(clips))
            condition = self.model.image_autoencoder.encode(images.transpose(1, 2))
        noise = torch.randn_like(target)
        even = torch.sigmoid(torch.randn(len(target), device=self.device))
        level = shift_levels(even, level_shift(height, width, target.shape[2]))
        joined = torch.cat((noised(target, noise, level), condition), dim=1)
        with self.autocast():
            velocity = self.model.transformer.velocity(joined, level, FRAME_RATE)
        loss = (velocity - (target - noise)).square().mean()
        return loss, {"flow": loss.detach()}

    def checkpoint(self, name: str) -> dict[str, float]:
        """Writes the averaged weights, then validates with them."""
        self.save()
        metrics: dict[str, float] = {}
        try:
            with self.averaged():
                metrics = self._validate()
            append_log(
                self.folder / "log.jsonl",
                {"step": self.steps, "seconds": self.elapsed(), "stage": name,
                 **{f"validation_{key}": value for key, value in metrics.items()}},
            )  # fmt: skip
            self.say(f"{name} validation: " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
        except Exception as error:  # training is worth more than its measures
            self.say(f"validation failed: {type(error).__name__}: {error}")
        self.last_validation = time.monotonic()
        return metrics

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Errors of sampled point maps, beside those of decoded true latents, which no sample can beat."""
        rows: dict[str, list[float]] = {}
        random = np.random.default_rng(17)
        for clips in self.validation:
            images = augment_colours(clips.images, random, strength=0.3)
            with self.autocast():
                latents = self.model.autoencoder.encode_pointmaps(*true_points(clips))
                found = {"coded": self.model.autoencoder.decode_pointmaps(latents, images.shape[1])[0]}
                for steps in VALIDATION_STEPS:
                    generator = torch.Generator(images.device).manual_seed(steps)
                    sampled = self.model.sample(
                        images, clips.intrinsics, steps=steps, fps=FRAME_RATE, generator=generator
                    )
                    found[f"steps_{steps}"] = sampled.points
            for name, points in found.items():
                for key, values in point_scores(points.float(), clips).items():
                    rows.setdefault(f"{name}_{key}", []).extend(values)
        return {name: float(np.nanmean(values)) for name, values in rows.items() if np.isfinite(values).any()}


def train_open_sora(
    settings: OpenSoraTraining, base: str, folder: Path, *, steps: int | None = None, age_s: float | None = None
) -> dict[str, float]:
    """Fine-tunes both stages and writes the model to a folder (`PublishedPointmaps.from_pretrained`), with a log.

    A folder that has a model already is trained further, without the stage of the autoencoder.

    Args:
        settings: how to train.
        base: `open-sora:FOLDER` with the published weights, see `open_sora_folders`.
        folder: folder of the run.
        steps: steps of each stage at most.
        age_s: seconds of the budget that are gone already; None = the age of the process.

    Returns:
        Metrics of the last validation.

    Raises:
        TrainingConfigError: the base has no such folders, the device is not available, or nothing could be rendered in
            time.
        CheckpointError: weights are damaged or not those of Open-Sora 1.2.
    """
    started = time.monotonic() - (process_age_s() if age_s is None else age_s)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = OpenSoraTrainer(settings, base, folder, started)
    with trainer.saving(trainer.walk_feed.source.close):
        return _train(trainer, settings, steps)


def _train(trainer: OpenSoraTrainer, settings: OpenSoraTraining, steps: int | None) -> dict[str, float]:
    budget = settings.minutes * 60
    append_log(
        trainer.folder / "log.jsonl",
        {"round": 0, "resumed": trainer.resumed, "device": str(trainer.device), "settings": asdict(settings)},
    )
    trainer.validation = trainer.walk_feed.render_validation_clips(lambda: trainer.elapsed() > 0.15 * budget)
    trainer.walk_feed.fill(lambda: trainer.elapsed() > 0.3 * budget)
    start, end = trainer.elapsed(), budget * (1 - FINISH_SHARE)
    autoencoder, transformer = trainer.model.autoencoder, trainer.model.transformer
    if not trainer.resumed:
        share = settings.shares[0] / (settings.shares[0] + settings.shares[1])
        groups: list[dict[str, Any]] = [
            {"params": list(autoencoder.parameters()), "lr": settings.autoencoder_rate, **OPTIMISER}
        ]
        trainer.run("autoencoder", start + (end - start) * share, trainer.autoencoder_step, groups, 0.5, steps)
        autoencoder.load_state_dict(trainer.averages[AUTOENCODER_FOLDER])
        trainer.measure_latents()
    autoencoder.requires_grad_(False).eval()
    groups = [{"params": list(transformer.parameters()), "lr": settings.learning_rate, **OPTIMISER}]
    trainer.run("flow", end, trainer.flow_step, groups, 1.0, steps)
    return trainer.checkpoint("flow")


def _save_autoencoder(folder: Path, model: OpenSoraVideoAutoencoder) -> None:
    save_part(folder, model, model.state_dict(), torch.float32)
