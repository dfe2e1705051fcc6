"""The control branch (global geometric memory, GGM): conditions the backbone on renderings of the cloud memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import zero_module
from worldstereo_ros.models.worldstereo.rotary import Rotary, RotaryEmbedding
from worldstereo_ros.models.worldstereo.token_sequence import TokenSequence
from worldstereo_ros.utils.errors import InputError


class MaskCameraEmbedding(nn.Module):
    """Embeds hole mask and Plücker rays at pixel resolution as one token per patch; outputs zero until trained.

    Args:
        add_channels: channels of the input.
        mid_channels: channels of the hidden layer.
        out_channels: channels of a token.
        mask_downsample: stride in time. Above 1 (weights for video latents), three zero frames are padded in front.
    """

    def __init__(self, add_channels: int, mid_channels: int, out_channels: int, mask_downsample: int) -> None:
        super().__init__()
        self.pad_front = 3 if mask_downsample > 1 else 0
        kernel = (mask_downsample, 8, 8)
        self.mask_proj = nn.Sequential(
            nn.Conv3d(add_channels, mid_channels, kernel_size=kernel, stride=kernel),
            nn.GroupNorm(mid_channels // 8, mid_channels),
            nn.SiLU(),
        )
        self.mask_zero_proj = nn.Conv3d(mid_channels, out_channels, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        zero_module(self.mask_zero_proj)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Maps (b, add_channels, F, H, W) to tokens (b, F * H/16 * W/16, out_channels)."""
        volume = functional.pad(volume, (0, 0, 0, 0, self.pad_front, 0)) if self.pad_front else volume
        return self.mask_zero_proj(self.mask_proj(volume)).flatten(2).transpose(1, 2)


class ModulatedNorm(nn.Module):
    """Adaptive layer norm: shift, scale and gate are projected from the time embedding."""

    def __init__(self, time_embed_dim: int, dim: int) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(time_embed_dim, 3 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps tokens (b, L, dim) and temb (b, time_embed_dim) to modulated tokens (b, L, dim) and gate (b, 1, dim)."""
        dtype = self.linear.weight.dtype  # norms may stay in float32 in a bfloat16 model
        shift, scale, gate = self.linear(self.silu(temb.to(dtype))).unsqueeze(1).chunk(3, dim=-1)
        normed = self.norm(tokens.to(self.norm.weight.dtype)) * (1 + scale) + shift
        return normed.type_as(tokens), gate.type_as(tokens)


class ControlBlock(nn.Module):
    """Transformer block: self-attention and feed-forward network, both modulated by the time embedding."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, time_embed_dim: int) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(time_embed_dim, dim)
        self.self_attn = WanAttention(
            dim=dim, heads=num_heads, dim_head=dim // num_heads, eps=1e-6, processor=WanAttnProcessor()
        )
        self.norm2 = ModulatedNorm(time_embed_dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Maps tokens (b, L, dim) to the same shape."""
        normed, gate = self.norm1(tokens, temb)
        tokens = tokens + gate * self.self_attn(normed, rotary_emb=rotary)
        normed, gate = self.norm2(tokens, temb)
        return tokens + gate * self.ffn(normed)


class ControlBranch(nn.Module):
    """The control branch; parameter names are those of the published weights under `controlnet.`.

    Args:
        config: `controlnet_cfg` of a checkpoint: conv_out_dim, dim, ffn_dim, num_heads, num_layers, time_embed_dim,
            add_channels, mid_channels, mask_downsample; in small models also `render_prior` and `layout_channels`.
        in_channels: channels of `latent`, those of the backbone's input.
        out_dim: width of the backbone.
        patch_size: (time, rows, columns) of a token in latent pixels.
        out_features: output channels of a token, for `render_head` of models with a `render_prior`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        in_channels: int,
        out_dim: int,
        patch_size: tuple[int, int, int],
        out_features: int = 64,
    ) -> None:
        super().__init__()
        dim, width, layers = config["dim"], config["conv_out_dim"], config["num_layers"]
        self.patch_size = tuple(patch_size)
        self.rope = RotaryEmbedding(dim // config["num_heads"])
        self.controlnet_patch_embedding = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.controlnet_mask_embedding = MaskCameraEmbedding(
            config.get("add_channels", 1),
            config.get("mid_channels", 64),
            width,
            config.get("mask_downsample", 4),
        )
        self.proj_in = nn.Linear(width, dim) if width != dim else nn.Identity()
        self.controlnet_blocks = nn.ModuleList(
            ControlBlock(dim, config["ffn_dim"], config["num_heads"], config["time_embed_dim"]) for _ in range(layers)
        )
        self.proj_out = nn.ModuleList(nn.Linear(dim, out_dim) for _ in range(layers))
        for projection in self.proj_out:
            zero_module(projection)
        # Small models only: replaces the backbone's last layer, see `render_prior.with_render_prior`.
        self.render_head = nn.Linear(out_dim, out_features) if config.get("render_prior") else None
        if self.render_head is not None:
            zero_module(self.render_head)
        # Small models only: embedding of the extrapolated planes, added to the backbone's tokens.
        channels = config.get("layout_channels", 0)
        self.layout_embedding = nn.Conv3d(channels, out_dim, patch_size, stride=patch_size) if channels else None
        if self.layout_embedding is not None:
            zero_module(self.layout_embedding)
        self.sequence = TokenSequence()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] | None = None  # set by the transformer

    def forward(self, latent: torch.Tensor, volume: torch.Tensor, temb: torch.Tensor) -> list[torch.Tensor]:
        """Computes the state after each block; `residual` projects it to the backbone.

        States have the width of the branch: at full size their projections would take five times the memory.

        Args:
            latent: (b, in_channels, F, h, w) first channels of the backbone's input, then the latent of the rendering.
            volume: (b, add_channels, F, H, W) at pixel resolution: hole mask (1 = hole), then Plücker rays.
            temb: (b, time_embed_dim) time embedding of the backbone.

        Returns:
            num_layers tensors (b, L, dim).

        Raises:
            InputError: latent and volume do not have the same number of tokens.
        """
        frames, rows, columns = (n // p for n, p in zip(latent.shape[2:], self.patch_size, strict=True))
        dtype = self.controlnet_patch_embedding.weight.dtype
        tokens = self.controlnet_patch_embedding(latent.to(dtype)).flatten(2).transpose(1, 2)
        mask_tokens = self.controlnet_mask_embedding(volume.to(dtype))
        if mask_tokens.shape != tokens.shape:
            raise InputError(
                f"The rendered latent has {tokens.shape[1]} tokens, but mask and cameras have {mask_tokens.shape[1]}; "
                f"for a latent of {tuple(latent.shape[2:])} they must be 8 times as high and wide, with as many frames."
            )
        tokens = self.proj_in(tokens + mask_tokens)
        cos, sin = self.rope(torch.arange(frames, device=latent.device), rows, columns)
        tokens, cos, sin = self.sequence(tokens, cos, sin)
        rotary = cos, sin
        states = []
        for block in self.controlnet_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing and self._gradient_checkpointing_func:
                tokens = self._gradient_checkpointing_func(block, tokens, temb, rotary)
            else:
                tokens = block(tokens, temb, rotary)
            states.append(tokens)
        return states

    def residual(self, index: int, state: torch.Tensor) -> torch.Tensor:
        """Projects a state to the residual that is added after a block of the backbone.

        Args:
            index: index of the block.
            state: (b, L, dim) state of `forward`.

        Returns:
            (b, L, out_dim).
        """
        return self.proj_out[index](state)
