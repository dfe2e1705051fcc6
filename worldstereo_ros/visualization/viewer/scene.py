"""The three-dimensional part of the page: points, cameras, path, and where one looks at them from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR
from worldstereo_ros.visualization.viewer.loading import Viewable

if TYPE_CHECKING:
    import viser

POINT_BUDGET = 600_000  # points sent to a browser: 9 MB, and fluid on a laptop without a graphics card
MAX_FRUSTA = 48  # of the path, and as many of the memory; more hide the cloud
PATH_COLOUR = (220, 40, 60)
TINTED, NATURAL, PROVENANCE = "as seen, imagined tinted", "as seen", "blue observed, orange imagined"
COLOURINGS = (TINTED, NATURAL, PROVENANCE)
_BANDS = 4  # point clouds of one point size each; the page has one size a cloud


# --- arithmetic -------------------------------------------------------------------------------------------------------


def thin(
    points: np.ndarray, observed: np.ndarray, budget: int = POINT_BUDGET, distance: np.ndarray | None = None
) -> np.ndarray:
    """Indices of at most `budget` points, one a voxel, so that surfaces stay evenly covered.

    Args:
        points: (N, 3). observed: (N,) bool; of two points in a voxel the observed one stays.
        budget: most indices returned, at least 1.
        distance: (N,) of the points from the nearest camera; voxels double with every doubling of it beyond the
            median, so that what is far away does not take the points of what is near. None = one size for all.

    Returns:
        (M,) int64, sorted.
    """
    if len(points) <= budget:
        return np.arange(len(points))
    order = np.argsort(~observed, kind="stable")
    ordered = points[order].astype(np.float64)
    level = np.zeros(len(ordered), dtype=np.int64)
    if distance is not None:
        relative = distance[order] / max(float(np.median(distance)), 1e-9)
        level = np.clip(np.floor(np.log2(np.maximum(relative, 1e-9))), 0, 7).astype(np.int64)
    scaled = (ordered - np.median(ordered, axis=0)) / 2.0 ** level[:, None]
    # Points lie on surfaces: their number goes with the square of the voxel. A few steps find the size.
    voxel = (float(np.linalg.norm(np.ptp(scaled, axis=0))) or 1.0) / np.sqrt(4.0 * budget)
    too_small, large_enough, kept = 0.0, np.inf, np.arange(len(ordered))
    for _ in range(9):
        cells = np.clip(np.floor(scaled / voxel), -(2**19), 2**19 - 1).astype(np.int64) + 2**19
        key = (level << 60) | (cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2]
        _, first = np.unique(key, return_index=True)
        if len(first) > budget:
            too_small = voxel
        else:
            large_enough, kept = voxel, first
            if len(first) >= 0.85 * budget:
                break
        guess = voxel * float(np.clip(np.sqrt(len(first) / (0.92 * budget)), 0.25, 4.0))
        bracketed = too_small > 0 and np.isfinite(large_enough)
        voxel = np.sqrt(too_small * large_enough) if bracketed else guess
    if len(kept) > budget:
        kept = np.random.default_rng(0).choice(kept, budget, replace=False)
    return np.sort(order[kept])


def camera_distance(points: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """(N,) distance of points (N, 3) from the nearest of cameras (F, 4, 4), F >= 1."""
    from scipy.spatial import cKDTree

    return cKDTree(cameras[:, :3, 3]).query(points, workers=2)[0]


def point_sizes(points: np.ndarray) -> np.ndarray:
    """(N,) float32, how large each point must be drawn to touch its neighbours, in the unit of the points.

    It is the distance to the third nearest neighbour, at most three times the median so that strays stay small.
    """
    from scipy.spatial import cKDTree

    if len(points) < 4:
        return np.full(len(points), 0.02, dtype=np.float32)
    distance, _ = cKDTree(points, compact_nodes=False, balanced_tree=False).query(points, k=4, workers=2)
    size = distance[:, 3].astype(np.float32)
    middle = float(np.median(size)) or 0.01
    return np.clip(size, 0.3 * middle, 3 * middle)


def coloured(colours: np.ndarray, observed: np.ndarray, colouring: str) -> np.ndarray:
    """(N, 3) uint8: the points' colours under one of `COLOURINGS`."""
    if colouring == NATURAL or len(colours) == 0:
        return colours
    tint = np.where(observed[:, None], OBSERVED_COLOUR, IMAGINED_COLOUR).astype(np.float32)
    if colouring == TINTED:
        strength = np.where(observed, 0.0, 0.5)[:, None]
        return ((1 - strength) * colours + strength * tint).astype(np.uint8)
    if colouring == PROVENANCE:
        grey = colours.astype(np.float32).mean(axis=1, keepdims=True) / 255
        return np.clip(tint * (0.45 + 0.9 * grey), 0, 255).astype(np.uint8)
    raise InputError(f"'{colouring}' is no colouring; one of {', '.join(COLOURINGS)} was expected.")


