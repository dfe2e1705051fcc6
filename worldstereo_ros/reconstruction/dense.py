"""Depth of all registered photographs: measured, triangulated and confirmed, or estimated where neither is there.

What of it counts as *observed*: depth of a sensor, and depth that the plane sweep triangulated and at least two other
photographs confirm; of up to five photographs, one, where it continues over a surface of some size. Such a distance is
a measurement, as that of a stereo camera is: it follows from rays of cameras that saw the place, and no model filled it
in. Its unit is that of the poses. All other depth is *estimated*: holes, which the depth network fills with its shape,
scaled to the confirmed pixels around, except where a plane of confirmed pixels continues (`plane_continuation`) and
where it cannot be true (`free_space`); and everything that a network of `geometry_models` gives.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from worldstereo_ros.depth.alignment import MIN_KNOWN_PX, DepthError, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator, estimate_depth
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.photos import reduced_size
from worldstereo_ros.reconstruction.free_space import bridges, seen_through
from worldstereo_ros.reconstruction.geometry_models import GeometryModel, estimate_geometry
from worldstereo_ros.reconstruction.neighbours import find_neighbours, pair_scores
from worldstereo_ros.reconstruction.photographs import Photographs
from worldstereo_ros.reconstruction.plane_continuation import continue_planes, find_planes
from worldstereo_ros.reconstruction.plane_sweep import SweepSettings, SweepView, cross_check, drop_small_regions, sweep
from worldstereo_ros.reconstruction.registration import Registration
from worldstereo_ros.reconstruction.sgbm import match_pairs
from worldstereo_ros.utils.atomic_files import atomic_file

DEFAULT_PIXELS = 130_000  # 270x480: a photograph takes a second
NEIGHBOURS = 4
FEW_PHOTOGRAPHS = 5  # up to this many, one view that confirms suffices
# There, depth has to continue over this share of the image. Of three photographs 30 degrees apart, a third of what one
# other confirmed was off by more than 5 %, and a hundredth of what also continues.
MIN_SURFACE = 1 / 500
MAX_CHECKED = 16  # other views that may confirm a depth: those that share most points
MAX_LOOKING_THROUGH = 32  # other views that may contradict an estimated depth
MAX_SAME_PLANES = 4  # other views whose observed points show the planes of a photograph, too
MAX_NETWORK_PHOTOGRAPHS = 64  # at once; more do not fit on a GPU of 24 GB
KEPT_IMAGES, KEPT_DEPTHS = 48, 96  # that are held in memory
MAX_FRAME_BYTES = 400 * 10**6  # of images that are held in memory at their small size; the others are read again

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Frames:
    """The registered photographs at the size that depth is computed at, undistorted.

    Attributes:
        photos: all photographs.
        registration: their poses.
        max_pixels: larger photographs are reduced to this.
        size: (width, height) instead, for all; None = by `max_pixels`.
    """

    photos: Photographs
    registration: Registration
    max_pixels: int = DEFAULT_PIXELS
    size: tuple[int, int] | None = None
    _held: dict[int, View] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.registration.model)

    def name(self, row: int) -> str:
        """Name of the photograph of a row of the model."""
        return self.photos[int(self.registration.model.photographs[row])].name

    def view(self, row: int, *, with_depth: bool = False) -> View:
        """The photograph as a view; with measured depth if there is some and it is asked for."""
        model = self.registration.model
        photo = self.photos[int(model.photographs[row])]
        if with_depth and photo.depth is not None and self.registration.depth_usable:
            return self._read(row, photo.measured_depth())
        if row in self._held:
            return self._held[row]
        view = self._read(row, None)
        # The first that fit are held, not the last: photographs are read in turn, many times.
        if sum(held.image.nbytes for held in self._held.values()) + view.image.nbytes <= MAX_FRAME_BYTES:
            self._held[row] = view
        return view

    def _read(self, row: int, measured: np.ndarray | None) -> View:
        model = self.registration.model
        photo, calibration = self.photos[int(model.photographs[row])], model.calibrations[row]
        image, depth = calibration.undistort(photo.image(), measured)
        camera = calibration.undistorted_camera
        pose, stamp = model.world_from_camera[row], photo.stamp_ns
        view = View(image, camera, pose, depth, stamp_ns=stamp, metric=model.metric)
        return view.resized(*(self.size or reduced_size((camera.width, camera.height), self.max_pixels)))


def estimate_depths(
    frames: Frames,
    folder: Path,
    *,
    geometry: str = "sweep",
    network: GeometryModel | None = None,
    device: str = "cpu",
    settings: SweepSettings | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Computes the depth of all photographs: first each by itself (raw_N.npy), then what others confirm (depth_N.npz).

    Files that are there are kept, so that a run that was interrupted resumes.

    Args:
        frames: the photographs.
        folder: where the depth is written.
        geometry: sweep, or fast (SGBM).
        network: gives the depth instead; then all of it is estimated.
        device: torch device of the sweep.
        settings: of the sweep.
        on_progress: called with the number of photographs that are done, and of all.
    """
    progress = on_progress or (lambda done, of: None)
    if network is not None:
        _network_depths(frames, folder, network, progress)
        return
    count, model = len(frames), frames.registration.model
    neighbours = find_neighbours(model, NEIGHBOURS)

    @lru_cache(maxsize=KEPT_IMAGES)
    def sweep_view(row: int) -> SweepView:
        return SweepView.of(frames.view(row))

    for row in range(count):
        file = folder / f"raw_{row:06d}.npy"
        if not file.is_file():
            depth = _raw_depth(frames, row, neighbours[row], sweep_view, geometry, device, settings or SweepSettings())
            _write_array(file, depth)
        progress(row + 1, 2 * count)

    @lru_cache(maxsize=KEPT_DEPTHS)
    def raw(row: int) -> np.ndarray:
        return _read_array(folder / f"raw_{row:06d}.npy")

    scores = pair_scores(model)
    needed = 1 if count <= FEW_PHOTOGRAPHS else 2
    for row in range(count):
        file = folder / f"depth_{row:06d}.npy"
        if not file.is_file():
            measured = frames.view(row, with_depth=True).depth
            if measured is not None and (measured > 0).any():
                depth = measured.astype(np.float32)
            else:
                order = np.argsort(-scores[row], kind="stable")[:MAX_CHECKED]
                others = [(raw(int(j)), sweep_view(int(j))) for j in order if scores[row, j] > 0]
                depth, _ = cross_check(raw(row), sweep_view(row), others, needed=needed)
                if count <= FEW_PHOTOGRAPHS:
                    depth = drop_small_regions(depth, round(MIN_SURFACE * depth.size))
            _write_array(file, depth)
        progress(count + row + 1, 2 * count)


