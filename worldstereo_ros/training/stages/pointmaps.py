"""Trains the point-map network: autoencoder, rectified flow, and finetuning in one step, within one time budget.

autoencoder   point maps, from the weights of the image autoencoder
flow          velocities at all noise levels; maps at the resolution of pixels at full noise
finetune      one step without noise: maps, and decoded point maps where there is no prior

Clips come from a pool on the training device that processes fill meanwhile. A prior is simulated for each clip each
time (`data.prior_simulation`), and dropped in a share of them. A second pass, whose prior is the first one's result, is
trained in a share of the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.weights import open_weights, read_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.models.pointmaps.geometry import mean_distance, world_points
from worldstereo_ros.models.pointmaps.model import (
    AUTOENCODER_FOLDER,
    NETWORK_FOLDER,
    PointmapModel,
    load_pointmap_model,
    save_part,
)
from worldstereo_ros.models.pointmaps.network import NetworkInputs, PointmapNetwork
from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.moving_walks import MovingClips, Walk, WalkPool, WalkSource, render_walks
from worldstereo_ros.training.data.prior_simulation import SimulatedPrior, simulate_prior
from worldstereo_ros.training.flow_matching import noised, shifted
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.pointmap_losses import autoencoder_loss, map_loss, point_loss
from worldstereo_ros.training.pointmap_validation import ValidationClips, summary, validate, write_picture
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

LOG_EVERY_S = 10.0
FINISH_S = 12.0  # kept for the last validation and saving
MAX_BAD_STEPS = 200  # in a row
STATISTICS_BATCHES = 4


@dataclass(frozen=True)
class PointmapTraining:
    """How the network is trained.

    Attributes:
        minutes: duration, counted from the start of the process.
        shares: of the duration, for autoencoder, flow and finetune.
        device: cpu, cuda or auto (CUDA if available).
        sizes: (height, width) of the clips, multiples of 16 with about 12 000 pixels.
        frames: of a clip.
        batch: clips of a step.
        learning_rate: highest one.
        prior_drop: share of the clips without a prior.
        second_pass: share of the steps that train a second pass.
        ema: decay of the average of the weights.
        workers: processes that render walks; 0 = the training process does, at each step.
        capacity: walks of each size in the pool.
        first_walks: walks before training starts.
        views, supersample: of walks, see `moving_walks.render_walks`.
        validation_worlds: worlds to validate on, with two walks each at most.
        validation_s: seconds between validations; weights are written at each.
        seed: random seed.
        network: arguments of `PointmapNetwork`.
    """

    minutes: float = 60.0
    shares: tuple[float, float, float] = (0.10, 0.15, 0.75)
    device: str = "auto"
    sizes: tuple[tuple[int, int], ...] = ((96, 128), (80, 144))
    frames: int = 13
    batch: int = 4
    learning_rate: float = 1e-3
    prior_drop: float = 0.15
    second_pass: float = 0.5
    ema: float = 0.998
    workers: int = 0
    capacity: int = 60
    first_walks: int = 8
    views: int = 37
    supersample: int = 1
    validation_worlds: int = 4
    validation_s: float = 300.0
    seed: int = 0
    network: dict[str, Any] | None = None


PRESETS = {
    "cpu": PointmapTraining(),
    "gpu": PointmapTraining(
        minutes=10.0, batch=40, workers=3, capacity=1600, first_walks=24, supersample=2, validation_worlds=14,
        validation_s=60.0,
    ),
    "smoke": PointmapTraining(
        minutes=2.0, sizes=((48, 64),), frames=5, batch=2, capacity=4, first_walks=2, views=9, validation_worlds=1,
        validation_s=40.0, network={"width": 48, "heads": 2, "depth": 1, "pixel_widths": (16, 24)},
    ),
}  # fmt: skip


def process_age_s() -> float:
    """Seconds since this process started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        import os

        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def load_image_autoencoder(device: torch.device) -> ImageAutoencoder:
    """The bundled small model's autoencoder, frozen."""
    folder = bundled_folder(DEFAULT_MODEL) / "base" / "vae"
    file = folder / "config.json"
    model = build_on_meta(ImageAutoencoder, file, read_json(file), "autoencoder")
    load_weights(model, open_weights(folder, BASE_STEM), device, torch.float32)
    return model.requires_grad_(False).eval()


