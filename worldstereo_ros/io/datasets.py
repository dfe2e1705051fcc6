"""Opens images, videos, posed sequences and WorldStereo examples as a `ViewSequence`.

`open_sequence` detects the format. Bags are read by `io.bags.views`.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.image_checks import MAX_PIXELS, ImageError
from worldstereo_ros.io.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DatasetError, list_files, read_json, read_prompt
from worldstereo_ros.io.images import image_size
from worldstereo_ros.io.photos import PhotoHeader, read_photo_header, reduced_size
from worldstereo_ros.io.posed_sequences import open_posed, read_intrinsics
from worldstereo_ros.io.results_folder import MARKER_FILE
from worldstereo_ros.io.video import video_size
from worldstereo_ros.io.view_sequence import ViewSequence
from worldstereo_ros.io.worldstereo_examples import (
    Trajectory,
    camera_from_intrinsic,
    poses_from_extrinsic,
    read_trajectory,
)
from worldstereo_ros.utils.file_kinds import explain_unreadable, identify_file

__all__ = ["DatasetError", "Trajectory", "ViewSequence", "open_image", "open_posed", "open_sequence", "open_video"]

_IMAGE_KINDS = ("png", "jpeg", "webp", "tiff", "bmp")  # of `utils.file_kinds`
_OTHER_FILES = {
    ".wsmap": "It is a saved map: `worldstereo view` shows it. What `worldstereo imagine` made it from is in observed/ "
    "beside it.",
    ".ply": "A point cloud is no source; `worldstereo view` shows it.",
    ".pcd": "A point cloud is no source; `worldstereo view` shows it.",
}
ASSUMED_FOV_RAD = np.radians(60.0)  # along the longer side, for images without intrinsics


def open_sequence(path: str | Path) -> ViewSequence:
    """Opens a posed sequence, a WorldStereo example, an image or a video.

    Args:
        path: file or folder; the format is detected from its content.

    Raises:
        DatasetError: the path does not exist, its format is unknown, or its files contradict each other.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist.")
    try:
        if path.is_file():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                return open_image(path)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                return open_video(path)
        if path.suffix.lower() in (".mcap", ".db3") or (path / "metadata.yaml").is_file():
            raise DatasetError(f"{path} is a bag; open it with `worldstereo imagine --bag ...`.")
        if path.is_file():
            with contextlib.suppress(OSError):  # said below
                if identify_file(path).name in _IMAGE_KINDS:  # its name does not say so
                    return open_image(path)
            raise DatasetError(
                f"{path} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)}). "
                f"{_OTHER_FILES.get(path.suffix.lower()) or explain_unreadable(path)}".rstrip()
            )
        if (path / "pano_bank").is_dir():
            return _open_panorama_bank(path)
        if (path / "image.png").is_file() and ((path / "camera.json").is_file() or (path / "renders").is_dir()):
            return _open_example(path)
        if (path / "poses.txt").is_file():
            return open_posed(path)
        if (path / MARKER_FILE).is_file():
            observed = path / "observed"
            name = f", such as {observed}" if (observed / "poses.txt").is_file() else ""
            raise DatasetError(
                f"{path} holds results: what its images show was imagined, not observed. Name a recording{name}."
            )
        if (path / "frames").is_dir() or any(p.suffix.lower() in VIDEO_SUFFIXES for p in path.iterdir()):
            return open_video(path)
        for name in ("image.png", "image.jpg"):
            if (path / name).is_file():
                return open_image(path / name)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    if images := list_files(path, IMAGE_SUFFIXES):
        raise DatasetError(
            f"{path} holds images, such as {images[0].name}, and nothing that says where they were taken. Name one of "
            "them; or put them into its folder frames/, with poses.txt and intrinsics.json beside it."
        )
    raise DatasetError(
        f"{path} is not a known dataset. Expected frames/ with poses.txt and intrinsics.json, a WorldStereo example "
        "(image.png with camera.json or renders/, or pano_bank/), an image, or a video."
    )


# --- images and videos -----------------------------------------------------------------------------------------------


def _assumed_camera(width: int, height: int, focal: float | None = None) -> Camera:
    """A camera with a centred principal point; without a focal length in pixels, of the assumed field of view."""
    if focal is None:
        focal = float(0.5 * max(width, height) / np.tan(0.5 * ASSUMED_FOV_RAD))
    return Camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))


