"""Streams of training batches, sampled on demand or by loader processes.

Sampling a clip takes a CPU core a tenth of a second or more, a step on a GPU less: there, loader processes keep a queue
filled. They send uint8 images through pipes, so that a small /dev/shm suffices.
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

from worldstereo_ros.training.data.clip_sampling import ClipBatch, sample_clips
from worldstereo_ros.training.data.dataset import WorldDataset, sample_images
from worldstereo_ros.utils.errors import WorldStereoError

T = TypeVar("T", covariant=True)
MAX_REFERENCES = 4  # of a training clip
MIN_FRAMES = 4  # of a short clip
NO_REFERENCES_PROB = 0.15  # probability that a batch has no references
REFRESH_PERIOD_S = 30.0  # of the worlds in a loader process
PREFETCHED_BATCHES = 2


class LoaderError(WorldStereoError, RuntimeError):
    """A loader process failed."""


class BatchSampler(Protocol[T]):
    """Samples batches of one kind; picklable, for loader processes."""

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> T:
        """Samples a batch."""

    def pack(self, batch: Any) -> dict[str, np.ndarray]:
        """A batch on the CPU as small NumPy arrays."""

    def unpack(self, packed: dict[str, torch.Tensor]) -> T:
        """The batch from packed arrays, on their device."""


@dataclass(frozen=True)
class ImageSampler:
    """Samples images (count, 3, h, w) uint8 for the autoencoder."""

    count: int

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Samples a batch."""
        return sample_images(dataset, self.count, random).to(device)

    def pack(self, batch: torch.Tensor) -> dict[str, np.ndarray]:
        """Packs images without change."""
        return {"images": batch.numpy()}

    def unpack(self, packed: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unpacks images without change."""
        return packed["images"]


@dataclass(frozen=True)
class ClipSampler:
    """Samples clips for the transformer.

    Attributes:
        count: clips of a batch.
        frames: keyframes of each, the start view included.
        renders: whether clips have renders of the cloud and cameras.
        memory: whether most batches have reference views.
        clean: no noise, for validation; see `sample_clips`.
        short_clip_prob: fraction of the batches with shorter, and accordingly more, clips.
        photographs_prob: fraction of the batches whose memory is photographs, see `photograph_clips`; needs `renders`.
    """

    count: int
    frames: int
    renders: bool
    memory: bool
    clean: bool = False
    short_clip_prob: float = 0.0
    photographs_prob: float = 0.0

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> ClipBatch:
        """Samples a batch."""
        references, frames = 0, self.frames
        if self.frames > MIN_FRAMES and random.random() < self.short_clip_prob:
            frames = int(random.integers(MIN_FRAMES, self.frames))
        count = self.count * self.frames // frames
        if self.photographs_prob and random.random() < self.photographs_prob:
            # Reconstruction is imported by those who train with it alone.
            from worldstereo_ros.training.data.photograph_clips import sample_photograph_clips

            return sample_photograph_clips(dataset, count, frames, random, device)
        if self.memory and random.random() < 1 - NO_REFERENCES_PROB:
            references = int(random.integers(1, MAX_REFERENCES + 1))
        return sample_clips(
            dataset,
            count,
            frames,
            random,
            device,
            renders=self.renders,
            references=references,
            clean=self.clean,
        )

    def pack(self, batch: ClipBatch) -> dict[str, np.ndarray]:
        """Packs images and holes as bytes, Plücker rays in half precision."""
        return {
            "images": _as_bytes(batch.images),
            "renders": _as_bytes(batch.renders),
            "layouts": _as_bytes(batch.layouts),
            "plane_channels": batch.plane_channels.half().numpy(),
            "holes": batch.holes.to(torch.uint8).numpy(),
            "plucker": batch.plucker.half().numpy(),
            "poses": batch.poses.numpy(),
            "references": _as_bytes(batch.references),
            "reference_index": batch.reference_index.numpy(),
            "reference_poses": batch.reference_poses.numpy(),
            "cameras": batch.cameras.numpy(),
            "intrinsics": batch.intrinsics.numpy(),
        }

    def unpack(self, packed: dict[str, torch.Tensor]) -> ClipBatch:
        """Unpacks images and holes as float32. Plücker rays stay in half precision, since they take the most memory."""
        names = ("images", "renders", "layouts", "references")
        images = {name: packed[name].float().div(127.5).sub(1) for name in names}
        return ClipBatch(**{**packed, **images, "holes": packed["holes"].float()})


def _as_bytes(images: torch.Tensor) -> np.ndarray:
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).numpy()


class BatchStream(Generic[T]):
    """An endless stream of batches, sampled on demand.

    Args:
        sampler: samples a batch.
        dataset: the worlds.
        seed: random seed.
        device: device of the batches.
    """

    def __init__(self, sampler: BatchSampler[T], dataset: WorldDataset, seed: list[int], device: torch.device) -> None:
        self.sampler, self.dataset, self.device = sampler, dataset, device
        self._random = np.random.default_rng(seed)

    def take(self, *, wait: bool = True) -> T | None:
        """The next batch; None if `wait` is False and none is ready."""
        return self.sampler(self.dataset, self._random, self.device)

    def close(self) -> None:
        """Stops the loader processes, if there are any."""


class PrefetchingStream(BatchStream[T]):
    """An endless stream of batches from loader processes, each with its own random numbers and its own `WorldDataset`.

    The order of the batches is the same in every run with the same worlds. Call `close` at the end.

    Args:
        loaders: number of processes.
        sampler, dataset, seed, device: see `BatchStream`.
    """

    def __init__(
        self, sampler: BatchSampler[T], dataset: WorldDataset, seed: list[int], device: torch.device, loaders: int
    ) -> None:
        super().__init__(sampler, dataset, seed, device)
        # Forking a process with CUDA and threads is unsafe. The fork server is safe, and faster than spawning.
        context = multiprocessing.get_context(
            "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        )
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload([__name__])
        self._loader: DataLoader[dict[str, np.ndarray]] = DataLoader(
            _EndlessBatches(sampler, dataset, seed),
            batch_size=None,
            num_workers=loaders,
            collate_fn=_identity,
            multiprocessing_context=context,
            prefetch_factor=1,
        )
        self._ready: queue.Queue[dict[str, np.ndarray] | Exception] = queue.Queue(PREFETCHED_BATCHES)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def take(self, *, wait: bool = True) -> T | None:
        """The next batch; None if `wait` is False and none is ready.

        Raises:
            LoaderError: a loader process failed.
        """
        try:
            packed = self._ready.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(packed, Exception):
            self._ready.put(packed)
            reason = str(packed).strip().splitlines() or [type(packed).__name__]
            raise LoaderError(f"A loader process failed: {reason[-1]}") from packed  # lines before it are a traceback
        tensors = {name: torch.from_numpy(array) for name, array in packed.items()}
        if self.device.type == "cuda":
            tensors = {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}
        return self.sampler.unpack(tensors)

    def close(self) -> None:
        """Stops the loader processes."""
        self._closing.set()
        self._thread.join()

    def _fetch(self) -> None:
        try:
            for packed in self._loader:
                if not self._enqueue(packed):
                    return
        except Exception as error:
            self._enqueue(error)

    def _enqueue(self, packed: dict[str, np.ndarray] | Exception) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(packed, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class _EndlessBatches(IterableDataset[dict[str, np.ndarray]]):
    """Runs in a loader process."""

    def __init__(self, sampler: BatchSampler[Any], dataset: WorldDataset, seed: list[int]) -> None:
        super().__init__()
        self.sampler, self.seed = sampler, seed
        self.dataset_arguments = (dataset.folder, dataset.split, dataset.cache_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        info = get_worker_info()
        cv2.setNumThreads(0)
        dataset, refreshed = WorldDataset(*self.dataset_arguments), time.monotonic()
        random = np.random.default_rng([*self.seed, info.id if info else 0])
        while True:
            yield self.sampler.pack(self.sampler(dataset, random, torch.device("cpu")))
            if time.monotonic() - refreshed > REFRESH_PERIOD_S:
                dataset.refresh()
                refreshed = time.monotonic()


def _identity(packed: Any) -> Any:
    return packed
