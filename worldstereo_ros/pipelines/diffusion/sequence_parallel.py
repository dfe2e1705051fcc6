"""Several GPUs for one transformer: its tokens are shared out (Ulysses), and its weights too where they are too large.

The tokens of a clip are split evenly over the processes. Everything but attention works on single tokens; for
attention an all-to-all turns "my tokens, all heads" into "all tokens, my heads" and back (DeepSpeed-Ulysses,
arXiv 2309.14509). It happens in hooks, where the blocks are given their tokens and their plan, so that the model
itself knows nothing of it, and every receptive field of the references works.

Each process calls the transformer with the same inputs and gets the whole result; `processes.py` sees to that.
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

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def enable_sequence_parallel(transformer: WorldStereoTransformer, group: dist.ProcessGroup | None = None) -> None:
    """Makes all processes of a group work on each forward together; the result is the same on all of them.

    Args:
        transformer: the same on each, in evaluation mode. It cannot be made whole again.
        group: the processes; None: all.

    Raises:
        ValueError: the heads do not divide among them.
    """
    count = dist.get_world_size(group)
    heads = [transformer.config.num_attention_heads]
    control = transformer.controlnet
    if control is not None:
        heads.append(transformer.config.controlnet_cfg["num_heads"])
    if any(number % count for number in heads):
        raise InputError(
            f"The model has {' and '.join(map(str, heads))} heads, which do not divide among {count} processes; "
            "start a number that divides them."
        )
    backbone = _Share(group)
    for block in transformer.blocks:
        block.register_forward_pre_hook(backbone.enter)
    transformer.norm_out.register_forward_pre_hook(backbone.leave)
    if control is not None:
        branch = _Share(group)
        for block in control.controlnet_blocks:
            attention: Any = block.self_attn
            attention.set_processor(_BranchProcessor(branch))
            block.register_forward_pre_hook(branch.enter_branch)
        control.register_forward_hook(branch.end)

        def unchanged(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
            if transformer.controlnet is not control:
                raise InputError(
                    "The control branch was replaced after its work was shared out; use control_backend torch with "
                    "several processes."
                )

        transformer.register_forward_pre_hook(unchanged)


def shard_weights(transformer: WorldStereoTransformer, mesh: Any) -> None:
    """Leaves each process a part of the weights (FSDP2); a block's are brought together while it works.

    Args:
        transformer: with all its weights, in main memory or on the device.
        mesh: `torch.distributed.device_mesh.DeviceMesh` of one dimension; its device is where the parts go.
    """
    from torch.distributed.fsdp import fully_shard

    parts: list[nn.Module] = list(transformer.blocks)
    if transformer.controlnet is not None:
        parts += transformer.controlnet.controlnet_blocks
    parts.append(transformer)
    for part in parts:
        fully_shard(part, mesh=mesh)


class _Share:
    """What this process has of a clip's tokens, from the first block of a forward to the last."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.count, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.plan: AttentionPlan | None = None
        self.rotary: Rotary | None = None
        self.targets: list[int] = []

    # --- hooks ---

    def enter(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, references, context, modulation, rotary, plan = arguments
        if self.plan is None:
            beside = 0 if references is None else references.shape[1]
            self._begin(beside, tokens.shape[1], rotary, plan)
            tokens = self._own(tokens, self.targets)
            if references is not None:
                references = self._own(references, _even(beside, self.count))
        return tokens, references, context, modulation, self.rotary, self.plan

    def enter_branch(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, temb, rotary = arguments
        if self.plan is None:
            self._begin(0, tokens.shape[1], rotary, AttentionPlan())
            tokens = self._own(tokens, self.targets)
        return tokens, temb, self.rotary

    def leave(self, _norm: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Brings the targets of all processes together again."""
        (tokens,) = arguments
        sizes = self.targets
        self.plan = self.rotary = None
        padded = tokens.new_zeros(tokens.shape[0], max(sizes), tokens.shape[2])
        padded[:, : tokens.shape[1]] = tokens
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return (torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1),)

    def end(self, *_: Any) -> None:
        self.plan = self.rotary = None

    # --- parts ---

    def _begin(self, beside: int, targets: int, rotary: Rotary, plan: AttentionPlan) -> None:
        refs, own = _even(beside, self.count), _even(targets, self.count)
        self.targets = own
        cos, sin = (torch.cat((self._own(t[:, :beside], refs), self._own(t[:, beside:], own)), dim=1) for t in rotary)
        self.rotary = (cos, sin)
        keys = [r + t for r, t in zip(refs, own, strict=True)]
        asked = own if plan.first_query else keys
        order = None if not beside else _order(refs, own, rotary[0].device)
        attend = plan.attend or (lambda q, k, v: dispatch_attention_fn(q, k, v))
        self.plan = AttentionPlan(
            refs[self.rank] if plan.first_query else 0,
            self._exchanging(attend, keys, asked, order, None if plan.first_query else order),
        )

    def _own(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        return tokens.split(sizes, dim=1)[self.rank]

    def _exchanging(
        self,
        attend: Attend,
        keys: list[int],
        asked: list[int],
        key_order: torch.Tensor | None,
        query_order: torch.Tensor | None,
    ) -> Attend:
        """Attention over all tokens with a part of the heads, in the order that the plan counts tokens in."""

        def exchanged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q = _in_order(self._to_heads(q, asked), query_order)
            k, v = (_in_order(self._to_heads(t, keys), key_order) for t in (k, v))
            out = attend(q, k, v)
            return self._to_tokens(out if query_order is None else _out_of_order(out, query_order), asked)

        return exchanged

    def _to_heads(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """(b, own tokens, heads, d) to (b, all tokens as the processes have them, own heads, d)."""
        own = tokens.shape[1]
        sent = tokens.unflatten(2, (self.count, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1).contiguous()
        got = sent.new_empty(sum(sizes), *sent.shape[1:])
        dist.all_to_all_single(got, sent, sizes, [own] * self.count, group=self.group)
        return got.transpose(0, 1)

    def _to_tokens(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The way back."""
        own = sizes[self.rank]
        sent = tokens.transpose(0, 1).contiguous()
        got = sent.new_empty(self.count * own, *sent.shape[1:])
        dist.all_to_all_single(got, sent, [own] * self.count, sizes, group=self.group)
        return got.unflatten(0, (self.count, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)


class _BranchProcessor(StereoAttnProcessor):
    """Attention of the control branch with the plan of its share."""

    def __init__(self, share: _Share) -> None:
        self._share = share

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        assert self._share.plan is not None
        assert rotary_emb is not None
        return super().__call__(attn, hidden_states, None, None, rotary_emb, self._share.plan)


def _even(total: int, parts: int) -> list[int]:
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def _order(references: list[int], targets: list[int], device: torch.device) -> torch.Tensor:
    """Where each token of [all references, all targets] is among what the processes have, one after the other."""
    edges = [0]
    for reference, target in zip(references, targets, strict=True):
        edges += [edges[-1] + reference, edges[-1] + reference + target]
    spans = [torch.arange(start, stop, device=device) for start, stop in pairwise(edges)]
    return torch.cat((*spans[0::2], *spans[1::2]))


def _in_order(tokens: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    return tokens if order is None else tokens[:, order]


def _out_of_order(tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(tokens)
    out[:, order] = tokens
    return out
