"""Exact scene flow: where a point on a moving object was or will be."""

from __future__ import annotations

import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes.raytracing.motion import Times, as_times
from worldstereo_ros.scenes.raytracing.scene import Scene, SceneFrames
from worldstereo_ros.utils.errors import InputError


def pose_of(scene: Scene, instance: int, times: Times) -> torch.Tensor:
    """The rigid motion that carries an object from where it is at time 0 to where it is at given times.

    Args:
        scene: the world.
        instance: id of an object.
        times: N seconds, or one number.

    Returns:
        (N, 4, 4) float64; the identity for what stands still.

    Raises:
        ValueError: no such object.
    """
    if not 0 <= instance < len(scene.names):
        raise InputError(f"There is no object {instance}; this scene has ids from 0 to {len(scene.names) - 1}.")
    at = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
    for mover in scene.movers:
        if mover.instance == instance:
            return mover.motion(at)
    return torch.eye(4, dtype=torch.float64).repeat(len(at), 1, 1)


def advect(scene: Scene, points: torch.Tensor, instance: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Where points of surfaces seen at one time are at another.

    Args:
        scene: the world.
        points: (..., 3) metres, world axes, at time `start`.
        instance: (...) ids of the objects that they belong to.
        start, end: seconds.

    Returns:
        (..., 3) float64, on the device of the points; unchanged where the object stands still.

    Raises:
        ValueError: shapes that do not fit.
    """
    if points.shape != (*instance.shape, 3):
        raise InputError(
            f"The points have shape {tuple(points.shape)} and the ids {tuple(instance.shape)}; (..., 3) and (...) of "
            "the same size were expected."
        )
    moved = points.double().clone()
    for mover in scene.movers:
        mine = instance == mover.instance
        before, after = mover.motion(torch.tensor([start, end], dtype=torch.float64))
        carry = (after @ torch.linalg.inv(before)).to(points.device)
        moved[mine] = moved[mine] @ carry[:3, :3].T + carry[:3, 3]
    return moved


def points_of(frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor) -> torch.Tensor:
    """(F, H, W, 3) float64 points seen in the pixels of frames, world axes; the camera's centre where depth is 0.

    Args:
        frames: F of them.
        camera: that they were rendered with; world_from_camera: (F, 4, 4).
    """
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64).to(frames.depth.device).reshape(-1, 4, 4)
    rays = torch.from_numpy(camera.rays()).double().to(frames.depth.device)
    local = rays[None] * frames.depth.double()[..., None]
    return torch.einsum("fij,fhwj->fhwi", poses[:, :3, :3], local) + poses[:, None, None, :3, 3]


def scene_flow(
    scene: Scene,
    frames: SceneFrames,
    camera: Camera,
    world_from_camera: torch.Tensor,
    times: Times,
    until: Times,
) -> torch.Tensor:
    """How far the surface point in each pixel moves through the world until another time.

    Args:
        scene: the world; frames: F pictures of it, taken at `times` with `camera` at `world_from_camera` (F, 4, 4).
        times, until: seconds, one a frame or one for all.

    Returns:
        (F, H, W, 3) float32 displacement in metres, world axes; 0 on what stands still and in the sky.

    Raises:
        ValueError: another number of times than of frames.
    """
    count = len(frames.depth)
    start, end = as_times(times, count).tolist(), as_times(until, count).tolist()
    points = points_of(frames, camera, world_from_camera)
    moved = [advect(scene, *each) for each in zip(points, frames.instance, start, end, strict=True)]
    return (torch.stack(moved) - points).float() if moved else points.float()
