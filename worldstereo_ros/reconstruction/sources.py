"""What a place is reconstructed from: photographs in a folder, a video, a bag, a COLMAP model, a transforms.json, or a
posed sequence. Each gives raw photographs, one at a time, with whatever is known of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.depth_units import AUTO_UNIT, parse_depth_unit
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.io.colmap_models import ColmapImage, find_colmap_model, read_colmap_model
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DatasetError
from worldstereo_ros.io.images import image_size, read_depth, read_image
from worldstereo_ros.io.nerfstudio import TRANSFORMS_FILE, Transforms, TransformsFrame, read_transforms
from worldstereo_ros.io.photos import read_photo, read_photo_header
from worldstereo_ros.io.results_folder import MARKER_FILE
from worldstereo_ros.io.view_sequence import ViewSequence
from worldstereo_ros.reconstruction.raw_photographs import PhotographSource, RawPhotograph
from worldstereo_ros.reconstruction.recordings import open_bag, open_video
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices

MAX_PHOTO_PIXELS = 64_000_000
DEFAULT_PHOTOGRAPHS = 300
WITH_DEPTH_IMAGES = ("bag", "posed sequence", "nerfstudio")  # kinds of sources
MAX_SEARCH_DEPTH = 3  # folders below the one that is named


def open_source(
    path: Path, *, max_photographs: int | None = None, use_poses: bool = True, bag_options: dict[str, Any] | None = None
) -> PhotographSource:
    """Opens what a place is reconstructed from; the kind is detected from the content.

    Args:
        path: file or folder.
        max_photographs: at most this many are used, spread over the source; None = 300, of a video or a bag 100.
        use_poses: use the poses that come along.
        bag_options: keyword arguments of `io.bags.views.read_views`. Of these `depth_unit` is also for the depth images
            of a posed sequence or a transforms.json.

    Raises:
        DatasetError: the path does not exist, or holds nothing that can be used.
        InputError: `depth_unit` is invalid, or given for a source without depth images.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist.")
    options = bag_options or {}
    source = _open(path, max_photographs, options)
    check_depth_unit(source.kind, options.get("depth_unit", AUTO_UNIT))
    if not use_poses:
        # Poses that are ignored say nothing about the unit either; depth keeps its own.
        with_poses = source.photographs
        source.photographs = (replace(photo, world_from_camera=None) for photo in with_poses)
    return source


def is_bag(path: Path) -> bool:
    """Whether a source is read as a bag."""
    return path.suffix.lower() in (".mcap", ".db3", ".bag") or (path / "metadata.yaml").is_file()


def check_depth_unit(kind: str, depth_unit: str) -> None:
    """Raises InputError if a unit of depth is given for a kind of source whose depth, if any, is in metres."""
    if parse_depth_unit(depth_unit) is not None and kind not in WITH_DEPTH_IMAGES:
        raise InputError(
            "A depth unit is for depth images, which bags, posed sequences and transforms.json have, and this source "
            f"({kind}) has none. Remove --depth-unit."
        )


def _open(path: Path, limit: int | None, bag_options: dict[str, Any]) -> PhotographSource:
    unit = parse_depth_unit(bag_options.get("depth_unit", AUTO_UNIT))
    if is_bag(path):
        return open_bag(path, limit, bag_options)
    if path.name == TRANSFORMS_FILE or (path / TRANSFORMS_FILE).is_file():
        return _open_transforms(path, limit, unit)
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return open_video(path, limit)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise DatasetError(
                f"{path} is one photograph; poses and distances follow from several. Name the folder of the "
                "photographs, or use `worldstereo imagine` for a single one."
            )
        raise DatasetError(
            f"{path} is neither a video nor a bag nor a transforms.json; one of these, or a folder, was expected."
        )
    if (path / MARKER_FILE).is_file():
        raise DatasetError(f"{path} holds results of an earlier run. Name the photographs that it was made from.")
    if (path / "poses.txt").is_file() and (path / "frames").is_dir():
        return _open_posed(path, limit, unit)
    if (model := find_colmap_model(path)) is not None:
        return _open_colmap(path, model, limit)
    videos = [file for file in sorted(path.iterdir()) if file.suffix.lower() in VIDEO_SUFFIXES]
    files = image_files(path)
    if not files and len(videos) == 1:
        return open_video(videos[0], limit)
    return _open_folder(path, files, videos, limit)


