"""Sources of `worldstereo imagine`: photographs, videos, sequences and bags, with the paths recorded in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import OBSERVED_FOLDER

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.views import View
    from worldstereo_ros.io.view_sequence import ViewSequence

# Larger images are reduced: a photograph of 24 megapixels would take minutes, and half a gigabyte of memories.
MAX_PHOTO_PIXELS = 1280 * 960  # of images whose camera is assumed
MAX_VIEW_PIXELS = 1920 * 1080  # of calibrated cameras
MIN_FOV_DEG, MAX_FOV_DEG = 1.0, 170.0
FULL_SIZE = "full"
MIN_SIDE, MAX_SIDE = 16, 8192


@dataclass(frozen=True)
class RecordedPath:
    """A path that comes with a source.

    Attributes:
        poses: (F, 4, 4) world_from_camera.
        camera: camera of the path, None if it has none of its own.
    """

    poses: np.ndarray
    camera: Camera | None = None


@dataclass(frozen=True)
class Recording:
    """Observed views and the paths that are recorded beside them.

    Attributes:
        name: short name for titles.
        observed_views: the views to observe, in order.
        find_path: returns a recorded path by name, None where there is none.
        path_names: names of the recorded paths, for error messages.
        prompt: text prompt that comes with the recording, may be empty.
        camera_origin: where the intrinsics come from, for the results: recorded, exif, assumed or option.
        notes: sentences about what was chosen or assumed, for the user.
        depth_from: what estimated the depth of the views, if that is no depth model.
        origin: where poses, depth and scale come from, for the results; empty: recorded.
    """

    name: str
    observed_views: list[View]
    find_path: Callable[[str], RecordedPath | None]
    path_names: tuple[str, ...] = ()
    prompt: str = ""
    camera_origin: str = "recorded"
    notes: list[str] = field(default_factory=list)
    depth_from: str = ""
    origin: dict[str, str] = field(default_factory=dict)


# --- options ---------------------------------------------------------------------------------------------------------


def parse_size(text: str) -> tuple[int, int] | None:
    """Reads --size.

    Args:
        text: "WIDTHxHEIGHT", "full", or empty.

    Returns:
        (width, height) in pixels; None for "full" and an empty text.

    Raises:
        InputError: something else, or a side out of range.
    """
    if text.lower() in ("", FULL_SIZE):
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 8 for side in sides):
        raise InputError(f"The size '{text}' is not understood; WIDTHxHEIGHT, such as 640x480, or full was expected.")
    width, height = int(sides[0]), int(sides[1])
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise InputError(f"The size is {width}x{height}; {MIN_SIDE} to {MAX_SIDE} pixels a side were expected.")
    return width, height


def parse_frames(text: str) -> list[int]:
    """Reads --observe: numbers of frames, separated by commas. Raises InputError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"The frames '{text}' are not understood; numbers separated by commas, such as 0,12,30, were expected."
        ) from None
    if len(set(numbers)) < len(numbers):
        raise InputError(f"The frames '{text}' name one of them twice.")
    return numbers


# --- sequences, photographs, videos ----------------------------------------------------------------------------------


def read_source(
    path: Path,
    observations: int | None,
    frames: list[int],
    *,
    fov: float | None = None,
    size: str = "",
    depth_unit: str = "auto",
    depth_required: bool = False,
) -> Recording:
    """Reads the views to observe of a posed sequence, an example folder, a photograph or a video.

    Args:
        path: file or folder.
        observations: number of evenly spaced views; None: one.
        frames: numbers of the frames to observe instead; empty: evenly spaced ones.
        fov: horizontal field of view in degrees of a camera without intrinsics; None: that of its EXIF, else assumed.
        size: see `parse_size`; empty: as they are, but reduced if they are large.
        depth_unit: see `geometry.depth_units.parse_depth_unit`.
        depth_required: the views need measured depth.

    Raises:
        InputError: an option does not fit this source.
        DatasetError: the source is missing or invalid.
    """
    from worldstereo_ros.geometry.depth_units import parse_depth_unit
    from worldstereo_ros.io.datasets import open_sequence

    sequence = open_sequence(path)
    if (metres_per_count := parse_depth_unit(depth_unit)) is not None:
        sequence = replace(sequence, depth_scale=1 / metres_per_count)
    notes: list[str] = []
    chosen = _choose_frames(sequence, path, observations, frames, notes)
    positions, views = _load(sequence, chosen, bool(frames), notes)
    if not sequence.posed and len(sequence) > 1:
        number = int(sequence.indices[positions[0]])
        notes.append(
            f"{path.name} has {len(sequence)} frames and no poses: its frame {number} is used, as a photo would be."
            + ("" if frames else " --observe N chooses another one.")
        )
    camera, camera_origin = _choose_camera(sequence.subset(positions), path, fov, notes)
    if not views[0].metric:
        notes.append(
            f"The unit of {path.name} is arbitrary: its lengths, --distance and --clearance are not in metres."
        )
    if camera is not None:
        views = [replace(view, camera=camera) for view in views]
    if not all(view.is_observation for view in views):
        raise InputError(
            f"{path} holds imagined views, which are no observations. Name a recording, such as the folder "
            f"{OBSERVED_FOLDER}/ of the same results."
        )
    if depth_required and any(view.depth is None for view in views):
        raise InputError(
            f"{path} has no depth, which the cloud memory needs, and --depth-model none disables its estimation. "
            "Remove the option, or name a folder or a hub id of a transformers depth-estimation model."
        )

    def find_path(name: str) -> RecordedPath | None:
        found = sequence.trajectories.get(name)
        return None if found is None else RecordedPath(found.world_from_camera, found.camera)

    return Recording(
        path.name,
        resize_views(views, size, photo=not sequence.camera_known, notes=notes),
        find_path,
        tuple(sequence.trajectories),
        sequence.prompt,
        camera_origin,
        notes,
    )


