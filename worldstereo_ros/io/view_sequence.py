"""A lazily loaded sequence of views on disk, common to all file formats."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.image_checks import MAX_PIXELS, ImageError
from worldstereo_ros.imaging.orientation import turn
from worldstereo_ros.io.files import VIDEO_SUFFIXES, DatasetError
from worldstereo_ros.io.images import read_depth, read_image
from worldstereo_ros.io.photos import PhotoHeader, read_photo
from worldstereo_ros.io.video import read_video_frame
from worldstereo_ros.io.view_labels import read_labels
from worldstereo_ros.io.worldstereo_examples import Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewSequence:
    """N views on disk, loaded on access.

    `sequence[i]` loads a View; `sequence[2:20:3]` and `sequence.subset([...])` are sequences of fewer views.

    Attributes:
        path: file or folder of the sequence.
        kind: posed, image, video, worldstereo image, worldstereo reconstruction, worldstereo panorama.
        cameras: intrinsics of each view.
        poses: (N, 4, 4) float64 world_from_camera, OpenCV axes; identity if `posed` is False.
        frames: image file of each view; for a video the video file, with the frame number in `indices`.
        depths: depth file of each view, or None.
        indices: (N,) int64, number of each view in its source.
        stamps_ns: (N,) int64, time of each view in nanoseconds; 0 if unknown.
        depth_scale: stored depth values per metre.
        metric: translations are in metres.
        posed: poses are known.
        camera_known: intrinsics are known; otherwise they follow from the focal length in EXIF or, without it, from an
            assumed field of view of 60 degrees along the longer side.
        photos: header of each frame (None: it is damaged), if frames are photographs whose intrinsics are ours to
            assume: they are turned by the EXIF orientation, and `cameras` are those of the turned images. Empty: the
            stored pixels are used, which intrinsics refer to.
        prompt: text prompt that describes the place, or empty.
        trajectories: camera trajectories that come with the data, by name.
        labels: folder with provenance and confidences of the views, see `io/view_labels.py`; None = all views are
            observations, and their depth is measured.
    """

    path: Path
    kind: str
    cameras: tuple[Camera, ...]
    poses: np.ndarray
    frames: tuple[Path, ...]
    depths: tuple[Path | None, ...]
    indices: np.ndarray
    stamps_ns: np.ndarray
    depth_scale: float = 1000.0
    metric: bool = False
    posed: bool = True
    camera_known: bool = True
    photos: tuple[PhotoHeader | None, ...] = ()
    prompt: str = ""
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    labels: Path | None = None

    @property
    def camera(self) -> Camera:
        """Intrinsics of the first view. All views share them, except in some panorama banks."""
        return self.cameras[0]

    @property
    def photo(self) -> PhotoHeader | None:
        """Header of the first view, if `photos` has one."""
        return self.photos[0] if self.photos else None

    @property
    def has_depth(self) -> bool:
        """True if at least one view has depth."""
        return any(depth is not None for depth in self.depths)

    @property
    def has_lengths(self) -> bool:
        """True if there are poses or depth; a photo alone has no lengths that could be of another unit than metres."""
        return self.posed or self.has_depth

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, key: int) -> View: ...
    @overload
    def __getitem__(self, key: slice) -> ViewSequence: ...
    def __getitem__(self, key: int | slice) -> View | ViewSequence:
        """Loads the view at position `key`, or returns the sequence of a slice.

        Raises:
            IndexError: the position is out of range.
            DatasetError: a file is missing, damaged, or of another size than the intrinsics.
        """
        if isinstance(key, slice):
            return self.subset(range(*key.indices(len(self))))
        index = self._position(key)
        camera, depth = self.cameras[index], None
        try:
            image = self._load_image(index)
            self._check_size(self.frames[index], image, camera)
            if (file := self.depths[index]) is not None:
                depth = self._oriented(read_depth(file, self.depth_scale), index)
                self._check_size(file, depth, camera)
            stamp_ns, metric = int(self.stamps_ns[index]), self.metric or not self.has_lengths
            view = View(image, camera, self.poses[index], depth, stamp_ns=stamp_ns, metric=metric)
            return view if self.labels is None else self._labelled(view, self.labels, int(self.indices[index]))
        except ImageError as error:
            raise DatasetError(str(error)) from error

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> ViewSequence:
        """Returns the sequence of the views at these positions, in this order. Raises IndexError."""
        rows = [self._position(i) for i in indices]
        return replace(
            self,
            cameras=tuple(self.cameras[i] for i in rows),
            poses=self.poses[rows].reshape(-1, 4, 4),
            frames=tuple(self.frames[i] for i in rows),
            depths=tuple(self.depths[i] for i in rows),
            indices=self.indices[rows],
            stamps_ns=self.stamps_ns[rows],
            photos=tuple(self.photos[i] for i in rows) if self.photos else (),
        )

    def _position(self, key: int) -> int:
        """Returns a position from 0; negative keys count from the end."""
        index = operator.index(key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"View {index} is out of range; {self.path} has {len(self)} views.")
        return index % len(self)

    def _labelled(self, view: View, folder: Path, number: int) -> View:
        labels: dict[str, Any] = read_labels(folder, number)
        for name, array in labels.items():
            self._check_size(f"The label '{name}' of view {number} in {folder}", array, view.camera)
        return replace(view, **labels)

    def _load_image(self, index: int) -> np.ndarray:
        path = self.frames[index]
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            return read_photo(path, max_pixels=MAX_PIXELS) if self.photos else read_image(path)
        return read_video_frame(path, int(self.indices[index]))

    def _oriented(self, depth: np.ndarray, index: int) -> np.ndarray:
        """Turns depth (H, W) of the stored pixels along with a photograph; depth of its upright size is upright."""
        photo = self.photos[index] if self.photos else None
        if photo is None or photo.orientation == 1:
            return depth
        size = (depth.shape[1], depth.shape[0])
        if photo.size != photo.stored_size:
            return turn(depth, photo.orientation) if size == photo.stored_size else depth
        logger.warning(
            "%s is turned by its EXIF orientation (%d), and its size does not tell whether the depth beside it is "
            "turned too; it is used as it is. With intrinsics.json beside the image, both are used as they are stored.",
            *(self.path, photo.orientation),
        )
        return depth

    @staticmethod
    def _check_size(what: Path | str, array: np.ndarray, camera: Camera) -> None:
        height, width = array.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise DatasetError(
                f"{what} is {width}x{height}; {camera.width}x{camera.height} was expected. Colour, depth, labels and "
                "intrinsics must have the same size."
            )
