"""Gives clips while walks are rendered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.moving_walks import MovingClips, Walk, WalkPool, WalkSource, render_walks
from worldstereo_ros.training.pointmap_settings import PointmapTraining
from worldstereo_ros.utils.errors import InputError

PATIENCE_S = 20.0  # without a walk, before the training process renders itself


class WalkFeed:
    """Gives clips while walks are rendered.

    Args:
        settings: how to train.
        source: renders walks.
        device: where walks are kept.
        folder: where walks are written to, and read from when a run is started again; None = nowhere.
    """

    def __init__(
        self, settings: PointmapTraining, source: WalkSource, device: torch.device, folder: Path | None = None
    ) -> None:
        self.settings, self.source, self.device, self.batch = settings, source, device, settings.batch
        self.random = np.random.default_rng(settings.seed)
        self.pools = {size: WalkPool(size, settings.capacity, device, settings.views) for size in settings.sizes}
        self._folder, self._saved = folder, 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(folder.glob("*.npz"))
            self._saved = len(files)
            for file in files:
                self._pool(walk := Walk.load(file)).add(walk)

    def _pool(self, walk: Walk) -> WalkPool:
        size = (walk.image.shape[1], walk.image.shape[2])
        if size not in self.pools:
            raise TrainingConfigError(f"A walk of the run's folder has {size} pixels; {list(self.pools)} are trained.")
        return self.pools[size]

    def _keep(self, walks: Iterable[Walk]) -> None:
        for walk in walks:
            self._pool(walk).add(walk)
            if self._folder is not None:
                walk.save(self._folder / f"{self._saved:06d}.npz")
                self._saved += 1

    def poll(self, *, urgent: bool = False) -> None:
        """Takes what was rendered into the pool; `urgent`: training waits for it."""
        self._keep(self.source.poll(urgent=urgent))

    def walks(self) -> int:
        """Walks so far."""
        return sum(pool.count for pool in self.pools.values())

    def fill(self, overdue: Callable[[], bool]) -> None:
        """Waits for the first walks; renders them here if no process does.

        Args:
            overdue: whether it is too late to wait on.

        Raises:
            TrainingConfigError: no walk was rendered in time.
        """
        latest = time.monotonic()
        while self.walks() < self.settings.first_walks and not overdue():
            before = self.walks()
            self.poll(urgent=True)
            if self.walks() > before:
                latest = time.monotonic()
            elif time.monotonic() - latest > PATIENCE_S:
                self._keep(self.source.render_here())
            else:
                time.sleep(0.05)
        if not self.walks():
            raise TrainingConfigError("No walk was rendered in time; give more minutes.")

    def render_validation_clips(self, overdue: Callable[[], bool]) -> list[MovingClips]:
        """Renders validation worlds with two to four moving things, until it is too late."""
        found: list[MovingClips] = []
        by_size: dict[tuple[int, int], list[Walk]] = {}
        for index in range(self.settings.validation_worlds):
            if overdue():
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
        for size, walks in by_size.items():
            pool = WalkPool(size, len(walks), self.device, self.settings.views)
            for walk in walks:
                pool.add(walk)
            frames = self.settings.frames
            stride = min(2, (self.settings.views - 1) // (frames - 1))
            order = np.tile(np.arange(frames) * stride, (len(walks), 1))
            found.append(pool.take(np.arange(len(walks)), order))
        return found

    def draw_clips(self, count: int) -> MovingClips:
        """Clips of one size; sizes by turns in proportion to their walks."""
        sizes = [size for size, pool in self.pools.items() if len(pool)]
        weights = np.array([len(self.pools[size]) for size in sizes], dtype=np.float64)
        size = sizes[int(self.random.choice(len(sizes), p=weights / weights.sum()))]
        return self.pools[size].draw(count, self.settings.frames, self.random)