def _unposed(
    path: Path, kind: str, frames: list[Path], folder: Path, video_size: tuple[int, int] | None = None
) -> ViewSequence:
    """Builds a sequence without poses; intrinsics come from `folder`/intrinsics.json or are assumed.

    Intrinsics refer to the stored pixels of a photograph, unless their size is that of the upright image only. Frames
    without intrinsics may differ in size and orientation; a damaged one stands in its place until it is loaded.
    """
    count = len(frames)
    photos = tuple(_header(frame) for frame in frames) if video_size is None else ()
    first = next((i for i, photo in enumerate(photos) if photo is not None), 0)
    whole = photos[first] if photos else None
    if photos and whole is None:
        read_photo_header(frames[0])  # says what is wrong with it
    known = (folder / "intrinsics.json").is_file()
    if known:
        cameras = (read_intrinsics(folder / "intrinsics.json")[0],) * count
        size = (cameras[0].width, cameras[0].height)
        if whole is not None and (whole.stored_size == whole.size or whole.size != size):
            image_size(frames[first])  # limits the size, which cannot be reduced
            photos = ()
    elif video_size is not None:
        cameras = (_assumed_camera(*video_size),) * count
    else:
        cameras = tuple(_photo_camera(header) for photo in photos if (header := photo or whole) is not None)
    return ViewSequence(
        path=path,
        kind=kind,
        cameras=cameras,
        poses=np.tile(np.eye(4), (count, 1, 1)),
        frames=tuple(frames),
        depths=(None,) * count,
        indices=np.arange(count, dtype=np.int64),
        stamps_ns=np.zeros(count, dtype=np.int64),
        posed=False,
        camera_known=known,
        photos=photos,
        prompt=read_prompt(folder / "prompt.json"),
    )


def _header(photo: Path) -> PhotoHeader | None:
    """The header of a photograph; None if it is damaged."""
    try:
        return read_photo_header(photo)
    except ImageError:
        return None


def _photo_camera(photo: PhotoHeader) -> Camera:
    """The camera of a photograph without intrinsics, at the size that it is read at."""
    size = reduced_size(photo.size, MAX_PIXELS)
    return _assumed_camera(*size, photo.focal_px(*size))


def open_image(
    image: str | Path,
    depth: str | Path | None = None,
    *,
    camera: Camera | None = None,
    depth_scale: float | None = None,
) -> ViewSequence:
    """Opens an image as a sequence of one view at the world origin.

    Args:
        image: image file.
        depth: 16-bit PNG of the same size; None = `NAME_depth.png` (for image.png also depth.png) beside the image, if
            it exists.
        camera: intrinsics of the stored pixels; None = `intrinsics.json` beside the image, else the focal length in its
            EXIF, else an assumed field of view of 60 degrees. Without intrinsics the image is turned by its EXIF
            orientation, and reduced if it has more than `MAX_PIXELS` pixels.
        depth_scale: stored depth values per metre; None = that of `intrinsics.json` beside the image, else 1000.

    Raises:
        DatasetError: a file is missing or invalid.
    """
    image = Path(image)
    try:
        sequence = _unposed(image, "image", [image], image.parent)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    beside = [image.with_name(f"{image.stem}_depth.png")] + [image.with_name("depth.png")] * (image.stem == "image")
    depth = Path(depth) if depth is not None else next((p for p in beside if p.is_file()), None)
    if depth is not None and not depth.is_file():
        raise DatasetError(f"The depth image {depth} does not exist.")
    scale, metric = _depth_unit(sequence, image.parent) if depth_scale is None else (depth_scale, True)
    sequence = replace(sequence, depths=(depth,), depth_scale=scale, metric=depth is not None and metric)
    return sequence if camera is None else replace(sequence, cameras=(camera,), camera_known=True, photos=())


def open_video(path: str | Path) -> ViewSequence:
    """Opens a video file, or a folder with `frames/` (and perhaps `depth/`) or one video file, without poses.

    Raises:
        DatasetError: there is no video, more than one, or the file is invalid.
    """
    path = Path(path)
    if path.is_dir():
        frames = list_files(path / "frames", IMAGE_SUFFIXES)
        if frames:
            return _with_depth(_unposed(path, "video", frames, path), path)
        clips = list_files(path, VIDEO_SUFFIXES)
        if len(clips) != 1:
            raise DatasetError(f"{path} has {len(clips)} videos and no images in frames/; one video was expected.")
        clip, folder = clips[0], path
    else:
        clip, folder = path, path.parent
    width, height, count, rate = video_size(clip)
    sequence = _unposed(path, "video", [clip] * count, folder, (width, height))
    return replace(sequence, stamps_ns=np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64))


