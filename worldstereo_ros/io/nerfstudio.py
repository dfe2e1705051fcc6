"""Reads transforms.json of nerfstudio and instant-ngp: photographs with poses, intrinsics, and perhaps depth.

Their conventions are converted here: camera axes of OpenGL (x right, y up, z backward) and pixel centres at halves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.io.files import IMAGE_SUFFIXES, DatasetError, read_json
from worldstereo_ros.utils.errors import InputError

TRANSFORMS_FILE = "transforms.json"
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_MODELS = {
    "": "plumb_bob", "OPENCV": "plumb_bob", "PINHOLE": "plumb_bob", "SIMPLE_PINHOLE": "plumb_bob",
    "SIMPLE_RADIAL": "plumb_bob", "RADIAL": "plumb_bob", "OPENCV_FISHEYE": "equidistant",
}  # fmt: skip


@dataclass(frozen=True)
class TransformsFrame:
    """One photograph of a transforms.json.

    Attributes:
        file: the image, which exists.
        world_from_camera: (4, 4) float64.
        depth: depth image, or None.
    """

    file: Path
    world_from_camera: np.ndarray
    depth: Path | None
    entry: dict[str, Any]


@dataclass(frozen=True)
class Transforms:
    """The content of a transforms.json.

    Attributes:
        frames: photographs whose image exists.
        missing: names of images that do not.
        metric: the file says that its unit is the metre (`"metric": true`); no program writes it but this one, and
            otherwise the unit is unknown.
        depth_scale: stored depth values per unit of length.
    """

    frames: list[TransformsFrame]
    missing: list[str]
    metric: bool
    depth_scale: float
    content: dict[str, Any]

    def calibration(self, frame: TransformsFrame, width: int, height: int) -> CameraCalibration | None:
        """Calibration of a frame whose image is `width` x `height` pixels; None if the file has no focal length.

        Raises:
            DatasetError: a number is invalid, or the camera model is not supported.
        """
        both = {**self.content, **frame.entry}
        try:
            return _calibration(both, width, height)
        except (InputError, TypeError, ValueError) as error:
            raise DatasetError(f"The camera of {frame.file.name} in transforms.json is invalid: {error}") from None


def read_transforms(path: Path) -> Transforms:
    """Reads a transforms.json, or that of a folder.

    Raises:
        DatasetError: the file is missing or invalid, or none of its images exists.
    """
    file = path / TRANSFORMS_FILE if path.is_dir() else path
    content = read_json(file)
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{file} has no list `frames`; a transforms.json of nerfstudio was expected.")
    frames, missing = [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise DatasetError(f"Frame {number} of {file} has no `file_path`.")
        try:
            pose = np.array(entry.get("transform_matrix"), dtype=np.float64)
            pose = np.vstack([pose, [0, 0, 0, 1]]) if pose.shape == (3, 4) else pose
            pose = check_poses(pose[None], f"Frame {number} of {file}")[0] @ OPENGL_FROM_OPENCV
        except (InputError, TypeError, ValueError) as error:
            raise DatasetError(f"Frame {number} of {file} has no valid `transform_matrix`: {error}") from None
        image = _existing(file.parent, entry["file_path"], IMAGE_SUFFIXES)
        if image is None:
            missing.append(entry["file_path"])
            continue
        depth = entry.get("depth_file_path")
        depth = _existing(file.parent, depth, (".png",)) if isinstance(depth, str) else None
        frames.append(TransformsFrame(image, pose, depth, entry))
    if not frames:
        raise DatasetError(f"None of the {len(missing)} images of {file} exists; the first is {missing[0]}.")
    unit = content.get("depth_unit_scale_factor", 0.001)
    if not isinstance(unit, int | float) or not unit > 0:
        raise DatasetError(f"{file} has depth_unit_scale_factor {unit!r}; a positive number was expected.")
    return Transforms(frames, missing, content.get("metric") is True, 1 / float(unit), content)


def _existing(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file of a name relative to the folder, also without its suffix; None if there is none."""
    for candidate in (name, *(name + suffix for suffix in suffixes)):
        path = folder / candidate
        if path.is_file() and path.suffix.lower() in suffixes:
            return path
    return None


def _calibration(values: dict[str, Any], width: int, height: int) -> CameraCalibration | None:
    declared = int(values.get("w", width)), int(values.get("h", height))
    focal_x, focal_y = values.get("fl_x"), values.get("fl_y")
    if focal_x is None and values.get("camera_angle_x"):
        focal_x = 0.5 * declared[0] / math.tan(0.5 * float(values["camera_angle_x"]))
    if focal_x is None:
        return None
    centre = float(values.get("cx", declared[0] / 2)), float(values.get("cy", declared[1] / 2))
    if declared[0] * height != declared[1] * width and abs(declared[0] / declared[1] - width / height) > 0.01:
        raise ValueError(f"it is {declared[0]}x{declared[1]}, and the image is {width}x{height}.")
    fx, fy = float(focal_x), float(focal_x if focal_y is None else focal_y)
    camera = Camera(*declared, fx, fy, centre[0] - 0.5, centre[1] - 0.5).resized(width, height)
    model = str(values.get("camera_model", ""))
    if model not in _MODELS:
        raise ValueError(f"its model is {model}; one of {', '.join(name for name in _MODELS if name)} was expected.")
    names = ("k1", "k2", "k3", "k4") if _MODELS[model] == "equidistant" else ("k1", "k2", "p1", "p2", "k3")
    coefficients = np.array([float(values.get(name, 0)) for name in names])
    if not np.isfinite(coefficients).all():
        raise ValueError("a coefficient of the distortion is not finite.")
    if not coefficients.any() and _MODELS[model] != "equidistant":
        return CameraCalibration(camera, np.zeros(0), "")
    return CameraCalibration(camera, coefficients, _MODELS[model])
