"""What moves: optical flow that the camera's own motion does not explain, and the scene flow of it."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.resizing import resize_image

FLOW_SIDE_PX = 320  # longer side of the frames that flow is computed of
FINE_SIDE_PX = 256  # images that are smaller get flow at their full resolution
FLOW_ERROR_PX, FLOW_ERROR_SHARE = 0.5, 0.05  # of the flow: constant, and of its length
MAX_RETURN_PX = 1.5
GAPS = (1, 3)  # frames between two that are compared: slow things need more
MOVING_SIGMAS = 3.5  # of the difference of flow and static scene
TEXTURE_WINDOW_PX, TYPICAL_TEXTURE = 9, 4.0  # squared grey levels a pixel, in the weaker direction
PLAIN_ERROR_PX = 0.7  # added to the error of flow where there is no texture
OPENING_PX, MIN_AREA = 3, 0.0008  # speckles are no things; share of the image
MIN_FLOW_PIXELS = 20  # of a thing, to tell how it approaches
MAX_APPROACH = 0.05  # change of a thing's distance between frames by its own motion, as a logarithm
MAX_SHARE = 0.6  # of the pixels; if more seem to move, the camera's motion is wrong rather


def optical_flow(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Dense flow (h, w, 2) between two grey images (h, w) uint8, there and back, and where each returns (h, w) bool."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(1 if max(before.shape) >= FINE_SIDE_PX else 0)
    forth, back = method.calc(before, now, None), method.calc(now, before, None)
    return forth, back, (_returns(forth, back), _returns(back, forth))


def flow_noise(grey: np.ndarray) -> np.ndarray:
    """(h, w) float32 error of flow in pixels: larger where there is no detail in both directions to follow."""
    x = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    y = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    window = (TEXTURE_WINDOW_PX, TEXTURE_WINDOW_PX)
    xx, yy, xy = (cv2.blur(product, window) for product in (x * x, y * y, x * y))
    weaker = 0.5 * (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy**2))
    return FLOW_ERROR_PX + PLAIN_ERROR_PX / (1 + np.maximum(weaker, 0) / TYPICAL_TEXTURE)


def _returns(forth: np.ndarray, back: np.ndarray) -> np.ndarray:
    height, width = forth.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there_x, there_y = x + forth[..., 0], y + forth[..., 1]
    returned = cv2.remap(back, there_x, there_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    limit = MAX_RETURN_PX + FLOW_ERROR_SHARE * np.linalg.norm(forth, axis=2)
    return inside & (np.linalg.norm(forth + returned, axis=2) < limit)


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
    flow: np.ndarray,
    error: np.ndarray,
    depth: np.ndarray,
    sigma: np.ndarray,
    camera: Camera,
    other_from_this: np.ndarray,
) -> np.ndarray:
    """How many standard deviations flow is off from that of a static scene.

    An error of the depth moves the flow of a static point along its epipolar line, so that this part of the difference
    is measured by the depth's own uncertainty; the part across the line is measured by that of the flow alone.

    Args:
        flow: (H, W, 2) pixels.
        error: (H, W) of the flow of short motion, pixels.
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
    noise = error + FLOW_ERROR_SHARE * np.linalg.norm(flow, axis=2)
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
    evidence = np.zeros((frames, size[1], size[0]), np.float32)
    errors = [flow_noise(image) for image in grey]
    for gap in GAPS:
        seen = np.full((2, *evidence.shape), np.nan, np.float32)  # by the earlier and the later frame
        for f in range(frames - gap):
            if usable[f] and usable[f + gap]:
                relative = invert_pose(poses[f + gap]) @ poses[f]
                forth, back, returns = optical_flow(grey[f], grey[f + gap])
                seen[1, f] = np.where(
                    returns[0], motion_evidence(forth, errors[f], *small[f], reduced, relative), np.nan
                )
                later = motion_evidence(back, errors[f + gap], *small[f + gap], reduced, invert_pose(relative))
                seen[0, f + gap] = np.where(returns[1], later, np.nan)
        # What is hidden in one frame may be seen in the other; what both see must move in both.
        evidence = np.fmax(evidence, np.fmin(seen[0], seen[1]))
    evidence = np.nan_to_num(evidence)
    for f in range(frames):
        moving = (cv2.medianBlur(evidence[f], 5) > MOVING_SIGMAS).astype(np.uint8)
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


def scene_flow(
    images: np.ndarray, points: np.ndarray, dynamic: np.ndarray, poses: np.ndarray, camera: Camera, frame: int
) -> np.ndarray:
    """Displacement of moving points from a frame to the next one, in the world.

    Optical flow says where a point is in the next image. Its distance there is that of a static point, times the median
    ratio of the next depth map to it over the whole thing, within `MAX_APPROACH`: depth maps of single pixels change
    from frame to frame by more than things move.

    Args:
        images: (F, H, W, 3) uint8, of the size of the point maps.
        points: (F, H, W, 3), NaN = unknown.
        dynamic: (F, H, W) bool.
        poses: (F, 4, 4) world_from_camera.
        camera: intrinsics.
        frame: its number; not the last.

    Returns:
        (H, W, 3) float32: 0 where nothing moves; NaN where the point is hidden in the next frame, or unknown.
    """
    grey = [cv2.cvtColor(images[f], cv2.COLOR_RGB2GRAY) for f in (frame, frame + 1)]
    flow, _, (returns, _) = optical_flow(*grey)
    height, width = grey[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there_x, there_y = x + flow[..., 0], y + flow[..., 1]
    pose = poses[frame + 1]
    axis = pose[:3, 2].astype(np.float32)
    distance = (points[frame] - pose[:3, 3].astype(np.float32)) @ axis  # of a static point in the next camera
    next_depth = (points[frame + 1] - pose[:3, 3].astype(np.float32)) @ axis
    found = cv2.remap(
        next_depth.astype(np.float32), there_x, there_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(found / np.where(distance > 0, distance, np.nan))
    usable = returns & np.isfinite(ratio) & dynamic[frame]
    change = np.zeros((height, width), np.float32)
    count, labels = cv2.connectedComponents(dynamic[frame].astype(np.uint8))
    for label in range(1, count):
        rows = (labels == label) & usable
        if rows.sum() >= MIN_FLOW_PIXELS:
            change[labels == label] = np.clip(np.median(ratio[rows]), -MAX_APPROACH, MAX_APPROACH)
    local = np.stack([(there_x - camera.cx) / camera.fx, (there_y - camera.cy) / camera.fy, np.ones_like(x)], axis=2)
    local *= (distance * np.exp(change))[..., None]
    arrived = local @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32)
    moved = np.where(usable[..., None], arrived - points[frame], np.nan)
    static = np.where(np.isfinite(points[frame]), 0.0, np.nan)
    return np.where(dynamic[frame][..., None], moved, static).astype(np.float32)
