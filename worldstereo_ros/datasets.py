"""Opens what people have on disk as a sequence of views: see docs/data.md for the layouts.

`open_sequence` looks at a path and says what it is; views are loaded when asked for. Rosbags: `bags.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from worldstereo_ros.files import DatasetError, list_files, read_json, read_prompt, read_rows, read_video, video_size
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imagery import ImageError, image_size, read_depth, read_image
from worldstereo_ros.published import Trajectory, camera_from_published, poses_from_published, read_trajectory

__all__ = ["DatasetError", "Sequence", "Trajectory", "open_image", "open_posed", "open_sequence", "open_video"]

ASSUMED_FOV = np.radians(60.0)  # along the longer side, where nothing says what the camera was
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIPS = (".mp4", ".mov", ".mkv", ".avi", ".webm")


@dataclass(frozen=True)
class Sequence:
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
    def __getitem__(self, key: slice) -> Sequence: ...
    def __getitem__(self, key: int | slice) -> View | Sequence:
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

    def subset(self, indices: Iterable[int]) -> Sequence:
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
        if path.suffix.lower() not in CLIPS:
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


def open_sequence(path: str | Path) -> Sequence:
    """Opens whatever `path` is: a posed sequence, a published WorldStereo example, a picture, a clip.

    Raises:
        DatasetError: nothing is there, it is none of these, or its files disagree.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"There is nothing at {path}.")
    try:
        if path.is_file():
            if path.suffix.lower() in PICTURES:
                return open_image(path)
            if path.suffix.lower() in CLIPS:
                return open_video(path)
        if path.suffix.lower() in (".mcap", ".db3") or (path / "metadata.yaml").is_file():
            raise DatasetError(f"{path} is a recording: name its topics (`worldstereo imagine --bag ...`).")
        if path.is_file():
            raise DatasetError(f"{path} is no picture ({', '.join(PICTURES)}) and no clip ({', '.join(CLIPS)}).")
        if (path / "pano_bank").is_dir():
            return _open_panorama_bank(path)
        if (path / "image.png").is_file() and ((path / "camera.json").is_file() or (path / "renders").is_dir()):
            return _open_example(path)
        if (path / "poses.txt").is_file():
            return open_posed(path)
        if (path / "frames").is_dir() or any(p.suffix.lower() in CLIPS for p in path.iterdir()):
            return open_video(path)
        for name in ("image.png", "image.jpg"):
            if (path / name).is_file():
                return open_image(path / name)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    raise DatasetError(
        f"{path} is no data set that is known. Expected frames/ with poses.txt and intrinsics.json, a WorldStereo "
        "example (image.png with camera.json or renders/, or pano_bank/), a picture, or a clip."
    )


# --- posed sequences -------------------------------------------------------------------------------------------------


def open_posed(path: str | Path) -> Sequence:
    """A folder with `frames/`, `poses.txt`, `intrinsics.json` and perhaps `depth/` and `timestamps.txt`.

    Raises:
        DatasetError: a file is missing or cannot be understood (the line is named), or they disagree.
    """
    path = Path(path)
    camera, about = _read_intrinsics(path / "intrinsics.json")
    indices, poses = _read_poses(path / "poses.txt")
    pictures, depths = _numbered(path / "frames", PICTURES), _numbered(path / "depth", (".png",))
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
    return Sequence(
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


def _read_intrinsics(path: Path) -> tuple[Camera, dict]:
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


# --- pictures and clips ----------------------------------------------------------------------------------------------


def _assumed_camera(width: int, height: int) -> Camera:
    focal = float(0.5 * max(width, height) / np.tan(0.5 * ASSUMED_FOV))
    return Camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))


def _unposed(path: Path, kind: str, frames: list[Path], size: tuple[int, int], folder: Path) -> Sequence:
    """A sequence without poses; the intrinsics from `folder`/intrinsics.json, or assumed."""
    known = (folder / "intrinsics.json").is_file()
    camera = _read_intrinsics(folder / "intrinsics.json")[0] if known else _assumed_camera(*size)
    count = len(frames)
    return Sequence(
        path=path,
        kind=kind,
        cameras=(camera,) * count,
        poses=np.tile(np.eye(4), (count, 1, 1)),
        frames=tuple(frames),
        depths=(None,) * count,
        indices=np.arange(count, dtype=np.int64),
        stamps_ns=np.zeros(count, dtype=np.int64),
        posed=False,
        camera_known=known,
        prompt=read_prompt(folder / "prompt.json"),
    )


