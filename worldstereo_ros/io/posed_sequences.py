"""Posed RGB-D sequences: a folder of frames, depth, poses and intrinsics, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.image_checks import ImageError, ImageSizeError, depth_to_counts
from worldstereo_ros.io.files import IMAGE_SUFFIXES, DatasetError, list_files, read_json, read_prompt, read_rows
from worldstereo_ros.io.images import encode_png, image_size
from worldstereo_ros.io.view_labels import LABELS, encode_labels
from worldstereo_ros.io.view_sequence import ViewSequence
from worldstereo_ros.utils.atomic_files import AtomicFolder
from worldstereo_ros.utils.errors import InputError

# Of an intrinsics.json, by the names that other tools give them.
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "D", "distortion", "distortion_coefficients")

_POSES_HEADER = "# index tx ty tz qx qy qz qw   (camera-to-world, OpenCV axes: x right, y down, z forward)"
_IMAGE_FOLDERS = ("frames", "depth", "conditioning", *LABELS)  # that `write_sequence` writes


def open_posed(path: str | Path) -> ViewSequence:
    """Opens a folder with `frames/`, `poses.txt`, `intrinsics.json`, and optionally `depth/` and `timestamps.txt`.

    Views keep the provenance and confidences that `write_sequence` wrote beside them (`io/view_labels.py`).

    Raises:
        DatasetError: a file is missing or invalid (the message names the line), or files contradict each other.
    """
    path = Path(path)
    camera, content = read_intrinsics(path / "intrinsics.json")
    indices, poses = read_poses(path / "poses.txt")
    images, depths = _numbered(path / "frames", IMAGE_SUFFIXES), _numbered(path / "depth", (".png",))
    missing = [int(i) for i in indices if int(i) not in images]
    if missing:
        raise DatasetError(
            f"{path / 'poses.txt'} has {len(indices)} poses, but {len(missing)} of them have no image in "
            f"{path / 'frames'}; the first is {missing[0]:06d}. Images are named by their number, such as 000000.jpg."
        )
    frames = tuple(images[int(i)] for i in indices)
    first, size = _first_size(frames)
    if size != (camera.width, camera.height):
        raise DatasetError(f"{first} is {size[0]}x{size[1]}; intrinsics.json has {camera.width}x{camera.height}.")
    if not any(int(i) in depths for i in indices):
        _check_no_depth(path / "depth", content)
    return ViewSequence(
        path=path,
        kind="posed",
        cameras=(camera,) * len(indices),
        poses=poses,
        frames=frames,
        depths=tuple(depths.get(int(i)) for i in indices),
        indices=indices,
        stamps_ns=_read_stamps(path / "timestamps.txt", indices),
        depth_scale=float(content.get("depth_scale", 1000.0)),
        metric=content.get("metric", True),
        prompt=read_prompt(path / "prompt.json"),
        labels=path,
    )


def _first_size(frames: Sequence[Path]) -> tuple[Path, tuple[int, int]]:
    """The first image that is one, and its size. Raises ImageError if none is."""
    reasons: list[ImageError] = []
    for frame in frames:
        try:
            return frame, image_size(frame)
        except ImageSizeError:  # it is not damaged
            raise
        except ImageError as error:
            reasons.append(error)
    raise reasons[0]


def _check_no_depth(folder: Path, intrinsics: dict) -> None:
    """Checks that a sequence was meant to have no depth: what is there and passed over would be estimated."""
    expected = "16-bit PNG images that are named by the number of their frame, such as 000000.png, were expected."
    none = f"{folder} has no depth image of these poses"
    unused = next((file for file in sorted(folder.glob("*")) if not file.name.startswith(".")), None)
    if unused is not None:
        raise DatasetError(f"{none}, but {unused.name}; {expected}")
    if intrinsics.get("has_depth") is True:
        raise DatasetError(f"intrinsics.json has has_depth = true, but {none}; {expected}")


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Maps the frame number to the file for files named by a number."""
    return {int(p.stem): p for p in list_files(folder, suffixes) if p.stem.isdecimal()}


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def read_intrinsics(path: Path) -> tuple[Camera, dict]:
    """Reads an intrinsics.json; returns (camera, JSON object). Raises DatasetError."""
    content = read_json(path)
    keys = ("width", "height", "fx", "fy", "cx", "cy")
    wrong = [k for k in keys if not isinstance(content.get(k), int | float) or isinstance(content.get(k), bool)]
    if wrong:
        raise DatasetError(f"{path} has no numbers for {', '.join(wrong)}; {', '.join(keys)} were expected.")
    scale = content.get("depth_scale", 1000.0)
    if not isinstance(scale, int | float) or not scale > 0:
        raise DatasetError(f"{path} has depth_scale {scale!r}; a positive number was expected (1000 for millimetres).")
    if not isinstance(content.get("metric", True), bool):
        raise DatasetError(f"{path} has metric {content['metric']!r}; true or false was expected.")
    # 0, null, an empty list and a list of zeros all say that there is none.
    distorted = [key for key in DISTORTION_KEYS if any(_as_list(content.get(key)))]
    if distorted:
        values = ", ".join(f"{key} = {content[key]}" for key in distorted)
        raise DatasetError(
            f"{path} has lens distortion ({values}); a pinhole camera was expected. Rectify the images (cv2.undistort) "
            "and write the intrinsics of the result, without these keys."
        )
    try:
        return Camera(int(content["width"]), int(content["height"]), *(float(content[k]) for k in keys[2:])), content
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{path}: {error}") from None


