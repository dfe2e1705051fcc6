"""Loads what `worldstereo view` shows into one description, without viser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.datasets import DatasetError, open_sequence
from worldstereo_ros.io.files import list_files
from worldstereo_ros.io.gltf import GltfError
from worldstereo_ros.io.images import read_image
from worldstereo_ros.io.meshes import Mesh, MeshFileError
from worldstereo_ros.io.point_clouds import SUFFIXES as CLOUD_SUFFIXES
from worldstereo_ros.io.point_clouds import CloudFileError, read_point_cloud
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.io.splats import SplatFileError
from worldstereo_ros.io.view_sequence import ViewSequence
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.visualization.result_files import IMAGINED_FOLDER, MAP_FILE, OBSERVED_FOLDER
from worldstereo_ros.visualization.viewer.moving_points import POINTMAPS_FILE, MovingPoints, read_moving
from worldstereo_ros.visualization.viewer.surfaces import find_surfaces, read_faces, read_surface, surface_points

MAP_SUFFIX = ".wsmap"
MAX_FUSED_FRAMES = 80  # more takes minutes and adds little: neighbouring frames of a recording overlap
MAX_SHOWN_VIEWS = 200
UNKNOWN_UNIT = "The unit is unknown; lengths are not in metres."
MAX_IMAGE_WIDTH_PX = 480  # wider images slow the page down
EXPECTED = (
    f"Expected a saved map ({MAP_SUFFIX}), an output folder of `worldstereo demo`, `imagine`, `reconstruct` or "
    "`pointmaps`, a .ply or .pcd cloud, splats (.ply, .spz, .glb), a mesh (.glb, .ply), or a posed sequence (frames/, "
    "poses.txt, intrinsics.json)."
)


class ViewableError(WorldStereoError, ValueError):
    """A path that cannot be shown; the message says why and what is expected."""


@dataclass(frozen=True)
class Viewable:
    """Everything that the page shows.

    Attributes:
        name: title on the page.
        kind: saved map, results, place, cloud file, splats, mesh, or posed sequence.
        points: (N, 3) float32 world points, in metres or the unit of the sequence.
        colours: (N, 3) uint8.
        provenance: (N,) uint8 values of `Provenance`; unknown for a cloud file that does not say it.
        confidence: (N,) float32 in 0..1, of the colours; None if unavailable.
        depth_confidence: (N,) float32 in 0..1, of the distances; None if unavailable.
        observed_views: views of the view bank or the sequence.
        imagined: views along the path, in order.
        path: (F, 4, 4) float64 world_from_camera, F may be 0.
        up: (3,) unit vector, up in the world.
        notes: sentences for the page about what was left out or assumed.
        splats: the place as Gaussians; None if there are none.
        mesh: the place as triangles; None if there are none.
        moving: points that move, of each of the slider's views; empty if nothing is known of it.
        times_s: (V,) time of each of the slider's views from the first one; None if unknown.
    """

    name: str
    kind: str
    points: np.ndarray
    colours: np.ndarray
    provenance: np.ndarray
    confidence: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None
    observed_views: tuple[View, ...] = ()
    imagined: tuple[View, ...] = ()
    path: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 4)))
    up: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    notes: tuple[str, ...] = ()
    splats: GaussianSplats | None = None
    mesh: Mesh | None = None
    moving: tuple[MovingPoints, ...] = ()
    times_s: np.ndarray | None = None

    @property
    def observed(self) -> np.ndarray:
        """(N,) bool, True = observed."""
        return self.provenance == Provenance.OBSERVED

    @property
    def classes(self) -> tuple[Provenance, ...]:
        """The classes of its points and splats, the best known first."""
        kinds = self.provenance if self.splats is None else np.concatenate([self.provenance, self.splats.provenance])
        return tuple(Provenance(kind) for kind in np.unique(kinds)[::-1])

    @property
    def slider_views(self) -> tuple[View, ...]:
        """The views of the slider: the imagined ones, or the observed ones if none was imagined."""
        return self.imagined or self.observed_views


def load_viewable(path: str | Path) -> Viewable:
    """Loads a saved map, a folder of results, a cloud, splats, a mesh, or a posed sequence.

    A folder may hold splats and a mesh beside its map or cloud (`viewer.surfaces`).

    At most `MAX_FUSED_FRAMES` evenly spaced frames of a posed sequence with depth are fused into a cloud.

    Raises:
        ViewableError: the path does not exist, is of an unknown kind, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ViewableError(f"{path} does not exist. {EXPECTED}")
    try:
        if path.is_dir():
            if (path / IMAGINED_FOLDER / "poses.txt").is_file():
                return _with_surfaces(_load_results(path), path)
            if (path / POINTMAPS_FILE).is_file() and (path / "poses.txt").is_file():
                return _load_pointmaps(path)
            if find_surfaces(path) or (path / MAP_FILE).is_file():
                return _with_surfaces(_load_place(path), path)
            return _load_sequence(path)
        if (surface := read_surface(path)) is not None:
            return _of_surface(path, *surface)
        if path.suffix.lower() in CLOUD_SUFFIXES:
            return _load_cloud_file(path)
        return _load_map(path)
    except (DatasetError, ImageError, CloudFileError, SplatFileError, MeshFileError, GltfError) as error:
        raise ViewableError(f"{path} cannot be shown: {error}") from error