def open_image(
    image: str | Path, depth: str | Path | None = None, *, camera: Camera | None = None, depth_scale: float = 1000.0
) -> Sequence:
    """One picture, with depth where given or where `NAME_depth.png` (of image.png also depth.png) lies beside it.

    Args:
        image: picture file. Its camera is at the origin of the world.
        depth: 16-bit PNG of the same size.
        camera: intrinsics; else `intrinsics.json` beside the picture; else 60 degrees are assumed.
        depth_scale: a stored depth value divided by it is metres.
    """
    image = Path(image)
    try:
        size = image_size(image)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    sequence = _unposed(image, "image", [image], size, image.parent)
    beside = [image.with_name(f"{image.stem}_depth.png")] + [image.with_name("depth.png")] * (image.stem == "image")
    depth = Path(depth) if depth is not None else next((p for p in beside if p.is_file()), None)
    if depth is not None and not depth.is_file():
        raise DatasetError(f"There is no depth image {depth}.")
    sequence = replace(sequence, depths=(depth,), depth_scale=depth_scale, metric=depth is not None)
    return sequence if camera is None else replace(sequence, cameras=(camera,), camera_known=True)


def open_video(path: str | Path) -> Sequence:
    """A clip, or a folder with `frames/` or one clip: no poses, no depth."""
    path = Path(path)
    if path.is_dir():
        frames = list_files(path / "frames", PICTURES)
        if frames:
            return _unposed(path, "video", frames, image_size(frames[0]), path)
        clips = list_files(path, CLIPS)
        if len(clips) != 1:
            raise DatasetError(f"{path} has {len(clips)} clips and no pictures in frames/; one clip was expected.")
        clip, folder = clips[0], path
    else:
        clip, folder = path, path.parent
    width, height, count, rate = video_size(clip)
    sequence = _unposed(path, "video", [clip] * count, (width, height), folder)
    return replace(sequence, stamps_ns=np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64))


# --- published WorldStereo examples ----------------------------------------------------------------------------------


def _open_example(path: Path) -> Sequence:
    """image.png with camera.json (one path) or with renders/PATH/camera.json (several, with rendered clips)."""
    image, prompt = path / "image.png", read_prompt(path / "prompt.json")
    size = image_size(image)
    alone = (path / "camera.json").is_file()
    folders = [path] if alone else sorted(file.parent for file in path.glob("renders/*/camera.json"))
    if not folders:
        raise DatasetError(f"{path / 'renders'} has no folder with a camera.json.")
    paths = {folder.name: read_trajectory(folder, size, prompt=prompt) for folder in folders}
    first = next(iter(paths.values()))
    return Sequence(
        path=path,
        kind="worldstereo image" if alone else "worldstereo reconstruction",
        cameras=(first.camera,),
        poses=first.world_from_camera[:1],  # the picture is what the first camera sees
        frames=(image,),
        depths=(None,),
        indices=np.zeros(1, dtype=np.int64),
        stamps_ns=np.zeros(1, dtype=np.int64),
        prompt=prompt,
        trajectories=paths,
    )


def _open_panorama_bank(path: Path) -> Sequence:
    """pano_bank/images/*.png with pano_bank/cameras.json, and VIEW/PATH/camera.json with VIEW/start_frame.png."""
    bank = path / "pano_bank"
    cameras = read_json(bank / "cameras.json")
    images = list_files(bank / "images", PICTURES)
    if sorted(cameras) != [image.stem for image in images] or not images:
        raise DatasetError(f"{bank} has {len(images)} pictures and {len(cameras)} cameras; one each was expected.")
    poses, views = [], []
    for image in images:
        what, entry, size = f"view {image.stem} of {bank / 'cameras.json'}", cameras[image.stem], image_size(image)
        if not isinstance(entry, dict) or not {"extrinsic", "intrinsic"} <= set(entry):
            raise DatasetError(f"The {what} lacks `extrinsic` or `intrinsic`.")
        poses.append(poses_from_published(entry["extrinsic"], what)[0])
        views.append(camera_from_published(entry["intrinsic"], size, size, what))
    paths = {}
    for file in sorted(path.glob("*/*/camera.json")):
        start, name = file.parents[1] / "start_frame.png", f"{file.parents[1].name}/{file.parent.name}"
        known = start.is_file()
        size = image_size(start) if known else (views[0].width, views[0].height)
        paths[name] = replace(read_trajectory(file.parent, size, name=name), start_frame=start if known else None)
    return Sequence(
        path=path,
        kind="worldstereo panorama",
        cameras=tuple(views),
        poses=np.stack(poses),
        frames=tuple(images),
        depths=(None,) * len(images),
        indices=np.arange(len(images), dtype=np.int64),
        stamps_ns=np.zeros(len(images), dtype=np.int64),
        trajectories=paths,
        prompt=next((t.prompt for t in paths.values() if t.prompt), ""),
    )
