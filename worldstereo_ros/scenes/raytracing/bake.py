"""Light that falls on surfaces, worked out once per world.

Each texel sees samples of every lamp (soft shadows), and its surroundings up to a metre and a half (ambient light
that darkens in corners and under tables). Rendering then only looks the light up, however many lamps there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.raytracing.geometry import Geometry, interval, ragged
from worldstereo_ros.scenes.raytracing.light import Texels
from worldstereo_ros.scenes.raytracing.primitives import BOX, Light

PATCH = 64
"""Texels that share one list of what may stand in their light."""

REACH = 1.5
"""Metres within which surroundings take ambient light away."""

FAINT = 0.01
"""A lamp that gives a patch less than this part of what it gives a metre away is left out of it."""


@dataclass(frozen=True)
class Ambient:
    """Light without a lamp: indoors and from the sky, linear RGB; `bounce` is the share of lamp light reflected."""

    indoor: tuple[float, ...] = (0.12, 0.12, 0.12)
    sky: tuple[float, ...] = (0.55, 0.7, 1.0)
    bounce: float = 0.55


@dataclass(frozen=True)
class BakeInputs:
    """What `bake` needs to know of a world: texels, lamps, ambient light, and of each primitive whether it is outdoors
    (P,) and its mean colour (P, 3).
    """

    texels: Texels
    lamps: list[Light]
    ambient: Ambient
    outdoor: torch.Tensor
    colours: torch.Tensor


@dataclass(frozen=True)
class Occluders:
    """What may stand in the light, in one table of a geometry, and how to ask.

    Attributes:
        geometry: the tables; table: the one meant.
        maps: `Geometry.unit_from_world` in float32, flattened over tables and primitives.
        centre: (P, 3) float32; axes: (P, 3, 3) float32, its rows the half axes; extent: (P, 3) of the boxes around.
        solid: (P,) bool, casts shadows.
    """

    geometry: Geometry
    table: int
    maps: tuple[torch.Tensor, torch.Tensor]
    centre: torch.Tensor
    axes: torch.Tensor
    extent: torch.Tensor
    solid: torch.Tensor

    def within(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """(G, P) bool: meets the boxes from low to high (G, 3)."""
        near = (self.centre - self.extent <= high[:, None]) & (self.centre + self.extent >= low[:, None])
        return near.all(-1) & self.solid

    def between(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """(G, P) bool: may meet a straight line from one of (G, N, 3) points to one of (G, M, 3)."""
        low = torch.minimum(start.amin(1), end.amin(1))
        found = self.within(low, torch.maximum(start.amax(1), end.amax(1)))
        # Seen along the lines, the bundle is narrow: two axes across it part it from most of what its box meets.
        along = torch.nn.functional.normalize(end.mean(1) - start.mean(1), dim=-1)
        for axis in frame_of(along):
            here, there = (start @ axis[..., None])[..., 0], (end @ axis[..., None])[..., 0]
            low, high = torch.minimum(here.amin(1), there.amin(1)), torch.maximum(here.amax(1), there.amax(1))
            middle = axis @ self.centre.T
            reach = (axis @ self.axes.reshape(-1, 3).T).abs().view(len(axis), -1, 3).sum(-1)
            found &= (middle - reach <= high[:, None]) & (middle + reach >= low[:, None])
        return found

    def first_hit(self, candidates: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Where rays first meet a candidate of their bundle.

        Args:
            candidates: (G, P) bool.
            origin, direction: (G, N, 3) float32.

        Returns:
            (G, N) float32 in units of the direction; 0 inside a solid, 1 where nothing is met before that.
        """
        parts = (origin.transpose(1, 2), direction.transpose(1, 2))
        table = torch.full((len(origin),), self.table, device=origin.device)
        return first_hit(self.geometry, self.maps, table, candidates, *parts)


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