def shrink(view: View) -> View:
    """The view with its conditioning, at most `MAX_IMAGE_WIDTH_PX` wide."""
    import cv2

    if view.camera.width <= MAX_IMAGE_WIDTH_PX:
        return view
    size = (MAX_IMAGE_WIDTH_PX, max(1, round(view.camera.height * MAX_IMAGE_WIDTH_PX / view.camera.width)))
    small = view.resized(*size)
    if isinstance(small, ImaginedView) and small.conditioning is not None:
        small = replace(small, conditioning=cv2.resize(small.conditioning, size, interpolation=cv2.INTER_AREA))
    return small


# --- saved maps and results ------------------------------------------------------------------------------------------


def _load_map(path: Path) -> Viewable:
    from worldstereo_ros.memory.archive import ArchiveError, load_archive

    try:
        archive = load_archive(path)
    except ArchiveError as error:
        if path.suffix.lower() == MAP_SUFFIX:
            raise ViewableError(str(error)) from error
        raise ViewableError(f"{path} is of an unknown kind. {EXPECTED}") from error
    cloud, views = archive.cloud, archive.bank.views
    kept, notes = evenly_spaced_indices(len(views), MAX_SHOWN_VIEWS), []
    if len(kept) < len(views):
        notes.append(f"{len(kept)} of the {len(views)} remembered views are shown.")
    if archive.bank.metric is False:
        notes.append(UNKNOWN_UNIT)
    shown = tuple(shrink(views[i]) for i in kept)
    return Viewable(
        name=path.name,
        kind="saved map",
        points=np.asarray(cloud.points, dtype=np.float32),
        colours=np.asarray(cloud.colours, dtype=np.uint8),
        provenance=cloud.provenance,
        confidence=cloud.confidence,
        depth_confidence=cloud.depth_confidence,
        observed_views=shown,
        up=estimate_up_direction(np.stack([view.world_from_camera for view in shown]))
        if shown
        else np.array([0.0, 0.0, 1.0]),
        notes=tuple(notes),
    )


def _load_results(folder: Path) -> Viewable:
    """Loads a folder that `visualization.results.write_results` wrote, with the saved map in it if there is one."""
    imagined, path, notes = _read_views(folder / IMAGINED_FOLDER)
    observed_views: tuple[View, ...] = ()
    if (folder / OBSERVED_FOLDER / "poses.txt").is_file():
        observed_views, _, more_notes = _read_views(folder / OBSERVED_FOLDER)
        notes += more_notes
    else:
        notes.append(
            f"The folder has no {OBSERVED_FOLDER}/; observed cameras are those of the saved map, if there is one."
        )
    maps = [folder / MAP_FILE, *list_files(folder, (MAP_SUFFIX,))]
    clouds = [folder / "cloud.ply", *list_files(folder, CLOUD_SUFFIXES)]
    source = next((p for p in (*maps, *clouds) if p.is_file()), None)
    if source is None:
        world = _fuse(open_posed(folder / IMAGINED_FOLDER), notes)
    elif source.suffix == MAP_SUFFIX:
        world = _load_map(source)
        observed_views = observed_views or world.observed_views
    else:
        world = _load_cloud_file(source)
    cameras = observed_views or imagined
    return replace(
        world,
        name=folder.resolve().name,
        kind="results",
        observed_views=observed_views,
        imagined=imagined,
        path=path,
        up=estimate_up_direction(np.stack([view.world_from_camera for view in cameras])),
        notes=(*world.notes, *notes),
    )


