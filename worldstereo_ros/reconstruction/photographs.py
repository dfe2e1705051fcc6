"""Photographs ready for reconstruction: working copies of bounded size, undistorted if their lens is known.

What shows nothing, shows what another one shows, or is blurred is left out here, with a sentence for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.image_checks import ImageError, depth_to_counts
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.imaging.sharpness import sharpness
from worldstereo_ros.io.files import DatasetError, read_json
from worldstereo_ros.io.images import encode_png, read_depth, read_image
from worldstereo_ros.reconstruction.raw_photographs import PhotographSource, RawPhotograph
from worldstereo_ros.utils.atomic_files import write_bytes, write_json
from worldstereo_ros.utils.errors import InputError

WORKING_SIDE_PX = 1600  # longer side of a working copy; COLMAP finds enough features at this size
MIN_SIDE_PX = 64
LIST_FILE = "photographs.json"

BLACK_MEAN, FLAT_STD = 6.0, 2.0  # grey levels
COPY_LEVELS = 1.0  # mean difference of two thumbnails, in grey levels; neighbours of a slow video differ more
THUMBNAIL_PX = 48
BLURRED, BLURRED_OF_MEDIAN = 2.8, 0.6  # see `imaging.sharpness`; both must hold, so that no soft lens loses its set


@dataclass(frozen=True)
class Photograph:
    """A photograph with its working copy.

    Attributes:
        name: unique name for the user.
        file: working copy, PNG.
        width, height: size of the working copy.
        original_size: (width, height) of the photograph.
        lens: calibration of the photograph itself, with its distortion; None if unknown.
        camera: intrinsics of the working copy, without distortion; None if unknown.
        focal_px: focal length of the working copy in pixels by EXIF; None if unknown.
        world_from_camera: (4, 4) pose, or None.
        depth: 16-bit PNG of measured depth, of the size of the working copy, or None.
        depth_scale: stored values per unit of length.
        stamp_ns: time in nanoseconds, 0 if unknown.
        camera_key: photographs of one key share their intrinsics.
        sharpness: see `imaging.sharpness`.
    """

    name: str
    file: Path
    width: int
    height: int
    original_size: tuple[int, int]
    lens: CameraCalibration | None = None
    camera: Camera | None = None
    focal_px: float | None = None
    world_from_camera: np.ndarray | None = None
    depth: Path | None = None
    depth_scale: float = 1000.0
    stamp_ns: int = 0
    camera_key: str = ""
    sharpness: float = 0.0

    def image(self) -> np.ndarray:
        """Reads the working copy, (H, W, 3) uint8 RGB. Raises ImageError."""
        return read_image(self.file)

    def measured_depth(self) -> np.ndarray | None:
        """Reads measured depth (H, W) float32 in the unit of the poses, 0 = unknown; None if there is none."""
        return None if self.depth is None else read_depth(self.depth, self.depth_scale)


@dataclass(frozen=True)
class Photographs:
    """The photographs of a place, and what is known of all of them.

    Attributes:
        photographs: those that can be used.
        left_out: name -> reason of the others.
        notes: sentences for the user.
        kind, metric, ordered: see `raw_photographs.PhotographSource`.
    """

    photographs: tuple[Photograph, ...]
    left_out: dict[str, str]
    notes: list[str]
    kind: str
    metric: bool
    ordered: bool

    def __len__(self) -> int:
        return len(self.photographs)

    def __iter__(self):
        return iter(self.photographs)

    def __getitem__(self, index: int) -> Photograph:
        return self.photographs[index]


def import_photographs(
    source: PhotographSource,
    folder: Path,
    on_photograph: Callable[[int], None] | None = None,
    *,
    fov: float | None = None,
) -> Photographs:
    """Copies the photographs of a source at working size, and checks each.

    Photographs that an interrupted run copied into the folder are not copied again.

    Args:
        source: an opened source, which is used up.
        folder: where the working copies and their list are written.
        on_photograph: called with the number of photographs that were read.
        fov: horizontal field of view in radians of photographs that do not say theirs; None if it is unknown.

    Raises:
        DatasetError: fewer than two photographs can be used.
    """
    photographs: list[Photograph] = []
    thumbnails: list[np.ndarray] = []
    left_out = source.left_out
    count = 0
    for raw in source.photographs:
        count += 1
        record = folder / f"{count:06d}_read.json"
        reason, copied = _earlier(record, raw.name, folder)
        if copied is not None:
            thumbnail = _thumbnail(copied.image())
        elif not reason:
            try:
                copied, thumbnail = _copy(_with_fov(raw, fov), folder, len(photographs))
                reason = _shows_nothing(thumbnail) or _copy_of(thumbnail, thumbnails, photographs)
            except (ImageError, DatasetError, InputError) as error:
                reason = str(error)
            if reason and copied is not None:
                copied.file.unlink(missing_ok=True)
            entry = None if reason or copied is None else _entry(copied, folder)
            write_json(record, {"name": raw.name, "reason": reason, "photograph": entry})
        if reason or copied is None:
            left_out[raw.name] = reason
            continue
        photographs.append(copied)
        thumbnails.append(thumbnail)
        if on_photograph is not None:
            on_photograph(count)
    kept = _without_blurred(photographs, left_out)
    if len(kept) < 2:
        reasons = " ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise DatasetError(
            f"{len(kept)} of {len(kept) + len(left_out)} photographs can be used; two at least were expected. "
            f"{reasons}".rstrip()
        )
    photos = Photographs(tuple(kept), dict(left_out), list(source.notes), source.kind, source.metric, source.ordered)
    write_json(folder / LIST_FILE, _to_json(photos, folder))
    return photos


def load_photographs(folder: Path) -> Photographs:
    """Reads the list that `import_photographs` wrote. Raises DatasetError."""
    content = read_json(folder / LIST_FILE)
    try:
        photographs = tuple(_from_json(entry, folder) for entry in content["photographs"])
        flags = content["kind"], bool(content["metric"]), bool(content["ordered"])
        return Photographs(photographs, dict(content["left_out"]), list(content["notes"]), *flags)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder / LIST_FILE} is damaged: {error}.") from None


# --- one photograph --------------------------------------------------------------------------------------------------


def _with_fov(raw: RawPhotograph, fov: float | None) -> RawPhotograph:
    if fov is None or raw.calibration is not None or raw.focal_ratio is not None:
        return raw
    width, height = raw.original_size
    return replace(raw, focal_ratio=0.5 * width / float(np.tan(0.5 * fov)) / float(np.hypot(width, height)))


def _copy(raw: RawPhotograph, folder: Path, number: int) -> tuple[Photograph, np.ndarray]:
    """Writes the working copy; returns the photograph and a grey thumbnail."""
    image = raw.load()
    depth = None if raw.load_depth is None else raw.load_depth()
    camera: Camera | None = None
    if raw.calibration is not None:
        calibration = raw.calibration
        if image.shape[:2] != (calibration.camera.height, calibration.camera.width):
            raise InputError(
                f"The photograph is {image.shape[1]}x{image.shape[0]}, and its camera "
                f"{calibration.camera.width}x{calibration.camera.height}."
            )
        if depth is not None and depth.shape != image.shape[:2]:
            depth = cv2.resize(depth, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        image, depth = calibration.undistort(image, depth)
        camera = calibration.undistorted_camera
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(f"The photograph is {width}x{height}; at least {MIN_SIDE_PX} pixels a side were expected.")
    factor = min(1.0, WORKING_SIDE_PX / max(height, width))
    size = round(width * factor), round(height * factor)
    small = resize_image(image, *size)
    file = folder / f"{number:06d}.png"
    write_bytes(file, encode_png(small))
    photograph = Photograph(
        raw.name,
        file,
        *size,
        raw.original_size,
        lens=raw.calibration,
        camera=None if camera is None else camera.resized(*size),
        focal_px=None if raw.focal_ratio is None else raw.focal_ratio * float(np.hypot(*size)),
        world_from_camera=raw.world_from_camera,
        stamp_ns=raw.stamp_ns,
        camera_key=f"{raw.camera_key} {size[0]}x{size[1]}",
        sharpness=round(sharpness(small), 3),
    )
    if depth is not None and (depth > 0).any():
        photograph = _with_depth(photograph, depth, folder / f"{number:06d}_depth.png")
    return photograph, _thumbnail(small)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)


def _earlier(record: Path, name: str, folder: Path) -> tuple[str, Photograph | None]:
    """(why an earlier run left a photograph out, what it copied); ("", None) if it did not come to it."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["name"] != name:
            return "", None
        entry = content["photograph"]
        photograph = None if entry is None else _from_json(entry, folder)
        if photograph is not None and not photograph.file.is_file():
            return "", None
        return content["reason"], photograph
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def _with_depth(photograph: Photograph, depth: np.ndarray, file: Path) -> Photograph:
    """The photograph with its measured depth, stored with sixteen bits over its range."""
    size = photograph.width, photograph.height
    if depth.shape != size[::-1]:
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
    scale = min(10_000.0, 65_000.0 / float(depth.max()))
    write_bytes(file, encode_png(depth_to_counts(depth, scale)))
    return replace(photograph, depth=file, depth_scale=scale)


