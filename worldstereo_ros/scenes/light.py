"""Light that falls on surfaces, worked out once per world and kept on a grid of texels over every face.

Each texel sees samples of every lamp (soft shadows), and its surroundings up to a metre and a half (ambient light
that darkens in corners and under tables). Rendering then only looks the light up, however many lamps there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.geometry import Geometry, interval, ragged
from worldstereo_ros.scenes.primitives import BOX, CYLINDER, SPHERE, Light, Primitives

PATCH = 64
"""Texels that share one list of what may stand in their light."""

REACH = 1.5
"""Metres within which surroundings take ambient light away."""

_AXES = torch.tensor([[1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1]])
"""The axes u and v of each face of a unit box."""


@dataclass(frozen=True)
class Layout:
    """Where each face of each primitive keeps its light.

    Attributes:
        base, columns, rows: (P, 6) int64: first texel, and how many along u and v.
        total: texels in all.
    """

    base: torch.Tensor
    columns: torch.Tensor
    rows: torch.Tensor
    total: int


def half_sizes(primitives: Primitives) -> torch.Tensor:
    """(P, 6, 2) float64 half sizes of the faces along u and v, metres; the mantle of a round one is its face 0."""
    half = primitives.half[:, _AXES]
    mantle = torch.stack([math.pi * primitives.half[:, :2].mean(1), primitives.half[:, 2]], dim=-1)
    half[:, 0] = torch.where((primitives.kind != BOX)[:, None], mantle, half[:, 0])
    return half


def lay_out(primitives: Primitives, budget: int) -> Layout:
    """Share about `budget` texels out over the faces, by area; outdoors they are coarser."""
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
    return Layout(base, count[..., 0], count[..., 1], int(ends[-1, -1]))


@dataclass(frozen=True)
class Texels:
    """Points of surfaces where light is worked out: (L, 3) float32 points and normals, (L, 9) neighbours in a face."""

    point: torch.Tensor
    normal: torch.Tensor
    neighbours: torch.Tensor
    order: torch.Tensor
    """(L,) int64: texels that are near each other follow each other."""
    primitive: torch.Tensor
    """(L,) int64: whose surface it is."""


def texels(primitives: Primitives, layout: Layout) -> Texels:
    """The middle of every texel, a millimetre above its surface."""
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
    # A cap is square in u and v; what lies beyond its rim is drawn in.
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
    ni = (i[:, None] + di.flatten()).clamp_min(0).minimum(columns[:, None] - 1)
    nj = (j[:, None] + dj.flatten()).clamp_min(0).minimum(rows[:, None] - 1)
    neighbours = layout.base.flatten()[face][:, None] + nj * columns[:, None] + ni
    block = (face * 64 + (j // 8)) * 64 + i // 8
    return Texels(point.float(), normal.float(), neighbours, block.argsort(stable=True), owner)


def first_hit(
    geometry: Geometry,
    maps: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    candidates: torch.Tensor,
    origin: torch.Tensor,
    direction: torch.Tensor,
    at_once: int = 8,
) -> torch.Tensor:
    """Where rays of T bundles first meet one of the bundle's candidates.

    Args:
        geometry: the primitives; maps: its `unit_from_world`, as float32, flattened over tables and primitives.
        table: (T,) int64.
        candidates: (T, P) bool.
        origin, direction: (T, 3, N) float32.

    Returns:
        (T, N) float32 in units of the direction, 0 inside a solid, 1 where nothing is met before that.
    """
    matrix, shift = maps
    P = geometry.kind.shape[1]
    best = torch.ones(origin.shape[0], origin.shape[2], device=origin.device)
    kinds = geometry.kind.flatten()
    N = origin.shape[2]
    size = max(1, (1 << 18 if origin.device.type == "cpu" else 1 << 25) // (3 * at_once * N))
    for boxes in (True, False):
        kind = geometry.kind[table]
        column, start, left = ragged(candidates & ((kind == BOX) if boxes else (kind > BOX)))
        step = 0
        active = left.nonzero()[:, 0]
        while active.shape[0]:
            slot = step + torch.arange(at_once, device=origin.device)[None]
            inside = slot < left[active, None]
            picked = column[(start[active, None] + slot).clamp_max_(column.shape[0] - 1)]
            picked = table[active, None] * P + picked
            for low in range(0, len(active), size):
                mine, part = active[low : low + size], picked[low : low + size]
                M = matrix[part].transpose(1, 2).reshape(len(mine), -1, 3)
                d = (M @ direction[mine]).view(len(mine), 3, at_once, N)
                o = (M @ origin[mine]).view(len(mine), 3, at_once, N) + shift[part].transpose(1, 2)[..., None]
                enter, leave = interval(d, o, None if boxes else kinds[part])
                hit = (enter <= leave) & (leave > 1e-3) & inside[low : low + size, :, None]
                enter = torch.where(hit, enter.clamp_min_(0.0), torch.ones_like(enter))
                best[mine] = torch.minimum(best[mine], enter.amin(dim=1))
            step += at_once
            active = active[left[active] > step]
            active = active[(best[active] > 0).any(dim=1)]
    return best


def _frame(normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit vectors across each normal (L, 3): level and up where the normal is level, along x and y where not."""
    level = normal[:, 2].abs() < 0.9
    up = torch.where(level[:, None], normal.new_tensor([0.0, 0.0, 1.0]), normal.new_tensor([0.0, 1.0, 0.0]))
    across = torch.nn.functional.normalize(torch.linalg.cross(up, normal), dim=-1)
    return across, torch.linalg.cross(normal, across)


