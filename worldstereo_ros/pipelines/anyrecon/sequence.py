"""The sequence of frames that AnyRecon denoises: captures first, then the end of the chunk before, then the targets.

Nothing but its position, its mask and its content tells a frame what it is. The condition frame of a capture is the
photograph and its mask is all 1; that of a target is a render of the cloud whose holes are black, and its mask is 1
where the cloud is seen. Masks are named for what 1 means: `visible`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from worldstereo_ros.utils.errors import InputError

CAPTURE, PREVIOUS, RENDER = "capture", "previous", "render"
MAX_CAPTURES = 10  # of a chunk, in the published code
RENDERS_PER_CHUNK = 35
PREVIOUS_FRAMES = 2  # of the chunk before, which follow the captures
MASK_CHANNELS = 4  # of Wan's mask; one mask is repeated
SIZE_MULTIPLE = 16  # pixels: sides are rounded up to it
VISIBLE_LEVEL = 127  # grey levels above it are visible


@dataclass(frozen=True)
class FrameSource:
    """What a frame of the sequence is made from.

    Attributes:
        kind: `capture`, `previous` or `render`.
        index: number among the frames of its kind; of `previous` counted from the end of the chunk before: -2, -1.
    """

    kind: str
    index: int

    @property
    def white_mask(self) -> bool:
        """Whether all of its pixels are trusted."""
        return self.kind != RENDER


def frame_order(captures: int, previous: int, renders: int) -> list[FrameSource]:
    """The order of the frames in a sequence.

    Args:
        captures: number of captures, in ascending order of their index; at least 1.
        previous: number of frames of the chunk before; 0 for the first chunk.
        renders: number of targets; at least 1.

    Raises:
        InputError: a number is out of range.
    """
    if captures < 1 or previous < 0 or renders < 1:
        raise InputError(
            f"The sequence has {captures} captures, {previous} frames of the chunk before and {renders} targets; at "
            "least 1, 0 and 1 were expected."
        )
    return [
        *(FrameSource(CAPTURE, index) for index in range(captures)),
        *(FrameSource(PREVIOUS, index) for index in range(-previous, 0)),
        *(FrameSource(RENDER, index) for index in range(renders)),
    ]


def published_sparse_frames(frames: int, stride: int = 8) -> int:
    """Frames that the published sparse attention keeps; it loses the others. Ours keeps all of them."""
    return frames // stride * stride


@dataclass(frozen=True)
class SequenceInputs:
    """What stays the same in all denoising steps of one sequence of T frames.

    Attributes:
        frames: (T, 3, H, W) float32 condition frames in [-1, 1] at the size of the model.
        visible: (1, 4, T, H/8, W/8) float32 mask, 1 = visible.
        condition: (1, C, T, H/8, W/8) float32 latents of the frames.
    """

    frames: torch.Tensor
    visible: torch.Tensor
    condition: torch.Tensor

    @property
    def channels(self) -> torch.Tensor:
        """(1, 4 + C, T, H/8, W/8), what follows the noisy latents along the channels."""
        return torch.cat((self.visible, self.condition), dim=1)


@torch.no_grad()
def build_sequence(
    frames: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    size: tuple[int, int],
    autoencoder: Any,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 4,
) -> SequenceInputs:
    """Encodes a sequence, each frame on its own and as a whole.

    Args:
        frames: T images (H', W', 3) uint8 RGB of any size, captures first; holes of renders are black.
        masks: T masks (H'', W'') of any size, uint8 grey levels or bool, white or True = visible.
        size: (height, width) of the model; rounded up to multiples of 16.
        autoencoder: a `KeyframeAutoencoder`.
        device: where the tensors go.
        batch_size: frames that are encoded together.

    Raises:
        InputError: there are no frames, their number is not that of the masks, or one of them is no image.
    """
    if not frames or len(frames) != len(masks):
        raise InputError(
            f"There are {len(frames)} frames and {len(masks)} masks; one mask for each frame was expected."
        )
    height, width = rounded_size(size)
    images = fit_frames(frames, (height, width)).to(device)
    ratio = autoencoder.spatial_compression_ratio
    visible = visible_latents(masks, (height // ratio, width // ratio)).to(device)
    latents = autoencoder.encode(images, batch_size).float().transpose(0, 1)[None]
    return SequenceInputs(images, visible, latents)


def rounded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Rounds (height, width) up to multiples of 16."""
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    return height, width


def fit_frames(frames: Sequence[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """Stretches images to a size with Pillow's bicubic filter, as in the model's training; nothing is cropped.

    Args:
        frames: T images (H', W', 3) uint8 RGB of any size.
        size: (height, width).

    Returns:
        (T, 3, height, width) float32 in [-1, 1].

    Raises:
        InputError: an image has another shape or dtype.
    """
    height, width = size
    fitted = []
    for index, frame in enumerate(frames):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise InputError(
                f"Frame {index} is {frame.dtype} of shape {frame.shape}; a uint8 image of shape (H, W, 3) was expected."
            )
        image = Image.fromarray(np.ascontiguousarray(frame))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        fitted.append(np.asarray(image, dtype=np.float32) * np.float32(2 / 255) - 1)
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()


def visible_latents(masks: Sequence[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """Masks at the size of the latents: the upper left pixel of every cell counts, and frame 0 is visible as a whole.

    Args:
        masks: T masks (H'', W'') of any size, uint8 grey levels or bool, white or True = visible.
        size: (height, width) in latent pixels.

    Returns:
        (1, 4, T, height, width) float32 of 0 and 1, the same in all four channels.

    Raises:
        InputError: a mask has another shape or dtype.
    """
    cells = []
    for index, mask in enumerate(masks):
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_) or 0 in mask.shape:
            raise InputError(
                f"Mask {index} is {mask.dtype} of shape {mask.shape}; uint8 or bool of shape (H, W) was expected."
            )
        seen = mask if mask.dtype == np.bool_ else mask > VISIBLE_LEVEL
        plane = torch.from_numpy(np.ascontiguousarray(seen)).float()[None, None]
        cells.append(functional.interpolate(plane, size=size, mode="nearest")[0, 0])
    visible = torch.stack(cells)
    visible[0] = 1
    return visible[None, None].repeat(1, MASK_CHANNELS, 1, 1, 1)
