"""A small place with true depth for reconstruction: a textured wall and floor, and a box in front, ray traced."""

import json
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.views import View

CAMERA = Camera(240, 180, 210.0, 210.0, 119.5, 89.5)
TARGET = np.array([0.0, 0.0, 3.2])
WALL_Z, BOX_Z, FLOOR_Y = 4.0, 2.5, 0.9
BOX_X, BOX_Y = (-0.55, 0.45), (-0.45, 0.35)
PIXELS_PER_M = 120


def _texture(seed: int, size: int = 1500) -> np.ndarray:
    """(size, size, 3) float32 with detail at all scales."""
    random = np.random.default_rng(seed)
    out = np.zeros((size, size, 3), np.float32)
    for cells, strength in ((12, 30), (50, 30), (190, 30), (700, 25)):
        noise = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        out += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(128 + out, 0, 255)


TEXTURES = [_texture(seed) for seed in range(4)]


def pose_at(angle: float, height: float = -0.2, distance: float = 3.2) -> np.ndarray:
    """world_from_camera of a camera on an arc (radians) around the target, looking at it."""
    centre = TARGET + distance * np.array([np.sin(angle), 0, -np.cos(angle)]) + [0, height, 0]
    forward = (TARGET - centre) / np.linalg.norm(TARGET - centre)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, centre
    return pose


def arc(count: int, step_deg: float = 6.0) -> np.ndarray:
    """(count, 4, 4) poses on an arc, at heights that differ."""
    angles = np.radians(step_deg) * (np.arange(count) - (count - 1) / 2)
    return np.stack([pose_at(angle, -0.2 + 0.25 * np.sin(2.1 * k)) for k, angle in enumerate(angles)])


def render(pose: np.ndarray, camera: Camera = CAMERA, *, moved: float | None = None) -> View:
    """The place from a pose, with true depth; `moved`: a second, small box stands at this x before the first."""
    supersample = 2
    fine = camera.resized(camera.width * supersample, camera.height * supersample)
    rays = fine.rays().reshape(-1, 3).astype(np.float64) @ pose[:3, :3].T
    centre = pose[:3, 3]
    nearest = np.full(len(rays), np.inf)
    colour = np.zeros((len(rays), 3), np.float32)
    planes = [(2, WALL_Z, (-9, 9), (-9, 9), 0), (1, FLOOR_Y, (-9, 9), (-9, 9), 1), (2, BOX_Z, BOX_X, BOX_Y, 2)]
    if moved is not None:
        planes.append((2, 2.0, (moved - 0.25, moved + 0.25), (-0.2, 0.3), 3))
    for axis, at, (low_u, high_u), (low_v, high_v), texture in planes:
        with np.errstate(divide="ignore"):
            t = (at - centre[axis]) / rays[:, axis]
        points = centre + rays * t[:, None]
        u, v = points[:, 0] - (moved or 0) * (texture == 3), points[:, 2 if axis == 1 else 1]
        inside = (t > 0) & (t < nearest) & (u > low_u - (moved or 0) * (texture == 3)) & (v > low_v)
        inside &= (u < high_u - (moved or 0) * (texture == 3)) & (v < high_v)
        image = TEXTURES[texture]
        x = ((u * PIXELS_PER_M + 750) % 1499).astype(np.float32)
        y = ((v * PIXELS_PER_M + 750) % 1499).astype(np.float32)
        grid = (fine.height, fine.width)
        sampled = cv2.remap(image, x.reshape(grid), y.reshape(grid), cv2.INTER_LINEAR).reshape(-1, 3)
        colour[inside], nearest[inside] = sampled[inside], t[inside]
    grid = (fine.height, fine.width)
    image = cv2.resize(colour.reshape(*grid, 3), (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    depth = nearest.reshape(grid)[::supersample, ::supersample].astype(np.float32)
    return View(np.rint(image).astype(np.uint8), camera, pose, np.where(np.isfinite(depth), depth, 0))


def write_photos(folder: Path, poses: np.ndarray, camera: Camera = CAMERA, **options) -> list[View]:
    """Writes photographs without anything else; returns the views."""
    folder.mkdir(parents=True, exist_ok=True)
    views = [render(pose, camera, **options) for pose in poses]
    for index, view in enumerate(views):
        cv2.imwrite(str(folder / f"{index:06d}.png"), view.image[..., ::-1])
    return views


def write_posed(
    folder: Path, poses: np.ndarray, *, given=None, metric: bool = True, depth: bool = False, wrong=None
) -> list[View]:
    """Writes a posed sequence; `given`: numbers of the frames that get a pose; `wrong`: poses written instead."""
    views = write_photos(folder / "frames", poses)
    lines = []
    for index in range(len(poses)) if given is None else given:
        t, q = quaternion_from_pose((wrong or {}).get(index, poses[index]))
        lines.append(f"{index} " + " ".join(f"{number:.9f}" for number in (*t, *q)))
    (folder / "poses.txt").write_text("\n".join(lines) + "\n")
    values = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    (folder / "intrinsics.json").write_text(json.dumps({**values, "metric": metric}))
    if depth:
        (folder / "depth").mkdir()
        for index, view in enumerate(views):
            counts = np.rint(view.depth * 1000).astype(np.uint16)
            cv2.imwrite(str(folder / "depth" / f"{index:06d}.png"), counts)
    return views