def _spread(count: int, limit: int | None, what: str, notes: list[str]) -> list[int]:
    chosen = evenly_spaced_indices(count, limit or DEFAULT_PHOTOGRAPHS)
    if len(chosen) < count:
        notes.append(f"{len(chosen)} of the {count} {what} are used, spread evenly; --photographs N changes how many.")
    return chosen


# --- photographs -----------------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and the folders below, in the order of their names; without hidden ones and depth."""
    found = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        is_depth = file.stem.endswith("_depth") or parts[0] == "depth"
        wanted = file.suffix.lower() in IMAGE_SUFFIXES and not hidden and not is_depth
        if wanted and len(parts) <= MAX_SEARCH_DEPTH and file.is_file():
            found.append(file)
    return found


def _open_folder(path: Path, files: list[Path], videos: list[Path], limit: int | None) -> PhotographSource:
    if len(files) < 2:
        what = f"one image, {files[0].name}" if files else "no image"
        raise DatasetError(
            f"{path} has {what}; distances follow from two photographs at least, and a place from five to hundreds. "
            f"Expected a folder of photographs ({', '.join(IMAGE_SUFFIXES)}), a video, a bag, a COLMAP model, a "
            "transforms.json, or a posed sequence."
        )
    source = PhotographSource("photographs", files)
    if videos:
        source.notes.append(f"{len(videos)} videos in {path.name} are not used, such as {videos[0].name}.")
    chosen = _spread(len(files), limit, "photographs", source.notes)
    source.photographs = read_folder(path, [files[i] for i in chosen], source)
    return source


def read_folder(folder: Path, files: list[Path], source: PhotographSource) -> Iterator[RawPhotograph]:
    """Photographs of a folder, named relative to it; what is wrong with some is noted in their source."""
    turned = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            header = read_photo_header(file)
        except ImageError as error:
            source.left_out[name] = str(error)
            continue
        if header.orientation != 1:
            turned.append(name)
        width, height = header.size
        focal = header.focal_px(width, height)
        ratio = None if focal is None else focal / float(np.hypot(width, height))
        key = f"{width}x{height} {'' if header.focal_35mm is None else format(header.focal_35mm, 'g')}"
        yield RawPhotograph(name, _photo_reader(file), header.size, focal_ratio=ratio, camera_key=key)
    if turned:
        many = f"{len(turned)} photographs are turned upright by their EXIF, such as {turned[0]}."
        source.notes.append(many if len(turned) > 1 else f"{turned[0]} is turned upright by its EXIF.")


def _photo_reader(file: Path) -> Callable[[], np.ndarray]:
    return lambda: read_photo(file, max_pixels=MAX_PHOTO_PIXELS)


def _image_reader(file: Path) -> Callable[[], np.ndarray]:
    return lambda: read_image(file)


def _depth_reader(file: Path | None, scale: float) -> Callable[[], np.ndarray] | None:
    return None if file is None else lambda: read_depth(file, scale)


# --- with poses ------------------------------------------------------------------------------------------------------


def _open_posed(path: Path, limit: int | None, metres_per_count: float | None) -> PhotographSource:
    sequence = open_sequence(path)
    if metres_per_count is not None:
        sequence = replace(sequence, depth_scale=1 / metres_per_count)
    notes: list[str] = []
    chosen = _spread(len(sequence), limit, "frames", notes)
    kept = sequence.subset(chosen)
    source = PhotographSource("posed sequence", list(kept.frames), metric=kept.metric, ordered=True, notes=notes)
    source.files += [path / "poses.txt", path / "intrinsics.json", *(depth for depth in kept.depths if depth)]
    if not kept.metric:
        notes.append(f"The unit of {path.name} is arbitrary, by its intrinsics.json.")
    listed = {file.name for file in sequence.frames}
    others = [] if limit else [file for file in image_files(path / "frames") if file.name not in listed]
    if others:
        source.files += others
        notes.append(f"{len(others)} frames of {path.name} have no pose in poses.txt; they are registered.")

    def photographs() -> Iterator[RawPhotograph]:
        for camera, pose, frame, depth, stamp in zip(
            kept.cameras, kept.poses, kept.frames, kept.depths, kept.stamps_ns, strict=True
        ):
            yield RawPhotograph(
                frame.name,
                _image_reader(frame),
                (camera.width, camera.height),
                CameraCalibration(camera, np.zeros(0), ""),
                world_from_camera=pose,
                load_depth=_depth_reader(depth, kept.depth_scale),
                stamp_ns=int(stamp),
                camera_key="sequence",
            )
        yield from _without_poses(others, kept, source)

    source.photographs = photographs()
    return source