def frame_of(normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit vectors across each normal (L, 3): level and up where the normal is level, along x and y where not."""
    level = normal[:, 2].abs() < 0.9
    up = torch.where(level[:, None], normal.new_tensor([0.0, 0.0, 1.0]), normal.new_tensor([0.0, 1.0, 0.0]))
    across = torch.nn.functional.normalize(torch.linalg.cross(up, normal), dim=-1)
    return across, torch.linalg.cross(normal, across)


def bake(
    geometry: Geometry, worlds: list[BakeInputs], *, lamp_samples: int = 4, ambient_samples: int = 16
) -> list[torch.Tensor]:
    """Light on all texels of all worlds.

    Args:
        geometry: one table per world, on the device where the work is to be done.
        worlds: what the tables hold.
        lamp_samples: shadow rays per texel and lamp, a square number; 0 = no shadows.
        ambient_samples: rays per texel into its surroundings; 0 = no darkening.

    Returns:
        one (L, 3) float32 irradiance per world, on that device.
    """
    matrix, shift = geometry.unit_from_world()
    maps = (matrix.float().reshape(-1, 3, 3), shift.float().reshape(-1, 3))
    axes = (geometry.rotation * geometry.half[..., None, :]).transpose(-1, -2).float()
    solid = geometry.casts & (geometry.kind >= 0)
    device = geometry.device
    result = []
    for table, world in enumerate(worlds):
        occluders = Occluders(
            geometry, table, maps, geometry.centre[table].float(), axes[table], axes[table].abs().sum(1), solid[table]
        )
        order = world.texels.order.to(device)
        order = torch.cat([order, order[-1:].expand(-len(order) % PATCH)])
        point = world.texels.point.to(device)[order].view(-1, PATCH, 3)
        normal = world.texels.normal.to(device)[order].view(-1, PATCH, 3)
        owner = world.texels.primitive.to(device)[order]
        outdoor = world.outdoor.to(device)[owner].view(-1, PATCH, 1)
        colour = world.colours.to(device)[owner].view(-1, PATCH, 3)
        # A fixed irrational turn per texel spreads the few rays out; the blur over neighbours joins them again.
        turn = ((torch.arange(len(order), device=device) * 0.618034) % 1.0).view(-1, PATCH)
        light = torch.zeros_like(point)
        for lamp in world.lamps:
            light += _lamp(lamp, occluders, point, normal, turn, lamp_samples)
        open_ = _surroundings(occluders, point, normal, turn, ambient_samples)[..., None]
        # Lamp light that walls throw back, their colours mixed: the same everywhere indoors.
        inside = ~outdoor[..., 0]
        bounced = (light * colour)[inside].mean(0) * world.ambient.bounce if inside.any() else light.new_zeros(3)
        indoor = (light.new_tensor(world.ambient.indoor) + bounced) * (1 + 0.12 * normal[..., 2:])
        sky = light.new_tensor(world.ambient.sky) * (1 + 0.3 * normal[..., 2:])
        light = light * (0.6 + 0.4 * open_) + torch.where(outdoor, sky, indoor) * open_
        flat = torch.zeros(len(world.texels.point), 3, device=device)
        flat[world.texels.order.to(device)] = light.view(-1, 3)[: len(flat)]
        if lamp_samples or ambient_samples:
            flat = flat[world.texels.neighbours.to(device)].mean(1)
        result.append(flat)
    return result


def _lamp(
    lamp: Light, occluders: Occluders, point: torch.Tensor, normal: torch.Tensor, turn: torch.Tensor, samples: int
) -> torch.Tensor:
    """(G, PATCH, 3) irradiance of one lamp on G patches of points (G, PATCH, 3)."""
    device = point.device
    side = max(1, math.isqrt(samples))
    grid = (torch.arange(side, device=device) + 0.5) / side
    sy, sx = torch.meshgrid(grid, grid, indexing="ij")
    # Each texel moves the grid of samples within its cells.
    jitter = torch.stack([turn, (turn * 7.0) % 1.0], dim=-1)[..., None, :] - 0.5
    spread = torch.stack([sx.flatten(), sy.flatten()], dim=-1) * 2 - 1 + jitter * (2 / side)
    place, facing = (torch.tensor(v, device=device, dtype=point.dtype) for v in (lamp.position, lamp.normal))
    panel = not lamp.sun and any(lamp.normal)
    across, up = frame_of((place if lamp.sun else facing if panel else point.new_tensor([0.0, 0.0, 1.0]))[None])
    offset = spread[..., :1] * lamp.size[0] * across + spread[..., 1:] * lamp.size[1] * up
    if lamp.sun:
        towards = torch.nn.functional.normalize(place + offset, dim=-1) * 60.0
    else:
        towards = place + offset - point[:, :, None]
    distance = towards.norm(dim=-1)
    strength = ((towards * normal[:, :, None]).sum(-1) / distance).clamp_min(0)
    if not lamp.sun:
        strength = strength / (distance.square() + 0.1)
    if panel:
        strength = strength * (-(towards @ facing) / distance).clamp_min(0)
    if samples:
        N, S = strength.shape[1:]
        most = strength.amax((1, 2))
        lit = (most > FAINT).nonzero()[:, 0]
        strength[most <= FAINT] = 0
        ends = (point[:, :, None] + towards)[lit].reshape(len(lit), -1, 3)
        candidates = occluders.between(point[lit], ends)
        origin = point[lit, :, None].expand(-1, -1, S, -1).reshape(len(lit), -1, 3)
        met = occluders.first_hit(candidates, origin, towards[lit].reshape(len(lit), -1, 3) * 0.999)
        strength[lit] *= (met >= 1).view(len(lit), N, S)
    return strength.mean(-1, keepdim=True) * lamp.power * point.new_tensor(lamp.colour)


def _surroundings(
    occluders: Occluders, point: torch.Tensor, normal: torch.Tensor, turn: torch.Tensor, samples: int
) -> torch.Tensor:
    """(G, PATCH) share of the ambient light that reaches points: 1 in the open, less in corners."""
    if samples == 0:
        return torch.ones_like(turn)
    k = torch.arange(samples, device=point.device)
    # Directions spread by the golden angle, as many per area as the cosine asks for.
    radius = ((k + 0.5) / samples).sqrt()
    angle = 2.399963 * k + 6.2831853 * turn[..., None]
    across, up = frame_of(normal.reshape(-1, 3))
    across, up = across.view_as(normal)[:, :, None], up.view_as(normal)[:, :, None]
    direction = (
        (radius * torch.cos(angle))[..., None] * across
        + (radius * torch.sin(angle))[..., None] * up
        + (1 - radius.square()).sqrt()[:, None] * normal[:, :, None]
    ) * REACH
    origin = point[:, :, None].expand_as(direction).reshape(len(point), -1, 3)
    candidates = occluders.within(point.amin(1) - REACH, point.amax(1) + REACH)
    met = occluders.first_hit(candidates, origin, direction.reshape(len(point), -1, 3))
    return met.view(*turn.shape, samples).mean(-1).sqrt()
