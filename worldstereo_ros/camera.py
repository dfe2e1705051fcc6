"""Cameras, poses and the paths they take.

Inside this project: OpenCV camera axes (x right, y down, z forward), metres, radians, pixel centres at integers,
poses as `world_from_camera` (4, 4) matrices; a name `a_from_b` takes b coordinates to a.
The conventions of the published WorldStereo weights (`world_to_camera`, normalised scenes, Plücker rays) are made
here from these, each in one function. SciPy is imported where it is used: machines that only train have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRAJECTORIES = ("forward", "orbit", "left", "right", "up", "turn")


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion.

    Attributes:
        width, height: image size in pixels.
        fx, fy: focal lengths in pixels.
        cx, cy: principal point in pixels; the centre of the top left pixel is (0, 0).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not np.isfinite(numbers).all() or self.fx <= 0 or self.fy <= 0 or self.width <= 0 or self.height <= 0:
            raise ValueError(
                f"The camera has size {self.width}x{self.height} and fx, fy, cx, cy = {numbers}; the size and the "
                "focal lengths must be positive and every number finite. An uncalibrated camera sends zeros."
            )

    @classmethod
    def from_matrix(cls, K: np.ndarray, width: int, height: int) -> Camera:
        """From a 3x3 intrinsic matrix in pixels."""
        K = np.asarray(K, dtype=np.float64)
        if K.shape != (3, 3):
            raise ValueError(f"The intrinsic matrix has shape {K.shape}; (3, 3) was expected.")
        return cls(int(width), int(height), float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_fov: float) -> Camera:
        """Square pixels, principal point in the middle; `horizontal_fov` in radians, below pi."""
        if not 0 < horizontal_fov < np.pi:
            raise ValueError(f"The horizontal field of view is {horizontal_fov} rad; it must lie between 0 and pi.")
        focal = 0.5 * width / np.tan(0.5 * horizontal_fov)
        return cls(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 intrinsic matrix in pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def resized(self, width: int, height: int) -> Camera:
        """The same field of view on another pixel grid."""
        sx, sy = width / self.width, height / self.height
        # Pixel centres are at integers, so the image begins at -0.5.
        cx, cy = (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        return Camera(width, height, self.fx * sx, self.fy * sy, cx, cy)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The window of `width` x `height` pixels whose top left pixel is (x, y)."""
        return Camera(width, height, self.fx, self.fy, self.cx - x, self.cy - y)

    def rays(self) -> np.ndarray:
        """(H, W, 3) float32 directions through the pixel centres, camera axes, z = 1: point = ray * depth."""
        x = (np.arange(self.width, dtype=np.float32) - np.float32(self.cx)) / np.float32(self.fx)
        y = (np.arange(self.height, dtype=np.float32) - np.float32(self.cy)) / np.float32(self.fy)
        rays = np.ones((self.height, self.width, 3), dtype=np.float32)
        rays[..., 0], rays[..., 1] = x[None, :], y[:, None]
        return rays