def _without_poses(files: list[Path], sequence: ViewSequence, source: PhotographSource) -> Iterator[RawPhotograph]:
    """Photographs without poses beside a sequence; those of its size were taken with its camera."""
    camera = sequence.camera
    for file in files:
        try:
            size = image_size(file)
        except ImageError as error:
            source.left_out[file.name] = str(error)
            continue
        same = size == (camera.width, camera.height)
        calibration = CameraCalibration(camera, np.zeros(0), "") if same else None
        key = "sequence" if same else f"{size[0]}x{size[1]}"
        depth = sequence.path / "depth" / f"{file.stem}.png"
        load_depth = _depth_reader(depth if depth.is_file() else None, sequence.depth_scale)
        yield RawPhotograph(file.name, _image_reader(file), size, calibration, load_depth=load_depth, camera_key=key)


def _open_colmap(path: Path, model: Path, limit: int | None) -> PhotographSource:
    images = read_colmap_model(model)
    folder = _image_folder(path, model, images)
    notes = [f"Poses and intrinsics are those of the COLMAP model {model}; its unit is arbitrary."]
    kept = [images[i] for i in _spread(len(images), limit, "images", notes)]
    files = [file for file in model.iterdir() if file.suffix in (".bin", ".txt")]
    source = PhotographSource("colmap", [*files, *(folder / image.name for image in kept)], notes=notes)
    source.photographs = _read_colmap(kept, folder, source)
    return source


def _read_colmap(images: list[ColmapImage], folder: Path, source: PhotographSource) -> Iterator[RawPhotograph]:
    for image in images:
        file, calibration = folder / image.name, image.calibration
        try:
            size = image_size(file)
        except ImageError as error:
            source.left_out[image.name] = str(error)
            continue
        if size != (calibration.camera.width, calibration.camera.height):
            resized = calibration.camera.resized(*size)  # coefficients hold for any size
            if abs(resized.fx / calibration.camera.fx / (resized.fy / calibration.camera.fy) - 1) > 0.01:
                source.left_out[image.name] = f"It is {size[0]}x{size[1]}, another shape than the model's camera has."
                continue
            calibration = replace(calibration, camera=resized)
        key = repr((calibration.camera, calibration.coefficients.tolist()))
        yield RawPhotograph(
            image.name, _image_reader(file), size, calibration, None, image.world_from_camera, camera_key=key
        )


def _image_folder(path: Path, model: Path, images: list[ColmapImage]) -> Path:
    """The folder of the images of a model: images/ beside it or above it, as COLMAP's projects have it."""
    tried = []
    for base in dict.fromkeys((path, model, *list(model.parents)[:3])):
        for folder in (base / "images", base):
            tried.append(folder)
            if any((folder / image.name).is_file() for image in images[:5]):
                return folder
    raise DatasetError(
        f"The images of the COLMAP model {model} were not found: {images[0].name} is in none of "
        f"{', '.join(str(folder) for folder in tried)}. Put the folder images/ beside the model."
    )


def _open_transforms(path: Path, limit: int | None, metres_per_count: float | None) -> PhotographSource:
    transforms = read_transforms(path)
    if metres_per_count is not None:
        transforms = replace(transforms, depth_scale=1 / metres_per_count)
    notes: list[str] = []
    if not transforms.metric:
        notes.append("Poses are those of transforms.json, which does not say their unit: it counts as arbitrary.")
    kept = [transforms.frames[i] for i in _spread(len(transforms.frames), limit, "photographs", notes)]
    files = [path / TRANSFORMS_FILE if path.is_dir() else path, *(frame.file for frame in kept)]
    source = PhotographSource("nerfstudio", files, metric=transforms.metric, notes=notes)
    source.left_out.update(dict.fromkeys(transforms.missing, "transforms.json names it, and it does not exist."))
    source.photographs = _read_transforms(transforms, kept, source)
    return source


def _read_transforms(
    transforms: Transforms, frames: list[TransformsFrame], source: PhotographSource
) -> Iterator[RawPhotograph]:
    for frame in frames:
        try:
            size = image_size(frame.file)
        except ImageError as error:
            source.left_out[frame.file.name] = str(error)
            continue
        calibration = transforms.calibration(frame, *size)
        key = f"{size} {None if calibration is None else (calibration.camera, calibration.coefficients.tolist())}"
        yield RawPhotograph(
            frame.file.name,
            _image_reader(frame.file),
            size,
            calibration,
            world_from_camera=frame.world_from_camera,
            load_depth=_depth_reader(frame.depth, transforms.depth_scale),
            camera_key=key,
        )
