"""Files of camera paths that say their convention in their header.

A text file has lines `index tx ty tz qx qy qz qw`, as `poses.txt` of a sequence, and may say in its comments how they
are meant:

    # poses: world_from_camera      or camera_from_world
    # axes: opencv                  or opengl (y up, z backward), ros (x forward, y left, z up)
    # unit: metres                  or arbitrary

What is not said is world_from_camera, opencv, metres. A camera_path.json of nerfstudio says by its format that it is
camera-to-world with OpenGL axes, in an arbitrary unit. Arrays (.npy, .npz) cannot say what they are, and are refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import check_poses, invert_pose, pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.io.files import DatasetError, read_json, read_rows, read_text
from worldstereo_ros.utils.atomic_files import write_text
from worldstereo_ros.utils.errors import InputError

# Rotation from OpenCV camera axes (x right, y down, z forward) to those of a convention.
AXES = {
    "opencv": np.eye(3),
    "opengl": np.diag([1.0, -1.0, -1.0]),
    "ros": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
}
DIRECTIONS = ("world_from_camera", "camera_from_world")
UNITS = ("metres", "arbitrary")
POSES_FILE = "poses.txt"  # of a posed sequence
COLUMNS = "index tx ty tz qx qy qz qw"
_CHOICES: dict[str, tuple[str, ...]] = {"poses": DIRECTIONS, "axes": tuple(AXES), "unit": UNITS}


@dataclass(frozen=True)
class PathFile:
    """A camera path.

    Attributes:
        poses: (N, 4, 4) float64 world_from_camera, OpenCV axes, whatever the file had.
        metric: lengths are in metres; None if neither the file nor intrinsics.json beside it says so.
        convention: how the file has them, for the user.
        metric_from: what says `metric`, for the user; empty if nothing does.
    """

    poses: np.ndarray
    metric: bool | None
    convention: str
    metric_from: str = ""


def read_path_file(path: str | Path) -> PathFile:
    """Reads a camera path.

    Args:
        path: text file with one pose a line, or a camera_path.json of nerfstudio.

    Raises:
        DatasetError: the file is missing, empty, damaged, an array without a convention, or says one that is unknown.
    """
    path = Path(path)
    if path.suffix.lower() in (".npy", ".npz"):
        raise DatasetError(
            f"{path} is an array: it does not say whether its poses are camera-to-world or the other way round, nor of "
            f"which axes. Write a text file with lines '{COLUMNS}' and '# poses: ...', '# axes: ...' above them."
        )
    if path.suffix.lower() == ".json":
        return _read_nerfstudio(path)
    said = _header(path)
    poses = []
    for where, values in read_rows(path, COLUMNS):
        try:
            poses.append(pose_from_quaternion(values[1:4].tolist(), values[4:8].tolist()))
        except InputError as error:
            raise DatasetError(f"{where}: {error}") from None
    if not poses:
        raise DatasetError(f"{path} has no poses.")
    direction, axes = said.get("poses", DIRECTIONS[0]), said.get("axes", "opencv")
    stacked = np.stack(poses)
    if direction == "camera_from_world":
        stacked = invert_pose(stacked)
    metric, metric_from = _unit(path, said.get("unit"))
    return PathFile(_to_opencv(path, stacked, axes), metric, f"{direction}, {axes}", metric_from)


def read_path_files(path: str | Path) -> dict[str, PathFile]:
    """Reads several camera paths by name: those of all files of a folder, or the one of a file or a posed sequence.

    Args:
        path: a file of `read_path_file`, a folder of such files (.txt and .json), or a folder with a poses.txt.

    Returns:
        The paths by the names of their files without suffix, in alphabetical order; that of a posed sequence by the
        name of its folder.

    Raises:
        DatasetError: the folder has no such file, two have the same name, or a file is invalid.
    """
    path = Path(path)
    if not path.is_dir():
        return {path.stem: read_path_file(path)}
    if (path / POSES_FILE).is_file():
        return {path.resolve().name: read_path_file(path / POSES_FILE)}
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".txt", ".json") and file.is_file())
    if not files:
        raise DatasetError(f"The folder {path} has no path files (.txt or .json).")
    for one, other in itertools.pairwise(files):
        if one.stem == other.stem:
            raise DatasetError(f"The folder {path} has two files of the path '{one.stem}'; remove one of them.")
    return {file.stem: read_path_file(file) for file in files}


def write_path_file(path: str | Path, world_from_camera: np.ndarray, *, metric: bool = True) -> None:
    """Writes a camera path as text, with its convention in the header.

    Args:
        path: the file.
        world_from_camera: (N, 4, 4), OpenCV axes.
        metric: lengths are in metres.

    Raises:
        InputError: see `check_poses`.
        WriteError: the file cannot be written.
    """
    poses = check_poses(world_from_camera)
    lines = [
        f"# poses: {DIRECTIONS[0]}",
        "# axes: opencv (x right, y down, z forward)",
        f"# unit: {UNITS[0] if metric else UNITS[1]}",
        f"# {COLUMNS}",
    ]
    for index, pose in enumerate(poses):
        translation, quaternion = quaternion_from_pose(pose)
        lines.append(f"{index} " + " ".join(f"{value:.12g}" for value in (*translation, *quaternion)))
    write_text(path, "\n".join(lines) + "\n")


def _unit(path: Path, said: str | None) -> tuple[bool | None, str]:
    """Whether lengths are in metres, and what says so: the header, else intrinsics.json beside poses of a sequence."""
    from worldstereo_ros.io.posed_sequences import read_intrinsics

    if said is not None:
        return said == UNITS[0], "its header"
    intrinsics = path.with_name("intrinsics.json")
    if intrinsics.is_file():
        return bool(read_intrinsics(intrinsics)[1].get("metric", True)), f"{intrinsics.name} beside it"
    return None, ""


def _header(path: Path) -> dict[str, str]:
    """What the comments of a file say of `_CHOICES`."""
    said: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.lstrip().startswith("#") or ":" not in line:
            continue
        key, value = line.lstrip("# \t").split(":", 1)
        key, words = key.strip().lower(), value.replace(",", " ").split()
        if key not in _CHOICES or not words:
            continue
        word = words[0].lower()
        if word not in _CHOICES[key]:
            choices = ", ".join(_CHOICES[key])
            raise DatasetError(f"{path}, line {number}: '{key}: {words[0]}' is unknown; one of {choices} was expected.")
        if said.setdefault(key, word) != word:
            raise DatasetError(f"{path}, line {number}: '{key}: {word}' contradicts '{said[key]}' above.")
    return said


def _read_nerfstudio(path: Path) -> PathFile:
    frames = read_json(path).get("camera_path")
    if not isinstance(frames, list) or not frames:
        raise DatasetError(f"{path} has no list 'camera_path' of poses, as a camera path of nerfstudio has.")
    poses = []
    for index, frame in enumerate(frames):
        values = frame.get("camera_to_world") if isinstance(frame, dict) else None
        try:
            poses.append(np.asarray(values, np.float64).reshape(4, 4))
        except (TypeError, ValueError):
            raise DatasetError(f"{path}: pose {index} of 'camera_path' has no 16 numbers 'camera_to_world'.") from None
    return PathFile(_to_opencv(path, np.stack(poses), "opengl"), None, "nerfstudio: world_from_camera, opengl")


def _to_opencv(path: Path, poses: np.ndarray, axes: str) -> np.ndarray:
    try:
        poses = check_poses(poses, str(path))
    except InputError as error:
        raise DatasetError(str(error)) from None
    out = poses.copy()
    out[:, :3, :3] = poses[:, :3, :3] @ AXES[axes]
    return out
