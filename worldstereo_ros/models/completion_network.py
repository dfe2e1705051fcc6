"""A small U-Net that tells from the cells of a grid that were seen how probably the others are occupied.

The worlds of a robot repeat themselves: a facade has a house behind it, a row of racks continues, a room has four
sides. The network learned that from grids of procedural worlds (`scripts/train_completion.py`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (24, 32, 48, 64, 64)  # channels at 1/2, 1/4, ... of the resolution
MULTIPLE = 2 ** len(WIDTHS)  # of which the height and width of the input must be


class CompletionNetwork(nn.Module):
    """Logits of P(occupied) from what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(8, WIDTHS[0]), *(_block(a, b) for a, b in pairwise(WIDTHS))])
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(WIDTHS))
        self.out = nn.Conv2d(WIDTHS[0], 4, 3, padding=1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Completes grids.

        Args:
            seen: (B, 2, Y, X) 1 = seen free, and 1 = seen occupied; else 0. Y and X are multiples of `MULTIPLE`.

        Returns:
            (B, Y, X) logits of P(occupied).
        """
        x, skips = functional.pixel_unshuffle(seen, 2), []
        for level, block in enumerate(self.down):
            x = block(functional.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([skips[level], functional.interpolate(x, scale_factor=2.0, mode="nearest")], dim=1)
            x = self.up[level](x)
        return functional.pixel_shuffle(self.out(x), 2)[:, 0]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