def ceiling_height(viewable: Viewable) -> float:
    """Height along `up` above which points hide the scene from one who looks down on it; infinity without cameras."""
    cameras = _poses(viewable)
    if len(cameras) == 0 or len(viewable.points) == 0:
        return float("inf")
    heights = cameras[:, :3, 3] @ viewable.up
    floor = float(np.percentile(viewable.points @ viewable.up, 1))
    return float(heights.max() + max(0.35 * (np.median(heights) - floor), 0.05 * (heights.max() - floor)))


def apart(poses: np.ndarray, distance: float, angle: float = np.radians(15)) -> list[int]:
    """Indices of cameras that stand or look apart from the last one kept, so that their frusta do not hide each other.

    Args:
        poses: (N, 4, 4) world_from_camera, in order.
        distance: that counts as apart; and `angle` in radians. Both grow until at most `MAX_FRUSTA` are left.
    """
    while True:
        kept: list[int] = []
        for index, pose in enumerate(poses):
            if kept:
                last = poses[kept[-1]]
                turned = float(np.arccos(np.clip(pose[:3, 2] @ last[:3, 2], -1, 1)))
                if np.linalg.norm(pose[:3, 3] - last[:3, 3]) < distance and turned < angle:
                    continue
            kept.append(index)
        if len(kept) <= MAX_FRUSTA:
            return kept
        distance, angle = 1.3 * distance, 1.3 * angle


@dataclass(frozen=True)
class Viewpoint:
    """Where one looks from: position, point looked at, and vertical field of view in radians."""

    position: np.ndarray
    look_at: np.ndarray
    fov: float


