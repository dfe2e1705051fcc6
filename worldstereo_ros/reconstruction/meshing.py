"""Triangle meshes of a place, by Open3D: a TSDF of views with depth, or a Poisson surface of an oriented cloud.

Both hold only surfaces that the input supports: the TSDF ends where no view saw anything, and what a Poisson surface
closes far from any point is cut away. Each vertex has the provenance of what it was made from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.meshes import Mesh
from worldstereo_ros.reconstruction.splats import SurfaceCloud
from worldstereo_ros.reconstruction.surface_normals import surface_neighbourhood, towards_cameras
from worldstereo_ros.utils.errors import InputError, first_line

logger = logging.getLogger(__name__)

BLOCK = 16  # voxels along the edge of a block
MAX_BLOCKS = 30_000  # 2.5 GB
TRUNCATION_VOXELS = 5.0
PIXELS_PER_VOXEL = 1.5  # size of a voxel where none is given, in pixels at the median depth
MIN_COMPONENT_TRIANGLES = 60  # smaller pieces are noise
MIN_VIEWS = 2  # that must have seen a surface, where there are this many more views
DEPTH_AGREEMENT_VOXELS = 3.0
MAX_POISSON_DEPTH = 11
TRIM_SPACINGS = 3.0  # a Poisson surface farther from all points is cut away
_MIN_POINTS = 50


def mesh_from_views(
    views: Sequence[View], *, voxel_size: float | None = None, min_views: int | None = None, device: str = "cpu"
) -> Mesh:
    """Fuses views with depth into a truncated signed distance field and takes its surface (Curless and Levoy 1996).

    Args:
        views: with depth, of one unit; views without are left out.
        voxel_size: in the unit of the depth; None = 1.5 pixels at the median depth, larger where memory asks for it.
        min_views: number of views that must have seen a surface; None = 2, or 1 for fewer than 4 views.
        device: "cpu" or "cuda", where Open3D supports it.

    Raises:
        InputError: no view has depth, units differ, the voxels are too small for this place, or nothing is left.
    """
    used = _UsedViews(views)
    if not used:
        raise InputError(f"None of the {len(views)} views has depth; a mesh needs views with depth, or a cloud.")
    if len(used.units) > 1:
        raise InputError("Some views are in metres and others in an arbitrary unit; a mesh has one unit.")
    if voxel_size is not None and not (np.isfinite(voxel_size) and voxel_size > 0):
        raise InputError(f"The voxel size is {voxel_size}; a positive number was expected.")
    size = used.pixel_size * PIXELS_PER_VOXEL if voxel_size is None else float(voxel_size)
    # One origin for all, so that single precision holds far from the world's.
    origin = np.median(used.centres, axis=0)
    while True:
        count, grid = _fuse(used, origin, size, device)
        if grid is not None:
            break
        if voxel_size is not None:
            raise InputError(
                f"Voxels of {size:.4g} need {count:,} blocks of {BLOCK}^3 for these views; at most {MAX_BLOCKS:,} fit "
                f"into memory. Use voxels of {size * np.sqrt(count / MAX_BLOCKS):.2g}."
            )
        size *= max(1.1, float(np.sqrt(count / MAX_BLOCKS)))
    if min_views is None:
        min_views = MIN_VIEWS if len(used) >= 2 * MIN_VIEWS else 1
    surface = grid.extract_triangle_mesh(weight_threshold=min_views - 0.5).cpu().to_legacy()
    surface = _cleaned(surface)
    vertices = np.asarray(surface.vertices) + origin
    colours = np.asarray(surface.vertex_colors)
    if len(vertices) == 0:
        raise InputError(f"The {len(used)} views with depth have no surface in common that {min_views} of them saw.")
    classes = _classes_of_views(vertices, used, DEPTH_AGREEMENT_VOXELS * size)
    return _as_mesh(surface, vertices, colours, classes, used.units.pop())


def mesh_from_cloud(
    cloud: SurfaceCloud,
    camera_centres: np.ndarray | None = None,
    *,
    normals: np.ndarray | None = None,
    depth: int = 9,
    metric: bool = True,
) -> Mesh:
    """Makes a Poisson surface of a cloud (Kazhdan and Hoppe 2013), without what it closes far from all points.

    Args:
        cloud: points with colours, provenance and spacing, such as a `CloudMemory`.
        camera_centres: (C, 3) in the world; normals are estimated and turned towards them.
        normals: (N, 3) outward unit vectors instead.
        depth: of the octree; the finest cells are 2**-depth of the cloud's extent.
        metric: lengths are in metres.

    Raises:
        InputError: the cloud has too few points, neither normals nor cameras came, or nothing is left.
    """
    import open3d as o3d

    points, colours, kinds, spacing = (
        np.asarray(getattr(cloud, name)) for name in ("points", "colours", "provenance", "spacing")
    )
    finite = np.isfinite(points).all(axis=1)
    if finite.sum() < _MIN_POINTS:
        raise InputError(f"The cloud has {int(finite.sum())} points; a surface needs at least {_MIN_POINTS}.")
    if not 4 <= depth <= MAX_POISSON_DEPTH:
        raise InputError(f"The depth of the octree is {depth}; 4 to {MAX_POISSON_DEPTH} were expected.")
    if normals is not None and np.shape(normals) != points.shape:
        raise InputError(f"The normals have shape {np.shape(normals)}; {points.shape} was expected.")
    places = points[finite].astype(np.float64)
    if normals is not None:
        directions = np.asarray(normals, np.float64)[finite]
    elif camera_centres is not None:
        found = surface_neighbourhood(places, spacing[finite])[1]
        directions = towards_cameras(places, found, camera_centres)
    else:
        raise InputError("A Poisson surface needs to know the outside: give normals, or the centres of the cameras.")
    origin = np.median(places, axis=0)
    oriented = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(places - origin))
    oriented.normals = o3d.utility.Vector3dVector(directions)
    oriented.colors = o3d.utility.Vector3dVector(colours[finite] / 255.0)
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        try:
            surface, _ = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(oriented, depth=depth, n_threads=1)
        except RuntimeError as error:
            raise InputError(f"Open3D made no Poisson surface of the cloud: {first_line(error)}.") from None
    distance, nearest = _nearest(places - origin, np.asarray(surface.vertices))
    surface.remove_vertices_by_mask(distance > TRIM_SPACINGS * spacing[finite][nearest])
    surface = _cleaned(surface)
    vertices = np.asarray(surface.vertices)
    if len(vertices) == 0:
        raise InputError("The Poisson surface lies nowhere near the points; their normals may point in all directions.")
    classes = kinds[finite][_nearest(places - origin, vertices)[1]]
    return _as_mesh(surface, vertices + origin, np.asarray(surface.vertex_colors), classes, metric)


class _UsedViews:
    """The views with depth, read one at a time each time they are gone through: hundreds do not fit into memory.

    Attributes:
        units: values of `View.metric`.
        centres: of the cameras.
        pixel_size: median size of a pixel on the surface.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._views, self._rows = views, []
        self.units: set[bool] = set()
        self.centres: list[np.ndarray] = []
        sizes = []
        for row, view in enumerate(views):
            if view.depth is None or not (view.depth > 0).any():
                continue
            self._rows.append(row)
            self.units.add(view.metric)
            self.centres.append(view.world_from_camera[:3, 3])
            known = view.depth[np.isfinite(view.depth) & (view.depth > 0)]
            sizes.append(float(np.median(known)) / np.sqrt(view.camera.fx * view.camera.fy))
        self.pixel_size = float(np.median(sizes)) if sizes else 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[View]:
        return (self._views[row].with_finite_depth() for row in self._rows)


