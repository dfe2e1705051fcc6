"""Rotary position embedding of video tokens, from their keyframe, row and column."""

from __future__ import annotations

import torch
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines


class RotaryEmbedding(nn.Module):
    """Three-axis rotary embedding of Wan: the channels of a head are split into a time, a row and a column part.

    It has no buffers, so that neither `.to(dtype)` nor the meta device affects its precision.

    Args:
        head_dim: channels of an attention head.
        theta: base of the frequencies; the longest wavelength is about `2 * pi * theta` tokens.
    """

    def __init__(self, head_dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.theta = theta
        spatial_dim = 2 * (head_dim // 6)
        self.split = (head_dim - 2 * spatial_dim, spatial_dim, spatial_dim)

    def forward(self, frames: torch.Tensor, rows: int, columns: int, first_column: int = 0) -> Rotary:
        """Computes cosines and sines for a grid of tokens.

        Args:
            frames: (F,) positions in time; the result is on the same device.
            rows: rows of tokens.
            columns: columns of tokens.
            first_column: position of the leftmost column. References get the positions to the right of their target
                keyframe ("stereo stitching"): `frames` = keyframe, `first_column` = `columns`.

        Returns:
            Cosines and sines, each (1, F * rows * columns, 1, head_dim) float32, each value repeated twice.
        """
        device = frames.device
        positions = (
            frames,
            torch.arange(rows, device=device),
            torch.arange(first_column, first_column + columns, device=device),
        )
        grid = (len(frames), rows, columns)
        angles = []
        for axis, (position, dim) in enumerate(zip(positions, self.split, strict=True)):
            exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
            table = torch.outer(position.to(torch.float64), self.theta**-exponents)
            shape = [1, 1, 1, -1]
            shape[axis] = len(position)
            angles.append(table.view(shape).expand(*grid, -1))
        # Both channels of a pair have the same angle, the layout that diffusers' attention processors expect.
        angle = torch.cat(angles, dim=-1).reshape(1, len(frames) * rows * columns, 1, -1).repeat_interleave(2, dim=-1)
        return angle.cos().float(), angle.sin().float()


def apply_rotary_emb(tokens: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotates channel pairs by the angles of a rotary embedding, in float32.

    Args:
        tokens: (b, L, heads, head_dim) queries or keys.
        rotary: cosines and sines of `RotaryEmbedding`.

    Returns:
        Rotated tokens, same shape and dtype.
    """
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 0::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(tokens)
