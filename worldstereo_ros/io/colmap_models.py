"""Reads COLMAP models: cameras and images, as text or binary, with their points if asked for.

COLMAP's conventions are converted here: its pixel centres are at halves (ours at integers), and its poses are
camera_from_world.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose, pose_from_quaternion
from worldstereo_ros.io.files import DatasetError, read_text
from worldstereo_ros.utils.errors import InputError

# COLMAP's number of a camera model -> its name and number of parameters.
CAMERA_MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8), 6: ("FULL_OPENCV", 12), 7: ("FOV", 5), 8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
}  # fmt: skip
MAX_MODEL_BYTES = 4 * 2**30
MAX_NAME_BYTES = 4096
MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap", "dense/sparse")


@dataclass(frozen=True)
class ColmapImage:
    """One image of a model.

    Attributes:
        name: path of the image relative to the folder of images.
        calibration: of its camera, at the image's stored size.
        world_from_camera: (4, 4) float64.
    """

    name: str
    calibration: CameraCalibration
    world_from_camera: np.ndarray


def find_colmap_model(path: Path) -> Path | None:
    """The folder of a COLMAP model at `path` or where projects keep it (sparse/0 and so on); None if there is none."""
    for name in MODEL_FOLDERS:
        folder = path / name
        for suffix in (".bin", ".txt"):
            if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
                return folder
    return None


def read_colmap_model(folder: Path) -> list[ColmapImage]:
    """Reads the images of a COLMAP model, sorted by name; of a folder with both, binary files are read.

    Raises:
        DatasetError: a file is missing, damaged or contradicts another, or a camera model is not supported.
    """
    binary = (folder / "cameras.bin").is_file()
    cameras = dict(_binary_cameras(folder / "cameras.bin") if binary else _text_cameras(folder / "cameras.txt"))
    rows = _binary_images(folder / "images.bin") if binary else _text_images(folder / "images.txt")
    images = []
    for name, camera_id, quaternion, translation in rows:
        if camera_id not in cameras:
            raise DatasetError(f"{folder} has an image '{name}' of camera {camera_id}, which the model does not have.")
        try:
            w, x, y, z = quaternion
            pose = invert_pose(pose_from_quaternion(translation, (x, y, z, w)))
        except ValueError as error:
            raise DatasetError(f"The image '{name}' of {folder}: {error}") from None
        images.append(ColmapImage(name, cameras[camera_id], pose))
    if not images:
        raise DatasetError(f"The COLMAP model {folder} has no images.")
    return sorted(images, key=lambda image: image.name)


def calibration_from_colmap(model: str, width: int, height: int, parameters: list[float]) -> CameraCalibration:
    """Converts a COLMAP camera.

    Args:
        model: name, such as SIMPLE_RADIAL.
        width, height: size in pixels.
        parameters: in COLMAP's order.

    Raises:
        InputError: the model is not supported, or a number is invalid.
    """
    counts = dict(CAMERA_MODELS.values())
    if model not in counts or model in ("FOV", "THIN_PRISM_FISHEYE"):
        raise InputError(
            f"The COLMAP camera model {model} is not supported. Undistort the images with COLMAP (image_undistorter)."
        )
    if len(parameters) != counts[model] or not np.isfinite(parameters).all():
        raise InputError(f"A {model} camera has {counts[model]} finite parameters; {parameters} came.")
    if model.startswith("SIMPLE_") or model in ("RADIAL", "RADIAL_FISHEYE"):
        (f, cx, cy), rest = parameters[:3], parameters[3:]
        fx = fy = f
    else:
        (fx, fy, cx, cy), rest = parameters[:4], parameters[4:]
    camera = Camera(width, height, fx, fy, cx - 0.5, cy - 0.5)
    kind = "equidistant" if "FISHEYE" in model else "rational_polynomial" if model == "FULL_OPENCV" else "plumb_bob"
    if not any(rest) and kind != "equidistant":
        return CameraCalibration(camera, np.zeros(0), "")
    coefficients = np.array([*rest, *([0.0] * max(0, 4 - len(rest)))], np.float64)
    return CameraCalibration(camera, coefficients, kind)


# --- text ------------------------------------------------------------------------------------------------------------


def _text_cameras(path: Path) -> Iterator[tuple[int, CameraCalibration]]:
    for number, line in _lines(path):
        words = line.split()
        try:
            key, width, height = int(words[0]), int(words[2]), int(words[3])
            yield key, calibration_from_colmap(words[1], width, height, [float(word) for word in words[4:]])
        except (ValueError, IndexError) as error:
            raise DatasetError(f"{path}, line {number}, is no camera: {error}") from None


def _text_images(path: Path) -> Iterator[tuple[str, int, list[float], list[float]]]:
    # Every second line lists the image's features, and is empty where there are none.
    lines = [(n, line) for n, line in enumerate(read_text(path).splitlines(), 1) if not line.startswith("#")]
    for number, line in lines[::2]:
        words = line.split(maxsplit=9)
        if not words:
            continue
        try:
            if len(words) != 10:
                raise ValueError(f"{len(words)} values; ten were expected")
            values = [float(word) for word in words[1:8]]
            yield words[9].strip(), int(words[8]), values[:4], values[4:]
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}, is no image: {error}.") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line


# --- binary ----------------------------------------------------------------------------------------------------------


class _Bytes:
    """Little-endian values of a file, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            if path.stat().st_size > MAX_MODEL_BYTES:
                raise DatasetError(f"{path} has {path.stat().st_size} bytes; at most {MAX_MODEL_BYTES} were expected.")
            self.content = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error

    def read(self, code: str) -> tuple:
        size = struct.calcsize("<" + code)
        self.skip(size)
        return struct.unpack_from("<" + code, self.content, self.at - size)

    def skip(self, size: int) -> None:
        if size < 0 or self.at + size > len(self.content):
            raise DatasetError(f"{self.path} is damaged or cut off: it ends at byte {len(self.content)}.")
        self.at += size

    def name(self) -> str:
        end = self.content.find(b"\0", self.at, self.at + MAX_NAME_BYTES)
        if end < 0:
            raise DatasetError(f"{self.path} is damaged: the name of an image does not end.")
        text = self.content[self.at : end]
        self.at = end + 1
        return text.decode("utf-8", "surrogateescape")


def _binary_cameras(path: Path) -> Iterator[tuple[int, CameraCalibration]]:
    file = _Bytes(path)
    for _ in range(file.read("Q")[0]):
        key, model, width, height = file.read("IiQQ")
        if model not in CAMERA_MODELS:
            raise DatasetError(f"{path} has a camera of the unknown model {model}.")
        name, count = CAMERA_MODELS[model]
        try:
            yield key, calibration_from_colmap(name, width, height, list(file.read(f"{count}d")))
        except InputError as error:
            raise DatasetError(f"{path}, camera {key}: {error}") from None


def _binary_images(path: Path) -> Iterator[tuple[str, int, list[float], list[float]]]:
    file = _Bytes(path)
    for _ in range(file.read("Q")[0]):
        _, *values, camera = file.read("I7dI")
        name = file.name()
        file.skip(24 * file.read("Q")[0])
        yield name, camera, values[:4], values[4:]
