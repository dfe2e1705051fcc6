"""What `worldstereo view` can show: a path is looked at, loaded, and made one plain description. No browser in here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.datasets import DatasetError, open_sequence
from worldstereo_ros.io.files import list_files
from worldstereo_ros.io.images import read_image
from worldstereo_ros.io.point_clouds import SUFFIXES as CLOUD_SUFFIXES
from worldstereo_ros.io.point_clouds import CloudFileError, read_point_cloud
from worldstereo_ros.io.posed_sequences import ViewSequence, open_posed
from worldstereo_ros.utils.errors import WorldStereoError

MAP_SUFFIX = ".wsmap"
MAX_FUSED_FRAMES = 80  # more takes minutes and adds little: neighbours of a recording overlap
MAX_SHOWN_VIEWS = 200
SHOWN_WIDTH = 480  # pixels; wider pictures only make the page slow
EXPECTED = (
    f"Expected is a saved map ({MAP_SUFFIX}), the folder that `worldstereo demo` or `worldstereo imagine` left, "
    "a .ply or .pcd cloud, or a posed sequence (frames/, poses.txt, intrinsics.json)."
)


class ViewableError(WorldStereoError, ValueError):
    """There is nothing here that can be shown. The message is a sentence that says why and what to do."""


@dataclass(frozen=True)
class Viewable:
    """Everything the page shows.

    Attributes:
        name: what it is called on the page.
        kind: saved map, outcome, cloud file, or posed sequence.
        points: (N, 3) float32 world points, metres (or the unit of the sequence). colours: (N, 3) uint8.
        observed: (N,) bool, True = a sensor saw the point, False = it was imagined.
        provenance_known: False for a cloud that does not say which of its points were observed.
        given: views that memory holds or that a sequence consists of.
        imagined: views along the path, in order.
        path: (F, 4, 4) float64 world_from_camera, F may be 0.
        up: (3,) unit vector, which way is up in the world.
        notes: sentences for the page about what was left out or assumed.
    """

    name: str
    kind: str
    points: np.ndarray
    colours: np.ndarray
    observed: np.ndarray
    provenance_known: bool = True
    given: tuple[View, ...] = ()
    imagined: tuple[View, ...] = ()
    path: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 4)))
    up: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    notes: tuple[str, ...] = ()

    @property
    def stepped(self) -> tuple[View, ...]:
        """The views the slider steps through: the imagined ones, or the given ones where nothing was imagined."""
        return self.imagined or self.given


def load_viewable(path: str | Path) -> Viewable:
    """Loads a saved map, an outcome folder, a .ply or .pcd cloud, or a posed sequence; see `EXPECTED`.

    A posed sequence with depth is fused into a cloud, at most `MAX_FUSED_FRAMES` of its frames, evenly spaced.

    Raises:
        ViewableError: nothing is there, it is of an unknown kind, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ViewableError(f"There is nothing at {path}. {EXPECTED}")
    try:
        if path.is_dir():
            if (path / "imagined" / "poses.txt").is_file():
                return _load_results(path)
            return _load_sequence(path)
        if path.suffix.lower() in CLOUD_SUFFIXES:
            return _load_cloud_file(path)
        return _load_map(path)
    except (DatasetError, ImageError, CloudFileError) as error:
        raise ViewableError(f"{path} cannot be shown: {error}") from error


def shrink(view: View) -> View:
    """The view at `SHOWN_WIDTH` or less, with its conditioning."""
    import cv2

    if view.camera.width <= SHOWN_WIDTH:
        return view
    size = (SHOWN_WIDTH, max(1, round(view.camera.height * SHOWN_WIDTH / view.camera.width)))
    small = view.resized(*size)
    if isinstance(small, ImaginedView) and small.conditioning is not None:
        small = replace(small, conditioning=cv2.resize(small.conditioning, size, interpolation=cv2.INTER_AREA))
    return small


# --- saved maps and outcomes ------------------------------------------------------------------------------------------


