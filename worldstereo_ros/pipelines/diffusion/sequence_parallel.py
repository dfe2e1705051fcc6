"""Sequence parallelism (Ulysses) and sharded weights (FSDP2) for a transformer on several GPUs.

The tokens of a clip are split evenly over the processes. All layers but attention work on single tokens. For attention,
an all-to-all exchanges "own tokens, all heads" for "all tokens, own heads", and back (DeepSpeed-Ulysses,
arXiv 2309.14509). This is done in hooks, by which the blocks get other tokens and another attention plan. The model is
not changed, and all modes of reference attention are supported.

Each process must call the transformer with the same inputs (see `distributed`) and gets the whole result.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from worldstereo_ros.models.worldstereo.attention import AttentionPlan, StereoAttnProcessor
from worldstereo_ros.models.worldstereo.rotary import Rotary
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer
from worldstereo_ros.utils.errors import InputError

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def enable_sequence_parallel(transformer: WorldStereoTransformer, group: dist.ProcessGroup | None = None) -> None:
    """Splits the tokens of each forward over the processes of a group; the output is the same in all processes.

    Args:
        transformer: the same in each process, in evaluation mode. This cannot be undone.
        group: process group; None = all processes.

    Raises:
        InputError: the number of heads is not a multiple of the number of processes.
    """
    count = dist.get_world_size(group)
    heads = [transformer.config.num_attention_heads]
    control = transformer.controlnet
    if control is not None:
        heads.append(transformer.config.controlnet_cfg["num_heads"])
    if any(number % count for number in heads):
        raise InputError(
            f"The model has {' and '.join(map(str, heads))} heads, which are not multiples of {count} processes; "
            "start a number of processes that divides them."
        )
    backbone = _TokenShard(group)
    for block in transformer.blocks:
        block.register_forward_pre_hook(backbone.scatter_hook)
    transformer.norm_out.register_forward_pre_hook(backbone.gather_hook)
    if control is not None:
        branch = _TokenShard(group)
        for block in control.controlnet_blocks:
            attention: Any = block.self_attn
            attention.set_processor(_ControlBranchProcessor(branch))
            block.register_forward_pre_hook(branch.scatter_branch_hook)
        control.register_forward_hook(branch.reset_hook)

        def check_branch(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
            if transformer.controlnet is not control:
                raise InputError(
                    "The control branch was replaced after sequence parallelism was enabled; use control_backend torch "
                    "with several processes."
                )

        transformer.register_forward_pre_hook(check_branch)


def shard_weights(transformer: WorldStereoTransformer, mesh: Any) -> None:
    """Shards the weights over the processes (FSDP2); those of a block are gathered while it is computed.

    Args:
        transformer: transformer with all its weights, on the CPU or the device.
        mesh: one-dimensional `torch.distributed.device_mesh.DeviceMesh` of the devices that hold the shards.
    """
    from torch.distributed.fsdp import fully_shard

    modules: list[nn.Module] = list(transformer.blocks)
    if transformer.controlnet is not None:
        modules += transformer.controlnet.controlnet_blocks
    modules.append(transformer)
    for module in modules:
        fully_shard(module, mesh=mesh)


class _TokenShard:
    """The tokens of a clip that this process computes, from the first block of a forward to the last."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.count, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.plan: AttentionPlan | None = None
        self.rotary: Rotary | None = None
        self.targets: list[int] = []

    # --- hooks ---

    def scatter_hook(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before a block: keeps the own tokens at the first one, and passes rotary embedding and plan for them."""
        tokens, references, context, modulation, rotary, plan = arguments
        if self.plan is None:
            num_references = 0 if references is None else references.shape[1]
            self._start(num_references, tokens.shape[1], rotary, plan)
            tokens = self._own_part(tokens, self.targets)
            if references is not None:
                references = self._own_part(references, _split_evenly(num_references, self.count))
        return tokens, references, context, modulation, self.rotary, self.plan

    def scatter_branch_hook(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before a block of the control branch, see `scatter_hook`."""
        tokens, temb, rotary = arguments
        if self.plan is None:
            self._start(0, tokens.shape[1], rotary, AttentionPlan())
            tokens = self._own_part(tokens, self.targets)
        return tokens, temb, self.rotary

    def gather_hook(self, _norm: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gathers the target tokens of all processes."""
        (tokens,) = arguments
        sizes = self.targets
        self.plan = self.rotary = None
        padded = tokens.new_zeros(tokens.shape[0], max(sizes), tokens.shape[2])
        padded[:, : tokens.shape[1]] = tokens
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return (torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1),)

    def reset_hook(self, *_: Any) -> None:
        """After the control branch: ends the forward."""
        self.plan = self.rotary = None

    # --- sharding ---

    def _start(self, num_references: int, num_targets: int, rotary: Rotary, plan: AttentionPlan) -> None:
        references, targets = _split_evenly(num_references, self.count), _split_evenly(num_targets, self.count)
        self.targets = targets
        cos, sin = (
            torch.cat(
                (self._own_part(t[:, :num_references], references), self._own_part(t[:, num_references:], targets)),
                dim=1,
            )
            for t in rotary
        )
        self.rotary = (cos, sin)
        keys = [r + t for r, t in zip(references, targets, strict=True)]
        queries = targets if plan.first_query else keys
        order = _gathered_order(references, targets, rotary[0].device) if num_references else None
        attend = plan.attend or (lambda q, k, v: dispatch_attention_fn(q, k, v))
        self.plan = AttentionPlan(
            references[self.rank] if plan.first_query else 0,
            self._with_exchange(attend, keys, queries, order, None if plan.first_query else order),
        )

    def _own_part(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        return tokens.split(sizes, dim=1)[self.rank]

    def _with_exchange(
        self,
        attend: AttentionFunction,
        keys: list[int],
        queries: list[int],
        key_order: torch.Tensor | None,
        query_order: torch.Tensor | None,
    ) -> AttentionFunction:
        """Wraps an attention function: it gets all tokens of the own heads, ordered [all references, all targets]."""

        def attend_exchanged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q = _reorder(self._to_heads(q, queries), query_order)
            k, v = (_reorder(self._to_heads(t, keys), key_order) for t in (k, v))
            out = attend(q, k, v)
            return self._to_tokens(out if query_order is None else _restore_order(out, query_order), queries)

        return attend_exchanged

    def _to_heads(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Exchanges (b, own tokens, heads, d) for (b, all tokens in the order of the processes, own heads, d)."""
        own_tokens = tokens.shape[1]
        sent = tokens.unflatten(2, (self.count, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1).contiguous()
        received = sent.new_empty(sum(sizes), *sent.shape[1:])
        dist.all_to_all_single(received, sent, sizes, [own_tokens] * self.count, group=self.group)
        return received.transpose(0, 1)

    def _to_tokens(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The inverse of `_to_heads`."""
        own_tokens = sizes[self.rank]
        sent = tokens.transpose(0, 1).contiguous()
        received = sent.new_empty(self.count * own_tokens, *sent.shape[1:])
        dist.all_to_all_single(received, sent, [own_tokens] * self.count, sizes, group=self.group)
        return received.unflatten(0, (self.count, own_tokens)).permute(2, 1, 0, 3, 4).flatten(2, 3)


class _ControlBranchProcessor(StereoAttnProcessor):
    """Attention processor of the control branch, with the plan of its token shard."""

    def __init__(self, shard: _TokenShard) -> None:
        self._shard = shard

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        assert self._shard.plan is not None
        assert rotary_emb is not None
        return super().__call__(attn, hidden_states, None, None, rotary_emb, self._shard.plan)


def _split_evenly(total: int, parts: int) -> list[int]:
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def _gathered_order(references: list[int], targets: list[int], device: torch.device) -> torch.Tensor:
    """Index of each token of [all references, all targets] in the concatenated tokens of the processes."""
    bounds = [0]
    for reference, target in zip(references, targets, strict=True):
        bounds += [bounds[-1] + reference, bounds[-1] + reference + target]
    spans = [torch.arange(start, stop, device=device) for start, stop in pairwise(bounds)]
    return torch.cat((*spans[0::2], *spans[1::2]))


def _reorder(tokens: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    return tokens if order is None else tokens[:, order]


def _restore_order(tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(tokens)
    out[:, order] = tokens
    return out
