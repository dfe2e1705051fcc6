"""Sources of `worldstereo pointmaps`: videos, folders, posed sequences and bags, frame by frame."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.io.photos import PhotoHeader
    from worldstereo_ros.io.view_sequence import ViewSequence

# A folder with one of these is more than its images.
OTHER_CONTENT = ("poses.txt", "frames", "pano_bank", "camera.json", "renders", "metadata.yaml")
MIN_FOV_DEG, MAX_FOV_DEG = 1.0, 170.0


@dataclass(frozen=True)
class SourceFrame:
    """One frame as its source gives it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) measured, metres, 0 = unknown; None if there is none.
        pose: (4, 4) world_from_camera; None if it is unknown.
        seconds: time.
        number: of the frame in its source; those of damaged frames are missing.
    """

    image: np.ndarray
    depth: np.ndarray | None
    pose: np.ndarray | None
    seconds: float
    number: int


@dataclass(frozen=True)
class FrameSource:
    """Frames of one camera, in order.

    Attributes:
        camera: intrinsics; None if they are unknown.
        read: yields the frames; damaged ones are left out.
        count: number of frames; None if it is known at the end only.
        posed: their poses are known.
        notes: sentences for the user.
        metric: lengths of poses and depth are metres, where there are some.
        damaged: number of each frame that `read` left out so far -> why.
    """

    camera: Camera | None
    read: Callable[[], Iterator[SourceFrame]]
    count: int | None
    posed: bool
    notes: list[str] = field(default_factory=list)
    metric: bool = True
    damaged: dict[int, str] = field(default_factory=dict)


def open_frames(
    path: Path, fov: float | None, bag_options: dict[str, Any] | None, *, depth_unit: str = "auto"
) -> FrameSource:
    """Opens a source.

    Args:
        path: video, folder of images, posed sequence, or bag.
        fov: horizontal field of view in degrees of a camera without intrinsics; None: unknown.
        bag_options: keyword arguments of `read_images`; None: the source is no bag. With `max_views` as many of its
            images, spread evenly.
        depth_unit: of a sequence, see `geometry.depth_units.parse_depth_unit`.

    Raises:
        DatasetError, BagError: the source is missing or damaged.
        InputError: it has a single frame, or an option does not fit.
    """
    if fov is not None and not MIN_FOV_DEG <= fov <= MAX_FOV_DEG:
        raise InputError(f"The field of view is {fov:g} degrees; {MIN_FOV_DEG:g} to {MAX_FOV_DEG:g} were expected.")
    if bag_options is not None:
        return _open_bag(path, bag_options)
    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.depth_units import parse_depth_unit
    from worldstereo_ros.io.datasets import open_sequence

    metres_per_count = parse_depth_unit(depth_unit)
    if images := _images_alone(path):
        return _open_images(images, fov)
    sequence = open_sequence(path)
    if metres_per_count is not None:
        sequence = replace(sequence, depth_scale=1 / metres_per_count)
    camera: Camera | None = sequence.camera
    if fov is not None:
        if sequence.camera_known:
            raise InputError(f"{path} has intrinsics, which --fov would contradict. Remove the option.")
        camera = Camera.from_fov(sequence.camera.width, sequence.camera.height, math.radians(fov))
    elif not sequence.camera_known and (sequence.photo is None or sequence.photo.focal_35mm is None):
        camera = None
    if _is_clip(sequence):
        return _open_video(sequence.frames[0], camera)
    if len(sequence) < 2:
        what = "is a single image" if sequence.kind == "image" else "has a single frame"
        raise InputError(
            f"{path} {what}; point maps need two frames at least, of a video, a sequence or a bag. "
            "`worldstereo imagine` takes a single one without point maps."
        )
    return _open_sequence(sequence, camera)


def lacks_poses(path: Path) -> bool:
    """Whether a source that is no bag has several frames, and no poses of them.

    Raises:
        DatasetError: the source is missing or damaged.
    """
    from worldstereo_ros.io.datasets import open_sequence

    if _images_alone(path):
        return True
    sequence = open_sequence(path)
    return not sequence.posed and (len(sequence) > 1 or _is_clip(sequence))


def _images_alone(path: Path) -> list[Path]:
    """The images of a folder that holds several and nothing else that could be a source; else none."""
    from worldstereo_ros.io.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_files

    if not path.is_dir() or any((path / name).exists() for name in OTHER_CONTENT):
        return []
    images = list_files(path, IMAGE_SUFFIXES)
    return images if len(images) > 1 and not list_files(path, VIDEO_SUFFIXES) else []


def _is_clip(sequence: ViewSequence) -> bool:
    """Whether a sequence is a video, whose frames are not counted yet."""
    from worldstereo_ros.io.files import VIDEO_SUFFIXES

    return sequence.kind == "video" and sequence.frames[0].suffix.lower() in VIDEO_SUFFIXES


def _open_images(images: list[Path], fov: float | None) -> FrameSource:
    """Images of a folder in the order of the numbers in their names."""
    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.imaging.image_checks import ImageError
    from worldstereo_ros.io.photos import read_photo
    from worldstereo_ros.io.video_timing import SEQUENCE_RATE

    images = sorted(images, key=lambda path: [(len(part), part) for part in re.findall(r"\d+|\D+", path.name)])
    header = _first_header(images)
    width, height = header.size
    focal = header.focal_px(width, height)
    camera = None
    if fov is not None:
        camera = Camera.from_fov(width, height, math.radians(fov))
    elif focal is not None:
        camera = Camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))
    damaged: dict[int, str] = {}

    def read() -> Iterator[SourceFrame]:
        for index, file in enumerate(images):
            try:
                image = read_photo(file)
            except ImageError as error:
                damaged[index] = str(error)
                continue
            yield SourceFrame(image, None, None, index / SEQUENCE_RATE, index)

    notes = [f"The images have no times: {SEQUENCE_RATE:g} frames a second are assumed, in the order of their names."]
    return FrameSource(camera, read, len(images), False, notes, damaged=damaged)


def _first_header(images: list[Path]) -> PhotoHeader:
    """Header of the first image that has one. Raises ImageError if none has."""
    from worldstereo_ros.imaging.image_checks import ImageError
    from worldstereo_ros.io.photos import read_photo_header

    reasons: list[ImageError] = []
    for image in images:
        try:
            return read_photo_header(image)
        except ImageError as error:
            reasons.append(error)
    raise reasons[0]


def _open_video(clip: Path, camera: Camera | None) -> FrameSource:
    from worldstereo_ros.io.video_timing import read_frames, read_timing

    timing = read_timing(clip)

    def read() -> Iterator[SourceFrame]:
        for index, image in enumerate(read_frames(clip, 0)):
            if index >= len(timing):
                return
            yield SourceFrame(image, None, None, float(timing.times_s[index]), index)

    notes = timing.damage_notes(clip.name) + timing.stamp_notes(clip.name)
    if timing.variable:
        notes.append(f"{clip.name} has a variable frame rate; the poses have the times of their frames.")
    return FrameSource(camera, read, len(timing), False, notes)


def _open_sequence(sequence: ViewSequence, camera: Camera | None) -> FrameSource:
    from worldstereo_ros.io.files import DatasetError
    from worldstereo_ros.io.video_timing import plan_sequence

    if any(each != sequence.camera for each in sequence.cameras):
        raise InputError(
            f"The frames of {sequence.path} have different sizes or intrinsics; those of one camera were expected."
        )
    timing, notes = plan_sequence(sequence.stamps_ns, sequence.path.name)
    damaged: dict[int, str] = {}

    def read() -> Iterator[SourceFrame]:
        for index in range(len(sequence)):
            try:
                view = sequence[index].with_finite_depth()
            except DatasetError as error:
                damaged[index] = str(error)
                continue
            if not view.is_observation:
                raise InputError(f"{sequence.path} holds imagined views; frames of a camera were expected.")
            depth = view.depth
            if depth is not None and view.estimated is not None:
                depth = depth * ~view.estimated  # it was not measured
            pose = view.world_from_camera if sequence.posed else None
            yield SourceFrame(view.image, depth, pose, float(timing.times_s[index]), index)

    if not sequence.metric and sequence.has_lengths:
        notes.append(f"The unit of {sequence.path.name} is arbitrary, by its intrinsics.json: lengths are not metres.")
    metric = sequence.metric or not sequence.has_lengths
    return FrameSource(camera, read, len(sequence), sequence.posed, notes, metric, damaged)


def _open_bag(path: Path, options: dict[str, Any]) -> FrameSource:
    from worldstereo_ros.io.bags.files import BagError
    from worldstereo_ros.io.bags.views import read_images

    unposed: list[str] = []
    first = next(read_images(path, **{**options, "max_views": 1}, on_unposed=unposed.append), None)
    if first is None:
        raise BagError(f"{path} has no image that can be used.")

    def read() -> Iterator[SourceFrame]:
        for index, (view, known) in enumerate(read_images(path, **options, on_unposed=unposed.append)):
            view = view.with_finite_depth()
            pose = view.world_from_camera if known else None
            yield SourceFrame(view.image, view.depth, pose, view.stamp_ns / 1e9, index)

    notes = ["The bag has no poses of some images or of all: poses are estimated."] if not first[1] else []
    return FrameSource(first[0].camera, read, None, first[1], notes)
