"""A scene: primitives, materials and light, and how to put several on a device at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.scenes.bake import Ambient, World, bake
from worldstereo_ros.scenes.geometry import Geometry
from worldstereo_ros.scenes.light import Layout, Texels, half_sizes, lay_out, texels
from worldstereo_ros.scenes.motion import Mover, Times
from worldstereo_ros.scenes.primitives import Builder, Light, Primitives
from worldstereo_ros.scenes.textures import COLUMNS, mip_chain

SHINY = 3
"""Lamps that glossy surfaces show."""


@dataclass(frozen=True)
class Sky:
    """What is seen where nothing is: colours overhead and at the horizon, amount of clouds, direction to the sun."""

    zenith: tuple[float, ...] = (0.16, 0.36, 0.8)
    horizon: tuple[float, ...] = (0.7, 0.82, 0.95)
    clouds: float = 0.4
    sun: tuple[float, ...] = (0.4, 0.3, 0.85)
    seed: float = 0.0

    def row(self) -> list[float]:
        """The settings as one row for `textures.sky`."""
        return [*self.zenith, *self.horizon, self.clouds, *self.sun, self.seed]


@dataclass(frozen=True)
class SceneFrames:
    """What cameras see, exact to float32.

    Attributes:
        image: (F, H, W, 3) uint8 RGB.
        depth: (F, H, W) float32 metres along the optical axis; 0 = sky, nothing hit.
        normals: (F, H, W, 3) float32 unit vectors in world axes, facing the camera; zeros where depth is 0.
        instance: (F, H, W) int32 ids of objects; 0 where depth is 0. `Scene.names` says what they are.
    """

    image: torch.Tensor
    depth: torch.Tensor
    normals: torch.Tensor
    instance: torch.Tensor


@dataclass
class Scene:
    """A world: x forward, y left, z up (as in ROS), metres, the floor at z = 0.

    Attributes:
        kind, seed: what it was made from.
        primitives: P of them.
        materials: (M, columns) float32, `textures.COLUMNS`.
        pictures: (n, S, S, 3) float32 linear.
        lights: lamps and the sun.
        ambient, sky: light without a lamp, and what is seen outside.
        bounds: lowest and highest corner of the space where a camera or robot may be.
        names: of the objects, by instance id; 0 is "nothing".
        key: how bright the picture is on average, 0..1.
        texel_budget: about how many points of surfaces the light is worked out for.
        movers: what moves; `primitives` has it where it is at time 0.
    """

    kind: str
    seed: int
    primitives: Primitives
    materials: torch.Tensor
    pictures: torch.Tensor
    lights: list[Light]
    ambient: Ambient
    sky: Sky
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    names: list[str]
    key: float = 0.45
    texel_budget: int = 40_000
    movers: tuple[Mover, ...] = ()
    _packed: dict = field(default_factory=dict, repr=False)

    @staticmethod
    def build(builder: Builder, kind: str, seed: int, *, ambient: Ambient, sky: Sky, bounds: tuple, **kw) -> Scene:
        """The scene that a builder collected."""
        pictures = np.stack(builder.pictures) if builder.pictures else np.zeros((1, 2, 2, 3), dtype=np.float32)
        return Scene(
            kind, seed, builder.primitives(), torch.tensor(builder.materials, dtype=torch.float32),
            torch.from_numpy(pictures), list(builder.lights), ambient, sky, bounds, list(builder.names), **kw,
        )  # fmt: skip

    def packed(self, device: torch.device | str = "cpu", light: str = "soft") -> Packed:
        """The scene on a device, its light worked out; kept for the next call."""
        key = (str(torch.device(device)), light)
        if key not in self._packed:
            self._packed[key] = pack([self], device=device, light=light)
        return self._packed[key]

    def render(
        self,
        camera: Camera,
        world_from_camera: np.ndarray | torch.Tensor,
        *,
        device: torch.device | str | None = None,
        supersample: int = 1,
        light: str = "soft",
        times: Times | None = None,
    ) -> SceneFrames:
        """What a camera sees from F places.

        Args:
            camera: intrinsics; its size is that of the frames.
            world_from_camera: (F, 4, 4) or (4, 4), OpenCV axes.
            device: where to work; None = the CPU.
            supersample: colours are the mean of supersample^2 rays a pixel; depth, normals and ids are always those
                of the ray through the pixel's centre.
            light: "soft" (shadows, darker corners), or "plain" (none: a world is ready at once).
            times: seconds, one a frame or one for all: when each is taken. None = all at time 0. Light stays that of
                time 0 (what moves is lit evenly, a little more from above), and what moves casts no shadow.

        Raises:
            ValueError: poses of the wrong shape, or that are not finite; another number of times than of poses.
        """
        from worldstereo_ros.scenes.render import render_packed

        poses = torch.as_tensor(np.asarray(world_from_camera), dtype=torch.float64).reshape(-1, 4, 4)
        return render_packed(
            self.packed(device or "cpu", light), camera, poses, torch.zeros(len(poses), dtype=torch.int64),
            supersample=supersample, times=times,
        )  # fmt: skip

    def view(self, camera: Camera, world_from_camera: np.ndarray, stamp_ns: int = 0, *, supersample: int = 2,
             device: torch.device | str | None = None, time: float | None = None) -> View:  # fmt: skip
        """One picture with its depth, as a sensor would give it without noise; `time` is in seconds."""
        frames = self.render(
            camera, np.asarray(world_from_camera)[None], device=device, supersample=supersample, times=time
        )
        return View(
            image=frames.image[0].cpu().numpy(), camera=camera, world_from_camera=world_from_camera,
            depth=frames.depth[0].cpu().numpy(), stamp_ns=stamp_ns,
        )  # fmt: skip


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
        raise ValueError("There is no scene to put on the device; give at least one.")
    quality = {"soft": (4, 16), "plain": (0, 0)}
    if light not in quality:
        raise ValueError(f"There is no light {light!r}. Choose one of {', '.join(quality)}.")
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
        World(point, scene.lights, scene.ambient, scene.primitives.outdoor, mean_colours(scene))
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