def read_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a poses.txt: lines `index tx ty tz qx qy qz qw`, metres, camera to world, OpenCV axes.

    Returns:
        ((N,) int64 indices, (N, 4, 4) float64 world_from_camera), in the order of the lines.

    Raises:
        DatasetError: the file is missing, empty, or a line is invalid (the message names it).
    """
    indices: list[int] = []
    poses: list[np.ndarray] = []
    seen: set[int] = set()
    for where, values in read_rows(path, "index tx ty tz qx qy qz qw"):
        index = int(values[0])
        if index in seen:
            raise DatasetError(f"{where} repeats the index {index}.")
        seen.add(index)
        try:
            poses.append(pose_from_quaternion(values[1:4].tolist(), values[4:8].tolist()))
        except ValueError as error:
            raise DatasetError(f"{where}: {error}") from None
        indices.append(index)
    if not poses:
        raise DatasetError(f"{path} has no poses.")
    return np.array(indices, dtype=np.int64), np.stack(poses)


def _read_stamps(path: Path, indices: np.ndarray) -> np.ndarray:
    """Reads lines `index seconds`; returns (N,) int64 nanoseconds, 0 where the file or the line is missing."""
    if not path.is_file():
        return np.zeros(len(indices), dtype=np.int64)
    stamps = {int(values[0]): round(values[1] * 1e9) for _, values in read_rows(path, "index seconds")}
    return np.array([stamps.get(int(i), 0) for i in indices], dtype=np.int64)


def write_sequence(folder: Path, views: Sequence[View]) -> None:
    """Writes views as a posed sequence, which `open_posed` reads.

    Writes frames/*.png, depth/*.png (uint16 millimetres, 0 = unknown), poses.txt (index, translation, quaternion
    x y z w; world_from_camera) and intrinsics.json. For imagined views also observed/*.png (255 = observed),
    provenance/*.png (`view_labels.write_provenance`) and conditioning/*.png; for observations provenance/*.png if some
    of their depth is estimated. If available, confidence/*.png and depth_confidence/*.png (255 = 1).

    Args:
        folder: folder to write into; created if it does not exist. All files appear at the end; the frames of a longer
            sequence that was written there before are removed.
        views: at least one view, all with the same camera.

    Raises:
        InputError: the views have different cameras, or some are in metres and others are not.
        WriteError: a file cannot be written; an earlier sequence is unchanged then.
    """
    camera = views[0].camera
    if any(view.camera != camera for view in views):
        raise InputError("The views have different cameras; a posed sequence has one camera. Resize the views first.")
    _write_files(folder, camera, views)


def _write_files(folder: Path, camera: Camera, views: Iterable[View]) -> None:
    lines, has_depth, metric = [_POSES_HEADER], False, True
    with AtomicFolder(folder) as files:
        for index, view in enumerate(views):
            name = f"{index:06d}.png"
            if index and view.metric != metric:
                raise InputError("Some views are in metres and others in an arbitrary unit; a sequence has one unit.")
            metric = view.metric
            images = {"frames": encode_png(view.image), **encode_labels(view)}
            if view.depth is not None:
                has_depth = True
                images["depth"] = encode_png(depth_to_counts(view.depth))
            if isinstance(view, ImaginedView) and view.conditioning is not None:
                images["conditioning"] = encode_png(view.conditioning)
            for kind, image in images.items():
                files.write(f"{kind}/{name}", image)
            translation, quaternion = quaternion_from_pose(view.world_from_camera)
            lines.append(f"{index} " + " ".join(f"{number:.9f}" for number in (*translation, *quaternion)))
        for index in _earlier_indices(folder / "poses.txt") | set(range(len(lines) - 1)):
            for kind in _IMAGE_FOLDERS:  # what was not written above
                files.remove(f"{kind}/{index:06d}.png")
        files.write("poses.txt", ("\n".join(lines) + "\n").encode())
        intrinsics = {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
        intrinsics |= {"depth_scale": 1000.0, "has_depth": has_depth, "metric": metric}
        files.write("intrinsics.json", json.dumps(intrinsics, indent=1).encode())


def _earlier_indices(path: Path) -> set[int]:
    """Numbers of the frames of a sequence that `write_sequence` wrote to the folder before."""
    try:
        if not path.read_text(encoding="utf-8").startswith(_POSES_HEADER):
            return set()  # the frames are someone else's
        return set(read_poses(path)[0].tolist())
    except (OSError, ValueError):
        return set()
