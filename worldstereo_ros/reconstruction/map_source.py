"""What a place is reconstructed from, further kinds: a saved map, and photographs that join another source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.depth_units import AUTO_UNIT
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.files import IMAGE_SUFFIXES, DatasetError
from worldstereo_ros.memory.archive import SUFFIX, load_archive
from worldstereo_ros.reconstruction.raw_photographs import PhotographSource, RawPhotograph, constant
from worldstereo_ros.reconstruction.sources import (
    DEFAULT_PHOTOGRAPHS,
    check_depth_unit,
    image_files,
    open_source,
    read_folder,
)
from worldstereo_ros.utils.indices import evenly_spaced_indices


def open_all(
    path: Path,
    photographs: Sequence[Path] = (),
    *,
    max_photographs: int | None = None,
    use_poses: bool = True,
    bag_options: dict[str, Any] | None = None,
) -> PhotographSource:
    """Opens what a place is reconstructed from: a source as of `sources.open_source`, or a saved map.

    Args:
        path: file or folder.
        photographs: files or folders of further photographs, which have no poses and are registered to the source.
        max_photographs, use_poses, bag_options: see there.

    Raises:
        ArchiveError: the map is missing, damaged, or not a map.
        DatasetError: a path does not exist, or holds nothing that can be used.
        InputError: see `open_source`.
    """
    if path.suffix == SUFFIX:
        source = open_map(path, max_photographs)
        check_depth_unit(source.kind, (bag_options or {}).get("depth_unit", AUTO_UNIT))
        if not use_poses:
            with_poses = source.photographs
            source.photographs = (replace(photo, world_from_camera=None) for photo in with_poses)
    else:
        source = open_source(path, max_photographs=max_photographs, use_poses=use_poses, bag_options=bag_options)
    if photographs:
        join_photographs(source, photographs)
    return source


def open_map(path: Path, limit: int | None) -> PhotographSource:
    """Opens a map that the world model saved: the observations in its bank of views, with their poses.

    Measured depth comes along, estimated depth does not: it is found anew. Imagined views are not used.

    Raises:
        ArchiveError: the file is missing, damaged, or not a map.
        DatasetError: it has no observation.
    """
    views = load_archive(path).bank.views
    observed = sorted((view for view in views if view.is_observation), key=lambda view: view.stamp_ns)
    if not observed:
        raise DatasetError(f"The map {path} holds no view that a camera took; a map with observations was expected.")
    notes = []
    if len(observed) < len(views):
        notes.append(f"{len(views) - len(observed)} imagined views of the map are not used.")
    kept = [observed[i] for i in evenly_spaced_indices(len(observed), limit or DEFAULT_PHOTOGRAPHS)]
    if len(kept) < len(observed):
        notes.append(f"{len(kept)} of the {len(observed)} views of the map are used, spread evenly.")
    source = PhotographSource("map", [path], metric=kept[0].metric, notes=notes)
    source.photographs = (_raw(number, view) for number, view in enumerate(kept))
    return source


def _raw(number: int, view: View) -> RawPhotograph:
    depth = None if view.depth is None else np.where(view.estimated_mask, np.float32(0), view.depth)
    if depth is not None and not (depth > 0).any():
        depth = None
    return RawPhotograph(
        f"remembered_{number:06d}",
        constant(view.image),
        (view.camera.width, view.camera.height),
        CameraCalibration(view.camera, np.zeros(0), ""),
        world_from_camera=view.world_from_camera,
        load_depth=None if depth is None else constant(depth),
        stamp_ns=view.stamp_ns,
        camera_key=repr(view.camera),
    )


def join_photographs(source: PhotographSource, paths: Sequence[Path]) -> None:
    """Adds photographs without poses to a source; they are registered to its own.

    Args:
        source: an opened source.
        paths: files, or folders of photographs.

    Raises:
        DatasetError: a path does not exist, or holds no photograph.
    """
    groups: list[tuple[Path, list[Path]]] = []
    for path in paths:
        if not path.exists():
            raise DatasetError(f"{path} does not exist; a photograph or a folder of photographs was expected.")
        files = image_files(path) if path.is_dir() else [path]
        if not files or (path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES):
            raise DatasetError(f"{path} holds no photograph; {', '.join(IMAGE_SUFFIXES)} were expected.")
        groups.append((path if path.is_dir() else path.parent, files))
    readers: list[Iterator[RawPhotograph]] = []
    for folder, files in groups:
        source.files += files
        readers.append(read_folder(folder, files, source))
    source.photographs = chain(source.photographs, *readers)
    source.ordered = False
