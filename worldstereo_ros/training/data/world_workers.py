"""Processes that render training worlds while a run trains on them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldstereo_ros.training.config import TrainingConfig, WorldConfig
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import render_worlds
from worldstereo_ros.training.trainer import TrainingError

MIN_WORLDS = 24  # training worlds before training starts, if workers render more meanwhile
SPARE_WORLDS = 20  # of each worker, beyond `cache_size`, so that no file is deleted that training is about to open


@contextmanager
def rendered_worlds(
    config: TrainingConfig, folder: Path, console: Console, device: torch.device
) -> Iterator[tuple[WorldDataset, WorldDataset]]:
    """Context manager: training and validation worlds. Worker processes render further worlds inside the block.

    Args:
        config: configuration of the run.
        folder: folder of the worlds.
        console: for the progress bar.
        device: training device, which renders the worlds if the configuration has `worlds.on_device`.

    Raises:
        TrainingError: the workers stopped before there were enough worlds.
    """
    worlds = config.worlds
    renderer = device if worlds.on_device else torch.device("cpu")
    context = multiprocessing.get_context("spawn")  # a forked process must not use CUDA
    processes = [
        context.Process(
            target=_render_continuously,
            args=(folder, worlds, config.sizes, renderer, worker, os.getpid()),
            daemon=True,
        )
        for worker in range(worlds.workers)
    ]
    for process in processes:
        process.start()
    try:
        if processes:
            _wait_for_worlds(worlds, folder, processes, console)
        else:
            _render_all(config, folder, console, renderer)
        yield WorldDataset(folder, "training", worlds.cache_size), WorldDataset(folder, "validation", worlds.validation)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
            for unfinished in folder.glob(f"*.{process.pid}.part"):
                unfinished.unlink(missing_ok=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def _render_all(config: TrainingConfig, folder: Path, console: Console, device: torch.device) -> None:
    """Renders all missing worlds."""
    worlds = config.worlds
    with _progress(console) as bar:
        task = bar.add_task("rendering worlds", total=_missing_count(folder, worlds.cache_size, worlds.validation))
        for split, number in (("validation", worlds.validation), ("training", worlds.cache_size)):
            for index in range(number):
                bar.advance(task, _render(folder, split, [index], config.sizes, worlds, device))


def _wait_for_worlds(worlds: WorldConfig, folder: Path, processes: Sequence[BaseProcess], console: Console) -> None:
    """Waits until the workers have rendered enough worlds to start with."""
    needed = min(worlds.cache_size, MIN_WORLDS)
    with _progress(console) as bar:
        total = _missing_count(folder, needed, worlds.validation)
        task = bar.add_task("rendering worlds", total=total)
        while (missing := _missing_count(folder, needed, worlds.validation)) > 0:
            bar.update(task, completed=total - missing)
            if not any(process.is_alive() for process in processes):
                raise TrainingError(
                    f"{missing} worlds are missing in {folder}, and all processes that render worlds have stopped. "
                    "Check the free disk space; with worlds.workers: 0 the error is shown."
                )
            time.sleep(0.2)


def _missing_count(folder: Path, training: int, validation: int) -> int:
    present = {split: len(list(folder.glob(f"{split}-*.safetensors"))) for split in ("training", "validation")}
    return max(0, training - present["training"]) + max(0, validation - present["validation"])


def _render(
    folder: Path,
    split: str,
    indices: Iterator[int] | Sequence[int],
    sizes: Sequence[tuple[int, int]],
    worlds: WorldConfig,
    device: torch.device,
) -> int:
    return render_worlds(
        folder, split, indices, sizes, shadow_prob=worlds.shadow_prob, kinds=worlds.kinds, device=device
    )


def _render_continuously(
    folder: Path,
    worlds: WorldConfig,
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
    worker: int,
    parent: int,
) -> None:
    """Renders validation worlds, then training worlds without end, and deletes the oldest. Runs in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process handles Ctrl-C and stops this process
    torch.set_num_threads(1)
    os.nice(10)  # training and its loaders have priority

    def while_parent_lives(indices: Iterable[int]) -> Iterator[int]:
        for index in indices:
            if os.getppid() != parent:
                return
            yield index

    validation = range(worker, worlds.validation, worlds.workers)
    _render(folder, "validation", while_parent_lives(validation), sizes, worlds, device)
    present = sorted(folder.glob("training-*.safetensors"))
    first = int(present[-1].stem.rpartition("-")[2]) + 1 if len(present) >= worlds.cache_size else 0
    for index in while_parent_lives(count(first + worker, worlds.workers)):
        _render(folder, "training", [index], sizes, worlds, device)
        max_count = worlds.cache_size + SPARE_WORLDS * worlds.workers
        for old in sorted(folder.glob("training-*.safetensors"))[:-max_count]:
            old.unlink(missing_ok=True)
