"""The renderer that AnyRecon's published weights were trained with (`published`), for parity; ours is `rendering/`.

Points are painted from far to near, each over the four pixels around its projection, with bilinear weights as alpha.
There is no depth test, so that far points shine through near ones whose weights are small. The principal point counts
from the corner of the image and the pixels from their centres: every point lies half a pixel to the right and down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled

MIN_DEPTH = 0.1  # in the unit of the points; nearer ones are not painted
MIN_ALPHA = 0.01  # of a visible pixel
MIN_WEIGHT = 1e-8  # of a point that counts for a pixel
HALF_PIXEL = 0.5
HOLE_GREY = 128  # of renderings in this package


@dataclass(frozen=True)
class PublishedRender:
    """A cloud painted into one camera.

    Attributes:
        image: (H, W, 3) uint8 RGB, black where nothing was painted. Where hardly anything was, the pixel has its colour
            though it is not visible.
        visible: (H, W) bool, 1 = visible, the mask that the model gets.
        nearest: (H, W) int64, index of the nearest point that was painted on the pixel; -1: none.
        depth: (H, W) float32, depth of that point; 0: none.
    """

    image: np.ndarray
    visible: np.ndarray
    nearest: np.ndarray
    depth: np.ndarray


def paint_published(
    points: np.ndarray,
    colours: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    min_depth: float = MIN_DEPTH,
) -> PublishedRender:
    """Paints a cloud into a camera as AnyRecon's published code does.

    Args:
        points: (N, 3) world points.
        colours: (N, 3) uint8 RGB. Black points are left out, as in the published code.
        camera: intrinsics and size; pixel centres at integers, as everywhere in this package.
        world_from_camera: (4, 4) pose.
        min_depth: near plane in the unit of the points.

    Raises:
        InputError: shapes or types do not fit.
    """
    points, colours = _check_cloud(points, colours)
    (pose,) = check_poses(np.asarray(world_from_camera)[None])
    u, v, z, usable = project_published(points, colours, camera, pose, min_depth=min_depth)
    index = usable.nonzero()[0]
    index = index[np.argsort(-z[index], kind="stable")]
    size = (camera.height, camera.width)
    colour, alpha = np.zeros((*size, 3)), np.zeros(size)
    nearest = np.full(size, -1, np.int64)
    _paint(u[index], v[index], colours[index], index, colour, alpha, nearest)
    # Cut off, not rounded, as in the published code.
    image = (colour / np.maximum(alpha, 1e-6)[..., None]).clip(0, 255).astype(np.uint8)
    depth = np.zeros(size, np.float32)
    depth[nearest >= 0] = z[nearest[nearest >= 0]]
    return PublishedRender(image, alpha > MIN_ALPHA, nearest, depth)


def render_published(
    points: np.ndarray,
    colours: np.ndarray,
    provenance: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    min_depth: float = MIN_DEPTH,
) -> Rendering:
    """Paints a cloud into F cameras, for pipelines: see `paint_published`.

    Args:
        points, colours, camera, min_depth: see `paint_published`.
        provenance: (N,) uint8 `Provenance`.
        world_from_camera: (F, 4, 4) poses.

    Returns:
        Colours, depth and provenance. The last two, which the published code does not have, are those of the nearest
        point that was painted on a pixel.

    Raises:
        InputError: shapes or types do not fit.
    """
    if provenance.shape != (len(points),) or provenance.dtype != np.uint8:
        raise InputError(
            f"The provenance is {provenance.dtype} of shape {provenance.shape}; uint8 ({len(points)},) was expected."
        )
    layers = []
    for pose in check_poses(world_from_camera):
        painted = paint_published(points, colours, camera, pose, min_depth=min_depth)
        image, hole = painted.image, ~painted.visible
        image[hole] = HOLE_GREY
        kinds = np.full(hole.shape, Provenance.UNKNOWN, np.uint8)
        kinds[~hole] = provenance[painted.nearest[~hole]]
        layers.append((image, np.where(hole, np.float32(0), painted.depth), ~hole, kinds))
    return Rendering(*(torch.from_numpy(np.stack(layer)) for layer in zip(*layers, strict=True)))


def project_published(
    points: np.ndarray,
    colours: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    min_depth: float = MIN_DEPTH,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Projects a cloud as the published code does, half a pixel to the right and down.

    Args:
        points, colours, camera, min_depth: see `paint_published`.
        world_from_camera: (4, 4) pose.

    Returns:
        Pixel coordinates u and v, depth z, each (N,) float64, and (N,) bool, whether the point is in the picture, in
        front of the camera and not black.
    """
    camera_from_world = invert_pose(np.asarray(world_from_camera, np.float64))
    local = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    z = local[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = camera.fx * local[:, 0] / z + camera.cx + HALF_PIXEL
        v = camera.fy * local[:, 1] / z + camera.cy + HALF_PIXEL
        inside = (u >= -0.5) & (u < camera.width - 0.5) & (v >= -0.5) & (v < camera.height - 0.5)
    usable = inside & (z > min_depth) & (colours.astype(np.int64).sum(axis=1) > 0)
    return u, v, z, usable


def shifted_half_pixel(image: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes an exact render look like a published one: shifted half a pixel right and down, mixed over 2x2 pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        visible: (H, W) bool.

    Returns:
        Image with black holes, and mask, of the same shapes. A pixel is visible where one of its four is.
    """
    weight = visible.astype(np.float32)
    padded = np.pad(weight, ((1, 0), (1, 0)))
    colour = np.pad(image * weight[..., None], ((1, 0), (1, 0), (0, 0)))
    count = padded[1:, 1:] + padded[:-1, 1:] + padded[1:, :-1] + padded[:-1, :-1]
    total = colour[1:, 1:] + colour[:-1, 1:] + colour[1:, :-1] + colour[:-1, :-1]
    mixed = total / np.maximum(count, 1)[..., None]
    return mixed.astype(np.uint8), count > 0


def _check_cloud(points: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if points.ndim != 2 or points.shape[1] != 3 or colours.shape != points.shape or colours.dtype != np.uint8:
        raise InputError(
            f"The cloud has points {points.shape} and colours {colours.dtype} {colours.shape}; (N, 3) and uint8 (N, 3) "
            "were expected."
        )
    return np.asarray(points, np.float64), colours


@compiled
def _paint(u, v, colours, index, colour, alpha, nearest):
    """Paints points in the order that they come, far to near, over colour (H, W, 3) and alpha (H, W)."""
    height, width = alpha.shape
    for k in range(len(u)):
        x, y = int(np.floor(u[k])), int(np.floor(v[k]))
        if x < 0 or y < 0 or x > width - 2 or y > height - 2:
            continue
        right, down = u[k] - x, v[k] - y
        for j in range(2):
            for i in range(2):
                a = (right if i else 1 - right) * (down if j else 1 - down)
                for c in range(3):
                    colour[y + j, x + i, c] = colours[k, c] * a + colour[y + j, x + i, c] * (1 - a)
                alpha[y + j, x + i] = a + alpha[y + j, x + i] * (1 - a)
                if a > MIN_WEIGHT:
                    nearest[y + j, x + i] = index[k]
