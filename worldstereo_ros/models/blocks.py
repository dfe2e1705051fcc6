"""Convolution blocks that the small model's autoencoder and the depth network share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; the identity until trained.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        zero_module(self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape."""
        return x + self.conv2(functional.silu(self.conv1(functional.silu(x))))


class Downsample(nn.Module):
    """Halves the resolution: 2x2 pixels are moved to channels, then a 3x3 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, H/2, W/2)."""
        return self.conv(functional.pixel_unshuffle(x, 2))


class Upsample(nn.Module):
    """Doubles the resolution: a 3x3 convolution, then channels are moved to 2x2 pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, 2H, 2W)."""
        return functional.pixel_shuffle(self.conv(x), 2)


def zero_module(module: nn.Module) -> None:
    """Sets all parameters of a module to zero, so that it outputs zero until trained."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
