"""The 3-D part of the page: points, cameras and path as nodes of the viser scene."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.view_labels import PROVENANCE_COLOURS
from worldstereo_ros.visualization.images import PATH_COLOUR
from worldstereo_ros.visualization.unsure_points import unsure_points
from worldstereo_ros.visualization.viewer.loading import Viewable
from worldstereo_ros.visualization.viewer.moving_points import MovingNode
from worldstereo_ros.visualization.viewer.points import (
    MAX_POINTS,
    NATURAL,
    TINTED,
    camera_distance,
    colour_points,
    point_sizes,
    thin_points,
)
from worldstereo_ros.visualization.viewer.surfaces import SurfaceNodes
from worldstereo_ros.visualization.viewer.viewpoints import (
    camera_class,
    camera_poses,
    ceiling_height,
    overview,
    select_frusta,
)

if TYPE_CHECKING:
    import viser

POINT_SIZE_BINS = 4  # viser draws all points of a cloud in one size, so points are split into clouds by size
FRUSTUM_SCALE, SELECTED_FRUSTUM_SCALE = 0.06, 0.11  # of the scene's size
CONFIDENCE_STEP = 1e-4  # confidences of 1 pass the threshold 1 in spite of rounding
THUMBNAIL_WIDTH_PX, SELECTED_THUMBNAIL_WIDTH_PX = 160, 400


@dataclass
class CloudNode:
    """A cloud of the page.

    Attributes:
        handle: viser's handle.
        points: (N, 3) float32.
        colours: (N, 3) uint8 image colours.
        confidence, depth_confidence: (N,) float32 in 0..1; None if unknown.
        unsure: (N,) bool, see `unsure_points`.
        provenance: the class of all its points.
        above_ceiling: whether its points are above the ceiling height.
        point_size: size at which points touch each other.
        empty: whether the thresholds of confidence, and unsure points that are hidden, leave none of its points.
    """

    handle: Any
    points: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray | None
    depth_confidence: np.ndarray | None
    unsure: np.ndarray
    provenance: Provenance
    above_ceiling: bool
    point_size: float
    empty: bool = False

    def confident(self, min_confidence: float, min_depth_confidence: float) -> np.ndarray:
        """(N,) bool, True for points of at least these confidences. Points without a confidence pass."""
        passed = np.ones(len(self.points), dtype=bool)
        limits = ((self.confidence, min_confidence), (self.depth_confidence, min_depth_confidence))
        for confidence, limit in limits:
            if confidence is not None:
                passed &= confidence >= limit - CONFIDENCE_STEP
        return passed


class ViewerScene:
    """The nodes of the page and their visibility. Call `refresh` after a change of the attributes below.

    Attributes:
        clouds: the clouds, split by provenance, height and point size.
        point_count: number of points that were sent to the browser.
        size: typical length of the scene; frusta and lines are drawn in proportion to it.
        has_ceiling: whether some points are above the ceiling height.
        observed_frusta: (handle, view) of the observed views that are drawn.
        path_frusta: (handle, view) of the imagined views that are drawn.
        shown_classes: the classes of the points that are shown.
        unsure_count: number of imagined points whose distance is unsure or that stand alone in the air.
        show_unsure: whether these are shown; call `filter_points` after a change.
        show_observed_cameras, show_path, show_points, show_splats, show_mesh: visibility.
        surfaces: the splats and the mesh.
        moving: the points that move, of the selected view.
        representations: (label, attribute) of what can be shown in several ways; empty if there are points alone.
        hide_ceiling: whether points above the ceiling height are hidden.
        following: whether the browsers look through the cameras of the path.
    """

    def __init__(self, server: viser.ViserServer, viewable: Viewable) -> None:
        self.viewable = viewable
        self._scene = server.scene
        viewpoint = overview(viewable)
        self.size = float(np.linalg.norm(viewpoint.position - viewpoint.look_at) * np.tan(0.5 * viewpoint.fov))
        server.scene.set_up_direction(viewable.up)
        self.clouds: list[CloudNode] = []
        # A tint says nothing where all is of one class.
        self._colouring = TINTED if len(viewable.classes) > 1 else NATURAL
        self._thresholds = 0.0, 0.0
        self.show_unsure = False
        self.point_count = self._add_points()
        self.unsure_count = sum(int(cloud.unsure.sum()) for cloud in self.clouds)
        self.has_ceiling = any(cloud.above_ceiling for cloud in self.clouds)
        self._grid = self._add_grid()
        observed_views, imagined = viewable.observed_views, viewable.imagined
        self.observed_frusta = self._add_frusta("/memory", observed_views, [camera_class(v) for v in observed_views])
        self.path_frusta = self._add_frusta("/path/cameras", imagined, [Provenance.IMAGINED] * len(imagined))
        self._moving_size = float(np.median([c.point_size for c in self.clouds])) if self.clouds else 0.01 * self.size
        self.moving = MovingNode(server, viewable.moving, self._moving_size)
        self._line = self._add_line()
        self._selected: Any = None
        self.shown_classes = set(viewable.classes)
        self.show_observed_cameras = self.show_path = True
        self.hide_ceiling, self.following = self.has_ceiling, False
        self.surfaces = SurfaceNodes(server, viewable.splats, viewable.mesh)
        self.surfaces.recolour(self._colouring)
        # Points would show through splats and mesh.
        self.show_points = viewable.splats is None and viewable.mesh is None
        self.filter_points()

    def refresh(self) -> None:
        """Shows and hides the nodes according to the attributes."""
        for cloud in self.clouds:
            shown = self.show_points and cloud.provenance in self.shown_classes and not cloud.empty
            # A camera of the path is below the ceiling and inside a frustum: show the one, hide the other.
            cloud.handle.visible = shown and not (cloud.above_ceiling and self.hide_ceiling and not self.following)
        self.surfaces.refresh(self.shown_classes)
        for handle, _ in self.observed_frusta:
            handle.visible = self.show_observed_cameras and not self.following
        for handle, _ in self.path_frusta:
            handle.visible = self.show_path and not self.following
        for handle in (self._line, self._selected):
            if handle is not None:
                handle.visible = self.show_path and not self.following

    @property
    def colouring(self) -> str:
        """The one of `COLOURINGS` that is applied."""
        return self._colouring

    def recolour(self, colouring: str) -> None:
        """Applies one of `COLOURINGS` to the points."""
        self._colouring = colouring
        self.surfaces.recolour(colouring)
        self.filter_points()

    def filter_points(self, min_confidence: float | None = None, min_depth_confidence: float | None = None) -> None:
        """Shows only points whose colour and whose distance have at least these confidences, 0..1.

        Points that were observed have confidence 1 in both. None keeps a threshold as it is.
        """
        colour, depth = self._thresholds
        colour = colour if min_confidence is None else min_confidence
        depth = depth if min_depth_confidence is None else min_depth_confidence
        self._thresholds = colour, depth
        self.moving.min_confidence = depth
        self.moving.refresh()
        for cloud in self.clouds:
            kept = cloud.confident(*self._thresholds)
            if not self.show_unsure:
                kept &= ~cloud.unsure
            cloud.empty = not kept.any()
            if not cloud.empty:
                classes = np.full(int(kept.sum()), cloud.provenance)
                cloud.handle.points = cloud.points[kept]
                cloud.handle.colors = colour_points(cloud.colours[kept], classes, self._colouring)
        self.refresh()

    @property
    def representations(self) -> tuple[tuple[str, str], ...]:
        """(label, attribute) of the points, the splats and the mesh, as far as they are there."""
        viewable = self.viewable
        named = (("Splats", "show_splats", viewable.splats), ("Mesh", "show_mesh", viewable.mesh))
        found = [(label, attribute) for label, attribute, there in named if there is not None]
        return (*found, ("Points", "show_points")) if found else ()

    @property
    def show_splats(self) -> bool:
        """Whether the splats are shown."""
        return self.surfaces.show_splats

    @show_splats.setter
    def show_splats(self, shown: bool) -> None:
        self.surfaces.show_splats = shown

    @property
    def show_mesh(self) -> bool:
        """Whether the mesh is shown."""
        return self.surfaces.show_mesh

    @show_mesh.setter
    def show_mesh(self, shown: bool) -> None:
        self.surfaces.show_mesh = shown

    def resize_points(self, factor: float) -> None:
        """Draws the points `factor` times as large as they need to be to touch each other."""
        for cloud in self.clouds:
            cloud.handle.point_size = factor * cloud.point_size
        self.moving.resize(factor * self._moving_size)

    def show_images(self, shown: bool) -> None:
        """Shows or removes the images inside the frusta."""
        for handle, view in (*self.observed_frusta, *self.path_frusta):
            handle.image = _thumbnail(view) if shown else None

    def select(self, index: int) -> None:
        """Marks view `index` of `viewable.slider_views` by a larger frustum with its image."""
        view = self.viewable.slider_views[index]
        if self.viewable.moving:
            self.moving.select(index)
        if self._selected is None:
            self._selected = self._add_frustum(
                "/path/selected", view, SELECTED_FRUSTUM_SCALE, PATH_COLOUR, SELECTED_THUMBNAIL_WIDTH_PX
            )
            self._selected.visible = self.show_path and not self.following
            return
        position, xyzw = quaternion_from_pose(view.world_from_camera)
        self._selected.fov, self._selected.aspect = _fov_and_aspect(view.camera)
        self._selected.position, self._selected.wxyz = position, xyzw[[3, 0, 1, 2]]
        self._selected.image = _thumbnail(view, SELECTED_THUMBNAIL_WIDTH_PX)

    def _add_points(self) -> int:
        viewable, cameras = self.viewable, camera_poses(self.viewable)
        too_many = len(viewable.points) > MAX_POINTS
        distance = camera_distance(viewable.points, cameras) if len(cameras) and too_many else None
        kept = thin_points(viewable.points, viewable.provenance, distance=distance)
        points, colours, provenance = viewable.points[kept], viewable.colours[kept], viewable.provenance[kept]
        if len(points) == 0:
            return 0
        confidence, depth_confidence = (
            None if values is None else values[kept] for values in (viewable.confidence, viewable.depth_confidence)
        )
        unsure = unsure_points(points, provenance, depth_confidence)
        sizes = point_sizes(points)
        edges = np.quantile(sizes, np.linspace(0, 1, POINT_SIZE_BINS + 1)[1:-1])
        size_bin = np.searchsorted(edges, sizes)
        above = points @ viewable.up > ceiling_height(viewable)
        for kind, is_above, number in itertools.product(viewable.classes, (False, True), range(POINT_SIZE_BINS)):
            mask = (provenance == kind) & (above == is_above) & (size_bin == number)
            if not mask.any():
                continue
            size = 0.95 * float(np.quantile(sizes[mask], 0.8))
            handle = self._scene.add_point_cloud(
                f"/cloud/{kind.name.lower()}/{'ceiling' if is_above else 'room'}/{number}",
                points[mask],
                colour_points(colours[mask], provenance[mask], self._colouring),
                point_size=size,
                point_shape="rounded",
                point_shading="flat",
                precision="float32",
            )
            cloud = CloudNode(
                handle,
                points[mask],
                colours[mask],
                confidence=None if confidence is None else confidence[mask],
                depth_confidence=None if depth_confidence is None else depth_confidence[mask],
                unsure=unsure[mask],
                provenance=kind,
                above_ceiling=is_above,
                point_size=size,
            )
            self.clouds.append(cloud)
        return len(points)

    def _add_frusta(self, root: str, views: tuple[View, ...], classes: list[Provenance]) -> list[tuple[Any, View]]:
        frusta = []
        poses = np.array([view.world_from_camera for view in views]).reshape(-1, 4, 4)
        for index in select_frusta(poses, 0.08 * self.size):
            view = views[index]
            colour = PROVENANCE_COLOURS[classes[index]]
            handle = self._add_frustum(f"{root}/{index:04d}", view, FRUSTUM_SCALE, colour, THUMBNAIL_WIDTH_PX)
            frusta.append((handle, view))
        return frusta

    def _add_frustum(self, name: str, view: View, scale: float, colour: tuple[int, int, int], width: int) -> Any:
        position, xyzw = quaternion_from_pose(view.world_from_camera)
        fov, aspect = _fov_and_aspect(view.camera)
        return self._scene.add_camera_frustum(
            name,
            fov=fov,
            aspect=aspect,
            scale=scale * self.size,
            thickness=2.0,
            thickness_units="screen",
            color=colour,
            image=_thumbnail(view, width),
            jpeg_quality=80,
            wxyz=xyzw[[3, 0, 1, 2]],
            position=position,
            cast_shadow=False,
            receive_shadow=False,
        )

    def _add_line(self) -> Any:
        points = self.viewable.path[:, :3, 3].astype(np.float32)
        if len(points) < 2:
            return None
        segments = np.stack([points[:-1], points[1:]], axis=1)
        return self._scene.add_line_segments(
            "/path/line", segments, PATH_COLOUR, thickness=4.0, thickness_units="screen"
        )

    def _add_grid(self) -> Any:
        """Adds a faint grid on the floor; its cells are powers of ten, 1 m in a room."""
        viewable = self.viewable
        if len(viewable.points) == 0:
            return None
        axis = int(np.abs(viewable.up).argmax())
        centre = np.median(viewable.points, axis=0).astype(np.float64)
        floor = float(np.percentile(viewable.points @ viewable.up, 0.5)) - 0.01 * self.size
        position = centre - viewable.up * (centre @ viewable.up - floor)
        cell = 10.0 ** np.round(np.log10(self.size / 3))
        return self._scene.add_grid(
            "/grid",
            plane=("yz", "xz", "xy")[axis],
            width=8 * self.size,
            height=8 * self.size,
            cell_size=cell,
            section_size=5 * cell,
            cell_color=(225, 226, 228),
            section_color=(200, 202, 206),
            infinite_grid=False,
            fade_distance=6 * self.size,
            shadow_opacity=0.0,
            position=position,
        )

    @property
    def grid(self) -> Any:
        """The handle of the grid; None without points."""
        return self._grid


def _fov_and_aspect(camera: Camera) -> tuple[float, float]:
    """(vertical field of view in radians, width over height) of a camera's frustum."""
    return 2 * float(np.arctan(0.5 * camera.height / camera.fy)), (camera.width / camera.fx) * camera.fy / camera.height


def _thumbnail(view: View, width: int = THUMBNAIL_WIDTH_PX) -> np.ndarray:
    import cv2

    camera = view.camera
    if camera.width <= width:
        return view.image
    return cv2.resize(view.image, (width, round(camera.height * width / camera.width)), interpolation=cv2.INTER_AREA)
