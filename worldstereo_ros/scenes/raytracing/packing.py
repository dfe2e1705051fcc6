"""Several scenes packed into the tensors that one rendering call takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.raytracing.bake import BakeInputs, bake
from worldstereo_ros.scenes.raytracing.geometry import Geometry
from worldstereo_ros.scenes.raytracing.light import Layout, Texels, half_sizes, lay_out, texels
from worldstereo_ros.scenes.raytracing.motion import Mover
from worldstereo_ros.scenes.raytracing.primitives import Primitives
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.scenes.raytracing.textures import COLUMNS, mip_chain
from worldstereo_ros.utils.errors import InputError

SHINY = 3


@dataclass(frozen=True)
class Packed:
    """B scenes on a device.

    Attributes:
        geometry: B tables of P primitives.
        solids: (B * P, 13) float32: kind, half size, rotation (world_from_local, by rows).
        faces: (B * P * 6, 8) float32: normal, half sizes and texture starts along u and v, which way a picture runs.
        where: (B * P * 6, 4) int64: material, first texel of light, columns, rows.
        instance: (B * P,) int32.
        materials: (M, columns) float32.
        pictures: (n * texels, 3) float32, `textures.mip_chain`; side: of the largest level.
        sky: (B, 11) float32.
        exposure: (B,) float32.
        light: (L, 3) float32 irradiance of the texels.
        lamps: (B, SHINY, 4) float32 positions of the strongest lamps, and 1 where there is one: what gloss shows.
        body: (B, P) int64, `Primitives.body`; movers: what moves in each scene.
    """

    geometry: Geometry
    solids: torch.Tensor
    faces: torch.Tensor
    where: torch.Tensor
    instance: torch.Tensor
    materials: torch.Tensor
    pictures: torch.Tensor
    side: int
    sky: torch.Tensor
    exposure: torch.Tensor
    light: torch.Tensor
    lamps: torch.Tensor
    body: torch.Tensor
    movers: tuple[tuple[Mover, ...], ...]


def _faces(primitives: Primitives) -> torch.Tensor:
    """(P, 6, 8) float32 of `Packed.faces`."""
    half = half_sizes(primitives)
    axes = torch.tensor([[1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1]])
    start = primitives.shift[:, axes]
    normal = primitives.rotation.transpose(1, 2)[:, [0, 0, 1, 1, 2, 2]].clone()
    normal[:, 0::2] *= -1
    # Seen from outside, u runs to the right on these faces and to the left on the others.
    mirror = torch.tensor([-1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).double().expand(len(primitives), 6)[..., None]
    return torch.cat([normal, half, start, mirror], dim=-1).float()


def mean_colours(scene: Scene) -> torch.Tensor:
    """(P, 3) float32 about the mean albedo of each primitive."""
    rows = dict(zip(COLUMNS, scene.materials.unbind(1), strict=True))
    mean = 0.5 * (scene.materials[:, 0:3] + scene.materials[:, 3:6])
    if len(scene.pictures):
        picture = rows["picture"].long()
        mean = torch.where((picture >= 0)[:, None], scene.pictures.mean((1, 2))[picture.clamp_min(0)], mean)
    return mean[scene.primitives.material].mean(1)


def pack(scenes: Sequence[Scene], *, device: torch.device | str = "cpu", light: str = "soft") -> Packed:
    """Scenes on a device, padded to the same number of primitives, with their light worked out there.

    Raises:
        ValueError: no scene, or a light that does not exist.
    """
    if not scenes:
        raise InputError("There is no scene to put on the device; give at least one.")
    quality = {"soft": (4, 16), "plain": (0, 0)}
    if light not in quality:
        raise InputError(f"There is no light {light!r}. Choose one of {', '.join(quality)}.")
    B, P = len(scenes), max(len(scene.primitives) for scene in scenes)

    def padded(name: str, fill: float) -> torch.Tensor:
        parts = [getattr(scene.primitives, name) for scene in scenes]
        out = parts[0].new_full((B, P, *parts[0].shape[1:]), fill)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return out

    kind, half, rotation = padded("kind", -1), padded("half", 1.0), padded("rotation", 0.0)
    geometry = Geometry(
        *(part.to(device) for part in (kind, padded("centre", 0.0), half, rotation, padded("casts", False)))
    )
    solids = torch.cat([kind[..., None].double(), half, rotation.flatten(2)], dim=-1).float()
    faces, where = torch.zeros(B, P, 6, 8), torch.zeros(B, P, 6, 4, dtype=torch.int64)
    where[..., 2:] = 1
    layouts: list[Layout] = []
    points: list[Texels] = []
    first = material = 0
    chains, picture = [], 0
    side = max(scene.pictures.shape[1] for scene in scenes)
    tables = []
    for index, scene in enumerate(scenes):
        layout = lay_out(scene.primitives, scene.texel_budget if light == "soft" else scene.texel_budget // 4)
        layouts.append(layout)
        points.append(texels(scene.primitives, layout))
        n = len(scene.primitives)
        faces[index, :n] = _faces(scene.primitives)
        where[index, :n] = torch.stack(
            [scene.primitives.material + material, layout.base + first, layout.columns, layout.rows], dim=-1
        )
        table = scene.materials.clone()
        column = COLUMNS.index("picture")
        table[:, column] += torch.where(table[:, column] >= 0, float(picture), 0.0)
        tables.append(table)
        first, material = first + layout.total, material + len(table)
        if scene.pictures.shape[1] == side:
            chains.append(mip_chain(scene.pictures))
            picture += len(scene.pictures)
    lamps = torch.zeros(B, SHINY, 4)
    for row, scene in zip(lamps, scenes, strict=True):
        strongest = sorted((lamp for lamp in scene.lights if not lamp.sun), key=lambda lamp: -lamp.power)[:SHINY]
        for slot, lamp in zip(row, strongest, strict=False):
            slot[:] = torch.tensor([*lamp.position, float(lamp.power > 0)])
    worlds = [
        BakeInputs(point, scene.lights, scene.ambient, scene.primitives.outdoor, mean_colours(scene))
        for point, scene in zip(points, scenes, strict=True)
    ]
    shadows, surroundings = quality[light]
    baked = bake(geometry, worlds, lamp_samples=shadows, ambient_samples=surroundings)
    for scene, point, flat in zip(scenes, points, baked, strict=True):
        # What turns would carry its shadows around: it gets one light all over, and is shaded when it is drawn.
        owner = scene.primitives.body[point.primitive].to(flat.device)
        for mover in scene.movers:
            flat[owner == mover.body] = flat[owner == mover.body].mean(0)
    exposure = torch.stack(
        [_exposure(scene, point, flat) for scene, point, flat in zip(scenes, points, baked, strict=True)]
    )
    return Packed(
        geometry=geometry,
        solids=solids.reshape(B * P, -1).to(device),
        faces=faces.reshape(B * P * 6, -1).to(device),
        where=where.reshape(B * P * 6, 4).to(device),
        instance=padded("instance", 0).reshape(-1).to(torch.int32).to(device),
        materials=torch.cat(tables).to(device),
        pictures=torch.cat(chains).reshape(-1, 3).to(device),
        side=side,
        sky=torch.tensor([scene.sky.row() for scene in scenes], dtype=torch.float32, device=device),
        exposure=exposure,
        light=torch.cat(baked),
        lamps=lamps.to(device),
        body=padded("body", 0).to(device),
        movers=tuple(scene.movers for scene in scenes),
    )


def pack_cached(scene: Scene, device: torch.device | str = "cpu", light: str = "soft") -> Packed:
    """The scene on a device, its light worked out; kept for the next call."""
    key = (str(torch.device(device)), light)
    if key not in scene.cache:
        scene.cache[key] = pack([scene], device=device, light=light)
    return scene.cache[key]


def _exposure(scene: Scene, points: Texels, light: torch.Tensor) -> torch.Tensor:
    """Exposure that brings the mean of what is inside the bounds to the scene's key."""
    device = light.device
    low, high = (torch.tensor(corner, device=device) for corner in scene.bounds)
    where = points.point.to(device)
    inside = ((where > low - 0.3) & (where < high + 0.3)).all(1)
    if not inside.any():
        inside = torch.ones_like(inside)
    colours = mean_colours(scene).to(device)[points.primitive.to(device)]
    mean = (light * colours).mean(1)[inside].mean()
    # The tone curve is 1 - exp(-exposure * radiance), see render.py.
    return -torch.log1p(-torch.tensor(scene.key**2.2, device=device)) / mean.clamp_min(1e-6)
