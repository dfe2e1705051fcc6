"""What a token may look at in memory: the three receptive fields of the references.

`full`: everything (WorldStereo 2.0, the published weights). `paired`: a keyframe sees its own references alone
(WorldStereo 1.0, arXiv 2602.24233). `correspondence`: a target token sees the reference tokens near where its 3-D
point lands, and a coarse grid of every reference where nothing was rendered and the point is not known.
In the last two a reference sees itself and the keyframe that it is attached to; targets always see all targets.

Below, a `correspondence` that is None means `paired`; `full` needs no mask.

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
    """Where the tokens of a clip are.

    Attributes:
        frames: F target keyframes.
        rows, columns: tokens of one picture.
        home: the keyframe (0..F-1) that each of the R references is attached to.
    """

    frames: int
    rows: int
    columns: int
    home: tuple[int, ...]

    @property
    def per_frame(self) -> int:
        """n, the tokens of one picture."""
        return self.rows * self.columns

    @property
    def reference_tokens(self) -> int:
        """R * n."""
        return len(self.home) * self.per_frame

    @property
    def tokens(self) -> int:
        """All tokens, references first."""
        return self.reference_tokens + self.frames * self.per_frame


@dataclass(frozen=True)
class Correspondence:
    """Where target tokens land in the references.

    Attributes:
        points: (b or 1, F, rows, columns, R, 2) row and column in tokens of the reference, fractional. NaN: not known.
            Anything outside the grid (infinity too): known, and not visible there.
        radius: a token sees the reference tokens at most this far from its point, along rows and along columns.
        stride: where the point is not known it sees every stride-th row and column of each reference.
    """

    points: torch.Tensor
    radius: float = 2.0
    stride: int = 4

    def allowed(self, grid: TokenGrid) -> torch.Tensor:
        """(b or 1, F, n, R, n) bool: may target token (F, n) see reference token (R, n)?"""
        row = torch.arange(grid.rows, device=self.points.device).repeat_interleave(grid.columns)
        column = torch.arange(grid.columns, device=self.points.device).repeat(grid.rows)
        points = self.points.flatten(2, 3).unsqueeze(-2)  # b, F, n, R, 1, 2
        near = (row - points[..., 0]).abs() <= self.radius
        near &= (column - points[..., 1]).abs() <= self.radius
        coarse = (row % self.stride == self.stride // 2) & (column % self.stride == self.stride // 2)
        return near | (points[..., 0].isnan() & coarse)


def check_correspondence(correspondence: Correspondence | None, grid: TokenGrid, batch: int) -> Correspondence:
    """Gives it back, or says what is wrong with it.

    Raises:
        ValueError: there is none, or its shape is not that of the clip.
    """
    want = (grid.frames, grid.rows, grid.columns, len(grid.home), 2)
    if correspondence is None:
        raise InputError(
            "reference_attention is 'correspondence' and no reference_points were given; "
            "make them with models.correspondence.reference_points, or choose 'full' or 'paired'."
        )
    shape = tuple(correspondence.points.shape)
    if shape[1:] != want or shape[0] not in (1, batch):
        raise InputError(f"reference_points have shape {shape}; ({batch} or 1, {', '.join(map(str, want))}) is needed.")
    return correspondence


# --- the slow twin: one dense mask ---


def dense_mask(grid: TokenGrid, correspondence: Correspondence | None, device: torch.device) -> torch.Tensor:
    """(b or 1, tokens, tokens) bool, [query, key], True = may attend. Plain and quadratic: the truth of the tests."""
    n, R = grid.per_frame, len(grid.home)
    batch = 1 if correspondence is None else correspondence.points.shape[0]
    mask = torch.zeros(batch, grid.tokens, grid.tokens, dtype=torch.bool, device=device)
    first = grid.reference_tokens
    mask[:, first:, first:] = True
    for r, frame in enumerate(grid.home):
        own = slice(r * n, (r + 1) * n)
        keyframe = slice(first + frame * n, first + (frame + 1) * n)
        mask[:, own, own] = True
        mask[:, own, keyframe] = True
        if correspondence is None:
            mask[:, keyframe, own] = True
    if correspondence is not None:
        allowed = correspondence.allowed(grid)
        mask[:, first:, :first] = allowed.reshape(batch, grid.frames * n, R * n)
    return mask


# --- the fast way: groups of queries that share their keys ---


@dataclass(frozen=True)
class Group:
    """Queries that attend to the same keys.

    Attributes:
        queries: consecutive tokens.
        references: reference tokens among the keys: a slice, (U,) indices, or None.
        targets: target tokens among the keys, numbered among all tokens.
        mask: (b or 1, 1, queries, U) over the reference keys, or None where all are seen.
    """

    queries: slice
    references: slice | torch.Tensor | None
    targets: slice
    mask: torch.Tensor | None = None


def plan_groups(grid: TokenGrid, correspondence: Correspondence | None, least_queries: int = 512) -> list[Group]:
    """The groups of `paired` and `correspondence`, in the order of the tokens.

    A reference token that no query of a group may see never enters its attention, so that the cost follows what is
    seen and not the number of references.

    Args:
        grid: where the tokens are.
        correspondence: where target tokens land; None: paired.
        least_queries: small keyframes share a group up to this many tokens, as every group copies its keys once.
    """
    n, first = grid.per_frame, grid.reference_tokens
    groups = [
        Group(slice(r * n, (r + 1) * n), slice(r * n, (r + 1) * n), slice(first + f * n, first + (f + 1) * n))
        for r, f in enumerate(grid.home)
    ]
    allowed = None if correspondence is None else correspondence.allowed(grid).flatten(3)
    together = 1 if allowed is None else max(1, least_queries // n)
    for frame in range(0, grid.frames, together):
        frames = slice(frame, min(frame + together, grid.frames))
        queries = slice(first + frames.start * n, first + frames.stop * n)
        keys, mask = _own_references(grid, frame), None
        if allowed is not None:
            share = allowed[:, frames].flatten(1, 2)
            seen = share.flatten(0, 1).any(dim=0).nonzero()[:, 0]
            keys, mask = (seen, share[:, None, :, seen]) if len(seen) else (None, None)
        last = groups[-1] if groups else None
        if keys is None and last is not None and last.references is None:
            queries = slice(groups.pop().queries.start, queries.stop)
        groups.append(Group(queries, keys, slice(first, grid.tokens), mask))
    return groups


def _own_references(grid: TokenGrid, frame: int) -> slice | torch.Tensor | None:
    n = grid.per_frame
    own = [r for r, home in enumerate(grid.home) if home == frame]
    if not own:
        return None
    if own == list(range(own[0], own[-1] + 1)):
        return slice(own[0] * n, (own[-1] + 1) * n)
    return torch.cat([torch.arange(r * n, (r + 1) * n) for r in own])


# --- FlexAttention: the same rules as a formula ---


def mask_formula(
    grid: TokenGrid, correspondence: Correspondence | None, first_query: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The rule as `mask_mod(batch, head, query, key)` for FlexAttention; query 0 is token `first_query`."""
    n, first, R = grid.per_frame, grid.reference_tokens, len(grid.home)
    home = torch.tensor(grid.home, device=device)
    if correspondence is not None:
        points = correspondence.points.flatten(1, 3)  # b, F * n, R, 2
        row_of, column_of = points[..., 0].contiguous(), points[..., 1].contiguous()
        one = points.shape[0] == 1
        radius, stride = correspondence.radius, correspondence.stride

    def formula(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q = q + first_query
        query_is_reference, key_is_reference = q < first, k < first
        query_reference = (q // n).clamp(max=R - 1)
        key_reference = (k // n).clamp(max=R - 1)
        query_frame, key_frame = (q - first) // n, (k - first) // n
        if correspondence is None:
            sees = home[key_reference] == query_frame
        else:
            target = (q - first).clamp(min=0)
            sample = b * 0 if one else b
            row, column = row_of[sample, target, key_reference], column_of[sample, target, key_reference]
            key_row, key_column = (k % n) // grid.columns, k % grid.columns
            near = ((key_row - row).abs() <= radius) & ((key_column - column).abs() <= radius)
            coarse = (key_row % stride == stride // 2) & (key_column % stride == stride // 2)
            sees = near | (row.isnan() & coarse)
        return (
            (~query_is_reference & ~key_is_reference)
            | (~query_is_reference & key_is_reference & sees)
            | (query_is_reference & key_is_reference & (query_reference == key_reference))
            | (query_is_reference & ~key_is_reference & (home[query_reference] == key_frame))
        )

    return formula


def merged_mask(group: Group, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to the scores of a group over [its reference keys, its target keys]; None: nothing.

    Numbers of the queries' own type: from a bool mask every attention would make them anew.
    """
    if group.mask is None:
        return None
    hidden = torch.zeros(group.mask.shape, dtype=dtype, device=group.mask.device)
    hidden.masked_fill_(~group.mask, -torch.inf)
    return functional.pad(hidden, (0, group.targets.stop - group.targets.start))
