"""Draws the images of docs/concepts/procedural_worlds.md: `python scripts/scene_pictures.py docs/images`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes.kinds.builders import KINDS, make_scene
from worldstereo_ros.scenes.paths import camera_pose, clearance, make_path
from worldstereo_ros.scenes.raytracing.render import render_scene
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.scenes.raytracing.scene_flow import scene_flow
from worldstereo_ros.scenes.sensor import SensorNoise, add_noise
from worldstereo_ros.scenes.splits import seed_of

WORLDS = 5
"""Worlds of each kind."""

TIMES = (0.0, 1.2, 2.4)
"""Times at which moving objects are rendered, seconds."""


def best_view(scene: Scene, poses: np.ndarray, times: float | None = None) -> np.ndarray:
    """The pose (4, 4) of (N, 4, 4) with the most visible objects and the fewest close surfaces."""
    tiny = Camera.from_fov(48, 36, math.radians(80))
    frames = render_scene(scene, tiny, poses, light="plain", times=times)
    moving = torch.tensor([mover.instance for mover in scene.moving_objects], dtype=torch.int32)
    scores = []
    for depth, instance in zip(frames.depth, frames.instance, strict=True):
        ids, counts = instance.unique(return_counts=True)
        seen = int((counts >= 4).sum()) + 0.15 * float(counts[torch.isin(ids, moving)].clamp_max(120).sum())
        close = float(((depth > 0) & (depth < 0.8)).float().mean())
        scores.append(seen - 60 * close)
    return poses[int(np.argmax(scores))]


def row(images: list[np.ndarray]) -> np.ndarray:
    """Images side by side, separated by white lines."""
    gap = np.full((images[0].shape[0], 4, 3), 255, dtype=np.uint8)
    return np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1)


def column(rows: list[np.ndarray]) -> np.ndarray:
    """Rows below each other, separated by white lines."""
    gap = np.full((4, rows[0].shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([part for each in rows for part in (each, gap)][:-1], axis=0)


def depth_image(depth: np.ndarray, far: float) -> np.ndarray:
    """(H, W, 3) uint8: near is bright, unknown is black."""
    nearness = np.sqrt(np.clip(1 - depth / far, 0, 1))
    coloured = cv2.applyColorMap((nearness * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.where((depth > 0)[..., None], coloured, 0).astype(np.uint8)


def instance_image(instance: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: one colour for each object."""
    hue = (instance.astype(np.int64) * 67 % 180).astype(np.uint8)
    value = (130 + instance.astype(np.int64) * 37 % 120).astype(np.uint8)
    hsv = np.stack([hue, np.full_like(hue, 140), np.where(instance > 0, value, 0).astype(np.uint8)], axis=-1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def kinds_sheet(camera: Camera) -> np.ndarray:
    """Several worlds of every kind."""
    rows = []
    for kind in KINDS:
        images = []
        for index in range(WORLDS):
            scene = make_scene(kind, seed_of("demo", index + 10))
            pose = best_view(scene, make_path(scene, "handheld", 90, seed=index, step=0.25)[::3])
            images.append(render_scene(scene, camera, pose, supersample=3).image[0].numpy())
        rows.append(row(images))
    return column(rows)


def maps_sheet(camera: Camera) -> np.ndarray:
    """One lot: colour, depth, normals, ids, and colour and depth with sensor noise."""
    scene = make_scene("lot", seed_of("demo", 2))
    pose = best_view(scene, make_path(scene, "handheld", 90, seed=1, step=0.25)[::3])
    frames = render_scene(scene, camera, pose, supersample=3)
    sensor = SensorNoise(
        exposure=0.2, white_balance=(1.08, 0.93), shot=0.05, read=0.012, vignetting=0.3, disparity=0.12
    )
    noisy = add_noise(frames, camera, 0, noise=sensor, world_from_camera=torch.from_numpy(pose[None]))
    normals = ((frames.normals[0].numpy() + 1) * 127.5).astype(np.uint8)
    depth, measured = (depth_image(each.depth[0].numpy(), 16.0) for each in (frames, noisy))
    return column([
        row([frames.image[0].numpy(), depth, noisy.image[0].numpy()]),
        row([normals, instance_image(frames.instance[0].numpy()), measured]),
    ])  # fmt: skip


def moving_objects_sheet(camera: Camera) -> np.ndarray:
    """Moving objects at three times, and their scene flow from the second to the third."""
    rows = []
    for kind, index in (("warehouse", 1), ("lot", 0), ("room", 11)):
        scene = make_scene(kind, seed_of("demo", index), moving_objects=4)
        poses = best_view(scene, _around(scene), times=TIMES[1])[None].repeat(len(TIMES), axis=0)
        frames = render_scene(scene, camera, poses, supersample=3, times=TIMES)
        step = TIMES[1] - TIMES[0]
        flow = scene_flow(scene, frames, camera, torch.from_numpy(poses), TIMES, [time + step for time in TIMES])[
            1
        ].numpy()
        grey = (0.35 * frames.image[1].numpy().mean(-1, keepdims=True)).repeat(3, axis=-1)
        moving = np.linalg.norm(flow, axis=-1, keepdims=True) > 0
        overlay = np.where(moving, 128 + 127 * np.clip(flow, -1, 1), grey).astype(np.uint8)
        rows.append(row([*frames.image.numpy(), overlay]))
    return column(rows)


def _around(scene: Scene) -> np.ndarray:
    """Free camera poses around each moving object that look at it."""
    poses = []
    for mover in scene.moving_objects:
        at = mover.track.position(torch.tensor([TIMES[1]]))[0].numpy()
        for angle in np.arange(0, 2 * math.pi, 0.5):
            eye = np.array([at[0] + 3.2 * math.cos(angle), at[1] + 3.2 * math.sin(angle), 1.45])
            low, high = np.array(scene.bounds)
            if (eye > low).all() and (eye < high).all() and clearance(scene, eye[None])[0] > 0.3:
                poses.append(camera_pose(eye, angle + math.pi, -0.22))
    return np.stack(poses or [camera_pose(np.array([0.0, 0.0, 1.5]), 0.0)])


def main() -> None:
    """Write the sheets into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suffix", default=".jpg")
    folder, suffix = (parsed := parser.parse_args()).folder, parsed.suffix
    field = math.radians(82)
    sheets = {
        "scenes_kinds": kinds_sheet(Camera.from_fov(240, 180, field)),
        "scenes_maps": maps_sheet(Camera.from_fov(400, 300, field)),
        "scenes_movers": moving_objects_sheet(Camera.from_fov(300, 225, field)),
    }
    for name, sheet in sheets.items():
        cv2.imwrite(str(folder / (name + suffix)), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