def _load_place(folder: Path) -> Viewable:
    """Loads a folder of `worldstereo reconstruct`: the map or the cloud, and the photographs."""
    source = next((p for p in (folder / MAP_FILE, folder / "cloud.ply") if p.is_file()), None)
    if source is None:
        world = _no_points(folder, "place")
    else:
        world = _load_map(source) if source.suffix == MAP_SUFFIX else _load_cloud_file(source)
    if not world.observed_views and (folder / OBSERVED_FOLDER / "poses.txt").is_file():
        views, _, notes = _read_views(folder / OBSERVED_FOLDER)
        up = estimate_up_direction(np.stack([view.world_from_camera for view in views]))
        world = replace(world, observed_views=views, up=up, notes=(*world.notes, *notes))
    return replace(world, name=folder.resolve().name, kind="place")


def _load_pointmaps(folder: Path) -> Viewable:
    """Loads a folder of `worldstereo pointmaps`: the map of what does not move, and the frames with what does."""
    sequence = open_posed(folder)
    kept = evenly_spaced_indices(len(sequence), MAX_SHOWN_VIEWS)
    views, moving = [], []
    for index in kept:
        view = sequence[index]
        moving.append(read_moving(folder, view, int(sequence.indices[index])))
        views.append(shrink(view))
    notes = [] if any(len(frame) for frame in moving) else ["Nothing was found to move."]
    if len(kept) < len(sequence):
        notes.append(f"{len(kept)} of its {len(sequence)} frames are shown.")
    world = _load_place(folder)
    if not sequence.metric and UNKNOWN_UNIT not in world.notes:
        notes.append(UNKNOWN_UNIT)
    stamps = np.array([view.stamp_ns for view in views], np.float64) / 1e9
    return replace(
        world, name=folder.resolve().name, kind="point maps", observed_views=tuple(views), path=sequence.poses,
        up=estimate_up_direction(sequence.poses), moving=tuple(moving), times_s=stamps - stamps[0],
        notes=tuple(note for note in (*world.notes, *notes) if "remembered views" not in note),
    )  # fmt: skip


def _with_surfaces(world: Viewable, folder: Path) -> Viewable:
    """`world` with the splats and the mesh of the folder; without points, those of the surface take their place."""
    for path in find_surfaces(folder):
        surface = read_surface(path) or (None, _load_cloud_file(path).mesh)
        world = _add_surface(world, *surface)
    return world


def _of_surface(path: Path, splats: GaussianSplats | None, mesh: Mesh | None) -> Viewable:
    """What a file of splats or a mesh shows alone."""
    return _add_surface(_no_points(path, "splats" if splats is not None else "mesh"), splats, mesh)


def _add_surface(world: Viewable, splats: GaussianSplats | None, mesh: Mesh | None) -> Viewable:
    if splats is None and mesh is None:
        return world
    metric = splats.metric if splats is not None else mesh is None or mesh.metric
    if not metric and UNKNOWN_UNIT not in world.notes:
        world = replace(world, notes=(*world.notes, UNKNOWN_UNIT))
    if splats is not None:
        world = replace(world, splats=world.splats or splats)
    if mesh is not None:
        world = replace(world, mesh=world.mesh or mesh)
    if len(world.points):
        return world
    points, colours, classes = surface_points(splats, mesh)
    return replace(world, points=points, colours=colours, provenance=classes)


def _no_points(path: Path, kind: str) -> Viewable:
    return Viewable(
        path.resolve().name, kind, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.uint8)
    )


# --- posed sequences --------------------------------------------------------------------------------------------------


def _load_sequence(folder: Path) -> Viewable:
    sequence = open_sequence(folder)
    if not sequence.posed:
        raise ViewableError(f"{folder} is a {sequence.kind} without camera poses, which the viewer needs. {EXPECTED}")
    views, path, notes = _read_views(folder) if sequence.kind == "posed" else _load_views(sequence)
    world = _fuse(sequence, notes)
    if sequence.trajectories and len(path) < 2:
        name, trajectory = next(iter(sequence.trajectories.items()))
        path = np.asarray(trajectory.world_from_camera, dtype=np.float64)
        notes.append(f"The path is the trajectory '{name}' that comes with the data.")
    if not sequence.metric:
        notes.append(UNKNOWN_UNIT)
    is_imagined = any(isinstance(view, ImaginedView) for view in views)
    return replace(
        world,
        name=folder.resolve().name,
        observed_views=() if is_imagined else views,
        imagined=views if is_imagined else (),
        path=path, up=estimate_up_direction(path), notes=tuple(notes),
    )  # fmt: skip


