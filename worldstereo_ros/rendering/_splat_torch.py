"""Point splatting in plain torch, for any device; `_splat_numba.py` has the same arithmetic as compiled loops.

Each point becomes one (point, pixel) pair per pixel of its footprint, and scatter operations reduce the pairs: first to
the nearest depth, then to sums over the front surface. Minima and integer sums do not depend on the order, so that the
result is deterministic on CUDA too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.rendering._hole_closing import MIN_AXES, REACH_PX, SECTORS

EMPTY = 0x7F800000  # the bits of +inf: no point covers this pixel
MAX_PAIRS = 1 << 24  # (point, pixel) pairs at once, about 100 bytes each: 1.6 GB


def _pairs(
    points: torch.Tensor, spacing: torch.Tensor, cam: torch.Tensor, cap: float, width: int, height: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yields (point index, flat pixel, z, squared distance, squared radius) of (point, pixel) pairs, in chunks."""
    dx = (points[:, 0] - cam[0]) - cam[3]
    dy = (points[:, 1] - cam[1]) - cam[4]
    dz = (points[:, 2] - cam[2]) - cam[5]
    z = (cam[12] * dx + cam[13] * dy) + cam[14] * dz
    inverse = torch.reciprocal(z)
    u = (((cam[6] * dx + cam[7] * dy) + cam[8] * dz) * inverse) * cam[15] + cam[17]
    v = (((cam[9] * dx + cam[10] * dy) + cam[11] * dz) * inverse) * cam[16] + cam[18]
    h = ((spacing * cam[20]) * inverse).clamp(0.5, cap)
    inside = (z > cam[19]) & (z < 1e9) & (u > -h) & (u < width + h) & (v > -h) & (v < height + h)
    index = inside.nonzero()[:, 0]
    z, u, v, h = z[index], u[index], v[index], h[index]
    x0 = (u - h).ceil().to(torch.int64).clamp(min=0)
    x1 = (u + h).floor().to(torch.int64).clamp(max=width - 1)
    y0 = (v - h).ceil().to(torch.int64).clamp(min=0)
    y1 = (v + h).floor().to(torch.int64).clamp(max=height - 1)
    columns = (x1 - x0 + 1).clamp(min=0)
    area = columns * (y1 - y0 + 1).clamp(min=0)
    radius = h + 0.25
    radius = radius * radius
    ends = area.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    edges = [0]
    for k in range(1, -(-total // MAX_PAIRS) + 1):
        edges.append(int(torch.searchsorted(ends, min(k * MAX_PAIRS, total), right=False)) + 1)
    for start, stop in itertools.pairwise(edges):
        part = area[start:stop]
        row = torch.repeat_interleave(torch.arange(start, stop, device=area.device), part)
        within = torch.arange(len(row), device=area.device) - (ends[row] - area[row] - (ends[start] - area[start]))
        x = x0[row] + within % columns[row]
        y = y0[row] + within // columns[row]
        across, down = x - u[row], y - v[row]
        distance = across * across + down * down
        touches = distance <= radius[row]
        row, x, y, distance = row[touches], x[touches], y[touches], distance[touches]
        yield index[row], y * width + x, z[row], distance, radius[row]


def splat(
    cloud: tuple[torch.Tensor, ...], camera_values: torch.Tensor, width: int, height: int, settings: tuple
) -> tuple[torch.Tensor, ...]:
    """Renders one frame.

    Args:
        cloud: (points, colours, provenance, spacing), see `splatting.render`; tensors on one device.
        camera_values: the 21 float32 values of `splatting._camera_values` on that device.
        width, height: image size in pixels.
        settings: see `_splat_numba.splat`.

    Returns:
        colour (H, W, 3) uint8, depth (H, W) float32, covered (H, W) bool, provenance (H, W) uint8.
    """
    points, colours, provenance, spacing = cloud
    cap, tolerance, slab, jump, grades = settings
    device, pixels = points.device, width * height

    def set_back(index: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        # Depth at which a point competes: points of lower classes are set back, so that higher ones are in front.
        kind, gap = provenance[index], spacing[index]
        estimated = z * (0.5 + 0.5 * tolerance) + 0.5 * gap
        return torch.where(
            kind == Provenance.OBSERVED,
            z,
            torch.where(kind == Provenance.ESTIMATED, estimated, z * tolerance + gap),
        )

    def pairs() -> Iterator[tuple[torch.Tensor, ...]]:
        # Computed again in each pass, because memory would grow with the number of points.
        return _pairs(points, spacing, camera_values, cap, width, height)

    nearest = torch.full((pixels,), EMPTY, dtype=torch.int32, device=device)
    for index, pixel, z, _, _ in pairs():
        rank = Provenance.OBSERVED - provenance[index].to(torch.int32)
        key = (set_back(index, z).view(torch.int32) & -4) | rank
        nearest.scatter_reduce_(0, pixel, key, "amin")
    front = nearest.view(torch.float32)
    kinds = (Provenance.OBSERVED - (nearest & 3)).to(torch.uint8)
    limit = front * tolerance

    sums = torch.zeros((4, pixels), dtype=torch.int64, device=device)
    for index, pixel, z, distance, radius in pairs():
        depth = (set_back(index, z) - slab * spacing[index]).clamp(min=1e-9)
        on_front = (depth <= limit[pixel]) & (provenance[index] == kinds[pixel])
        index, pixel, z, distance, radius = (t[on_front] for t in (index, pixel, z, distance, radius))
        weight = 1 + grades - (distance * (torch.full_like(radius, grades) / radius)).to(torch.int64)
        relative_depth = ((z * 4096.0) / front[pixel]).to(torch.int64).clamp(max=8191)
        rgb = colours[index].to(torch.int64)
        sums[0].scatter_add_(0, pixel, ((rgb[:, 0] << 28) | 1) * weight)
        sums[1].scatter_add_(0, pixel, rgb[:, 1] * weight)
        sums[2].scatter_add_(0, pixel, rgb[:, 2] * weight)
        sums[3].scatter_add_(0, pixel, relative_depth * weight)

    weight = sums[0] & 0xFFFFFFF
    sums[0] >>= 28
    covered = weight > 0
    divisor = weight.clamp(min=1)
    colour = ((sums[:3] + (weight >> 1)) // divisor).to(torch.uint8)
    colour = torch.where(covered, colour, 128).T.reshape(height, width, 3).contiguous()
    ratio = (sums[3].double() / divisor.double()).float() * (1.0 / 4096.0)
    depth = torch.where(covered, front * ratio, 0.0).reshape(height, width)
    out_provenance = torch.where(covered, kinds, 0).to(torch.uint8).reshape(height, width)
    if jump > 0:
        return _close(colour, depth, out_provenance, jump)
    return colour, depth, covered.reshape(height, width), out_provenance


def _close(
    colour: torch.Tensor, depth: torch.Tensor, provenance: torch.Tensor, jump: float
) -> tuple[torch.Tensor, ...]:
    """Closes small holes and pinholes, see `_splat_numba._close`."""
    height, width = depth.shape
    limit = torch.where(depth > 0, depth * jump, torch.inf)
    pad = torch.nn.functional.pad
    around = (REACH_PX, REACH_PX, REACH_PX, REACH_PX)
    padded_depth = pad(depth, around)
    padded_colour = pad(colour.to(torch.int64).permute(2, 0, 1), around)
    padded_provenance = pad(provenance, around)
    directions = []
    for sector in SECTORS:
        hit = torch.zeros_like(depth)
        weight = torch.zeros(depth.shape, dtype=torch.int64, device=depth.device)
        rgb = torch.zeros((3, height, width), dtype=torch.int64, device=depth.device)
        hit_provenance = torch.zeros_like(provenance)
        for dx, dy, pixel_weight in sector:
            rows = slice(REACH_PX + dy, REACH_PX + dy + height)
            columns = slice(REACH_PX + dx, REACH_PX + dx + width)
            near = padded_depth[rows, columns]
            first = (near > 0) & (near < limit) & (hit == 0)
            hit = torch.where(first, near, hit)
            weight = torch.where(first, pixel_weight, weight)
            rgb = torch.where(first, padded_colour[:, rows, columns], rgb)
            hit_provenance = torch.where(first, padded_provenance[rows, columns], hit_provenance)
        directions.append((hit, weight, rgb, hit_provenance))
    hits = torch.stack([d[0] for d in directions])
    surrounded = ((hits[:4] > 0) & (hits[4:] > 0)).sum(0) >= MIN_AXES
    nearest_kept = hits.amax(0) * jump
    total = torch.zeros(depth.shape, dtype=torch.int64, device=depth.device)
    sums = torch.zeros((3, height, width), dtype=torch.int64, device=depth.device)
    mean = torch.zeros_like(depth)
    lowest = torch.full_like(provenance, Provenance.OBSERVED)
    for hit, weight, rgb, hit_provenance in directions:
        kept = (hit > 0) & (hit >= nearest_kept)
        weight = torch.where(kept, weight, 0)
        total += weight
        sums += weight * rgb
        mean = mean + weight.float() * hit
        lowest = torch.where(kept, torch.minimum(lowest, hit_provenance), lowest)
    divisor = total.clamp(min=1)
    closed = ((sums + (total >> 1)) // divisor).to(torch.uint8).permute(1, 2, 0)
    depth = torch.where(surrounded, mean / divisor.float(), depth)
    colour = torch.where(surrounded[..., None], closed, colour)
    return colour, depth, depth > 0, torch.where(surrounded, lowest, provenance)
