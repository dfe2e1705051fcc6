"""Trains one stage, or several within a time budget; `worldstereo train` calls it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from worldstereo_ros.training.config import STAGES, TrainingConfig, TrainingConfigError, describe
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_workers import rendered_worlds
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.stages.autoencoder import AutoencoderStage
from worldstereo_ros.training.stages.depth import DepthStage
from worldstereo_ros.training.stages.diffusion import DiffusionStage
from worldstereo_ros.training.stages.distill import DistillStage
from worldstereo_ros.training.stages.finetune import FinetuneStage
from worldstereo_ros.training.stages.refine import RefineStage
from worldstereo_ros.training.starting_weights import start_run
from worldstereo_ros.training.trainer import Stage, TrainingInterruptedError, train
from worldstereo_ros.utils.atomic_files import write_text

WORLDS_FOLDER, LOGS_FOLDER, SETTINGS_FILE = "worlds", "logs", "settings.json"  # of a run's folder
WITHOUT_WORLDS = ("refine",)  # stages that take their views from elsewhere
MIN_STAGE_MINUTES = 0.02  # of a stage, even if the budget is used up


def train_stages(
    stages: Sequence[str],
    config: TrainingConfig,
    folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    worlds: Path | None = None,
    on_save: Callable[[], None] = lambda: None,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Trains stages one after the other. Each resumes from its weights in the run's folder, if there are any.

    A new run starts from the weights that `start_from` of the configuration names.

    Args:
        stages: some of `config.STAGES`, in order.
        config: configuration of the run.
        folder: folder of the run, see `run_folder`.
        minutes: time for all stages together, including rendering of worlds and precomputing of clips; divided in
            proportion to the stages' `minutes`. None: each stage takes its own `minutes`.
        steps: maximum of every stage, instead of the configured one. With steps alone and without worker and loader
            processes, training is reproducible bit for bit.
        worlds: folder of rendered worlds, which several runs may share; None: in the run's folder.
        on_save: called whenever weights have been saved.
        console: for progress.

    Returns:
        Metrics of the last validation of every stage.

    Raises:
        TrainingConfigError: a stage is unknown or not configured, or the device is not available.
        CheckpointError: weights of an earlier stage are missing, damaged or of another configuration.
        TrainingError: values are NaN or infinite, or (`TrainingInterruptedError`) Ctrl-C was pressed.
    """
    for stage in stages:
        if stage not in STAGES:
            raise TrainingConfigError(f"The stage '{stage}' is unknown; one of {', '.join(STAGES)} was expected.")
        if stage not in config.stages:
            raise TrainingConfigError(f"The configuration has no stage {stage}.")
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and value <= 0:
            raise TrainingConfigError(f"{value} {name} were given; more than 0 were expected.")
    console = console or Console()
    begin = time.monotonic()
    run = RunFolder(folder, config, _accelerator(config, folder))
    folder.mkdir(parents=True, exist_ok=True)
    start_run(folder, config)
    write_text(folder / SETTINGS_FILE, json.dumps(describe(config), indent=1) + "\n")
    weights = [config.stages[name].minutes or 1.0 for name in stages]
    metrics: dict[str, dict[str, float]] = {}
    try:
        needs_worlds = any(name not in WITHOUT_WORLDS for name in stages)
        rendered = rendered_worlds(config, worlds or folder / WORLDS_FOLDER, console, run.device)
        with rendered if needs_worlds else nullcontext((None, None)) as (training, validation):
            for index, name in enumerate(stages):
                stage_minutes = None
                if minutes is not None:  # the remaining stages share the remaining time
                    remaining = minutes - (time.monotonic() - begin) / 60
                    stage_minutes = max(MIN_STAGE_MINUTES, remaining * weights[index] / sum(weights[index:]))
                metrics[name] = _train_stage(name, run, training, validation, stage_minutes, steps, on_save, console)
    except KeyboardInterrupt:
        raise TrainingInterruptedError("Training was interrupted between two stages; all weights are intact.") from None
    finally:
        if config.log_with:
            run.accelerator.end_training()
    return metrics


def _train_stage(
    name: str,
    run: RunFolder,
    training: WorldDataset | None,
    validation: WorldDataset | None,
    minutes: float | None,
    steps: int | None,
    on_save: Callable[[], None],
    console: Console,
) -> dict[str, float]:
    begin = time.monotonic()
    set_seed(run.config.seed)
    refresh = training.refresh if training is not None else lambda: None
    refresh()
    header = {
        "round": run.random_seed(name)[-1],
        "resumed": run.has(name),
        "seed": run.config.seed,
        "hardware": hardware(run.device),
        "precision": run.config.precision,
        "worlds": len(training.worlds) if training is not None else 0,
        "settings": describe(run.config)["stages"][name],
        "notes": run.config.notes,
    }
    stage = make_stage(name, run, training, validation)
    try:
        if minutes is not None:
            minutes = max(MIN_STAGE_MINUTES, minutes - (time.monotonic() - begin) / 60)
        return train(
            stage,
            run.accelerator,
            run.folder / LOGS_FOLDER,
            minutes=minutes,
            steps=steps,
            header=header,
            refresh=refresh,
            on_save=on_save,
            console=console,
        )
    finally:
        stage.close()


def hardware(device: torch.device) -> dict[str, Any]:
    """The training machine, for logs and model cards."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "torch": torch.__version__,
    }


def make_stage(name: str, run: RunFolder, training: WorldDataset | None, validation: WorldDataset | None) -> Stage:
    """Makes a stage by its name; only those of `WITHOUT_WORLDS` do without worlds."""
    if name == "refine":
        return RefineStage(run)
    assert training is not None
    assert validation is not None
    if name == "autoencoder":
        return AutoencoderStage(run, training, validation)
    if name == "depth":
        return DepthStage(run, training, validation)
    if name == "distill":
        return DistillStage(run, training, validation)
    if name == "finetune":
        return FinetuneStage(run, training, validation)
    return DiffusionStage(name, run, training, validation)


def _accelerator(config: TrainingConfig, folder: Path) -> Accelerator:
    if config.device not in ("auto", "cpu", "cuda"):
        raise TrainingConfigError(f"device is '{config.device}'; auto, cpu or cuda was expected.")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingConfigError(
            "The configuration has device: cuda and this machine has no usable CUDA GPU; use device: auto, or the "
            "configuration cpu."
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        accelerator = Accelerator(
            mixed_precision=config.precision,
            cpu=config.device == "cpu",
            log_with=config.log_with or None,
            project_dir=folder / LOGS_FOLDER,
        )
    except ValueError as error:
        raise TrainingConfigError(f"log_with is '{config.log_with}': {error}") from None
    if config.log_with:
        if not accelerator.log_with:
            raise TrainingConfigError(f"log_with is '{config.log_with}', and that package is not installed.")
        accelerator.init_trackers("worldstereo")
    if accelerator.device.type == "cuda" and config.precision != "no":
        torch.set_float32_matmul_precision("high")
    return accelerator
