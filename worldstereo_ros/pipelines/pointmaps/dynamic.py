"""What moves: optical flow that the camera's own motion does not explain, and the scene flow of it."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.resizing import resize_image

FLOW_SIDE_PX = 320  # longer side of the frames that flow is computed of
FINE_SIDE_PX = 256  # images that are smaller get flow at their full resolution
FLOW_ERROR_PX, FLOW_ERROR_SHARE = 0.12, 0.03  # of the flow: constant, and of its length
TEXTURE_ERROR_PX = 0.4  # of the flow, where there is as much detail as `TYPICAL_TEXTURE`
TEXTURE_WINDOW_PX, TYPICAL_TEXTURE = 9, 4.0  # squared grey levels a pixel
LEAST_TEXTURE = 0.004  # of it: there the error of flow is sixteen times as large
MAX_RETURN_PX, RETURN_SHARE = 1.5, 0.05  # there and back: constant, and of the length
GAPS = (1, 3)  # frames between two that are compared: slow things need more
MOVING_SIGMAS = 4.5  # of the difference of flow and static scene
TOLD_QUANTILE = 0.9  # of a pair's differences, which tells how large its errors are
MAX_TAIL = 3.5  # by the median they are not smaller than by that quantile over this, or things move rather
TOLD_RANGE, MAX_TOLD = (0.6, 8.0), 6.0  # factors of the error that are believed; beyond, the poses are wrong rather
SPREAD_PX = 2.0  # evidence is spread so far, from detail to what is plain
GROWTH_WINDOW, FLOW_PATCH_PX = (
    0.06,
    8,
)  # growth is measured over such a share of the width; flow nearer than that is alike
GROWTH_ERROR, MIN_GROWTH_SHARE = 0.004, 0.6  # of growth between two frames; of the window's pixels
MIN_OVERLAP = 0.25  # of two frames that are compared
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


def structure_tensor(grey: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32 xx, yy and xy: mean squared grey levels a pixel around each pixel of an image (h, w) uint8."""
    x = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    y = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    window = (TEXTURE_WINDOW_PX, TEXTURE_WINDOW_PX)
    return np.stack([cv2.blur(product, window) for product in (x * x, y * y, x * y)], axis=2)


