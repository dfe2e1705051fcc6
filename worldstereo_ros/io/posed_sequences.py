"""Posed RGB-D sequences: a folder of frames, depth, poses and intrinsics, read and written."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    DatasetError,
    list_files,
    read_json,
    read_prompt,
    read_rows,
)
from worldstereo_ros.io.images import image_size, read_depth, read_image, write_image
from worldstereo_ros.io.video import read_video
from worldstereo_ros.io.worldstereo_examples import Trajectory
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class ViewSequence:
    """Views on disk, loaded one at a time.

    `sequence[i]` is a View, `sequence[2:20:3]` and `sequence.subset([...])` are sequences of fewer views.

    Attributes:
        path: where it lies.
        kind: posed, image, video, worldstereo image, worldstereo reconstruction, worldstereo panorama.
        cameras: one a view.
        poses: (N, 4, 4) float64 world_from_camera, OpenCV axes; identities where `posed` is False.
        frames: one picture file a view (of a clip: the clip's file; `indices` says which frame).
        depths: one depth file a view, None where a view has none.
        indices: (N,) int64, the number of each view in its source.
        stamps_ns: (N,) int64, time of each view in nanoseconds; 0 where nothing says it.
        depth_scale: a stored depth value divided by it is metres.
        metric: the unit of the translations is the metre.
        posed: the poses are known.
        camera_known: the intrinsics are known; where not, 60 degrees along the longer side are assumed.
        prompt: a sentence about the place, or empty.
        trajectories: paths to imagine along that come with the data, by name.
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
    prompt: str = ""
    trajectories: dict[str, Trajectory] = field(default_factory=dict)

    @property
    def camera(self) -> Camera:
        """Intrinsics of the first view (of all, in every layout but panorama banks made elsewhere)."""
        return self.cameras[0]

    @property
    def has_depth(self) -> bool:
        """At least one view has depth."""
        return any(depth is not None for depth in self.depths)

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, key: int) -> View: ...
    @overload
    def __getitem__(self, key: slice) -> ViewSequence: ...
    def __getitem__(self, key: int | slice) -> View | ViewSequence:
        """The view `key` (from 0, negative from the end), or the sequence of a slice.

        Raises:
            IndexError: no such view.
            DatasetError: its files are missing, damaged, or of another size than the intrinsics say.
        """
        if isinstance(key, slice):
            return self.subset(range(*key.indices(len(self))))
        index = self._row(key)
        camera, depth = self.cameras[index], None
        try:
            image = self._frame(index)
            self._check(self.frames[index], image, camera)
            if (file := self.depths[index]) is not None:
                depth = read_depth(file, self.depth_scale)
                self._check(file, depth, camera)
        except ImageError as error:
            raise DatasetError(str(error)) from error
        return View(image, camera, self.poses[index], depth, stamp_ns=int(self.stamps_ns[index]))

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> ViewSequence:
        """The views at these positions (0 .. len - 1), in this order. Raises IndexError."""
        rows = [self._row(i) for i in indices]
        return replace(
            self,
            cameras=tuple(self.cameras[i] for i in rows),
            poses=self.poses[rows].reshape(-1, 4, 4),
            frames=tuple(self.frames[i] for i in rows),
            depths=tuple(self.depths[i] for i in rows),
            indices=self.indices[rows],
            stamps_ns=self.stamps_ns[rows],
        )

    def _row(self, key: int) -> int:
        index = operator.index(key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"View {index} was asked for; {self.path} has {len(self)}.")
        return index % len(self)

    def _frame(self, index: int) -> np.ndarray:
        path = self.frames[index]
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            return read_image(path)
        for frame in read_video(path, start=int(self.indices[index])):
            return frame
        raise DatasetError(f"The clip {path} ends before frame {self.indices[index]}.")

    @staticmethod
    def _check(path: Path, array: np.ndarray, camera: Camera) -> None:
        height, width = array.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise DatasetError(
                f"{path} is {width}x{height}; the intrinsics are for {camera.width}x{camera.height}. "
                "Colour, depth and intrinsics must speak of the same pixels."
            )


def open_posed(path: str | Path) -> ViewSequence:
    """A folder with `frames/`, `poses.txt`, `intrinsics.json` and perhaps `depth/` and `timestamps.txt`.

    Raises:
        DatasetError: a file is missing or cannot be understood (the line is named), or they disagree.
    """
    path = Path(path)
    camera, about = read_intrinsics(path / "intrinsics.json")
    indices, poses = _read_poses(path / "poses.txt")
    pictures, depths = _numbered(path / "frames", IMAGE_SUFFIXES), _numbered(path / "depth", (".png",))
    missing = [int(i) for i in indices if int(i) not in pictures]
    if missing:
        raise DatasetError(
            f"{path / 'poses.txt'} has {len(indices)} poses, but {len(missing)} of them have no picture in "
            f"{path / 'frames'}; the first is {missing[0]:06d}."
        )
    frames = tuple(pictures[int(i)] for i in indices)
    size = image_size(frames[0])
    if size != (camera.width, camera.height):
        raise DatasetError(f"{frames[0]} is {size[0]}x{size[1]}; intrinsics.json says {camera.width}x{camera.height}.")
    if about.get("has_depth") is True and not any(int(i) in depths for i in indices):
        raise DatasetError(f"intrinsics.json says there is depth; {path / 'depth'} has none of it.")
    return ViewSequence(
        path=path,
        kind="posed",
        cameras=(camera,) * len(indices),
        poses=poses,
        frames=frames,
        depths=tuple(depths.get(int(i)) for i in indices),
        indices=indices,
        stamps_ns=_read_stamps(path / "timestamps.txt", indices),
        depth_scale=float(about.get("depth_scale", 1000.0)),
        metric=bool(about.get("metric", True)),
        prompt=read_prompt(path / "prompt.json"),
    )


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    return {int(p.stem): p for p in list_files(folder, suffixes) if p.stem.isdigit()}


