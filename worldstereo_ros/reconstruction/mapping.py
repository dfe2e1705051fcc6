"""Structure from motion with pycolmap: incremental mapping, triangulation with known poses, conversion to our model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.io.colmap_models import calibration_from_colmap
from worldstereo_ros.reconstruction.features import (
    SEED,
    FeatureSettings,
    image_ids,
    load_pycolmap,
    open_database,
    read_matches,
    threads,
)
from worldstereo_ros.reconstruction.photographs import Photographs
from worldstereo_ros.reconstruction.restarts import AGREE, ENOUGH, choose_models, explain, spread, starting_photographs
from worldstereo_ros.reconstruction.sparse_model import SparseModel

# More photographs than this are mapped in chunks of at most `CHUNK` that share `CHUNK_OVERLAP`, which ties them.
MAX_AT_ONCE, CHUNK, CHUNK_OVERLAP = 150, 100, 40
MIN_CHUNKED = 0.9  # share of the photographs that the chunks have to register
MIN_MODEL = 3  # photographs of a group that is worth mentioning
# The principal point is refined if this many photographs share a camera, and stays within this share of the size.
MIN_SHARED, MAX_SHIFT = 12, 0.05
MIN_POINTS_TO_REFINE = 1000
MAX_RESTARTED = 60  # photographs up to which the mapper also starts from others than it prefers
MAX_PROBED = 60  # photographs; more determine their focal length
PROBED_FACTORS = (0.9, 1.1)  # of the focal length that was found
MAX_PROBED_ERROR = 1.05  # of the reprojection error with such a focal length, over the least
FUNCTION_TOLERANCE = 1e-6  # relative change of the error at which an adjustment ends


def map_photographs(
    photos: Photographs,
    database: Path,
    folder: Path,
    settings: FeatureSettings,
    on_image: Callable[[], None] | None = None,
    *,
    hold_focal: bool = False,
) -> list[SparseModel]:
    """Registers photographs whose poses are unknown (incremental mapping, Schönberger and Frahm, CVPR 2016).

    Args:
        photos: the photographs.
        database: with features and verified matches.
        folder: for the files of the mapper; emptied.
        settings: with which the features were found; the relaxed ones also relax the mapper.
        on_image: called after each registered photograph.
        hold_focal: keep the focal lengths of EXIF as they are.

    Returns:
        Models of groups of photographs that overlap, the one that explains most first; each in a frame and a unit of
        its own.
    """
    pycolmap = load_pycolmap()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = threads()
    options.random_seed = SEED
    options.min_model_size = MIN_MODEL
    options.extract_colors = True
    options.constant_cameras = _known_cameras(photos, database)
    if hold_focal and all(photo.camera is not None or photo.focal_px is not None for photo in photos):
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = False  # distortion is refined
    elif hold_focal:
        options.constant_cameras |= _known_cameras(photos, database, exif=True)
    if settings.affine:
        options.min_num_matches = settings.min_inliers
        options.mapper.init_min_num_inliers = 25
        options.mapper.init_min_tri_angle = 4.0
        options.mapper.abs_pose_min_num_inliers = 12
        options.mapper.abs_pose_min_inlier_ratio = 0.15
        options.min_model_size = 2
    images = photos[0].file.parent
    found: dict[int, Any] = {}
    if len(photos) > MAX_AT_ONCE:
        chunks = pycolmap.HierarchicalPipelineOptions()
        chunks.incremental_options = options
        chunks.clustering_options.leaf_max_num_images = CHUNK
        chunks.clustering_options.image_overlap = CHUNK_OVERLAP
        chunks.num_workers = 1
        found = pycolmap.hierarchical_mapping(database, images, folder, chunks)
        for one in found.values():  # each chunk was adjusted by itself alone
            _adjust(one, options.constant_cameras, refine_focal=options.ba_refine_focal_length)
    if max((one.num_reg_images() for one in found.values()), default=0) < MIN_CHUNKED * len(photos):
        # Chunks of thin overlap may not be tied; one after the other takes longer and loses fewer.
        one_by_one = pycolmap.incremental_mapping(
            database, images, folder, options, next_image_callback=on_image or (lambda: None)
        )
        found = {**found, **{len(found) + key: one for key, one in one_by_one.items()}}
    models = [one for one in found.values() if one.num_reg_images() >= 2]
    if len(photos) <= MAX_RESTARTED:
        return _best_of_starts(models, photos, database, folder, options, refine=not hold_focal)
    converted = [_finished(one, photos, refine=not hold_focal) for one in models]
    return sorted(converted, key=lambda model: (-len(model), -len(model.points)))


def _best_of_starts(
    models: list[Any], photos: Photographs, database: Path, folder: Path, options: Any, *, refine: bool
) -> list[SparseModel]:
    """The models that explain most matches of those given and of those that other first photographs lead to."""
    pycolmap = load_pycolmap()
    pixels = read_matches(photos, database)
    with open_database(database) as opened:
        ids = image_ids(opened)
    converted = [_converted(one, photos) for one in models]
    totals = [explain(model, pixels).total for model in converted]
    options.multiple_models, options.extract_colors = False, True
    for number in starting_photographs(len(photos)):
        if len(totals) > 1 and max(map(len, converted)) >= ENOUGH * len(photos):
            best, second = sorted(totals)[:-3:-1]
            if second >= AGREE * best:
                break
        options.init_image_id1 = ids[photos[number].file.name]
        again = folder / f"from_{number}"
        again.mkdir()
        for one in pycolmap.incremental_mapping(database, photos[0].file.parent, again, options).values():
            if one.num_reg_images() >= 2:
                models.append(one)
                converted.append(_converted(one, photos))
                totals.append(explain(converted[-1], pixels).total)
    raw = {id(model): one for model, one in zip(converted, models, strict=True)}
    chosen = []
    for model, others in choose_models(converted, pixels):
        positions, degrees = spread(model, others)
        finished = _finished(raw[id(model)], photos, refine=refine)
        chosen.append(replace(finished, other_answers=np.stack([positions, degrees], axis=1)))
    return chosen


def _finished(model: Any, photos: Photographs, *, refine: bool) -> SparseModel:
    refined = _refined(model, photos) if refine else model
    return replace(_converted(refined, photos), notes=_focal_notes(refined, photos))


def _adjust(
    model: Any,
    constant_cameras: set[int] | None = None,
    *,
    refine_focal: bool = True,
    refine_principal_point: bool = False,
) -> None:
    """Adjusts all poses, points and intrinsics of a model, but those of constant cameras (bundle adjustment)."""
    pycolmap = load_pycolmap()
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = refine_focal
    options.refine_principal_point = refine_principal_point
    options.print_summary = False
    options.ceres.solver_options.num_threads = threads()
    options.ceres.solver_options.function_tolerance = FUNCTION_TOLERANCE
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in (constant_cameras or set()) & set(model.cameras):
        config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()


def triangulate(
    photos: Photographs, database: Path, folder: Path, poses: Sequence[np.ndarray | None], cameras: Sequence[Any]
) -> SparseModel:
    """Triangulates the matches of photographs whose poses and intrinsics are known; these stay as they are.

    Args:
        photos: the photographs.
        database: with features and verified matches.
        folder: for the files of the triangulation; emptied.
        poses: (4, 4) world_from_camera of each photograph, None = to be left out.
        cameras: `CameraCalibration` of each photograph, None = to be left out.
    """
    pycolmap = load_pycolmap()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = pycolmap.Reconstruction()
    with open_database(database) as opened:
        images = {image.name: image for image in opened.read_all_images()}
    for i, photo in enumerate(photos):
        pose, calibration = poses[i], cameras[i]
        if pose is None or calibration is None:
            continue
        stored = images[photo.file.name]
        if int(stored.camera_id) not in model.cameras:
            camera = _colmap_camera(pycolmap, calibration)
            camera.camera_id = stored.camera_id
            model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=stored.name, camera_id=stored.camera_id, image_id=stored.image_id)
        matrix = invert_pose(np.asarray(pose, np.float64))[:3]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(matrix))
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = threads()
    options.random_seed = SEED
    options.triangulation.random_seed = SEED
    done = pycolmap.triangulate_points(model, database, photos[0].file.parent, folder, True, options, False)
    return _converted(done, photos)


def _colmap_camera(pycolmap: Any, calibration: CameraCalibration) -> Any:
    """The camera for COLMAP: PINHOLE, or OPENCV if it has distortion."""
    camera, extra = calibration.camera, calibration.coefficients
    values = [camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5]
    name = "PINHOLE"
    if extra.size:
        name, values = "OPENCV", [*values, *extra[:4].tolist()]
    return pycolmap.Camera(model=name, width=camera.width, height=camera.height, params=values)


def _known_cameras(photos: Photographs, database: Path, *, exif: bool = False) -> set[int]:
    """Numbers of the cameras in the database whose intrinsics came along, or whose focal length is in EXIF."""
    names = {photo.file.name for photo in photos if photo.camera is not None or (exif and photo.focal_px is not None)}
    with open_database(database) as opened:
        return {int(image.camera_id) for image in opened.read_all_images() if image.name in names}


def _refined(model: Any, photos: Photographs) -> Any:
    """The model with its principal points refined where many photographs of one camera determine them.

    COLMAP keeps them in the middle. Seven pixels off the middle are half a degree in all poses.
    """
    pycolmap = load_pycolmap()
    free = {photo.file.name for photo in photos if photo.camera is None}
    members: dict[int, int] = {}
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        members[int(image.camera_id)] = members.get(int(image.camera_id), 0) + (image.name in free)
    if not members or min(members.values()) < MIN_SHARED or model.num_points3D() < MIN_POINTS_TO_REFINE:
        return model
    before = model.compute_mean_reprojection_error()
    refined = pycolmap.Reconstruction(model)
    _adjust(refined, refine_principal_point=True)
    for camera in refined.cameras.values():
        shift = (
            abs(camera.principal_point_x / camera.width - 0.5),
            abs(camera.principal_point_y / camera.height - 0.5),
        )
        if max(shift) > MAX_SHIFT:
            return model
    return refined if refined.compute_mean_reprojection_error() < before else model


def _focal_notes(model: Any, photos: Photographs) -> tuple[str, ...]:
    """Says where the photographs hardly determine their focal length: others explain them as well."""
    free = {photo.file.name for photo in photos if photo.camera is None and photo.focal_px is None}
    cameras = {int(model.images[i].camera_id) for i in model.reg_image_ids() if model.images[i].name in free}
    if not cameras or model.num_reg_images() > MAX_PROBED or not model.num_points3D():
        return ()
    least, fitting = model.compute_mean_reprojection_error(), []
    for factor in PROBED_FACTORS:
        probe = load_pycolmap().Reconstruction(model)
        for camera_id in cameras:
            camera = probe.cameras[camera_id]
            camera.params = [camera.params[0] * factor, *list(camera.params)[1:]]
        _adjust(probe, set(probe.cameras) - cameras, refine_focal=False)
        if probe.compute_mean_reprojection_error() < MAX_PROBED_ERROR * least:
            fitting.append(factor)
    if not fitting:
        return ()
    camera = model.cameras[min(cameras)]
    degrees = [
        2 * np.degrees(np.arctan(0.5 * camera.width / (camera.params[0] * factor))) for factor in (1.0, *fitting)
    ]
    return (
        f"The photographs hardly determine their field of view: {min(degrees):.0f} and {max(degrees):.0f} degrees "
        "explain them about as well, so shapes may be stretched along the line of sight. Name it with --fov, keep the "
        "EXIF of the photographs, or take more from other sides.",
    )


def _converted(model: Any, photos: Photographs) -> SparseModel:
    """COLMAP's reconstruction in our conventions."""
    number = {photo.file.name: i for i, photo in enumerate(photos)}
    registered = sorted(
        (number[model.images[image_id].name], image_id)
        for image_id in model.reg_image_ids()
        if model.images[image_id].has_pose
    )
    point_ids = sorted(model.point3D_ids())
    position = {point_id: row for row, point_id in enumerate(point_ids)}
    points = [model.points3D[point_id] for point_id in point_ids]
    poses, calibrations, observed_by, observed_point, pixels = [], [], [], [], []
    for row, (_, image_id) in enumerate(registered):
        image = model.images[image_id]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        poses.append(pose)
        camera = model.cameras[image.camera_id]
        calibrations.append(
            calibration_from_colmap(camera.model_name, camera.width, camera.height, [float(p) for p in camera.params])
        )
        for point in image.get_observation_points2D():
            observed_by.append(row)
            observed_point.append(position[point.point3D_id])
            pixels.append(point.xy)
    return SparseModel(
        np.array([i for i, _ in registered], np.int64),
        tuple(calibrations),
        np.array(poses, np.float64).reshape(-1, 4, 4),
        np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        np.array([point.error for point in points], np.float64),
        np.array(observed_by, np.int64),
        np.array(observed_point, np.int64),
        np.array(pixels, np.float64).reshape(-1, 2) - 0.5,
    )


def known_calibration(camera: Camera) -> CameraCalibration:
    """The calibration of a camera without distortion."""
    return CameraCalibration(camera, np.zeros(0), "")
