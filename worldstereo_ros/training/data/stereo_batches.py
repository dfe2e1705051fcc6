"""Training batches of the stereo refiner, made on the device from clips: true pairs, and frames there and back.

A true pair: the left eye is warped by its depth, the right eye is the truth. There and back (SpatialDreamer's "depth
based video generation"): a frame counts as the right eye; the left one is made of it by its depth, then warped back.
What was hidden on the way is a hole, and the frame itself is the truth, whatever errors the depth has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.models.stereo_refiner import StereoCondition
from worldstereo_ros.pipelines.stereo.torch_warp import HOLE, WarpedEyes, fill_background, warp_to_eye
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.stereo_clips import (
    BASE_M,
    INVALID_FLOW,
    MARGIN_PX,
    MAX_DISPARITY_PX,
    NEAR_QUANTILE,
    StereoClip,
)

EXACT_PROB = 0.6  # of the depth of a clip; else it bleeds at edges
WIDEN_PROB = 0.5  # of masks that are united with those of the frame before
MEMORY_PROB = 0.65  # of clips in which other frames saw a part of the holes
MEMORY_SHARE = (0.2, 0.95)  # of the holes of those clips
MEMORY_CELLS_PX = (6, 20)  # size of connected parts that were remembered
MEMORY_BLUR = 0.3  # maximum share of neighbours in remembered colours, which were resampled
COLOUR_STRENGTH = 0.7  # of exposure, white balance, contrast, gamma and noise; 1 = as for other networks
SCALE_NOISE, FRAME_SCALE_NOISE = 0.03, 0.01  # of inexact disparities: within an image, and from frame to frame


@dataclass(frozen=True)
class StereoBatch:
    """b clips of F frames.

    Attributes:
        condition: what the network gets.
        target: (b, F, 3, H, W) in [-1, 1], the true eye.
        flow: (b, F, 2, H, W) from a pixel of the eye to its place in the frame before, see `StereoClip.flow`.
        background: (b, F, 3, H, W) the eye whose holes are filled from the background alone, without memory.
        hole: (b, F, 1, H, W) 1 = not seen by the camera in this frame: painted or remembered.
    """

    condition: StereoCondition
    target: torch.Tensor
    flow: torch.Tensor
    background: torch.Tensor
    hole: torch.Tensor

    def single_frames(self) -> StereoBatch:
        """The same frames, each as a clip of its own."""

        def apart(x: torch.Tensor) -> torch.Tensor:
            return x.flatten(0, 1)[:, None]

        condition = StereoCondition(**{f.name: apart(getattr(self.condition, f.name)) for f in fields(self.condition)})
        others = {f.name: apart(getattr(self, f.name)) for f in fields(self) if f.name != "condition"}
        return StereoBatch(condition, **others)


class ClipPool:
    """The latest clips, on the device; the oldest make room for new ones.

    Attributes:
        count: clips in it.
        added: clips that were ever added.
    """

    def __init__(self, capacity: int, device: torch.device | str) -> None:
        self.capacity, self.device = capacity, torch.device(device)
        self.count = self.added = 0
        self._parts: dict[str, torch.Tensor] = {}

    def add(self, clip: StereoClip) -> None:
        """Adds a clip; all clips of a pool have the same shape."""
        place = self.added % self.capacity
        for f in fields(clip):
            value = getattr(clip, f.name).to(self.device, non_blocking=True)
            if f.name not in self._parts:
                self._parts[f.name] = value.new_zeros((self.capacity, *value.shape))
            self._parts[f.name][place] = value
        self.added += 1
        self.count = min(self.added, self.capacity)

    def take(self, rows: Sequence[int] | np.ndarray) -> StereoClip:
        """Clips (N, T, ...) of these places."""
        index = torch.as_tensor(np.asarray(rows, np.int64)).to(self.device)
        return StereoClip(**{name: part.index_select(0, index) for name, part in self._parts.items()})


def make_batch(
    clips: StereoClip,
    there_and_back: np.ndarray,
    random: np.random.Generator,
    *,
    clean: bool = False,
    memory: torch.Tensor | None = None,
    widen_prob: float = WIDEN_PROB,
    colours: bool = True,
) -> StereoBatch:
    """Makes a batch of clips.

    Args:
        clips: (N, T, ...).
        there_and_back: (N,) bool, frames are rendered there and back, else they are true pairs. Clips without another
            eye are always the former.
        random: random number generator.
        clean: exact depth, masks and colours as they are, for validation; memory is as in training.
        memory: (N, T, H, W + margin) bool, what past frames saw of the eye that is made; None: random parts.
        widen_prob: probability that holes are united with those of the frame before.
        colours: colours vary as between cameras, unless `clean`.
    """
    device = clips.image.device
    n, frames = clips.image.shape[:2]
    generator = torch.Generator(device).manual_seed(int(random.integers(2**62)))
    back = torch.from_numpy(there_and_back).to(device) | (clips.base <= 0)
    frames_seen, frames_other = (
        _as_other_cameras(clips, random) if colours and not clean else (_as_float(clips.image), _as_float(clips.other))
    )
    image = frames_seen.flatten(0, 1)
    exact = _base(clips, back, random)[:, None, None, None] * clips.inverse.float()
    disparity = exact if clean else _made_bad(exact, random, generator, back)
    eye = _warped(image, disparity.flatten(0, 1), back.repeat_interleave(frames))
    crop = (..., slice(None), slice(0, clips.image.shape[-1] - MARGIN_PX))

    def shaped(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (n, frames))

    chosen = back[:, None, None, None, None]
    target = torch.where(chosen, frames_seen, frames_other)[crop]
    flow = torch.where(chosen, clips.flow, clips.other_flow)[crop].float()
    true_disparity = torch.where(chosen[:, :, 0], exact, clips.other_inverse.float() * clips.base.view(-1, 1, 1, 1))[
        crop
    ]
    reference = shaped(torch.where(back.repeat_interleave(frames)[:, None, None, None], eye.reference, image))
    made = WarpedEyes(eye.made.image[crop].contiguous(), eye.made.disparity[crop].contiguous())
    hole = shaped(made.hole)
    if not clean:
        hole = _widened(hole, flow, random, widen_prob)
    remembered = hole & (_memory(hole, random, generator) if memory is None else memory[crop])
    seen = shaped(made.image)
    blur = functional.avg_pool2d(target.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(target)
    share = torch.rand(n, 1, 1, 1, 1, generator=generator, device=device) * MEMORY_BLUR
    known = torch.where(remembered[:, :, None], torch.lerp(target, blur, share), seen)
    known_disparity = torch.where(remembered, true_disparity, shaped(made.disparity))
    painted = hole & ~remembered

    def filled(images: torch.Tensor, disparities: torch.Tensor, holes: torch.Tensor) -> WarpedEyes:
        disparities = torch.where(holes, HOLE, disparities)
        return fill_background(WarpedEyes(images.flatten(0, 1), disparities.flatten(0, 1)))

    complete = filled(known, known_disparity, painted)
    background = filled(seen, shaped(made.disparity), hole)
    condition = StereoCondition(
        shaped(complete.image), painted[:, :, None].float(), remembered[:, :, None].float(),
        shaped(complete.disparity)[:, :, None], reference,
    )  # fmt: skip
    return StereoBatch(condition, target, flow, shaped(background.image), hole[:, :, None].float())


def _as_other_cameras(clips: StereoClip, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of both eyes as another camera takes them, the same one in all frames of a clip.

    How bright hidden places are beside others depends on the light; without this, a network learns that of the worlds.
    """
    both = torch.cat([clips.image, clips.other], dim=1).float() / 255
    seen, other = augment_colours(both, random, strength=COLOUR_STRENGTH).chunk(2, dim=1)
    return seen, other


