"""The source of `worldstereo imagine` and of a job of `worldstereo batch`: a map, a bag, or a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from worldstereo_ros.cli.sources import Recording
    from worldstereo_ros.memory.archive import Archive

OF_FRAMES = ("image_topic", "pose_topic", "world_frame", "base_frame", "camera_axes")  # for views and paths of a bag


@dataclass(frozen=True)
class SourceOptions:
    """What to observe, by the values of the options of `worldstereo imagine`.

    Attributes:
        source, bag, map_file: one of them is given.
        observations, frames: number of frames, or their numbers.
        size, fov, pose_source, depth_source, depth_model: values of the options.
        bag_options: values of the options of bags by their names, with those that are not given.
        path_pose_frame, path_heading: of a path that is recorded in a bag.
    """

    source: Path | None
    bag: Path | None
    map_file: Path | None
    observations: int | None
    frames: list[int]
    size: str
    fov: float | None
    pose_source: str
    depth_source: str
    depth_model: str
    bag_options: Mapping[str, Any]
    path_pose_frame: str
    path_heading: str

    @property
    def of_path(self) -> dict[str, Any]:
        """The options of recorded paths."""
        return {"path_pose_frame": self.path_pose_frame, "path_heading": self.path_heading}


def open_source(options: SourceOptions, *, device: str, console: Console) -> tuple[Archive | None, Recording]:
    """Reads the views to observe.

    Args:
        options: of the source.
        device: torch device, for point maps.
        console: shows the progress of those.

    Returns:
        (the map and its observations) or (None, the recording).

    Raises:
        InputError: an option does not fit the source.
        ArchiveError, BagError, DatasetError, DepthError: it is missing or damaged, or has no depth.
    """
    from worldstereo_ros.cli.maps import read_map
    from worldstereo_ros.cli.pointmap_recording import read_by_pointmaps, without_depth
    from worldstereo_ros.cli.recording_options import check_no_bag_options
    from worldstereo_ros.cli.sources import read_bag, read_source
    from worldstereo_ros.depth.estimators import NONE

    placing: dict[str, Any] = {
        "pose_source": options.pose_source,
        "depth_source": options.depth_source,
        "observations": options.observations,
        "frames": options.frames,
        "size": options.size,
        "depth_model": options.depth_model,
        "device": device,
        "console": console,
    }
    views, size, unit = (options.observations, options.frames), options.size, options.bag_options["depth_unit"]
    if options.map_file is not None:
        check_no_bag_options(options.bag_options, **options.of_path)
        return read_map(options.map_file)
    recording: Recording | None
    if options.bag is not None and options.source is None:
        if options.fov is not None:
            raise InputError("The camera of a bag is that of its camera_info; --fov is for images and videos without.")
        bag, view_options = options.bag, dict(options.bag_options)
        path_options = {name: options.bag_options[name] for name in OF_FRAMES}
        path_options |= {"pose_frame": options.path_pose_frame, "heading": options.path_heading}
        read = partial(read_bag, bag, *views, size=size, view_options=view_options, path_options=path_options)
        recording = read_by_pointmaps(bag, bag_options=view_options, recorded=read, **placing) or read()
    elif options.source is not None and options.bag is None:
        check_no_bag_options(options.bag_options, **options.of_path)
        source, fov = options.source, options.fov
        needs_depth = options.depth_model == NONE
        recorded = partial(read_source, source, *views, fov=fov, size=size, depth_unit=unit, depth_required=needs_depth)
        recording = read_by_pointmaps(source, depth_unit=unit, fov=fov, recorded=recorded, **placing) or recorded()
    else:
        raise InputError("Name one source: a folder or image, a bag with --bag, or a saved map with --map.")
    return None, without_depth(recording) if options.depth_source == "model" else recording


def check_path_options(options: SourceOptions, path: str, recording: Recording) -> None:
    """Raises InputError if options of paths that a bag holds are given, and the path is none of these."""
    from worldstereo_ros.cli.recording_options import check_no_path_options

    if options.bag is not None and path not in recording.path_names:
        base_frame = "" if options.bag_options["pose_topic"] else options.bag_options["base_frame"]
        check_no_path_options(base_frame=base_frame, **options.of_path)