def _load_map(path: Path) -> Viewable:
    from worldstereo_ros.memory.archive import ArchiveError, load_archive

    try:
        archive = load_archive(path)
    except ArchiveError as error:
        if path.suffix.lower() == MAP_SUFFIX:
            raise ViewableError(str(error)) from error
        raise ViewableError(f"{path} is of no kind that can be shown. {EXPECTED}") from error
    cloud, views = archive.cloud, archive.bank.views
    kept, notes = _evenly(len(views), MAX_SHOWN_VIEWS), []
    if len(kept) < len(views):
        notes.append(f"{len(kept)} of the {len(views)} remembered views are shown.")
    given = tuple(shrink(views[i]) for i in kept)
    return Viewable(
        name=path.name,
        kind="saved map",
        points=np.asarray(cloud.points, dtype=np.float32),
        colours=np.asarray(cloud.colours, dtype=np.uint8),
        observed=np.asarray(cloud.observed, dtype=bool),
        given=given,
        up=_up(np.stack([view.world_from_camera for view in given])) if given else np.array([0.0, 0.0, 1.0]),
        notes=tuple(notes),
    )


def _load_results(folder: Path) -> Viewable:
    """The folder that `outcome.write_results` fills, with the map beside it where there is one."""
    imagined, path, notes = _read_views(folder / "imagined")
    given: tuple[View, ...] = ()
    if (folder / "given" / "poses.txt").is_file():
        given, _, more = _read_views(folder / "given")
        notes += more
    maps = [folder / f"world{MAP_SUFFIX}", *list_files(folder, (MAP_SUFFIX,))]
    clouds = [folder / "cloud.ply", *list_files(folder, CLOUD_SUFFIXES)]
    source = next((p for p in (*maps, *clouds) if p.is_file()), None)
    if source is None:
        world = _fuse(open_posed(folder / "imagined"), notes)
    elif source.suffix == MAP_SUFFIX:
        world = _load_map(source)
        given = given or world.given
    else:
        world = _load_cloud_file(source)
    cameras = given or imagined
    return replace(
        world,
        name=folder.resolve().name,
        kind="outcome",
        given=given,
        imagined=imagined,
        path=path,
        up=_up(np.stack([view.world_from_camera for view in cameras])),
        notes=(*world.notes, *notes),
    )


# --- posed sequences --------------------------------------------------------------------------------------------------


def _load_sequence(folder: Path) -> Viewable:
    sequence = open_sequence(folder)
    if not sequence.posed:
        raise ViewableError(
            f"{folder} is a {sequence.kind} without camera poses, so there is nothing to show in space. {EXPECTED}"
        )
    views, path, notes = _read_views(folder) if sequence.kind == "posed" else _views_of(sequence)
    world = _fuse(sequence, notes)
    if sequence.trajectories and len(path) < 2:
        name, trajectory = next(iter(sequence.trajectories.items()))
        path = np.asarray(trajectory.world_from_camera, dtype=np.float64)
        notes.append(f"The path is the trajectory '{name}' that comes with the data.")
    if not sequence.metric:
        notes.append("The unit of this sequence is unknown: lengths are no metres.")
    is_imagined = any(isinstance(view, ImaginedView) for view in views)
    return replace(
        world,
        name=folder.resolve().name,
        given=() if is_imagined else views,
        imagined=views if is_imagined else (),
        path=path,
        up=_up(path),
        notes=tuple(notes),
    )


def _read_views(folder: Path) -> tuple[tuple[View, ...], np.ndarray, list[str]]:
    """(views, all poses (F, 4, 4), notes) of a posed sequence; masks, confidence and conditioning are read too."""
    sequence = open_posed(folder)
    views, poses, notes = _views_of(sequence)
    if not (folder / "observed").is_dir():
        return views, poses, notes
    kept = _evenly(len(sequence), MAX_SHOWN_VIEWS)
    imagined = tuple(
        _imagined(folder, view, int(sequence.indices[i]), i, len(sequence))
        for view, i in zip(views, kept.tolist(), strict=True)
    )
    return imagined, poses, notes


def _views_of(sequence: ViewSequence) -> tuple[tuple[View, ...], np.ndarray, list[str]]:
    kept = _evenly(len(sequence), MAX_SHOWN_VIEWS)
    notes = [f"{len(kept)} of its {len(sequence)} views are shown."] if len(kept) < len(sequence) else []
    return tuple(shrink(sequence[int(i)]) for i in kept), sequence.poses, notes


