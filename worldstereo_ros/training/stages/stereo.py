"""Trains the stereo refiner in three phases: frames, time, and one step from the fill.

- `frames`: single frames at any noise level, temporal blocks off; the squared error of the velocity.
- `time`: clips, with temporal blocks and temporal interaction; the same, and the difference of moved frames.
- `finetune`: clips in one step from the fill, as at inference; absolute and squared error, SSIM, and moved frames.

All losses are over painted pixels alone: the others are never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.evaluation.metrics import SSIM_WINDOW_PX, psnr_from_mse, ssim_from_means
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.training.config import StageConfig
from worldstereo_ros.training.data.stereo_batches import StereoBatch, carry, make_batch, valid_flow
from worldstereo_ros.training.data.stereo_clips import StereoClip
from worldstereo_ros.training.data.stereo_workers import ClipFeed
from worldstereo_ros.training.tensor_images import as_uint8, image_grid
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

PHASES = ("frames", "time", "finetune")
THERE_AND_BACK_SHARE = 0.5  # of the clips of worlds
MIN_TIME = 0.3  # noise level whose velocity has the largest weight
FILL_PROB = 0.5  # of the batch at noise level 1, where inference starts
# Of the losses of the last phase. The absolute error alone gives medians, which cost half of what the first phases won.
SQUARED_WEIGHT, ABSOLUTE_WEIGHT, SSIM_WEIGHT, MOTION_WEIGHT = 6.0, 0.3, 0.1, 0.5
VALIDATION_CLIPS_AT_ONCE = 4
SHOWN_CLIPS = 6
GREY_LEVELS = 127.5  # of one unit of images in [-1, 1]


class StereoStage:
    """One phase of the training; see the module and `trainer.Stage`.

    Attributes:
        name: of logs.
        model: the refiner.
    """

    def __init__(
        self,
        phase: str,
        model: StereoRefiner,
        config: StageConfig,
        feed: ClipFeed,
        device: torch.device,
        *,
        save: Callable[[StereoRefiner], None],
        autocast: Callable[[], torch.autocast],
        seed: int = 0,
    ) -> None:
        """Prepares a phase.

        Args:
            phase: one of `PHASES`.
            model: the refiner, on the device.
            config: `batch` is the number of clips.
            feed: clips.
            device: training device.
            save: writes the weights.
            autocast: context manager of mixed precision.
            seed: random seed.
        """
        self.name, self.phase, self.model, self.config = f"stereo_{phase}", phase, model, config
        self._feed, self._device, self._save, self._autocast = feed, device, save, autocast
        self._random = np.random.default_rng([seed, PHASES.index(phase)])
        self.parameter_groups = [ParameterGroup("refiner", parameters_of(model), self._loss, config.learning_rate)]
        chosen = validation_batches(feed.validation, device)
        self._validation, self._baselines = chosen, _baselines(chosen)

    def start_step(self) -> None:
        """Makes a batch of clips, or of their single frames."""
        self._feed.refresh()
        pool = self._feed.pool
        rows = self._random.integers(pool.count, size=self.config.batch)
        back = self._random.random(len(rows)) < THERE_AND_BACK_SHARE
        with torch.no_grad():
            batch = make_batch(pool.take(rows), back, self._random)
        self._batch = batch.single_frames() if self.phase == "frames" else batch

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        batch = self._batch
        condition, target = batch.condition, batch.target
        n = len(target)
        temporal = self.phase != "frames"
        if self.phase == "finetune":
            time, noisy = torch.ones(n, device=target.device), condition.filled
        else:
            time = torch.rand(n, device=target.device)
            time = torch.where(torch.rand_like(time) < FILL_PROB, 1.0, time)
            level = time.view(-1, 1, 1, 1, 1)
            prior = condition.filled + self.model.config.prior_noise * torch.randn_like(target)
            noisy = torch.where(condition.painted > 0.5, torch.lerp(target, prior, level), condition.filled)
        made = self.model(noisy, time, condition, temporal=temporal).float()
        painted = condition.painted
        pixels = 3 * painted.sum().clamp_min(1)
        squared = (made - target).square() * painted
        values = {"squared": float((squared.sum() / pixels).detach())}
        composed = torch.where(painted > 0.5, made, condition.filled)
        if self.phase == "finetune":
            absolute = ((made - target).abs() * painted).sum() / pixels
            unlike = unlikeness(composed, target, painted)
            loss = ABSOLUTE_WEIGHT * absolute + SQUARED_WEIGHT * squared.sum() / pixels + SSIM_WEIGHT * unlike
            values |= {"absolute": float(absolute.detach()), "unlike": float(unlike.detach())}
        else:
            # The squared error of the velocity, (noisy - clean) / time.
            loss = (squared / time.clamp_min(MIN_TIME).square().view(-1, 1, 1, 1, 1)).sum() / pixels
        if temporal and target.shape[1] > 1:
            motion = motion_error(composed, target, batch.flow, painted)
            loss = loss + MOTION_WEIGHT * motion
            values["motion"] = float(motion.detach())
        return loss, values

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Measures on unseen worlds, with what they are without the network; rows of images.

        `psnr` is that of painted pixels, `psnr_holes` of all that the camera does not see; `_fill` those of memory and
        background, `_background` of the background alone. `flicker` is in grey levels, see `evaluation.stereo`. The
        images have columns of the fill, the network's eye, and the truth.
        """
        scores, rows = _Scores(), list[np.ndarray]()
        self.model.eval()
        for batch in self._validation:
            with self._autocast():
                made = self.model.refine(batch.condition)
            scores.add(made.float(), batch)
            if len(rows) < SHOWN_CLIPS:
                last = batch.target.shape[1] - 1
                images = [each[:, last] for each in (batch.condition.filled, made, batch.target)]
                painted = batch.condition.painted[:, last].expand(-1, 3, -1, -1) * 2 - 1
                rows += [as_uint8(torch.stack(row)) for row in zip(*images, painted, strict=True)]
        self.model.train()
        found = scores.values()
        metrics = {"loss": scores.painted_error()} | found | self._baselines
        return metrics, image_grid(rows[:SHOWN_CLIPS])

    def save(self) -> None:
        """Writes the weights."""
        self._save(self.model)

    def close(self) -> None:
        """Nothing to stop."""


