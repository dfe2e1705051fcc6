"""Colour of surfaces: one vectorised shader for all materials.

A material is a row of numbers (`Material.row`). The shader finds for each point its cell in a grid (brick, tile, plank,
check, stripe), the joint around it, and value noise in several octaves. Edges and octaves fade with the pixel's
footprint on the surface, so that a distant wall shows its mean colour instead of a moiré pattern.
"""

from __future__ import annotations

from functools import lru_cache

import torch

COLUMNS = (
    "ar", "ag", "ab", "br", "bg", "bb", "jr", "jg", "jb", "inv_cu", "inv_cv", "shift", "joint", "pattern", "variance",
    "noise", "blend", "fu", "fv", "grain", "ripple", "gloss", "emission", "image", "seed",
)  # fmt: skip
"""Columns of a table of materials."""

SIZE = 256
"""Cells after which the noise lattice repeats."""


@lru_cache(maxsize=4)
def lattice(device: torch.device) -> torch.Tensor:
    """(SIZE * SIZE, 4) float32 lattice of the value noise: each value with its right, lower and diagonal neighbour.

    Uniform in -1..1 and the same in every world; materials sample it at different offsets.
    """
    values = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(20)) * 2 - 1
    right, below = values.roll(-1, 1), values.roll(-1, 0)
    return torch.stack([values, right, below, right.roll(-1, 0)], dim=-1).reshape(-1, 4).contiguous().to(device)


