"""The photographs that a protocol gives, as a user would have them: their poses known or not, and no depth.

Poses come with them, or follow from them alone (`reconstruction.registration`); depth follows from them
(`reconstruction.plane_sweep`), with holes filled by the depth network and labelled as estimated. Where the photographs
overlap too little for either, the network's depth is used alone, in the unit of what could be triangulated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimators import DepthEstimator, estimate_depth
from worldstereo_ros.geometry.similarity import align_poses, pose_errors, rotation_angles
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.reconstruction.dense import Frames, PlaceViews, estimate_depths, fill_holes
from worldstereo_ros.reconstruction.features import RegistrationError
from worldstereo_ros.reconstruction.mapping import known_calibration
from worldstereo_ros.reconstruction.photographs import Photographs, import_photographs
from worldstereo_ros.reconstruction.registration import Registration, register
from worldstereo_ros.reconstruction.segment_captures import order_captures
from worldstereo_ros.reconstruction.sources import PhotographSource, RawPhotograph
from worldstereo_ros.utils.errors import InputError

GIVEN, ESTIMATED = "given", "estimated"
POSES = (GIVEN, ESTIMATED)
SWEEP, SENSOR = "sweep", "sensor"
DEPTH_SOURCES = (SWEEP, SENSOR)
MIN_SCALE_POINTS = 10  # triangulated points of a photograph that give the unit of its estimated depth
MAX_LEFT_OUT_NAMED = 3


@dataclass(frozen=True)
class GivenPhotographs:
    """Photographs with depth, in the frame and unit of the true poses.

    Attributes:
        views: the photographs that could be used, in an order that does not depend on that of the input.
        ate_percent: absolute trajectory error of estimated poses after the best similarity, in per cent of the diameter
            of the true ones; None for given poses.
        rotation_degrees: mean angle of their rotations to the true ones after the similarity that fits rotations and
            centres; None for given poses.
        notes: sentences about what was left out or estimated.
    """

    views: list[View]
    ate_percent: float | None = None
    rotation_degrees: float | None = None
    notes: list[str] = field(default_factory=list)


def reconstruct_given(
    given: Sequence[View],
    folder: Path,
    *,
    poses: str = GIVEN,
    depth_source: str = SWEEP,
    estimator: DepthEstimator | None = None,
    max_pixels: int,
    device: str = "cpu",
) -> GivenPhotographs:
    """Finds poses and depth of the photographs.

    The result does not depend on the order of the photographs.

    Args:
        given: the photographs with true poses and, if there is any, true depth.
        folder: for files of the computation; must be empty.
        poses: given, or estimated from the photographs and their intrinsics alone.
        depth_source: sweep, or sensor: the depth of `given`.
        estimator: fills holes; None = they stay unknown.
        max_pixels: larger photographs are reduced to this for depth and afterwards.
        device: torch device.

    Raises:
        RegistrationError, DatasetError, InputError: the poses could not be estimated, or there is no depth at all.
    """
    if poses not in POSES or depth_source not in DEPTH_SOURCES:
        raise InputError(
            f"Poses are '{poses}' and the source of depth is '{depth_source}'; one of {', '.join(POSES)} and one of "
            f"{', '.join(DEPTH_SOURCES)} were expected."
        )
    digests = [hashlib.sha256(view.image.tobytes()).digest() for view in given]
    order = sorted(range(len(given)), key=digests.__getitem__)
    names = {f"Photograph {index + 1}": given[index] for index in order}
    photos = import_photographs(_source(names, poses, depth_source), folder / "photographs")
    registration = register(photos, folder / "registration")
    ate = degrees = None
    if poses == ESTIMATED:
        registration, ate, degrees = _in_true_frame(registration, photos, names)
    frames = Frames(photos, registration, max_pixels)
    for name in ("depth", "holes"):
        (folder / name).mkdir()
    estimate_depths(frames, folder / "depth", device=device)
    fill_holes(frames, folder / "depth", folder / "holes", estimator)
    views = list(PlaceViews(frames, folder / "holes"))
    left_out = {**photos.left_out, **registration.left_out}
    registered = {frames.name(row) for row in range(len(frames))}
    rows = list(range(len(frames)))
    if poses == GIVEN:  # a photograph with a pose counts, also if it shares no feature with the others
        for name in [name for name in names if name not in registered and name not in left_out]:
            size = frames.view(0).camera if views else names[name].camera
            view = names[name].resized(size.width, size.height)
            views.append(replace(view, depth=np.zeros(view.image.shape[:2], np.float32)))
            rows.append(-1)
    notes = [f"{name} is left out. {reason}" for name, reason in list(left_out.items())[:MAX_LEFT_OUT_NAMED]]
    if len(left_out) > MAX_LEFT_OUT_NAMED:
        notes.append(f"{len(left_out)} of {len(names)} photographs are left out in all.")
    if poses == ESTIMATED:  # such as how far they may be off
        notes += registration.notes
    views, bare = _without_gaps(views, rows, frames, estimator)
    if bare:
        notes.append(
            f"{bare} of {len(views)} photographs overlap the others too little to triangulate depth; theirs is "
            "estimated."
        )
    if not any((view.depth > 0).any() for view in views if view.depth is not None):
        why = "there is no depth model" if estimator is None else "estimated depth has no scale in their arbitrary unit"
        raise InputError(f"No photograph has depth: they overlap too little to triangulate, and {why}.")
    return GivenPhotographs([views[index] for index in order_captures(views)], ate, degrees, notes)


def _source(names: dict[str, View], poses: str, depth_source: str) -> PhotographSource:
    def raw(name: str, view: View) -> RawPhotograph:
        camera = view.camera
        depth = view.with_finite_depth().depth
        return RawPhotograph(
            name,
            lambda: view.image,
            (camera.width, camera.height),
            known_calibration(camera),
            world_from_camera=view.world_from_camera if poses == GIVEN else None,
            load_depth=(lambda: depth) if depth_source == SENSOR and depth is not None else None,
            camera_key=str(camera),
        )

    metric = all(view.metric for view in names.values())
    photographs = (raw(name, view) for name, view in names.items())
    return PhotographSource("posed sequence", [], photographs, metric=metric)


def _in_true_frame(
    registration: Registration, photos: Photographs, names: dict[str, View]
) -> tuple[Registration, float, float]:
    """The registration in the true frame, and its errors.

    The error of positions is that after the similarity that fits the centres best, as usual. Where these are nearly on
    a line, as of three photographs or of a walk, that leaves the rotation about it loose, so the frame follows from the
    rotations, too, and the error of rotations is that in this frame.
    """
    model = registration.model
    true = [names[photos[int(number)].name] for number in model.photographs]
    true_poses = np.stack([view.world_from_camera for view in true])
    errors = pose_errors(model.world_from_camera, true_poses)
    if not math.isfinite(errors.ate_percent):
        raise InputError("The true poses of the photographs are all at one place, so errors have no unit.")
    moved = model.moved(align_poses(model.world_from_camera, true_poses), metric=true[0].metric)
    angles = rotation_angles(moved.world_from_camera[:, :3, :3], true_poses[:, :3, :3])
    # Measured depth is in the unit of the true poses, which is that of the model now.
    return (
        replace(registration, model=moved, depth_usable=True),
        errors.ate_percent,
        float(np.degrees(angles).mean()),
    )


def _without_gaps(
    views: list[View], rows: list[int], frames: Frames, estimator: DepthEstimator | None
) -> tuple[list[View], int]:
    """The views, those without depth with estimated depth; and how many these are."""
    bare = [index for index, view in enumerate(views) if view.depth is None or not (view.depth > 0).any()]
    if estimator is None or not bare:
        return views, len(bare)
    shapes: dict[int, np.ndarray] = {}
    for index in bare:
        try:
            shapes[index] = estimate_depth(estimator, views[index].image, views[index].camera).depth
        except DepthError:  # nothing but sky
            continue
    scales = {index: _scale_by_points(shape, rows[index], frames) for index, shape in shapes.items()}
    known = [scale for scale in scales.values() if scale is not None]
    known += [ratio for index, view in enumerate(views) if index not in bare and (ratio := _ratio(view, estimator))]
    out = list(views)
    for index, shape in shapes.items():
        scale = scales[index]
        if scale is None and known:
            scale = float(np.median(known))
        if scale is None and views[index].metric:
            scale = 1.0
        if scale is not None:
            depth = (shape * scale).astype(np.float32)
            out[index] = replace(views[index], depth=depth, estimated=depth > 0, depth_confidence=None)
    return out, len(bare)


def _scale_by_points(shape: np.ndarray, row: int, frames: Frames) -> float | None:
    """Factor from estimated depth to that of the points that were triangulated in a photograph; None if too few."""
    if row < 0:
        return None
    model, photo = frames.registration.model, frames.photos[int(frames.registration.model.photographs[row])]
    factor = np.array([shape.shape[1] / photo.width, shape.shape[0] / photo.height])
    x, y = np.floor((model.pixels[model.observed_by == row] + 0.5) * factor).astype(np.int64).T
    depth = model.depths_of(row)
    inside = (x >= 0) & (y >= 0) & (x < shape.shape[1]) & (y < shape.shape[0]) & (depth > 0)
    estimated = shape[y[inside], x[inside]]
    usable = estimated > 0
    if usable.sum() < MIN_SCALE_POINTS:
        return None
    return float(np.median(depth[inside][usable] / estimated[usable]))


def _ratio(view: View, estimator: DepthEstimator) -> float | None:
    """Confirmed over estimated depth of a photograph."""
    assert view.depth is not None
    confirmed = (view.depth > 0) & ~view.estimated_mask
    try:
        estimated = estimate_depth(estimator, view.image, view.camera).depth
    except DepthError:
        return None
    both = confirmed & (estimated > 0)
    return float(np.median(view.depth[both] / estimated[both])) if both.sum() >= MIN_SCALE_POINTS else None


FAILURES = (RegistrationError, DatasetError, InputError)