def overview(viewable: Viewable, *, pitch: float = np.radians(42), fov: float = np.radians(50)) -> Viewpoint:
    """From behind and above the first camera, so that the cloud and the path fill the page.

    Args:
        viewable: what is shown.
        pitch: how far one looks down, radians below the horizon.
        fov: vertical field of view, radians.
    """
    up, cameras = viewable.up, _poses(viewable)
    points = viewable.points[:: max(1, len(viewable.points) // 50_000)].astype(np.float64)
    points = points[points @ up < ceiling_height(viewable)] if len(points) else points
    if len(points) and len(cameras):
        # What is seen through a window is far away: it must not decide how large the room is on the page.
        away = camera_distance(points, cameras)
        points = points[away <= 1.8 * np.median(away)]
    if len(points) == 0:
        points = cameras[:, :3, 3] if len(cameras) else np.zeros((1, 3))
    low, high = np.percentile(points, 3, axis=0), np.percentile(points, 97, axis=0)
    points = points[((points >= low) & (points <= high)).all(axis=1)] if len(points) > 100 else points
    forward = np.cos(pitch) * _ahead(cameras, up) - np.sin(pitch) * up
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    seen = np.concatenate([points, cameras[:, :3, 3]]) @ axes
    # The panels take the right and the lower edge of the page; what remains is about square.
    reach = 0.74 * np.tan(0.5 * fov)
    middle = 0.5 * (seen.min(axis=0) + seen.max(axis=0))
    aside = np.abs(seen - middle)[:, :2].max(axis=1)
    distance = max(float((aside / reach - (seen - middle)[:, 2]).max()), 0.5 * float(np.ptp(seen[:, 2])), 1e-2)
    middle[1] += 0.2 * distance * np.tan(0.5 * fov)
    look_at = axes @ middle
    return Viewpoint(look_at - distance * forward, look_at, fov)


def from_above(viewable: Viewable) -> Viewpoint:
    """Straight down, the direction of the first camera upwards on the page."""
    return overview(viewable, pitch=np.radians(89.5))


def _ahead(cameras: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(3,) horizontal unit vector: where the first camera looks, turned a little so that walls do not line up."""
    ahead = cameras[0, :3, 2] - up * (cameras[0, :3, 2] @ up) if len(cameras) else np.zeros(3)
    if np.linalg.norm(ahead) < 1e-3:
        ahead = np.roll(up, 1)
    ahead = ahead / np.linalg.norm(ahead)
    turn = np.radians(25)
    return np.cos(turn) * ahead + np.sin(turn) * np.cross(up, ahead)


def _poses(viewable: Viewable) -> np.ndarray:
    """(N, 4, 4) the cameras of the path, else those of the memory."""
    if len(viewable.path):
        return viewable.path
    return np.array([view.world_from_camera for view in viewable.given]).reshape(-1, 4, 4)


# --- the nodes of the scene -------------------------------------------------------------------------------------------


@dataclass
class _Points:
    """One cloud of the page: a handle, and what is needed to colour, size, show and hide it."""

    handle: Any
    colours: np.ndarray
    observed: bool
    above: bool
    size: float


class ViewerScene:
    """The nodes of the page and what is shown of them.

    Attributes:
        shown_points: number of points that were sent.
        size: a length that is typical of the scene; frusta and lines are drawn in proportion to it.
        has_ceiling: some points lie above the cameras, so that cutting them away shows more.
    """

    def __init__(self, server: viser.ViserServer, viewable: Viewable) -> None:
        self.viewable = viewable
        self._scene = server.scene
        look = overview(viewable)
        self.size = float(np.linalg.norm(look.position - look.look_at) * np.tan(0.5 * look.fov))
        server.scene.set_up_direction(viewable.up)
        self._points: list[_Points] = []
        self.shown_points = self._add_points()
        self.has_ceiling = any(part.above for part in self._points)
        self._grid = self._add_grid()
        self.given_frusta = self._add_frusta("/memory", viewable.given)
        self.path_frusta = self._add_frusta("/path/cameras", viewable.imagined)
        self._line = self._add_line()
        self._selected: Any = None
        self.show_given = self.show_path = self.show_observed = self.show_imagined = self.pictures = True
        self.cut_ceiling, self.riding = self.has_ceiling, False
        self.refresh()

    def refresh(self) -> None:
        """Shows and hides the nodes as the attributes `show_...`, `cut_ceiling` and `riding` say."""
        for part in self._points:
            wanted = self.show_observed if part.observed else self.show_imagined
            # Who rides the path looks from below the ceiling, and would stand inside the frusta.
            part.handle.visible = wanted and not (part.above and self.cut_ceiling and not self.riding)
        for handle, _ in self.given_frusta:
            handle.visible = self.show_given and not self.riding
        for handle, _ in self.path_frusta:
            handle.visible = self.show_path and not self.riding
        for handle in (self._line, self._selected):
            if handle is not None:
                handle.visible = self.show_path and not self.riding

    def recolour(self, colouring: str) -> None:
        """Colours the points; `colouring` is one of `COLOURINGS`."""
        for part in self._points:
            flags = np.full(len(part.colours), part.observed)
            part.handle.colors = coloured(part.colours, flags, colouring)

    def resize_points(self, factor: float) -> None:
        """Draws the points `factor` times as large as they need to be to touch each other."""
        for part in self._points:
            part.handle.point_size = factor * part.size

    def show_pictures(self, pictures: bool) -> None:
        """Shows or removes the pictures inside the frusta."""
        for handle, view in (*self.given_frusta, *self.path_frusta):
            handle.image = _thumbnail(view) if pictures else None

    def select(self, index: int) -> None:
        """Marks the view `index` of `viewable.stepped` by a larger frustum with its picture."""
        view = self.viewable.stepped[index]
        if self._selected is None:
            self._selected = self._frustum("/path/selected", view, 0.11, PATH_COLOUR, width=400)
            self._selected.visible = self.show_path and not self.riding
            return
        position, xyzw = quaternion_from_pose(view.world_from_camera)
        self._selected.fov, self._selected.aspect = _lens(view.camera)
        self._selected.position, self._selected.wxyz = position, xyzw[[3, 0, 1, 2]]
        self._selected.image = _thumbnail(view, 400)

    def _add_points(self) -> int:
        viewable = self.viewable
        cameras, everything = _poses(viewable), viewable.points
        distance = camera_distance(everything, cameras) if len(cameras) and len(everything) > POINT_BUDGET else None
        kept = thin(everything, viewable.observed, distance=distance)
        points, colours, observed = viewable.points[kept], viewable.colours[kept], viewable.observed[kept]
        if len(points) == 0:
            return 0
        sizes = point_sizes(points)
        edges = np.quantile(sizes, np.linspace(0, 1, _BANDS + 1)[1:-1])
        band = np.searchsorted(edges, sizes)
        above = points @ viewable.up > ceiling_height(viewable)
        for is_observed in (True, False):
            for is_above in (False, True):
                for number in range(_BANDS):
                    chosen = (observed == is_observed) & (above == is_above) & (band == number)
                    if not chosen.any():
                        continue
                    size = 0.95 * float(np.quantile(sizes[chosen], 0.8))
                    origin = "observed" if is_observed else "imagined"
                    handle = self._scene.add_point_cloud(
                        f"/cloud/{origin}/{'ceiling' if is_above else 'room'}/{number}",
                        points[chosen],
                        coloured(colours[chosen], observed[chosen], TINTED),
                        point_size=size,
                        point_shape="rounded",
                        point_shading="flat",
                        precision="float32",
                    )
                    self._points.append(_Points(handle, colours[chosen], is_observed, is_above, size))
        return len(points)

    def _add_frusta(self, root: str, views: tuple[View, ...]) -> list[tuple[Any, View]]:
        frusta = []
        poses = np.array([view.world_from_camera for view in views]).reshape(-1, 4, 4)
        for index in apart(poses, 0.08 * self.size):
            remembered = root == "/memory" and views[index].observed_mask.mean() > 0.5
            colour = OBSERVED_COLOUR if remembered else IMAGINED_COLOUR
            handle = self._frustum(f"{root}/{index:04d}", views[index], 0.06, colour, width=160)
            frusta.append((handle, views[index]))
        return frusta

    def _frustum(self, name: str, view: View, scale: float, colour: tuple[int, int, int], width: int) -> Any:
        position, xyzw = quaternion_from_pose(view.world_from_camera)
        fov, aspect = _lens(view.camera)
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
        """A faint grid on the floor; its cells are 1 m where the unit is the metre."""
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
        """The handle of the grid, None where there are no points."""
        return self._grid


def _lens(camera: Camera) -> tuple[float, float]:
    """(vertical field of view in radians, width over height) of a camera's frustum."""
    return 2 * float(np.arctan(0.5 * camera.height / camera.fy)), (camera.width / camera.fx) * camera.fy / camera.height


def _thumbnail(view: View, width: int = 160) -> np.ndarray:
    import cv2

    camera = view.camera
    if camera.width <= width:
        return view.image
    return cv2.resize(view.image, (width, round(camera.height * width / camera.width)), interpolation=cv2.INTER_AREA)
