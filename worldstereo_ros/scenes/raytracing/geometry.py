"""Vectorised ray casting against convex primitives, in torch.

A ray is intersected with a primitive in the primitive's unit frame, by the slab method for boxes and by a quadric and
one slab for cylinders and spheres. Rays are cast in tiles. A tile tests only primitives that intersect its frustum,
front to back, in small batches, and stops when all its hits are nearer than the remaining primitives. Culling is
conservative: the result is that of testing every ray against every primitive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes.raytracing.primitives import BOX, SPHERE

NEAR_M = 1e-3
"""Near plane, metres along the optical axis."""

MAX_RECIPROCAL = 1e12


@dataclass(frozen=True)
class Geometry:
    """Primitives of T tables (one per scene), padded to P, on a device.

    Attributes:
        kind: (T, P) int64; -1 where padded.
        centre, half: (T, P, 3) float64 metres.
        rotation: (T, P, 3, 3) float64 world_from_local.
        casts: (T, P) bool, casts shadows.
    """

    kind: torch.Tensor
    centre: torch.Tensor
    half: torch.Tensor
    rotation: torch.Tensor
    casts: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.kind.device

    def unit_from_world(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps into the unit frames, q = M x + m: M (T, P, 3, 3) and m (T, P, 3), float64."""
        matrix = self.rotation.transpose(-1, -2) / self.half[..., :, None]
        return matrix, -(matrix @ self.centre[..., None])[..., 0]