def _imagined(folder: Path, view: View, number: int, index: int, count: int) -> ImaginedView:
    """The view with its mask and conditioning, at the size the view has already been shrunk to."""
    import cv2

    size = (view.camera.width, view.camera.height)
    mask, conditioning, confidence = _observed_mask(folder, number, size), None, None
    if (file := folder / "confidence" / f"{number:06d}.png").is_file():
        level = cv2.resize(read_image(file)[..., 0], size, interpolation=cv2.INTER_AREA)
        confidence = level.astype(np.float32) / 255
    if (file := folder / "conditioning" / f"{number:06d}.png").is_file():
        conditioning = cv2.resize(read_image(file), size, interpolation=cv2.INTER_AREA)
    return ImaginedView(
        view.image,
        view.camera,
        view.world_from_camera,
        view.depth,
        mask,
        view.stamp_ns,
        confidence,
        conditioning=conditioning,
        index=index,
        count=count,
    )


def _observed_mask(folder: Path, number: int, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool of `observed/NNNNNN.png` (255 = observed) at this (width, height); None where there is none."""
    import cv2

    file = folder / "observed" / f"{number:06d}.png"
    if not file.is_file():
        return None
    return cv2.resize(read_image(file)[..., 0], size, interpolation=cv2.INTER_NEAREST_EXACT) > 127


def _fuse(sequence: ViewSequence, notes: list[str]) -> Viewable:
    """The cloud of a sequence's depth; what a mask calls imagined becomes imagined points."""
    from worldstereo_ros.memory.cloud import CloudMemory

    with_depth = [i for i, depth in enumerate(sequence.depths) if depth is not None]
    empty = Viewable(
        sequence.path.resolve().name,
        "posed sequence",
        np.zeros((0, 3), np.float32),
        np.zeros((0, 3), np.uint8),
        np.zeros(0, bool),
    )
    if not with_depth:
        notes.append("There is no depth, so only the cameras and their pictures are shown.")
        return empty
    kept = [with_depth[i] for i in _evenly(len(with_depth), MAX_FUSED_FRAMES)]
    if len(kept) < len(with_depth):
        notes.append(f"{len(kept)} of the {len(with_depth)} frames with depth were fused into the cloud.")
    first = sequence[kept[0]]
    distance = float(np.median(first.depth[first.depth > 0])) if (first.depth > 0).any() else 2.0
    cloud = CloudMemory(voxel_size=0.01 if sequence.metric else distance / 300)
    for index in kept:
        view = sequence[index]
        size = (view.camera.width, view.camera.height)
        mask = _observed_mask(sequence.path, int(sequence.indices[index]), size) if sequence.kind == "posed" else None
        cloud.insert(replace(view, observed=mask))
    return replace(empty, points=cloud.points, colours=cloud.colours, observed=cloud.observed)


# --- cloud files ------------------------------------------------------------------------------------------------------


def _load_cloud_file(path: Path) -> Viewable:
    points, colours, observed = read_point_cloud(path)
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        raise ViewableError(f"{path} has no point with finite coordinates.")
    notes = [] if finite.all() else [f"{int((~finite).sum()):,} points with coordinates that are not finite left out."]
    if observed is None:
        notes.append("The file does not say which points were observed; all are shown as observed.")
    return Viewable(
        name=path.name,
        kind="cloud file",
        points=points[finite],
        colours=colours[finite],
        observed=np.ones(int(finite.sum()), dtype=bool) if observed is None else observed[finite],
        provenance_known=observed is not None,
        notes=tuple(notes),
    )


# --- helpers ----------------------------------------------------------------------------------------------------------


def _evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. count - 1, evenly spaced, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _up(world_from_camera: np.ndarray) -> np.ndarray:
    """Which way is up; z where the cameras look every way at once."""
    up = estimate_up_direction(world_from_camera)
    return up if np.linalg.norm(up) > 0.5 else np.array([0.0, 0.0, 1.0])
