"""Batches for training: drawn where they are asked for, or by processes beside it.

A clip takes a core a tenth of a second and more, a step of a GPU less: there, loader processes keep a queue filled.
What they send is as small as cameras give it (bytes for pictures), and goes through pipes, for which a small
/dev/shm suffices.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from worldstereo_ros.training.data.clip_sampling import ClipBatch, draw_clips
from worldstereo_ros.training.data.dataset import WorldDataset, draw_pictures

T = TypeVar("T", covariant=True)
REFERENCES = 4  # of a training clip, at most
LEAST_FRAMES = 4  # of a clip that is shorter
WITHOUT_REFERENCES = 0.15  # share of the batches
REFRESHED_EVERY = 30.0  # seconds between a loader's looks for new worlds
LEAST_REPLAY = 8  # batches that are there before any of them is learnt from again


class BatchSampler(Protocol[T]):
    """Says what a batch is; goes to other processes."""

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> T:
        """Draws a batch."""

    def pack(self, batch: Any) -> dict[str, np.ndarray]:
        """A batch on the CPU, small."""

    def unpack(self, packed: dict[str, torch.Tensor]) -> T:
        """What was packed, on the device it was brought to."""


@dataclass(frozen=True)
class ImageSampler:
    """`count` pictures (count, 3, h, w) uint8 for the autoencoder."""

    count: int

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Draws them."""
        return draw_pictures(dataset, self.count, random).to(device)

    def pack(self, batch: torch.Tensor) -> dict[str, np.ndarray]:
        """As they are."""
        return {"pictures": batch.numpy()}

    def unpack(self, packed: dict[str, torch.Tensor]) -> torch.Tensor:
        """As they were."""
        return packed["pictures"]


@dataclass(frozen=True)
class ClipSampler:
    """Clips for the transformer.

    Attributes:
        count: clips of a batch.
        frames: keyframes of each, the seed's among them.
        renders: whether clouds and cameras belong to them.
        memory: whether most batches have references.
        clean: for validation, see `draw_clips`.
        short_clip_prob: share of the batches whose clips are shorter, and as many more.
    """

    count: int
    frames: int
    renders: bool
    memory: bool
    clean: bool = False
    short_clip_prob: float = 0.0

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> ClipBatch:
        """Draws them."""
        references, frames = 0, self.frames
        if self.frames > LEAST_FRAMES and random.random() < self.short_clip_prob:
            frames = int(random.integers(LEAST_FRAMES, self.frames))
        if self.memory and random.random() < 1 - WITHOUT_REFERENCES:
            references = int(random.integers(1, REFERENCES + 1))
        return draw_clips(
            dataset,
            self.count * self.frames // frames,
            frames,
            random,
            device,
            renders=self.renders,
            references=references,
            clean=self.clean,
        )

    def pack(self, batch: ClipBatch) -> dict[str, np.ndarray]:
        """Pictures and holes as bytes, rays in half precision."""
        return {
            "pictures": _bytes(batch.images),
            "renders": _bytes(batch.renders),
            "layouts": _bytes(batch.layouts),
            "marks": batch.plane_channels.half().numpy(),
            "holes": batch.holes.to(torch.uint8).numpy(),
            "rays": batch.plucker.half().numpy(),
            "poses": batch.poses.numpy(),
            "references": _bytes(batch.references),
            "reference_index": batch.reference_index.numpy(),
            "reference_poses": batch.reference_poses.numpy(),
        }

    def unpack(self, packed: dict[str, torch.Tensor]) -> ClipBatch:
        """Pictures and holes as float32 again; rays stay as they are, they take the most memory."""
        names = ("pictures", "renders", "layouts", "references")
        shown = {name: packed[name].float().div(127.5).sub(1) for name in names}
        return ClipBatch(**{**packed, **shown, "holes": packed["holes"].float()})


def _bytes(pictures: torch.Tensor) -> np.ndarray:
    return pictures.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).numpy()


class BatchStream(Generic[T]):
    """Batches without end, drawn when they are asked for.

    Args:
        draw: what a batch is.
        dataset: the worlds.
        seed: of what is drawn.
        device: where batches go.
    """

    def __init__(self, draw: BatchSampler[T], dataset: WorldDataset, seed: list[int], device: torch.device) -> None:
        self.draw, self.dataset, self.device = draw, dataset, device
        self._random = np.random.default_rng(seed)

    def take(self, *, wait: bool = True) -> T | None:
        """The next batch; None where there is none yet and `wait` is False."""
        return self.draw(self.dataset, self._random, self.device)

    def close(self) -> None:
        """Ends the processes, where there are any."""


class PrefetchingStream(BatchStream[T]):
    """Batches without end, drawn by other processes, each with draws and a look at the worlds of its own.

    The order is the same in every run as long as the worlds are. Close it when it is done with.

    Args:
        loaders: how many processes.
        draw, dataset, seed, device: see `BatchStream`.
    """

    def __init__(
        self, draw: BatchSampler[T], dataset: WorldDataset, seed: list[int], device: torch.device, loaders: int
    ) -> None:
        super().__init__(draw, dataset, seed, device)
        # A process that is forked from one with CUDA and threads is not safe; one from the fork server is, and quick.
        context = multiprocessing.get_context(
            "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        )
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload([__name__])
        self._loader: DataLoader[dict[str, np.ndarray]] = DataLoader(
            _Endless(draw, dataset, seed),
            batch_size=None,
            num_workers=loaders,
            collate_fn=_as_it_is,
            multiprocessing_context=context,
            prefetch_factor=1,
        )
        self._ready: queue.Queue[dict[str, np.ndarray] | Exception] = queue.Queue(2)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def take(self, *, wait: bool = True) -> T | None:
        """The next batch; None where there is none yet and `wait` is False.

        Raises:
            RuntimeError: a loader failed.
        """
        try:
            packed = self._ready.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(packed, Exception):
            self._ready.put(packed)
            raise RuntimeError(f"A process that draws batches failed: {packed}") from packed
        tensors = {name: torch.from_numpy(array) for name, array in packed.items()}
        if self.device.type == "cuda":
            tensors = {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}
        return self.draw.unpack(tensors)

    def close(self) -> None:
        """Ends the processes."""
        self._closing.set()
        self._thread.join()

    def _fetch(self) -> None:
        try:
            for packed in self._loader:
                if not self._offer(packed):
                    return
        except Exception as error:
            self._offer(error)

    def _offer(self, packed: dict[str, np.ndarray] | Exception) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(packed, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class _Endless(IterableDataset[dict[str, np.ndarray]]):
    """What a loader process runs."""

    def __init__(self, draw: BatchSampler[Any], dataset: WorldDataset, seed: list[int]) -> None:
        super().__init__()
        self.draw, self.seed = draw, seed
        self.place = (dataset.folder, dataset.split, dataset.cache_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        info = get_worker_info()
        cv2.setNumThreads(0)
        dataset, looked = WorldDataset(*self.place), time.monotonic()
        random = np.random.default_rng([*self.seed, info.id if info else 0])
        while True:
            yield self.draw.pack(self.draw(dataset, random, torch.device("cpu")))
            if time.monotonic() - looked > REFRESHED_EVERY:
                dataset.refresh()
                looked = time.monotonic()


def _as_it_is(packed: Any) -> Any:
    return packed
