"""Modules that are traced for ONNX: those of `models`, written with dynamic numbers of frames and dynamic sizes."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBlock, ControlBranch


class ControlBranchWrapper(nn.Module):
    """The control branch from (latent, volume, temb) to its states or offsets.

    Rotary angles come from tables with `max_positions` entries for each axis, computed in float64 as in the branch:
    trigonometric functions in double precision are not supported by every runtime.

    Args:
        branch: control branch on the CPU.
        fused: attention by onnxruntime's MultiHeadAttention; the module can then be traced, but not called.
        offsets: project the states to the backbone's width.
    """

    max_positions = 1024

    def __init__(self, branch: ControlBranch, *, fused: bool, offsets: bool) -> None:
        super().__init__()
        self.branch, self.fused, self.offsets = branch, fused, offsets
        for axis, dim in enumerate(branch.rope.split):
            exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
            positions = torch.arange(self.max_positions, dtype=torch.float64)
            angles = torch.outer(positions, branch.rope.theta**-exponents)
            self.register_buffer(f"cos_{axis}", angles.cos().float(), persistent=False)
            self.register_buffer(f"sin_{axis}", angles.sin().float(), persistent=False)

    def forward(self, latent: torch.Tensor, volume: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes `ControlBranch.forward`, and `ControlBranch.residual` with `offsets`."""
        branch = self.branch
        frames, rows, columns = (n // p for n, p in zip(latent.shape[2:], branch.patch_size, strict=True))
        tokens = branch.controlnet_patch_embedding(latent).flatten(2).transpose(1, 2)
        tokens = branch.proj_in(tokens + branch.controlnet_mask_embedding(volume))
        cos, sin = (self._lookup(name, (frames, rows, columns)) for name in ("cos", "sin"))
        outputs = []
        for index, block in enumerate(branch.controlnet_blocks):
            tokens = self._block(cast(ControlBlock, block), tokens, temb, cos, sin)
            outputs.append(branch.proj_out[index](tokens) if self.offsets else tokens)
        return tuple(outputs)

    def _lookup(self, name: str, grid: tuple[int, int, int]) -> torch.Tensor:
        """Returns the cosines or sines of a grid of tokens, (1, tokens, 1, half the head's channels)."""
        parts = []
        for axis, count in enumerate(grid):
            table = getattr(self, f"{name}_{axis}")[:count]
            shape = [1, 1, 1, table.shape[-1]]
            shape[axis] = count
            parts.append(table.reshape(shape).expand(*grid, table.shape[-1]))
        width = sum(part.shape[-1] for part in parts)
        return torch.cat(parts, dim=-1).reshape(1, -1, 1, width)

    def _block(
        self, block: ControlBlock, tokens: torch.Tensor, temb: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        attention = block.self_attn
        x, gate = block.norm1(tokens, temb)
        query, key = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x))
        value = attention.to_v(x)
        heads = attention.heads
        query, key = (_apply_rotary_emb(t.unflatten(2, (heads, -1)), cos, sin).type_as(value) for t in (query, key))
        if self.fused:
            out = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (query.flatten(2), key.flatten(2), value),
                {"num_heads": heads},
                dtype=value.dtype,
                shape=value.shape,
                version=1,
            )
        else:
            value = value.unflatten(2, (heads, -1))
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            out = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate * attention.to_out[0](out)  # to_out[1] is dropout
        x, gate = block.norm2(tokens, temb)
        return tokens + gate * block.ffn(x)


def _apply_rotary_emb(tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = tokens.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class EncoderWrapper(nn.Module):
    """The encoder of an autoencoder, with normalised latents."""

    def __init__(self, model: KeyframeAutoencoder | ImageAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, 8h, 8w) in [-1, 1] to latents (N, 16, h, w)."""
        return self.model.encode_batch(images).to(images.dtype)


class DecoderWrapper(nn.Module):
    """The decoder of an autoencoder, with normalised latents."""

    def __init__(self, model: KeyframeAutoencoder | ImageAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps latents (N, 16, h, w) to images (N, 3, 8h, 8w) in [-1, 1]."""
        return self.model.decode_batch(latents).to(latents.dtype)
