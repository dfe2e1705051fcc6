"""Photographs of a procedural world, to try a reconstruction without photographs of one's own."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.utils.atomic_files import check_folder_writable, write_bytes
from worldstereo_ros.utils.errors import InputError

FIELD_OF_VIEW_DEG = 65.0  # of a phone, along the longer side
FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
_EXIF, _FOCAL_35MM = 0x8769, 0xA405  # tags, EXIF 2.32


def write_sample_photographs(
    folder: str | Path,
    *,
    kind: str = "room",
    seed: int = 0,
    count: int = 16,
    size: tuple[int, int] = (640, 480),
    on_photograph: Callable[[int], None] | None = None,
) -> list[Path]:
    """Photographs a procedural world, the demo's by default, from an arc around a place in it.

    The photographs are as a phone takes them: JPEG with the focal length in EXIF (rounded to a millimetre), without
    poses and without depth.

    Args:
        folder: folder that is empty, or does not exist.
        kind: kind of world, one of `scenes.KINDS`.
        seed: of the world and of the arc.
        count: number of photographs.
        size: (width, height) in pixels.
        on_photograph: called with the number of photographs that are written.

    Returns:
        The files, in the order they were taken.

    Raises:
        InputError: the kind does not exist, or the folder is not empty.
        WriteError: a file cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; photographs of a world are not mixed with others.")
    check_folder_writable(folder)
    scene = make_scene(kind, seed_of("demo", seed))
    camera = Camera.from_fov(*size, math.radians(FIELD_OF_VIEW_DEG))
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_FOCAL_35MM] = round(camera.fx * FULL_FRAME_DIAGONAL_MM / float(np.hypot(*size)))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, pose in enumerate(make_path(scene, "orbit", count, seed_of("demo", seed)), start=1):
        content = io.BytesIO()
        Image.fromarray(render_view(scene, camera, pose).image).save(content, "JPEG", quality=95, exif=exif)
        files.append(folder / f"IMG_{number:04d}.jpg")
        write_bytes(files[-1], content.getvalue())
        if on_photograph is not None:
            on_photograph(number)
    return files
