"""Photographs of a recording: frames of a video, and images of a bag with what the bag knows of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.reconstruction.raw_photographs import PhotographSource, RawPhotograph, constant

DEFAULT_FRAMES = 100  # images of a recording are close together


def open_video(path: Path, limit: int | None) -> PhotographSource:
    """Opens a video; at most `limit` of its frames are used, None = `DEFAULT_FRAMES`. Raises DatasetError."""
    from worldstereo_ros.io.video import video_size

    width, height, _, rate = video_size(path)
    source = PhotographSource("video", [path], ordered=True)
    source.photographs = _read_video(path, limit or DEFAULT_FRAMES, (width, height), rate, source)
    return source


def _read_video(
    path: Path, limit: int, size: tuple[int, int], rate: float, source: PhotographSource
) -> Iterator[RawPhotograph]:
    from worldstereo_ros.reconstruction.video_frames import choose_video_frames

    choice = choose_video_frames(path, limit)
    source.notes.append(
        f"{len(choice.indices)} of the {choice.count} frames of {path.name} are used: the sharpest of each stretch in "
        "which the camera moved about as far."
    )
    if choice.lost:
        source.notes.append(f"{path.name} is truncated or damaged: {choice.lost} frames cannot be decoded.")
    for index, image in choice.read():
        name, stamp = f"{path.stem}_{index:06d}", round(index * 1e9 / rate)
        yield RawPhotograph(name, constant(image), size, stamp_ns=stamp, camera_key="video")


def open_bag(path: Path, limit: int | None, options: dict[str, Any]) -> PhotographSource:
    """Opens a bag; at most `limit` of its images are used, None = `DEFAULT_FRAMES`.

    Args:
        path: of the bag.
        limit: largest number of images.
        options: keyword arguments of `io.bags.views.read_images`.
    """
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    source = PhotographSource("bag", files, metric=True, ordered=True)
    source.photographs = _read_bag(path, limit or DEFAULT_FRAMES, options, source)
    return source


def _read_bag(path: Path, limit: int, options: dict[str, Any], source: PhotographSource) -> Iterator[RawPhotograph]:
    from worldstereo_ros.io.bags.views import read_images

    reasons: list[str] = []
    source.notes.append(f"At most {limit} images of the bag are used, spread evenly; --photographs N changes it.")
    without, count = 0, 0
    for number, (view, posed) in enumerate(read_images(path, **options, on_unposed=reasons.append, max_views=limit)):
        view = view.with_finite_depth()
        without, count = without + (not posed), count + 1
        yield RawPhotograph(
            f"{path.stem}_{number:06d}",
            constant(view.image),
            (view.camera.width, view.camera.height),
            CameraCalibration(view.camera, np.zeros(0), ""),
            world_from_camera=view.world_from_camera if posed else None,
            load_depth=None if view.depth is None else constant(view.depth),
            stamp_ns=view.stamp_ns,
            camera_key=repr(view.camera),
        )
    if without:
        source.notes.append(
            f"{without} of the {count} images of {path.name} have no pose; they are registered. {' '.join(reasons)}"
        )
