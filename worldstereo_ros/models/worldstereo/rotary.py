"""Rotary positions of video tokens: the angle of a token follows from its keyframe, row and column."""

from __future__ import annotations

import torch
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding(nn.Module):
    """Three-axis rotary embedding as in Wan: the head is split into a time, a row and a column part.

    It holds no tensors, so that neither `.to(dtype)` nor a build on the meta device can spoil its precision.

    Args:
        head_dim: channels of one attention head.
        theta: the longest wavelength is about `2 * pi * theta` tokens.
    """

    def __init__(self, head_dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.theta = theta
        across = 2 * (head_dim // 6)
        self.split = (head_dim - 2 * across, across, across)

    def forward(self, frames: torch.Tensor, rows: int, columns: int, first_column: int = 0) -> Rotary:
        """Cosines and sines, each (1, len(frames) * rows * columns, 1, head_dim) float32, every value twice in a row.

        Args:
            frames: (F,) positions in time; the result lies on its device.
            rows: tokens from top to bottom.
            columns: tokens from left to right.
            first_column: position of the leftmost token. References stand to the right of their target keyframe
                ("stereo stitching"): frames = keyframe, first_column = columns.
        """
        device = frames.device
        positions = (
            frames,
            torch.arange(rows, device=device),
            torch.arange(first_column, first_column + columns, device=device),
        )
        grid = (len(frames), rows, columns)
        angles = []
        for axis, (at, dim) in enumerate(zip(positions, self.split, strict=True)):
            steps = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
            table = torch.outer(at.to(torch.float64), self.theta**-steps)
            shape = [1, 1, 1, -1]
            shape[axis] = len(at)
            angles.append(table.view(shape).expand(*grid, -1))
        # Both channels of a rotated pair share one angle, which is the layout that diffusers' attention expects.
        angle = torch.cat(angles, dim=-1).reshape(1, len(frames) * rows * columns, 1, -1).repeat_interleave(2, dim=-1)
        return angle.cos().float(), angle.sin().float()


def rotate(tokens: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turns channel pairs of (b, L, heads, head_dim) by their angles; computed in float32, returned in its own type."""
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 0::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(tokens)
