"""Attention masks between target and reference tokens, in three modes.

- `full`: all tokens attend to all tokens (WorldStereo 2.0, the published weights); needs no mask.
- `paired`: a target keyframe attends to its own references only (WorldStereo 1.0, arXiv 2602.24233).
- `correspondence`: a target token attends to the reference tokens around the projection of its 3-D point. Where the
  point is unknown, because nothing was rendered, it attends to a coarse grid of each reference.

In the last two modes a reference attends to itself and to the keyframe that it is attached to. Targets attend to all
targets in all modes. In the functions below, `correspondence` None means `paired`.

Tokens are ordered [references, targets]: first R * n reference tokens, then F * n target tokens, n = rows * columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from worldstereo_ros.utils.errors import InputError

MODES = ("full", "paired", "correspondence")


@dataclass(frozen=True)
class TokenGrid:
    """The layout of the tokens of a clip.

    Attributes:
        frames: number of target keyframes F.
        rows: rows of tokens in a frame.
        columns: columns of tokens in a frame.
        reference_frames: keyframe (0..F-1) that each of the R references is attached to.
    """

    frames: int
    rows: int
    columns: int
    reference_frames: tuple[int, ...]

    @property
    def tokens_per_frame(self) -> int:
        """Number of tokens of a frame, n."""
        return self.rows * self.columns

    @property
    def num_reference_tokens(self) -> int:
        """Number of reference tokens, R * n."""
        return len(self.reference_frames) * self.tokens_per_frame

    @property
    def num_tokens(self) -> int:
        """Number of all tokens, (R + F) * n."""
        return self.num_reference_tokens + self.frames * self.tokens_per_frame


@dataclass(frozen=True)
class Correspondence:
    """The projections of target tokens to the references, see `correspondence.reference_points`.

    Attributes:
        points: (b or 1, F, rows, columns, R, 2) fractional row and column in tokens of the reference. NaN = unknown;
            outside the grid (also infinity) = known, but not visible in the reference.
        radius: maximum distance to the projection of the tokens attended to, along rows and along columns, in tokens.
        stride: stride of the coarse grid that tokens with an unknown point attend to.
    """

    points: torch.Tensor
    radius: float = 2.0
    stride: int = 4

    def allowed(self, grid: TokenGrid) -> torch.Tensor:
        """Returns (b or 1, F, n, R, n) bool: whether target token (F, n) attends to reference token (R, n)."""
        row = torch.arange(grid.rows, device=self.points.device).repeat_interleave(grid.columns)
        column = torch.arange(grid.columns, device=self.points.device).repeat(grid.rows)
        points = self.points.flatten(2, 3).unsqueeze(-2)  # b, F, n, R, 1, 2
        near = (row - points[..., 0]).abs() <= self.radius
        near &= (column - points[..., 1]).abs() <= self.radius
        coarse = (row % self.stride == self.stride // 2) & (column % self.stride == self.stride // 2)
        return near | (points[..., 0].isnan() & coarse)


def check_correspondence(correspondence: Correspondence | None, grid: TokenGrid, batch: int) -> Correspondence:
    """Checks that there is a correspondence of the right shape, and returns it.

    Args:
        correspondence: the correspondence, or None.
        grid: layout of the tokens.
        batch: batch size.

    Raises:
        InputError: it is None, or its shape does not fit the clip.
    """
    expected = (grid.frames, grid.rows, grid.columns, len(grid.reference_frames), 2)
    if correspondence is None:
        raise InputError(
            "reference_attention is 'correspondence' and no reference_points were given; "
            "compute them with models.reference_points, or choose 'full' or 'paired'."
        )
    shape = tuple(correspondence.points.shape)
    if shape[1:] != expected or shape[0] not in (1, batch):
        expected_text = f"({batch} or 1, {', '.join(map(str, expected))})"
        raise InputError(f"reference_points have shape {shape}; {expected_text} was expected.")
    return correspondence


# --- reference implementation: one dense mask ---


def dense_mask(grid: TokenGrid, correspondence: Correspondence | None, device: torch.device) -> torch.Tensor:
    """Builds the full mask; needs quadratic memory and is the reference that the other implementations are tested with.

    Args:
        grid: layout of the tokens.
        correspondence: projections of the target tokens; None = paired.
        device: device of the mask.

    Returns:
        (b or 1, tokens, tokens) bool, [query, key], True = attends.
    """
    n, R = grid.tokens_per_frame, len(grid.reference_frames)
    batch = 1 if correspondence is None else correspondence.points.shape[0]
    mask = torch.zeros(batch, grid.num_tokens, grid.num_tokens, dtype=torch.bool, device=device)
    first_target = grid.num_reference_tokens
    mask[:, first_target:, first_target:] = True
    for r, frame in enumerate(grid.reference_frames):
        reference = slice(r * n, (r + 1) * n)
        keyframe = slice(first_target + frame * n, first_target + (frame + 1) * n)
        mask[:, reference, reference] = True
        mask[:, reference, keyframe] = True
        if correspondence is None:
            mask[:, keyframe, reference] = True
    if correspondence is not None:
        allowed = correspondence.allowed(grid)
        mask[:, first_target:, :first_target] = allowed.reshape(batch, grid.frames * n, R * n)
    return mask


# --- groups of queries with the same keys ---


@dataclass(frozen=True)
class AttentionGroup:
    """Consecutive queries that attend to the same keys.

    Attributes:
        queries: tokens that are queries.
        references: reference tokens that are keys: a slice, (U,) indices, or None.
        targets: target tokens that are keys, as indices of all tokens.
        mask: (b or 1, 1, queries, U) bool over the reference keys; None = the queries attend to all of them.
    """

    queries: slice
    references: slice | torch.Tensor | None
    targets: slice
    mask: torch.Tensor | None = None


def plan_groups(grid: TokenGrid, correspondence: Correspondence | None, min_queries: int = 512) -> list[AttentionGroup]:
    """Splits the queries of `paired` and `correspondence` into groups.

    Reference tokens that no query of a group attends to are left out of its keys. The cost therefore depends on the
    number of keys in use, not on the number of references.

    Args:
        grid: layout of the tokens.
        correspondence: projections of the target tokens; None = paired.
        min_queries: keyframes are grouped up to this number of queries, since each group copies its keys.

    Returns:
        The groups, in the order of the tokens.
    """
    n, first_target = grid.tokens_per_frame, grid.num_reference_tokens
    groups = [
        AttentionGroup(
            queries=slice(r * n, (r + 1) * n),
            references=slice(r * n, (r + 1) * n),
            targets=slice(first_target + f * n, first_target + (f + 1) * n),
        )
        for r, f in enumerate(grid.reference_frames)
    ]
    allowed = None if correspondence is None else correspondence.allowed(grid).flatten(3)
    frames_per_group = 1 if allowed is None else max(1, min_queries // n)
    for frame in range(0, grid.frames, frames_per_group):
        frames = slice(frame, min(frame + frames_per_group, grid.frames))
        queries = slice(first_target + frames.start * n, first_target + frames.stop * n)
        keys, mask = _attached_references(grid, frame), None
        if allowed is not None:
            group_allowed = allowed[:, frames].flatten(1, 2)
            used = group_allowed.flatten(0, 1).any(dim=0).nonzero()[:, 0]
            keys, mask = (used, group_allowed[:, None, :, used]) if len(used) else (None, None)
        last = groups[-1] if groups else None
        if keys is None and last is not None and last.references is None:
            queries = slice(groups.pop().queries.start, queries.stop)
        groups.append(AttentionGroup(queries, keys, slice(first_target, grid.num_tokens), mask))
    return groups


def _attached_references(grid: TokenGrid, frame: int) -> slice | torch.Tensor | None:
    n = grid.tokens_per_frame
    attached = [r for r, f in enumerate(grid.reference_frames) if f == frame]
    if not attached:
        return None
    if attached == list(range(attached[0], attached[-1] + 1)):
        return slice(attached[0] * n, (attached[-1] + 1) * n)
    return torch.cat([torch.arange(r * n, (r + 1) * n) for r in attached])


# --- FlexAttention ---


def make_mask_mod(
    grid: TokenGrid, correspondence: Correspondence | None, first_query: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Makes the `mask_mod(batch, head, query, key)` of FlexAttention, equivalent to `dense_mask`.

    Args:
        grid: layout of the tokens.
        correspondence: projections of the target tokens; None = paired.
        first_query: token that query 0 is.
        device: device of the tokens.
    """
    n, first_target, R = grid.tokens_per_frame, grid.num_reference_tokens, len(grid.reference_frames)
    reference_frame = torch.tensor(grid.reference_frames, device=device)
    if correspondence is not None:
        points = correspondence.points.flatten(1, 3)  # b, F * n, R, 2
        row_of, column_of = points[..., 0].contiguous(), points[..., 1].contiguous()
        broadcast = points.shape[0] == 1
        radius, stride = correspondence.radius, correspondence.stride

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q = q + first_query
        query_is_reference, key_is_reference = q < first_target, k < first_target
        query_reference = (q // n).clamp(max=R - 1)
        key_reference = (k // n).clamp(max=R - 1)
        query_frame, key_frame = (q - first_target) // n, (k - first_target) // n
        if correspondence is None:
            attends = reference_frame[key_reference] == query_frame
        else:
            target = (q - first_target).clamp(min=0)
            sample = b * 0 if broadcast else b
            row, column = row_of[sample, target, key_reference], column_of[sample, target, key_reference]
            key_row, key_column = (k % n) // grid.columns, k % grid.columns
            near = ((key_row - row).abs() <= radius) & ((key_column - column).abs() <= radius)
            coarse = (key_row % stride == stride // 2) & (key_column % stride == stride // 2)
            attends = near | (row.isnan() & coarse)
        return (
            (~query_is_reference & ~key_is_reference)
            | (~query_is_reference & key_is_reference & attends)
            | (query_is_reference & key_is_reference & (query_reference == key_reference))
            | (query_is_reference & ~key_is_reference & (reference_frame[query_reference] == key_frame))
        )

    return mask_mod


def additive_mask(group: AttentionGroup, dtype: torch.dtype) -> torch.Tensor | None:
    """Converts the mask of a group to a bias of the attention scores over [reference keys, target keys].

    A bool mask would be converted again in every call of the attention.

    Args:
        group: the group.
        dtype: dtype of the queries.

    Returns:
        (b or 1, 1, queries, keys) with 0 and -inf, or None if the group has no mask.
    """
    if group.mask is None:
        return None
    bias = torch.zeros(group.mask.shape, dtype=dtype, device=group.mask.device)
    bias.masked_fill_(~group.mask, -torch.inf)
    return functional.pad(bias, (0, group.targets.stop - group.targets.start))
