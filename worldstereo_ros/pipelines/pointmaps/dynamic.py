"""What moves: optical flow that the camera's own motion does not explain, and the scene flow of it."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.resizing import resize_image

FLOW_SIDE_PX = 320  # longer side of the frames that flow is computed of
FLOW_ERROR_PX, FLOW_ERROR_SHARE = 0.6, 0.06  # of the flow: constant, and of its length
MAX_RETURN_PX = 1.5
MOVING_SIGMAS = 4.0  # of the difference of flow and static scene
OPENING_PX, MIN_AREA = 3, 0.0008  # speckles are no things; share of the image
MAX_SHARE = 0.6  # of the pixels; if more seem to move, the camera's motion is wrong rather


def optical_flow(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense flow (h, w, 2) from one grey image (h, w) uint8 to another, and (h, w) bool: it returns."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    forth, back = method.calc(before, now, None), method.calc(now, before, None)
    height, width = before.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there_x, there_y = x + forth[..., 0], y + forth[..., 1]
    returned = cv2.remap(back, there_x, there_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    limit = MAX_RETURN_PX + FLOW_ERROR_SHARE * np.linalg.norm(forth, axis=2)
    return forth, inside & (np.linalg.norm(forth + returned, axis=2) < limit)


def rigid_flow(depth: np.ndarray, camera: Camera, other_from_this: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32 flow of a static scene; NaN where depth is 0 or the point is behind the other camera."""
    points = camera.rays() * depth[..., None]
    there = points @ other_from_this[:3, :3].T.astype(np.float32) + other_from_this[:3, 3].astype(np.float32)
    ahead = (there[..., 2] > 1e-6) & (depth > 0)
    z = np.where(ahead, there[..., 2], np.nan)
    x, y = np.meshgrid(np.arange(camera.width, dtype=np.float32), np.arange(camera.height, dtype=np.float32))
    flow = np.stack(
        [there[..., 0] / z * camera.fx + camera.cx - x, there[..., 1] / z * camera.fy + camera.cy - y], axis=2
    )
    return flow.astype(np.float32)


def motion_evidence(
    flow: np.ndarray, depth: np.ndarray, sigma: np.ndarray, camera: Camera, other_from_this: np.ndarray
) -> np.ndarray:
    """How many standard deviations flow is off from that of a static scene.

    An error of the depth moves the flow of a static point along its epipolar line, so that this part of the difference
    is measured by the depth's own uncertainty; the part across the line is measured by that of the flow alone.

    Args:
        flow: (H, W, 2) pixels.
        depth: (H, W), 0 = unknown.
        sigma: (H, W) error of its logarithm.
        camera: intrinsics.
        other_from_this: (4, 4).

    Returns:
        (H, W) float32; 0 where it cannot be said.
    """
    static = rigid_flow(depth, camera, other_from_this)
    slope = (rigid_flow(depth * np.float32(1.05), camera, other_from_this) - static) / np.float32(np.log(1.05))
    difference = flow - static
    noise = FLOW_ERROR_PX + FLOW_ERROR_SHARE * np.linalg.norm(flow, axis=2)
    length = np.linalg.norm(slope, axis=2)
    along = slope / np.maximum(length, 1e-6)[..., None]
    parallel = (difference * along).sum(axis=2)
    across = difference[..., 0] * along[..., 1] - difference[..., 1] * along[..., 0]
    # Expected error of a Laplace distribution: its standard deviation is sqrt(2) times that.
    spread = np.sqrt(noise**2 + 2 * (sigma * length) ** 2)
    return np.nan_to_num(np.sqrt((parallel / spread) ** 2 + (across / noise) ** 2), nan=0.0).astype(np.float32)


def find_moving(
    images: np.ndarray, depth: np.ndarray, sigma: np.ndarray, poses: np.ndarray, camera: Camera, usable: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Which pixels move in the world.

    Args:
        images: (F, H, W, 3) uint8.
        depth, sigma: (F, H, W), 0 = unknown, and the error of its logarithm.
        poses: (F, 4, 4) world_from_camera.
        camera: intrinsics.
        usable: (F,) bool, the pose is known.

    Returns:
        (F, H, W) bool, and whether so much seemed to move in some frame that nothing was marked there.
    """
    frames, height, width = depth.shape
    factor = min(1.0, FLOW_SIDE_PX / max(height, width))
    size = max(16, round(width * factor)), max(16, round(height * factor))
    grey = [resize_image(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), *size) for image in images]
    reduced = camera.resized(*size)
    nearest = cv2.INTER_NEAREST
    small = [
        (cv2.resize(d, size, interpolation=nearest), cv2.resize(s, size, interpolation=nearest))
        for d, s in zip(depth, sigma, strict=True)
    ]
    out, doubtful = np.zeros(depth.shape, bool), False
    for f in range(frames):
        found = []
        for other in (f - 1, f + 1):
            if not (0 <= other < frames and usable[f] and usable[other]):
                continue
            flow, returns = optical_flow(grey[f], grey[other])
            relative = invert_pose(poses[other]) @ poses[f]
            found.append(np.where(returns, motion_evidence(flow, *small[f], reduced, relative), np.nan))
        if not found:
            continue
        with np.errstate(invalid="ignore"):
            # What is hidden in one neighbour may be seen in the other; what both see must move in both.
            evidence = np.nan_to_num(np.fmin(found[0], found[-1]), nan=0.0)
        evidence = cv2.medianBlur(evidence, 5)
        moving = (evidence > MOVING_SIGMAS).astype(np.uint8)
        moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((OPENING_PX, OPENING_PX), np.uint8))
        moving = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(moving)
        small_ones = stats[:, cv2.CC_STAT_AREA] < MIN_AREA * moving.size
        moving[small_ones[labels]] = 0
        if moving.mean() > MAX_SHARE:
            doubtful = True
            continue
        out[f] = cv2.resize(moving, (width, height), interpolation=nearest) > 0
    return out, doubtful


def scene_flow(images: np.ndarray, points: np.ndarray, dynamic: np.ndarray, frame: int) -> np.ndarray:
    """Displacement of moving points from a frame to the next one, in the world.

    Args:
        images: (F, H, W, 3) uint8, of the size of the point maps.
        points: (F, H, W, 3), NaN = unknown.
        dynamic: (F, H, W) bool.
        frame: its number; not the last.

    Returns:
        (H, W, 3) float32: 0 where nothing moves; NaN where the point is hidden in the next frame, or unknown.
    """
    grey = [cv2.cvtColor(images[f], cv2.COLOR_RGB2GRAY) for f in (frame, frame + 1)]
    flow, returns = optical_flow(*grey)
    height, width = grey[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there = cv2.remap(
        points[frame + 1].astype(np.float32), x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(np.nan,) * 3,
    )  # fmt: skip
    moved = np.where(returns[..., None], there - points[frame], np.nan)
    static = np.where(np.isfinite(points[frame]), 0.0, np.nan)
    return np.where(dynamic[frame][..., None], moved, static).astype(np.float32)
