"""Trains the published form of point maps: no tracks and no prior, by rectified flow over latents.

autoencoder   point maps, from nothing: the small one that a model of a few megabytes can carry
flow          in half of the clips one step from a latent of zeros, decoded; in the others velocities at all levels

The images come as latents of the image autoencoder and as features of the depth network, both frozen and bundled
already: they stand in for the pre-trained video model that Sora3R starts from.

folder                  content
<run>/transformer/      averaged weights of the network in bfloat16, and configuration
<run>/vae/              those of the autoencoder of point maps
<run>/walks/            rendered walks; a run that is started again reads them
<run>/log.jsonl         losses, and scores on validation worlds
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder, coded
from worldstereo_ros.models.pointmaps.geometry import encode_points, mean_distance, world_points
from worldstereo_ros.models.pointmaps.model import (
    AUTOENCODER_FOLDER,
    NETWORK_FOLDER,
    PointmapModel,
    load_pointmap_model,
)
from worldstereo_ros.models.pointmaps.network import NetworkInputs, PointmapNetwork
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.training.data.moving_walks import MovingClips, WalkSource
from worldstereo_ros.training.data.pointmap_batches import camera_looks, true_points
from worldstereo_ros.training.data.walk_feed import WalkFeed
from worldstereo_ros.training.flow_matching import noised, shifted
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.pointmap_losses import autoencoder_loss, decoder_loss, direction_loss, map_loss
from worldstereo_ros.training.pointmap_settings import PointmapTraining, process_age_s
from worldstereo_ros.training.pointmap_validation import sample_scores
from worldstereo_ros.training.stages.pointmaps import load_image_autoencoder, train_autoencoder
from worldstereo_ros.training.timed_trainer import TimedTrainer, training_device
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

WALKS_FOLDER = "walks"
MAP_WEIGHT, POINT_WEIGHT, RAY_WEIGHT = 0.3, 0.3, 2.0  # beside the flow
DECODER_RATE = 0.2  # of the network's
FINISH_SHARE = 0.05  # of the budget, for the last validation
STEPS = (1, 4, 8)  # of the sampler, in validation


@dataclass(frozen=True)
class _Prepared:
    clips: MovingClips
    inputs: NetworkInputs
    points: torch.Tensor
    hit: torch.Tensor
    unit: torch.Tensor  # (b,) metres
    target: torch.Tensor


class TrainerWithoutPrior(TimedTrainer):
    """State of a run.

    Args:
        settings: how to train.
        folder: folder of the run.
        started: `time.monotonic()` at which the budget starts.
    """

    walk_feed: WalkFeed

    def __init__(self, settings: PointmapTraining, folder: Path, started: float) -> None:
        device = training_device(settings.device)
        torch.manual_seed(settings.seed)
        image_autoencoder = load_image_autoencoder(device)
        depth_network = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth", device)
        self.resumed = (folder / NETWORK_FOLDER / "config.json").is_file()
        if self.resumed:
            self.model = load_pointmap_model(folder, image_autoencoder, device, depth_network)
        else:
            channels = depth_network.config.widths[0]
            network = PointmapNetwork(**(settings.network or {}), prior=False, depth_channels=channels).to(device)
            autoencoder = PointmapAutoencoder(**(settings.autoencoder or {})).to(device)
            self.model = PointmapModel(network, autoencoder, image_autoencoder, depth_network)
        parts: dict[str, nn.Module] = {
            NETWORK_FOLDER: self.model.network, AUTOENCODER_FOLDER: self.model.autoencoder,
        }  # fmt: skip
        for part in parts.values():
            part.requires_grad_(True).train()
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        walks = folder / WALKS_FOLDER
        source = WalkSource(
            settings.sizes, settings.workers, device, views=settings.views, supersample=settings.supersample,
            first=len(list(walks.glob("*.npz"))),
        )  # fmt: skip
        super().__init__(settings, folder, started, device, parts, WalkFeed(settings, source, device, walks))
        self.validation: list[MovingClips] = []
        self._kept: _Prepared | None = None
        self._uses = 0

    def autocast(self) -> torch.autocast:
        """bf16, also on a CPU where the settings say so."""
        enabled = self.settings.bf16 or self.device.type == "cuda"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def autoencoder_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the autoencoder."""
        points, hit = true_points(self.walk_feed.draw_clips(max(1, self.walk_feed.batch // 2)))
        with self.autocast():
            return autoencoder_loss(self.model.autoencoder, points, hit, error=self.settings.code_error)

    @torch.no_grad()
    def _draw(self) -> _Prepared:
        """Clips and what the network gets; some in succession are the same (`reuse`)."""
        if self._kept is None or self._uses >= self.settings.reuse:
            clips = self.walk_feed.draw_clips(self.walk_feed.batch)
            images = camera_looks(clips.images, self.walk_feed.random)
            points, hit = true_points(clips)
            unit = mean_distance(world_points(clips.depth, clips.poses, clips.intrinsics), hit)
            with self.autocast():
                inputs, _ = self.model.prepare(images, clips.intrinsics, None)
                target = self.model.autoencoder.encode_pointmaps(points, hit).float()
            self._kept, self._uses = _Prepared(clips, inputs, points, hit, unit, target), 0
        self._uses += 1
        return self._kept

    def flow_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one step and decoded points in half of the clips, and of the velocity at other levels in the rest."""
        given = self._draw()
        b = len(given.points)
        order = torch.from_numpy(self.walk_feed.random.permutation(b)).to(self.device)
        single = order < (b + 1) // 2
        noise = torch.randn_like(given.target) * (~single).view(-1, 1, 1, 1, 1)
        level = shifted(torch.sigmoid(torch.randn(b, device=self.device)), 3.0)
        level = torch.where(single, torch.ones_like(level), level)
        with self.autocast():
            velocity, maps = self.model.network(noised(given.target, noise, level), level, given.inputs)
        # The lowest frequencies of a block say where it is: they are three of the channels, and vary most.
        autoencoder = self.model.autoencoder
        spread = velocity.new_tensor(autoencoder.config.latents_std or [1.0] * velocity.shape[1])
        weight = (spread / spread.mean()).view(1, -1, 1, 1, 1)
        flow = (weight * (velocity - (noise - given.target)).square()).mean()
        which = single.nonzero()[:, 0]
        hit, points = given.hit[which], given.points[which]
        chosen = PointmapPrediction(
            *(getattr(maps, name)[which] for name in ("log_depth", "log_scale", "dynamic", "valid"))
        )
        log_depth = given.clips.depth[which].clamp_min(1e-2).log() - given.unit[which].log().view(-1, 1, 1, 1)
        map_part, parts = map_loss(
            chosen, log_depth, hit, given.clips.moving[which], torch.ones_like(which, dtype=torch.bool)
        )
        with self.autocast():
            decoded = autoencoder.decode_pointmaps(-velocity[which])
        # Errors of codes, not of points: those of far points would outweigh all others.
        some, log_scale, valid = (each.float().flatten(0, 1) for each in decoded)
        point_part, decoded_parts = decoder_loss(
            encode_points(some), log_scale, valid, points.flatten(0, 1), coded(points, hit).flatten(0, 1),
            hit.flatten(0, 1), error="l1",
        )  # fmt: skip
        static = hit & ~given.clips.moving[which]
        centre = given.clips.poses[which, :, :3, 3] / given.unit[which].view(-1, 1, 1)
        rays = direction_loss(decoded[0].float(), points, centre, static)
        loss = flow + MAP_WEIGHT * map_part + POINT_WEIGHT * point_part + RAY_WEIGHT * rays
        return loss, {
            "flow": flow.detach(), "code": decoded_parts["l1"], "rays": rays.detach(), "depth": parts["error"],
        }  # fmt: skip

    def checkpoint(self, name: str, steps: tuple[int, ...] = (1,)) -> dict[str, float]:
        """Writes the averaged weights and scores them."""
        self.save()
        with self.averaged(), self.autocast():
            metrics = sample_scores(self.model, self.validation, steps)
        line = {"step": self.steps, "seconds": self.elapsed(), "stage": name}
        append_log(self.folder / "log.jsonl", {**line, **{f"validation_{k}": v for k, v in metrics.items()}})
        self.say(f"{name} validation: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        self.last_validation = time.monotonic()
        return metrics


def train_without_prior(
    settings: PointmapTraining, folder: Path, *, steps: int | None = None, age_s: float | None = None
) -> dict[str, float]:
    """Trains both stages and writes the model to a folder (`load_pointmap_model`), with a log.

    A folder that has a model already is trained further.

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
    trainer = TrainerWithoutPrior(settings, folder, started)
    append_log(
        folder / "log.jsonl",
        {"round": 0, "resumed": trainer.resumed, "device": str(trainer.device), "settings": asdict(settings)},
    )
    with trainer.saving(trainer.walk_feed.source.close):
        return _train(trainer, settings.minutes * 60, steps)


def _train(trainer: TrainerWithoutPrior, budget: float, steps: int | None) -> dict[str, float]:
    feed, settings = trainer.walk_feed, trainer.settings
    trainer.validation = feed.render_validation_clips(lambda: trainer.elapsed() > 0.1 * budget)
    feed.fill(lambda: trainer.elapsed() > 0.3 * budget)
    trainer.say(f"{feed.walks()} walks to start with, {sum(len(v.images) for v in trainer.validation)} for validation")
    network, autoencoder = trainer.model.network, trainer.model.autoencoder
    rate, end = settings.learning_rate, (1 - FINISH_SHARE) * budget
    if not trainer.resumed:
        first = trainer.elapsed()
        until = first + (end - first) * settings.shares[0] / sum(settings.shares)
        train_autoencoder(trainer, autoencoder, trainer.autoencoder_step, feed, until, steps)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.analysis.requires_grad_(False)
    decoder = [p for p in autoencoder.parameters() if p.requires_grad]
    groups = [{"params": list(network.parameters()), "lr": rate}, {"params": decoder, "lr": DECODER_RATE * rate}]
    trainer.run("flow", end, trainer.flow_step, groups, 0.4, steps)
    return trainer.checkpoint("flow", STEPS)
