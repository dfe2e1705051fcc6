"""One stage, or all five one after the other, within a time: what `worldstereo train` does."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from worldstereo_ros.training.autoencoder import AutoencoderStage
from worldstereo_ros.training.clips import Shelf
from worldstereo_ros.training.diffusion import DiffusionStage
from worldstereo_ros.training.distill import DistillStage
from worldstereo_ros.training.loop import Stage, TrainingError, train
from worldstereo_ros.training.run import Run
from worldstereo_ros.training.settings import STAGES, TrainingSettings, describe
from worldstereo_ros.training.worlds import draw_worlds

FEWEST_WORLDS = 24  # before training starts
WORLDS_FOLDER = "worlds"


def train_stages(
    stages: Sequence[str],
    settings: TrainingSettings,
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
        minutes: in all; shared out as the settings share theirs. None: those of the settings.
        steps: of every stage, at most, instead of the settings'.
        worlds: where worlds are kept; None: in the run's folder. Several runs may share one.
        console: where progress is shown.

    Returns:
        The last validation's figures of every stage.

    Raises:
        ValueError: a stage is not known or the settings lack it, or the device is not there.
        CheckpointError: the weights of an earlier stage are missing or damaged.
        TrainingError: the numbers are not finite any more.
    """
    for stage in stages:
        if stage not in STAGES:
            raise ValueError(f"The stage '{stage}' is not known; choose one of {', '.join(STAGES)}, or all.")
        if stage not in settings.stages:
            raise ValueError(f"The configuration has no settings for the stage {stage}.")
    console = console or Console()
    begin = time.monotonic()
    accelerator = _accelerator(settings)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, settings, accelerator)
    (folder / "settings.json").write_text(json.dumps(describe(settings), indent=1) + "\n", encoding="utf-8")
    shares = _shares(stages, settings, minutes)
    figures: dict[str, dict[str, float]] = {}
    with _drawing(settings, worlds or folder / WORLDS_FOLDER, console) as (training, validation):
        for index, name in enumerate(stages):
            set_seed(settings.seed)
            training.refresh()
            stage = make_stage(name, run, training, validation)
            left = None
            if minutes is not None:  # what drawing and loading took is shared by the stages that are left
                remaining = minutes - (time.monotonic() - begin) / 60
                left = max(0.02, remaining * shares[index] / sum(shares[index:]))
            try:
                figures[name] = train(
                    stage, accelerator, folder / "logs", minutes=left, steps=steps, between=training.refresh,
                    console=console,
                )  # fmt: skip
            except KeyboardInterrupt:
                raise TrainingError(f"{name} was interrupted; the weights written last are whole.") from None
            stage.save()
    return figures


def make_stage(name: str, run: Run, training: Shelf, validation: Shelf) -> Stage:
    """A stage by its name."""
    if name == "autoencoder":
        return AutoencoderStage(run, training, validation)
    if name == "distill":
        return DistillStage(run, training, validation)
    return DiffusionStage(name, run, training, validation)


def _accelerator(settings: TrainingSettings) -> Accelerator:
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is '{settings.device}'; auto, cpu or cuda was expected.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("The configuration asks for CUDA and this machine has no usable CUDA GPU; use device: auto.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")


def _shares(stages: Sequence[str], settings: TrainingSettings, minutes: float | None) -> list[float]:
    if minutes is None:
        return [0.0] * len(stages)
    return [settings.stages[name].minutes or 1.0 for name in stages]


@contextmanager
def _drawing(settings: TrainingSettings, folder: Path, console: Console) -> Iterator[tuple[Shelf, Shelf]]:
    """Worlds to train on, with processes that draw more of them meanwhile."""
    worlds = settings.worlds
    first = min(worlds.kept, FEWEST_WORLDS)
    context = multiprocessing.get_context("spawn")  # a forked process must not touch CUDA
    processes = []
    if worlds.workers:
        for worker in range(worlds.workers):
            process = context.Process(
                target=_draw_on, args=(folder, settings, worker, worlds.workers, os.getpid()), daemon=True
            )
            process.start()
            processes.append(process)
    try:
        if not worlds.workers:
            with console.status("drawing worlds ..."):
                draw_worlds(folder, "validation", range(worlds.validation), settings.sizes, soft_light=worlds.soft_light)
                draw_worlds(folder, "training", range(worlds.kept), settings.sizes, soft_light=worlds.soft_light)
        else:
            with console.status("drawing the first worlds ..."):
                while (lacking := _lacking(folder, first, worlds.validation)) > 0:
                    if not any(process.is_alive() for process in processes):
                        raise TrainingError(f"{lacking} worlds are still to be drawn and no process draws any more.")
                    time.sleep(0.2)
        yield Shelf(folder, "training", worlds.kept), Shelf(folder, "validation", worlds.validation)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)


def _lacking(folder: Path, training: int, validation: int) -> int:
    have = {split: len(list(folder.glob(f"{split}-*.safetensors"))) for split in ("training", "validation")}
    return max(0, training - have["training"]) + max(0, validation - have["validation"])


def _draw_on(folder: Path, settings: TrainingSettings, worker: int, workers: int, parent: int) -> None:
    """Draws validation worlds, then training worlds without end; old ones make room. A process of its own."""
    torch.set_num_threads(1)
    os.nice(10)
    worlds = settings.worlds

    def while_wanted(indices: Iterator[int] | range) -> Iterator[int]:
        for index in indices:
            if os.getppid() != parent:
                return
            yield index

    validation = range(worker, worlds.validation, workers)
    draw_worlds(folder, "validation", while_wanted(validation), settings.sizes, soft_light=worlds.soft_light)
    there = sorted(folder.glob("training-*.safetensors"))
    newest = int(there[-1].stem.rpartition("-")[2]) + 1 if len(there) >= worlds.kept else 0
    for index in while_wanted(count(newest + worker, workers)):
        draw_worlds(folder, "training", [index], settings.sizes, soft_light=worlds.soft_light)
        # Some more than are kept, so that none goes that a training process is about to map.
        for old in sorted(folder.glob("training-*.safetensors"))[: -worlds.kept - 20 * workers]:
            old.unlink(missing_ok=True)
