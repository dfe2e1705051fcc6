"""Rendering of scenes: cast rays, shade the hits with baked light, tone-map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.scenes.raytracing.geometry import RayFrames, Tiles, cast_rays
from worldstereo_ros.scenes.raytracing.motion import Times, body_motions, check_times
from worldstereo_ros.scenes.raytracing.packing import PackedScenes, pack, pack_cached
from worldstereo_ros.scenes.raytracing.primitives import BOX, CYLINDER
from worldstereo_ros.scenes.raytracing.scene import Scene, SceneFrames
from worldstereo_ros.scenes.raytracing.textures import COLUMNS, sample_images, sky, surface
from worldstereo_ros.utils.errors import InputError

IMAGE_COLUMN, GLOSS_COLUMN = COLUMNS.index("image"), COLUMNS.index("gloss")


def render_scene(
    scene: Scene,
    camera: Camera,
    world_from_camera: np.ndarray | torch.Tensor,
    *,
    device: torch.device | str | None = None,
    supersample: int = 1,
    light: str = "soft",
    times: Times | None = None,
) -> SceneFrames:
    """Render F frames of one scene.

    Args:
        scene: the world; its packed form is cached.
        camera: intrinsics and size of the frames.
        world_from_camera: (F, 4, 4) or (4, 4), OpenCV axes.
        device: torch device; None = the CPU.
        supersample: colours are the mean of supersample^2 rays per pixel; depth, normals and ids are those of the ray
            through the pixel centre.
        light: "soft" (soft shadows, ambient occlusion) or "plain" (none; no baking time).
        times: seconds at which the frames are taken, one per frame or one for all; None = time 0. Baked light is that
            of time 0; moving objects are lit uniformly, more from above, and cast no shadows.

    Raises:
        InputError: the poses have the wrong shape or are not finite, or the number of times does not match.
    """
    poses = torch.as_tensor(np.asarray(world_from_camera), dtype=torch.float64).reshape(-1, 4, 4)
    return render_packed(
        pack_cached(scene, device or "cpu", light), camera, poses, torch.zeros(len(poses), dtype=torch.int64),
        supersample=supersample, times=times,
    )  # fmt: skip


def render_view(scene: Scene, camera: Camera, world_from_camera: np.ndarray, stamp_ns: int = 0, *, supersample: int = 2,
         device: torch.device | str | None = None, time: float | None = None) -> View:  # fmt: skip
    """Render one view with depth, as an ideal RGB-D sensor measures it; arguments as in `render_scene`.

    Args:
        world_from_camera: (4, 4) pose.
        stamp_ns: stamp of the view in nanoseconds.
        time: seconds, for moving objects.
    """
    frames = render_scene(
        scene, camera, np.asarray(world_from_camera)[None], device=device, supersample=supersample, times=time
    )
    return View(
        image=frames.image[0].cpu().numpy(), camera=camera, world_from_camera=world_from_camera,
        depth=frames.depth[0].cpu().numpy(), stamp_ns=stamp_ns,
    )  # fmt: skip


def render_batch(
    scenes: Sequence[Scene] | PackedScenes,
    camera: Camera,
    world_from_camera: np.ndarray | torch.Tensor,
    *,
    device: torch.device | str | None = None,
    supersample: int = 1,
    light: str = "soft",
    times: torch.Tensor | np.ndarray | None = None,
) -> SceneFrames:
    """Render frames of several scenes in one call.

    Args:
        scenes: B scenes, or the result of `pack`, which keeps the baked light for further calls.
        camera: intrinsics and size of all frames.
        world_from_camera: (B, F, 4, 4), OpenCV axes.
        device, supersample, light: see `render_scene`; ignored (device and light) for packed scenes.
        times: (B, F) seconds; None = time 0.

    Returns:
        SceneFrames with tensors of shape (B, F, ...).

    Raises:
        InputError: the poses or times have the wrong shape.
    """
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64)
    B = scenes.exposure.shape[0] if isinstance(scenes, PackedScenes) else len(scenes)
    if poses.ndim != 4 or poses.shape[0] != B or poses.shape[2:] != (4, 4):
        raise InputError(f"The poses have shape {tuple(poses.shape)}; expected (B, F, 4, 4) with B = {B} scenes.")
    packed = scenes if isinstance(scenes, PackedScenes) else pack(scenes, device=device or "cpu", light=light)
    F = poses.shape[1]
    table = torch.arange(B).repeat_interleave(F)
    if times is not None:
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.shape != (B, F):
            raise InputError(f"The times have shape {tuple(times.shape)}; expected {(B, F)}, as the poses.")
        times = times.reshape(-1)
    frames = render_packed(packed, camera, poses.reshape(-1, 4, 4), table, supersample=supersample, times=times)
    return SceneFrames(
        *(part.reshape(B, F, *part.shape[1:]) for part in (frames.image, frames.depth, frames.normals, frames.instance))
    )


def render_packed(
    packed: PackedScenes,
    camera: Camera,
    world_from_camera: torch.Tensor,
    table: torch.Tensor,
    *,
    supersample: int = 1,
    max_rays: int | None = None,
    times: Times | None = None,
) -> SceneFrames:
    """Render frames of packed scenes.

    Args:
        packed: the scenes.
        camera: intrinsics and size of all frames.
        world_from_camera: (F, 4, 4) float64.
        table: (F,) int64 index of the scene of each frame.
        supersample: rays per pixel along each axis, 1 to 8.
        rays_at_once: rays per chunk, which bounds memory (about 600 bytes a ray); None: as suits the device.
        times: (F,) seconds, or one for all; None = time 0.

    Raises:
        InputError: the poses, `supersample` or the times are not valid.
    """
    if world_from_camera.shape[1:] != (4, 4) or not bool(torch.isfinite(world_from_camera).all()):
        raise InputError(f"The poses have shape {tuple(world_from_camera.shape)}; expected finite (F, 4, 4) matrices.")
    if not 1 <= supersample <= 8:
        raise InputError(f"supersample is {supersample}; expected an integer from 1 to 8.")
    device = packed.geometry.device
    motions: torch.Tensor | None = None
    if times is not None:
        when = check_times(times, len(table))
        if any(packed.moving_objects):
            motions = body_motions(packed.moving_objects, table.cpu(), when).to(device)
    poses, table = world_from_camera.to(device), table.to(device)
    limit = max_rays or (1 << 16 if device.type == "cpu" else 1 << 22)
    size = max(1, limit // (camera.width * camera.height * supersample**2))
    parts = []
    for low in range(0, len(poses), size):
        part, pose = table[low : low + size], poses[low : low + size]
        motion = primitive_motion = None
        if motions is not None:
            motion = motions[low : low + size]
            primitive_motion = motion[torch.arange(len(part), device=device)[:, None], packed.body[part]]
        frames = RayFrames.from_cameras(packed.geometry, part, pose, primitive_motion)
        surface_ = _intersect(packed, camera, frames, pose, motion)
        if supersample == 1:
            image = _colour_image(packed, camera, surface_)
        else:
            fine = camera.resized(camera.width * supersample, camera.height * supersample)
            image = _colour_image(packed, fine, _intersect(packed, fine, frames, pose, motion))
            image = image.reshape(-1, camera.height, supersample, camera.width, supersample, 3).mean((2, 4))
        parts.append(((image * 255 + 0.5).to(torch.uint8), *_geometry_images(packed, camera, surface_)))
    if not parts:
        H, W = camera.height, camera.width
        return SceneFrames(
            torch.zeros(0, H, W, 3, dtype=torch.uint8, device=device), torch.zeros(0, H, W, device=device),
            torch.zeros(0, H, W, 3, device=device), torch.zeros(0, H, W, dtype=torch.int32, device=device),
        )  # fmt: skip
    return SceneFrames(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Surface:
    """Surface hits of N rays of F frames, in tile order; fields are undefined where `hit` is False.

    Attributes:
        tiles: division of the image.
        frames: primitives in the cameras.
        hit: (N,) bool.
        all_hit: whether every ray hit a surface.
        depth: (N,) float32 metres, 1 without a hit.
        direction: three (N,) float32, ray direction in world axes, with length 1 along the optical axis.
        eye: (F, 3) float32 camera centres.
        normal: (N, 3) float32.
        face: (N, 8) float32, see `PackedScenes.faces`.
        row: (N,) int64 index of the face.
        u, v: (N,) float32 position on the face, -1..1.
    """

    tiles: Tiles
    frames: RayFrames
    hit: torch.Tensor
    all_hit: bool
    depth: torch.Tensor
    direction: list[torch.Tensor]
    eye: torch.Tensor
    normal: torch.Tensor
    face: torch.Tensor
    row: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    def per_ray(self, values: torch.Tensor) -> torch.Tensor:
        """Expand one value per frame (F,) to one per ray (N,)."""
        return values[:, None].expand(-1, len(self.depth) // len(values)).reshape(-1)


def _intersect(
    packed: PackedScenes, camera: Camera, frames: RayFrames, poses: torch.Tensor, motion: torch.Tensor | None = None
) -> _Surface:
    """Cast the rays of frames; `motion` (F, bodies, 4, 4) is that of the moving bodies since time 0."""
    device = packed.geometry.device
    tall, wide = (8, 16) if camera.width * camera.height <= 100_000 else (16, 32)
    tiles = Tiles.from_camera(camera, device, tall, wide)
    hits = cast_rays(packed.geometry, frames, tiles)
    F, P = frames.matrix.shape[:2]
    hit = hits.row.flatten() >= 0
    all_hit = bool(hit.all())
    depth, row = hits.depth.flatten(), hits.row.flatten()
    if not all_hit:
        depth, row = torch.where(hit, depth, 1.0), row.clamp_min(0)
    dx, dy = (part.flatten() for part in tiles.rays().unbind(1)[:2])
    turn = poses[:, :3, :3].float()[..., None]
    direction = [(turn[:, i, 0] * dx + turn[:, i, 1] * dy + turn[:, i, 2]).flatten() for i in range(3)]
    dx, dy = dx.repeat(F), dy.repeat(F)
    step = (frames.table - torch.arange(F, device=device)) * P
    solid = row + step[:, None].expand(F, len(row) // F).reshape(-1)
    if not all_hit:
        solid = solid.clamp_(0, len(packed.solids) - 1)

    # The hit in the unit frame of its primitive: q = origin + depth * matrix (dx, dy, 1).
    maps = torch.cat([frames.matrix.reshape(-1, 9), frames.origin.reshape(-1, 3)], dim=1).index_select(0, row)
    qx, qy, qz = (
        maps[:, 9 + i] + depth * (maps[:, 3 * i] * dx + maps[:, 3 * i + 1] * dy + maps[:, 3 * i + 2]) for i in range(3)
    )
    ax, ay, az = qx.abs(), qy.abs(), qz.abs()
    # On a box, the coordinate of the hit face has absolute value 1, which is the largest.
    on_z, on_y = az >= torch.maximum(ax, ay), ay >= ax
    side = torch.where(on_z, qz, torch.where(on_y, qy, qx)) > 0
    face = torch.where(on_z, 4, torch.where(on_y, 2, 0)) + side
    u, v = torch.where(on_z | on_y, qx, qy), torch.where(on_z, qy, qz)
    kind = packed.solids[:, 0].contiguous().index_select(0, solid)
    curved = (kind > BOX).nonzero()[:, 0]
    curved_normal: tuple[torch.Tensor, torch.Tensor] | None = None
    if curved.shape[0]:
        rx, ry, rz = qx[curved], qy[curved], qz[curved]
        cap = (kind[curved] == CYLINDER) & (rz.abs() > (rx * rx + ry * ry).sqrt())
        face[curved] = torch.where(cap, 4 + (rz > 0).long(), 0)
        u[curved] = torch.where(cap, rx, torch.atan2(ry, rx) * (1 / math.pi))
        v[curved] = torch.where(cap, ry, rz)
        mantle = curved[~cap]
        rows = packed.solids.index_select(0, solid[mantle])
        ball = (rows[:, 0] > CYLINDER).float()
        local = torch.stack([qx[mantle], qy[mantle], qz[mantle] * ball], dim=1) / rows[:, 1:4]
        outward = torch.nn.functional.normalize((rows[:, 4:].view(-1, 3, 3) @ local[..., None])[..., 0], dim=1)
        curved_normal = (mantle, outward)
    row = solid * 6 + face
    faces = packed.faces.index_select(0, row)
    normal = faces[:, 0:3]
    if curved_normal is not None:
        normal = normal.index_copy(0, *curved_normal)
    if motion is not None:
        # Normals are stored for time 0; those of moving bodies rotate with them.
        body = packed.body.flatten().index_select(0, solid)
        moved = (body > 0).nonzero()[:, 0]
        turned = motion[moved // (len(row) // F), body[moved], :3, :3].float() @ normal[moved, :, None]
        normal = normal.index_copy(0, moved, turned[..., 0])
    eye = poses[:, :3, 3].float()
    return _Surface(tiles, frames, hit, all_hit, depth, direction, eye, normal, faces, row, u, v)


def _geometry_images(
    packed: PackedScenes, camera: Camera, s: _Surface
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth, normals and instance ids as images."""
    depth, normal = s.depth, s.normal
    instance = packed.instance.index_select(0, s.row // 6)
    if not s.all_hit:
        depth = torch.where(s.hit, depth, 0.0)
        normal, instance = normal * s.hit[:, None], instance * s.hit
    return s.tiles.image(depth, camera), s.tiles.image(normal, camera), s.tiles.image(instance, camera)


def _colour_image(packed: PackedScenes, camera: Camera, s: _Surface) -> torch.Tensor:
    """(F, H, W, 3) float32 display colours 0..1."""
    colours = _shade(packed, camera, s)
    if not s.all_hit:
        miss = (~s.hit).nonzero()[:, 0]
        away = torch.stack([part[miss] for part in s.direction], dim=1)
        which = s.frames.table[miss // (len(s.depth) // len(s.eye))]
        colours[miss] = _tone_map(sky(torch.nn.functional.normalize(away, dim=1), packed.sky[which]), 1.5)
    return s.tiles.image(colours, camera)


def _tone_map(radiance: torch.Tensor, exposure: torch.Tensor | float) -> torch.Tensor:
    """Display colours 0..1: exponential tone curve, then gamma."""
    return torch.expm1(radiance * -exposure).neg_().clamp_(0, 1).pow_(1 / 2.2)


def _shade(packed: PackedScenes, camera: Camera, s: _Surface) -> torch.Tensor:
    """(N, 3) display colours of the hits."""
    dx, dy, dz = s.direction
    normal, faces = s.normal, s.face
    length = (dx * dx + dy * dy + dz * dz).sqrt()
    cosine = -(dx * normal[:, 0] + dy * normal[:, 1] + dz * normal[:, 2]) / length
    # Size of the pixel on the surface, between the short and the long axis of its slanted footprint.
    footprint = (s.depth * length * (1 / camera.fx) / cosine.clamp(0.06, 1).pow_(0.7)).clamp_min_(1e-5)
    face_row = packed.face_table.index_select(0, s.row)
    rows = packed.materials.index_select(0, face_row[:, 0])
    half_u, half_v = faces[:, 3], faces[:, 4]
    albedo, emission = surface(rows, s.u * half_u + faces[:, 5], s.v * half_v + faces[:, 6], footprint)
    textured = (rows[:, IMAGE_COLUMN] >= 0).nonzero()[:, 0]
    if textured.shape[0]:
        across, down = 0.5 + 0.5 * s.u[textured] * faces[textured, 7], 0.5 - 0.5 * s.v[textured]
        pixel = footprint[textured] / (2 * torch.sqrt(half_u[textured] * half_v[textured]))
        index = rows[textured, IMAGE_COLUMN].long()
        image_colour = sample_images(packed.images, packed.image_size, index, across, down, pixel)
        # Keep the material's noise: paper and canvas are not perfectly uniform.
        albedo[textured] = (image_colour * (albedo[textured] / rows[textured, 0:3].clamp_min(0.02))).clamp_(0, 1)
    light = _interpolate_light(packed.light, face_row, s.u, s.v)
    if any(packed.moving_objects):
        moving = packed.body.flatten().index_select(0, s.row // 6) > 0
        light = light * torch.where(moving, 0.8 + 0.35 * normal[:, 2], 1.0)[:, None]
    exposure = s.per_ray(packed.exposure[s.frames.table])
    radiance = albedo * light * exposure[:, None]
    glossy = (rows[:, GLOSS_COLUMN] > 0).nonzero()[:, 0]
    if glossy.shape[0]:
        frame = glossy // (len(s.depth) // len(s.eye))
        eye, far, near = s.eye.index_select(0, frame), 1 / length[glossy], s.depth[glossy]
        ahead = [part[glossy] for part in s.direction]
        point = [eye[:, i] + near * ahead[i] for i in range(3)]
        view = [part * far for part in ahead]
        sheen = _specular(packed.lamps, s.frames.table[frame], point, view, normal[glossy], cosine[glossy])
        # Shadow attenuates the highlight too.
        shade = (light[glossy].mean(1) * exposure[glossy]).clamp_max_(2.0)
        radiance[glossy] += (rows[glossy, GLOSS_COLUMN] * sheen * shade)[:, None]
    return _tone_map(radiance.addcmul_(albedo, emission[:, None]), 1.0)


def _specular(
    lamps: torch.Tensor,
    table: torch.Tensor,
    point: list[torch.Tensor],
    view: list[torch.Tensor],
    normal: torch.Tensor,
    cosine: torch.Tensor,
) -> torch.Tensor:
    """(N,) Blinn-Phong highlight of the lamps with Schlick's Fresnel term."""
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


def _interpolate_light(light: torch.Tensor, face_row: torch.Tensor, qu: torch.Tensor, qv: torch.Tensor) -> torch.Tensor:
    """(N, 3) light at positions -1..1 on faces, bilinear between texels."""
    first, columns, rows = face_row[:, 1], face_row[:, 2], face_row[:, 3]
    x = (qu * 0.5 + 0.5) * columns - 0.5
    y = (qv * 0.5 + 0.5) * rows - 0.5
    # Extrapolate beyond the centre of the last texel, so that light is continuous from one wall piece to the next.
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