@dataclass(frozen=True)
class Ambient:
    """Light without a lamp: indoors and from the sky, each linear RGB; `bounce` is the share of lamp light reflected."""

    indoor: tuple[float, float, float] = (0.12, 0.12, 0.12)
    sky: tuple[float, float, float] = (0.55, 0.7, 1.0)
    bounce: float = 0.55


def bake(
    geometry: Geometry,
    worlds: list[tuple[Texels, list[Light], Ambient, torch.Tensor, torch.Tensor]],
    *,
    lamp_samples: int = 4,
    ambient_samples: int = 16,
) -> list[torch.Tensor]:
    """Light on all texels of all worlds.

    Args:
        geometry: one table per world, on the device where the work is to be done.
        worlds: of each: texels, lamps, ambient light, which primitives are outdoors (P,) bool, mean colours (P, 3).
        lamp_samples: shadow rays per texel and lamp, a square number; 0 = no shadows.
        ambient_samples: rays per texel into its surroundings; 0 = no darkening.

    Returns:
        one (L, 3) float32 irradiance per world, on that device.
    """
    matrix, shift = geometry.unit_from_world()
    maps = (matrix.float().reshape(-1, 3, 3), shift.float().reshape(-1, 3))
    extent = (geometry.rotation.abs() @ geometry.half[..., None])[..., 0]
    low, high = (geometry.centre - extent).float(), (geometry.centre + extent).float()
    solid = geometry.casts & (geometry.kind >= 0)
    result = []
    for index, (texel, lamps, ambient, outdoor, colours) in enumerate(worlds):
        device = geometry.device
        order = texel.order.to(device)
        pad = -len(order) % PATCH
        order = torch.cat([order, order[-1:].expand(pad)])
        point, normal = texel.point.to(device)[order], texel.normal.to(device)[order]
        patches = point.view(-1, PATCH, 3)
        patch_low, patch_high = patches.amin(1), patches.amax(1)
        here = torch.full((len(patches),), index, device=device)
        # A fixed irrational turn per texel spreads the few rays out; the blur over neighbours joins them again.
        turn = (torch.arange(len(order), device=device) * 0.618034) % 1.0

        def meets(a: torch.Tensor, b: torch.Tensor, index: int = index) -> torch.Tensor:
            return ((low[index] <= b[:, None]) & (high[index] >= a[:, None])).all(-1) & solid[index]

        light = torch.zeros_like(point)
        for lamp in lamps:
            light += _lamp(lamp, point, normal, turn, lamp_samples, patch_low, patch_high, meets, geometry, maps, here)
        open_sky = torch.ones(len(point), device=device)
        if ambient_samples:
            open_sky = _surroundings(
                point, normal, turn, ambient_samples, patch_low, patch_high, meets, geometry, maps, here
            )
        outside = outdoor.to(device)[texel.primitive.to(device)][order]
        paint = colours.to(device)[texel.primitive.to(device)][order]
        inside = ~outside
        # Lamp light that walls throw back, their colours mixed: the same everywhere indoors.
        bounced = (light * paint)[inside].mean(0) * ambient.bounce if inside.any() else light.new_zeros(3)
        indoor = light.new_tensor(ambient.indoor) + bounced
        tilt = 1 + 0.12 * normal[:, 2:]
        base = torch.where(outside[:, None], light.new_tensor(ambient.sky) * (1 + 0.3 * normal[:, 2:]), indoor * tilt)
        light = light * (0.6 + 0.4 * open_sky[:, None]) + base * open_sky[:, None]
        flat = torch.zeros(len(texel.point), 3, device=device)
        flat[texel.order.to(device)] = light[: len(flat)]
        neighbours = texel.neighbours.to(device)
        if lamp_samples or ambient_samples:
            flat = flat[neighbours].mean(1)
        result.append(flat)
    return result


