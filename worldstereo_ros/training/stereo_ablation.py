"""Parts of the stereo refiner, trained one after the other on one set of clips, each for the same number of steps.

The clips are those of `data.stereo_crops`; all variants start from the same random numbers. What is judged are painted
pixels but for those beside a nearer surface: these mix two surfaces, and are drawn anew at inference (`soft_edges`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.models.stereo_refiner import StereoCondition, StereoRefiner
from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.stereo_batches import COLOUR_STRENGTH, carry, valid_flow
from worldstereo_ros.training.data.stereo_crops import TRUE_PAIR, StereoCrops, refill, views_of, with_painted
from worldstereo_ros.training.stages.stereo import GREY_LEVELS, motion_error
from worldstereo_ros.utils.errors import InputError

SIZE = MappingProxyType({"width": 48, "heads": 2, "depth": 1, "pixel_width": 24})
BATCH_CLIPS, LEARNING_RATE, WARMUP_STEPS, EMA, WEIGHT_DECAY, MAX_NORM = 8, 2e-3, 20, 0.99, 0.02, 1.0
MEASURED_AT_ONCE = 12
MOTION_WEIGHT = 2.0
# Of clips as they are, cut where the camera's image ends, without past frames, and both, see `views_of`.
VIEW_SHARES = (0.25, 0.35, 0.15, 0.25)
FLOOR = (1 / GREY_LEVELS) ** 2  # squared error below which a clip is good enough


@dataclass(frozen=True)
class Variant:
    """A network to train.

    Attributes:
        name: for tables.
        switches: arguments of `StereoRefiner`.
        there_and_back: half of the clips are of frames there and back, whose masks are united over time; else all are
            true pairs.
    """

    name: str
    switches: Mapping[str, bool]
    there_and_back: bool = False

    @property
    def sides(self) -> bool:
        """Clips also end at the side of the camera's image, and come without past frames."""
        return self.switches["sides"]


def _switches(
    reference: bool, deviation: bool, interaction: bool, mixture: bool = False, sides: bool = False
) -> Mapping[str, bool]:
    names = ("reference_attention", "deviation_strength", "temporal_interaction", "mixture", "sides")
    return MappingProxyType(dict(zip(names, (reference, deviation, interaction, mixture, sides), strict=True)))


VARIANTS = {
    "unet": Variant("U-Net", _switches(False, False, False)),
    "reference": Variant("+ reference", _switches(True, False, False)),
    "deviation": Variant("+ deviation strength", _switches(True, True, False)),
    "til": Variant("+ temporal interaction", _switches(True, True, True)),
    "dvg": Variant("+ frames there and back, united masks", _switches(True, True, True), there_and_back=True),
    "mixture": Variant("the last, mixing colours around holes", _switches(True, True, True, True), there_and_back=True),
    "sides": Variant("the same, with sides of images", _switches(True, True, True, True, True), there_and_back=True),
}


@dataclass(frozen=True)
class WorldScore:
    """Sums over the clips of each of W worlds, (W,) float64.

    Attributes:
        squared, pixels: squared error of the judged pixels of images in [-1, 1], and their number.
        change, moved: absolute change of holes along the true flow, grey levels, and number of pixels.
    """

    squared: np.ndarray
    pixels: np.ndarray
    change: np.ndarray
    moved: np.ndarray

    @property
    def psnr(self) -> np.ndarray:
        """(W,) dB of the judged pixels."""
        return 10 * np.log10(4 * self.pixels / np.maximum(self.squared, 1e-9))

    @property
    def flicker(self) -> float:
        """Mean change of holes, grey levels."""
        return float(self.change.sum() / max(self.moved.sum(), 1))

    def gain(self, other: WorldScore) -> tuple[float, float]:
        """(mean over worlds, standard error) of the difference to another, dB."""
        difference = self.psnr - other.psnr
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))

    def pooled(self) -> float:
        """DB of all judged pixels together."""
        return float(10 * np.log10(4 * self.pixels.sum() / self.squared.sum()))


@dataclass(frozen=True)
class CropBatch:
    """Clips as the network gets them.

    Attributes:
        condition, target, flow: see `StereoBatch`.
        judged: (b, F, 1, H, W) float, 1 = counts.
    """

    condition: StereoCondition
    target: torch.Tensor
    flow: torch.Tensor
    judged: torch.Tensor


def crop_batch(clips: StereoCrops, random: np.random.Generator | None = None) -> CropBatch:
    """Clips as tensors; colours vary as between cameras if there are random numbers."""
    images = [x.float() / 255 for x in (clips.filled, clips.target, clips.reference)]
    if random is None:
        filled, target, reference = (2 * x - 1 for x in images)
    else:
        widths = [x.shape[-1] for x in images]
        together = augment_colours(torch.cat(images, dim=-1), random, strength=COLOUR_STRENGTH)
        filled, target, reference = together.split(widths, dim=-1)
        seen = ~clips.hole
        filled = torch.where(seen, target, filled)  # the same noise, but for what was made bad
    painted, disparity = clips.painted.float(), clips.disparity.float()
    remembered = (clips.hole & ~clips.painted).float()
    condition = StereoCondition(filled, painted, remembered, disparity, reference)
    return CropBatch(condition, target, clips.flow.float(), painted * ~beside_nearer(painted, disparity))


def beside_nearer(painted: torch.Tensor, disparity: torch.Tensor) -> torch.Tensor:
    """(..., 1, H, W) bool: pixels beside a known one of a nearer surface, for masks and disparities of that shape."""
    known = torch.where(painted > 0.5, -1.0, disparity).flatten(0, -4)
    beside = functional.max_pool2d(known, 3, 1, 1).view_as(disparity)
    return beside > disparity + (JUMP_RATIO * disparity).clamp_min(JUMP_PX)


