"""Sources of frames for stereo: images, videos, posed sequences and bags, with what they know of depth and poses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.depth_units import AUTO_UNIT, parse_depth_unit
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.bags.files import BagError
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.files import VIDEO_SUFFIXES, DatasetError
from worldstereo_ros.io.video_timing import MAX_RATE, VideoTiming, plan_sequence, read_frames, read_timing
from worldstereo_ros.io.view_sequence import ViewSequence
from worldstereo_ros.utils.errors import InputError

BAG_RATE = 30.0  # of bags: their stamps are known only when all is read, so that frames are placed by them
MIN_SIDE_PX = 16
MIN_ASPECT = 0.2  # of a pixel's sides; a header that says less is damaged


@dataclass(frozen=True)
class StereoInput:
    """One frame as its source gives it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres, measured, 0 = unknown; None if there is none.
        world_from_camera: (4, 4); None if it is unknown.
        repeats: how often it is written at the rate of the source.
        damage: why it is another frame that is shown in place of this one; empty: it is this one.
    """

    image: np.ndarray
    depth: np.ndarray | None
    world_from_camera: np.ndarray | None
    repeats: int = 1
    damage: str = ""


@dataclass(frozen=True)
class FrameSource:
    """Frames of one camera, in order.

    Attributes:
        path: file or folder.
        camera: intrinsics of all frames.
        rate: frames per second to write.
        count: number of frames; None if it is known at the end only.
        read: yields the frames from a number on.
        single: it is one image and no video.
        sound: video whose sound is kept; None if there is none.
        metric: depth is in metres, where it is measured.
        variable_rate: frames are repeated so that they are shown at their time.
        notes: sentences for the user about what was assumed.
        options: how it was opened, as JSON values: what an interrupted run must have in common to be taken up.
    """

    path: Path
    camera: Camera
    rate: float
    count: int | None
    read: Callable[[int], Iterator[StereoInput]]
    single: bool = False
    sound: Path | None = None
    metric: bool = True
    variable_rate: bool = False
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def open_source(
    path: Path,
    *,
    fov_deg: float | None = None,
    size: tuple[int, int] | None = None,
    measured_depth: bool = True,
    bag_options: dict[str, Any] | None = None,
    depth_unit: str = AUTO_UNIT,
) -> FrameSource:
    """Opens a source of frames.

    Args:
        path: image, video, folder of a sequence, or bag.
        fov_deg: horizontal field of view in degrees of a camera without intrinsics; None: by EXIF, else assumed.
        size: (width, height) to bring the frames to; None: as they are.
        measured_depth: use measured depth where there is some.
        bag_options: keyword arguments of `read_views`; None: the source is no bag.
        depth_unit: of a sequence, see `geometry.depth_units.parse_depth_unit`.

    Raises:
        DatasetError, BagError: the source is missing or damaged.
        InputError: an option does not fit it.
    """
    if bag_options is not None:
        source = _open_bag(path, bag_options)
    else:
        sequence = open_sequence(path)
        if (metres_per_count := parse_depth_unit(depth_unit)) is not None:
            sequence = replace(sequence, depth_scale=1 / metres_per_count)
        is_video = sequence.kind == "video" and sequence.frames[0].suffix.lower() in VIDEO_SUFFIXES
        source = _open_video(sequence) if is_video else _open_views(sequence)
        source = _with_fov(source, sequence, fov_deg)
    if min(source.camera.width, source.camera.height) < MIN_SIDE_PX:
        raise InputError(
            f"{path} is {source.camera.width}x{source.camera.height}; at least {MIN_SIDE_PX} pixels a side were "
            "expected."
        )
    if size is not None:
        source = _resized(source, *size)
    options = {"fov_deg": fov_deg, "size": size, "measured_depth": measured_depth, **(bag_options or {})}
    return replace(source if measured_depth else _without_depth(source), options=options)


def _open_video(sequence: ViewSequence) -> FrameSource:
    clip, camera = sequence.frames[0], sequence.camera
    timing = read_timing(clip)

    def read(start: int) -> Iterator[StereoInput]:
        for index, image in enumerate(read_frames(clip, start), start=start):
            if index >= len(timing):
                return
            yield StereoInput(image, None, None, int(timing.repeats[index]))

    notes = timing.damage_notes(clip.name) + timing.stamp_notes(clip.name)
    notes += _rate_notes(timing, clip.name, ", and sound stays in step")
    source = FrameSource(
        sequence.path,
        camera,
        timing.rate,
        len(timing),
        read,
        sound=clip,
        variable_rate=timing.variable,
        notes=notes,
    )
    return _with_square_pixels(source, timing.pixel_aspect)


def _rate_notes(timing: VideoTiming, name: str, benefit: str) -> list[str]:
    """Sentences about frames that are repeated or left out."""
    notes = []
    if timing.every > 1:
        notes.append(
            f"{name} has {timing.rate * timing.every:g} frames a second, and at most {MAX_RATE:g} are written: one in "
            f"{timing.every} is, at {timing.rate:g} a second, so that frames keep their time{benefit}."
        )
    if timing.variable:
        dropped = int((timing.repeats == 0).sum())
        lost = f" {dropped} frames lie closer together than that, and are not written." if dropped else ""
        notes.append(
            f"{name} has a variable frame rate: it is written at {timing.rate:g} frames a second, with frames "
            f"repeated so that they keep their time{benefit}.{lost}"
        )
    return notes


def _with_square_pixels(source: FrameSource, aspect: float) -> FrameSource:
    """The source with frames stretched to square pixels, if theirs are `aspect` as wide as high."""
    camera = source.camera
    width = round(camera.width * aspect)
    if not MIN_ASPECT < aspect < 1 / MIN_ASPECT or width == camera.width:
        return source
    source.notes.append(
        f"The pixels of {source.path.name} are {aspect:.3g} times as wide as high: its frames of "
        f"{camera.width}x{camera.height} are stretched to {width}x{camera.height}."
    )
    fov = 2 * math.atan(0.5 * camera.width / camera.fx)
    return replace(_resized(source, width, camera.height), camera=Camera.from_fov(width, camera.height, fov))


def _open_views(sequence: ViewSequence) -> FrameSource:
    if any(camera != sequence.camera for camera in sequence.cameras):
        raise InputError(
            f"The frames of {sequence.path} have different sizes or intrinsics; those of one camera were expected."
        )
    timing, notes = plan_sequence(sequence.stamps_ns, sequence.path.name)
    notes += _rate_notes(timing, sequence.path.name, "")

    def read(start: int) -> Iterator[StereoInput]:
        last: StereoInput | None = None
        for index in range(start, len(sequence)):
            try:
                last, damage = _load(sequence, index), ""
            except DatasetError as error:
                last, damage = last or _whole_frame(sequence, index, error), str(error)
            yield replace(last, repeats=int(timing.repeats[index]), damage=damage)

    return FrameSource(
        sequence.path,
        sequence.camera,
        timing.rate,
        len(sequence),
        read,
        single=len(sequence) == 1 and sequence.kind != "posed",
        metric=sequence.metric or not sequence.has_lengths,
        variable_rate=timing.variable,
        notes=notes,
    )


def _load(sequence: ViewSequence, index: int) -> StereoInput:
    view = sequence[index].with_finite_depth()
    if not view.is_observation:
        raise InputError(f"{sequence.path} holds imagined views; frames of a camera were expected.")
    # Estimated depth that is stored beside a frame was not measured, and is none for this purpose.
    depth = view.depth if view.estimated is None or view.depth is None else view.depth * ~view.estimated
    return StereoInput(view.image, depth, view.world_from_camera if sequence.posed else None)


def _whole_frame(sequence: ViewSequence, index: int, reason: DatasetError) -> StereoInput:
    """The last whole frame before a damaged one; at the start, the first whole one. Raises DatasetError if all are."""
    for other in (*range(index - 1, -1, -1), *range(index + 1, len(sequence))):
        with suppress(DatasetError):
            return _load(sequence, other)
    if len(sequence) == 1:
        raise reason
    raise DatasetError(f"None of the {len(sequence)} frames of {sequence.path} can be read. The first: {reason}")


def _open_bag(path: Path, options: dict[str, Any]) -> FrameSource:
    first = next(read_views(path, **options, max_views=1), None)
    if first is None:
        raise BagError(f"{path} has no image that can be used.")

    def read(start: int) -> Iterator[StereoInput]:
        begin, written = first.stamp_ns, 0
        pending: View | None = None
        for index, view in enumerate(read_views(path, **options)):
            if pending is not None:
                ticks = max(0, round((view.stamp_ns - begin) * 1e-9 * BAG_RATE) - written)
                written += ticks
                if index - 1 >= start:
                    yield _bag_frame(pending, ticks)
            pending = view
        if pending is not None:
            yield _bag_frame(pending, 1)

    return FrameSource(
        path,
        first.camera,
        BAG_RATE,
        None,
        read,
        metric=first.metric,
        variable_rate=True,
        notes=[f"The frames of the bag keep the time of their stamps, at {BAG_RATE:g} frames a second."],
    )


def _bag_frame(view: View, repeats: int) -> StereoInput:
    view = view.with_finite_depth()
    return StereoInput(view.image, view.depth, view.world_from_camera, repeats)


def _with_fov(source: FrameSource, sequence: ViewSequence, fov_deg: float | None) -> FrameSource:
    """The source with the field of view of the user, or a note about the one that is assumed."""
    camera, photo = source.camera, sequence.photo
    if fov_deg is not None:
        if sequence.camera_known:
            raise InputError(f"{source.path} has intrinsics, which --fov would contradict. Remove the option.")
        if not 1 <= fov_deg <= 170:
            raise InputError(f"The field of view is {fov_deg:g} degrees; 1 to 170 were expected.")
        return replace(source, camera=Camera.from_fov(camera.width, camera.height, math.radians(fov_deg)))
    if not sequence.camera_known and (photo is None or photo.focal_35mm is None):
        width = math.degrees(2 * math.atan(0.5 * camera.width / camera.fx))
        source.notes.append(
            f"The camera is assumed to be {width:.0f} degrees wide; --fov sets the field of view. Disparities are only "
            "as right as it is."
        )
    return source


def _resized(source: FrameSource, width: int, height: int) -> FrameSource:
    def read(start: int) -> Iterator[StereoInput]:
        for frame in source.read(start):
            method = cv2.INTER_AREA if width < frame.image.shape[1] else cv2.INTER_LINEAR
            depth = frame.depth
            if depth is not None:
                depth = cv2.resize(depth.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            yield replace(frame, image=cv2.resize(frame.image, (width, height), interpolation=method), depth=depth)

    return replace(source, camera=source.camera.resized(width, height), read=read)


def _without_depth(source: FrameSource) -> FrameSource:
    def read(start: int) -> Iterator[StereoInput]:
        return (replace(frame, depth=None) for frame in source.read(start))

    return replace(source, read=read)


__all__ = ["DatasetError", "FrameSource", "StereoInput", "open_source"]
