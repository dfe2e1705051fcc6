"""Attention blocks over video tokens (b, f, n, width), in space and in time; see `factorised_transformer`."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.worldstereo.rotary import Rotary, apply_rotary_emb
from worldstereo_ros.utils.errors import InputError

MODULATIONS = 6  # shift, scale and gate of the attention, then of the feed-forward network
SHORT = 64  # tokens; of no more, the gradient of the fused attention takes longer on a CPU than that of products
TIME_CHANNELS = 256  # of the sinusoidal embedding of a noise level


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, in float32; with a learned scale."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., channels) to the same shape and dtype."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).type_as(x)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys.

    Args:
        width: channels of the tokens.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary | None = None,
        extra: torch.Tensor | None = None,
        extra_rotary: Rotary | None = None,
        index: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends from tokens to themselves and to further ones.

        Args:
            x: (N, L, width) tokens.
            rotary: cosines and sines (1 or N, L, 1, head_dim) for queries and keys; None = no positions.
            extra: (N, M, width) further tokens, which are keys and values only.
            extra_rotary: their positions.
            index: (N, K) int64, the tokens that are queries; None = all.
            mask: (L or K, L + M) bool, True = the query attends to the key; None = all do.

        Returns:
            (N, L or K, width).
        """
        if index is None:
            q, k, v = self._project(x, 0, 3)
            at = rotary
        else:  # of the others, keys and values alone are needed
            q = self._project(_gather(x, index), 0, 1)[0]
            k, v = self._project(x, 1, 3)
            at = None if rotary is None else (_gather(rotary[0], index), _gather(rotary[1], index))
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None and at is not None:
            q, k = _rotate(q, at), _rotate(k, rotary)
        if extra is not None:
            extra_k, extra_v = self._project(extra, 1, 3)
            extra_k = self.k_norm(extra_k)
            if extra_rotary is not None:
                extra_k = _rotate(extra_k, extra_rotary)
            k, v = torch.cat((k, extra_k), dim=1), torch.cat((v, extra_v), dim=1)
        q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
        if mask is None and q.device.type == "cpu" and torch.is_grad_enabled() and k.shape[2] <= SHORT:
            scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
            attended = scores.softmax(-1).to(v.dtype) @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _project(self, x: torch.Tensor, first: int, end: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (0, 1, 2) from `first` up to `end`, each (N, L, heads, head_dim)."""
        rows = slice(first * x.shape[-1], end * x.shape[-1])
        projected = (
            self.qkv(x) if end - first == 3 else functional.linear(x, self.qkv.weight[rows], self.qkv.bias[rows])
        )
        return projected.unflatten(-1, (end - first, self.heads, -1)).unbind(2)


def _rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """`apply_rotary_emb`; for inference on a CPU by complex numbers, in a third of the time."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.dtype == torch.float64:
        return apply_rotary_emb(x, rotary)
    turn = torch.complex(rotary[0][..., 0::2], rotary[1][..., 0::2]).expand(-1, -1, x.shape[2], -1).contiguous()
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries `index` (N, K) along the second axis of (1 or N, L, ...), (N, K, ...)."""
    where = index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.expand(len(index), *x.shape[1:]).gather(1, where)


class CrossAttention(nn.Module):
    """Attention to the tokens of a text.

    Args:
        width: channels of the tokens.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attends from tokens (b, L, width) to a text (b, M, width); mask (b, M) bool, True = a token of the text."""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask[:, None, None, :]
        )
        return self.proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., width) to the same shape."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class FactorisedBlock(nn.Module):
    """Attention in space or in time, optional attention to a text, and a feed-forward network.

    Args:
        width: channels of the tokens.
        heads: attention heads.
        temporal: attends along frames; else within each frame.
        text: has attention to a text.
        mlp_ratio: hidden channels of the feed-forward network, in widths.

    Raises:
        InputError: the heads do not divide the width, or channels of a head are not even.
    """

    def __init__(
        self, width: int, heads: int, *, temporal: bool = False, text: bool = False, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise InputError(f"width {width} must be an even multiple of heads ({heads}).")
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads) if text else None
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = FeedForward(width, int(width * mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.randn(MODULATIONS, width) / width**0.5)

    def forward(
        self,
        tokens: torch.Tensor,
        modulation: torch.Tensor,
        *,
        rotary: Rotary | None = None,
        extra_keys: torch.Tensor | None = None,
        extra_rotary: Rotary | None = None,
        query_index: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Updates tokens.

        Args:
            tokens: (b, f, n, width).
            modulation: (b, 6 * width), output of the shared projection of the time embedding (`TimeModulation`).
            rotary: cosines and sines of the positions along the attended axis: n places, or f frames.
            extra_keys: (b, f, m, width) further tokens that a spatial block attends to, as they are: neither
                normalised nor modulated here.
            extra_rotary: their positions.
            query_index: (k,) or (b, k) int64 places that are updated; the others stay as they are and are keys only.
            mask: bool, True = a query (first axis) attends to a key, such as the frames before (f, f); None = all do.
            text: (b, M, width) tokens of a text, for blocks with attention to it.
            text_mask: (b, M) bool, True = a token of the text.

        Returns:
            (b, f, n, width).

        Raises:
            InputError: shapes do not fit, or a temporal block was given extra keys.
        """
        b, f, width = self._check(tokens, modulation, extra_keys)
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (self.scale_shift_table + modulation.view(b, MODULATIONS, width))[:, :, None, None]
            .type_as(tokens)
            .unbind(1)
        )
        normed = self.norm1(tokens) * (1 + scale1) + shift1
        where = None
        if query_index is not None:
            where = query_index.to(tokens.device).expand(b, -1)[:, None].expand(b, f, -1)  # (b, f, k)
        chosen = tokens if where is None else _take(tokens, where)
        if self.temporal:
            source = normed if where is None else _take(normed, where)
            flat = source.transpose(1, 2).flatten(0, 1).contiguous()  # linear layers are slow on views
            update = self.attn(flat, rotary, mask=mask).unflatten(0, (b, -1)).transpose(1, 2)
        else:
            flat = normed.flatten(0, 1)
            update = self.attn(
                flat,
                rotary,
                None if extra_keys is None else extra_keys.type_as(flat).flatten(0, 1),
                extra_rotary,
                None if where is None else where.flatten(0, 1),
                mask,
            ).unflatten(0, (b, f))
        x = chosen + gate1 * update
        if self.cross_attn is not None and text is not None:
            x = x + self.cross_attn(x.flatten(1, 2), text, text_mask).unflatten(1, x.shape[1:3])
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        if where is None:
            return x
        return tokens.scatter(2, where[..., None].expand_as(x), x.type_as(tokens))

    def _check(
        self, tokens: torch.Tensor, modulation: torch.Tensor, extra_keys: torch.Tensor | None
    ) -> tuple[int, int, int]:
        width = self.scale_shift_table.shape[1]
        if tokens.ndim != 4 or tokens.shape[3] != width or modulation.shape != (len(tokens), MODULATIONS * width):
            raise InputError(
                f"The tokens have shape {tuple(tokens.shape)} and the modulation {tuple(modulation.shape)}; "
                f"(b, f, n, {width}) and (b, {MODULATIONS * width}) were expected."
            )
        b, f = tokens.shape[:2]
        if extra_keys is not None:
            if self.temporal:
                raise InputError("A temporal block was given extra keys; only spatial blocks take them.")
            if extra_keys.ndim != 4 or extra_keys.shape[:2] != (b, f) or extra_keys.shape[3] != width:
                raise InputError(
                    f"The extra keys have shape {tuple(extra_keys.shape)}; ({b}, {f}, m, {width}) was expected."
                )
        return b, f, width