def _shows_nothing(thumbnail: np.ndarray) -> str:
    if thumbnail.mean() < BLACK_MEAN:
        return f"It is black (mean grey level {thumbnail.mean():.0f} of 255)."
    if thumbnail.std() < FLAT_STD:
        return f"It shows one colour, without anything to recognise (grey levels vary by {thumbnail.std():.1f})."
    return ""


def _copy_of(thumbnail: np.ndarray, others: list[np.ndarray], photographs: list[Photograph]) -> str:
    if not others:
        return ""
    difference = np.abs(np.stack(others) - thumbnail).mean(axis=(1, 2))
    nearest = int(difference.argmin())
    if difference[nearest] >= COPY_LEVELS:
        return ""
    return f"It is the same picture as {photographs[nearest].name}."


def _without_blurred(photographs: list[Photograph], left_out: dict[str, str]) -> list[Photograph]:
    if not photographs:
        return []
    median = float(np.median([photo.sharpness for photo in photographs]))
    kept = []
    for photo in photographs:
        if photo.sharpness < BLURRED and photo.sharpness < BLURRED_OF_MEDIAN * median:
            left_out[photo.name] = (
                f"It is blurred (sharpness {photo.sharpness:.1f}; the others have {median:.1f}). Take it again with a "
                "steady hand or more light."
            )
        else:
            kept.append(photo)
    return kept