def _choose_frames(
    sequence: ViewSequence, path: Path, observations: int | None, frames: list[int], notes: list[str]
) -> list[int]:
    """Positions in the sequence of the frames to observe."""
    from worldstereo_ros.utils.indices import evenly_spaced_indices

    count = len(sequence)
    if not sequence.posed and max(observations or 1, len(frames)) > 1:
        raise InputError(
            f"{path} has no poses, which say where each frame was taken, so only one of its {count} frames can be "
            "observed. Choose it with --observe N, or estimate poses with --pose-source pointmaps."
        )
    if frames:
        position = {int(number): index for index, number in enumerate(sequence.indices)}
        position |= {index - count: index for index in range(count)}  # -1 is the last one
        missing = [number for number in frames if number not in position]
        if missing:
            first, last = int(sequence.indices.min()), int(sequence.indices.max())
            gaps = "" if last - first + 1 == count else ", with gaps"
            frames_are = (
                f"its only frame is {first}" if count == 1 else f"its {count} frames are {first} to {last}{gaps}"
            )
            raise InputError(f"{path} has no frame {missing[0]}; {frames_are}. -1 is the last one.")
        chosen = [position[number] for number in frames]
    else:
        chosen = evenly_spaced_indices(count, observations or 1)
        if (observations or 1) > count:
            notes.append(f"{observations} frames were to be observed; {path.name} has {count}.")
    return chosen


def _load(sequence: ViewSequence, chosen: list[int], named: bool, notes: list[str]) -> tuple[list[int], list[View]]:
    """The views at these positions. The next frame takes the place of a damaged one, unless the user `named` them.

    Returns:
        (positions that were loaded, their views).

    Raises:
        DatasetError: a named frame is damaged, or all are.
    """
    from worldstereo_ros.cli.summaries import damaged_frames_note
    from worldstereo_ros.io.files import DatasetError

    views: list[View] = []
    positions: list[int] = []
    reasons: list[str] = []
    taken = set(chosen)
    for position in chosen:
        for candidate in [position, *range(position + 1, len(sequence))]:
            if candidate != position and candidate in taken:
                continue
            taken.add(candidate)
            try:
                views.append(sequence[candidate])
                positions.append(candidate)
                break
            except DatasetError as error:
                if named or len(sequence) == 1:
                    raise
                reasons.append(str(error))
    if not views:
        raise DatasetError(f"None of the {len(reasons)} frames that were tried can be read. The first: {reasons[0]}")
    if reasons:
        notes.append(damaged_frames_note(reasons))
    return positions, views


