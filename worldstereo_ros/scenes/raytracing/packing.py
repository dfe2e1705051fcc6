"""Scenes packed into tensors on a device, with baked light, ready for rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldstereo_ros.scenes.raytracing.bake import BakeInputs, bake
from worldstereo_ros.scenes.raytracing.geometry import Geometry
from worldstereo_ros.scenes.raytracing.light import TexelLayout, Texels, allocate_texels, half_sizes, place_texels
from worldstereo_ros.scenes.raytracing.motion import MovingObject
from worldstereo_ros.scenes.raytracing.primitives import Primitives
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.scenes.raytracing.textures import COLUMNS, mip_chain
from worldstereo_ros.utils.errors import InputError

MAX_GLOSS_LAMPS = 3
"""Lamps that give specular highlights."""


@dataclass(frozen=True)
class PackedScenes:
    """B scenes on a device.

    Attributes:
        geometry: B tables of P primitives.
        solids: (B * P, 13) float32: kind, half size, rotation (world_from_local, row-major).
        faces: (B * P * 6, 8) float32: normal, half sizes and texture origins along u and v, direction of images (+-1).
        face_table: (B * P * 6, 4) int64: material, first light texel, texel columns, texel rows.
        instance: (B * P,) int32.
        materials: (M, columns) float32.
        images: (n * texels, 3) float32 mip maps, see `textures.mip_chain`.
        image_size: side of the largest level, pixels.
        sky: (B, 11) float32.
        exposure: (B,) float32.
        light: (L, 3) float32 irradiance of the texels.
        lamps: (B, MAX_GLOSS_LAMPS, 4) float32 position of the strongest lamps, and 1 (0 where there is none).
        body: (B, P) int64, see `Primitives.body`.
        moving_objects: the moving objects of each scene.
    """

    geometry: Geometry
    solids: torch.Tensor
    faces: torch.Tensor
    face_table: torch.Tensor
    instance: torch.Tensor
    materials: torch.Tensor
    images: torch.Tensor
    image_size: int
    sky: torch.Tensor
    exposure: torch.Tensor
    light: torch.Tensor
    lamps: torch.Tensor
    body: torch.Tensor
    moving_objects: tuple[tuple[MovingObject, ...], ...]


def _faces(primitives: Primitives) -> torch.Tensor:
    """(P, 6, 8) float32, see `PackedScenes.faces`."""
    half = half_sizes(primitives)
    axes = torch.tensor([[1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1]])
    start = primitives.shift[:, axes]
    normal = primitives.rotation.transpose(1, 2)[:, [0, 0, 1, 1, 2, 2]].clone()
    normal[:, 0::2] *= -1
    # Seen from outside, u points right on the faces with 1 and left on those with -1.
    mirror = torch.tensor([-1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).double().expand(len(primitives), 6)[..., None]
    return torch.cat([normal, half, start, mirror], dim=-1).float()


def mean_colours(scene: Scene) -> torch.Tensor:
    """(P, 3) float32 approximate mean albedo of each primitive."""
    rows = dict(zip(COLUMNS, scene.materials.unbind(1), strict=True))
    mean = 0.5 * (scene.materials[:, 0:3] + scene.materials[:, 3:6])
    if len(scene.images):
        image = rows["image"].long()
        mean = torch.where((image >= 0)[:, None], scene.images.mean((1, 2))[image.clamp_min(0)], mean)
    return mean[scene.primitives.material].mean(1)


def pack(scenes: Sequence[Scene], *, device: torch.device | str = "cpu", light: str = "soft") -> PackedScenes:
    """Pack scenes for a device and bake their light there.

    Args:
        scenes: padded to the same number of primitives.
        device: where to bake and render.
        light: "soft" (soft shadows, ambient occlusion) or "plain" (none; fast).

    Raises:
        InputError: there is no scene, or `light` is unknown.
    """
    if not scenes:
        raise InputError("There are no scenes to pack; at least one was expected.")
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
    faces, face_table = torch.zeros(B, P, 6, 8), torch.zeros(B, P, 6, 4, dtype=torch.int64)
    face_table[..., 2:] = 1
    layouts: list[TexelLayout] = []
    points: list[Texels] = []
    first = material = 0
    chains, first_image = [], 0
    image_size = max(scene.images.shape[1] for scene in scenes)
    tables = []
    for index, scene in enumerate(scenes):
        layout = allocate_texels(scene.primitives, scene.texel_budget if light == "soft" else scene.texel_budget // 4)
        layouts.append(layout)
        points.append(place_texels(scene.primitives, layout))
        n = len(scene.primitives)
        faces[index, :n] = _faces(scene.primitives)
        face_table[index, :n] = torch.stack(
            [scene.primitives.material + material, layout.base + first, layout.columns, layout.rows], dim=-1
        )
        table = scene.materials.clone()
        column = COLUMNS.index("image")
        table[:, column] += torch.where(table[:, column] >= 0, float(first_image), 0.0)
        tables.append(table)
        first, material = first + layout.total, material + len(table)
        if scene.images.shape[1] == image_size:
            chains.append(mip_chain(scene.images))
            first_image += len(scene.images)
    lamps = torch.zeros(B, MAX_GLOSS_LAMPS, 4)
    for row, scene in zip(lamps, scenes, strict=True):
        strongest = sorted((lamp for lamp in scene.lights if not lamp.sun), key=lambda lamp: -lamp.power)[
            :MAX_GLOSS_LAMPS
        ]
        for slot, lamp in zip(row, strongest, strict=False):
            slot[:] = torch.tensor([*lamp.position, float(lamp.power > 0)])
    worlds = [
        BakeInputs(point, scene.lights, scene.ambient, scene.primitives.outdoor, mean_colours(scene))
        for point, scene in zip(points, scenes, strict=True)
    ]
    shadows, surroundings = quality[light]
    baked = bake(geometry, worlds, lamp_samples=shadows, ambient_samples=surroundings)
    for scene, point, flat in zip(scenes, points, baked, strict=True):
        # A moving object would carry baked shadows around: it gets its mean light, and is shaded at rendering.
        owner = scene.primitives.body[point.primitive].to(flat.device)
        for mover in scene.moving_objects:
            flat[owner == mover.body] = flat[owner == mover.body].mean(0)
    exposure = torch.stack(
        [_exposure(scene, point, flat) for scene, point, flat in zip(scenes, points, baked, strict=True)]
    )
    return PackedScenes(
        geometry=geometry,
        solids=solids.reshape(B * P, -1).to(device),
        faces=faces.reshape(B * P * 6, -1).to(device),
        face_table=face_table.reshape(B * P * 6, 4).to(device),
        instance=padded("instance", 0).reshape(-1).to(torch.int32).to(device),
        materials=torch.cat(tables).to(device),
        images=torch.cat(chains).reshape(-1, 3).to(device),
        image_size=image_size,
        sky=torch.tensor([scene.sky.row() for scene in scenes], dtype=torch.float32, device=device),
        exposure=exposure,
        light=torch.cat(baked),
        lamps=lamps.to(device),
        body=padded("body", 0).to(device),
        moving_objects=tuple(scene.moving_objects for scene in scenes),
    )


def pack_cached(scene: Scene, device: torch.device | str = "cpu", light: str = "soft") -> PackedScenes:
    """Pack one scene, or return the pack of an earlier call for the same device and light."""
    key = (str(torch.device(device)), light)
    if key not in scene.cache:
        scene.cache[key] = pack([scene], device=device, light=light)
    return scene.cache[key]


def _exposure(scene: Scene, points: Texels, light: torch.Tensor) -> torch.Tensor:
    """Exposure at which the mean brightness inside the bounds is the scene's key."""
    device = light.device
    low, high = (torch.tensor(corner, device=device) for corner in scene.bounds)
    positions = points.point.to(device)
    inside = ((positions > low - 0.3) & (positions < high + 0.3)).all(1)
    if not inside.any():
        inside = torch.ones_like(inside)
    colours = mean_colours(scene).to(device)[points.primitive.to(device)]
    mean = (light * colours).mean(1)[inside].mean()
    # The tone curve is 1 - exp(-exposure * radiance), see render.py.
    return -torch.log1p(-torch.tensor(scene.key**2.2, device=device)) / mean.clamp_min(1e-6)
