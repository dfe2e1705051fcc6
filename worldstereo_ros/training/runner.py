"""One stage, or all one after the other, within a time: what `worldstereo train` does."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldstereo_ros.training.config import STAGES, TrainingConfig, TrainingConfigError, WorldConfig, describe
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import draw_worlds
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.stages.autoencoder import AutoencoderStage
from worldstereo_ros.training.stages.depth import DepthStage
from worldstereo_ros.training.stages.diffusion import DiffusionStage
from worldstereo_ros.training.stages.distill import DistillStage
from worldstereo_ros.training.stages.finetune import FinetuneStage
from worldstereo_ros.training.trainer import Stage, TrainingError, TrainingInterruptedError, train

FEWEST_WORLDS = 24  # before training starts
WORLDS_FOLDER, LOGS_FOLDER, SETTINGS_FILE = "worlds", "logs", "settings.json"  # of a run's folder
LEAST_MINUTES = 0.02  # of a stage, however late it is


def train_stages(
    stages: Sequence[str],
    settings: TrainingConfig,
    folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    worlds: Path | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Trains stages, each from the weights in the run's folder, its own if it has any.

    Args:
        stages: of `settings.STAGES`, in order.
        settings: of the run.
        folder: of the run, see `run.Run`.
        minutes: in all, drawing the first worlds included; shared out as the settings share theirs. None: those of
            the settings, for every stage.
        steps: of every stage, at most, instead of the settings'; alone, and without processes beside it, training is
            the same to the last bit every time.
        worlds: where worlds are kept; None: in the run's folder. Several runs may share one.
        console: where progress is shown.

    Returns:
        The last validation's figures of every stage.

    Raises:
        TrainingConfigError: a stage is not known or the settings lack it, or the device is not there.
        CheckpointError: the weights of an earlier stage are missing or damaged, or of another configuration.
        TrainingError: the numbers are not finite any more, or (`TrainingInterruptedError`) Ctrl-C was pressed.
    """
    for stage in stages:
        if stage not in STAGES:
            raise TrainingConfigError(f"The stage '{stage}' is not known; choose one of {', '.join(STAGES)}, or all.")
        if stage not in settings.stages:
            raise TrainingConfigError(f"The configuration has no settings for the stage {stage}.")
    for name, given in (("minutes", minutes), ("steps", steps)):
        if given is not None and given <= 0:
            raise TrainingConfigError(f"{given} {name} were given; more than 0 were expected.")
    console = console or Console()
    begin = time.monotonic()
    run = Run(folder, settings, _accelerator(settings))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(describe(settings), indent=1) + "\n", encoding="utf-8")
    shares = _shares(stages, settings)
    figures: dict[str, dict[str, float]] = {}
    try:
        with _drawing(settings, worlds or folder / WORLDS_FOLDER, console) as (training, validation):
            for index, name in enumerate(stages):
                left = None
                if minutes is not None:  # the stages that are left share what is left, drawing and loading taken off
                    left = minutes - (time.monotonic() - begin) / 60
                    left = max(LEAST_MINUTES, left * shares[index] / sum(shares[index:]))
                figures[name] = _train_stage(name, run, training, validation, left, steps, console)
    except KeyboardInterrupt:
        raise TrainingInterruptedError("Training was interrupted between two stages; all weights are whole.") from None
    return figures


def _train_stage(
    name: str,
    run: Run,
    training: WorldDataset,
    validation: WorldDataset,
    minutes: float | None,
    steps: int | None,
    console: Console,
) -> dict[str, float]:
    begin = time.monotonic()
    set_seed(run.settings.seed)
    training.refresh()
    about = {
        "round": run.seeds(name)[-1],
        "resumed": run.has(name),
        "seed": run.settings.seed,
        "hardware": hardware(run.device),
        "precision": run.settings.precision,
        "worlds": len(training.worlds),
        "settings": describe(run.settings)["stages"][name],
    }
    stage = make_stage(name, run, training, validation)
    try:
        if minutes is not None:
            minutes = max(LEAST_MINUTES, minutes - (time.monotonic() - begin) / 60)
        return train(
            stage,
            run.accelerator,
            run.folder / LOGS_FOLDER,
            minutes=minutes,
            steps=steps,
            about=about,
            between=training.refresh,
            console=console,
        )
    finally:
        stage.close()


