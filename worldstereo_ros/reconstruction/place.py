"""From photographs to a place: the stages of `worldstereo reconstruct`, each of which a later run can continue from.

photographs -> registration -> depth -> holes -> fusion -> mesh, splats -> files
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.depth_units import AUTO_UNIT
from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.io.colmap_export import write_colmap_model
from worldstereo_ros.io.colmap_models import ColmapImage
from worldstereo_ros.io.files import read_json
from worldstereo_ros.io.meshes import write_mesh
from worldstereo_ros.io.point_clouds import write_point_cloud
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.results_folder import ResultsFolder
from worldstereo_ros.io.splats import write_splats
from worldstereo_ros.memory.archive import save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS, Frames, PlaceViews, estimate_depths, fill_holes
from worldstereo_ros.reconstruction.features import load_pycolmap
from worldstereo_ros.reconstruction.fusion import fuse
from worldstereo_ros.reconstruction.geometry_models import load_geometry_model, parse_geometry
from worldstereo_ros.reconstruction.map_source import join_photographs, open_all
from worldstereo_ros.reconstruction.meshing import mesh_from_views
from worldstereo_ros.reconstruction.photographs import Photographs, import_photographs, load_photographs
from worldstereo_ros.reconstruction.pose_precision import PosePrecision
from worldstereo_ros.reconstruction.raw_photographs import GivenPhotographs
from worldstereo_ros.reconstruction.registration import Registration, register
from worldstereo_ros.reconstruction.sparse_model import SparseModel
from worldstereo_ros.reconstruction.splats import SplatSettings, optimise_splats, splats_from_cloud
from worldstereo_ros.reconstruction.stages import STAGES_FOLDER, Stages, file_stamps, fingerprint
from worldstereo_ros.utils.atomic_files import write_json
from worldstereo_ros.utils.errors import InputError

MAP_FILE, CLOUD_FILE, MESH_FILE, SPLATS_FILE = "world.wsmap", "cloud.ply", "mesh.glb", "splats.ply"
COLMAP_FOLDER, VIEWS_FOLDER, FIGURES_FILE = "colmap", "observed", "figures.json"
PLACE_NAMES = (MAP_FILE, CLOUD_FILE, MESH_FILE, SPLATS_FILE, COLMAP_FOLDER, VIEWS_FOLDER, FIGURES_FILE)
SWEEP, FAST = "sweep", "fast"
MIN_MESH_VIEWS = 2

Progress = Callable[[str, str, int, int], None]  # (stage, what, done, of)


@dataclass(frozen=True)
class PlaceSettings:
    """Settings of a reconstruction.

    Attributes:
        max_photographs: at most this many are used; None = see `sources.open_source`.
        use_poses: use the poses that come along.
        fov: horizontal field of view in radians of photographs that do not say theirs.
        max_pixels: size of the depth images; larger photographs are reduced.
        size: (width, height) instead.
        geometry: sweep, fast (SGBM), pi3:PATH or vggt:PATH.
        depth_model: depth estimator that fills holes, see `depth.estimators.load_depth_estimator`; none = no holes are
            filled.
        device: torch device.
        mesh: make a mesh.
        splats: make Gaussian splats.
        splat_seconds: how long they are fitted to the photographs; 0 = not at all.
        bag_options: see `sources.open_source`.
        photographs: files or folders of further photographs without poses, which are registered to the source.
    """

    max_photographs: int | None = None
    use_poses: bool = True
    fov: float | None = None
    max_pixels: int = DEFAULT_PIXELS
    size: tuple[int, int] | None = None
    geometry: str = SWEEP
    depth_model: str = ""
    device: str = "cpu"
    mesh: bool = True
    splats: bool = True
    splat_seconds: float = 240.0
    bag_options: dict[str, Any] = field(default_factory=dict)
    photographs: tuple[str, ...] = ()


@dataclass
class Place:
    """A reconstructed place.

    Attributes:
        photos: the photographs.
        registration: where they were taken.
        views: registered photographs with depth.
        cloud, bank: the memories.
        left_out: name -> reason, of all photographs that were not used.
        notes: sentences for the user.
        figures: what figures.json holds.
    """

    photos: Photographs
    registration: Registration
    views: PlaceViews
    cloud: CloudMemory
    bank: ViewBank
    left_out: dict[str, str]
    notes: list[str]
    figures: dict[str, Any]


def reconstruct(
    source: Path,
    out: Path,
    settings: PlaceSettings,
    on_progress: Progress | None = None,
    *,
    given: GivenPhotographs | None = None,
) -> Place:
    """Reconstructs a place from photographs and writes it into a folder.

    Args:
        source: see `map_source.open_all`.
        out: folder for the results; what an interrupted run computed is in stages/ there, and is used again.
        settings: of the reconstruction.
        on_progress: called as on_progress(stage, what, done, of).
        given: photographs of the source that are open already, such as with poses of point maps.

    Raises:
        InputError: a setting is invalid, the folder holds something else, or nothing could be reconstructed.
        DatasetError: the source is missing or invalid.
        RegistrationError: the photographs cannot be registered, or pycolmap is missing.
        WriteError: a file cannot be written.
    """
    progress = on_progress or (lambda stage, what, done, of: None)
    load_pycolmap()  # at once, not after minutes
    network = None
    if settings.geometry not in (SWEEP, FAST):
        network = load_geometry_model(*parse_geometry(settings.geometry), settings.device)
    estimator = None if given is None else given.estimator
    if estimator is None and settings.depth_model != NONE:
        estimator = load_depth_estimator(settings.depth_model, settings.device)
    further = [Path(path) for path in settings.photographs]
    results = ResultsFolder(out, PLACE_NAMES, sources=[source, *further])
    stages = Stages(out / STAGES_FOLDER)
    stages.check()
    limit, use_poses, bag_options = settings.max_photographs, settings.use_poses, settings.bag_options
    if given is None:
        opened = open_all(source, further, max_photographs=limit, use_poses=use_poses, bag_options=bag_options)
    else:
        opened = given.source
        if further:
            join_photographs(opened, further)
    with stages.open():
        of_source = bag_options if given is not None or opened.kind == "bag" else _given_unit(bag_options)
        chosen = limit, use_poses, settings.fov, of_source
        key = fingerprint(file_stamps(opened.files), *chosen, *([] if given is None else [given.name]))
        photos = stages.run(
            "photographs",
            key,
            lambda folder: import_photographs(
                opened, folder, lambda done: progress("photographs", "reading", done, 0), fov=settings.fov
            ),
            load_photographs,
        )
        registration = stages.run(
            "registration",
            fingerprint(key),
            lambda folder: _register(photos, folder, lambda *what: progress("registration", *what)),
            _load_registration,
        )
        frames = Frames(photos, registration, settings.max_pixels, settings.size)
        depth_key = fingerprint(key, settings.max_pixels, settings.size, settings.geometry)
        depth_folder = stages.run(
            "depth",
            depth_key,
            lambda folder: _depths(frames, folder, settings, network, progress),
            lambda folder: folder,
        )
        notes = [*photos.notes, *registration.notes]
        holes_key = fingerprint(depth_key, settings.depth_model, "planes continue")

        def holes(folder: Path) -> Path:
            bare = fill_holes(
                frames, depth_folder, folder, estimator, estimated=network is not None,
                on_progress=lambda done, of: progress("holes", "filling", done, of),
            )  # fmt: skip
            write_json(folder / "bare.json", {"bare": bare})
            return folder

        views_folder = stages.run("holes", holes_key, holes, lambda folder: folder)
        views = PlaceViews(frames, views_folder)
        if bare := read_json(views_folder / "bare.json")["bare"]:
            notes.append(
                f"{len(bare)} photographs have too few confirmed pixels to scale estimated depth to, such as "
                f"{bare[0]}: their holes stay unknown."
            )
        start = time.perf_counter()
        cloud, bank = fuse(
            views,
            device=settings.device,
            on_progress=lambda done, of: progress("fusion", "fusing", done, of),
            on_note=notes.append,
        )
        stages.seconds["fusion"] = round(time.perf_counter() - start, 2)
        left_out = {**photos.left_out, **registration.left_out}
        place = Place(photos, registration, views, cloud, bank, left_out, notes, {})
        _write(place, results, stages, settings, holes_key, progress)
    return place


# --- stages ----------------------------------------------------------------------------------------------------------


def _register(photos: Photographs, folder: Path, progress: Callable[[str, int, int], None]) -> Registration:
    found = register(photos, folder, progress)
    found.model.save(folder / "model.npz")
    precision = found.precision
    content = {
        "left_out": found.left_out,
        "poses_from": found.poses_from,
        "depth_usable": found.depth_usable,
        "precision": None
        if precision is None
        else [precision.positions.tolist(), precision.degrees.tolist(), precision.share],
    }
    write_json(folder / "registration.json", content)
    return found


def _load_registration(folder: Path) -> Registration:
    model, content = SparseModel.load(folder / "model.npz"), read_json(folder / "registration.json")
    stored = content.get("precision")
    precision = None if stored is None else PosePrecision(np.array(stored[0]), np.array(stored[1]), float(stored[2]))
    how = content["poses_from"], content["depth_usable"], precision
    return Registration(model, content["left_out"], model.notes, *how)


def _depths(frames: Frames, folder: Path, settings: PlaceSettings, network: Any, progress: Progress) -> Path:
    estimate_depths(
        frames,
        folder,
        geometry=settings.geometry,
        network=network,
        device=settings.device,
        on_progress=lambda done, of: progress("depth", "comparing photographs", done, of),
    )
    return folder


# --- results ---------------------------------------------------------------------------------------------------------


def _write(
    place: Place, results: ResultsFolder, stages: Stages, settings: PlaceSettings, key: str, progress: Progress
) -> None:
    """Makes mesh and splats, and writes all results; the figures come last."""
    out, model = results.path, place.registration.model
    up = estimate_up_direction(model.world_from_camera)
    with results:
        start = time.perf_counter()
        progress("files", "map", 0, 1)
        metadata = {"pipeline": "reconstruct", "metric": model.metric}
        save_archive(out / MAP_FILE, place.cloud, place.bank, metadata)
        write_point_cloud(place.cloud, out / CLOUD_FILE)
        _write_colmap(place, out / COLMAP_FOLDER)
        _write_views(place, out / VIEWS_FOLDER)
        stages.seconds["files"] = round(time.perf_counter() - start, 2)
        triangles = _mesh(place, out / MESH_FILE, stages, up, progress) if settings.mesh else None
        splats = _splats(place, out / SPLATS_FILE, stages, settings, key, up, progress) if settings.splats else None
        place.figures = _figures(place, stages, settings, triangles, splats)
        write_json(out / FIGURES_FILE, place.figures)


def _mesh(place: Place, path: Path, stages: Stages, up: np.ndarray, progress: Progress) -> int | None:
    start = time.perf_counter()
    progress("mesh", "fusing", 0, 1)
    try:
        mesh = mesh_from_views(place.views)
    except InputError as error:
        place.notes.append(f"There is no mesh: {error}")
        return None
    write_mesh(path, mesh, up=up)
    stages.seconds["mesh"] = round(time.perf_counter() - start, 2)
    return len(mesh.triangles)


def _splats(
    place: Place, path: Path, stages: Stages, settings: PlaceSettings, key: str, up: np.ndarray, progress: Progress
) -> int | None:
    start = time.perf_counter()
    progress("splats", "starting", 0, 1)
    try:
        splats = splats_from_cloud(place.cloud, metric=place.registration.model.metric)
        stages.seconds["splats"] = round(time.perf_counter() - start, 2)
        if settings.splat_seconds > 0:
            start = time.perf_counter()
            splats = optimise_splats(
                splats,
                [place.views[row] for row in range(len(place.views))],
                SplatSettings(seconds=settings.splat_seconds),
                on_step=lambda step, share: progress("splats", "fitting", round(100 * share), 100),
            ).splats
            stages.seconds["splats_fit"] = round(time.perf_counter() - start, 2)
    except InputError as error:
        place.notes.append(f"There are no splats: {error}")
        return None
    write_splats(path, splats, up=up)
    return len(splats)


def _write_colmap(place: Place, folder: Path) -> None:
    """Writes poses and intrinsics of the photographs at their original size, and the triangulated points."""
    model, images = place.registration.model, []
    for row, number in enumerate(model.photographs):
        photo = place.photos[int(number)]
        calibration = photo.lens
        if calibration is None:
            found, size = model.calibrations[row], photo.original_size
            calibration = CameraCalibration(found.camera.resized(*size), found.coefficients, found.model)
        images.append(ColmapImage(photo.name, calibration, model.world_from_camera[row]))
    write_colmap_model(folder, images, model.points, model.colours)


def _write_views(place: Place, folder: Path) -> None:
    """Writes the views with depth as a posed sequence: those of the most common camera, since it has one."""
    cameras = [view.camera for view in place.views]
    most = max(set(cameras), key=lambda camera: (cameras.count(camera), -cameras.index(camera)))
    rows = [row for row, camera in enumerate(cameras) if camera == most]
    if len(rows) < len(cameras):
        place.notes.append(
            f"The photographs have {len(set(cameras))} cameras: {VIEWS_FOLDER}/ gets the {len(rows)} of "
            f"{len(cameras)} of the most common one; the map and {COLMAP_FOLDER}/ hold all."
        )
    write_sequence(folder, [place.views[row] for row in rows])


def _given_unit(bag_options: dict[str, Any]) -> dict[str, Any]:
    """The unit of depth, if one is given."""
    return {name: value for name, value in bag_options.items() if name == "depth_unit" and value != AUTO_UNIT}


def _figures(
    place: Place, stages: Stages, settings: PlaceSettings, triangles: int | None, splats: int | None
) -> dict[str, Any]:
    """What figures.json holds."""
    observed, estimated = place.views.shares()
    precision = place.registration.precision
    kept = {name: value for name, value in asdict(settings).items() if name != "bag_options"}
    return {
        "images": len(place.photos) + len(place.photos.left_out),
        "registered": len(place.registration.model),
        "left_out": place.left_out,
        "metric": place.registration.model.metric,
        "seconds": stages.seconds,
        "resumed": stages.resumed,
        "points": len(place.cloud),
        "splats": splats,
        "mesh_triangles": triangles,
        "source": place.photos.kind,
        "poses_from": place.registration.poses_from,
        # One standard deviation, in per cent of the diameter of the walk and in degrees; None: poses came along.
        "pose_uncertainty_percent": None if precision is None else round(100 * precision.share, 3),
        "pose_uncertainty_degrees": None if precision is None else round(precision.rotation, 3),
        "observed_points": place.cloud.observed_count,
        "estimated_points": place.cloud.estimated_count,
        "observed_pixels": round(float(observed), 4),
        "estimated_pixels": round(float(estimated), 4),
        "sparse_points": len(place.registration.model.points),
        "settings": kept,
        "notes": place.notes,
    }
