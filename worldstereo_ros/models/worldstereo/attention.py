"""Self-attention over reference and target tokens, with the masks of `masks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch.nn import functional

from worldstereo_ros.models.worldstereo.masks import (
    AttentionGroup,
    Correspondence,
    TokenGrid,
    additive_mask,
    check_correspondence,
    dense_mask,
    make_mask_mod,
    plan_groups,
)
from worldstereo_ros.models.worldstereo.rotary import Rotary, apply_rotary_emb

IMPLEMENTATIONS = ("auto", "groups", "flex", "dense")


@dataclass(frozen=True)
class AttentionPlan:
    """The self-attention of all blocks, prepared once per forward.

    Attributes:
        first_query: first token that is a query. Frozen references are keys and values only, so that their queries,
            their attention and their feed-forward are not computed.
        attend: function of (q, k, v), each (b, L, heads, head_dim), to the output; None = attention without a mask.
    """

    first_query: int = 0
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None


def make_attention_plan(
    mode: str,
    grid: TokenGrid,
    *,
    update_references: bool,
    correspondence: Correspondence | None = None,
    implementation: str = "auto",
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> AttentionPlan:
    """Prepares the self-attention of a forward.

    Args:
        mode: `full`, `paired` or `correspondence`, see `masks`.
        grid: layout of the tokens.
        update_references: False leaves the references out of the queries.
        correspondence: projections of the target tokens, for the mode `correspondence`.
        implementation: `groups` calls scaled_dot_product_attention for each group of queries with the same keys,
            `flex` compiles a block-sparse FlexAttention, `dense` uses one quadratic mask (slow, for tests), `auto` is
            `flex` for `correspondence` on CUDA and `groups` otherwise.
        device: device of the tokens.
        dtype: dtype of the tokens.
        batch: batch size.

    Raises:
        InputError: the correspondence is missing or does not fit the clip.
    """
    first_query = 0 if update_references else grid.num_reference_tokens
    if mode == "full" and implementation != "dense":
        return AttentionPlan(first_query)
    correspondence = check_correspondence(correspondence, grid, batch) if mode == "correspondence" else None
    if implementation == "auto":
        implementation = "flex" if mode == "correspondence" and device.type == "cuda" else "groups"
    if implementation == "dense":
        mask = None if mode == "full" else dense_mask(grid, correspondence, device)[:, None, first_query:]
        return AttentionPlan(first_query, lambda q, k, v: scaled_dot_product(q, k, v, mask))
    if implementation == "flex":
        return AttentionPlan(first_query, _flex(grid, correspondence, first_query, device))
    groups = [
        (group, additive_mask(group, dtype))
        for group in plan_groups(grid, correspondence)
        if group.queries.start >= first_query
    ]
    return AttentionPlan(first_query, lambda q, k, v: attend_groups(groups, first_query, q, k, v))


class StereoAttnProcessor:
    """Attention processor of the self-attention of all blocks; see `AttentionPlan`."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Rotary,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Maps tokens (b, L, dim), references first, to (b, L - plan.first_query, dim)."""
        query_states = hidden_states[:, plan.first_query :]
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            query = query[:, plan.first_query :]
        else:
            query, key, value = attn.to_q(query_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (t.unflatten(2, (attn.heads, -1)) for t in (attn.norm_q(query), attn.norm_k(key), value))
        query = apply_rotary_emb(query, (rotary_emb[0][:, plan.first_query :], rotary_emb[1][:, plan.first_query :]))
        key = apply_rotary_emb(key, rotary_emb)
        if plan.attend is not None:
            out = plan.attend(query, key, value)
        else:
            out = dispatch_attention_fn(
                query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
            )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))


def scaled_dot_product(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of (b, L, heads, head_dim) queries to (b, M, heads, head_dim) keys; mask None = to all of them."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_groups(
    groups: list[tuple[AttentionGroup, torch.Tensor | None]],
    first_query: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """Computes attention group by group.

    Args:
        groups: groups and their additive masks, in the order of the tokens.
        first_query: token that query 0 is.
        q: (b, L - first_query, heads, head_dim) queries.
        k: (b, L, heads, head_dim) keys.
        v: (b, L, heads, head_dim) values.

    Returns:
        Output of the shape of `q`.
    """
    out = []
    for group, mask in groups:
        queries = slice(group.queries.start - first_query, group.queries.stop - first_query)
        out.append(scaled_dot_product(q[:, queries], _select_keys(k, group), _select_keys(v, group), mask))
    return torch.cat(out, dim=1)


def _select_keys(tokens: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    targets = tokens[:, group.targets]
    if group.references is None:
        return targets
    if isinstance(group.references, slice) and group.references.stop == group.targets.start:  # adjacent: no copy
        return tokens[:, group.references.start : group.targets.stop]
    return torch.cat((tokens[:, group.references], targets), dim=1)


def compiled_flex_attention(device: torch.device) -> Any:
    """FlexAttention, compiled for CUDA devices; elsewhere as it is, which is slow."""
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled_flex() if device.type == "cuda" else flex_attention


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(
    grid: TokenGrid, correspondence: Correspondence | None, first_query: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask

    mask_mod = make_mask_mod(grid, correspondence, first_query, device)
    batch = 1 if correspondence is None else correspondence.points.shape[0]
    on_gpu = device.type == "cuda"
    blocks = create_block_mask(
        mask_mod, batch, None, grid.num_tokens - first_query, grid.num_tokens, device=device, _compile=on_gpu
    )
    kernel = compiled_flex_attention(device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return kernel(q, k, v, block_mask=blocks).transpose(1, 2)

    return attend
