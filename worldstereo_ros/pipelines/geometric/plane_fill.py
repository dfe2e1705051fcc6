"""Draws the planes of a layout into the holes of a view: sharp borders, the details of the surfaces, and the sky.

Each pixel of a hole shows the most likely plane of the layout, in the colours of that plane. Where pixels around the
hole show the same plane, their light continues over it; the difference is interpolated within each plane, so that
borders between planes stay sharp.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.geometric.layout import SKY_BINS, Layout, PlaneRender
from worldstereo_ros.pipelines.geometric.plane_noise import NOISE_CHANNELS, render_noise

WORKING_PIXELS = 320 * 240  # size of a view for which lengths in pixels are meant; larger views have longer ones
STRIDE_PX = 4  # of the coarse view in which light is interpolated
LIGHT_PX = 16.0  # standard deviation of the filter that interpolates light
FAR_FACTOR, FAR_WEIGHT = 4.0, 0.1  # a wider filter, for what is far from every pixel that was seen
DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M = 0.05, 0.05  # two depths within it are of one surface
OWN_WEIGHT = 0.1  # of a plane's own light, against the light of the pixels around
SKY_PROBABILITY = 0.7
GUIDE_WEIGHT = 0.6  # of the image's own colours in holes, for the light of planes
SHOWN_PROBABILITY = (0.1, 0.4)  # of a plane, from which it begins to show and at which it hides the image
SEED_MASK = 0xFFFFFFFF
SKY = -2  # as a plane


class PlaneFill(NamedTuple):
    """A view with its holes filled by planes.

    Attributes:
        image: (H, W, 3) float32 grey levels: planes and sky in the holes, the given image elsewhere.
        probability: (H, W) float32 of the plane or sky shown in a hole; 0 elsewhere and where there is none.
        depth: (H, W) float32 metres of that plane; 0 where there is none.
        plane: (H, W) int16 index of the plane, `SKY`, or -1 for none.
        noise: (H, W, NOISE_CHANNELS) float32 of unit variance, fixed to the surfaces; 0 where there is no plane.
    """

    image: np.ndarray
    probability: np.ndarray
    depth: np.ndarray
    plane: np.ndarray
    noise: np.ndarray


def fill_with_planes(
    image: np.ndarray,
    known: np.ndarray,
    depth: np.ndarray,
    layout: Layout,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    planes: PlaneRender | None = None,
    guide_weight: float = 0.0,
    noise: bool = True,
    seed: int = 0,
    threads: int = 1,
) -> PlaneFill:
    """Fills the holes of a view.

    Args:
        image: (H, W, 3) uint8; in holes a smooth guess, whose light is used as far as `guide_weight` says.
        known: (H, W) bool, pixels that are no hole.
        depth: (H, W) float32 metres of the known pixels.
        layout: of the place.
        camera, world_from_camera: camera and (4, 4) pose of the view.
        planes: of the view, at least of its holes; None: they are rendered here.
        guide_weight: weight of a pixel of a hole against a known one, for the light of planes.
        noise: whether noise is needed; else it is 0.
        seed: another one gives other details.
        threads: number of threads to use.
    """
    shape = known.shape
    out = PlaneFill(
        image.astype(np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
        np.full(shape, -1, np.int16),
        np.zeros((*shape, NOISE_CHANNELS), np.float32),
    )
    if not len(layout) or known.all():
        return out
    pose = np.asarray(world_from_camera)
    if planes is None:
        planes = layout.render_view(camera, pose, mask=~known, threads=threads)
    else:
        planes = planes._replace(
            depth=np.where(known, np.float32(0), planes.depth),
            probability=np.where(known, np.float32(0), planes.probability),
            plane=np.where(known, np.int16(-1), planes.plane),
        )
    colours = layout.render_surfaces(planes, camera, pose, seed=seed, threads=threads)
    if (planes.plane >= 0).any():
        fields = _light(image, known, depth, layout, planes, camera, pose, guide_weight, threads)
        np.copyto(out.image, colours + fields, where=(planes.plane >= 0)[..., None])
        out.probability[:], out.depth[:], out.plane[:] = planes.probability, planes.depth, planes.plane
        if noise:
            scale = max(1.0, (known.size / WORKING_PIXELS) ** 0.5)
            surfaces = (layout.planes, layout.axes, planes.plane, planes.depth)
            render_noise(*surfaces, camera, pose, out.noise, seed=seed, scale=scale, threads=threads)
    if layout.sky is not None and layout.room is not None:
        _add_sky(out, layout.sky, layout.room.up, known, camera, pose)
    return out


def draw_planes(
    image: np.ndarray,
    known: np.ndarray,
    depth: np.ndarray,
    layout: Layout,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    planes: PlaneRender | None = None,
    seed: int = 0,
    threads: int = 1,
) -> tuple[np.ndarray, PlaneFill]:
    """A view whose holes show planes as far as these are likely, else its own colours.

    Args:
        image, known, depth, layout, camera, world_from_camera, planes, threads: see `fill_with_planes`.
        seed: another one gives other details; of any size.

    Returns:
        (H, W, 3) uint8, and the planes.
    """
    fill = fill_with_planes(
        *(image, known, depth, layout, camera, world_from_camera),
        planes=planes,
        guide_weight=GUIDE_WEIGHT,
        noise=False,
        seed=seed & SEED_MASK,
        threads=threads,
    )
    low, high = SHOWN_PROBABILITY
    share = np.clip((fill.probability - low) / (high - low), 0, 1)
    drawn = cv2.blendLinear(image.astype(np.float32), fill.image, 1 - share, share)
    return cv2.add(drawn, 0, dtype=cv2.CV_8U), fill


def _light(
    image: np.ndarray,
    known: np.ndarray,
    depth: np.ndarray,
    layout: Layout,
    planes: PlaneRender,
    camera: Camera,
    pose: np.ndarray,
    guide_weight: float,
    threads: int,
) -> np.ndarray:
    """(H, W, 3) float32 difference between the light of the view and that of its planes, smooth within each plane."""
    small = camera.resized(max(1, camera.width // STRIDE_PX), max(1, camera.height // STRIDE_PX))
    size = (small.width, small.height)
    coarse = layout.render_view(small, pose, threads=threads)
    own = layout.render_surfaces(coarse, small, pose, details=False, threads=threads)
    near = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    covered = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    same = np.abs(near - coarse.depth) < DEPTH_TOLERANCE_RATIO * coarse.depth + DEPTH_TOLERANCE_M
    difference = resize_image(image, *size).astype(np.float32) - own
    deviation = LIGHT_PX / STRIDE_PX * max(1.0, (known.size / WORKING_PIXELS) ** 0.5)
    fields = np.zeros((*known.shape, 3), np.float32)
    for index in np.unique(planes.plane[planes.plane >= 0]):
        of_plane = coarse.plane == index
        # One colour for all of a plane that was not seen: a guess that varies over it shows as fog.
        guess = guide_weight * difference[of_plane & ~covered].mean(axis=0) if (of_plane & ~covered).any() else 0
        weight = (of_plane & covered & same).astype(np.float32)
        weighted = np.concatenate([(difference - guess) * weight[..., None], weight[..., None]], axis=-1)
        sums = cv2.GaussianBlur(weighted, (0, 0), deviation)
        sums += FAR_WEIGHT * _wide_blur(weighted, FAR_FACTOR * deviation)
        field = guess + sums[..., :3] / (sums[..., 3:] + OWN_WEIGHT * (1 + FAR_WEIGHT) + 1e-6)
        field = cv2.resize(field, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
        np.copyto(fields, field, where=(planes.plane == index)[..., None])
    return fields


def _wide_blur(values: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian filter, at a quarter of the size."""
    shape = (values.shape[1], values.shape[0])
    reduced = cv2.resize(values, (max(1, shape[0] // 4), max(1, shape[1] // 4)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(reduced, (0, 0), deviation / 4), shape, interpolation=cv2.INTER_LINEAR)


def _add_sky(
    out: PlaneFill, sky: np.ndarray, up: np.ndarray, known: np.ndarray, camera: Camera, pose: np.ndarray
) -> None:
    """Draws the sky above the horizon where no plane is."""
    rays = camera.rays() @ (pose[:3, :3].T @ up).astype(np.float32)
    sine = rays / np.linalg.norm(camera.rays(), axis=-1)
    shown = ~known & (out.plane < 0) & (sine > 0)
    position = np.arcsin(np.clip(sine[shown], 0, 1)) / (np.pi / 2) * SKY_BINS - 0.5
    low = np.clip(np.floor(position), 0, SKY_BINS - 1).astype(int)
    high, share = np.minimum(low + 1, SKY_BINS - 1), np.clip(position - low, 0, 1)[:, None]
    out.image[shown] = sky[low] * (1 - share) + sky[high] * share
    out.probability[shown], out.plane[shown] = SKY_PROBABILITY, SKY