def hardware(device: torch.device) -> dict[str, Any]:
    """What trains: for logs and model cards."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "torch": torch.__version__,
    }


def make_stage(name: str, run: Run, training: WorldDataset, validation: WorldDataset) -> Stage:
    """A stage by its name."""
    if name == "autoencoder":
        return AutoencoderStage(run, training, validation)
    if name == "depth":
        return DepthStage(run, training, validation)
    if name == "distill":
        return DistillStage(run, training, validation)
    if name == "finetune":
        return FinetuneStage(run, training, validation)
    return DiffusionStage(name, run, training, validation)


def _accelerator(settings: TrainingConfig) -> Accelerator:
    if settings.device not in ("auto", "cpu", "cuda"):
        raise TrainingConfigError(f"device is '{settings.device}'; auto, cpu or cuda was expected.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingConfigError(
            "The configuration asks for CUDA and this machine has no usable CUDA GPU; use device: auto, or the "
            "configuration cpu."
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")
    if accelerator.device.type == "cuda" and settings.precision != "no":
        torch.set_float32_matmul_precision("high")
    return accelerator


def _shares(stages: Sequence[str], settings: TrainingConfig) -> list[float]:
    return [settings.stages[name].minutes or 1.0 for name in stages]


@contextmanager
def _drawing(settings: TrainingConfig, folder: Path, console: Console) -> Iterator[tuple[WorldDataset, WorldDataset]]:
    """Worlds to train on, with processes that draw more of them meanwhile."""
    worlds = settings.worlds
    context = multiprocessing.get_context("spawn")  # a forked process must not touch CUDA
    processes = [
        context.Process(target=_draw_on, args=(folder, worlds, settings.sizes, worker, os.getpid()), daemon=True)
        for worker in range(worlds.workers)
    ]
    for process in processes:
        process.start()
    try:
        _draw_first(settings, folder, processes, console)
        yield WorldDataset(folder, "training", worlds.cache_size), WorldDataset(folder, "validation", worlds.validation)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
            for half in folder.glob(f"*.{process.pid}.part"):
                half.unlink(missing_ok=True)


def _draw_first(
    settings: TrainingConfig, folder: Path, processes: Sequence[multiprocessing.process.BaseProcess], console: Console
) -> None:
    """Comes back when there are worlds to begin with: some, where processes go on drawing; else all of them."""
    worlds, sizes = settings.worlds, settings.sizes
    wanted = min(worlds.cache_size, FEWEST_WORLDS) if processes else worlds.cache_size
    columns = (TextColumn("drawing worlds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        lacking = _lacking(folder, wanted, worlds.validation)
        task = bar.add_task("drawing", total=lacking)
        if not processes:
            for split, number in (("validation", worlds.validation), ("training", worlds.cache_size)):
                for index in range(number):
                    bar.advance(
                        task,
                        draw_worlds(folder, split, [index], sizes, shadow_prob=worlds.shadow_prob, kinds=worlds.kinds),
                    )
            return
        while (left := _lacking(folder, wanted, worlds.validation)) > 0:
            bar.update(task, completed=lacking - left)
            if not any(process.is_alive() for process in processes):
                raise TrainingError(
                    f"{left} worlds are still to be drawn into {folder} and no process draws any more; is there room "
                    "on the disk? With worlds.workers: 0 the error is shown."
                )
            time.sleep(0.2)


def _lacking(folder: Path, training: int, validation: int) -> int:
    have = {split: len(list(folder.glob(f"{split}-*.safetensors"))) for split in ("training", "validation")}
    return max(0, training - have["training"]) + max(0, validation - have["validation"])


def _draw_on(folder: Path, worlds: WorldConfig, sizes: Sequence[tuple[int, int]], worker: int, parent: int) -> None:
    """Draws validation worlds, then training worlds without end; old ones make room. A process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which ends this
    torch.set_num_threads(1)
    os.nice(10)  # training and its loaders come first

    def while_wanted(indices: Iterable[int]) -> Iterator[int]:
        for index in indices:
            if os.getppid() != parent:
                return
            yield index

    validation = range(worker, worlds.validation, worlds.workers)
    draw_worlds(
        folder, "validation", while_wanted(validation), sizes, shadow_prob=worlds.shadow_prob, kinds=worlds.kinds
    )
    there = sorted(folder.glob("training-*.safetensors"))
    newest = int(there[-1].stem.rpartition("-")[2]) + 1 if len(there) >= worlds.cache_size else 0
    for index in while_wanted(count(newest + worker, worlds.workers)):
        draw_worlds(folder, "training", [index], sizes, shadow_prob=worlds.shadow_prob, kinds=worlds.kinds)
        # Some more than are kept, so that none goes that a training process is about to map.
        for old in sorted(folder.glob("training-*.safetensors"))[: -worlds.cache_size - 20 * worlds.workers]:
            old.unlink(missing_ok=True)
