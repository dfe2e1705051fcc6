"""Conversion between video tensors and batches of frames, for the autoencoders that work frame by frame."""

from __future__ import annotations

import torch

from worldstereo_ros.utils.errors import InputError


def flatten_frames(x: torch.Tensor, name: str, channels: int) -> tuple[torch.Tensor, int | None]:
    """Moves the frames of a video batch to the batch axis.

    Args:
        x: (N, channels, H, W) frames or (b, channels, F, H, W) videos.
        name: name of the tensor in error texts.
        channels: expected number of channels.

    Returns:
        ((N, channels, H, W) frames, number of videos); the number is None if `x` holds frames.

    Raises:
        InputError: `x` has another shape, or is empty.
    """
    if x.ndim not in (4, 5) or x.shape[1] != channels or 0 in x.shape:
        expected = f"(N, {channels}, H, W) or (b, {channels}, F, H, W)"
        raise InputError(f"{name} has shape {tuple(x.shape)}; {expected} was expected.")
    return (x, None) if x.ndim == 4 else (x.transpose(1, 2).flatten(0, 1), len(x))


def unflatten_frames(x: torch.Tensor, num_videos: int | None) -> torch.Tensor:
    """Inverse of `flatten_frames`.

    Args:
        x: (N, C, H, W) frames.
        num_videos: number of videos, or None to leave the frames as they are.

    Returns:
        (num_videos, C, F, H, W) videos, or `x`.
    """
    return x if num_videos is None else x.unflatten(0, (num_videos, -1)).transpose(1, 2)