def _choose_camera(
    sequence: ViewSequence, path: Path, fov: float | None, notes: list[str]
) -> tuple[Camera | None, str]:
    """(camera by --fov or None, origin of the camera); notes say what is used of a photograph."""
    from worldstereo_ros.geometry.cameras import Camera

    photo, camera = sequence.photo, sequence.camera
    if photo is not None and photo.several_images:
        notes.append(f"{path.name} holds several images; the first is used.")
    if photo is not None and photo.orientation != 1:
        stored = "{}x{}".format(*photo.stored_size)
        notes.append(
            f"{path.name} is turned upright by its EXIF (stored as {stored}, seen as {photo.size[0]}x{photo.size[1]})."
        )
    if fov is not None:
        if sequence.camera_known:
            raise InputError(
                f"{path} has intrinsics, which --fov would contradict. Remove the option, or the intrinsics."
            )
        if not MIN_FOV_DEG <= fov <= MAX_FOV_DEG:
            raise InputError(f"The field of view is {fov:g} degrees; {MIN_FOV_DEG:g} to {MAX_FOV_DEG:g} were expected.")
        notes.append(f"Camera: {fov:g} degrees wide (--fov).")
        return Camera.from_fov(camera.width, camera.height, math.radians(fov)), "option"
    if sequence.camera_known:
        return None, "recorded"
    if photo is not None and photo.focal_35mm is not None:
        notes.append(
            f"Camera: {_width_deg(camera):.0f} degrees wide, by the focal length in its EXIF ({photo.focal_35mm:g} mm "
            "for 35 mm film). --fov sets another field of view."
        )
        return None, "exif"
    why = "neither intrinsics nor a focal length for 35 mm film in EXIF" if photo is not None else "no intrinsics"
    notes.append(
        f"Camera: {_width_deg(camera):.0f} degrees wide, which is assumed: {path.name} has {why}. --fov sets the field "
        "of view; distances are only as right as it is."
    )
    if photo is not None and abs(photo.size[0] - 2 * photo.size[1]) <= 2:
        notes.append("It is twice as wide as high: if it shows the full sphere, use `worldstereo panorama`.")
    return None, "assumed"


def _width_deg(camera: Camera) -> float:
    return math.degrees(2 * math.atan(0.5 * camera.width / camera.fx))


def resize_views(views: Sequence[View], size: str, *, photo: bool, notes: list[str]) -> list[View]:
    """The views at the size to work with.

    Args:
        views: observations.
        size: see `parse_size`; empty: views of more than `MAX_PHOTO_PIXELS` or `MAX_VIEW_PIXELS` are reduced.
        photo: the camera is assumed, so that `MAX_PHOTO_PIXELS` counts.
        notes: gets a sentence if a view is reduced without being asked for.
    """
    from worldstereo_ros.io.photos import reduced_size

    wanted = parse_size(size)
    resized = []
    for view in views:
        came = (view.camera.width, view.camera.height)
        target = wanted or came
        if not size:
            target = reduced_size(came, MAX_PHOTO_PIXELS if photo else MAX_VIEW_PIXELS)
        if min(came) < MIN_SIDE:
            raise InputError(f"An image is {came[0]}x{came[1]}; at least {MIN_SIDE} pixels a side were expected.")
        resized.append(view.resized(*target))
    reduced = [i for i, view in enumerate(views) if view.camera != resized[i].camera]
    if reduced and not size:
        large, small = views[reduced[0]].camera, resized[reduced[0]].camera
        notes.append(
            f"Images of {large.width}x{large.height} are reduced to {small.width}x{small.height}. --size full keeps "
            "them as they are, which takes more time and memory."
        )
    return resized


# --- bags ------------------------------------------------------------------------------------------------------------


def read_bag(
    bag: Path,
    observations: int | None,
    frames: list[int],
    *,
    size: str,
    view_options: dict[str, Any],
    path_options: dict[str, Any],
) -> Recording:
    """Reads the views to observe of a bag.

    Args:
        bag: file or folder.
        observations: number of evenly spaced views; None: one.
        frames: positions of the images to observe instead, counted from 0 over those that can be used.
        size: see `parse_size`.
        view_options, path_options: keyword arguments of `read_views` and `read_path`.

    Raises:
        InputError: an option does not fit this bag.
        BagError: the bag is missing, damaged, or lacks something.
    """
    from worldstereo_ros.io.bags.files import Bag
    from worldstereo_ros.io.bags.topics import PATH
    from worldstereo_ros.io.bags.views import read_path, read_views

    notes: list[str] = []
    if frames:
        views = _take(read_views(bag, **view_options), frames, bag)
    else:
        views = list(read_views(bag, **view_options, max_views=observations or 1))
    if not frames and len(views) < (observations or 1):
        notes.append(f"{observations} frames were to be observed; {bag.name} has {len(views)} that can be used.")
    with Bag(bag) as opened:
        paths = tuple(name for name, kind in opened.topics.items() if kind == PATH)

    def find_path(name: str) -> RecordedPath | None:
        return RecordedPath(read_path(bag, name, **path_options)) if name in paths else None

    return Recording(bag.name, resize_views(views, size, photo=False, notes=notes), find_path, paths, notes=notes)


def _take(views: Iterator[View], positions: list[int], bag: Path) -> list[View]:
    """The views at these positions, in this order; raises InputError if there are fewer."""
    found, count = {}, 0
    for count, view in enumerate(views, start=1):
        if count - 1 in positions:
            found[count - 1] = view
        if len(found) == len(positions):
            break
    missing = [position for position in positions if position not in found]
    if missing:
        raise InputError(f"{bag} has no image {missing[0]}; the {count} that can be used are counted from 0.")
    return [found[position] for position in positions]