def _raw_depth(frames, row, neighbourhood, sweep_view, geometry, device, settings) -> np.ndarray:
    """(H, W) float32 depth of one photograph by itself, or measured; zeros where neither can be had."""
    measured = frames.view(row, with_depth=True).depth
    if measured is not None and (measured > 0).any():
        return measured.astype(np.float32)
    view = sweep_view(row)
    if not neighbourhood.rows or neighbourhood.far <= neighbourhood.near:
        return np.zeros(view.grey.shape, np.float32)
    others = [sweep_view(other) for other in neighbourhood.rows]
    if geometry == "fast":
        same = [other for other in others if other.grey.shape == view.grey.shape]
        if not same:
            return np.zeros(view.grey.shape, np.float32)
        return match_pairs(view, same, neighbourhood.near, neighbourhood.far)
    return sweep(view, others, neighbourhood.near, neighbourhood.far, settings, device)[0]


def _network_depths(frames: Frames, folder: Path, network: GeometryModel, progress: Progress) -> None:
    """Depth by a network in groups of photographs; each group is aligned to the poses by itself."""
    count = len(frames)
    poses = frames.registration.model.world_from_camera
    for first in range(0, count, MAX_NETWORK_PHOTOGRAPHS):
        rows = list(range(first, min(first + MAX_NETWORK_PHOTOGRAPHS, count)))
        files = [folder / f"depth_{row:06d}.npy" for row in rows]
        if not all(file.is_file() for file in files):
            images = [frames.view(row).image for row in rows]
            for file, depth in zip(files, estimate_geometry(network, images, poses[rows]), strict=True):
                _write_array(file, depth)
        progress(rows[-1] + 1, count)