def _read_views(folder: Path) -> tuple[tuple[View, ...], np.ndarray, list[str]]:
    """Reads a posed sequence with its labels and conditioning; returns (views, all poses (F, 4, 4), notes)."""
    sequence = open_posed(folder)
    views, poses, notes = _load_views(sequence)
    if all(view.is_observation for view in views):
        return views, poses, notes
    kept = evenly_spaced_indices(len(sequence), MAX_SHOWN_VIEWS)
    imagined = tuple(
        _as_imagined_view(folder, view, int(sequence.indices[i]), i, len(sequence))
        for view, i in zip(views, kept, strict=True)
    )
    return imagined, poses, notes


def _load_views(sequence: ViewSequence) -> tuple[tuple[View, ...], np.ndarray, list[str]]:
    kept = evenly_spaced_indices(len(sequence), MAX_SHOWN_VIEWS)
    notes = [f"{len(kept)} of its {len(sequence)} views are shown."] if len(kept) < len(sequence) else []
    return tuple(shrink(sequence[i]) for i in kept), sequence.poses, notes


def _as_imagined_view(folder: Path, view: View, number: int, index: int, count: int) -> ImaginedView:
    """The view with its conditioning, at the view's size."""
    import cv2

    conditioning = None
    if (file := folder / "conditioning" / f"{number:06d}.png").is_file():
        size = (view.camera.width, view.camera.height)
        conditioning = cv2.resize(read_image(file), size, interpolation=cv2.INTER_AREA)
    return ImaginedView(**vars(view), conditioning=conditioning, index=index, count=count)


def _fuse(sequence: ViewSequence, notes: list[str]) -> Viewable:
    """Fuses the depth of a sequence into a cloud; its points have the provenance of the pixels."""
    from worldstereo_ros.memory.cloud import CloudMemory

    with_depth = [i for i, depth in enumerate(sequence.depths) if depth is not None]
    empty = _no_points(sequence.path, "posed sequence")
    if not with_depth:
        notes.append("There is no depth: only cameras and images are shown.")
        return empty
    kept = [with_depth[i] for i in evenly_spaced_indices(len(with_depth), MAX_FUSED_FRAMES)]
    if len(kept) < len(with_depth):
        notes.append(f"{len(kept)} of the {len(with_depth)} frames with depth were fused into the cloud.")
    first = sequence[kept[0]]
    assert first.depth is not None
    median_depth = float(np.median(first.depth[first.depth > 0])) if (first.depth > 0).any() else 2.0
    cloud = CloudMemory(voxel_size=0.01 if sequence.metric else median_depth / 300)
    for index in kept:
        cloud.insert(sequence[index])
    return replace(
        empty,
        points=cloud.points,
        colours=cloud.colours,
        provenance=cloud.provenance,
        confidence=cloud.confidence,
        depth_confidence=cloud.depth_confidence,
    )


# --- cloud files ------------------------------------------------------------------------------------------------------


def _load_cloud_file(path: Path) -> Viewable:
    cloud = read_point_cloud(path)
    finite = np.isfinite(cloud.points).all(axis=1)
    if not finite.any():
        raise ViewableError(f"{path} has no point with finite coordinates.")
    notes = list(cloud.notes)
    if not finite.all():
        notes.append(f"{int((~finite).sum()):,} points with coordinates that are not finite are left out.")
    provenance = cloud.provenance
    if provenance is None:
        notes.append("The file does not say which points were observed.")
        provenance = np.full(len(finite), Provenance.UNKNOWN, np.uint8)
    mesh = read_faces(path, cloud.colours, notes) if not cloud.offset.any() else None
    return Viewable(
        name=path.name,
        kind="cloud file",
        points=cloud.points[finite],
        colours=cloud.colours[finite],
        provenance=provenance[finite],
        confidence=None if cloud.confidence is None else cloud.confidence[finite],
        depth_confidence=None if cloud.depth_confidence is None else cloud.depth_confidence[finite],
        notes=tuple(notes),
        mesh=mesh,
    )