def _cell(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Index into the lattice for integer coordinates stored as floats."""
    return (row.to(torch.int32).bitwise_and_(SIZE - 1) * SIZE).add_(column.to(torch.int32).bitwise_and_(SIZE - 1))


def value_noise(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(N,) value noise in -1..1 at lattice coordinates (N,), with smoothstep interpolation."""
    column, row = u.floor(), v.floor()
    corners = lattice(u.device).index_select(0, _cell(row, column))
    s, t = u - column, v - row
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    top = torch.lerp(corners[:, 0], corners[:, 1], s)
    return torch.lerp(top, torch.lerp(corners[:, 2], corners[:, 3], s), t)


def _line(distance: torch.Tensor, width: torch.Tensor, footprint: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    """(N,) coverage of pixels by a line: distance and width of the line, size of the pixel, lines per metre."""
    sharp = ((0.5 * width - distance) / footprint + 0.5).clamp_(0, 1) * (width / footprint).clamp_max_(1)
    far = (footprint * density * 2 - 0.6).clamp_(0, 1)
    return torch.lerp(sharp, (width * density).clamp_max_(1), far)


def surface(
    rows: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    footprint: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the materials at points on surfaces.

    Args:
        rows: (N, len(COLUMNS)) float32, the material of each point.
        u, v: (N,) float32 position on the surface, metres.
        footprint: (N,) float32 size of the pixel on the surface, metres.

    Returns:
        albedo: (N, 3) linear RGB 0..1; emission: (N,).
    """
    column = dict(zip(COLUMNS, rows.unbind(1), strict=True))
    inv_cu, inv_cv, seed = column["inv_cu"], column["inv_cv"], column["seed"]

    cell_v = v * inv_cv
    row = cell_v.floor()
    part_v = cell_v - row
    # A negative shift offsets each row by a random part of a cell, as floor boards are.
    random_row = lattice(u.device)[:, 0].index_select(0, _cell(row + seed * 3, seed * 7))
    shift = column["shift"]
    cell_u = u * inv_cu + torch.where(shift < 0, random_row * -shift, shift * row)
    col = cell_u.floor()
    part_u = cell_u - col
    corners = lattice(u.device).index_select(0, _cell(row + seed, col + seed * 5))
    random_cell, random_mix = corners[:, 0], corners[:, 1]

    # Checks and stripes: a square wave with edges one pixel wide.
    edge_u, edge_v = (0.5 - (part_u - 0.5).abs()) / inv_cu, (0.5 - (part_v - 0.5).abs()) / inv_cv
    half_pixel = 0.5 * footprint
    wave_u = (1 - 4 * (col * 0.5 - (col * 0.5).floor())) * (edge_u / half_pixel).clamp_(0, 1)
    wave_u = wave_u * (1.6 - footprint * inv_cu).clamp_(0, 1)
    wave_v = (1 - 4 * (row * 0.5 - (row * 0.5).floor())) * (edge_v / half_pixel).clamp_(0, 1)
    wave_v = wave_v * (1.6 - footprint * inv_cv).clamp_(0, 1)
    pattern = column["pattern"]
    wave = torch.where(pattern > 1.5, wave_u, wave_u * wave_v)
    mix = 0.5 + 0.5 * torch.where(pattern > 0.5, wave, random_mix)

    # Noise octaves from coarse to fine; those finer than a pixel are faded out.
    fu, fv = column["fu"], column["fv"]
    own = column["grain"] * random_cell * 97.0
    nu, nv = u * fu + seed + own, v * fv + seed * 2 + own
    size = footprint * torch.maximum(fu, fv)
    noise = (
        0.6 * value_noise(nu * 0.31, nv * 0.31)
        + 0.7 * value_noise(nu, nv) * (1.5 - 2 * size).clamp_(0, 1)
        + 0.35 * value_noise(nu * 3.7 + 11, nv * 3.7 + 5) * (1.5 - 7.4 * size).clamp_(0, 1)
        + 0.25 * value_noise(nu * 11.3 + 3, nv * 11.3 + 17) * (1.5 - 22.6 * size).clamp_(0, 1)
    )
    mix = (mix + column["blend"] * noise).clamp_(0, 1)
    ripple = torch.sin(part_u * 6.2831853) * (1.2 - 2 * footprint * inv_cu).clamp_(0, 1)
    light = 1 + column["variance"] * random_cell + column["noise"] * noise + column["ripple"] * ripple
    joint = column["joint"]
    line_u, line_v = _line(edge_u, joint, footprint, inv_cu), _line(edge_v, joint, footprint, inv_cv)
    line = line_u + line_v - line_u * line_v
    albedo = torch.lerp(rows[:, 0:3], rows[:, 3:6], mix[:, None]) * light[:, None]
    albedo = torch.lerp(albedo, rows[:, 6:9] * (1 + 0.15 * noise)[:, None], line[:, None])
    return albedo.clamp_(0, 1), column["emission"]


def mip_chain(images: torch.Tensor) -> torch.Tensor:
    """Mip maps of (n, S, S, 3) images, S a power of two: (n, texels, 3), all levels in sequence, largest first."""
    levels = [images.permute(0, 3, 1, 2)]
    while levels[-1].shape[-1] > 1:
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(images), -1, 3) for level in levels], dim=1)


def sample_images(
    chain: torch.Tensor, size: int, index: torch.Tensor, s: torch.Tensor, t: torch.Tensor, pixel: torch.Tensor
) -> torch.Tensor:
    """Sample images with trilinear filtering.

    Args:
        chain: (n * texels, 3) mip maps of `mip_chain`.
        size: S of the largest level.
        index: (N,) int64 index of the image.
        s, t: (N,) float32 in 0..1 from the left and from the top.
        pixel: (N,) float32 size of a pixel as a fraction of the image.

    Returns:
        (N, 3) float32.
    """
    count = size.bit_length()
    texels_per_image = (4 * size * size - 1) // 3
    level = torch.log2((pixel * size).clamp_min(1.0)).clamp_max(count - 1.001)
    lower = level.floor()

    def at(which: torch.Tensor) -> torch.Tensor:
        side = torch.pow(2.0, (count - 1) - which)
        # The larger levels hold S^2 + (S/2)^2 + ... texels.
        start = ((4.0 * size * size - 4.0 * side * side) / 3.0).round().long() + index * texels_per_image
        x = (s * side - 0.5).clamp_min(0).minimum(side - 1)
        y = (t * side - 0.5).clamp_min(0).minimum(side - 1)
        x0, y0 = x.floor(), y.floor()
        x1, y1 = (x0 + 1).minimum(side - 1), (y0 + 1).minimum(side - 1)

        def texel(row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
            return chain.index_select(0, start + (row * side + col).long())

        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        top = torch.lerp(texel(y0, x0), texel(y0, x1), fx)
        return torch.lerp(top, torch.lerp(texel(y1, x0), texel(y1, x1), fx), fy)

    return torch.lerp(at(lower), at(lower + 1), (level - lower)[:, None])


def sky(direction: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
    """Colour of the sky: a vertical gradient, clouds, and the glow of the sun.

    Args:
        direction: (N, 3) float32 unit vectors, world axes.
        settings: (N, 11) float32 of `Sky.row`: colours at zenith and horizon, amount of clouds, direction to the sun,
            seed.

    Returns:
        (N, 3) linear RGB.
    """
    up = direction[:, 2].clamp_min(0)
    height = (1 - up).pow(4)[:, None]
    colour = torch.lerp(settings[:, 0:3], settings[:, 3:6], height)
    # Clouds lie on a plane above the scene.
    reach = 2.2 / (up + 0.15)
    x, y = direction[:, 0] * reach + settings[:, 10], direction[:, 1] * reach + settings[:, 10]
    cloud = value_noise(x, y) + 0.5 * value_noise(x * 2.3 + 7, y * 2.3 + 3) + 0.25 * value_noise(x * 5.1, y * 5.1 + 9)
    amount = ((cloud + settings[:, 6] - 0.5) * 1.2).clamp_(0, 0.85) * (up * 6).clamp_(0, 1)
    sun = (direction * settings[:, 7:10]).sum(1).clamp_min(0).pow(32)
    colour = torch.lerp(colour, colour.new_ones(1, 3), amount[:, None])
    return colour + sun[:, None] * colour.new_tensor([0.5, 0.42, 0.3])
