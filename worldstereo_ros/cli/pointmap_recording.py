"""A recording for `worldstereo imagine` whose poses, depth or both are those of point maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.cli.pointmap_geometry import AUTO, MODEL_DEPTH, POINTMAPS, RECORDED, place_frames
from worldstereo_ros.cli.pointmap_sources import lacks_poses, open_frames
from worldstereo_ros.cli.sources import Recording, resize_views
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def read_by_pointmaps(
    source: Path,
    *,
    pose_source: str,
    depth_source: str,
    observations: int | None,
    frames: list[int],
    size: str,
    depth_model: str,
    device: str,
    console: Console,
    fov: float | None = None,
    depth_unit: str = AUTO,
    bag_options: dict[str, Any] | None = None,
    recorded: Callable[[], Recording] | None = None,
) -> Recording | None:
    """Reads the views to observe, if point maps are to give poses or depth; else returns None.

    Args:
        source: as for `open_frames`.
        pose_source, depth_source: see `pointmap_geometry`.
        observations, frames, size: as for `sources.read_source`.
        depth_model, device: of the depth that point maps begin with.
        console: shows the progress.
        fov, depth_unit, bag_options: as for `open_frames`.
        recorded: reads the source without point maps, for the paths that come with it, where its poses are kept.

    Raises:
        InputError: an option does not fit the source, or no pose was found.
        DatasetError, BagError, DepthError: the source, or depth, cannot be had.
    """
    several = max(observations or 1, len(frames)) > 1
    asked = POINTMAPS in (pose_source, depth_source)
    if not asked and (pose_source == RECORDED or not several or _is_photo(source)):
        return None
    if not asked and bag_options is None and not lacks_poses(source):
        return None
    opened = open_frames(source, fov, bag_options, depth_unit=depth_unit)
    if not asked and opened.posed:
        return None
    if pose_source == RECORDED and not opened.posed:
        raise InputError(f"{source} has no poses; use --pose-source pointmaps, which estimates them, or auto.")
    estimate_poses = pose_source == POINTMAPS or not opened.posed
    with console.status("estimating point maps") as status:
        placed = place_frames(
            opened,
            count=observations or 1,
            wanted=frames,
            estimate_poses=estimate_poses,
            depth_source=MODEL_DEPTH if depth_model == "none" and depth_source == AUTO else depth_source,
            depth_model=depth_model,
            device=device,
            on_frame=lambda done: status.update(f"estimating point maps: frame {done}"),
        )
    notes = list(placed.notes)
    views = resize_views(placed.views, size, photo=opened.camera is None, notes=notes)
    origin = "pointmaps" if opened.camera is None else "option" if fov is not None else "recorded"
    paths = None if estimate_poses or recorded is None else recorded()
    estimated = any(view.estimated is not None for view in views)
    return Recording(
        source.name,
        views,
        (lambda name: None) if paths is None else paths.find_path,
        () if paths is None else paths.path_names,
        camera_origin=origin,
        notes=notes,
        depth_from="point maps" if estimated else "",
        origin={
            "poses_from": "point maps" if estimate_poses else "recorded",
            "depth_from": "point maps" if estimated else "recorded or the depth model",
            "scale_from": placed.scale_from,
        },
    )


def without_depth(recording: Recording) -> Recording:
    """The recording as if no depth had been measured."""
    views = [replace(view, depth=None, estimated=None, depth_confidence=None) for view in recording.observed_views]
    return replace(recording, observed_views=views)


def _is_photo(source: Path) -> bool:
    from worldstereo_ros.io.files import IMAGE_SUFFIXES

    return source.suffix.lower() in IMAGE_SUFFIXES
