"""Context parallelism (Ulysses, by diffusers) and sharded weights (FSDP2) for a transformer on several GPUs.

The tokens of a clip are split over the processes where they enter the blocks (`TokenSequence`), and the predictions of
all processes are joined after the last layer. All layers but attention work on single tokens. For attention, all-to-all
exchanges "own tokens, all heads" for "all tokens, own heads", and back (DeepSpeed-Ulysses, arXiv 2309.14509). diffusers
does that, except for attention with a mask: for it, processes exchange tokens here, in the order of the mask.

Each process must call the transformer with the same inputs (see `distributed`) and gets the whole result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks import apply_context_parallel
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelModelPlan,
    ParallelConfig,
)
from diffusers.models.attention import AttentionModuleMixin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from worldstereo_ros.models.worldstereo.attention import AttentionPlan
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer
from worldstereo_ros.utils.errors import InputError

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_SPLIT: ContextParallelModelPlan = {  # outputs of a `TokenSequence`
    0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True),
    1: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True),
    2: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True),
}


def enable_sequence_parallel(transformer: WorldStereoTransformer) -> None:
    """Splits the tokens of each forward over all processes; the output is the same in all of them.

    Args:
        transformer: the same in each process, in evaluation mode. This cannot be undone.

    Raises:
        InputError: the number of heads is not a multiple of the number of processes.
    """
    count = dist.get_world_size()
    heads = [transformer.config.num_attention_heads]
    control = transformer.controlnet
    if control is not None:
        heads.append(transformer.config.controlnet_cfg["num_heads"])
    if any(number % count for number in heads):
        raise InputError(
            f"The model has {' and '.join(map(str, heads))} heads, which are not multiples of {count} processes; "
            "start a number of processes that divides them."
        )
    if count == 1:
        return
    config = _context_parallel_config(count, next(transformer.parameters()).device.type)
    plan: dict[str, Any] = {"target_sequence": _SPLIT, "reference_sequence": _SPLIT}
    outputs = [transformer.proj_out]
    if control is not None:
        plan["controlnet.sequence"] = _SPLIT
        outputs += [control.render_head] if control.render_head is not None else []
    apply_context_parallel(transformer, config, plan)
    for module in transformer.modules():
        if isinstance(module, AttentionModuleMixin):
            processor: Any = module.processor
            processor._parallel_config = ParallelConfig(context_parallel_config=config)
    counts = _TokenCounts(config)
    transformer.target_sequence.register_forward_pre_hook(counts.targets_hook)
    transformer.reference_sequence.register_forward_pre_hook(counts.references_hook)
    for output in outputs:
        output.register_forward_hook(counts.join_hook)
    masked = _MaskedAttention(counts)
    for block in transformer.blocks:
        block.register_forward_pre_hook(masked.plan_hook)
    if control is not None:
        control.sequence.register_forward_pre_hook(counts.targets_hook)

        def check_branch(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
            if transformer.controlnet is not control:
                raise InputError(
                    "The control branch was replaced after sequence parallelism was enabled; use control_backend torch "
                    "with several processes."
                )

        transformer.register_forward_pre_hook(check_branch)


def _context_parallel_config(count: int, device: str) -> ContextParallelConfig:
    """The configuration of Ulysses attention over all processes.

    `enable_parallelism` of diffusers would make it, but it divides by the number of GPUs, which is 0 on a CPU.
    """
    config = ContextParallelConfig(ulysses_degree=count)
    config.setup(
        dist.get_rank(), count, torch.device(device),
        init_device_mesh(device, config.mesh_shape, mesh_dim_names=config.mesh_dim_names),
    )  # fmt: skip
    return config


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


class _TokenCounts:
    """How many tokens a forward has, and how many of them each process computes.

    Attributes:
        targets, references: tokens of each process; no references: empty.
    """

    def __init__(self, config: ContextParallelConfig) -> None:
        self.targets: list[int] = []
        self.references: list[int] = []
        self._config = config

    def targets_hook(self, _sequence: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before target tokens are split."""
        self.targets, self.references = _split(arguments[0].shape[1], self._config.ulysses_degree), []
        # Exchanging equal numbers needs no message about their size before each attention.
        self._config.ulysses_anything = len(set(self.targets)) > 1

    def references_hook(self, _sequence: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before reference tokens are split; targets were split before."""
        self.references = _split(arguments[0].shape[1], self._config.ulysses_degree)
        self._config.ulysses_anything |= len(set(self.references)) > 1

    def join_hook(self, _layer: nn.Module, _arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """After the last layer: joins the target tokens of all processes.

        That of diffusers (`ContextParallelOutput`) gathers unequal numbers with NCCL alone, and not on a CPU.
        """
        padded = output.new_zeros(output.shape[0], max(self.targets), output.shape[2])
        padded[:, : output.shape[1]] = output
        parts = [torch.empty_like(padded) for _ in self.targets]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, self.targets, strict=True)], dim=1)


class _MaskedAttention:
    """Gives attention with a mask all tokens, for the heads of this process, in the order that the mask expects."""

    def __init__(self, counts: _TokenCounts) -> None:
        self.counts, self.count, self.rank = counts, dist.get_world_size(), dist.get_rank()
        self._plan: AttentionPlan | None = None  # of this forward, and the one that replaces it
        self._replaced: AttentionPlan | None = None

    def plan_hook(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a block: replaces the attention function of its plan."""
        *others, plan = arguments
        if plan.attend is None:
            return None
        if plan is not self._plan:
            references, targets = self.counts.references or [0] * self.count, self.counts.targets
            keys = [r + t for r, t in zip(references, targets, strict=True)]
            order = _gathered_order(references, targets, others[0].device) if sum(references) else None
            queries, query_order = (targets, None) if plan.first_query else (keys, order)
            attend = self._with_exchange(plan.attend, keys, queries, order, query_order)
            self._plan, self._replaced = plan, replace(plan, attend=attend)
        return (*others, self._replaced)

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
        dist.all_to_all_single(received, sent, sizes, [own_tokens] * self.count)
        return received.transpose(0, 1)

    def _to_tokens(self, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The inverse of `_to_heads`."""
        own_tokens = sizes[self.rank]
        sent = tokens.transpose(0, 1).contiguous()
        received = sent.new_empty(self.count * own_tokens, *sent.shape[1:])
        dist.all_to_all_single(received, sent, [own_tokens] * self.count, sizes)
        return received.unflatten(0, (self.count, own_tokens)).permute(2, 1, 0, 3, 4).flatten(2, 3)


def _split(total: int, parts: int) -> list[int]:
    """Numbers of tokens of each process, as `torch.tensor_split` gives them."""
    return [total // parts + (part < total % parts) for part in range(parts)]


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
