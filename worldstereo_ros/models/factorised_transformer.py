"""Transformer over video tokens that attends in space and in time by turns, as Open-Sora's STDiT3.

Tokens (b, f, n, width) are n places of f frames. A spatial block attends within each frame, a temporal block along the
frames of each place. Both are modulated by the noise level (adaLN-single, Chen et al., PixArt, arXiv 2310.00426: one
projection `t_block` for all blocks, and a table for each), normalise queries and keys (RMS), and end with a
feed-forward network. Parameters have STDiT3's names, so that its weights fit a model of the same size. Unlike there,
attention may have further keys (tokens of reference images), and a part of the tokens alone may be updated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from worldstereo_ros.models.blocks import zero_module
from worldstereo_ros.models.factorised_blocks import (
    FactorisedBlock,
    TimestepEmbedding,
    rotary_grid,
    rotary_positions,
    sine_positions,
    time_modulation,
)
from worldstereo_ros.utils.errors import InputError

__all__ = [
    "FactorisedBlock",
    "FactorisedTransformer",
    "TimestepEmbedding",
    "rotary_grid",
    "rotary_positions",
    "sine_positions",
    "time_modulation",
]

BASE_SIDE = 512  # side of the square images that sine positions were trained with


class PatchEmbedding(nn.Module):
    """Cuts a video into patches and projects each to a token (`proj`)."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(channels, width, patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (b, channels, F, H, W) to (b, f, n, width)."""
        b, channels, frames, rows, columns = x.shape
        pt, ph, pw = self.patch
        cells = x.reshape(b, channels, frames // pt, pt, rows // ph, ph, columns // pw, pw)
        cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)
        # A matrix product: a 3-D convolution with as large a stride is slow.
        return functional.linear(cells, self.proj.weight.flatten(1), self.proj.bias)


class FinalLayer(nn.Module):
    """Normalisation, modulation by the time embedding alone, and a linear layer; outputs zero until trained."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        zero_module(self.linear)

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Maps tokens (b, f, n, width) and a time embedding (b, width) to (b, f, n, channels)."""
        shift, scale = (self.scale_shift_table + time[:, None])[:, :, None, None].type_as(tokens).unbind(1)
        return self.linear(self.norm_final(tokens) * (1 + scale) + shift)


class TextEmbedding(nn.Module):
    """Projects a text's embeddings (`y_proj`); `y_embedding` is the embedding of no text."""

    def __init__(self, channels: int, width: int, length: int) -> None:
        super().__init__()
        self.y_proj = nn.ModuleDict({"fc1": nn.Linear(channels, width), "fc2": nn.Linear(width, width)})
        self.register_buffer("y_embedding", torch.randn(length, channels) / channels**0.5)

    def forward(self, text: torch.Tensor | None, batch: int) -> torch.Tensor:
        """Maps (b, M, channels), or None = no text, to (b, M, width)."""
        text = self.get_buffer("y_embedding").expand(batch, -1, -1) if text is None else text
        return self.y_proj["fc2"](functional.gelu(self.y_proj["fc1"](text), approximate="tanh"))


