"""Trains the stereo refiner in one run, within a time budget; `worldstereo train stereo` calls it.

folder                  content
<run>/base/stereo/      averaged weights, float32, and configuration
<run>/logs/             log (JSON lines) and validation image of each phase
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.stereo_refiner import StereoRefiner, load_stereo_refiner
from worldstereo_ros.training.config import StageConfig
from worldstereo_ros.training.data.stereo_clips import StereoClip
from worldstereo_ros.training.data.stereo_workers import ClipConfig, clip_feed
from worldstereo_ros.training.stages.stereo import PHASES, StereoStage
from worldstereo_ros.training.trainer import TrainingInterruptedError, train
from worldstereo_ros.utils.errors import InputError

STEREO_FOLDER, LOGS_FOLDER = Path("base") / "stereo", "logs"  # of a run's folder
SHARES = {"frames": 0.35, "time": 0.25, "finetune": 0.4}  # of the time
# With few steps, most of them train what inference does: one step from the fill.
SHORT_SHARES = {"frames": 0.07, "time": 0.08, "finetune": 0.85}
RATES = {"frames": 1.0, "time": 0.6, "finetune": 0.5}  # learning rates, relative to the configured one
END_RESERVE_MINUTES = 0.15  # before the end of the time, to stop the workers
MIN_PHASE_MINUTES = 0.05


@dataclass(frozen=True)
class StereoTraining:
    """How the refiner is trained.

    Attributes:
        clips: see `ClipConfig`.
        model: arguments of a new `StereoRefiner`.
        batch: clips of a step.
        learning_rate: maximum.
        minutes: of all phases together, if the caller does not say.
        ema: decay of the averaged weights.
        threads: of torch; 0 = as many as there are cores.
        shares: of the time, for each phase.
        validate_minutes: time between validations.
        bf16: compute in bfloat16 on a CPU, too; faster where the CPU has instructions for it.
    """

    clips: ClipConfig = field(default_factory=ClipConfig)
    model: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    learning_rate: float = 1e-3
    minutes: float = 60.0
    ema: float = 0.998
    threads: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    validate_minutes: float = 1.0
    bf16: bool = False


CONFIGS = {
    "gpu": StereoTraining(),
    "cpu": StereoTraining(
        # Soft shadows take eight times as long to render; a network that never saw any gains nothing where there are.
        ClipConfig(frames=5, clips=4, worlds=12, validation_worlds=6, capacity=2000, workers=1),
        batch=2, learning_rate=4e-4, minutes=120.0, shares=SHORT_SHARES, validate_minutes=4.0, bf16=True,
    ),
    "smoke": StereoTraining(
        ClipConfig(
            frames=3, clips=2, worlds=1, validation_worlds=1, workers=0, capacity=4, supersample=1, light="plain"
        ),
        model={"width": 32, "heads": 2, "depth": 1, "pixel_width": 8},
        batch=1,
        minutes=0.3,
    ),
}  # fmt: skip


def train_stereo(
    folder: Path,
    settings: StereoTraining,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    video: Path | None = None,
    device: str = "",
    begin: float | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Trains all phases one after the other, from the weights in the folder if there are any.

    Args:
        folder: folder of the run.
        settings: see `StereoTraining`.
        minutes: time for everything, counted from `begin`; None: that of the settings, or none if there are `steps`.
        steps: maximum of every phase.
        video: video, image folder or sequence whose frames are trained on, too, rendered there and back.
        device: torch device; "" = the GPU, if there is one.
        begin: `time.monotonic()` at which the time began; None: now.
        console: for progress.

    Returns:
        Metrics of the last validation of every phase.

    Raises:
        InputError: a number is out of range, the device is not available, or the video cannot be used.
        TrainingError: see `trainer.train`.
        CheckpointError: the weights in the folder are damaged or of another model.
    """
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and value <= 0:
            raise InputError(f"{value} {name} were given; more than 0 were expected.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"The device is {device}, and this machine has no usable CUDA GPU; use cpu.")
    begin = time.monotonic() if begin is None else begin
    total = settings.minutes if minutes is None and steps is None else minutes
    console = console or Console()
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = Accelerator(mixed_precision="bf16" if on_gpu or settings.bf16 else "no", cpu=not on_gpu)
    if on_gpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    weights = folder / STEREO_FOLDER
    rounds = _rounds(folder)
    set_seed(rounds)
    model = _model(weights, settings)
    model.requires_grad_(True).train()
    model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    given: list[StereoClip] = []
    if video is not None:
        from worldstereo_ros.training.data.stereo_video import read_clips

        given = read_clips(video, settings.clips.frames, settings.clips.capacity // 2, device=str(accelerator.device))
        console.print(f"{len(given)} clips of {video} are trained on.")

    def save(trained: StereoRefiner) -> None:
        config = {key: value for key, value in trained.config.items() if not key.startswith("_")}
        save_weights(weights, BASE_STEM, trained.state_dict())
        write_json(weights / "config.json", {"_class_name": "StereoRefiner", **config})

    found: dict[str, dict[str, float]] = {}
    try:
        with clip_feed(settings.clips, accelerator.device, seed=rounds, given=given) as feed:
            console.print(
                f"{feed.pool.count} clips to start with, {len(feed.validation)} of unseen worlds, after "
                f"{time.monotonic() - begin:.0f} s"
            )
            for index, phase in enumerate(PHASES):
                config = StageConfig(
                    batch=settings.batch, frames=settings.clips.frames, warmup=100, ema=settings.ema,
                    learning_rate=settings.learning_rate * RATES[phase], validate_minutes=settings.validate_minutes,
                )  # fmt: skip
                stage = StereoStage(
                    phase, model, config, feed, accelerator.device,
                    save=save, autocast=accelerator.autocast, seed=rounds,
                )  # fmt: skip
                phase_minutes = None
                if total is not None:  # the remaining phases share the remaining time
                    remaining = total - END_RESERVE_MINUTES - (time.monotonic() - begin) / 60
                    share = settings.shares[phase] / sum(settings.shares[each] for each in PHASES[index:])
                    phase_minutes = max(MIN_PHASE_MINUTES, remaining * share)
                header = {
                    "round": rounds,
                    "resumed": rounds > 0,
                    "settings": asdict(settings),
                    "clips": feed.pool.added,
                }
                found[phase] = train(
                    stage, accelerator, folder / LOGS_FOLDER,
                    minutes=phase_minutes, steps=steps, header=header, console=console,
                )  # fmt: skip
                console.print(f"{feed.pool.added} clips so far")
    except KeyboardInterrupt:
        raise TrainingInterruptedError("Training was interrupted between two phases; all weights are intact.") from None
    return found


def process_start() -> float:
    """`time.monotonic()` at which this process began, on Linux; else now."""
    try:
        fields_ = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks = float(os.sysconf("SC_CLK_TCK"))
        age = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - int(fields_[19]) / ticks
    except (OSError, ValueError, IndexError):
        return time.monotonic()
    return time.monotonic() - max(0.0, age)


def _model(folder: Path, settings: StereoTraining) -> StereoRefiner:
    """The saved refiner, or a new one."""
    saved = load_stereo_refiner(folder)
    if saved is None:
        return StereoRefiner(**settings.model)
    expected: Callable[[str], Any] = saved.config.get
    for key, value in settings.model.items():
        if expected(key) != value:
            raise CheckpointError(
                f"{folder} has {key} {expected(key)} and the configuration {value}; use the configuration of this run, "
                "or train in another folder."
            )
    return saved


def _rounds(folder: Path) -> int:
    """How often the run was trained before."""
    from worldstereo_ros.training.logs import read_log

    return len(read_log(folder / LOGS_FOLDER / f"stereo_{PHASES[0]}.jsonl"))
