"""Photographs for `worldstereo reconstruct` whose poses, depth or both are those of point maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.cli.pointmap_depth import PointmapDepth
from worldstereo_ros.cli.pointmap_geometry import AUTO, POINTMAPS, PlacedFrames, place_frames
from worldstereo_ros.cli.pointmap_sources import FrameSource, open_frames
from worldstereo_ros.depth.estimators import DepthEstimate, load_depth_estimator
from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction.raw_photographs import GivenPhotographs, PhotographSource, RawPhotograph, constant
from worldstereo_ros.utils.errors import InputError

DEFAULT_PHOTOGRAPHS = 100  # as of a video


class _LazyDepth:
    """The depth of point maps, which are made when the first depth is asked for: earlier runs may have it."""

    def __init__(self, open_depth: Callable[[], PointmapDepth]) -> None:
        self._open = open_depth

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        return self._open()(image, camera)

    def estimate(self, image: np.ndarray, camera: Camera) -> DepthEstimate:
        return self._open().estimate(image, camera)


def photographs_by_pointmaps(
    source: Path,
    *,
    pose_source: str,
    depth_source: str,
    count: int | None,
    fov: float | None,
    depth_model: str,
    device: str,
    bag_options: dict[str, Any] | None,
    depth_unit: str = "auto",
    on_frame: Callable[[int], None] = lambda done: None,
) -> GivenPhotographs:
    """Photographs of a video, sequence or bag. Point maps are made when they are first needed.

    Args:
        source: as for `open_frames`.
        pose_source: pointmaps, or auto: poses that come along, else pointmaps.
        depth_source: see `pointmap_geometry`.
        count: at most so many photographs, spread evenly over the frames whose pose was found.
        fov: horizontal field of view in degrees of a camera without intrinsics.
        depth_model, device: of the depth that point maps begin with.
        bag_options, depth_unit: as for `open_frames`.
        on_frame: called with the number of frames that were read.

    Raises:
        InputError: the source has no order, or an option does not fit it.
        DatasetError, BagError: it is missing or damaged.
    """
    if source.suffix.lower() == ".wsmap":
        raise InputError("A saved map has poses and no order of frames; point maps need a video, a sequence or a bag.")
    opened = open_frames(source, fov, bag_options, depth_unit=depth_unit)
    estimate_poses = pose_source == POINTMAPS or not opened.posed

    @cache
    def placed() -> PlacedFrames:
        return place_frames(
            opened, count=count or DEFAULT_PHOTOGRAPHS, estimate_poses=estimate_poses, depth_source=depth_source,
            depth_model=depth_model, device=device, on_frame=on_frame,
        )  # fmt: skip

    @cache
    def depth() -> PointmapDepth:
        found = PointmapDepth(load_depth_estimator(depth_model, device) or _no_depth)
        for view in placed().views:
            if view.estimated is not None and view.depth is not None and view.depth_confidence is not None:
                found.add(view.image, constant((view.depth, view.depth_confidence)))
        return found

    photographs = PhotographSource("point maps", _files(source), ordered=True)
    photographs.photographs = _photographs(source, opened, placed, photographs)
    by_pointmaps = depth_source == POINTMAPS or (depth_source == AUTO and estimate_poses)
    name = f"{'poses' if estimate_poses else 'depth'} by point maps, depth {depth_source}"
    return GivenPhotographs(name, photographs, _LazyDepth(depth) if by_pointmaps else None)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(file for file in source.rglob("*") if file.is_file())


def _photographs(
    source: Path, opened: FrameSource, placed: Callable[[], PlacedFrames], photographs: PhotographSource
) -> Iterator[RawPhotograph]:
    frames = placed()
    photographs.notes += frames.notes
    photographs.metric = frames.views[0].metric
    for number, view in zip(frames.numbers, frames.views, strict=True):
        yield RawPhotograph(
            f"{source.stem}_{number:06d}",
            constant(view.image),
            (view.camera.width, view.camera.height),
            CameraCalibration(view.camera, np.zeros(0), ""),
            world_from_camera=view.world_from_camera,
            load_depth=_measured(view),
            stamp_ns=view.stamp_ns,
            camera_key="pointmaps",
        )


def _measured(view: View) -> Callable[[], np.ndarray] | None:
    if view.depth is None or view.estimated is not None:
        return None
    return constant(view.depth)


def _no_depth(image: np.ndarray, camera: Camera) -> np.ndarray:
    return np.zeros(image.shape[:2], np.float32)