class FactorisedTransformer(ModelMixin, ConfigMixin):
    """Spatial and temporal blocks by turns over a video's patches; without a text unless `text_dim` is given.

    Args:
        in_channels, out_channels: channels of the videos.
        width: channels of the tokens.
        heads: attention heads.
        depth: pairs of a spatial and a temporal block.
        patch: frames, rows and columns of a patch.
        mlp_ratio: hidden channels of the feed-forward networks, in widths.
        text_dim: channels of a text's embeddings; None = no text.
        text_length: tokens of a text.
        fps: has an embedding of the frame rate.

    The defaults are the size of STDiT3-XL/2, whose first four output channels are the velocity.
    """

    recompute = False  # activations of blocks for gradients, instead of keeping them

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 8,
        width: int = 1152,
        heads: int = 16,
        depth: int = 28,
        patch: tuple[int, int, int] = (1, 2, 2),
        mlp_ratio: float = 4.0,
        text_dim: int | None = 4096,
        text_length: int = 300,
        fps: bool = True,
    ) -> None:
        super().__init__()
        self.x_embedder = PatchEmbedding(in_channels, width, (patch[0], patch[1], patch[2]))
        self.t_embedder = TimestepEmbedding(width)
        self.fps_embedder = TimestepEmbedding(width) if fps else None
        self.t_block = time_modulation(width)
        self.y_embedder = TextEmbedding(text_dim, width, text_length) if text_dim else None
        blocks = [
            [
                FactorisedBlock(width, heads, temporal=temporal, text=bool(text_dim), mlp_ratio=mlp_ratio)
                for _ in range(depth)
            ]
            for temporal in (False, True)
        ]
        self.spatial_blocks, self.temporal_blocks = (nn.ModuleList(each) for each in blocks)
        self.final_layer = FinalLayer(width, math.prod(patch) * out_channels)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        image_size: tuple[int, int] | None = None,
        extra_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicts a video; see `features` for the arguments.

        Returns:
            (b, out_channels, F, H, W).
        """
        tokens, time = self.features(
            x, timestep, text=text, text_mask=text_mask, fps=fps, image_size=image_size, extra_tokens=extra_tokens
        )
        return self.unpatch(self.final_layer(tokens, time), x.shape[2:])

    def features(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        image_size: tuple[int, int] | None = None,
        extra_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the tokens before the last layer.

        Args:
            x: (b, in_channels, F, H, W); F, H and W multiples of the patch.
            timestep: (b,) noise level times 1000; 1000 is pure noise.
            text: (b, M, text_dim) embeddings of a text; None = no text.
            text_mask: (b, M) bool, True = a token of the text.
            fps: (b,) frames a second.
            image_size: height and width of the images that positions are scaled by; None = 8 pixels a latent.
            extra_tokens: (b, f, n, width) added to the tokens of the patches.

        Returns:
            Tokens (b, f, n, width), and the time embedding (b, width).

        Raises:
            InputError: `x` has another shape.
        """
        patch = self.x_embedder.patch
        if (
            x.ndim != 5
            or x.shape[1] != self.config.in_channels
            or any(size % step for size, step in zip(x.shape[2:], patch, strict=True))
        ):
            raise InputError(
                f"The video has shape {tuple(x.shape)}; (b, {self.config.in_channels}, F, H, W) with multiples of "
                f"{tuple(patch)} was expected."
            )
        rows, columns = x.shape[3] // patch[1], x.shape[4] // patch[2]
        height, width = image_size or (8 * x.shape[3], 8 * x.shape[4])
        tokens = self.x_embedder(x)
        if torch.is_autocast_enabled(x.device.type):
            tokens = tokens.float()  # what blocks add to stays exact
        places = sine_positions(
            rows, columns, self.config.width, x.device,
            scale=math.sqrt(height * width) / BASE_SIDE, base_side=round(math.sqrt(rows * columns)),
        )  # fmt: skip
        tokens = tokens + places.type_as(tokens)
        if extra_tokens is not None:
            tokens = tokens + extra_tokens.type_as(tokens)
        time = self.t_embedder(timestep)
        if self.fps_embedder is not None and fps is not None:
            time = time + self.fps_embedder(fps)
        modulation = self.t_block(time)
        words = None if self.y_embedder is None else self.y_embedder(text, len(x))
        frames = torch.arange(tokens.shape[1], device=x.device)
        rotary = rotary_positions(frames, self.config.width // self.config.heads)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            for block, where in ((spatial, None), (temporal, rotary)):
                run = partial(block, rotary=where, text=words, text_mask=text_mask)
                if self.recompute and torch.is_grad_enabled():
                    tokens = checkpoint(run, tokens, modulation, use_reentrant=False)
                else:
                    tokens = run(tokens, modulation)
        return tokens, time

    def unpatch(self, patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Puts patches (b, f, n, patch * out_channels) together to a video (b, out_channels, F, H, W)."""
        pt, ph, pw = self.x_embedder.patch
        f, h, w = size[0] // pt, size[1] // ph, size[2] // pw
        x = patches.view(len(patches), f, h, w, pt, ph, pw, -1)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(patches), -1, f * pt, h * ph, w * pw)