def _fuse(views: _UsedViews, origin: np.ndarray, size: float, device: str) -> tuple[int, Any]:
    """(number of blocks, the field); the field is None if there are more blocks than fit into memory."""
    import open3d as o3d

    where = o3d.core.Device(device.upper() + (":0" if ":" not in device else ""))
    names, channels = ("tsdf", "weight", "color"), ((1), (1), (3))
    grid = o3d.t.geometry.VoxelBlockGrid(names, (o3d.core.float32,) * 3, channels, size, BLOCK, 4000, where)
    seen: set[tuple[int, int, int]] = set()
    frames: list[tuple[Any, ...]] = []
    for view in views:
        assert view.depth is not None
        pose = view.world_from_camera.copy()
        pose[:3, 3] -= origin
        depth = _depth_image(view, where)
        matrix, extrinsic = o3d.core.Tensor(view.camera.matrix), o3d.core.Tensor(invert_pose(pose))
        far = float(view.depth.max()) * 1.001
        blocks = grid.compute_unique_block_coordinates(depth, matrix, extrinsic, 1.0, far, TRUNCATION_VOXELS)
        seen.update(map(tuple, blocks.cpu().numpy().tolist()))
        if len(seen) > MAX_BLOCKS:
            return len(seen) * len(views) // (len(frames) + 1), None
        frames.append((blocks, matrix, extrinsic, far))
    for (blocks, matrix, extrinsic, far), view in zip(frames, views, strict=True):
        depth, colour = _depth_image(view, where), o3d.t.geometry.Image(view.image.astype(np.float32) / 255).to(where)
        grid.integrate(blocks, depth, colour, matrix, matrix, extrinsic, 1.0, far, TRUNCATION_VOXELS)
    return len(seen), grid


