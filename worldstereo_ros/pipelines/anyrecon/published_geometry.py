"""Point maps and trajectories as AnyRecon's published code treats them (`published`), for parity.

Point maps are those of a network such as π³: for every pixel a point in camera axes, of arbitrary scale.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose, quaternion_from_pose
from worldstereo_ros.utils.errors import InputError

PATCH_PX, MAX_PIXELS = 14, 255_000  # of the images that the point-map network gets
FOCAL_SAMPLE = 64  # points across and down that the focal length is fitted to
EDGE_RATIO = 0.03  # range of depth in 3x3 pixels, relative to the depth, that is an edge
SMOOTHING_WINDOW, ROTATION_ROUNDS = 5, 5


def point_map_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture for the point-map network: multiples of 14, about the same shape, in its limit.

    Smaller pictures are enlarged.

    Args:
        width, height: size of the picture in pixels.

    Raises:
        InputError: the size is not positive.
    """
    if width < 1 or height < 1:
        raise InputError(f"The picture has size {width}x{height}; at least one pixel was expected.")
    scale = math.sqrt(MAX_PIXELS / (width * height))
    columns, rows = round(width * scale / PATCH_PX), round(height * scale / PATCH_PX)
    while columns * PATCH_PX * rows * PATCH_PX > MAX_PIXELS:
        if columns * height > rows * width:
            columns -= 1
        else:
            rows -= 1
    return max(1, columns) * PATCH_PX, max(1, rows) * PATCH_PX


def fit_focal(local_points: np.ndarray, usable: np.ndarray | None = None) -> tuple[float, float]:
    """Fits the focal length of a pinhole camera, and a shift of depth, to a point map.

    The shift is part of the fit alone: the published code does not move the points by it.

    Args:
        local_points: (H, W, 3) points in camera axes.
        usable: (H, W) bool; None: all pixels.

    Returns:
        Focal length relative to half the diagonal of the picture, and shift in the unit of the points.

    Raises:
        InputError: fewer than two usable pixels are in the sample.
    """
    height, width = local_points.shape[:2]
    diagonal = math.hypot(width, height)
    # The nearest-neighbour grid of torch: the upper left pixel of every cell.
    rows = np.arange(FOCAL_SAMPLE) * height // FOCAL_SAMPLE
    columns = np.arange(FOCAL_SAMPLE) * width // FOCAL_SAMPLE
    grid = np.ix_(rows, columns)
    u, v = np.meshgrid((2 * np.arange(width) + 1 - width) / diagonal, (2 * np.arange(height) + 1 - height) / diagonal)
    pixels = np.stack([u, v], axis=-1)[grid].reshape(-1, 2)
    points = local_points[grid].reshape(-1, 3).astype(np.float64)
    keep = np.isfinite(points).all(axis=1)
    if usable is not None:
        keep &= usable[grid].ravel()
    if keep.sum() < 2:
        raise InputError(f"{int(keep.sum())} points of the sample are usable; at least 2 were expected.")
    pixels, points = pixels[keep], points[keep]

    def focal(shift: float) -> tuple[float, np.ndarray]:
        rays = points[:, :2] / (points[:, 2:] + shift)
        return float((rays * pixels).sum() / (rays * rays).sum()), rays

    def residual(shift: np.ndarray) -> np.ndarray:
        best, rays = focal(float(shift[0]))
        return (best * rays - pixels).ravel()

    shift = float(least_squares(residual, x0=0.0, ftol=1e-3, method="lm").x[0])
    return focal(shift)[0], shift


def camera_of_focal(focal: float, width: int, height: int) -> Camera:
    """The camera of a focal length that is relative to half the diagonal; its centre is that of the picture.

    The published code counts the centre from the corner of the picture, and projects it as if it counted from the
    centre of the first pixel (see `published_rendering`); this camera is exact.
    """
    pixels = focal / 2 * math.hypot(width, height)
    return Camera(width, height, pixels, pixels, width / 2 - 0.5, height / 2 - 0.5)


def depth_edges(depth: np.ndarray, ratio: float = EDGE_RATIO) -> np.ndarray:
    """Pixels whose 3x3 neighbourhood spans more than a fraction of their depth.

    Args:
        depth: (H, W) depth.
        ratio: the fraction.

    Returns:
        (H, W) bool.
    """
    values = np.ascontiguousarray(depth, np.float32)
    kernel = np.ones((3, 3), np.uint8)  # outside the picture counts for nothing
    spread = cv2.dilate(values, kernel) - cv2.erode(values, kernel)
    with np.errstate(divide="ignore", invalid="ignore"):
        return spread / values > ratio


def smooth_trajectory(world_from_camera: np.ndarray) -> np.ndarray:
    """Smooths a trajectory: mean positions of five poses with repeated ends, rotations by neighbours in five rounds.

    The first and the last rotation stay. Trajectories of up to two poses are returned as they are.

    Args:
        world_from_camera: (F, 4, 4) poses.

    Returns:
        (F, 4, 4) float64.
    """
    poses = check_poses(world_from_camera)
    if len(poses) <= 2:
        return poses
    reach = SMOOTHING_WINDOW // 2
    padded = np.pad(poses[:, :3, 3], ((reach, reach), (0, 0)), mode="edge")
    positions = np.mean([padded[k : k + len(poses)] for k in range(SMOOTHING_WINDOW)], axis=0)
    _, quaternions = quaternion_from_pose(poses)
    for index in range(1, len(poses)):  # the nearer one of the two quaternions of a rotation
        if quaternions[index] @ quaternions[index - 1] < 0:
            quaternions[index] *= -1
    for _ in range(ROTATION_ROUNDS):
        inner = (quaternions[:-2] + 2 * quaternions[1:-1] + quaternions[2:]) / 4
        quaternions[1:-1] = inner / np.linalg.norm(inner, axis=1, keepdims=True)
    smoothed = np.tile(np.eye(4), (len(poses), 1, 1))
    smoothed[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
    smoothed[:, :3, 3] = positions
    return smoothed


def align_to_anchor(world_from_camera: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Moves a trajectory rigidly so that its first pose is another one. Its scale stays.

    Args:
        world_from_camera: (F, 4, 4) poses in any frame.
        anchor: (4, 4) world_from_camera, the pose to start from, such as that of the last capture.

    Returns:
        (F, 4, 4) float64 poses in the frame of the anchor.
    """
    poses = check_poses(world_from_camera)
    (start,) = check_poses(np.asarray(anchor)[None])
    return start @ invert_pose(poses[0]) @ poses


def cover_and_crop(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cuts the middle of a size out of an image; a smaller one is enlarged until it covers the size, a larger one not.

    Args:
        image: (H, W) or (H, W, C).
        width, height: size in pixels.

    Returns:
        (height, width) or (height, width, C).
    """
    scale = max(1.0, width / image.shape[1], height / image.shape[0])
    if scale > 1:
        size = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
