"""Moving objects drawn into recordings with depth: what moves has a truth on real images.

No recording in reach has moving things, dense depth and poses at once. Here a textured ellipsoid, lit from above, moves
through the recording on a known path; it is drawn where it is nearer than what the sensor measured, and its exact depth
takes the place of the measured one. Object, path and texture follow from the name of the clip alone.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldstereo_ros.evaluation.pointmap_clips import PointmapClip
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.errors import InputError

DIRECTIONS = ("across", "along")  # of the motion, in the camera's axes at the middle of the clip
SUPERSAMPLE = 2
RADIUS_SHARE = (0.16, 0.24)  # of the distance
DISTANCE_SHARE = 0.6  # of the median depth of the clip
SPEED_SHARE = 0.03  # of the distance, from frame to frame
SPIN_RAD = 0.04
NOISE = 2.0  # grey levels, as of the camera
TEXELS = 12  # of the texture across an object
EDGE_PX = 0.6  # blur of the object's border


@dataclass(frozen=True)
class Mover:
    """An ellipsoid on its way through the world.

    Attributes:
        semi_axes: (3,) metres.
        poses: (F, 4, 4) world_from_object.
        texture: (T, T, T, 3) colours of points of the object in its own axes, float32 0..255.
    """

    semi_axes: np.ndarray
    poses: np.ndarray
    texture: np.ndarray


def make_mover(poses: np.ndarray, depth: np.ndarray, direction: str, seed: int) -> Mover:
    """An object that moves through the view of a walk.

    Args:
        poses: (F, 4, 4) world_from_camera.
        depth: (F, H, W) metres, 0 = unknown.
        direction: across the view of the camera, or along it.
        seed: of size, place and texture.

    Raises:
        InputError: the direction is unknown, or no depth is known.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"The direction is '{direction}'; {' or '.join(DIRECTIONS)} was expected.")
    known = depth[depth > 0]
    if not known.size:
        raise InputError("The frames have no depth; things can be drawn into recordings with depth only.")
    random = np.random.default_rng(seed)
    frames = len(poses)
    distance = DISTANCE_SHARE * float(np.median(known))
    middle = poses[frames // 2]
    side = np.array([random.uniform(-0.2, 0.2), random.uniform(-0.1, 0.15), 1.0]) * distance
    centre = middle[:3, :3] @ side + middle[:3, 3]
    angle = random.uniform(-0.3, 0.3) + (math.pi if random.random() < 0.5 else 0)
    heading = (
        np.array([math.cos(angle), 0.3 * math.sin(angle), 0.0]) if direction == "across" else np.array([0, 0, -1.0])
    )
    heading = middle[:3, :3] @ (heading / np.linalg.norm(heading))
    semi_axes = distance * random.uniform(*RADIUS_SHARE, 3)
    axis = random.normal(size=3)
    axis /= np.linalg.norm(axis)
    out = np.tile(np.eye(4), (frames, 1, 1))
    for f in range(frames):
        time = f - frames // 2
        out[f, :3, :3] = cv2.Rodrigues(axis * SPIN_RAD * time)[0]
        out[f, :3, 3] = centre + heading * SPEED_SHARE * distance * time
    fine = random.random((TEXELS, TEXELS, TEXELS, 3))
    base = random.uniform(60, 190, 3)
    texture = np.clip(base + 110 * (fine - 0.5), 0, 255).astype(np.float32)
    return Mover(semi_axes, out, texture)


def _hit(mover: Mover, frame: int, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) of the object, inf where it is not, and the points (H, W, 3) in units of its semi-axes."""
    object_from_camera = invert_pose(mover.poses[frame]) @ pose
    rays = camera.rays().astype(np.float64) @ object_from_camera[:3, :3].T / mover.semi_axes
    start = object_from_camera[:3, 3] / mover.semi_axes
    a, b = (rays**2).sum(axis=2), rays @ start
    discriminant = b**2 - a * (start @ start - 1)
    with np.errstate(invalid="ignore"):
        depth = (-b - np.sqrt(np.where(discriminant > 0, discriminant, np.nan))) / a
    depth = np.where(depth > 0.05, depth, np.inf)
    points = start + rays * np.where(np.isfinite(depth), depth, 0)[..., None]
    return depth, points


def _colours(mover: Mover, frame: int, points: np.ndarray) -> np.ndarray:
    """(N, 3) colours of surface points (N, 3) in units of the semi-axes, lit from above."""
    from scipy.ndimage import map_coordinates

    at = (points.T + 1) / 2 * (TEXELS - 1)
    colour = np.stack([map_coordinates(mover.texture[..., c], at, order=1, mode="nearest") for c in range(3)], axis=1)
    normal = (points / mover.semi_axes) @ mover.poses[frame, :3, :3].T
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    light = np.array([0.3, -0.85, -0.43])  # OpenCV axes: y is down, and the first camera looks along z
    return colour * (0.55 + 0.45 * np.clip(normal @ light, 0, 1))[:, None]


def _filled(depth: np.ndarray) -> np.ndarray:
    """Depth with that of the nearest known pixel where it is unknown."""
    unknown = (depth <= 0).astype(np.uint8)
    if not unknown.any() or unknown.all():
        return depth
    _, labels = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    nearest = np.zeros(labels.max() + 1, depth.dtype)
    nearest[labels[unknown == 0]] = depth[unknown == 0]
    return nearest[labels]


def draw_mover(clip: PointmapClip, direction: str) -> PointmapClip:
    """A clip with depth into which a moving object is drawn, with its truth.

    Args:
        clip: of a recording; its name is the seed.
        direction: see `make_mover`.

    Returns:
        The clip with `depth`, `moving` and `flow` of the composition; its group says that things are drawn in.

    Raises:
        InputError: the clip has no depth.
    """
    if clip.depth is None:
        raise InputError(f"{clip.name} has no depth; things can be drawn into recordings with depth only.")
    seed = zlib.crc32(f"{clip.name}:{direction}".encode())
    mover = make_mover(clip.poses, clip.depth, direction, seed)
    random = np.random.default_rng(seed)
    fine = clip.camera.resized(SUPERSAMPLE * clip.camera.width, SUPERSAMPLE * clip.camera.height)
    images, depths = clip.images.copy(), clip.depth.astype(np.float32).copy()
    moving, flow = np.zeros(depths.shape, bool), np.zeros((*depths.shape, 3), np.float32)
    first = invert_pose(clip.poses[0])[:3, :3]
    for f, pose in enumerate(clip.poses):
        background = _filled(depths[f])
        depth, points = _hit(mover, f, fine, pose)
        behind = np.repeat(np.repeat(background, SUPERSAMPLE, 0), SUPERSAMPLE, 1)
        there = depth < behind
        if there.any():
            picture = np.zeros((*there.shape, 3), np.float32)
            picture[there] = _colours(mover, f, points[there])
            size = (clip.camera.width, clip.camera.height)
            share = cv2.resize(there.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            colour = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)[..., None]
            alpha = cv2.GaussianBlur(share, (0, 0), EDGE_PX)[..., None] * (share > 0)[..., None]
            noisy = colour + random.normal(0, NOISE, colour.shape)
            images[f] = np.clip(np.rint(alpha * noisy + (1 - alpha) * images[f]), 0, 255).astype(np.uint8)
        depth, points = _hit(mover, f, clip.camera, pose)
        covered = depth < background
        depths[f][covered] = depth[covered]
        moving[f] = covered
        if f + 1 < len(clip.poses):
            local = points[covered] * mover.semi_axes
            now, then = (local @ m[:3, :3].T + m[:3, 3] for m in mover.poses[f : f + 2])
            flow[f][covered] = (then - now) @ first.T
    return replace(
        clip, sequence=f"{clip.sequence}, drawn mover {direction}", name=f"{clip.name}, {direction}", images=images,
        depth=depths, moving=moving, flow=flow,
    )  # fmt: skip