def _depth_image(view: View, where: Any) -> Any:
    import open3d as o3d

    return o3d.t.geometry.Image(np.ascontiguousarray(view.depth, np.float32)).to(where)


def _cleaned(surface: Any) -> Any:
    """The mesh without small pieces and unused vertices."""
    clusters, sizes, _ = surface.cluster_connected_triangles()
    if len(sizes):
        small = np.asarray(sizes)[np.asarray(clusters)] < min(MIN_COMPONENT_TRIANGLES, max(sizes))
        surface.remove_triangles_by_mask(small)
    surface.remove_unreferenced_vertices()
    return surface


def _classes_of_views(vertices: np.ndarray, views: _UsedViews, tolerance: float) -> np.ndarray:
    """(V,) uint8: the highest class of the pixels that show each vertex."""
    classes, lowest = np.zeros(len(vertices), np.uint8), int(Provenance.OBSERVED)
    for view in views:
        pixels, depth = project(vertices, view.camera, view.world_from_camera)
        with np.errstate(invalid="ignore"):
            x, y = np.rint(pixels[:, 0]), np.rint(pixels[:, 1])
            inside = (depth > 0) & (x >= 0) & (x < view.camera.width) & (y >= 0) & (y < view.camera.height)
        at = (y[inside].astype(np.int64), x[inside].astype(np.int64))
        assert view.depth is not None
        agrees = np.abs(view.depth[at] - depth[inside]) < tolerance
        rows = np.flatnonzero(inside)[agrees]
        classes[rows] = np.maximum(classes[rows], view.provenance[at][agrees])
        lowest = min(lowest, int(view.provenance[view.depth > 0].min(initial=lowest)))
    # Between the pixels of all views: the lowest class that there is, since nothing better is known.
    return np.where(classes == Provenance.UNKNOWN, np.uint8(lowest), classes)


def _nearest(points: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, index) of the nearest point to each place."""
    from scipy.spatial import cKDTree

    return cKDTree(points).query(places, workers=2)


def _as_mesh(surface: Any, vertices: np.ndarray, colours: np.ndarray, classes: np.ndarray, metric: bool) -> Mesh:
    surface.compute_vertex_normals()
    normals = np.nan_to_num(np.asarray(surface.vertex_normals))
    return Mesh(
        vertices,
        np.asarray(surface.triangles),
        np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8),
        normals,
        classes,
        metric=metric,
    )