def fill_holes(
    frames: Frames,
    depths: Path,
    folder: Path,
    estimator: DepthEstimator | None,
    *,
    estimated: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Writes the final depth of each photograph with its labels (view_N.npz); holes get the estimator's depth.

    Args:
        frames: the photographs.
        depths: folder of `estimate_depths`.
        folder: where the depth is written.
        estimator: depth estimator for holes; None = they stay unknown.
        estimated: all depth in `depths` is that of a network.
        on_progress: see `estimate_depths`.

    Returns:
        Names of photographs whose holes could not be filled, for lack of confirmed pixels.
    """
    bare = []

    @lru_cache(maxsize=KEPT_DEPTHS)
    def read(row: int) -> np.ndarray:
        return _read_array(depths / f"depth_{row:06d}.npy")

    scores = pair_scores(frames.registration.model)
    for row in range(len(frames)):
        file = folder / f"view_{row:06d}.npz"
        if not file.is_file():
            known = read(row)
            depth, confidence = known, np.zeros(known.shape, np.float32)
            mask = np.full(known.shape, estimated) & (known > 0)
            if estimator is not None and (known > 0).sum() >= MIN_KNOWN_PX:
                depth, confidence = _filled(frames.view(row), known, estimator)
                mask |= (known <= 0) & (depth > 0)
                if not estimated:
                    order = [int(j) for j in np.argsort(-scores[row], kind="stable")[:MAX_LOOKING_THROUGH] if j != row]
                    same = [row, *(other for other in order[:MAX_SAME_PLANES] if scores[row, other] > 0)]
                    planes = find_planes([(frames.view(other), read(other)) for other in same])
                    depth, continued = continue_planes(frames.view(row), known, depth, planes)
                    confidence = np.where(continued > 0, continued, confidence)
                    others = ((frames.view(other), read(other)) for other in order)
                    wrong = bridges(depth, mask) | seen_through(replace(frames.view(row), depth=depth), mask, others)
                    depth, confidence, mask = np.where(wrong, 0, depth), np.where(wrong, 0, confidence), mask & ~wrong
            with atomic_file(file) as out:
                np.savez(out, depth=depth, estimated=mask, confidence=(confidence * 255).astype(np.uint8))
        with np.load(file, allow_pickle=False) as stored:
            if estimator is not None and not stored["estimated"].any() and not (stored["depth"] > 0).all():
                bare.append(frames.name(row))
        if on_progress is not None:
            on_progress(row + 1, len(frames))
    return bare


def _filled(view: View, known: np.ndarray, estimator: DepthEstimator) -> tuple[np.ndarray, np.ndarray]:
    """Depth with filled holes, and the estimator's confidence in 0..1; sky, which has no depth, stays unknown."""
    try:
        estimate = estimate_depth(estimator, view.image, view.camera)
    except DepthError:  # such as an image that is all sky to the network
        return known, np.zeros(known.shape, np.float32)
    completed = np.where(estimate.depth > 0, complete_depth(known, estimate.depth), known)
    confidence = np.zeros(known.shape, np.float32) if estimate.confidence is None else estimate.confidence
    return completed.astype(np.float32), confidence


@dataclass(frozen=True)
class PlaceViews(Sequence[View]):
    """The views of a reconstruction with their depth, loaded on access.

    Attributes:
        frames: the photographs.
        folder: of `fill_holes`.
    """

    frames: Frames
    folder: Path

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, row: int) -> View: ...
    @overload
    def __getitem__(self, row: slice) -> list[View]: ...
    def __getitem__(self, row: int | slice) -> View | list[View]:
        """Loads a view, or those of a slice. Raises IndexError, DatasetError."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"View {row} is out of range; there are {len(self)}.")
        depth, estimated, levels = self._stored(row)
        confidence = np.where(estimated, levels.astype(np.float32) / 255, np.float32(1)) * (depth > 0)
        view = self.frames.view(row)
        if not estimated.any():
            return replace(view, depth=depth)
        return replace(view, depth=depth, estimated=estimated, depth_confidence=confidence.astype(np.float32))

    def shares(self) -> tuple[float, float]:
        """Shares of all pixels whose depth is observed, and estimated, as the mean over the photographs."""
        both = [(((depth > 0) & ~mask).mean(), mask.mean()) for depth, mask, _ in map(self._stored, range(len(self)))]
        observed, estimated = np.mean(both, axis=0)
        return float(observed), float(estimated)

    def _stored(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Depth, estimated mask and levels of the confidence of a photograph. Raises DatasetError."""
        file = self.folder / f"view_{row:06d}.npz"
        try:
            with np.load(file, allow_pickle=False) as stored:
                return stored["depth"], stored["estimated"], stored["confidence"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{file} is damaged: {error}.") from None


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is damaged: {error}.") from None
