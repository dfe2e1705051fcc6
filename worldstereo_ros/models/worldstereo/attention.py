"""Self-attention over references and targets together, with the receptive fields of `masks`."""

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
    Correspondence,
    Group,
    TokenGrid,
    check_correspondence,
    dense_mask,
    mask_formula,
    merged_mask,
    plan_groups,
)
from worldstereo_ros.models.worldstereo.rotary import Rotary, rotate

IMPLEMENTATIONS = ("auto", "groups", "flex", "dense")


@dataclass(frozen=True)
class AttentionPlan:
    """How the blocks attend, made once per forward and shared by all of them.

    Attributes:
        first_query: the first token that asks. Frozen references answer and never ask, so their queries, their
            attention and their feed-forward are not computed.
        attend: None for one attention over everything, else (q, k, v), each (b, L, heads, head_dim), to the output.
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
    """Chooses how to attend.

    Args:
        mode: full, paired or correspondence.
        grid: where the tokens are.
        update_references: False leaves the references out of the queries.
        correspondence: where target tokens land; needed by that mode alone.
        implementation: `groups` calls scaled_dot_product_attention once per group of queries that share their keys,
            `flex` compiles a block-sparse FlexAttention, `dense` is the slow twin with one quadratic mask.
            `auto`: flex for correspondence on CUDA, groups otherwise.
        device: where the tokens are.
        dtype: of the tokens.
        batch: size of the batch.

    Raises:
        ValueError: the correspondence is missing or does not fit the clip.
    """
    first_query = 0 if update_references else grid.reference_tokens
    if mode == "full" and implementation != "dense":
        return AttentionPlan(first_query)
    correspondence = check_correspondence(correspondence, grid, batch) if mode == "correspondence" else None
    if implementation == "auto":
        implementation = "flex" if mode == "correspondence" and device.type == "cuda" else "groups"
    if implementation == "dense":
        mask = None if mode == "full" else dense_mask(grid, correspondence, device)[:, None, first_query:]
        return AttentionPlan(first_query, lambda q, k, v: _sdpa(q, k, v, mask))
    if implementation == "flex":
        return AttentionPlan(first_query, _flex(grid, correspondence, first_query, device))
    asking = [group for group in plan_groups(grid, correspondence) if group.queries.start >= first_query]
    groups = [(group, merged_mask(group, dtype)) for group in asking]
    return AttentionPlan(first_query, lambda q, k, v: attend_groups(groups, first_query, q, k, v))


class StereoAttnProcessor:
    """Attention processor of the self-attention in every block; see `AttentionPlan`."""

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
        """(b, L, dim) tokens, references first, to (b, L - plan.first_query, dim)."""
        asking = hidden_states[:, plan.first_query :]
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            query = query[:, plan.first_query :]
        else:
            query, key, value = attn.to_q(asking), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (t.unflatten(2, (attn.heads, -1)) for t in (attn.norm_q(query), attn.norm_k(key), value))
        query = rotate(query, (rotary_emb[0][:, plan.first_query :], rotary_emb[1][:, plan.first_query :]))
        key = rotate(key, rotary_emb)
        if plan.attend is not None:
            out = plan.attend(query, key, value)
        else:
            out = dispatch_attention_fn(
                query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
            )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_groups(
    groups: list[tuple[Group, torch.Tensor | None]],
    first_query: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """One attention a group; q holds the tokens from `first_query` on, k and v all of them, (b, L, heads, dim)."""
    out = []
    for group, mask in groups:
        asked = slice(group.queries.start - first_query, group.queries.stop - first_query)
        out.append(_sdpa(q[:, asked], _keys(k, group), _keys(v, group), mask))
    return torch.cat(out, dim=1)


def _keys(tokens: torch.Tensor, group: Group) -> torch.Tensor:
    targets = tokens[:, group.targets]
    if group.references is None:
        return targets
    if isinstance(group.references, slice) and group.references.stop == group.targets.start:  # neighbours: no copy
        return tokens[:, group.references.start : group.targets.stop]
    return torch.cat((tokens[:, group.references], targets), dim=1)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(
    grid: TokenGrid, correspondence: Correspondence | None, first_query: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    formula = mask_formula(grid, correspondence, first_query, device)
    batch = 1 if correspondence is None else correspondence.points.shape[0]
    on_gpu = device.type == "cuda"
    blocks = create_block_mask(
        formula, batch, None, grid.tokens - first_query, grid.tokens, device=device, _compile=on_gpu
    )
    kernel = _compiled_flex() if on_gpu else flex_attention

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return kernel(q, k, v, block_mask=blocks).transpose(1, 2)

    return attend