def _with_depth(sequence: ViewSequence, path: Path) -> ViewSequence:
    """The sequence with the depth images in `path`/depth, which have the names of its frames."""
    files = {file.stem: file for file in list_files(path / "depth", (".png",))}
    depths = tuple(files.get(frame.stem) for frame in sequence.frames)
    if not any(depths):
        return sequence
    scale, metric = _depth_unit(sequence, path)
    return replace(sequence, depths=depths, depth_scale=scale, metric=metric)


def _depth_unit(sequence: ViewSequence, folder: Path) -> tuple[float, bool]:
    """(stored values per unit of length, whether that unit is the metre) by intrinsics.json, else millimetres."""
    if not sequence.camera_known:
        return 1000.0, True
    content = read_intrinsics(folder / "intrinsics.json")[1]
    return float(content.get("depth_scale", 1000.0)), content.get("metric", True)


# --- WorldStereo examples --------------------------------------------------------------------------------------------


def _open_example(path: Path) -> ViewSequence:
    """Opens image.png with camera.json (one path) or renders/PATH/camera.json (several paths with rendered clips)."""
    image, prompt = path / "image.png", read_prompt(path / "prompt.json")
    size = image_size(image)
    single_path = (path / "camera.json").is_file()
    folders = [path] if single_path else sorted(file.parent for file in path.glob("renders/*/camera.json"))
    if not folders:
        raise DatasetError(f"{path / 'renders'} has no folder with a camera.json.")
    paths = {folder.name: read_trajectory(folder, size, prompt=prompt) for folder in folders}
    first = next(iter(paths.values()))
    return ViewSequence(
        path=path,
        kind="worldstereo image" if single_path else "worldstereo reconstruction",
        cameras=(first.camera,),
        poses=first.world_from_camera[:1],  # the image is taken from the first pose
        frames=(image,),
        depths=(None,),
        indices=np.zeros(1, dtype=np.int64),
        stamps_ns=np.zeros(1, dtype=np.int64),
        prompt=prompt,
        trajectories=paths,
    )


def _open_panorama_bank(path: Path) -> ViewSequence:
    """Opens pano_bank/images/*.png with pano_bank/cameras.json, and paths VIEW/PATH/camera.json."""
    bank = path / "pano_bank"
    entries = read_json(bank / "cameras.json")
    images = list_files(bank / "images", IMAGE_SUFFIXES)
    if sorted(entries) != [image.stem for image in images] or not images:
        raise DatasetError(
            f"{bank} has {len(images)} images and {len(entries)} cameras; one camera per image was expected."
        )
    poses, cameras = [], []
    for image in images:
        what, entry, size = f"view {image.stem} of {bank / 'cameras.json'}", entries[image.stem], image_size(image)
        if not isinstance(entry, dict) or not {"extrinsic", "intrinsic"} <= set(entry):
            raise DatasetError(f"The {what} has no `extrinsic` or no `intrinsic`.")
        poses.append(poses_from_extrinsic(entry["extrinsic"], what)[0])
        cameras.append(camera_from_intrinsic(entry["intrinsic"], size, size, what))
    paths = {}
    for file in sorted(path.glob("*/*/camera.json")):
        start, name = file.parents[1] / "start_frame.png", f"{file.parents[1].name}/{file.parent.name}"
        has_start = start.is_file()
        size = image_size(start) if has_start else (cameras[0].width, cameras[0].height)
        paths[name] = replace(read_trajectory(file.parent, size, name=name), start_frame=start if has_start else None)
    return ViewSequence(
        path=path,
        kind="worldstereo panorama",
        cameras=tuple(cameras),
        poses=np.stack(poses),
        frames=tuple(images),
        depths=(None,) * len(images),
        indices=np.arange(len(images), dtype=np.int64),
        stamps_ns=np.zeros(len(images), dtype=np.int64),
        trajectories=paths,
        prompt=next((t.prompt for t in paths.values() if t.prompt), ""),
    )