def _lamp(lamp, point, normal, turn, samples, patch_low, patch_high, meets, geometry, maps, here):  # noqa: ANN001, ANN202
    """(L, 3) irradiance of one lamp on patches of texels."""
    device = point.device
    side = max(1, math.isqrt(samples))
    grid = (torch.arange(side, device=device) + 0.5) / side
    sy, sx = torch.meshgrid(grid, grid, indexing="ij")
    # Each texel moves the grid of samples within its cells.
    jitter = torch.stack([turn, (turn * 7.0) % 1.0], dim=-1)[:, None] - 0.5
    spread = torch.stack([sx.flatten(), sy.flatten()], dim=-1)[None] * 2 - 1 + jitter * 2 / side
    place = torch.tensor(lamp.position, device=device)
    axis = place if lamp.sun else torch.tensor(lamp.normal, device=device)
    panel = not lamp.sun and bool(axis.abs().sum() > 0)
    if panel or lamp.sun:
        across, up = _frame(axis[None])
    else:
        across, up = point.new_tensor([[1.0, 0.0, 0.0]]), point.new_tensor([[0.0, 1.0, 0.0]])
    offset = spread[..., :1] * lamp.size[0] * across + spread[..., 1:] * lamp.size[1] * up
    if lamp.sun:
        towards = torch.nn.functional.normalize(place + offset, dim=-1) * 60.0
    else:
        towards = place + offset - point[:, None]
    distance = towards.norm(dim=-1)
    cosine = (towards * normal[:, None]).sum(-1) / distance
    strength = cosine.clamp_min(0)
    if not lamp.sun:
        strength = strength / (distance.square() + 0.1)
    if panel:
        strength = strength * (-(towards * axis).sum(-1) / distance).clamp_min(0)
    if samples:
        S = strength.shape[1]
        lit = (strength > 0).view(len(here), -1).any(1).nonzero()[:, 0]
        ends = (point[:, None] + towards).view(len(here), -1, 3)
        candidates = meets(torch.minimum(patch_low, ends.amin(1))[lit], torch.maximum(patch_high, ends.amax(1))[lit])
        origin = point[:, None].expand(-1, S, -1).reshape(len(here), -1, 3)[lit].transpose(1, 2)
        direction = (towards * 0.999).reshape(len(here), -1, 3)[lit].transpose(1, 2)
        free = first_hit(geometry, maps, here[lit], candidates, origin, direction) >= 1
        seen = torch.zeros(len(here), free.shape[1], device=device)
        seen[lit] = free.float()
        strength = strength * seen.view(strength.shape)
    return strength.mean(1, keepdim=True) * lamp.power * point.new_tensor(lamp.colour)


def _surroundings(point, normal, turn, samples, patch_low, patch_high, meets, geometry, maps, here):  # noqa: ANN001, ANN202
    """(L,) share of the ambient light that reaches texels: 1 in the open, less in corners."""
    device = point.device
    k = torch.arange(samples, device=device)
    radius = ((k + 0.5) / samples).sqrt()
    angle = 2.399963 * k + 6.2831853 * turn[:, None]
    across, up = _frame(normal)
    direction = (
        (radius * torch.cos(angle))[..., None] * across[:, None]
        + (radius * torch.sin(angle))[..., None] * up[:, None]
        + (1 - radius.square()).sqrt()[:, None] * normal[:, None]
    ) * REACH
    origin = point[:, None].expand(-1, samples, -1).reshape(len(here), -1, 3).transpose(1, 2)
    candidates = meets(patch_low - REACH, patch_high + REACH)
    met = first_hit(geometry, maps, here, candidates, origin, direction.reshape(len(here), -1, 3).transpose(1, 2))
    return met.view(-1, samples).mean(1).sqrt()