# --- poses ---


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """The inverse of rigid transforms (..., 4, 4), without a general matrix inverse."""
    pose = np.asarray(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    out = np.zeros_like(pose)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    out[..., 3, 3] = 1
    return out


def pose_from_quaternion(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """(4, 4) float64 from a translation and a quaternion in ROS order (x, y, z, w).

    Raises:
        ValueError: a number is not finite, or the quaternion's length is not within 1 % of one.
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(translation, dtype=np.float64)
    q = np.asarray(quaternion_xyzw, dtype=np.float64)
    if not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise ValueError(f"The pose has a number that is not finite: position {t.tolist()}, quaternion {q.tolist()}.")
    norm = float(np.linalg.norm(q))
    if abs(norm - 1) > 1e-2:
        raise ValueError(
            f"The quaternion {q.tolist()} has length {norm:.4g}; a rotation has length 1 (none set? use w = 1)."
        )
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(q / norm).as_matrix()
    pose[:3, 3] = t
    return pose


def quaternion_from_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(translation (..., 3), quaternion (..., 4) as x, y, z, w with w >= 0) of rigid transforms (..., 4, 4)."""
    from scipy.spatial.transform import Rotation

    pose = np.asarray(pose, dtype=np.float64)
    flat = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_quat()
    flat = np.where(flat[:, 3:] < 0, -flat, flat)
    return pose[..., :3, 3].copy(), flat.reshape(*pose.shape[:-2], 4)


def check_poses(poses: np.ndarray, name: str = "The path") -> np.ndarray:
    """Returns `poses` as (N, 4, 4) float64.

    Raises:
        ValueError: it is empty, has another shape, a number that is not finite, or a matrix that is no rotation.
    """
    poses = np.asarray(poses, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise ValueError(f"{name} has shape {poses.shape}; at least one 4x4 pose was expected, (N, 4, 4).")
    if not np.isfinite(poses).all():
        bad = int(np.flatnonzero(~np.isfinite(poses).all(axis=(1, 2)))[0])
        raise ValueError(f"{name} has a number that is not finite in pose {bad}.")
    gram = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
    wrong = np.abs(gram - np.eye(3)).max(axis=(1, 2)) > 1e-3
    if wrong.any() or (np.linalg.det(poses[:, :3, :3]) < 0).any():
        raise ValueError(f"{name} has a pose whose upper left 3x3 block is no rotation.")
    return poses


def interpolate_poses(poses: np.ndarray, count: int, *, metres_per_radian: float = 0.5) -> np.ndarray:
    """`count` poses spread evenly along a polyline of poses, both ends included.

    Positions go straight and rotations along the shortest arc (slerp). "Evenly" counts turning as well as moving:
    one radian weighs as much as `metres_per_radian`, so that a turn in place gets its share of views.

    Args:
        poses: (N, 4, 4) world_from_camera, N >= 1. Repeated poses are fine.
        count: number of poses wanted, >= 1. One pose, or a path with no length, is repeated.
        metres_per_radian: weight of turning against moving.

    Returns:
        (count, 4, 4) float64.
    """
    from scipy.spatial.transform import Rotation, Slerp

    poses = check_poses(poses)
    if count < 1:
        raise ValueError(f"{count} poses were asked for; at least 1 is needed.")
    step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    rotations = Rotation.from_matrix(poses[:, :3, :3])
    turn = (rotations[:-1].inv() * rotations[1:]).magnitude() if len(poses) > 1 else np.zeros(0)
    length = np.concatenate([[0.0], np.cumsum(step + metres_per_radian * turn)])
    keep = np.concatenate([[True], np.diff(length) > 1e-9])
    poses, length = poses[keep], length[keep]
    if len(poses) == 1:
        return np.repeat(poses, count, axis=0)
    at = np.linspace(0.0, length[-1], count)
    out = np.tile(np.eye(4), (count, 1, 1))
    for axis in range(3):
        out[:, axis, 3] = np.interp(at, length, poses[:, axis, 3])
    out[:, :3, :3] = Slerp(length, Rotation.from_matrix(poses[:, :3, :3]))(at).as_matrix()
    return out


def trajectory(
    name: str,
    world_from_camera: np.ndarray,
    count: int,
    *,
    distance: float = 1.0,
    angle: float = np.pi / 3,
    radius: float = 2.0,
) -> np.ndarray:
    """A preset path that begins at a camera.

    Args:
        name: forward, left, right, up: a straight line, looking ahead; orbit: an arc of `angle` around the point
            `radius` ahead, looking at it; turn: a turn in place to the right by `angle`.
        world_from_camera: (4, 4) pose the path begins at; it is its first pose.
        count: number of poses.
        distance: length of the straight paths, metres.
        angle: of orbit and turn, radians, positive to the right.
        radius: of the orbit, metres.

    Returns:
        (count, 4, 4) world_from_camera.
    """
    from scipy.spatial.transform import Rotation

    start = check_poses(np.asarray(world_from_camera)[None])[0]
    fraction = np.linspace(0.0, 1.0, count)
    camera_from_step = np.tile(np.eye(4), (count, 1, 1))
    straight = {"forward": (0, 0, 1), "left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0)}
    if name in straight:
        camera_from_step[:, :3, 3] = fraction[:, None] * distance * np.array(straight[name])
    elif name == "turn":
        camera_from_step[:, :3, :3] = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, 1, 0])).as_matrix()
    elif name == "orbit":
        # Moving to the right around a point ahead turns the camera to the left.
        rotation = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, -1, 0])).as_matrix()
        centre = np.array([0, 0, radius])
        camera_from_step[:, :3, :3] = rotation
        camera_from_step[:, :3, 3] = centre - rotation @ centre
    else:
        raise ValueError(f"The path '{name}' is not known; it is one of {', '.join(TRAJECTORIES)}.")
    return start @ camera_from_step