def interval(
    direction: torch.Tensor, origin: torch.Tensor, kind: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ray parameters at which rays enter and leave primitives, in units of the directions.

    Args:
        direction: (T, 3, K, N) in the unit frames; overwritten.
        origin: (T, 3, K, N) or (T, 3, K, 1) in the unit frames.
        kind: (T, K) kinds of round primitives; None if all are boxes.

    Returns:
        enter, leave: (T, K, N); a ray misses where leave < enter.
    """
    if kind is None:
        inverse = direction.reciprocal_().clamp_(-MAX_RECIPROCAL, MAX_RECIPROCAL)
        low, high = (-1.0 - origin) * inverse, (1.0 - origin) * inverse
        enter, leave = torch.minimum(low, high), torch.maximum(low, high, out=inverse)
        return enter.amax(dim=1), leave.amin(dim=1)
    # The quadric is solved about the point of the ray nearest to the centre; else rounding destroys the surface of
    # small, distant spheres.
    ball = (kind == SPHERE).to(direction.dtype)[:, :, None]
    dx, dy, dz = direction.unbind(1)
    ox, oy, oz = origin.unbind(1)
    a = (dx * dx + dy * dy + ball * (dz * dz)).clamp_min_(1e-12)
    nearest = -(ox * dx + oy * dy + ball * (oz * dz)) / a
    px, py, pz = ox + nearest * dx, oy + nearest * dy, ball * (oz + nearest * dz)
    square = (1.0 - (px * px + py * py + pz * pz)) / a
    reach = square.clamp_min(0.0).sqrt_()
    reach = torch.where(square >= 0, reach, torch.full_like(reach, -1.0))
    inverse = dz.reciprocal().clamp_(-MAX_RECIPROCAL, MAX_RECIPROCAL)
    low, high = (-1.0 - oz) * inverse, (1.0 - oz) * inverse
    flat_enter, flat_leave = torch.minimum(low, high), torch.maximum(low, high)
    enter = torch.maximum(nearest - reach, torch.where(ball > 0, torch.full_like(reach, -MAX_RECIPROCAL), flat_enter))
    leave = torch.minimum(nearest + reach, torch.where(ball > 0, torch.full_like(reach, MAX_RECIPROCAL), flat_leave))
    # A missed quadric has negative reach, so enter > leave.
    return enter, leave


def ragged_columns(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Column indices of the true entries, row by row.

    Args:
        mask: (T, P) bool.

    Returns:
        column: (M,) int64, in row order.
        start, count: (T,) int64 first entry and number of entries of each row.
    """
    count = mask.sum(dim=1)
    return mask.nonzero()[:, 1], count.cumsum(0) - count, count


@dataclass(frozen=True)
class Hits:
    """Nearest hits of rays, tile by tile.

    Attributes:
        depth: (T, N) float32 metres along the optical axis, inf without a hit.
        row: (T, N) int64 index into the (frames * P) rows of `RayFrames`, -1 without a hit.
    """

    depth: torch.Tensor
    row: torch.Tensor


@dataclass(frozen=True)
class RayFrames:
    """Primitives in the cameras of F frames. Computed in float64 and stored in float32.

    Attributes:
        table: (F,) int64 table of the geometry of each frame.
        matrix: (F, P, 3, 3) float32 unit_from_camera.
        origin: (F, P, 3) float32 camera centre in the unit frames.
        centre: (F, P, 3) float32 metres, camera axes.
        axes: (F, P, 3, 3) float32, columns are the half axes in camera axes.
    """

    table: torch.Tensor
    matrix: torch.Tensor
    origin: torch.Tensor
    centre: torch.Tensor
    axes: torch.Tensor

    @staticmethod
    def from_cameras(
        geometry: Geometry, table: torch.Tensor, world_from_camera: torch.Tensor, motion: torch.Tensor | None = None
    ) -> RayFrames:
        """Transform primitives into cameras.

        Args:
            geometry: the primitives.
            table: (F,) int64 table of each frame.
            world_from_camera: (F, 4, 4) float64.
            motion: (F, P, 4, 4) float64 motion of each primitive since time 0; None if all are static.
        """
        camera_from_world = world_from_camera[:, None, :3, :3].transpose(-1, -2)
        position, rotation = geometry.centre[table], geometry.rotation[table]
        if motion is not None:
            position = (motion[..., :3, :3] @ position[..., None])[..., 0] + motion[..., :3, 3]
            rotation = motion[..., :3, :3] @ rotation
        offset = position - world_from_camera[:, None, :3, 3]
        centre = (camera_from_world @ offset[..., None])[..., 0]
        half = geometry.half[table]
        axes = (camera_from_world @ rotation) * half[..., None, :]
        matrix = axes.transpose(-1, -2) / half[..., None].square()
        origin = -(matrix @ centre[..., None])[..., 0]
        return RayFrames(table, matrix.float(), origin.float(), centre.float(), axes.float())


@dataclass(frozen=True)
class Tiles:
    """Division of an image into tiles of `height` x `width` rays.

    Attributes:
        rows, columns: number of tiles down and across; the last ones may exceed the image.
        inner: (3, N) float32 ray of each pixel of a tile relative to the tile's first ray, with z = 1.
        first: (rows * columns, 2) float32 x and y of the first ray of each tile.
        x_edges, y_edges: (columns + 1,), (rows + 1,) float32 borders of the tiles, x and y at z = 1.
    """

    height: int
    width: int
    rows: int
    columns: int
    inner: torch.Tensor
    first: torch.Tensor
    x_edges: torch.Tensor
    y_edges: torch.Tensor

    @staticmethod
    def from_camera(camera: Camera, device: torch.device, height: int, width: int) -> Tiles:
        """The tiles of a camera's image."""
        rows, columns = -(-camera.height // height), -(-camera.width // width)
        kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
        x = (torch.arange(columns, **kind) * width - camera.cx) / camera.fx
        y = (torch.arange(rows, **kind) * height - camera.cy) / camera.fy
        within_x, within_y = torch.arange(width, **kind) / camera.fx, torch.arange(height, **kind) / camera.fy
        grid_y, grid_x = torch.meshgrid(within_y, within_x, indexing="ij")
        first_y, first_x = torch.meshgrid(y, x, indexing="ij")
        inner = torch.stack([grid_x.flatten(), grid_y.flatten(), torch.ones_like(grid_x.flatten())])
        edges_x = (torch.arange(columns + 1, **kind) * width - 0.5 - camera.cx) / camera.fx
        edges_y = (torch.arange(rows + 1, **kind) * height - 0.5 - camera.cy) / camera.fy
        return Tiles(
            height, width, rows, columns, inner.float(),
            torch.stack([first_x.flatten(), first_y.flatten()], dim=1).float(), edges_x.float(), edges_y.float(),
        )  # fmt: skip

    def rays(self) -> torch.Tensor:
        """(tiles, 3, N) float32 ray directions in camera axes, z = 1."""
        rays = self.inner[None].repeat(len(self.first), 1, 1)
        rays[:, :2] += self.first[:, :, None]
        return rays

    def image(self, values: torch.Tensor, camera: Camera) -> torch.Tensor:
        """Rearrange values (F * tiles * N, ...) to images (F, H, W, ...)."""
        rest = values.shape[1:]
        cut = values.reshape(-1, self.rows, self.columns, self.height, self.width, *rest).transpose(2, 3)
        whole = cut.reshape(-1, self.rows * self.height, self.columns * self.width, *rest)
        return whole[:, : camera.height, : camera.width].contiguous()


def tile_overlaps(frames: RayFrames, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
    """Conservative visibility of primitives in tiles.

    Returns:
        overlap: (F, rows, columns, P) bool, True where the primitive's box intersects the tile's frustum.
        nearest: (F, P) float32 smallest depth of the primitive's box.
    """
    x, y, z = frames.centre.unbind(-1)
    ax, ay, az = frames.axes.unbind(-2)
    reach = az.abs().sum(-1)
    slack = 1e-4 + 1e-5 * z.abs()

    def sides(centre: torch.Tensor, axis: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        edge = edges[None, :, None]
        middle = centre[:, None] - edge * z[:, None]
        extent = (axis[:, None] - edge[..., None] * az[:, None]).abs().sum(-1) + slack[:, None]
        return (middle[:, :-1] + extent[:, :-1] >= 0) & (middle[:, 1:] - extent[:, 1:] <= 0)

    across, down = sides(x, ax, tiles.x_edges), sides(y, ay, tiles.y_edges)
    across &= (z + reach > NEAR_M)[:, None]
    return down[:, :, None] & across[:, None], z - reach - slack


def cast_rays(geometry: Geometry, frames: RayFrames, tiles: Tiles, batch_size: int | None = None) -> Hits:
    """Find the nearest primitive along every ray of every frame.

    Args:
        geometry: T tables of P primitives.
        frames: F frames of them.
        tiles: division of the image.
        at_once: primitives that a tile tests in one step; None: as suits the device.
    """
    batch_size = batch_size or (6 if geometry.device.type == "cpu" else 16)
    overlap, nearest = tile_overlaps(frames, tiles)
    kind = geometry.kind[frames.table]
    nearest, order = nearest.sort(dim=1)
    kind = kind.gather(1, order)
    overlap = overlap.gather(3, order[:, None, None, :].expand_as(overlap))
    count = overlap.shape[1] * overlap.shape[2]
    F, P = order.shape
    # Row F * P is a dummy primitive that no ray hits; it pads the last batch of a tile.
    matrix = torch.cat([frames.matrix.reshape(-1, 3, 3), frames.matrix.new_zeros(1, 3, 3)])
    origin = torch.cat([frames.origin.reshape(-1, 3), frames.origin.new_full((1, 3), 2.0)])
    kinds = torch.cat([geometry.kind[frames.table].reshape(-1), kind.new_full((1,), BOX)])
    row_of = order + torch.arange(F, device=order.device)[:, None] * P
    first = tiles.first.repeat(F, 1)
    N = tiles.inner.shape[1]
    best = torch.full((F * count, N), torch.inf, device=order.device)
    row = torch.full((F * count, N), -1, dtype=torch.int64, device=order.device)
    for boxes in (True, False):
        chosen = (overlap & ((kind == BOX) if boxes else (kind > BOX))[:, None, None]).reshape(F * count, P)
        column, start, left = ragged_columns(chosen)
        if column.shape[0] == 0:
            continue
        frame_of = torch.arange(F * count, device=order.device) // count
        active = left.nonzero()[:, 0]
        step = 0
        while active.shape[0]:
            slot = step + torch.arange(batch_size, device=order.device)[None]
            inside = slot < left[active, None]
            picked = column[(start[active, None] + slot).clamp_max_(column.shape[0] - 1)]
            candidate = torch.where(inside, row_of[frame_of[active, None], picked], F * P)
            depth, which = _intersect_candidates(
                matrix, origin, kinds if not boxes else None, candidate, first[active], tiles.inner
            )
            before = best[active]
            nearer = depth < before
            best[active] = torch.where(nearer, depth, before)
            row[active] = torch.where(nearer, candidate.gather(1, which), row[active])
            step += batch_size
            active = active[left[active] > step]
            if active.shape[0]:
                # Candidates are sorted by depth: the next one bounds all that remain.
                following = nearest[frame_of[active], column[start[active] + step]]
                active = active[following < best[active].amax(dim=1)]
    return Hits(best, row)


def _intersect_candidates(
    matrix: torch.Tensor,
    origin: torch.Tensor,
    kinds: torch.Tensor | None,
    candidate: torch.Tensor,
    first: torch.Tensor,
    inner: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest of (T, K) candidates along the rays of T tiles: depth (T, N) and index of the candidate (T, N)."""
    T, K = candidate.shape
    N = inner.shape[1]
    depth = torch.empty(T, N, device=inner.device)
    which = torch.empty(T, N, dtype=torch.int64, device=inner.device)
    # Chunks fit into the cache of a CPU core; on a GPU they bound memory.
    size = max(1, (1 << 18 if inner.device.type == "cpu" else 1 << 25) // (3 * K * N))
    for low in range(0, T, size):
        part = candidate[low : low + size]
        A = matrix[part].transpose(1, 2)
        corner = first[low : low + size, None, None]
        # Fold the tile's corner into the matrix, so that all tiles share one small right-hand side.
        A = torch.cat([A[..., :2], (A[..., :2] * corner).sum(-1, keepdim=True) + A[..., 2:]], dim=-1)
        direction = (A.reshape(-1, 3) @ inner).view(-1, 3, K, N)
        enter, leave = interval(
            direction, origin[part].transpose(1, 2)[..., None], None if kinds is None else kinds[part]
        )
        # A camera inside a solid does not see that solid.
        enter = torch.where((enter <= leave) & (enter > NEAR_M), enter, torch.inf)
        depth[low : low + size], which[low : low + size] = enter.min(dim=1)
    return depth, which