def _returns(forth: np.ndarray, back: np.ndarray) -> np.ndarray:
    height, width = forth.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there_x, there_y = x + forth[..., 0], y + forth[..., 1]
    returned = cv2.remap(back, there_x, there_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    limit = MAX_RETURN_PX + RETURN_SHARE * np.linalg.norm(forth, axis=2)
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
    structure: np.ndarray,
    depth: np.ndarray,
    sigma: np.ndarray,
    camera: Camera,
    other_from_this: np.ndarray,
    usable: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """How many standard deviations flow is off from that of a static scene.

    The covariance of flow is that of matching by detail: along edges and on plain surfaces it says little. An error of
    the depth moves the flow of a static point along its epipolar line, which adds to it. How large all errors are the
    pair itself tells, since most of it is static.

    What moves along the line of sight hardly moves in the image, but grows or shrinks. Growth across the epipolar lines
    is what no error of depth explains.

    Args:
        flow: (H, W, 2) pixels.
        structure: (H, W, 3) structure tensor of the image.
        depth: (H, W), 0 = unknown.
        sigma: (H, W) error of its logarithm.
        camera: intrinsics.
        other_from_this: (4, 4).
        usable: (H, W) bool, the flow is known; None: everywhere.

    Returns:
        (H, W) float32, 0 where it cannot be said; and the factor of the errors.
    """
    static = rigid_flow(depth, camera, other_from_this)
    slope = (rigid_flow(depth * np.float32(1.05), camera, other_from_this) - static) / np.float32(np.log(1.05))
    difference = flow - static
    length = np.linalg.norm(slope, axis=2)
    along = slope / np.maximum(length, 1e-6)[..., None]
    known = np.isfinite(difference).all(axis=2) & np.isfinite(along).all(axis=2)
    known = known if usable is None else known & usable
    if known.sum() < MIN_FLOW_PIXELS:
        return np.zeros(depth.shape, np.float32), 1.0
    difference, along = (np.where(known[..., None], each, 0) for each in (difference, along))
    length = np.where(known, length, 0)
    matching = _flow_covariance(flow, structure)
    # Expected error of a Laplace distribution: its standard deviation is sqrt(2) times that.
    loose = 2 * (sigma * length) ** 2
    ax, ay = along[..., 0], along[..., 1]
    xx, yy, xy = matching[0] + loose * ax**2, matching[1] + loose * ay**2, matching[2] + loose * ax * ay
    x, y = difference[..., 0], difference[..., 1]
    squared = np.maximum(yy * x**2 - 2 * xy * x * y + xx * y**2, 0) / np.maximum(xx * yy - xy**2, 1e-9)
    middle, high = (
        np.sqrt(float(np.quantile(squared[known], share)) / (-2 * np.log(1 - share)))  # of a Rayleigh distribution
        for share in (0.5, TOLD_QUANTILE)
    )
    told = float(np.clip(min(high, MAX_TAIL * middle), *TOLD_RANGE))
    across = np.sqrt(matching[0] * ay**2 + matching[1] * ax**2 - 2 * matching[2] * ax * ay)
    growth = _growth_evidence(difference, along, told * across, depth, sigma, camera, other_from_this, known)
    evidence = np.where(known, np.fmax(np.sqrt(squared) / told, growth), 0)
    half = 0.5 * (structure[..., 0] + structure[..., 1])
    stronger = half + np.sqrt((0.5 * (structure[..., 0] - structure[..., 1])) ** 2 + structure[..., 2] ** 2)
    weight = np.where(known, stronger / (stronger + TYPICAL_TEXTURE) + 1e-6, 0).astype(np.float32)
    spread = cv2.GaussianBlur((weight * evidence).astype(np.float32), (0, 0), SPREAD_PX)
    total = cv2.GaussianBlur(weight, (0, 0), SPREAD_PX)
    return np.where(known, spread / np.maximum(total, 1e-9), 0).astype(np.float32), told


def _flow_covariance(flow: np.ndarray, structure: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """xx, yy and xy, (H, W) each, of the covariance of flow: the inverse of the structure tensor, and its length."""
    xx, yy, xy = (structure[..., axis] / TYPICAL_TEXTURE + LEAST_TEXTURE * (axis < 2) for axis in range(3))
    scale = TEXTURE_ERROR_PX**2 / np.maximum(xx * yy - xy**2, 1e-9)
    base = FLOW_ERROR_PX**2 + (FLOW_ERROR_SHARE * np.linalg.norm(flow, axis=2)) ** 2
    return base + scale * yy, base + scale * xx, -scale * xy


def _growth_evidence(
    difference: np.ndarray, along: np.ndarray, error: np.ndarray, depth: np.ndarray, sigma: np.ndarray, camera: Camera,
    other_from_this: np.ndarray, known: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """How many standard deviations things grow more, across epipolar lines, than static ones do; (H, W), 0 = unknown.

    Growth is the slope of the difference of flow and static scene over a window, by least squares; `error` (H, W) is
    that of flow across epipolar lines.
    """
    height, width = depth.shape
    side = 2 * round(0.5 * max(GROWTH_WINDOW * width, 10)) + 1
    weight = known.astype(np.float32)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) - width / 2, np.arange(height, dtype=np.float32) - height / 2)
    total = cv2.blur(weight, (side, side))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur((values * weight).astype(np.float32), (side, side)) / np.maximum(total, 1e-3)

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    determinant = np.maximum(xx * yy - xy * xy, 1e-3)
    normal = along[..., 1], -along[..., 0]
    growth = np.zeros(depth.shape, np.float32)
    for axis in (0, 1):
        part = difference[..., axis]
        middle = mean(part)
        px, py = mean(part * x) - middle * mx, mean(part * y) - middle * my
        slope_x, slope_y = (px * yy - py * xy) / determinant, (py * xx - px * xy) / determinant
        growth += normal[axis] * (slope_x * normal[0] + slope_y * normal[1])
    there = (camera.rays() * depth[..., None]) @ other_from_this[2, :3].astype(np.float32) + other_from_this[2, 3]
    ahead = known & (there > 1e-6) & (depth > 0)
    approach = np.abs(np.log(np.where(ahead, there, 1) / np.where(ahead, depth, 1)))
    samples = np.maximum(total * (side / FLOW_PATCH_PX) ** 2, 1.0)
    spread = (error / (np.sqrt(samples) * side / np.sqrt(12)) + GROWTH_ERROR) ** 2 + 2 * (sigma * approach) ** 2
    return np.where(ahead & (total > MIN_GROWTH_SHARE), np.abs(growth) / np.sqrt(spread), 0)


def turned_view(
    grey: np.ndarray, depth: np.ndarray, sigma: np.ndarray, camera: Camera, turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A frame as its camera sees it after a rotation: image, depth and its error, and (H, W) bool where it is seen.

    Args:
        grey: (H, W) uint8.
        depth, sigma: (H, W).
        camera: intrinsics.
        turn: (3, 3), from the axes of the camera to those of the turned one.
    """
    size = (camera.width, camera.height)
    matrix = camera.matrix @ turn @ np.linalg.inv(camera.matrix)
    z = depth * (camera.rays() @ turn[2].astype(np.float32))
    image = cv2.warpPerspective(grey, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    z, error = (
        cv2.warpPerspective(each.astype(np.float32), matrix, size, flags=cv2.INTER_NEAREST) for each in (z, sigma)
    )
    seen = cv2.warpPerspective(np.ones(grey.shape, np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    return image, np.maximum(z, 0), error, cv2.erode(seen, np.ones((5, 5), np.uint8)) > 0


def _pair_evidence(
    one: np.ndarray, two: np.ndarray, maps: tuple[np.ndarray, np.ndarray], other_maps: tuple[np.ndarray, np.ndarray],
    camera: Camera, two_from_one: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Evidence in the pixels of two frames (h, w), NaN where flow says nothing; None if they do not fit their poses.

    The second frame is turned to the axes of the first one before flow is computed: rotations move all of the image
    by many pixels, and flow is good at few.
    """
    back_turn = two_from_one[:3, :3].T
    image, depth, sigma, there = turned_view(two, *other_maps, camera, back_turn)
    if there.mean() < MIN_OVERLAP:
        return np.full(one.shape, np.nan, np.float32), np.full(one.shape, np.nan, np.float32)
    shift = np.eye(4)
    shift[:3, 3] = back_turn @ two_from_one[:3, 3]
    forth, back, (returns, returns_back) = optical_flow(one, image)
    returns, returns_back = returns & there, returns_back & there
    early, told = motion_evidence(forth, structure_tensor(one), *maps, camera, shift, returns)
    late, told_back = motion_evidence(
        back, structure_tensor(image), depth, sigma, camera, invert_pose(shift), returns_back
    )
    if min(told, told_back) > MAX_TOLD:
        return None
    matrix = camera.matrix @ two_from_one[:3, :3] @ np.linalg.inv(camera.matrix)
    late = cv2.warpPerspective(
        np.where(returns_back, late, np.nan).astype(np.float32), matrix, (camera.width, camera.height),
        flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=float("nan"),
    )  # fmt: skip
    return np.where(returns, early, np.nan).astype(np.float32), late


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
    out = np.zeros(depth.shape, bool)
    evidence = np.zeros((frames, size[1], size[0]), np.float32)
    fitting, compared = np.zeros(frames, bool), np.zeros(frames, bool)
    for gap in GAPS:
        seen = np.full((2, *evidence.shape), np.nan, np.float32)  # by the earlier and the later frame
        for f in range(frames - gap):
            if usable[f] and usable[f + gap]:
                compared[[f, f + gap]] = True
                relative = invert_pose(poses[f + gap]) @ poses[f]
                found = _pair_evidence(grey[f], grey[f + gap], small[f], small[f + gap], reduced, relative)
                if found is not None:
                    seen[1, f], seen[0, f + gap] = found
                    fitting[[f, f + gap]] = True
        # What is hidden in one frame may be seen in the other; what both see must move in both.
        evidence = np.fmax(evidence, np.fmin(seen[0], seen[1]))
    evidence, doubtful = np.nan_to_num(evidence), bool((compared & ~fitting).any())
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
