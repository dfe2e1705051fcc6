"""Exact scene flow: displacement of surface points between two times."""

from __future__ import annotations

import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes.raytracing.motion import Times, check_times
from worldstereo_ros.scenes.raytracing.scene import Scene, SceneFrames
from worldstereo_ros.utils.errors import InputError


def object_motion(scene: Scene, instance: int, times: Times) -> torch.Tensor:
    """Rigid motion of an object from time 0 to given times.

    Args:
        scene: the world.
        instance: object id.
        times: N seconds, or one number.

    Returns:
        (N, 4, 4) float64 in world axes; the identity for static objects.

    Raises:
        InputError: there is no such object.
    """
    if not 0 <= instance < len(scene.names):
        raise InputError(f"There is no object {instance}; the ids of this scene are 0 to {len(scene.names) - 1}.")
    at = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
    for mover in scene.moving_objects:
        if mover.instance == instance:
            return mover.motion(at)
    return torch.eye(4, dtype=torch.float64).repeat(len(at), 1, 1)


def advect(scene: Scene, points: torch.Tensor, instance: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Move surface points from one time to another.

    Args:
        scene: the world.
        points: (..., 3) metres, world axes, at time `start`.
        instance: (...) ids of the objects that the points belong to.
        start, end: seconds.

    Returns:
        (..., 3) float64 metres, on the device of the points; unchanged for static objects.

    Raises:
        InputError: the shapes do not match.
    """
    if points.shape != (*instance.shape, 3):
        raise InputError(
            f"The points have shape {tuple(points.shape)} and the ids {tuple(instance.shape)}; expected (..., 3) and "
            "(...) of the same size."
        )
    moved = points.double().clone()
    for mover in scene.moving_objects:
        mask = instance == mover.instance
        before, after = mover.motion(torch.tensor([start, end], dtype=torch.float64))
        end_from_start = (after @ torch.linalg.inv(before)).to(points.device)
        moved[mask] = moved[mask] @ end_from_start[:3, :3].T + end_from_start[:3, 3]
    return moved


def surface_points(frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor) -> torch.Tensor:
    """Unproject frames to surface points.

    Args:
        frames: F frames.
        camera: intrinsics of the frames.
        world_from_camera: (F, 4, 4) poses of the frames.

    Returns:
        (F, H, W, 3) float64 metres, world axes; the camera centre where depth is 0.
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
    end_times: Times,
) -> torch.Tensor:
    """Displacement in the world of the surface point in each pixel, from the time of the frame to another time.

    Args:
        scene: the world.
        frames: F frames of it.
        camera: intrinsics of the frames.
        world_from_camera: (F, 4, 4) poses of the frames.
        times: seconds, when the frames were taken; one per frame or one for all.
        end_times: seconds, the other times; one per frame or one for all.

    Returns:
        (F, H, W, 3) float32 displacement in metres, world axes; 0 on static objects and in the sky.

    Raises:
        InputError: the number of times does not match the frames.
    """
    count = len(frames.depth)
    start, end = check_times(times, count).tolist(), check_times(end_times, count).tolist()
    points = surface_points(frames, camera, world_from_camera)
    moved = [advect(scene, *each) for each in zip(points, frames.instance, start, end, strict=True)]
    return (torch.stack(moved) - points).float() if moved else points.float()
