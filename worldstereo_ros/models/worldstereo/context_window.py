"""Context-window sparse attention (AnyRecon, arXiv 2604.19747): frames attend to the captures and to their neighbours.

Frames are grouped into blocks of `stride`. Block i attends to block j if j is one of the first blocks, in which the
captures are, or if the two are no more than a few blocks apart; all rows and columns take part. Since the mask depends
on the frames alone, each block of queries has at most two ranges of frames as keys, and no element-wise mask is needed.

The published kernel cuts the frames to a multiple of the stride and loses the rest. Here, the last block is shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from worldstereo_ros.models.worldstereo.attention import (
    IMPLEMENTATIONS,
    AttentionPlan,
    compiled_flex_attention,
    scaled_dot_product,
)
from worldstereo_ros.models.worldstereo.masks import TokenGrid
from worldstereo_ros.utils.errors import InputError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ContextWindow:
    """Which frames attend to which.

    Attributes:
        context: frames at the start of the sequence that every frame attends to, rounded up to whole blocks.
        window: frames before and after, rounded up to whole blocks.
        stride: frames of a block.
    """

    context: int = 6
    window: int = 5
    stride: int = 8

    def __post_init__(self) -> None:
        if self.context < 0 or self.window < 0 or self.stride < 1:
            raise InputError(
                f"The context window has context {self.context}, window {self.window} and stride {self.stride}; "
                "0 or more, 0 or more and at least 1 were expected."
            )

    @property
    def context_blocks(self) -> int:
        """Blocks that every frame attends to."""
        return -(-self.context // self.stride)

    @property
    def radius(self) -> int:
        """Blocks before and after the own one."""
        return -(-self.window // self.stride)

    def attends(self, query_block: torch.Tensor, key_block: torch.Tensor) -> torch.Tensor:
        """Whether frame-blocks attend to others; indices that broadcast, to bool."""
        near = (query_block - key_block).abs() <= self.radius
        return near | (key_block < self.context_blocks)

    def key_ranges(self, block: int, frames: int) -> list[tuple[int, int]]:
        """The frames that a block attends to, as one or two ranges (first, end) in order.

        Args:
            block: index of the block of queries.
            frames: number of frames.
        """
        context = min(self.context_blocks * self.stride, frames)
        first = max(0, (block - self.radius) * self.stride)
        end = min((block + self.radius + 1) * self.stride, frames)
        if first <= context:
            return [(0, max(context, end))]
        return [(0, context), (first, end)] if context else [(first, end)]

    def kept_fraction(self, frames: int) -> float:
        """Share of all pairs of frames that attend to each other, 0..1."""
        return float(self.frame_mask(frames).float().mean())

    def frame_mask(self, frames: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """(F, F) bool, True where the frame of the row attends to the frame of the column."""
        block = torch.arange(frames, device=device) // self.stride
        return self.attends(block[:, None], block[None, :])


def block_mask(blocks: tuple[int, int, int], window: ContextWindow) -> torch.Tensor:
    """The mask over windows of tokens, in the order of the published kernel: frame-block, row-block, column-block.

    Args:
        blocks: number of blocks along frames, rows and columns.
        window: the context window; `stride` is the frames of a block.

    Returns:
        (N, N) bool for N = product of `blocks`, True = attends. Rows and columns of blocks make no difference.
    """
    count = blocks[1] * blocks[2]
    block = torch.arange(blocks[0] * count) // count
    return window.attends(block[:, None], block[None, :])


def make_context_plan(
    window: ContextWindow, grid: TokenGrid, *, implementation: str = "auto", device: torch.device
) -> AttentionPlan:
    """Prepares the self-attention of a forward.

    Args:
        window: the context window.
        grid: layout of the tokens, without references.
        implementation: `groups` calls scaled_dot_product_attention for each block of frames, `flex` compiles a
            block-sparse FlexAttention, `dense` uses one quadratic mask (slow, for tests), `auto` is `flex` on CUDA and
            `groups` elsewhere.
        device: device of the tokens.

    Raises:
        InputError: the implementation is unknown, or there are references.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"The implementation is '{implementation}'; choose one of {', '.join(IMPLEMENTATIONS)}.")
    if grid.reference_frames:
        raise InputError("The context window takes captures as the first frames, and no references beside them.")
    if implementation == "auto":
        implementation = "flex" if device.type == "cuda" else "groups"
    return AttentionPlan(0, _attend(window, grid.frames, grid.tokens_per_frame, implementation, device))


@lru_cache(maxsize=4)
def _attend(window: ContextWindow, frames: int, tokens: int, implementation: str, device: torch.device) -> Attend:
    if implementation == "dense":
        mask = window.frame_mask(frames, device).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return lambda q, k, v: scaled_dot_product(q, k, v, mask)
    if implementation == "flex":
        return _flex(window, frames, tokens, device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = []
        for first in range(0, frames, window.stride):
            ranges = window.key_ranges(first // window.stride, frames)
            queries = q[:, first * tokens : min(first + window.stride, frames) * tokens]
            keys, values = (_select(t, ranges, tokens) for t in (k, v))
            out.append(scaled_dot_product(queries, keys, values, None))
        return torch.cat(out, dim=1)

    return attend


def _select(x: torch.Tensor, ranges: list[tuple[int, int]], tokens: int) -> torch.Tensor:
    parts = [x[:, first * tokens : end * tokens] for first, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _flex(window: ContextWindow, frames: int, tokens: int, device: torch.device) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens_per_block = tokens * window.stride

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return window.attends(q // tokens_per_block, k // tokens_per_block)

    length = frames * tokens
    on_gpu = device.type == "cuda"
    blocks = create_block_mask(mask_mod, None, None, length, length, device=device, _compile=on_gpu)
    kernel = compiled_flex_attention(device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return kernel(q, k, v, block_mask=blocks).transpose(1, 2)

    return attend