def _take(tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return tokens.gather(2, where[..., None].expand(-1, -1, -1, tokens.shape[3]))


class TimestepEmbedding(nn.Module):
    """Embeds numbers: sines and cosines, then two linear layers (`mlp.0`, `mlp.2`).

    Args:
        width: channels of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Linear(TIME_CHANNELS, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Maps (b,) to (b, width)."""
        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / half)
        angles = values.float()[:, None] * frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=1).to(next(self.mlp.parameters()).dtype))


def time_modulation(width: int) -> nn.Sequential:
    """The projection that all blocks share (`t_block`): time embedding (b, width) to (b, 6 * width)."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, MODULATIONS * width))


def rotary_positions(positions: torch.Tensor, head_dim: int, theta: float = 10_000.0) -> Rotary:
    """Rotary embedding of positions along one axis.

    Args:
        positions: (L,) or (N, L) numbers, such as frame indices.
        head_dim: channels of an attention head, even.
        theta: base of the frequencies.

    Returns:
        Cosines and sines, each (1 or N, L, 1, head_dim) float32.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] * theta**-exponents
    angles = angles.repeat_interleave(2, dim=-1).unsqueeze(-2)
    angles = angles if angles.ndim == 4 else angles[None]
    return angles.cos(), angles.sin()


def rotary_grid(rows: int, columns: int, head_dim: int, device: torch.device | str, first_column: int = 0) -> Rotary:
    """Rotary embedding of a grid of places: half of a head's channels for rows, half for columns.

    Args:
        rows, columns: size of the grid.
        head_dim: channels of an attention head, a multiple of 4.
        device: device of the result.
        first_column: position of the leftmost column; references get positions beside the frame.

    Returns:
        Cosines and sines, each (1, rows * columns, 1, head_dim) float32.
    """
    y = torch.arange(rows, device=device).repeat_interleave(columns)
    x = torch.arange(first_column, first_column + columns, device=device).repeat(rows)
    # A hundred places are far apart in a grid; frames and words have longer axes.
    parts = [rotary_positions(p, head_dim // 2, theta=100.0) for p in (y, x)]
    return torch.cat([p[0] for p in parts], -1), torch.cat([p[1] for p in parts], -1)


def sine_positions(
    rows: int, columns: int, width: int, device: torch.device | str, *, scale: float = 1.0, base_side: int | None = None
) -> torch.Tensor:
    """Sine positions of a grid as in STDiT3: the first half of the channels for columns, the second for rows.

    Args:
        rows, columns: size of the grid.
        width: channels, a multiple of 4.
        device: device of the result.
        scale: divides the positions; sqrt(height * width) / 512 of the image.
        base_side: both axes are stretched to this many positions; None = one position a place.

    Returns:
        (rows * columns, width) float32.
    """
    half = width // 2
    frequencies = 10_000.0 ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    y, x = (torch.arange(n, device=device, dtype=torch.float32) / scale for n in (rows, columns))
    if base_side is not None:
        y, x = y * base_side / rows, x * base_side / columns
    parts = [torch.outer(p, frequencies) for p in (x.repeat(rows), y.repeat_interleave(columns))]
    return torch.cat([torch.cat((p.sin(), p.cos()), dim=1) for p in parts], dim=1)
