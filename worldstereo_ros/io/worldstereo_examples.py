"""The file format of the published WorldStereo examples: camera paths, prompts, rendered clips.

Conventions of the files, converted here: `extrinsic` is world-to-camera (OpenCV axes); pixel coordinates start at the
image corner, so that the middle of W pixels is W / 2; `render_mask.mp4` is white in the holes of the rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.io.files import DatasetError, read_json, read_prompt
from worldstereo_ros.io.video import read_video

MAX_CLIP_BYTES = 4 * 2**30


def poses_from_extrinsic(extrinsic: object, what: str) -> np.ndarray:
    """Converts an `extrinsic` entry to poses.

    Args:
        extrinsic: one 4x4 world-to-camera matrix or a list of them, OpenCV axes.
        what: the file, for error messages.

    Returns:
        (N, 4, 4) float64 world_from_camera.

    Raises:
        DatasetError: another shape, a number that is not finite, or not a rigid transform.
    """
    matrices = _numbers(extrinsic, what, "extrinsic")
    try:
        return invert_pose(check_poses(matrices[None] if matrices.ndim == 2 else matrices, f"`extrinsic` of {what}"))
    except ValueError as error:
        raise DatasetError(str(error)) from None


def camera_from_intrinsic(intrinsic: object, matrix_size: tuple[int, int], size: tuple[int, int], what: str) -> Camera:
    """Converts an `intrinsic` entry to a camera.

    Args:
        intrinsic: one 3x3 matrix or a list of equal ones, in pixels that start at the image corner. The camera's pixel
            coordinates start at the centre of the first pixel, half a pixel further.
        matrix_size: (width, height) of the image that the matrix refers to.
        size: (width, height) of the returned camera.
        what: the file, for error messages.

    Raises:
        DatasetError: another shape, matrices that differ, or a principal point outside the image.
    """
    matrices = _numbers(intrinsic, what, "intrinsic")
    matrices = matrices.reshape(-1, *matrices.shape[-2:]) if matrices.ndim >= 2 else matrices
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3) or len(matrices) == 0:
        raise DatasetError(f"`intrinsic` of {what} has shape {matrices.shape}; (3, 3) or (N, 3, 3) was expected.")
    if not np.allclose(matrices, matrices[0], rtol=1e-3, atol=1e-2):
        raise DatasetError(f"`intrinsic` of {what} changes along the path (zoom); one camera for all was expected.")
    K = matrices[0].copy()
    width, height = matrix_size
    if not (0 <= K[0, 2] <= width and 0 <= K[1, 2] <= height):
        raise DatasetError(
            f"`intrinsic` of {what} has its principal point at ({K[0, 2]:g}, {K[1, 2]:g}), outside the image of "
            f"{width}x{height}. If it refers to an image of another size, add `width` and `height` to the file."
        )
    K[:2, 2] -= 0.5
    try:
        return Camera.from_matrix(K, width, height).resized(*size)
    except ValueError as error:
        raise DatasetError(f"{what}: {error}") from None


def _numbers(value: object, what: str, key: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DatasetError(f"`{key}` of {what} is not a matrix of numbers.") from None
    if array.ndim < 2 or array.ndim > 3 or not np.isfinite(array).all():
        raise DatasetError(f"`{key}` of {what} has shape {array.shape} or a number that is not finite.")
    return array


@dataclass(frozen=True)
class Trajectory:
    """A camera path of a WorldStereo example, with its optional renderings.

    Attributes:
        name: name of its folder.
        camera: intrinsics at the size of the start image.
        world_from_camera: (F, 4, 4); in metres only if the dataset is metric.
        prompt: text prompt that describes the place, or empty.
        start_frame: image file of the first pose, if the path has its own.
        render: clip of the point cloud rendered along the path, if it exists.
        mask: clip of the holes of the rendering, if it exists.
    """

    name: str
    camera: Camera
    world_from_camera: np.ndarray
    prompt: str = ""
    start_frame: Path | None = None
    render: Path | None = None
    mask: Path | None = None

    def __len__(self) -> int:
        return len(self.world_from_camera)

    def renders(self) -> np.ndarray:
        """Loads `render` as (F, H, W, 3) uint8 RGB; holes are mid-grey. Raises DatasetError."""
        return self._load_clip(self.render, "render.mp4", cv2.INTER_AREA)

    def holes(self) -> np.ndarray:
        """Loads `mask` as (F, H, W) bool, True = hole (white in the file). Raises DatasetError."""
        return self._load_clip(self.mask, "render_mask.mp4", cv2.INTER_NEAREST_EXACT)[..., 0] > 127

    def _load_clip(self, path: Path | None, name: str, interpolation: int) -> np.ndarray:
        if path is None:
            raise DatasetError(f"The path {self.name} has no {name}.")
        size = (self.camera.width, self.camera.height)
        if len(self) * size[0] * size[1] * 3 > MAX_CLIP_BYTES:
            raise DatasetError(f"{path} would need more than {MAX_CLIP_BYTES} bytes of memory; shorten or shrink it.")
        frames = []
        for frame in read_video(path):
            frames.append(frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=interpolation))
            if len(frames) > len(self):
                break
        if len(frames) != len(self):
            more = "more than " if len(frames) > len(self) else ""
            raise DatasetError(
                f"{path} has {more}{min(len(frames), len(self))} frames; its path has {len(self)} poses."
            )
        return np.stack(frames)


def read_trajectory(folder: Path, size: tuple[int, int], name: str = "", prompt: str = "") -> Trajectory:
    """Reads the path of a folder: camera.json, and the clips if they exist.

    Args:
        folder: folder with camera.json.
        size: (width, height) of the start image.
        name: name of the path; "" = the name of the folder.
        prompt: prompt to use if the folder has none.

    Raises:
        DatasetError: camera.json is missing or invalid.
    """
    path = folder / "camera.json"
    content = read_json(path)
    for key in ("extrinsic", "intrinsic"):
        if key not in content:
            raise DatasetError(f"{path} has the keys {sorted(content)}; `{key}` is missing.")
    poses = poses_from_extrinsic(content["extrinsic"], str(path))
    matrix_size = size
    if isinstance(content.get("width"), int) and isinstance(content.get("height"), int):
        matrix_size = (content["width"], content["height"])
    camera = camera_from_intrinsic(content["intrinsic"], matrix_size, size, str(path))
    clips = {key: folder / f"{key}.mp4" for key in ("render", "render_mask")}
    return Trajectory(
        name=name or folder.name,
        camera=camera,
        world_from_camera=poses,
        prompt=read_prompt(folder / "traj_caption.json") or prompt,
        render=clips["render"] if clips["render"].is_file() else None,
        mask=clips["render_mask"] if clips["render_mask"].is_file() else None,
    )
