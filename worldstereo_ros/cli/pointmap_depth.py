"""Depth of point maps as a depth estimator, for commands that ask for the depth of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.cli.pointmap_geometry import AUTO, describe_scale
from worldstereo_ros.cli.pointmap_session import Selection, choose_method, feed, open_stream
from worldstereo_ros.cli.pointmap_sources import FrameSource, SourceFrame
from worldstereo_ros.depth.estimators import DepthEstimate, DepthEstimator, estimate_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.resizing import resize_image

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.pointmaps.session import Session
    from worldstereo_ros.pipelines.stereo.frame_sources import FrameSource as StereoSource

POINTMAP_DEPTH = "point maps"  # their name in results
THUMBNAIL_PX = 24
MAX_DIFFERENCE = 3.0  # mean, in grey levels, of thumbnails of one image at two sizes

Loader = Callable[[], tuple[np.ndarray, np.ndarray]]


class PointmapDepth:
    """The depth of images that point maps were made of; of others that of an estimator.

    Images are known again by their thumbnails, so that they may come at another size.

    Args:
        otherwise: estimator of images that no point map has, such as frames whose pose was not found.

    Attributes:
        missed: number of images that had none.
    """

    def __init__(self, otherwise: DepthEstimator) -> None:
        self._otherwise = otherwise
        self._thumbnails: list[np.ndarray] = []
        self._loaders: list[Loader] = []
        self.missed = 0

    def add(self, image: np.ndarray, load: Loader) -> None:
        """Adds an image, and what loads its (depth (H, W), confidence (H, W)), of any size."""
        self._thumbnails.append(_thumbnail(image))
        self._loaders.append(load)

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        return self.estimate(image, camera).depth

    def estimate(self, image: np.ndarray, camera: Camera) -> DepthEstimate:
        """Depth with its confidence, see `estimate_depth`."""
        import cv2

        if self._thumbnails:
            difference = np.abs(np.stack(self._thumbnails) - _thumbnail(image)).mean(axis=(1, 2))
            best = int(np.argmin(difference))
            if difference[best] <= MAX_DIFFERENCE:
                size = camera.width, camera.height
                depth, confidence = (
                    cv2.resize(np.asarray(each, np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT)
                    for each in self._loaders[best]()
                )
                return DepthEstimate(depth, confidence)
        self.missed += 1
        return estimate_depth(self._otherwise, image, camera)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    return resize_image(image, THUMBNAIL_PX, THUMBNAIL_PX).astype(np.float32).mean(axis=2)


def stereo_depth(
    frames: StereoSource,
    session: Session,
    otherwise: DepthEstimator,
    device: str,
    on_frame: Callable[[int], None] = lambda done: None,
) -> tuple[StereoSource, PointmapDepth]:
    """Point maps of all frames of `worldstereo stereo`.

    Args:
        frames: of one camera, with poses where they are known: these tell the scale.
        session: keeps the point maps, for as long as the estimator is used.
        otherwise: estimator of the depth that point maps begin with, and of frames without a point map.
        device: torch device.
        on_frame: called with the number of frames that were read.

    Returns:
        The frames without measured depth, with notes on what was found, and the estimator that has their depth.

    Raises:
        InputError: no frame has a pose.
        DepthError: depth cannot be estimated.
    """

    def read() -> Any:
        for index, frame in enumerate(frames.read(0)):
            yield SourceFrame(frame.image, None, frame.world_from_camera, index / frames.rate, index)

    source = FrameSource(frames.camera, read, frames.count, False, metric=frames.metric)
    stream = open_stream(source.camera, choose_method(AUTO), otherwise, device)
    _, reference = feed(source, stream, session, Selection(scale=True, depth=False), on_frame)
    known = reference is not None and np.isfinite(reference).all(axis=(1, 2)).sum() > 1
    found = session.views(reference if known else None)
    position = {row: index for index, row in enumerate(found.rows)}
    estimator = PointmapDepth(otherwise)

    def loader(row: int) -> Loader:
        def load() -> tuple[np.ndarray, np.ndarray]:
            if row in position:
                view, _, confidence = found.load(position[row])
                assert view.depth is not None
                return view.depth, confidence
            with np.load(session.folder / f"{row:06d}.npz") as stored:  # of another shot, in its own unit
                return stored["depth"], stored["confidence"].astype(np.float32) / 255

        return load

    lost = 0
    for row, each in enumerate(session.metadata):
        if not each["ok"]:
            lost += 1
            continue
        with np.load(session.folder / f"{row:06d}.npz") as stored:
            estimator.add(stored["image"], loader(row))
    notes = [text for text in session.messages if "metric: false" not in text]
    notes.append(describe_scale(found.scale_from, found.metric))
    if lost:
        notes.append(f"{lost} frames have no point map: their depth is that of the depth model, each by itself.")

    def bare(start: int) -> Any:
        return (replace(frame, depth=None) for frame in frames.read(start))

    return replace(frames, read=bare, notes=[*frames.notes, *notes]), estimator