# --- points ---


def unproject(depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 world points of a depth image (H, W) in metres; where depth is 0 they mean nothing."""
    if depth.shape != (camera.height, camera.width):
        raise ValueError(
            f"The depth has shape {depth.shape}; the camera's {(camera.height, camera.width)} was expected."
        )
    points = camera.rays() * depth[..., None].astype(np.float32)
    rotation = world_from_camera[:3, :3].astype(np.float32)
    return points @ rotation.T + world_from_camera[:3, 3].astype(np.float32)


def project(points: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where world points land in a camera.

    Returns:
        (pixel coordinates (N, 2) float32 as x, y; depth (N,) float32). Behind the camera (depth <= 0) the
        coordinates mean nothing.
    """
    camera_from_world = invert_pose(world_from_camera)
    # Subtracting the centre first keeps precision far from the origin of the world.
    local = (points.astype(np.float64) - world_from_camera[:3, 3]) @ camera_from_world[:3, :3].T
    z = local[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x = camera.fx * local[:, 0] / z + camera.cx
        y = camera.fy * local[:, 1] / z + camera.cy
    return np.stack([x, y], axis=1).astype(np.float32), z.astype(np.float32)


# --- what the published weights expect ---


def normalise_cameras(
    world_to_camera: np.ndarray, reference_world_to_camera: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scene the published weights were trained in: first camera at identity, then centred and scaled.

    Every pose is expressed relative to the first target; camera centres are shifted by the mean of the targets'
    (those within 10 times the 97th percentile of the distance to their median), then scaled so that the first target
    lies at distance 2 from the origin (where the mean is at the first target already, by 2). Metric scale is lost.
    Source: SEVA (arXiv 2503.14489) as used by WorldStereo 2.0.

    Args:
        world_to_camera: (F, 4, 4) targets, OpenCV axes.
        reference_world_to_camera: (R, 4, 4) memory views, moved along with the targets, or None.

    Returns:
        (targets (F, 4, 4) float64, references (R, 4, 4) float64 or None).
    """
    targets = check_poses(world_to_camera, "The camera path")
    first = invert_pose(targets[0])
    count = len(targets)
    poses = targets
    if reference_world_to_camera is not None:
        poses = np.concatenate([targets, np.asarray(reference_world_to_camera, dtype=np.float64)])
    cameras = invert_pose(poses @ first)
    centres = cameras[:count, :3, 3]
    distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    kept = distance <= 10 * np.quantile(distance, 0.97)
    cameras[:, :3, 3] -= centres[kept].mean(axis=0)
    norm = np.linalg.norm(cameras[0, :3, 3])
    cameras[:, :3, 3] *= 2.0 / norm if norm > 1e-6 else 2.0
    out = invert_pose(cameras)
    return out[:count], out[count:] if reference_world_to_camera is not None else None


def pose_vectors(world_to_camera: np.ndarray) -> np.ndarray:
    """(N, 7) float32 of (N, 4, 4): quaternion w, x, y, z with w >= 0, then the translation."""
    translation, quaternion = quaternion_from_pose(world_to_camera)
    return np.concatenate([quaternion[:, [3, 0, 1, 2]], translation], axis=1).astype(np.float32)


def plucker_embedding(world_to_camera: np.ndarray, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Plücker rays of every pixel: unit direction d and moment o x d, in world axes.

    The rays pass through (x - 0.5, y + 0.5). x is off by one pixel against the centre of a pixel whose corner is at
    (x, y); the published weights were trained with it, so it stays.

    Args:
        world_to_camera: (F, 4, 4) normalised cameras (`normalise_cameras`).
        K: (F, 3, 3) or (3, 3) intrinsics in pixels of a `height` x `width` image.

    Returns:
        (6, F, height, width) float32: d in the first three channels, o x d in the others.
    """
    world_to_camera = np.asarray(world_to_camera, dtype=np.float64)
    K = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(world_to_camera), 3, 3))
    cameras = invert_pose(world_to_camera)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) - 0.5, indexing="ij")
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    world_from_pixel = cameras[:, :3, :3] @ np.linalg.inv(K)
    directions = (pixels @ world_from_pixel.transpose(0, 2, 1)).reshape(-1, height, width, 3)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    moments = np.cross(np.broadcast_to(cameras[:, None, None, :3, 3], directions.shape), directions)
    return np.concatenate([directions, moments], axis=-1).transpose(3, 0, 1, 2).astype(np.float32)


