"""Batches of frames for the point-map refiner, from clips that are kept in memory and in the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.pointmaps.types import PointmapPrior
from worldstereo_ros.scenes import SPLITS
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.prior_clips import PriorClip, world_clips

CLIP_FRAMES = 4  # of a clip in a batch
COLOUR_STRENGTH = 0.5  # clips have the look of some camera already


@dataclass(frozen=True)
class FrameBatch:
    """b clips of F frames each.

    Attributes:
        images: (b, F, 3, H, W) in [-1, 1].
        intrinsics: (b, 4).
        prior: of these frames.
        matching: (b, F, SWEEP_CHANNELS, H / 2, W / 2).
        log_depth: (b, F, H, W) the truth in the scale of the prior.
        hit, moving: (b, F, H, W) bool.
    """

    images: torch.Tensor
    intrinsics: torch.Tensor
    prior: PointmapPrior
    matching: torch.Tensor
    log_depth: torch.Tensor
    hit: torch.Tensor
    moving: torch.Tensor

    def to(self, device: torch.device | str) -> FrameBatch:
        """The batch on another device."""
        return FrameBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def make_batch(
    clips: Sequence[PriorClip], frames: Sequence[np.ndarray], mirror: np.ndarray | None = None
) -> FrameBatch:
    """A batch of frames of clips of one size.

    Args:
        clips: b clips.
        frames: of each the same number of frames.
        mirror: (b,) bool, clips to be mirrored.
    """

    def stacked(name: str) -> torch.Tensor:
        arrays = [getattr(clip, name)[some] for clip, some in zip(clips, frames, strict=True)]
        tensor = torch.from_numpy(np.stack(arrays))
        if tensor.dtype == torch.float16:
            tensor = tensor.float()
        if mirror is not None and mirror.any() and tensor.ndim > 3 and name != "poses":
            which = torch.from_numpy(np.nonzero(mirror)[0])
            tensor[which] = tensor[which].flip(-1)
        return tensor

    images = stacked("image").float() / 127.5 - 1
    intrinsics = torch.from_numpy(np.stack([clip.intrinsics for clip in clips])).float()
    if mirror is not None:
        flipped = torch.from_numpy(mirror)
        intrinsics[flipped, 2] = images.shape[-1] - 1 - intrinsics[flipped, 2]
    prior = PointmapPrior(
        stacked("log_depth"), stacked("log_sigma"), stacked("poses"), stacked("anchor_residual"),
        stacked("anchor_weight"),
    )  # fmt: skip
    depth = stacked("depth")
    # One scale for a whole clip: that of the prior, by medians.
    scale = torch.tensor([_scale_of(clip) for clip in clips]).view(-1, 1, 1, 1)
    return FrameBatch(
        images, intrinsics, prior, stacked("matching"), depth.clamp_min(1e-2).log() + scale, depth > 0,
        stacked("moving"),
    )  # fmt: skip


def _scale_of(clip: PriorClip) -> float:
    """Median log ratio of the prior's depth to the truth."""
    hit = clip.depth > 0
    return float(np.median(clip.log_depth[hit].astype(np.float32) - np.log(clip.depth[hit].astype(np.float32))))


class ClipBank:
    """Clips in memory; more are rendered while training runs.

    Args:
        folder: where clips are kept, `NAME.npz`.
        networks: the depth network, and the estimator of it.
        seed: of batches.
        batch: clips of a step.
        share: of the time that rendering may take.
        most: clips at most; 900 take 6 GB.
        first: number of the first world.
        render: arguments of `world_clips`.
    """

    def __init__(
        self, folder: Path, networks: tuple[DepthNetwork, DepthEstimator], *, seed: int, batch: int, share: float,
        most: int, first: int = 0, render: dict[str, object] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.batch, self.random = folder, batch, np.random.default_rng(seed)
        self._networks, self._share, self._most, self._render = networks, share, most, render or {}
        self._by_size: dict[tuple[int, ...], list[PriorClip]] = {}
        self._count, self._spent, self._started = 0, 0.0, time.process_time()
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.npz")):
            self._keep(PriorClip.load(file))
            first = max(first, int(file.stem.split("-")[0]) + 1)
        self._stream = self._make(first)

    def walks(self) -> int:
        """Clips so far."""
        return self._count

    def fill(self, count: int, end: float) -> None:
        """Renders until there are so many clips, or `time.monotonic()` is `end`."""
        while self._count < count and time.monotonic() < end and self._render_one():
            pass
        self._spent, self._started = 0.0, time.process_time()

    def poll(self) -> None:
        """Renders a clip where rendering has had less than its share of the processor's time."""
        if self._count < self._most and self._spent < self._share * (time.process_time() - self._started):
            self._render_one()

    def draw(self) -> FrameBatch:
        """A random batch of one size, some clips mirrored, in other colours."""
        sizes = list(self._by_size)
        weights = np.array([len(self._by_size[size]) for size in sizes], dtype=np.float64)
        pool = self._by_size[sizes[int(self.random.choice(len(sizes), p=weights / weights.sum()))]]
        picked = self.random.choice(len(pool), size=min(self.batch, len(pool)), replace=False)
        clips = [pool[int(index)] for index in picked]
        count = min(CLIP_FRAMES, *(len(clip.image) for clip in clips))
        frames = [np.sort(self.random.choice(len(clip.image), count, replace=False)) for clip in clips]
        batch = make_batch(clips, frames, self.random.random(len(clips)) < 0.5)
        images = augment_colours((batch.images + 1) / 2, self.random, strength=COLOUR_STRENGTH)
        return replace(batch, images=images)

    def _render_one(self) -> bool:
        started = time.process_time()
        clip = next(self._stream, None)
        self._spent += time.process_time() - started
        if clip is not None:
            self._keep(clip)
        return clip is not None

    def _keep(self, clip: PriorClip) -> None:
        if clip.usable:
            self._by_size.setdefault(clip.image.shape[2:], []).append(clip)
            self._count += 1

    def _make(self, first: int) -> Iterator[PriorClip]:
        for index in range(first, len(SPLITS["training"])):
            for number, clip in enumerate(world_clips("training", index, *self._networks, **self._render)):  # type: ignore[arg-type]
                clip.save(self.folder / f"{index:06d}-{number}.npz")
                yield clip
