"""Writes COLMAP models: cameras, images and points, as text or binary. `io/colmap_models.py` reads them.

Converted here: COLMAP's pixel centres are at halves (ours at integers), and its poses are camera_from_world. Images are
referenced by name, with the intrinsics of their stored size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.poses import check_poses, invert_pose, quaternion_from_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.colmap_models import CAMERA_MODELS, MAX_NAME_BYTES, ColmapImage
from worldstereo_ros.utils.atomic_files import AtomicFolder
from worldstereo_ros.utils.errors import InputError

FILES = ("cameras", "images", "points3D")
UNKNOWN_ERROR = -1.0  # of a point whose reprojection error was not computed
_NUMBERS = {name: number for number, (name, _) in CAMERA_MODELS.items()}


def colmap_image(view: View, name: str, stored_size: tuple[int, int]) -> ColmapImage:
    """An image of a model for a view that was made by resizing a photograph as a whole.

    Args:
        view: the view, at any size.
        name: path of the photograph relative to the folder of images, with forward slashes.
        stored_size: (width, height) of the photograph.

    Raises:
        InputError: the photograph has another shape than the view, so that it was cropped or turned.
    """
    width, height = stored_size
    camera = view.camera
    if abs(width * camera.height - height * camera.width) > max(width, height):  # more than rounding to whole pixels
        raise InputError(
            f"The view of {name} is {camera.width}x{camera.height}, the photograph {width}x{height}: it was not only "
            "resized. Give the camera of the stored photograph."
        )
    return ColmapImage(name, CameraCalibration(camera.resized(width, height), np.zeros(0), ""), view.world_from_camera)


def write_colmap_model(
    folder: str | Path,
    images: Sequence[ColmapImage],
    points: np.ndarray | None = None,
    colours: np.ndarray | None = None,
    *,
    binary: bool = True,
) -> None:
    """Writes a COLMAP model. Images with the same calibration share a camera; points have no tracks.

    Args:
        folder: folder for the three files, such as sparse/0; files of the other kind there are removed, since readers
            would take them for this model.
        images: at least one, with different names.
        points: (P, 3) in the world; None for none.
        colours: (P, 3) uint8; None for grey.
        binary: .bin files, else .txt.

    Raises:
        InputError: no images, invalid names, poses, points or colours, or a distortion that COLMAP has no model for.
        WriteError: a file cannot be written; the folder is as it was then.
    """
    if not images:
        raise InputError("A COLMAP model has at least one image; none came.")
    _check_names([image.name for image in images], binary)
    points = np.zeros((0, 3)) if points is None else np.asarray(points, np.float64)
    colours = np.full((len(points), 3), 190, np.uint8) if colours is None else np.asarray(colours)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError(f"The points have shape {points.shape}; finite numbers (P, 3) were expected.")
    if colours.shape != points.shape or colours.dtype != np.uint8:
        raise InputError(f"The colours are {colours.dtype} {colours.shape}; uint8 {points.shape} was expected.")
    cameras: list[tuple[str, int, int, tuple[float, ...]]] = []
    rows = []
    poses = check_poses(np.stack([image.world_from_camera for image in images]), "The COLMAP model")
    for image, pose in zip(images, poses, strict=True):
        camera = _colmap_camera(image)
        if camera not in cameras:
            cameras.append(camera)
        translation, (x, y, z, w) = quaternion_from_pose(invert_pose(pose))
        rows.append((image.name, cameras.index(camera) + 1, (w, x, y, z, *translation)))
    contents = _binary_files if binary else _text_files
    suffixes = (".bin", ".txt") if binary else (".txt", ".bin")
    with AtomicFolder(folder) as files:
        for name, content in zip(FILES, contents(cameras, rows, points, colours), strict=True):
            files.write(name + suffixes[0], content)
            files.remove(name + suffixes[1])


def _check_names(names: list[str], binary: bool) -> None:
    for name in names:
        encoded = name.encode("utf-8", errors="surrogateescape")
        if not name.strip() or "\n" in name or "\0" in name or len(encoded) > MAX_NAME_BYTES:
            raise InputError(f"{name[:80]!r} is no name of an image for a COLMAP model.")
        if not binary and len(name.split()) != 1:
            raise InputError(f"COLMAP's text files cannot hold the name '{name}' with its spaces; write binary files.")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"The image '{double}' occurs twice; each image of a COLMAP model has its own name.")


def _colmap_camera(image: ColmapImage) -> tuple[str, int, int, tuple[float, ...]]:
    """(model, width, height, parameters) of an image's camera."""
    calibration = image.calibration
    camera, distortion = calibration.camera, [float(value) for value in calibration.coefficients]
    parameters = [camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5]
    if not any(distortion) and calibration.model != "equidistant":
        model, rest = "PINHOLE", []
    elif calibration.model == "equidistant":
        model, rest = "OPENCV_FISHEYE", distortion[:4]
    elif not any(distortion[4:]):
        model, rest = "OPENCV", distortion[:4]
    elif not any(distortion[8:]):
        model, rest = "FULL_OPENCV", [*distortion, *([0.0] * (8 - len(distortion)))][:8]
    else:
        raise InputError(
            f"The lens of {image.name} has {len(distortion)} coefficients; COLMAP's models have at most 8. Undistort "
            "the image first."
        )
    return model, camera.width, camera.height, tuple(parameters + rest)


def _text_files(cameras, rows, points, colours) -> tuple[bytes, ...]:
    lines = ["# Cameras: CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS; pixel centres at halves"]
    for index, (model, width, height, parameters) in enumerate(cameras, start=1):
        lines.append(f"{index} {model} {width} {height} " + " ".join(map(repr, parameters)))
    texts = [lines]
    lines = [
        "# Images, two lines each: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME (camera_from_world); an empty line,",
        "# since no features are stored.",
    ]
    for index, (name, camera, pose) in enumerate(rows, start=1):
        lines += [f"{index} " + " ".join(repr(float(value)) for value in pose) + f" {camera} {name}", ""]
    texts.append(lines)
    lines = ["# Points: POINT3D_ID X Y Z R G B ERROR TRACK; without tracks, the error is unknown (-1)"]
    for index, (point, colour) in enumerate(zip(points.tolist(), colours.tolist(), strict=True), start=1):
        lines.append(f"{index} " + " ".join(map(repr, point)) + " " + " ".join(map(str, colour)) + f" {UNKNOWN_ERROR}")
    texts.append(lines)
    return tuple(("\n".join(lines) + "\n").encode("utf-8", errors="surrogateescape") for lines in texts)


def _binary_files(cameras, rows, points, colours) -> tuple[bytes, ...]:
    camera_bytes = bytearray(struct.pack("<Q", len(cameras)))
    for index, (model, width, height, parameters) in enumerate(cameras, start=1):
        camera_bytes += struct.pack("<iiQQ", index, _NUMBERS[model], width, height)
        camera_bytes += struct.pack(f"<{len(parameters)}d", *parameters)
    image_bytes = bytearray(struct.pack("<Q", len(rows)))
    for index, (name, camera, pose) in enumerate(rows, start=1):
        image_bytes += struct.pack("<i7di", index, *pose, camera)
        image_bytes += name.encode("utf-8", errors="surrogateescape") + b"\0" + struct.pack("<Q", 0)
    kind = np.dtype([("id", "<u8"), ("point", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
    table = np.zeros(len(points), kind)
    table["id"], table["point"], table["rgb"] = np.arange(1, len(points) + 1), points, colours
    table["error"] = UNKNOWN_ERROR
    return bytes(camera_bytes), bytes(image_bytes), struct.pack("<Q", len(points)) + table.tobytes()
