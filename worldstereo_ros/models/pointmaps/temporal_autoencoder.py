"""The temporal half of Open-Sora 1.2's video autoencoder: causal convolutions after Magvit-v2 (Yu et al., 2310.05737).

It encodes latents of single frames (b, z, F, h, w) to fewer frames of the same size. Convolutions see no later frames,
normalisations see all frames of a chunk. Modules have the published names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class CausalConv3d(nn.Module):
    """Convolution that sees frames up to its own; zeros stand before the first frame and around each (`conv`)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, time_stride: int = 1, *, bias: bool = True) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - time_stride, 0)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=(time_stride, 1, 1), bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, inputs, F, h, w) to (b, outputs, F / time_stride, h, w)."""
        return self.conv(functional.pad(x, self.padding))


class ResidualBlock3d(nn.Module):
    """Two normalised convolutions beside the input, which a third one projects where channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = CausalConv3d(inputs, outputs, bias=False)
        self.conv2 = CausalConv3d(outputs, outputs, bias=False)
        self.conv3 = CausalConv3d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, inputs, F, h, w) to (b, outputs, F, h, w)."""
        update = self.conv1(functional.silu(self.norm1(x)))
        update = self.conv2(functional.silu(self.norm2(update)))
        return update + (x if self.conv3 is None else self.conv3(x))


def _blocks(inputs: int, outputs: int, count: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock3d(outputs if i else inputs, outputs, groups) for i in range(count))


class TemporalEncoder(nn.Module):
    """Levels of residual blocks; time is halved after a level where `halves` says so."""

    def __init__(
        self, inputs: int, outputs: int, widths: Sequence[int], count: int, halves: Sequence[bool], groups: int
    ):
        super().__init__()
        before = [widths[0], *widths[:-1]]
        self.conv_in = CausalConv3d(inputs, widths[0], bias=False)
        self.block_res_blocks = nn.ModuleList(
            _blocks(first, width, count, groups) for first, width in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, time_stride=2) if half else nn.Identity()
            for width, half in zip(widths, halves, strict=False)
        )
        self.res_blocks = _blocks(widths[-1], widths[-1], count, groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, inputs, F, h, w) to (b, outputs, f, h, w); F is a multiple of the time step."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(functional.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """The encoder's levels in reverse; a convolution to twice the channels gives twice the frames."""

    def __init__(
        self, inputs: int, outputs: int, widths: Sequence[int], count: int, halves: Sequence[bool], groups: int
    ):
        super().__init__()
        before = [*widths[1:], widths[-1]]
        self.halves = tuple(halves)
        self.conv1 = CausalConv3d(inputs, widths[-1])
        self.res_blocks = _blocks(widths[-1], widths[-1], count, groups)
        self.block_res_blocks = nn.ModuleList(
            _blocks(first, width, count, groups) for first, width in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width) if half else nn.Identity()
            for width, half in zip(widths[1:], halves, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, inputs, f, h, w) to (b, outputs, F, h, w)."""
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level and self.halves[level - 1]:
                # Even channels are the earlier frame of each pair, odd ones the later.
                pairs = self.conv_blocks[level - 1](x).unflatten(1, (-1, 2))
                x = pairs.movedim(2, 3).flatten(2, 3)
        return self.conv_out(functional.silu(self.norm1(x)))


class TemporalAutoencoder(nn.Module):
    """Encodes latents of frames in time.

    Args:
        channels: of the latents, before and after.
        width: channels of the first level.
        multipliers: channels of the levels over `width`.
        blocks: residual blocks of a level.
        halves: whether time is halved after each level but the last.
        groups: of the normalisations.
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 4,
        halves: Sequence[bool] = (False, True, True),
        groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [width * each for each in multipliers]
        self.time_step = 2 ** sum(map(bool, halves))
        self.encoder = TemporalEncoder(channels, 2 * channels, widths, blocks, halves, groups)
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv3d(channels, channels, 1)
        self.decoder = TemporalDecoder(channels, channels, widths, blocks, halves, groups)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, channels, F, h, w) to mean and log variance (b, 2 * channels, ceil(F / time_step), h, w)."""
        return self.quant_conv(self.encoder(functional.pad(x, (0, 0, 0, 0, -x.shape[2] % self.time_step, 0))))

    def decode(self, z: torch.Tensor, frames: int) -> torch.Tensor:
        """Maps (b, channels, f, h, w) to (b, channels, frames, h, w)."""
        return self.decoder(self.post_quant_conv(z))[:, :, -frames % self.time_step :]