# --- the list --------------------------------------------------------------------------------------------------------


def _to_json(photos: Photographs, folder: Path) -> dict[str, Any]:
    entries = [_entry(photo, folder) for photo in photos]
    plain = {"kind": photos.kind, "metric": photos.metric, "ordered": photos.ordered}
    return json.loads(json.dumps({**plain, "left_out": photos.left_out, "notes": photos.notes, "photographs": entries}))


def _entry(photo: Photograph, folder: Path) -> dict[str, Any]:
    entry = {name: value for name, value in vars(photo).items() if value is not None}
    entry["file"] = photo.file.relative_to(folder).as_posix()
    if photo.depth is not None:
        entry["depth"] = photo.depth.relative_to(folder).as_posix()
    if photo.camera is not None:
        entry["camera"] = vars(photo.camera)
    if photo.lens is not None:
        lens = {"coefficients": photo.lens.coefficients.tolist(), "model": photo.lens.model}
        entry["lens"] = {"camera": vars(photo.lens.camera), **lens}
    if photo.world_from_camera is not None:
        entry["world_from_camera"] = photo.world_from_camera.tolist()
    return entry


def _from_json(entry: dict[str, Any], folder: Path) -> Photograph:
    values = dict(entry)
    values["file"] = folder / entry["file"]
    values["original_size"] = tuple(entry["original_size"])
    if "depth" in entry:
        values["depth"] = folder / entry["depth"]
    if "camera" in entry:
        values["camera"] = Camera(**entry["camera"])
    if "lens" in entry:
        lens = entry["lens"]
        values["lens"] = CameraCalibration(
            Camera(**lens["camera"]), np.array(lens["coefficients"], np.float64), str(lens["model"])
        )
    if "world_from_camera" in entry:
        values["world_from_camera"] = np.array(entry["world_from_camera"], np.float64)
    return Photograph(**values)
