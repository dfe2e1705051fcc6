"""Processes that render stereo clips while the refiner trains, and hand them over in memory."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from worldstereo_ros.training.data.stereo_batches import ClipPool
from worldstereo_ros.training.data.stereo_clips import StereoClip, render_clips
from worldstereo_ros.training.trainer import TrainingError

QUEUED_CLIPS = 16  # of all workers together, before they wait
TRAINING, VALIDATION = "training", "validation"
MAX_FAILED_WORLDS = 5  # one after the other
MAX_TAKEN = 6  # clips that are moved to the device between two steps


@dataclass(frozen=True)
class ClipConfig:
    """What is rendered.

    Attributes:
        frames: frames of a clip.
        clips: clips of a world.
        worlds, validation_worlds: training worlds before training starts (all of them without workers), and those that
            are validated on.
        capacity: clips that are kept to train on.
        workers: processes that render further worlds.
        supersample, light: see `render_scene`.
    """

    frames: int = 7
    clips: int = 6
    worlds: int = 8
    validation_worlds: int = 10
    capacity: int = 800
    workers: int = 2
    supersample: int = 2
    light: str = "soft"

    @property
    def validation_clips(self) -> int:
        """Clips of a validation world: few, so that there are many worlds."""
        return min(2, self.clips)


class ClipFeed:
    """Clips to train and to validate on.

    Attributes:
        pool: training clips.
        validation: clips of unseen worlds, on the CPU.
    """

    def __init__(self, pool: ClipPool) -> None:
        self.pool, self.validation = pool, list[StereoClip]()
        self._queue: Any = None
        self._processes: list[BaseProcess] = []
        self._finished = 0  # workers that have rendered all validation worlds

    def refresh(self) -> None:
        """Moves some of the clips that wait to the pool."""
        if self._queue is None:
            return
        for _ in range(MAX_TAKEN):
            try:
                self._add(*self._queue.get_nowait())
            except queue.Empty:
                return

    def start(self, config: ClipConfig, device: torch.device, seed: int) -> None:
        """Starts the workers, and waits until there is enough to start with.

        Raises:
            TrainingError: they stopped before.
        """
        context = multiprocessing.get_context("spawn")  # a forked process must not use CUDA
        self._queue = context.Queue(QUEUED_CLIPS)
        self._processes = [
            context.Process(
                target=_render_continuously, args=(self._queue, config, str(device), worker, seed, os.getpid()),
                daemon=True,
            )
            for worker in range(config.workers)
        ]  # fmt: skip
        for process in self._processes:
            process.start()
        while self._finished < config.workers or self.pool.count < config.worlds * config.clips // 2:
            try:
                self._add(*self._queue.get(timeout=1.0))
            except queue.Empty:
                if not any(process.is_alive() for process in self._processes):
                    raise TrainingError(
                        "All processes that render worlds have stopped before there were enough clips. Without "
                        "workers (--config smoke) the error is shown."
                    ) from None

    def stop(self) -> None:
        """Ends the workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)

    def _add(self, split: str, arrays: dict | None) -> None:
        if arrays is None:
            self._finished += 1
        elif split == VALIDATION:
            self.validation.append(StereoClip.from_arrays(arrays))
        else:
            self.pool.add(StereoClip.from_arrays(arrays))


@contextmanager
def clip_feed(
    config: ClipConfig, device: torch.device, *, seed: int = 0, given: Sequence[StereoClip] = ()
) -> Iterator[ClipFeed]:
    """Context manager: clips of worlds, which workers keep rendering inside the block.

    Args:
        config: what is rendered.
        device: of the renderer and of the pool.
        seed: random seed; a further training sees other worlds.
        given: clips of videos; they are trained on too, and never dropped from the pool while it has room.

    Raises:
        TrainingError: the workers stopped before there were enough clips.
    """
    feed = ClipFeed(ClipPool(config.capacity, device))
    for clip in given:
        feed.pool.add(clip)
    try:
        if config.workers:
            feed.start(config, device, seed)
        else:
            for split, worlds, clips in (
                (VALIDATION, config.validation_worlds, config.validation_clips),
                (TRAINING, config.worlds, config.clips),
            ):
                for index in range(worlds):
                    for clip in _render(config, split, index + seed * worlds * (split == TRAINING), clips, device):
                        feed._add(split, clip.arrays())
        yield feed
    finally:
        feed.stop()


def _render(config: ClipConfig, split: str, index: int, clips: int, device: torch.device | str) -> list[StereoClip]:
    return render_clips(
        split, index, frames=config.frames, clips=clips, device=device, supersample=config.supersample,
        light=config.light,
    )  # fmt: skip


def _render_continuously(out: Any, config: ClipConfig, device: str, worker: int, seed: int, parent: int) -> None:
    """Renders validation worlds, then training worlds without end. Runs in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process handles Ctrl-C and ends this process
    torch.set_num_threads(1)
    os.nice(5)  # training has priority
    for index in range(worker, config.validation_worlds, config.workers):
        for clip in _render(config, VALIDATION, index, config.validation_clips, device):
            out.put((VALIDATION, clip.arrays()))
    out.put((VALIDATION, None))
    index, failures = worker + config.workers * 100_000 * seed, 0
    while os.getppid() == parent:
        try:
            clips = _render(config, TRAINING, index, config.clips, device)
            failures = 0
        except Exception:  # one odd world must not end the training of hours
            failures += 1
            if failures >= MAX_FAILED_WORLDS:
                raise
            traceback.print_exc()
            clips = []
        for clip in clips:
            item = (TRAINING, clip.arrays())
            while os.getppid() == parent:
                try:
                    out.put(item, timeout=2.0)
                    break
                except queue.Full:
                    time.sleep(0.05)
        index += config.workers
