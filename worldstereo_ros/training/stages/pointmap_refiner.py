"""Trains the point-map refiner on worlds with moving things, in one run within a time budget.

folder                  content
<run>/transformer/      averaged weights in bfloat16, and configuration
<run>/clips/            rendered clips with priors; a run that is started again reads them
<run>/log.jsonl         losses, and scores on validation worlds beside those of the prior
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.depth.estimators import SmallDepth
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.fusion import fuse_depth
from worldstereo_ros.models.pointmaps.refiner import NETWORK_FOLDER, PointmapRefiner, finished, load_refiner_model
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.moving_walks import MovingClips
from worldstereo_ros.training.data.prior_batches import ClipBank, make_batch
from worldstereo_ros.training.data.prior_clips import FRAMES, SIZES, PriorClip, world_clips
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.pointmap_losses import map_loss
from worldstereo_ros.training.pointmap_settings import PointmapTraining, process_age_s
from worldstereo_ros.training.pointmap_validation import depth_scores
from worldstereo_ros.training.timed_trainer import TimedTrainer, training_device
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

CLIPS_FOLDER, VALIDATION_FOLDER = "clips", "validation_clips"
FIRST_VALIDATION_WORLD = 20  # those before are for choices that the evaluation makes
FINISH_SHARE = 0.05  # of the budget, for the last validation


@dataclass(frozen=True)
class RefinerTraining(PointmapTraining):
    """How the refiner is trained.

    Attributes:
        sizes: (height, width) of rendered images; clips have about half of it, see `prior_clips`.
        learning_rate: highest one, of new layers.
        depth_rate: highest one, of the layers of the depth network.
        width: channels of the branch that reads matching and prior.
        first_walks: clips before training starts.
        capacity: clips at most.
        render_share: of the time, once training has started.
        bf16: compute in bfloat16 on a CPU, too; 2 to 3 times as fast where the CPU has instructions for it.
    """

    minutes: float = 60.0
    sizes: tuple[tuple[int, int], ...] = SIZES
    frames: int = FRAMES
    batch: int = 4
    learning_rate: float = 1e-3
    depth_rate: float = 3e-4
    width: int = 64
    ema: float = 0.996
    first_walks: int = 100
    capacity: int = 900
    validation_worlds: int = 6
    validation_s: float = 300.0
    render_share: float = 0.45
    bf16: bool = True


REFINER_PRESETS = {
    "cpu": RefinerTraining(),
    "gpu": RefinerTraining(batch=16, first_walks=300),
    "smoke": RefinerTraining(
        minutes=2.0, sizes=((64, 96),), frames=5, first_walks=2, capacity=4, batch=2, validation_worlds=1, width=16,
        validation_s=1e9, bf16=False,
    ),
}  # fmt: skip


def refiner_preset(name: str) -> RefinerTraining:
    """The preset of a name; "" = gpu with CUDA and cpu without.

    Raises:
        TrainingConfigError: there is no such preset.
    """
    name = name or ("gpu" if torch.cuda.is_available() else "cpu")
    if name not in REFINER_PRESETS:
        raise TrainingConfigError(f"There is no preset '{name}'; one of {', '.join(REFINER_PRESETS)} was expected.")
    return REFINER_PRESETS[name]


class RefinerTrainer(TimedTrainer):
    """State of a run.

    Args:
        settings: how to train.
        folder: folder of the run.
        started: `time.monotonic()` at which the budget starts.
    """

    warm_up_steps = 60
    save_dtype = torch.bfloat16
    bank: ClipBank

    def __init__(self, settings: RefinerTraining, folder: Path, started: float) -> None:
        device = training_device(settings.device)
        torch.manual_seed(settings.seed)
        depth_network = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth")
        self.resumed = (folder / NETWORK_FOLDER / "config.json").is_file()
        if self.resumed:
            network = load_refiner_model(folder, device).network
        else:
            network = PointmapRefiner.from_depth_network(depth_network, settings.width)
        self.network = network.to(device).to(memory_format=torch.channels_last).requires_grad_(True).train()
        self.networks = (depth_network, SmallDepth())
        self.render = {"sizes": settings.sizes, "frames": settings.frames}
        self.bank = ClipBank(
            folder / CLIPS_FOLDER, self.networks, seed=settings.seed, batch=settings.batch, share=settings.render_share,
            most=settings.capacity, render=self.render,
        )  # fmt: skip
        self.bf16 = settings.bf16
        super().__init__(settings, folder, started, device, {NETWORK_FOLDER: self.network}, self.bank)
        self.validation: list[PriorClip] = []

    def autocast(self) -> torch.autocast:
        """bf16, also on a CPU."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def render_validation(self, end: float) -> None:
        """Clips of validation worlds, all with the prior of the method map; read again where they are there."""
        folder = self.folder / VALIDATION_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        assert isinstance(self.settings, RefinerTraining)
        done = sorted(folder.glob("*.npz"))
        if done:
            self.validation = [PriorClip.load(file) for file in done]
            return
        first = FIRST_VALIDATION_WORLD
        for index in range(first, first + self.settings.validation_worlds):
            if time.monotonic() > end:
                break
            for number, clip in enumerate(
                world_clips("validation", index, *self.networks, solved_every=1, **self.render)  # type: ignore[arg-type]
            ):
                clip.save(folder / f"{index:06d}-{number}.npz")
                self.validation.append(clip)

    def step(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch."""
        batch = self.bank.draw().to(self.device)
        with self.autocast():
            prediction = self.network.predict(batch.images, batch.intrinsics, batch.prior, batch.matching)
        everything = torch.ones(len(batch.images), dtype=torch.bool, device=self.device)
        return map_loss(prediction, batch.log_depth, batch.hit, batch.moving, everything)

    def checkpoint(self, name: str) -> dict[str, float]:
        """Writes the averaged weights and scores them beside the prior."""
        self.save()
        with self.averaged():
            metrics = score_refiner(self.network, self.validation, self.device)
        if metrics:
            append_log(
                self.folder / "log.jsonl",
                {"step": self.steps, "seconds": self.elapsed(), "stage": name,
                 **{f"validation_{key}": value for key, value in metrics.items()}},
            )  # fmt: skip
            shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
            self.say(f"{name} validation, {len(self.validation)} clips: {shown}")
        self.last_validation = time.monotonic()
        return metrics


@torch.no_grad()
def score_refiner(
    network: PointmapRefiner, clips: list[PriorClip], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Means over clips of depth scores, and what the network says of what moves and of its errors.

    The scores are those of the prior, of the prior fused over frames, of the network's frames, and of the result.
    """
    rows: dict[str, list[float]] = {}
    both = either = 0
    errors, sigmas = [], []
    for clip in clips:
        batch = make_batch([clip], [np.arange(len(clip.image))]).to(device)
        raw = network.predict(batch.images, batch.intrinsics, batch.prior, batch.matching)
        prediction = finished(raw, batch.prior, batch.intrinsics)
        fused = fuse_depth(batch.prior.log_depth, batch.prior.log_sigma, batch.prior.poses, batch.intrinsics)
        truth = MovingClips(
            batch.images, torch.from_numpy(clip.depth[None].astype(np.float32)).to(device), batch.moving,
            batch.prior.poses, batch.intrinsics,
        )  # fmt: skip
        maps = {
            "prior": batch.prior.log_depth, "prior_fused": fused, "network": raw.log_depth,
            "refined": prediction.log_depth,
        }  # fmt: skip
        for name, log_depth in maps.items():
            for key, values in depth_scores(log_depth, truth).items():
                rows.setdefault(f"{name}_{key}", []).extend(values)
        difference = (prediction.log_depth - batch.log_depth)[batch.hit]
        errors.append(float((difference - difference.median()).abs().mean()))
        sigmas.append(float(prediction.log_scale.exp()[batch.hit].mean()))
        both += int(((prediction.dynamic > 0) & batch.moving).sum())
        either += int(((prediction.dynamic > 0) | batch.moving).sum())
    found = {name: float(np.nanmean(values)) for name, values in rows.items() if np.isfinite(values).any()}
    if not found:
        return {}
    return {**found, "error_over_sigma": float(np.mean(errors) / np.mean(sigmas)), "dynamic_iou": both / max(either, 1)}


def train_refiner(
    settings: RefinerTraining, folder: Path, *, steps: int | None = None, age_s: float | None = None
) -> dict[str, float]:
    """Trains the refiner and writes it to a folder, with a log. A folder that has one already is trained further.

    Args:
        settings: how to train.
        folder: folder of the run.
        steps: steps at most.
        age_s: seconds of the budget that are gone already; None = the age of the process.

    Returns:
        Metrics of the last validation.

    Raises:
        TrainingConfigError: the device is not available, or nothing could be rendered in time.
        CheckpointError: the depth network, or the refiner in the folder, is damaged.
    """
    started = time.monotonic() - (process_age_s() if age_s is None else age_s)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = RefinerTrainer(settings, folder, started)
    append_log(
        folder / "log.jsonl",
        {"round": 0, "resumed": trainer.resumed, "device": str(trainer.device), "settings": asdict(settings)},
    )
    budget = settings.minutes * 60
    with trainer.saving():
        trainer.render_validation(started + 0.15 * budget)
        trainer.bank.fill(settings.first_walks, started + 0.4 * budget)
        if not trainer.bank.walks():
            raise TrainingConfigError("No clip was rendered in time; give more minutes.")
        trainer.say(f"{trainer.bank.walks()} clips to start with, {len(trainer.validation)} of validation worlds")
        of_depth = list(trainer.network.depth.parameters())
        known = {id(parameter) for parameter in of_depth}
        new = [parameter for parameter in trainer.network.parameters() if id(parameter) not in known]
        groups = [{"params": new, "lr": settings.learning_rate}, {"params": of_depth, "lr": settings.depth_rate}]
        trainer.run("refiner", (1 - FINISH_SHARE) * budget, trainer.step, groups, 0.3, steps)
    return trainer.checkpoint("refiner")
