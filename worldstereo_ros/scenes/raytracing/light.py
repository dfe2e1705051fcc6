"""Light maps: a grid of texels on every face of every primitive, filled by `bake`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.raytracing.primitives import BOX, CYLINDER, SPHERE, Primitives

_AXES = torch.tensor([[1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1]])
"""The axes u and v of each face of a unit box."""


@dataclass(frozen=True)
class TexelLayout:
    """Texel grid of each face of each primitive.

    Attributes:
        base: (P, 6) int64 index of the first texel.
        columns, rows: (P, 6) int64 number of texels along u and v.
        total: number of texels.
    """

    base: torch.Tensor
    columns: torch.Tensor
    rows: torch.Tensor
    total: int


def half_sizes(primitives: Primitives) -> torch.Tensor:
    """(P, 6, 2) float64 half sizes of the faces along u and v, metres; the curved surface of a round one is face 0."""
    half = primitives.half[:, _AXES]
    mantle = torch.stack([math.pi * primitives.half[:, :2].mean(1), primitives.half[:, 2]], dim=-1)
    half[:, 0] = torch.where((primitives.kind != BOX)[:, None], mantle, half[:, 0])
    return half


def allocate_texels(primitives: Primitives, budget: int) -> TexelLayout:
    """Distribute about `budget` texels over the faces by area; outdoor faces get coarser ones."""
    half = half_sizes(primitives)
    used = torch.ones(len(primitives), 6, dtype=torch.bool)
    used[:, 1:] &= (primitives.kind == BOX)[:, None]
    used[:, 4:] |= (primitives.kind == CYLINDER)[:, None]
    grain = torch.where(primitives.outdoor, 8.0, 1.0).double()[:, None, None]
    area = (4 * half.prod(-1) / grain[..., 0] ** 2 * used).clamp_max(400.0)
    texel = (area.sum() / budget).sqrt().clamp(0.04, 0.5)
    count = (2 * half / (texel * grain)).ceil().clamp(1, 192).long()
    count = torch.where(used[..., None], count, torch.ones_like(count))
    number = count.prod(-1) * used
    ends = number.flatten().cumsum(0).reshape(number.shape)
    base = torch.where(used, ends - number, torch.zeros_like(ends))
    return TexelLayout(base, count[..., 0], count[..., 1], int(ends[-1, -1]))


@dataclass(frozen=True)
class Texels:
    """Surface points at which light is baked.

    Attributes:
        point, normal: (L, 3) float32, world axes.
        neighbours: (L, 9) int64 texels of the 3x3 neighbourhood on the same face.
        order: (L,) int64 permutation that puts neighbouring texels next to each other.
        primitive: (L,) int64 index of the primitive.
    """

    point: torch.Tensor
    normal: torch.Tensor
    neighbours: torch.Tensor
    order: torch.Tensor
    primitive: torch.Tensor


def place_texels(primitives: Primitives, layout: TexelLayout) -> Texels:
    """The centres of all texels, one millimetre above their surfaces."""
    number = torch.where(
        (layout.base.flatten() > 0) | (torch.arange(layout.base.numel()) == 0),
        layout.columns.flatten() * layout.rows.flatten(),
        0,
    )
    face = torch.repeat_interleave(torch.arange(number.numel()), number)
    owner, side = face // 6, face % 6
    within = torch.arange(layout.total) - layout.base.flatten()[face]
    columns, rows = layout.columns.flatten()[face], layout.rows.flatten()[face]
    i, j = within % columns, within // columns
    u, v = (2 * i + 1).double() / columns - 1, (2 * j + 1).double() / rows - 1
    kind = primitives.kind[owner]
    sign = (2 * (side % 2) - 1).double()
    unit, normal = torch.zeros(layout.total, 3, dtype=torch.float64), torch.zeros(layout.total, 3, dtype=torch.float64)
    flat = (kind == BOX) | ((kind == CYLINDER) & (side >= 4))
    every = torch.arange(layout.total)
    axis = side // 2
    unit[every, axis] = sign
    # A cap is square in u and v: texels outside its rim are moved inside.
    inward = torch.where(kind == CYLINDER, 0.97 / torch.sqrt(u * u + v * v).clamp_min(0.97), torch.ones_like(u))
    unit[every, _AXES[side, 0]] = u * inward
    unit[every, _AXES[side, 1]] = v * inward
    normal[every, axis] = sign
    ring = torch.where(kind == SPHERE, (1 - v * v).clamp_min(0).sqrt(), torch.ones_like(v))
    around = torch.stack([ring * torch.cos(math.pi * u), ring * torch.sin(math.pi * u), v], dim=-1)
    outward = around.clone()
    outward[:, 2] *= (kind == SPHERE).double()
    half = primitives.half[owner]
    unit = torch.where(flat[:, None], unit, around)
    normal = torch.where(flat[:, None], normal, outward / half)
    rotation = primitives.rotation[owner]
    normal = torch.nn.functional.normalize((rotation @ normal[..., None])[..., 0], dim=-1)
    point = primitives.centre[owner] + (rotation @ (unit * half)[..., None])[..., 0] + 1e-3 * normal
    di, dj = torch.meshgrid(torch.tensor([-1, 0, 1]), torch.tensor([-1, 0, 1]), indexing="ij")
    # No averaging across a face's edge: it would shift the light of one side only and show as a seam.
    ni = i[:, None] + di.flatten() * ((i > 0) & (i < columns - 1))[:, None]
    nj = j[:, None] + dj.flatten() * ((j > 0) & (j < rows - 1))[:, None]
    neighbours = layout.base.flatten()[face][:, None] + nj * columns[:, None] + ni
    block = (face * 64 + (j // 8)) * 64 + i // 8
    return Texels(point.float(), normal.float(), neighbours, block.argsort(stable=True), owner)