# --- frusta ---


def frustum_corners(
    world_to_camera: np.ndarray, K: np.ndarray, width: int, height: int, near: float = 0.1, far: float = 10.0
) -> np.ndarray:
    """(N, 8, 3) world corners of frusta: unit rays through the image corners, times near and far (metres)."""
    cameras = invert_pose(np.asarray(world_to_camera, dtype=np.float64))
    K = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(cameras), 3, 3))
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    rays = np.einsum("nij,kj->nki", np.linalg.inv(K), corners)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    points = np.concatenate([rays * near, rays * far], axis=1)
    return np.einsum("nij,nkj->nki", cameras[:, :3, :3], points) + cameras[:, None, :3, 3]


def retrieval_scores(
    target_world_to_camera: np.ndarray,
    memory_world_to_camera: np.ndarray,
    target_K: np.ndarray,
    memory_K: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How well each remembered view serves each target view (WorldStereo 2.0).

    The intersection over union of the world-axis-aligned boxes around both frusta (0.1 to 10 m; both with the
    target's image size), times `clip(exp(5 (90 - angle) / 180), 0, 1)` of the angle between the optical axes.

    Args:
        target_world_to_camera: (F, 4, 4). memory_world_to_camera: (M, 4, 4).
        target_K: (F, 3, 3) or (3, 3). memory_K: (M, 3, 3) or (3, 3). In pixels of `width` x `height`.

    Returns:
        (scores (F, M) in 0..1, angles (F, M) in degrees).
    """
    boxes = []
    for poses, K in ((target_world_to_camera, target_K), (memory_world_to_camera, memory_K)):
        corners = frustum_corners(poses, K, width, height)
        boxes.append((corners.min(axis=1), corners.max(axis=1)))
    (t_low, t_high), (m_low, m_high) = boxes
    overlap = np.minimum(t_high[:, None], m_high[None]) - np.maximum(t_low[:, None], m_low[None])
    intersection = np.clip(overlap, 0, None).prod(axis=-1)
    volume = (t_high - t_low).prod(axis=-1)[:, None] + (m_high - m_low).prod(axis=-1)[None]
    iou = intersection / (volume - intersection)
    # The third row of world_to_camera is the optical axis in the world.
    cosine = np.asarray(target_world_to_camera)[:, 2, :3] @ np.asarray(memory_world_to_camera)[:, 2, :3].T
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return iou * np.clip(np.exp(5 * (90 - angles) / 180), 0, 1), angles