def validation_batches(clips: list[StereoClip], device: torch.device) -> list[StereoBatch]:
    """True pairs with exact depth, the same in every phase."""
    random, batches = np.random.default_rng(0), []
    for first in range(0, len(clips), VALIDATION_CLIPS_AT_ONCE):
        some = clips[first : first + VALIDATION_CLIPS_AT_ONCE]
        stacked = StereoClip(
            **{f.name: torch.stack([getattr(clip, f.name) for clip in some]).to(device) for f in fields(StereoClip)}
        )
        batches.append(make_batch(stacked, np.zeros(len(some), bool), random, clean=True))
    return batches


class _Scores:
    """Sums of errors over batches."""

    def __init__(self) -> None:
        self._sums = np.zeros(6)

    def add(self, made: torch.Tensor, batch: StereoBatch) -> None:
        """Adds a batch with made eyes (b, F, 3, H, W)."""
        squared = (made - batch.target).square()
        sums = []
        for mask in (batch.condition.painted, batch.hole):
            sums += [float((squared * mask).sum()), float(3 * mask.sum())]
        if made.shape[1] > 1:
            moved = (made[:, 1:] - carry(made[:, :-1], batch.flow[:, 1:])).abs() * GREY_LEVELS
            mask = batch.hole[:, 1:] * valid_flow(batch.flow[:, 1:])
            sums += [float((moved * mask).sum()), float(3 * mask.sum())]
        self._sums[: len(sums)] += sums

    def painted_error(self) -> float:
        """Mean squared error of painted pixels."""
        return float(self._sums[0] / max(self._sums[1], 1))

    def values(self, suffix: str = "") -> dict[str, float]:
        """The measures, names with a suffix."""
        painted, holes, flicker = (self._sums[i] / max(self._sums[i + 1], 1) for i in (0, 2, 4))
        return {
            f"psnr{suffix}": psnr_from_mse(painted, 2.0),
            f"psnr_holes{suffix}": psnr_from_mse(holes, 2.0),
            f"flicker{suffix}": float(flicker),
        }


def _baselines(batches: list[StereoBatch]) -> dict[str, float]:
    found: dict[str, float] = {}
    images: dict[str, Callable[[StereoBatch], torch.Tensor]] = {
        "_fill": lambda batch: batch.condition.filled,
        "_background": lambda batch: batch.background,
        "_truth": lambda batch: batch.target,
    }
    for suffix, of in images.items():
        scores = _Scores()
        for batch in batches:
            scores.add(of(batch), batch)
        values = scores.values(suffix)
        found |= {name: value for name, value in values.items() if suffix != "_truth" or "flicker" in name}
    return found


def unlikeness(made: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - SSIM of images (b, F, 3, H, W), over windows by what share of them is in the mask (b, F, 1, H, W)."""
    a, b, weight = (x.flatten(0, 1) for x in (made * 0.5 + 0.5, target * 0.5 + 0.5, mask))
    means = (functional.avg_pool2d(x, SSIM_WINDOW_PX, 1) for x in (a, b, a * a, b * b, a * b))
    windows = functional.avg_pool2d(weight, SSIM_WINDOW_PX, 1)
    similarity = ssim_from_means(*means, peak=1.0)
    return ((1 - similarity) * windows).sum() / (3 * windows.sum()).clamp_min(1)


def motion_error(made: torch.Tensor, target: torch.Tensor, flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much more, or less, the made frames change along the flow than the true ones; mean over the mask."""
    ours, true = (each[:, 1:] - carry(each[:, :-1], flow[:, 1:]) for each in (made, target))
    weight = mask[:, 1:] * valid_flow(flow[:, 1:])
    return ((ours - true).abs() * weight).sum() / (3 * weight.sum()).clamp_min(1)
