"""Light baking: irradiance of all surface texels, computed once per scene.

Each texel casts shadow rays to samples of every lamp (soft shadows) and short rays into its surroundings (ambient
occlusion in corners and under tables). Rendering then looks the light up, whatever the number of lamps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.raytracing.geometry import Geometry, interval, ragged_columns
from worldstereo_ros.scenes.raytracing.light import Texels
from worldstereo_ros.scenes.raytracing.primitives import BOX, Light

PATCH_TEXELS = 64
"""Texels that share one list of possible occluders."""

AMBIENT_REACH_M = 1.5
"""Range of ambient occlusion, metres."""

MIN_LAMP_STRENGTH = 0.01
"""A lamp is skipped for a patch where its irradiance, relative to that at one metre, is below this."""


@dataclass(frozen=True)
class Ambient:
    """Ambient light indoors and from the sky, linear RGB; `bounce` is the share of lamp light that is reflected."""

    indoor: tuple[float, ...] = (0.12, 0.12, 0.12)
    sky: tuple[float, ...] = (0.55, 0.7, 1.0)
    bounce: float = 0.55


@dataclass(frozen=True)
class BakeInputs:
    """Inputs of `bake` for one scene.

    Attributes:
        texels: surface points to light.
        lamps: lamps and the sun.
        ambient: ambient light.
        outdoor: (P,) bool, primitive is lit by the sky.
        colours: (P, 3) mean albedo of the primitives.
    """

    texels: Texels
    lamps: list[Light]
    ambient: Ambient
    outdoor: torch.Tensor
    colours: torch.Tensor


@dataclass(frozen=True)
class Occluders:
    """The primitives of one scene as occluders of light.

    Attributes:
        geometry: the primitives of all scenes.
        table: index of the scene.
        maps: `Geometry.unit_from_world` in float32, flattened over tables and primitives.
        centre: (P, 3) float32 metres.
        axes: (P, 3, 3) float32, rows are the half axes.
        extent: (P, 3) half sizes of the bounding boxes.
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
        """(G, P) bool: the bounding box intersects the box from low to high (G, 3)."""
        near = (self.centre - self.extent <= high[:, None]) & (self.centre + self.extent >= low[:, None])
        return near.all(-1) & self.solid

    def between(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """(G, P) bool: may intersect a segment from one of (G, N, 3) points to one of (G, M, 3) points."""
        low = torch.minimum(start.amin(1), end.amin(1))
        found = self.within(low, torch.maximum(start.amax(1), end.amax(1)))
        # The bundle of segments is narrow: two separating axes across it exclude most primitives inside its box.
        along = torch.nn.functional.normalize(end.mean(1) - start.mean(1), dim=-1)
        for axis in tangent_frame(along):
            here, there = (start @ axis[..., None])[..., 0], (end @ axis[..., None])[..., 0]
            low, high = torch.minimum(here.amin(1), there.amin(1)), torch.maximum(here.amax(1), there.amax(1))
            middle = axis @ self.centre.T
            reach = (axis @ self.axes.reshape(-1, 3).T).abs().view(len(axis), -1, 3).sum(-1)
            found &= (middle - reach <= high[:, None]) & (middle + reach >= low[:, None])
        return found

    def first_hit(self, candidates: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Distance to the first candidate along the rays of each bundle.

        Args:
            candidates: (G, P) bool.
            origin, direction: (G, N, 3) float32.

        Returns:
            (G, N) float32 in units of the direction; 0 inside a solid, 1 where nothing is hit before that.
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
    batch_size: int = 8,
) -> torch.Tensor:
    """Distance to the first candidate along the rays of T bundles.

    Args:
        geometry: the primitives.
        maps: its `unit_from_world` in float32, flattened over tables and primitives.
        table: (T,) int64 index of the scene.
        candidates: (T, P) bool.
        origin, direction: (T, 3, N) float32.
        batch_size: candidates tested in one step.

    Returns:
        (T, N) float32 in units of the direction; 0 inside a solid, 1 where nothing is hit before that.
    """
    matrix, shift = maps
    P = geometry.kind.shape[1]
    best = torch.ones(origin.shape[0], origin.shape[2], device=origin.device)
    kinds = geometry.kind.flatten()
    N = origin.shape[2]
    size = max(1, (1 << 18 if origin.device.type == "cpu" else 1 << 25) // (3 * batch_size * N))
    for boxes in (True, False):
        kind = geometry.kind[table]
        column, start, left = ragged_columns(candidates & ((kind == BOX) if boxes else (kind > BOX)))
        step = 0
        active = left.nonzero()[:, 0]
        while active.shape[0]:
            slot = step + torch.arange(batch_size, device=origin.device)[None]
            inside = slot < left[active, None]
            picked = column[(start[active, None] + slot).clamp_max_(column.shape[0] - 1)]
            picked = table[active, None] * P + picked
            for low in range(0, len(active), size):
                rows, part = active[low : low + size], picked[low : low + size]
                M = matrix[part].transpose(1, 2).reshape(len(rows), -1, 3)
                d = (M @ direction[rows]).view(len(rows), 3, batch_size, N)
                o = (M @ origin[rows]).view(len(rows), 3, batch_size, N) + shift[part].transpose(1, 2)[..., None]
                enter, leave = interval(d, o, None if boxes else kinds[part])
                hit = (enter <= leave) & (leave > 1e-3) & inside[low : low + size, :, None]
                enter = torch.where(hit, enter.clamp_min_(0.0), torch.ones_like(enter))
                best[rows] = torch.minimum(best[rows], enter.amin(dim=1))
            step += batch_size
            active = active[left[active] > step]
            active = active[(best[active] > 0).any(dim=1)]
    return best


def tangent_frame(normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit tangents of each normal (L, 3): horizontal and up for walls, along x and y for floors and ceilings."""
    level = normal[:, 2].abs() < 0.9
    up = torch.where(level[:, None], normal.new_tensor([0.0, 0.0, 1.0]), normal.new_tensor([0.0, 1.0, 0.0]))
    across = torch.nn.functional.normalize(torch.linalg.cross(up, normal), dim=-1)
    return across, torch.linalg.cross(normal, across)


def bake(
    geometry: Geometry, worlds: list[BakeInputs], *, lamp_samples: int = 4, ambient_samples: int = 16
) -> list[torch.Tensor]:
    """Bake the light of several scenes.

    Args:
        geometry: one table per scene, on the device that computes.
        worlds: the scenes, in the order of the tables.
        lamp_samples: shadow rays per texel and lamp, a square number; 0 = no shadows.
        ambient_samples: ambient occlusion rays per texel; 0 = no occlusion.

    Returns:
        One (L, 3) float32 irradiance per scene, on the device of the geometry.
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
        order = torch.cat([order, order[-1:].expand(-len(order) % PATCH_TEXELS)])
        point = world.texels.point.to(device)[order].view(-1, PATCH_TEXELS, 3)
        normal = world.texels.normal.to(device)[order].view(-1, PATCH_TEXELS, 3)
        owner = world.texels.primitive.to(device)[order]
        outdoor = world.outdoor.to(device)[owner].view(-1, PATCH_TEXELS, 1)
        colour = world.colours.to(device)[owner].view(-1, PATCH_TEXELS, 3)
        # A different rotation of the sample pattern per texel; the blur over neighbours averages them.
        turn = ((torch.arange(len(order), device=device) * 0.618034) % 1.0).view(-1, PATCH_TEXELS)
        light = torch.zeros_like(point)
        for lamp in world.lamps:
            light += _lamp_irradiance(lamp, occluders, point, normal, turn, lamp_samples)
        visibility = _ambient_visibility(occluders, point, normal, turn, ambient_samples)[..., None]
        # Reflected lamp light with the mean colour of the surfaces, constant indoors.
        inside = ~outdoor[..., 0]
        bounced = (light * colour)[inside].mean(0) * world.ambient.bounce if inside.any() else light.new_zeros(3)
        indoor = (light.new_tensor(world.ambient.indoor) + bounced) * (1 + 0.12 * normal[..., 2:])
        sky = light.new_tensor(world.ambient.sky) * (1 + 0.3 * normal[..., 2:])
        light = light * (0.6 + 0.4 * visibility) + torch.where(outdoor, sky, indoor) * visibility
        flat = torch.zeros(len(world.texels.point), 3, device=device)
        flat[world.texels.order.to(device)] = light.view(-1, 3)[: len(flat)]
        if lamp_samples or ambient_samples:
            flat = flat[world.texels.neighbours.to(device)].mean(1)
        result.append(flat)
    return result


def _lamp_irradiance(
    lamp: Light, occluders: Occluders, point: torch.Tensor, normal: torch.Tensor, turn: torch.Tensor, samples: int
) -> torch.Tensor:
    """(G, PATCH_TEXELS, 3) irradiance of one lamp on G patches of points."""
    device = point.device
    side = max(1, math.isqrt(samples))
    grid = (torch.arange(side, device=device) + 0.5) / side
    sy, sx = torch.meshgrid(grid, grid, indexing="ij")
    # Stratified samples: each texel jitters the grid within its cells.
    jitter = torch.stack([turn, (turn * 7.0) % 1.0], dim=-1)[..., None, :] - 0.5
    spread = torch.stack([sx.flatten(), sy.flatten()], dim=-1) * 2 - 1 + jitter * (2 / side)
    place, facing = (torch.tensor(v, device=device, dtype=point.dtype) for v in (lamp.position, lamp.normal))
    panel = not lamp.sun and any(lamp.normal)
    across, up = tangent_frame((place if lamp.sun else facing if panel else point.new_tensor([0.0, 0.0, 1.0]))[None])
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
        strongest = strength.amax((1, 2))
        lit = (strongest > MIN_LAMP_STRENGTH).nonzero()[:, 0]
        strength[strongest <= MIN_LAMP_STRENGTH] = 0
        ends = (point[:, :, None] + towards)[lit].reshape(len(lit), -1, 3)
        candidates = occluders.between(point[lit], ends)
        origin = point[lit, :, None].expand(-1, -1, S, -1).reshape(len(lit), -1, 3)
        hit_distance = occluders.first_hit(candidates, origin, towards[lit].reshape(len(lit), -1, 3) * 0.999)
        strength[lit] *= (hit_distance >= 1).view(len(lit), N, S)
    return strength.mean(-1, keepdim=True) * lamp.power * point.new_tensor(lamp.colour)


def _ambient_visibility(
    occluders: Occluders, point: torch.Tensor, normal: torch.Tensor, turn: torch.Tensor, samples: int
) -> torch.Tensor:
    """(G, PATCH_TEXELS) share of the ambient light that reaches points: 1 in the open, less in corners."""
    if samples == 0:
        return torch.ones_like(turn)
    k = torch.arange(samples, device=point.device)
    # Cosine-weighted directions, spread by the golden angle.
    radius = ((k + 0.5) / samples).sqrt()
    angle = 2.399963 * k + 6.2831853 * turn[..., None]
    across, up = tangent_frame(normal.reshape(-1, 3))
    across, up = across.view_as(normal)[:, :, None], up.view_as(normal)[:, :, None]
    direction = (
        (radius * torch.cos(angle))[..., None] * across
        + (radius * torch.sin(angle))[..., None] * up
        + (1 - radius.square()).sqrt()[:, None] * normal[:, :, None]
    ) * AMBIENT_REACH_M
    origin = point[:, :, None].expand_as(direction).reshape(len(point), -1, 3)
    candidates = occluders.within(point.amin(1) - AMBIENT_REACH_M, point.amax(1) + AMBIENT_REACH_M)
    hit_distance = occluders.first_hit(candidates, origin, direction.reshape(len(point), -1, 3))
    return hit_distance.view(*turn.shape, samples).mean(-1).sqrt()
