"""Files of the published WorldStereo examples: camera paths, prompts, rendered clips.

Their conventions end here: `extrinsic` is world-to-camera (OpenCV axes), pixel coordinates begin at the corner of the
image (so the middle of W pixels is W / 2), `render_mask.mp4` is white where the rendering has a *hole*.
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


def poses_from_published(extrinsic: object, what: str) -> np.ndarray:
    """Published `extrinsic` (one or a list of 4x4 world-to-camera, OpenCV axes) as (N, 4, 4) world_from_camera.

    Raises:
        DatasetError: another shape, a number that is not finite, or no rotation.
    """
    matrices = _numbers(extrinsic, what, "extrinsic")
    try:
        return invert_pose(check_poses(matrices[None] if matrices.ndim == 2 else matrices, f"`extrinsic` of {what}"))
    except ValueError as error:
        raise DatasetError(str(error)) from None


def camera_from_published(
    intrinsic: object, published_size: tuple[int, int], size: tuple[int, int], what: str
) -> Camera:
    """Published `intrinsic` (3x3 in pixels, or a list of equal ones) as our camera.

    Args:
        intrinsic: pixel coordinates begin at the image corner; ours at the centre of the first pixel, half a pixel in.
        published_size: (width, height) of the image the matrix speaks of.
        size: (width, height) wanted.
        what: the file, for the messages.

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
    width, height = published_size
    if not (0 <= K[0, 2] <= width and 0 <= K[1, 2] <= height):
        raise DatasetError(
            f"`intrinsic` of {what} has its principal point at ({K[0, 2]:g}, {K[1, 2]:g}), outside the image of "
            f"{width}x{height}. It belongs to an image of another size: add `width` and `height` to the file."
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
        raise DatasetError(f"`{key}` of {what} is no matrix of numbers.") from None
    if array.ndim < 2 or array.ndim > 3 or not np.isfinite(array).all():
        raise DatasetError(f"`{key}` of {what} has shape {array.shape} or a number that is not finite.")
    return array


@dataclass(frozen=True)
class Trajectory:
    """A path to imagine along, with what the published examples ship for it.

    Attributes:
        name: of its folder.
        camera: for the image the path begins with.
        world_from_camera: (F, 4, 4), metres only where the data set is metric.
        prompt: a sentence about the place, or empty.
        start_frame: picture seen from the first pose, where the path has its own.
        render, mask: clips of the point cloud seen along the path and of its holes, where they exist.
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
        """(F, H, W, 3) uint8 RGB of `render`; holes are mid-grey. Raises DatasetError."""
        return self._clip(self.render, "render.mp4", cv2.INTER_AREA)

    def holes(self) -> np.ndarray:
        """(F, H, W) bool of `mask`, True = nothing was rendered there (the published mask is white there)."""
        return self._clip(self.mask, "render_mask.mp4", cv2.INTER_NEAREST_EXACT)[..., 0] > 127

    def _clip(self, path: Path | None, name: str, interpolation: int) -> np.ndarray:
        if path is None:
            raise DatasetError(f"The path {self.name} has no {name}.")
        size = (self.camera.width, self.camera.height)
        if len(self) * size[0] * size[1] * 3 > MAX_CLIP_BYTES:
            raise DatasetError(f"{path} would take more than {MAX_CLIP_BYTES} bytes; shorten it or make it smaller.")
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
    """The path in `folder` (camera.json, and the clips where they exist) for a picture of `size` (width, height)."""
    path = folder / "camera.json"
    content = read_json(path)
    for key in ("extrinsic", "intrinsic"):
        if key not in content:
            raise DatasetError(f"{path} has the keys {sorted(content)}; `{key}` is missing.")
    poses = poses_from_published(content["extrinsic"], str(path))
    published_size = size
    if isinstance(content.get("width"), int) and isinstance(content.get("height"), int):
        published_size = (content["width"], content["height"])
    camera = camera_from_published(content["intrinsic"], published_size, size, str(path))
    clips = {key: folder / f"{key}.mp4" for key in ("render", "render_mask")}
    return Trajectory(
        name=name or folder.name,
        camera=camera,
        world_from_camera=poses,
        prompt=read_prompt(folder / "traj_caption.json") or prompt,
        render=clips["render"] if clips["render"].is_file() else None,
        mask=clips["render_mask"] if clips["render_mask"].is_file() else None,
    )
