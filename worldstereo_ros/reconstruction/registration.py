"""Where the photographs were taken: poses and intrinsics that come along, and those that follow from the pictures.

Poses that come along are used as they are, and checked against the pictures. Photographs without poses are registered
by structure from motion, first with quick settings, then with thorough and with relaxed ones, and every result is
checked (`guards`). Where some photographs have poses and others do not, all are registered together, and a similarity
takes the result to the frame of the poses that came along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.similarity import align_poses, rotation_angles
from worldstereo_ros.reconstruction.features import (
    DEFAULT,
    FAST,
    RELAXED,
    FeatureSettings,
    RegistrationError,
    as_rays,
    choose_pairs,
    extract,
    match,
    read_matches,
    thorough_finds_no_more,
)
from worldstereo_ros.reconstruction.frame_and_unit import normalised, scale_by_depth
from worldstereo_ros.reconstruction.guards import MIN_AGREEMENT, MIN_CHECKED_MATCHES, check_model, epipolar_agreement
from worldstereo_ros.reconstruction.mapping import known_calibration, map_photographs, triangulate
from worldstereo_ros.reconstruction.moving import describe_moving, follows_moving
from worldstereo_ros.reconstruction.neighbours import MIN_RANGE_POINTS
from worldstereo_ros.reconstruction.photographs import Photographs
from worldstereo_ros.reconstruction.pose_precision import (
    PosePrecision,
    describe_precision,
    open_photographs,
    pose_precision,
)
from worldstereo_ros.reconstruction.sparse_model import SparseModel

Progress = Callable[[str, int, int], None]  # (what, done, of)

THOROUGH_FIRST = 30  # photographs up to which the quick settings are skipped: thorough ones take half a minute
MAX_THOROUGH, MAX_RELAXED = 60, 25  # photographs up to which slower settings are tried
MIN_REGISTERED_TO_STOP = 5
ENOUGH = 0.75  # registered share, from which on the slowest settings are not tried
MAX_EXIF_DRIFT = 1.06  # between a focal length that is found and that of EXIF, which is rounded to a millimetre
MAX_HELD_ERROR = 1.03  # of the reprojection error with the focal lengths of EXIF, over that with those found
MAX_CENTRE_ERROR, MAX_ROTATION_ERROR_DEG = 0.1, 5.0  # of poses that came along, after the best similarity


@dataclass(frozen=True)
class Registration:
    """Poses of photographs.

    Attributes:
        model: registered photographs with points.
        left_out: name -> reason of the others.
        notes: sentences for the user.
        poses_from: source, photographs, or both.
        depth_usable: measured depth of the photographs is in the unit of the poses.
        precision: how precisely the photographs determine their poses; None for poses that came along.
    """

    model: SparseModel
    left_out: dict[str, str]
    notes: tuple[str, ...]
    poses_from: str
    depth_usable: bool = True
    precision: PosePrecision | None = None


def register(photos: Photographs, folder: Path, on_progress: Progress | None = None) -> Registration:
    """Finds or checks the poses of photographs.

    Args:
        photos: the photographs.
        folder: for databases and other files of the computation.
        on_progress: called between steps.

    Raises:
        RegistrationError: pycolmap is missing, or no two photographs can be registered in a way that can be trusted.
    """
    progress = on_progress or (lambda what, done, of: None)
    folder.mkdir(parents=True, exist_ok=True)
    posed = [photo.world_from_camera is not None for photo in photos]
    known = all(posed) and all(photo.camera is not None for photo in photos)
    if known:
        return _check_given(photos, folder, progress)
    found, left_out, pixels, database = _estimate(photos, folder, progress)
    notes = list(found.notes)
    given = [row for row, number in enumerate(found.photographs) if posed[number]]
    poses_from, model, depth_usable = "photographs", normalised(found), True
    if given:
        aligned, note = _to_given_frame(found, photos, given)
        notes.append(note)
        if aligned is not None:
            poses_from, model = "both", aligned
    elif any(posed):
        notes.append("None of the photographs with poses could be registered with the others; the frame is a new one.")
    if poses_from == "photographs":
        model, depth_usable, scale_note = scale_by_depth(model, photos, left_out)
        if scale_note:
            notes.append(scale_note)
    precision = pose_precision(model, [photos[int(number)].camera is not None for number in model.photographs])
    notes += describe_precision(precision)
    notes += describe_moving(photos, database, model, pixels)
    return Registration(replace(model, notes=tuple(notes)), left_out, tuple(notes), poses_from, depth_usable, precision)


# --- poses that come along -------------------------------------------------------------------------------------------


def _check_given(photos: Photographs, folder: Path, progress: Progress) -> Registration:
    """Triangulates with the poses that came along; photographs whose pictures contradict them are left out."""
    database = folder / "database.db"
    pixels = _match(photos, database, DEFAULT if len(photos) <= THOROUGH_FIRST else FAST, progress)
    calibrations = [known_calibration(photo.camera) for photo in photos if photo.camera is not None]
    progress("triangulating", 0, 1)
    poses = [photo.world_from_camera for photo in photos]
    model = triangulate(photos, database, folder / "mapping", poses, calibrations)
    fewest = min(np.bincount(model.observed_by, minlength=len(model)), default=0)
    if fewest < MIN_RANGE_POINTS and len(photos) <= MAX_RELAXED:  # wide apart: faint features reach farther
        relaxed = folder / f"{RELAXED.name}.db"
        _match(photos, relaxed, RELAXED, progress)
        denser = triangulate(photos, relaxed, folder / "mapping", poses, calibrations)
        model = denser if len(denser.points) > len(model.points) else model
    rays = as_rays(pixels, dict(enumerate(calibrations)))
    share, checked = epipolar_agreement(model, rays)
    testable = checked >= MIN_CHECKED_MATCHES
    notes: list[str] = []
    left_out: dict[str, str] = {}
    if testable.sum() >= 2 and float(np.median(share[testable])) < MIN_AGREEMENT:
        raise RegistrationError(
            f"The poses that came along contradict the photographs: {np.median(share[testable]):.0%} of the features "
            f"that photographs share fit them (median of {int(testable.sum())} photographs). Check the convention of "
            "the poses (camera to world, OpenCV axes) and the intrinsics; --ignore-poses estimates the poses instead."
        )
    wrong = testable & (share < MIN_AGREEMENT)
    for row in np.flatnonzero(wrong):
        left_out[photos[int(model.photographs[row])].name] = (
            f"The pose that came along contradicts its picture: {share[row]:.0%} of the {checked[row]} features that "
            "it shares with others fit."
        )
    if not testable.any():
        notes.append("The photographs share too few features to check the poses that came along.")
    model = replace(model.subset(np.flatnonzero(~wrong)), metric=photos.metric)
    notes += describe_moving(photos, database, model, pixels)
    return Registration(replace(model, notes=tuple(notes)), left_out, tuple(notes), "source")


def _to_given_frame(found: SparseModel, photos: Photographs, given: list[int]) -> tuple[SparseModel | None, str]:
    """The model in the frame of the poses that came along, and a sentence; None if they do not determine it."""
    reference = np.stack([photos[int(found.photographs[row])].world_from_camera for row in given])  # type: ignore[misc]
    if len(given) < 2:
        return None, (
            "One photograph with a pose is registered; two at least determine the scale of the others, so its pose is "
            "not used."
        )
    similarity = align_poses(found.world_from_camera[given], reference)
    moved = similarity.poses(found.world_from_camera[given])
    centres, size = moved[:, :3, 3] - reference[:, :3, 3], np.ptp(reference[:, :3, 3], axis=0)
    error = float(np.median(np.linalg.norm(centres, axis=1))) / max(float(np.linalg.norm(size)), 1e-12)
    degrees = float(np.degrees(np.median(rotation_angles(moved[:, :3, :3], reference[:, :3, :3]))))
    if error > MAX_CENTRE_ERROR or degrees > MAX_ROTATION_ERROR_DEG:
        return None, (
            f"The poses that came along contradict the photographs (positions by {error:.0%} of their extent, "
            f"rotations by {degrees:.1f} degrees in the median) and are not used; the frame is a new one, and its unit "
            "arbitrary."
        )
    model = found.moved(similarity, metric=photos.metric)
    poses = model.world_from_camera.copy()
    poses[given] = reference
    return replace(model, world_from_camera=poses), (
        f"{len(found) - len(given)} photographs without poses are registered to the {len(given)} with poses, which "
        f"agree within {error:.1%} of their extent and {degrees:.1f} degrees."
    )


# --- poses from the pictures -----------------------------------------------------------------------------------------


def _match(
    photos: Photographs, database: Path, settings: FeatureSettings, progress: Progress, *, shared: bool = True
) -> dict[tuple[int, int], np.ndarray]:
    """Features and verified matches of the photographs."""
    finding = f"finding features ({settings.name})"
    progress(finding, 0, len(photos))
    extract(photos, database, settings, shared_cameras=shared, on_progress=lambda done, of: progress(finding, done, of))
    progress("choosing pairs", 0, 1)
    pairs = choose_pairs(photos, database)
    names = [(photos[i].file.name, photos[j].file.name) for i, j in pairs]
    match(database, names, settings, lambda done, of: progress(f"matching pairs ({settings.name})", done, of))
    return read_matches(photos, database)


def _estimate(
    photos: Photographs, folder: Path, progress: Progress
) -> tuple[SparseModel, dict[str, str], dict[tuple[int, int], np.ndarray], Path]:
    """The best model of several attempts, reasons of what it leaves out by name, the matches, and their database."""
    count, best, used = len(photos), None, folder
    reasons: dict[int, str] = {}
    refusals: list[str] = []
    attempts = [(FAST, True), (DEFAULT, True), (DEFAULT, False), (RELAXED, True)]
    pixels: dict[tuple[int, int], np.ndarray] = {}
    for settings, shared in attempts:
        registered = 0 if best is None else len(best)
        slow = settings is RELAXED or not shared
        if registered == count or (settings is FAST and count <= THOROUGH_FIRST):
            continue
        if settings is not FAST and count > (MAX_RELAXED if slow else MAX_THOROUGH):
            continue
        if slow and registered >= max(MIN_REGISTERED_TO_STOP, ENOUGH * count):
            continue
        if not shared and not _shares_unknown_cameras(photos):
            continue
        fast = folder / f"{FAST.name}.db"
        if settings is DEFAULT and shared and fast.exists() and thorough_finds_no_more(photos, fast):
            continue
        database = folder / f"{settings.name}{'' if shared else '_separate'}.db"
        now = _match(photos, database, settings, progress, shared=shared)
        model, why, refused = _attempt(photos, database, folder / "mapping", settings, now, progress)
        refusals += [refused] if refused else []
        if model is not None and (best is None or len(model) > len(best)):
            best, reasons, pixels, used = model, why, now, database
    if best is None:
        raise RegistrationError(
            f"The {count} photographs cannot be registered to each other. {refusals[-1] if refusals else ''} Take more "
            "photographs with more overlap (each should show half of what the one before shows), of places with "
            "texture, and give the intrinsics if they are known.".replace("  ", " ")
        )
    left_out = {}
    for number in sorted(set(range(count)) - {int(i) for i in best.photographs}):
        left_out[photos[number].name] = reasons.get(number) or _why_unregistered(number, photos, best, pixels)
    return best, left_out, pixels, used


def _shares_unknown_cameras(photos: Photographs) -> bool:
    keys = [photo.camera_key for photo in photos if photo.camera is None and photo.focal_px is None]
    return len(set(keys)) < len(keys)


def _attempt(
    photos: Photographs,
    database: Path,
    folder: Path,
    settings: FeatureSettings,
    pixels: dict[tuple[int, int], np.ndarray],
    progress: Progress,
) -> tuple[SparseModel | None, dict[int, str], str]:
    """Maps once. Returns the largest model that passes the checks (or None), reasons, and why a model was refused."""
    done = [0]

    def on_image() -> None:
        done[0] = min(done[0] + 1, len(photos))
        progress(f"registering ({settings.name})", done[0], len(photos))

    progress(f"registering ({settings.name})", 0, len(photos))
    best, reasons, refused = None, {}, ""
    models = map_photographs(photos, database, folder, settings, on_image)
    if models and (drift := _focal_drift(models[0], photos)):
        done[0] = 0
        held = map_photographs(photos, database, folder, settings, on_image, hold_focal=True)
        if held and _holds_as_well(held[0], models[0]):
            models = held
        else:
            models[0] = replace(models[0], notes=(*models[0].notes, drift))
    for model in models:
        calibrations = {int(n): c for n, c in zip(model.photographs, model.calibrations, strict=True)}
        numbers = [int(number) for number in model.photographs]
        verdict = check_model(
            model,
            as_rays(pixels, calibrations),
            intrinsics_known=[photos[n].camera is not None or photos[n].focal_px is not None for n in numbers],
            exif_focal=[photos[n].focal_px if photos[n].camera is None else None for n in numbers],
        )
        if verdict.refused:
            refused = refused or verdict.refused
        elif best is None or len(verdict.accepted) > len(best):
            accepted, open_reasons, why = open_photographs(
                model.subset(verdict.accepted), [photos[numbers[row]].camera is not None for row in verdict.accepted]
            )
            verdict.reasons.update(open_reasons)
            if why:
                refused = refused or why
            elif best is not None and len(accepted) <= len(best):
                continue
            elif moving := follows_moving(photos, database, accepted, pixels):
                refused = refused or moving
            else:
                best, reasons = accepted, verdict.reasons
    return best, reasons, refused or ("" if best is not None else "No two of them share enough features.")


def _focal_drift(model: SparseModel, photos: Photographs) -> str:
    """Says that a focal length went away from that of EXIF, as it may where the cameras hardly determine it."""
    for row, number in enumerate(model.photographs):
        photo = photos[int(number)]
        if photo.camera is None and photo.focal_px is not None:
            found = model.calibrations[row].camera.fx
            if max(found / photo.focal_px, photo.focal_px / found) > MAX_EXIF_DRIFT:
                return (
                    f"The focal length of {photo.name} is {photo.focal_px:.0f} pixels by its EXIF or --fov, and "
                    f"{found:.0f} by what the photographs show, which is used: it explains them better."
                )
    return ""


def _holds_as_well(held: SparseModel, free: SparseModel) -> bool:
    """Whether the focal lengths of EXIF explain the photographs as well as those that were found."""
    if len(held) < len(free) or not len(held.errors):
        return False
    return float(held.errors.mean()) <= MAX_HELD_ERROR * float(free.errors.mean())


def _why_unregistered(
    number: int, photos: Photographs, model: SparseModel, pixels: dict[tuple[int, int], np.ndarray]
) -> str:
    """Why a photograph is not registered, and what to take next."""
    shared: dict[int, int] = {}
    for (one, other), matches in pixels.items():
        if number in (one, other):
            shared[other if one == number else one] = len(matches)
    registered = {int(i) for i in model.photographs}
    inside = {i: count for i, count in shared.items() if i in registered}
    if inside:
        nearest = max(inside, key=lambda i: inside[i])
        return (
            f"It overlaps the others too little: it shares {inside[nearest]} features with {photos[nearest].name}, "
            "which is next to it. Take one or two photographs between these two."
        )
    if shared:
        nearest = max(shared, key=lambda i: shared[i])
        return (
            f"It belongs to another group: it overlaps {photos[nearest].name}, and neither overlaps the "
            f"{len(model)} photographs that are used. Take photographs that lead from one group to the other."
        )
    blurred = " It is less sharp than the others." if _is_soft(number, photos) else ""
    return f"It shares no features with any other photograph.{blurred} Take more around it, or leave it out."


def _is_soft(number: int, photos: Photographs) -> bool:
    return photos[number].sharpness < 0.7 * float(np.median([photo.sharpness for photo in photos]))
