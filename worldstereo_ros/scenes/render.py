"""Pictures of scenes: rays are cast, what they hit is coloured and lit, and the result is tone-mapped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from worldstereo_ros.camera import Camera
from worldstereo_ros.scenes.geometry import Frames, Tiles, cast
from worldstereo_ros.scenes.primitives import BOX, CYLINDER
from worldstereo_ros.scenes.scene import Packed, Scene, SceneFrames, pack
from worldstereo_ros.scenes.textures import COLUMNS, sample_pictures, sky, surface

PICTURE, GLOSS = COLUMNS.index("picture"), COLUMNS.index("gloss")


def render_batch(
    scenes: Sequence[Scene] | Packed,
    camera: Camera,
    world_from_camera: np.ndarray | torch.Tensor,
    *,
    device: torch.device | str | None = None,
    supersample: int = 1,
    light: str = "soft",
) -> SceneFrames:
    """Frames of many scenes at once.

    Args:
        scenes: B scenes, or what `pack` made of them (which keeps their light for more calls).
        camera: one for all.
        world_from_camera: (B, F, 4, 4), OpenCV axes.
        device, supersample, light: as in `Scene.render`; device and light are those of the pack where one is given.

    Returns:
        SceneFrames whose tensors begin with (B, F, ...).

    Raises:
        ValueError: poses of the wrong shape.
    """
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64)
    B = scenes.exposure.shape[0] if isinstance(scenes, Packed) else len(scenes)
    if poses.ndim != 4 or poses.shape[0] != B or poses.shape[2:] != (4, 4):
        raise ValueError(f"The poses have shape {tuple(poses.shape)}; (B, F, 4, 4) with B = {B} scenes was expected.")
    packed = scenes if isinstance(scenes, Packed) else pack(scenes, device=device or "cpu", light=light)
    F = poses.shape[1]
    table = torch.arange(B).repeat_interleave(F)
    frames = render_packed(packed, camera, poses.reshape(-1, 4, 4), table, supersample=supersample)
    return SceneFrames(
        *(part.reshape(B, F, *part.shape[1:]) for part in (frames.image, frames.depth, frames.normals, frames.instance))
    )


def render_packed(
    packed: Packed,
    camera: Camera,
    world_from_camera: torch.Tensor,
    table: torch.Tensor,
    *,
    supersample: int = 1,
    rays_at_once: int | None = None,
) -> SceneFrames:
    """Frames of packed scenes.

    Args:
        packed: the scenes.
        camera: one for all frames.
        world_from_camera: (F, 4, 4) float64.
        table: (F,) int64, which scene each frame looks at.
        supersample: rays a pixel along each side.
        rays_at_once: bounds memory: about 600 bytes a ray; None = as many as suit the device.

    Raises:
        ValueError: poses of the wrong shape or not finite; a supersample outside 1..8.
    """
    if world_from_camera.shape[1:] != (4, 4) or not bool(torch.isfinite(world_from_camera).all()):
        raise ValueError(
            f"The poses have shape {tuple(world_from_camera.shape)}; finite (F, 4, 4) matrices were expected."
        )
    if not 1 <= supersample <= 8:
        raise ValueError(f"supersample is {supersample}; it must be a whole number from 1 to 8.")
    device = packed.geometry.device
    poses, table = world_from_camera.to(device), table.to(device)
    limit = rays_at_once or (1 << 16 if device.type == "cpu" else 1 << 22)
    size = max(1, limit // (camera.width * camera.height * supersample**2))
    parts = []
    for low in range(0, len(poses), size):
        frames = Frames.see(packed.geometry, table[low : low + size], poses[low : low + size])
        exact = _render(packed, camera, frames, poses[low : low + size], colour=supersample == 1)
        if supersample > 1:
            fine = camera.resized(camera.width * supersample, camera.height * supersample)
            image = _render(packed, fine, frames, poses[low : low + size], geometry=False)[0]
            image = image.reshape(-1, camera.height, supersample, camera.width, supersample, 3).mean((2, 4))
            exact = (image, *exact[1:])
        image = (exact[0] * 255 + 0.5).to(torch.uint8)
        parts.append((image, *exact[1:]))
    if not parts:
        H, W = camera.height, camera.width
        return SceneFrames(
            torch.zeros(0, H, W, 3, dtype=torch.uint8, device=device), torch.zeros(0, H, W, device=device),
            torch.zeros(0, H, W, 3, device=device), torch.zeros(0, H, W, dtype=torch.int32, device=device),
        )  # fmt: skip
    return SceneFrames(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _render(packed, camera, frames, poses, *, colour=True, geometry=True):
    """Image (F, H, W, 3) float 0..1, depth, normals, instance of some frames; None for what is not asked for."""
    device = packed.geometry.device
    tall, wide = (8, 16) if camera.width * camera.height <= 100_000 else (16, 32)
    tiles = Tiles.of(camera, device, tall, wide)
    hits = cast(packed.geometry, frames, tiles)
    F, P = frames.matrix.shape[:2]
    count, N = len(tiles.first), tiles.inner.shape[1]
    depth, row = hits.depth.flatten(), hits.row.flatten()
    met = row >= 0
    everything = bool(met.all())
    ray = torch.arange(len(row), device=device) if everything else met.nonzero()[:, 0]
    t = depth if everything else depth[ray]
    row = row if everything else row[ray]
    frame = ray // (count * N)
    x, y = tiles.rays().unbind(1)[:2]
    within = ray % (count * N)
    dx, dy = x.flatten()[within], y.flatten()[within]
    solid = frames.table[frame] * P + (row - frame * P)

    # The hit in the unit frame of its primitive: q = origin + t * matrix (dx, dy, 1).
    maps = torch.cat([frames.matrix.reshape(-1, 9), frames.origin.reshape(-1, 3)], dim=1).index_select(0, row)
    q = [maps[:, 9 + i] + t * (maps[:, 3 * i] * dx + maps[:, 3 * i + 1] * dy + maps[:, 3 * i + 2]) for i in range(3)]
    kind = packed.solids[:, 0].index_select(0, solid)
    ax, ay, az = q[0].abs(), q[1].abs(), q[2].abs()
    # A box is met where one coordinate is 1 in size: that one is the largest.
    face = torch.where(
        (az >= ax) & (az >= ay), 4 + (q[2] > 0).long(), torch.where(ay >= ax, 2 + (q[1] > 0).long(), (q[0] > 0).long())
    )
    round_ = (kind > BOX).nonzero()[:, 0]
    qu = torch.where(face < 2, q[1], q[0])
    qv = torch.where(face < 4, q[2], q[1])
    normal_of_round = None
    if round_.shape[0]:
        rx, ry, rz = q[0][round_], q[1][round_], q[2][round_]
        cap = (kind[round_] == CYLINDER) & (rz.abs() > (rx * rx + ry * ry).sqrt())
        face[round_] = torch.where(cap, 4 + (rz > 0).long(), 0)
        qu[round_] = torch.where(cap, rx, torch.atan2(ry, rx) * (1 / math.pi))
        qv[round_] = torch.where(cap, ry, rz)
        mantle = round_[~cap]
        rows = packed.solids.index_select(0, solid[mantle])
        local = torch.stack([q[0][mantle], q[1][mantle], q[2][mantle] * (rows[:, 0] > CYLINDER)], dim=1) / rows[:, 1:4]
        outward = (rows[:, 4:].view(-1, 3, 3) @ local[..., None])[..., 0]
        normal_of_round = (mantle, torch.nn.functional.normalize(outward, dim=1))
    face_row = solid * 6 + face
    faces = packed.faces.index_select(0, face_row)
    normal = faces[:, 0:3]
    if normal_of_round is not None:
        normal[normal_of_round[0]] = normal_of_round[1]

    rotation = poses[:, :3, :3].float()
    image = depth_image = normals = instance = None
    size = (F * count * N,)

    def spread(values: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        if everything:
            return tiles.image(values, camera)
        out = values.new_full((*size, *values.shape[1:]), fill)
        out[ray] = values
        return tiles.image(out, camera)

    if geometry:
        depth_image, normals = spread(t), spread(normal)
        instance = spread(packed.instance.index_select(0, solid))
    if colour:
        turn = rotation[:, :, :].reshape(F, 9).index_select(0, frame) if F > 1 else None
        if turn is None:
            r = rotation[0]
            direction = [r[i, 0] * dx + r[i, 1] * dy + r[i, 2] for i in range(3)]
        else:
            direction = [turn[:, 3 * i] * dx + turn[:, 3 * i + 1] * dy + turn[:, 3 * i + 2] for i in range(3)]
        colours = _shade(
            packed, camera, frames.table[frame], poses, frame, t, direction, faces, normal, face_row, qu, qv
        )
        if everything:
            image = tiles.image(colours, camera)
        else:
            radiance = colours.new_empty(*size, 3)
            radiance[ray] = colours
            miss = (~met).nonzero()[:, 0]
            inside = miss % (count * N)
            rays = torch.stack([x.flatten()[inside], y.flatten()[inside], torch.ones_like(x.flatten()[inside])], dim=1)
            which = miss // (count * N)
            away = (rotation[which] @ rays[..., None])[..., 0]
            above = sky(torch.nn.functional.normalize(away, dim=1), packed.sky[frames.table[which]])
            radiance[miss] = _tone(above, 1.5)
            image = tiles.image(radiance, camera)
    return image, depth_image, normals, instance


def _tone(radiance: torch.Tensor, exposure: torch.Tensor | float) -> torch.Tensor:
    """Display values 0..1: a film-like shoulder, then gamma."""
    return (1 - torch.exp(-radiance * exposure)).clamp_(0, 1).pow_(1 / 2.2)


def _shade(packed, camera, table, poses, frame, t, direction, faces, normal, face_row, qu, qv):
    """(N, 3) display colours of points that were hit."""
    dx, dy, dz = direction
    length = (dx * dx + dy * dy + dz * dz).sqrt()
    cosine = -(dx * normal[:, 0] + dy * normal[:, 1] + dz * normal[:, 2]) / length
    # The pixel on the surface, stretched by the slant: between its short and its long side.
    footprint = t * (length / camera.fx) / cosine.clamp(0.06, 1).pow(0.7)
    where = packed.where.index_select(0, face_row)
    rows = packed.materials.index_select(0, where[:, 0])
    half_u, half_v = faces[:, 3], faces[:, 4]
    albedo, emission = surface(rows, qu * half_u + faces[:, 5], qv * half_v + faces[:, 6], footprint.clamp_min(1e-5))
    pictured = (rows[:, PICTURE] >= 0).nonzero()[:, 0]
    if pictured.shape[0]:
        s, v = 0.5 + 0.5 * qu[pictured] * faces[pictured, 7], 0.5 - 0.5 * qv[pictured]
        pixel = footprint[pictured] / (2 * torch.sqrt(half_u[pictured] * half_v[pictured]))
        drawn = sample_pictures(packed.pictures, packed.side, rows[pictured, PICTURE].long(), s, v, pixel)
        # The material's noise stays: paper and canvas are not perfectly even.
        albedo[pictured] = (drawn * (albedo[pictured] / rows[pictured, 0:3].clamp_min(0.02))).clamp_(0, 1)
    light = _look_up(packed.light, where, qu, qv)
    radiance = albedo * light
    exposure = packed.exposure[table]
    glossy = (rows[:, GLOSS] > 0).nonzero()[:, 0]
    if glossy.shape[0]:
        eye = poses[:, :3, 3].float().index_select(0, frame[glossy])
        ahead, near, far = [part[glossy] for part in direction], t[glossy], 1 / length[glossy]
        point = [eye[:, i] + near * ahead[i] for i in range(3)]
        view = [part * far for part in ahead]
        sheen = _sheen(packed.lamps, table[glossy], point, view, normal[glossy], cosine[glossy])
        # What shades the surface shades its sheen.
        shade = (light[glossy].mean(1) * exposure[glossy]).clamp_max_(2.0)
        radiance[glossy] += (rows[glossy, GLOSS] * sheen * shade / exposure[glossy])[:, None]
    shown = radiance * exposure[:, None] + (emission[:, None] * albedo)
    return _tone(shown, 1.0)


def _sheen(
    lamps: torch.Tensor,
    table: torch.Tensor,
    point: list[torch.Tensor],
    view: list[torch.Tensor],
    normal: torch.Tensor,
    cosine: torch.Tensor,
) -> torch.Tensor:
    """(N,) a soft highlight under the lamps, after Blinn and Phong, stronger at a slant after Schlick."""
    total = torch.zeros_like(cosine)
    nx, ny, nz = normal.unbind(1)
    for lamp in lamps.unbind(1):
        lx, ly, lz, on = lamp.index_select(0, table).unbind(1)
        lx, ly, lz = lx - point[0], ly - point[1], lz - point[2]
        scale = (lx * lx + ly * ly + lz * lz).rsqrt_()
        hx, hy, hz = lx * scale - view[0], ly * scale - view[1], lz * scale - view[2]
        along = hx * nx + hy * ny + hz * nz
        # The cosine to the halfway vector to the 32nd power, by squaring its square.
        square = along.clamp_min_(0).square_() / (hx * hx + hy * hy + hz * hz).clamp_min_(1e-9)
        total += on * square.square_().square_().square_().square_()
    return total * (0.25 + 0.75 * (1 - cosine.clamp(0, 1)).pow_(5))


def _look_up(light: torch.Tensor, where: torch.Tensor, qu: torch.Tensor, qv: torch.Tensor) -> torch.Tensor:
    """(N, 3) light at places -1..1 of faces, blended between texels."""
    first, columns, rows = where[:, 1], where[:, 2], where[:, 3]
    x = (qu * 0.5 + 0.5) * columns - 0.5
    y = (qv * 0.5 + 0.5) * rows - 0.5
    # Beyond the middle of the last texel the slope goes on, so that light runs through from wall to wall.
    x0 = x.long().minimum(columns - 2).clamp_min_(0)
    y0 = y.long().minimum(rows - 2).clamp_min_(0)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    step_x, step_y = (columns > 1).long(), torch.where(rows > 1, columns, 0)
    corner = first + y0 * columns + x0

    def at(index: torch.Tensor) -> torch.Tensor:
        return light.index_select(0, index)

    top = torch.lerp(at(corner), at(corner + step_x), fx)
    corner = corner + step_y
    return torch.lerp(top, torch.lerp(at(corner), at(corner + step_x), fx), fy).clamp_min_(0)