@dataclass(frozen=True)
class _Made:
    """The made right eye with its holes, and the left eye it is made of."""

    made: WarpedEyes
    reference: torch.Tensor


def _warped(image: torch.Tensor, disparity: torch.Tensor, back: torch.Tensor) -> _Made:
    """Warps to the right eye: of the image, or (where `back`) of the left eye that is made of the image first."""
    reference, source = image, disparity
    if bool(back.any()):
        left = fill_background(warp_to_eye(image[back], disparity[back], eye="left"))
        reference, source = image.clone(), disparity.clone()
        reference[back], source[back] = left.image, left.disparity
    made = warp_to_eye(reference, source, edge_px=1)
    if bool(back.any()):  # edges were widened on the way there
        again = warp_to_eye(reference[back], source[back], edge_px=0)
        made.image[back], made.disparity[back] = again.image, again.disparity
    return _Made(made, reference)


def _as_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def _base(clips: StereoClip, back: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """(N,) metres: of true pairs their own, else any at which nothing is too near."""
    drawn = torch.from_numpy(random.uniform(*BASE_M, len(back)).astype(np.float32)).to(clips.base)
    sample = clips.inverse.float()[:, :, ::4, ::4].flatten(1)
    near = torch.quantile(sample, NEAR_QUANTILE, dim=1).clamp_min(1e-3)
    # A video's depth may have another unit than metres.
    free = torch.where(clips.base > 0, drawn, (drawn / BASE_M[1]) * MAX_DISPARITY_PX / near)
    return torch.where(back, torch.minimum(free, MAX_DISPARITY_PX / near), clips.base)


def _made_bad(
    disparity: torch.Tensor, random: np.random.Generator, generator: torch.Generator, back: torch.Tensor
) -> torch.Tensor:
    """Disparities (N, T, H, W) as depth cameras and networks give them: edges bleed, surfaces are bent.

    Where the truth is another camera's image, surfaces stay in place: else the truth would not fit what is seen.
    """
    out = disparity.clone()
    height, width = disparity.shape[-2:]
    for clip in np.flatnonzero(random.random(len(disparity)) >= EXACT_PROB):
        d = out[clip][:, None]
        kind = random.integers(4)
        if kind == 0:  # a network's resolution
            size = int(random.choice([3, 5, 7]))
            d = functional.avg_pool2d(d, size, 1, size // 2, count_include_pad=False)
        elif kind in (1, 2):  # nearer or farther surfaces are too wide
            sign, size = (1, -1)[kind - 1], int(random.choice([3, 5]))
            d = sign * functional.max_pool2d(sign * d, size, 1, size // 2)
        elif kind == 3:
            factor = float(random.choice([0.25, 0.5]))
            small = functional.interpolate(d, scale_factor=factor, mode="nearest")
            d = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        out[clip] = d[:, 0]
    n, frames = disparity.shape[:2]
    bent = torch.randn(n, 1, 3, 5, generator=generator, device=disparity.device)
    bent = functional.interpolate(bent, size=(height, width), mode="bicubic", align_corners=True) * SCALE_NOISE
    jumps = torch.randn(n, frames, 1, 1, generator=generator, device=disparity.device) * FRAME_SCALE_NOISE
    inexact = torch.from_numpy(random.random(n) >= EXACT_PROB).to(back.device) & back
    return torch.where(inexact[:, None, None, None], out * torch.exp(bent + jumps), out)


def _widened(hole: torch.Tensor, flow: torch.Tensor, random: np.random.Generator, prob: float) -> torch.Tensor:
    """Unites holes (N, T, H, W) with those of the frame before, along the flow (SpatialDreamer's mask refinement)."""
    if hole.shape[1] < 2:
        return hole
    moved = carry(hole[:, :-1, None].float(), flow[:, 1:]) > 0.5
    united = torch.cat([hole[:, :1], hole[:, 1:] | (moved[:, :, 0] & valid_flow(flow[:, 1:])[:, :, 0])], dim=1)
    chosen = torch.from_numpy(random.random(len(hole)) < prob).to(hole.device)
    return torch.where(chosen[:, None, None, None], united, hole)


def _memory(hole: torch.Tensor, random: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
    """(N, T, H, W) bool: parts that other frames saw, connected in space and over time."""
    n, frames, height, width = hole.shape
    cell = int(random.integers(*MEMORY_CELLS_PX))
    size = (height // cell + 2, width // cell + 2)
    still = torch.randn(n, 1, *size, generator=generator, device=hole.device)
    noise = still + 0.5 * torch.randn(n, frames, *size, generator=generator, device=hole.device)
    noise = functional.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
    noise = noise / noise.flatten(1).std(1).clamp_min(1e-6).view(-1, 1, 1, 1)
    share = torch.from_numpy(random.uniform(*MEMORY_SHARE, n)).to(noise)
    level = -torch.special.ndtri(share.clamp(0.01, 0.99))
    some = torch.from_numpy(random.random(n) < MEMORY_PROB).to(hole.device)
    return (noise > level.view(-1, 1, 1, 1)) & some.view(-1, 1, 1, 1)


def valid_flow(flow: torch.Tensor) -> torch.Tensor:
    """(..., 1, H, W) bool: the frame before shows the pixel."""
    return flow.abs().amax(-3, keepdim=True) < INVALID_FLOW / 2


def carry(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Images (b, F, c, H, W) moved along flows (b, F, 2, H, W) to the frame after each."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    flat = flow.flatten(0, 1).float()
    grid = torch.stack([2 * (x + flat[:, 0]) / (width - 1) - 1, 2 * (y + flat[:, 1]) / (height - 1) - 1], dim=-1)
    moved = functional.grid_sample(
        images.flatten(0, 1).float(), grid.clamp(-4, 4), mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return moved.unflatten(0, images.shape[:2])