def new_model(variant: Variant, size: Mapping[str, Any] = SIZE, seed: int = 0) -> StereoRefiner:
    """An untrained network of a variant."""
    torch.manual_seed(seed)
    return StereoRefiner(**size, **variant.switches).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train_variant(
    variant: Variant,
    model: StereoRefiner,
    clips: StereoCrops,
    steps: int,
    *,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    progress: Callable[[str], None] = lambda text: None,
) -> StereoRefiner:
    """Trains in one step from the fill, as at inference, in bfloat16.

    Args:
        variant: what is trained.
        model: the network; it is changed.
        clips: to train on.
        steps: number of steps of `BATCH_CLIPS` clips.
        seed: of the random numbers.
        learning_rate: maximum; it falls to 2 % of it.
        progress: called with a line of text now and then.

    Returns:
        The network of averaged weights.

    Raises:
        InputError: nothing is painted in any clip.
    """
    if not variant.there_and_back:
        clips = clips.take(np.flatnonzero(clips.kind.numpy() == TRUE_PAIR))
    random = np.random.default_rng([seed, 3])
    given, shares = (views_of(clips), VIEW_SHARES) if variant.sides else ((refill(clips),), (1.0,))
    views = [with_painted(view) for view in given]  # of clips that are cut anywhere, there is often nothing to paint
    odds = np.array([share * (len(view) > 0) for share, view in zip(shares, views, strict=True)])
    if not odds.any():
        raise InputError(f"In none of the {len(clips)} clips is there anything to paint; render more of them.")
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    model.train()
    sums, begin = np.zeros(2), time.process_time()
    for step in range(steps):
        rate = min(1, (step + 1) / WARMUP_STEPS) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        view = views[random.choice(len(views), p=odds / odds.sum())]
        batch = crop_batch(view.take(random.choice(len(view), BATCH_CLIPS)), random)
        with torch.autocast("cpu", torch.bfloat16):
            made = model(batch.condition.filled, torch.ones(len(batch.target)), batch.condition).float()
        loss, error = _loss(made, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        sums += error.mean().item(), _error(batch.condition.filled, batch).mean().item()
        if (step + 1) % 50 == 0:
            ours, fill = 10 * np.log10(4 * 50 / sums)
            progress(f"step {step + 1}: {ours:.2f} dB, fill {fill:.2f} dB, {time.process_time() - begin:.0f} CPU s")
            sums[:] = 0
    return average


def _error(images: torch.Tensor, batch: CropBatch) -> torch.Tensor:
    """(b,) mean squared error of the judged pixels of each clip."""
    squared = (images - batch.target).square() * batch.judged
    return squared.flatten(1).sum(1) / (3 * batch.judged.flatten(1).sum(1)).clamp_min(1)


def _loss(made: torch.Tensor, batch: CropBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, squared error of each clip).

    The logarithm of a clip's error is what decibels measure, and clips in which something unforeseeable comes to light,
    which have most of the squared error, do not outweigh all others.
    """
    error = _error(made, batch)
    fill = _error(batch.condition.filled, batch)
    gain = torch.log((error + FLOOR) / (fill + FLOOR)).mean()
    painted = batch.condition.painted
    composed = torch.where(painted > 0.5, made, batch.condition.filled)
    return gain + MOTION_WEIGHT * motion_error(composed, batch.target, batch.flow, batch.judged), error.detach()


@torch.no_grad()
def measure(clips: StereoCrops, make: Callable[[CropBatch, StereoCrops], torch.Tensor]) -> WorldScore:
    """Measures made eyes of validation clips, by world.

    Args:
        clips: true pairs of unseen worlds.
        make: gives the eyes (b, F, 3, H, W) of a batch.
    """
    worlds = np.unique(clips.world.numpy())
    sums = np.zeros((4, len(worlds)))
    for first in range(0, len(clips), MEASURED_AT_ONCE):
        some = clips.take(np.arange(first, min(first + MEASURED_AT_ONCE, len(clips))))
        batch = crop_batch(some)
        made = make(batch, some).float()
        squared = (made - batch.target).square() * batch.judged
        moved = (made[:, 1:] - carry(made[:, :-1], batch.flow[:, 1:])).abs() * GREY_LEVELS
        mask = some.hole[:, 1:] * valid_flow(batch.flow[:, 1:])
        each = (squared, 3 * batch.judged, moved * mask, 3 * mask)
        at = np.searchsorted(worlds, some.world.numpy())
        for row, values in enumerate(each):
            np.add.at(sums[row], at, values.flatten(1).double().sum(1).numpy())
    some_pixels = sums[1] > 0
    return WorldScore(*sums[:, some_pixels])


def of_network(model: StereoRefiner, share: float = 1.0) -> Callable[[CropBatch, StereoCrops], torch.Tensor]:
    """For `measure`: paints with a network, of which a share is mixed into the fill."""

    def make(batch: CropBatch, _: StereoCrops) -> torch.Tensor:
        model.eval()
        condition = batch.condition
        with torch.autocast("cpu", torch.bfloat16):
            made = model(condition.filled, torch.ones(len(batch.target)), condition).float().clamp(-1, 1)
        made = torch.lerp(condition.filled, made, share)
        return torch.where(condition.painted > 0.5, made, condition.filled)

    return make


def of_fill(batch: CropBatch, _: StereoCrops) -> torch.Tensor:
    """For `measure`: memory and background."""
    return batch.condition.filled


def of_background(_: CropBatch, clips: StereoCrops) -> torch.Tensor:
    """For `measure`: background alone."""
    return clips.background.float() / GREY_LEVELS - 1