def camera_looks(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Images (b, F, 3, h, w) in [0, 1] of clips as cameras would take them, in [-1, 1].

    Each clip has its own hue, blur and camera; exposure drifts from frame to frame.
    """
    b, f = images.shape[:2]

    def tensor(values: np.ndarray, *shape: int) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(images.device).view(*shape)

    angles = np.where(random.random(b) < 0.6, random.normal(0, 0.2, b), random.uniform(-np.pi, np.pi, b))
    hue = Rotation.from_rotvec(angles[:, None] * np.ones(3) / math.sqrt(3)).as_matrix()
    grey = (random.random(b) < 0.1)[:, None, None]
    colours = tensor(np.where(grey, np.full((3, 3), 1 / 3), hue), b, 3, 3)
    out = torch.einsum("nij,nfjhw->nfihw", colours, images)
    drift = np.cumsum(random.normal(0, 0.03, (b, f)), axis=1) * (random.random((b, 1)) < 0.5)
    out = out * tensor(np.exp(drift), b, f, 1, 1, 1)
    soft = functional.avg_pool2d(out.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(out)
    amount = tensor(random.uniform(0, 1, b) * (random.random(b) < 0.3), b, 1, 1, 1, 1)
    return augment_colours(torch.lerp(out, soft, amount).clamp(0, 1), random)


@dataclass(frozen=True)
class Batch:
    """Clips of a step, with what the network gets.

    Attributes:
        clips, images: the truth, and images in [-1, 1].
        simulated: priors of all clips.
        has_prior: (b,) bool; those without come first.
        inputs: of the network.
        unit: (b,) scale that points are divided by.
        scale: (b,) units of the prior per metre; without a prior such that the mean distance is 1.
    """

    clips: MovingClips
    images: torch.Tensor
    simulated: SimulatedPrior
    has_prior: torch.Tensor
    inputs: NetworkInputs
    unit: torch.Tensor
    scale: torch.Tensor

    @property
    def hit(self) -> torch.Tensor:
        """(b, F, H, W) bool, where there is a surface."""
        return self.clips.depth > 0

    def log_depth(self) -> torch.Tensor:
        """(b, F, H, W) true log depth in the scale of the inputs."""
        return self.clips.depth.clamp_min(1e-2).log() + self.scale.log().view(-1, 1, 1, 1)

    def poses(self) -> torch.Tensor:
        """(b, F, 4, 4) true poses, for points that are divided by `unit`."""
        poses = self.clips.poses.clone()
        poses[:, :, :3, 3] *= (self.scale / self.unit).view(-1, 1, 1)
        return poses

    def points(self) -> torch.Tensor:
        """(b, F, 3, H, W) true points divided by `unit`."""
        depth = self.clips.depth * (self.scale / self.unit).view(-1, 1, 1, 1)
        # Without a surface: a direction alone, which `coded` moves far away.
        return world_points(torch.where(self.hit, depth, torch.ones_like(depth)), self.poses(), self.clips.intrinsics)


class PointmapTrainer:
    """State of a run: networks, averages, pool, clock and log.

    Args:
        settings: how to train.
        folder: folder of the run.
        started: `time.monotonic()` at which the budget starts.
    """

    def __init__(self, settings: PointmapTraining, folder: Path, started: float) -> None:
        self.settings, self.folder, self.started = settings, folder, started
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise TrainingConfigError(
                "The device is cuda and this machine has no usable CUDA GPU; use device auto or cpu."
            )
        cuda = settings.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        torch.manual_seed(settings.seed)
        self.random = np.random.default_rng(settings.seed)
        self.source = WalkSource(
            settings.sizes, settings.workers, self.device, views=settings.views, supersample=settings.supersample
        )
        self.depth_network = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth", self.device)
        image_autoencoder = load_image_autoencoder(self.device)
        if (folder / NETWORK_FOLDER / "config.json").is_file():
            self.model = load_pointmap_model(folder, image_autoencoder, self.device)
            self.resumed = True
        else:
            network = PointmapNetwork(**(settings.network or {})).to(self.device)
            autoencoder = PointmapAutoencoder.from_image_autoencoder(image_autoencoder).to(self.device)
            self.model = PointmapModel(network, autoencoder, image_autoencoder)
            self.resumed = False
        for part in (self.model.network, self.model.autoencoder):
            part.requires_grad_(True).train()
        self.averages = {
            name: {key: value.detach().clone() for key, value in part.state_dict().items()}
            for name, part in self._parts().items()
        }
        self.pools = {size: WalkPool(size, settings.capacity, self.device, settings.views) for size in settings.sizes}
        self.steps, self.updates, self._bad = 0, 0, 0
        self._last_log, self._last_validation = time.monotonic(), time.monotonic()
        self._sums: dict[str, torch.Tensor] = {}
        self._summed = 0
        self.validation: list[ValidationClips] = []

    def _parts(self) -> dict[str, nn.Module]:
        return {NETWORK_FOLDER: self.model.network, AUTOENCODER_FOLDER: self.model.autoencoder}

    def elapsed(self) -> float:
        """Seconds of the budget that are gone."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Prints a line with the time."""
        print(f"[{self.elapsed():6.1f} s] {text}", flush=True)

    # Data

    def poll(self) -> None:
        """Takes what was rendered into the pool."""
        for walk in self.source.poll():
            self.pools[(walk.image.shape[1], walk.image.shape[2])].add(walk)

    def walks(self) -> int:
        """Walks so far."""
        return sum(pool.count for pool in self.pools.values())

    def fill(self, deadline: float) -> None:
        """Waits for the first walks; renders them here if no process does.

        Raises:
            TrainingConfigError: no walk was rendered in time.
        """
        while self.walks() < self.settings.first_walks and self.elapsed() < deadline:
            before = self.walks()
            self.poll()
            if self.walks() == before:
                time.sleep(0.05)
        if not self.walks():
            raise TrainingConfigError(f"No walk was rendered in {deadline:.0f} s; more minutes are needed.")
        self.say(f"{self.walks()} walks to start with; renderers alive: {self.source.alive()}")

    def prepare_validation(self) -> None:
        """Renders validation worlds, with two to four moving things, and simulates their priors."""
        by_size: dict[tuple[int, int], list[Walk]] = {}
        for index in range(self.settings.validation_worlds):
            if self.validation_overdue():
                break
            try:
                walks = render_walks(
                    "validation", index, self.settings.sizes, device=self.device, views=self.settings.views,
                    supersample=self.settings.supersample, movers=2 + index % 3,
                )  # fmt: skip
            except (InputError, ValueError):
                continue
            for walk in walks:
                by_size.setdefault((walk.image.shape[1], walk.image.shape[2]), []).append(walk)
            self.poll()
        random = np.random.default_rng(17)
        for size, walks in by_size.items():
            pool = WalkPool(size, len(walks), self.device, self.settings.views)
            for walk in walks:
                pool.add(walk)
            frames = self.settings.frames
            stride = min(2, (self.settings.views - 1) // (frames - 1))
            order = np.tile(np.arange(frames) * stride, (len(walks), 1))
            clips = pool.take(np.arange(len(walks)), order)
            images = augment_colours(clips.images, random, strength=0.3)
            self.validation.append(
                ValidationClips(clips, images, simulate_prior(clips, images, self.depth_network, random))
            )
        self.say(f"{sum(len(v.images) for v in self.validation)} validation clips")

    def validation_overdue(self) -> bool:
        """Whether so much of the budget is gone that no more validation worlds are rendered."""
        return self.elapsed() > 0.15 * self.settings.minutes * 60

    def draw_clips(self, count: int) -> MovingClips:
        """Clips of one size; sizes by turns in proportion to their walks."""
        sizes = [size for size, pool in self.pools.items() if len(pool)]
        weights = np.array([len(self.pools[size]) for size in sizes], dtype=np.float64)
        size = sizes[int(self.random.choice(len(sizes), p=weights / weights.sum()))]
        return self.pools[size].draw(count, self.settings.frames, self.random)

    @torch.no_grad()
    def draw(self) -> Batch:
        """A batch with priors; a share of the clips has none."""
        clips = self.draw_clips(self.settings.batch)
        images = camera_looks(clips.images, self.random)
        simulated = simulate_prior(clips, images, self.depth_network, self.random)
        b = len(images)
        dropped = min(b - 1, max(1, round(self.settings.prior_drop * b))) if self.settings.prior_drop else 0
        has_prior = torch.arange(b, device=self.device) >= dropped
        return self.make_batch(clips, images, simulated, has_prior, simulated.prior, None)

    def make_batch(
        self,
        clips: MovingClips,
        images: torch.Tensor,
        simulated: SimulatedPrior,
        has_prior: torch.Tensor,
        prior: PointmapPrior,
        image_latents: torch.Tensor | None,
    ) -> Batch:
        """A batch with a given prior."""
        inputs, unit = self.model.prepare(images, clips.intrinsics, prior, has_prior, image_latents)
        hit = clips.depth > 0
        true_mean = mean_distance(world_points(clips.depth, clips.poses, clips.intrinsics), hit)
        scale = torch.where(has_prior, simulated.scale, 1 / true_mean)
        return Batch(clips, images, simulated, has_prior, inputs, unit, scale)

    # Steps

    def autocast(self) -> torch.autocast:
        """bf16 on CUDA."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def autoencoder_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the autoencoder."""
        clips = self.draw_clips(max(1, self.settings.batch // 2))
        points, hit = _true_points(clips)
        with self.autocast():
            return autoencoder_loss(self.model.autoencoder, points, hit)

    def flow_step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the velocity at all levels, and of the maps at full noise, in half of the clips each."""
        batch = self.draw()
        b = len(batch.images)
        order = torch.from_numpy(self.random.permutation(b)).to(self.device)
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
        batch = self.draw()
        b = len(batch.images)
        zero, level = torch.zeros_like(batch.inputs.image_latents), torch.ones(b, device=self.device)
        if self.random.random() < self.settings.second_pass:
            with torch.no_grad(), self.autocast():
                _, first = self.model.network(zero, level, batch.inputs)
            again = batch.simulated.prior.refined(first)
            batch = self.make_batch(
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
        return loss + 0.3 * decoded, {"points": decoded.detach(), **parts}

    def run(
        self,
        name: str,
        end: float,
        step: Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]],
        groups: list[dict[str, Any]],
        decay_from: float,
        max_steps: int | None = None,
    ) -> None:
        """Runs steps until `end` seconds of the budget.

        Args:
            name: of the stage.
            end: seconds.
            step: gives a loss and its parts.
            groups: parameters with their highest learning rates (`lr`).
            decay_from: share of the stage after which the rate falls, to a fiftieth.
            max_steps: steps at most.
        """
        first = self.elapsed()
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=self.device.type == "cuda")
        highest = [group["lr"] for group in optimiser.param_groups]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        count = 0
        while (now := self.elapsed()) < end and (max_steps is None or count < max_steps):
            progress = (now - first) / max(end - first, 1e-6)
            fall = max(0.0, progress - decay_from) / max(1 - decay_from, 1e-6)
            rate = min(1.0, (count + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))
            for group, high in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = high * rate
            self.poll()
            loss, parts = step()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            count += 1
            self.steps += 1
            if not bool(torch.isfinite(norm)):
                self._bad += 1
                if self._bad > MAX_BAD_STEPS:
                    self.say(f"{name}: {self._bad} steps in a row were not finite; the stage ends here")
                    break
                continue
            self._bad = 0
            optimiser.step()
            self._average()
            self._log(name, {"loss": loss.detach(), "norm": norm.detach(), **parts}, rate)
            if time.monotonic() - self._last_validation > self.settings.validation_s and name != "autoencoder":
                self.checkpoint(name)
        optimiser.zero_grad(set_to_none=True)
        self.say(f"{name}: {count} steps in {self.elapsed() - first:.0f} s")

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averages of the weights towards the weights."""
        self.updates += 1
        decay = min(self.settings.ema, (1 + self.updates) / (10 + self.updates))
        for name, part in self._parts().items():
            state = part.state_dict()
            keys = list(state)
            torch._foreach_lerp_([self.averages[name][k] for k in keys], [state[k].detach() for k in keys], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block, the networks have the averages as weights."""
        kept = {}
        for name, part in self._parts().items():
            kept[name] = {key: value.detach().clone() for key, value in part.state_dict().items()}
            part.load_state_dict(self.averages[name])
            part.eval()
        try:
            yield
        finally:
            for name, part in self._parts().items():
                part.load_state_dict(kept[name])
                part.train()

    def _log(self, name: str, parts: dict[str, torch.Tensor], rate: float) -> None:
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, torch.zeros((), device=self.device)) + value.float()
        self._summed += 1
        now = time.monotonic()
        if now - self._last_log < LOG_EVERY_S:
            return
        means = {key: float(value) / self._summed for key, value in self._sums.items()}
        seconds = (now - self._last_log) / self._summed
        line = {"step": self.steps, "seconds": self.elapsed(), "stage": name, "step_seconds": seconds, **means}
        append_log(self.folder / "log.jsonl", {**line, "walks": self.walks(), "rate": rate})
        shown = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        self.say(f"{name} {self.steps} ({seconds * 1000:.0f} ms, {self.walks()} walks): {shown}")
        self._sums, self._summed, self._last_log = {}, 0, now

    def checkpoint(self, name: str, sampler_steps: tuple[int, ...] = (1,)) -> dict[str, float]:
        """Writes the averaged weights, then validates with them."""
        for part_name, part in self._parts().items():
            save_part(self.folder / part_name, part, self.averages[part_name], torch.bfloat16)
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
        self._last_validation = time.monotonic()
        return metrics


def _true_points(clips: MovingClips) -> tuple[torch.Tensor, torch.Tensor]:
    """True points (b, F, 3, H, W) over their mean distance, and where there is a surface."""
    hit = clips.depth > 0
    points = world_points(torch.where(hit, clips.depth, torch.ones_like(clips.depth)), clips.poses, clips.intrinsics)
    return points / mean_distance(points, hit).view(-1, 1, 1, 1, 1), hit


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

    A folder that has a model already is trained further, without its autoencoder's stage.

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
    try:
        return _train(trainer, settings, folder, steps)
    finally:
        trainer.source.close()


def _train(trainer: PointmapTrainer, settings: PointmapTraining, folder: Path, steps: int | None) -> dict[str, float]:
    budget = settings.minutes * 60
    device = str(trainer.device)
    append_log(
        folder / "log.jsonl",
        {"round": 0, "resumed": trainer.resumed, "device": device, "settings": asdict(settings)},
    )
    trainer.say(f"on {device}; {'resumed' if trainer.resumed else 'from scratch'}")
    trainer.prepare_validation()
    trainer.fill(0.4 * budget)
    finish = min(FINISH_S, 0.05 * budget) if trainer.device.type == "cuda" else 0.1 * budget
    start, end = trainer.elapsed(), budget - finish
    shares = np.cumsum(settings.shares) / sum(settings.shares)
    ends = [start + (end - start) * float(share) for share in shares]
    network, autoencoder = trainer.model.network, trainer.model.autoencoder
    rate = settings.learning_rate
    if not trainer.resumed:
        groups = [{"params": list(autoencoder.parameters()), "lr": rate}]
        trainer.run("autoencoder", ends[0], trainer.autoencoder_step, groups, 0.3, steps)
        autoencoder.load_state_dict(trainer.averages[AUTOENCODER_FOLDER])
        with torch.no_grad(), trainer.autocast():
            latents = [autoencoder.encode_points(*_true_points(trainer.draw_clips(settings.batch))).float()
                       for _ in range(STATISTICS_BATCHES)]  # fmt: skip
        flat = torch.cat([each.transpose(0, 1).flatten(1) for each in latents], dim=1)
        autoencoder.set_statistics(flat.mean(1), flat.std(1))
    autoencoder.encoder.requires_grad_(False)
    autoencoder.analysis.requires_grad_(False)
    groups = [{"params": list(network.parameters()), "lr": rate}]
    trainer.run("flow", ends[1], trainer.flow_step, groups, 1.0, steps)
    decoder = [p for p in autoencoder.parameters() if p.requires_grad]
    groups = [{"params": list(network.parameters()), "lr": rate}, {"params": decoder, "lr": 0.2 * rate}]
    trainer.run("finetune", ends[2], trainer.finetune_step, groups, 0.25, steps)
    return trainer.checkpoint("finetune", (1, 4, 8))