def read_intrinsics(path: Path) -> tuple[Camera, dict]:
    """(camera, the whole JSON object) of an intrinsics.json; raises DatasetError."""
    content = read_json(path)
    keys = ("width", "height", "fx", "fy", "cx", "cy")
    wrong = [k for k in keys if not isinstance(content.get(k), int | float) or isinstance(content.get(k), bool)]
    if wrong:
        raise DatasetError(f"{path} lacks numbers for {', '.join(wrong)}; expected are {', '.join(keys)}.")
    scale = content.get("depth_scale", 1000.0)
    if not isinstance(scale, int | float) or not scale > 0:
        raise DatasetError(f"{path} has depth_scale {scale!r}; a positive number was expected (1000: millimetres).")
    try:
        return Camera(int(content["width"]), int(content["height"]), *(float(content[k]) for k in keys[2:])), content
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{path}: {error}") from None


def _read_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """((N,) int64 indices, (N, 4, 4) world_from_camera) of lines `index tx ty tz qx qy qz qw`."""
    indices: list[int] = []
    poses: list[np.ndarray] = []
    seen: set[int] = set()
    for where, values in read_rows(path, "index tx ty tz qx qy qz qw"):
        index = int(values[0])
        if index in seen:
            raise DatasetError(f"{where} repeats the index {index}.")
        seen.add(index)
        try:
            poses.append(pose_from_quaternion(values[1:4].tolist(), values[4:8].tolist()))
        except ValueError as error:
            raise DatasetError(f"{where}: {error}") from None
        indices.append(index)
    if not poses:
        raise DatasetError(f"{path} has no pose.")
    return np.array(indices, dtype=np.int64), np.stack(poses)


def _read_stamps(path: Path, indices: np.ndarray) -> np.ndarray:
    """(N,) int64 nanoseconds of lines `index seconds`; zeros where the file or a line is missing."""
    if not path.is_file():
        return np.zeros(len(indices), dtype=np.int64)
    stamps = {int(values[0]): round(values[1] * 1e9) for _, values in read_rows(path, "index seconds")}
    return np.array([stamps.get(int(i), 0) for i in indices], dtype=np.int64)


def write_sequence(folder: Path, views: Sequence[View]) -> None:
    """Writes views in the posed-sequence layout that `datasets.open_sequence` reads.

    frames/*.png, depth/*.png (uint16 millimetres, 0 = unknown), poses.txt (index, translation, quaternion x y z w,
    camera to world), intrinsics.json; for imagined views also observed/*.png (255 = observed),
    confidence/*.png (255 = 1) where it is known, and conditioning/*.png. All views must share one camera.
    """
    camera = views[0].camera
    if any(view.camera != camera for view in views):
        raise InputError("The views have different cameras; a posed sequence has one. Resize them first.")
    lines = ["# index tx ty tz qx qy qz qw   (camera-to-world, OpenCV axes: x right, y down, z forward)"]
    for index, view in enumerate(views):
        name = f"{index:06d}.png"
        _write(folder / "frames" / name, view.image)
        if view.depth is not None:
            _write(folder / "depth" / name, np.clip(np.round(view.depth * 1000), 0, 65535).astype(np.uint16))
        if isinstance(view, ImaginedView):
            _write(folder / "observed" / name, view.observed_mask.astype(np.uint8) * 255)
            if view.confidence is not None:
                _write(folder / "confidence" / name, np.rint(view.confidence * 255).astype(np.uint8))
            if view.conditioning is not None:
                _write(folder / "conditioning" / name, view.conditioning)
        translation, quaternion = quaternion_from_pose(view.world_from_camera)
        lines.append(f"{index} " + " ".join(f"{number:.9f}" for number in (*translation, *quaternion)))
    (folder / "poses.txt").write_text("\n".join(lines) + "\n")
    intrinsics = {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    has_depth = any(view.depth is not None for view in views)
    intrinsics |= {"depth_scale": 1000.0, "has_depth": has_depth, "metric": True}
    (folder / "intrinsics.json").write_text(json.dumps(intrinsics, indent=1))


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        write_image(path, image)
    elif not cv2.imwrite(str(path), image):
        raise OSError(f"The picture could not be written to {path}.")
