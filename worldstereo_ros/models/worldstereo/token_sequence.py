"""Where the tokens of a forward may be split over several processes."""

from __future__ import annotations

import torch
from torch import nn


class TokenSequence(nn.Module):
    """Passes on what it gets; context parallelism (`pipelines.diffusion.sequence_parallel`) splits its outputs."""

    def forward(
        self, tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns tokens (b, L, dim) and their rotary embedding (1, L, 1, head_dim)."""
        return tokens, cos, sin
