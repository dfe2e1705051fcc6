"""Layout of a place: its planes, how far they extend into space that no view observed, and the room they close.

Much of what a robot has not seen of a room belongs to surfaces of which it has seen a part. Planes are detected in the
depth of the observations (`plane_detection.py`), each with the colours observed on it, and sides of the room that no
view saw are assumed (`room_closing.py`). A ray that meets no remembered surface passes through all planes that face
it, except where an observation saw free space. The probability that a plane extends to the point where the ray meets
it decreases exponentially with the distance from where the plane was observed, to that of its side of the room; the
scale grows with the observed area. Behind a side of the room it is lower by the probability of that side.

The estimate is the same from every viewpoint, and never labelled as observed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.geometric.assumed_textures import (
    MIN_EXTENT_M,
    assumed_texture,
    typical_walls,
    wall_profile,
)
from worldstereo_ros.pipelines.geometric.detail_rendering import PackedExamples, add_details, pack_examples
from worldstereo_ros.pipelines.geometric.plane_details import canonical_axes
from worldstereo_ros.pipelines.geometric.plane_detection import (
    GRID_WIDTH,
    TEXTURE_CELLS,
    PlaneSamples,
    PlaneTexture,
    SampledView,
    detect_planes,
    sample_view,
    texture_plane,
)
from worldstereo_ros.pipelines.geometric.plane_examples import SeenSurfaces, find_examples
from worldstereo_ros.pipelines.geometric.plane_rays import (
    FREE_SPACE_M,
    FREE_SPACE_RATIO,
    NEAR_M,
    cast_rays,
    colour_surfaces,
)
from worldstereo_ros.pipelines.geometric.room_closing import Room, close_room
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.utils.jit import run_in_threads, split_range

MAX_VIEWS = 24  # observations that are sampled for planes and for free space
# Estimation of how far a plane extends
EXTENT_SCALE = 1.2  # distance at which the probability is 1 / e, in sides of a square of the observed area
BORDER_CELLS = 2.5  # width of the border around the observed part that is checked for free space
BOUNDED_POWER = 3.0  # of the unbounded fraction of the border: a table top extends less than a floor
PARAMETERS = 15  # of a plane
BLOCK_PX, BLOCKS_FROM_PIXELS = 8, 150_000  # rays of larger images are cast in blocks, see `cast_rays`
SKY_BINS = 16  # of the elevation, 0 to 90 degrees
MIN_PLANE_BEFORE_SKY = 0.5  # probability of a plane above the horizon, outdoors, below which the sky is more likely


class PlaneRender(NamedTuple):
    """What the planes of a layout show of a view; 0 where there is none.

    Attributes:
        colour: (H, W, 3) float32 0..255, mean of the planes that a pixel may show.
        depth: (H, W) float32 metres of the most likely plane.
        probability: (H, W) float32, that the pixel shows one of the planes.
        plane: (H, W) int16, index of the most likely plane, -1 = none.
    """

    colour: np.ndarray
    depth: np.ndarray
    probability: np.ndarray
    plane: np.ndarray


@dataclass(frozen=True)
class Layout:
    """K planes of the world, and V sampled observations that show free space.

    Attributes:
        planes: (K, 15) float32: normal, offset (normal . x = offset), two axes in the plane, the texture's corner in
            these axes, the size of a cell, the distance at which the probability to extend is 1 / e, and the
            probability far away; metres, world frame. Normals point to the side that was observed.
        colours: (K, TEXTURE_CELLS, TEXTURE_CELLS, 3) float32, 0..255.
        distance: (K, TEXTURE_CELLS, TEXTURE_CELLS) float32 metres to where the plane was observed.
        sides: (S, 5) float32 sides of the room: normal into it, offset, probability.
        grid_from_world: (V, 3, 4) float32, from world points to (column, row, 1) of a sampling grid, times depth.
        depths: (V, rows, GRID_WIDTH) float32 metres on that grid, 0 = none was measured, -1 = outside the view.
        room: what is assumed about the place; None if no planes were found.
        sky: (SKY_BINS, 3) float32 0..255 mean colour of the sky by elevation; None without sky.
        axes: (K, 2, 3) float32 axes in each plane that are the same for all planes of a kind.
        seen: what shows the details of the surfaces; None for a layout without details.
        detected: number of detected planes; assumed ones come after them.
    """

    planes: np.ndarray
    colours: np.ndarray
    distance: np.ndarray
    sides: np.ndarray
    grid_from_world: np.ndarray
    depths: np.ndarray
    room: Room | None = None
    sky: np.ndarray | None = None
    axes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3), np.float32))
    seen: SeenSurfaces | None = None
    detected: int = 0

    @cached_property
    def details(self) -> tuple[PackedExamples, np.ndarray]:
        """(details of surfaces at the resolution of the cameras, (K,) int64 index into them of each plane, -1 = none).

        Found when they are first drawn: that takes longer than all the rest of a layout.
        """
        return self.find_details()

    def find_details(self, threads: int = 1) -> tuple[PackedExamples, np.ndarray]:
        """`details`, found by several threads, unless they are known."""
        known = self.__dict__.get("details")
        if known is None:
            known = pack_examples([]), np.full(len(self), -1, np.int64)
            if self.seen is not None:
                known = find_examples(self.seen, threads)
            self.__dict__["details"] = known  # as `cached_property` keeps it
        return known

    def without_closing(self) -> Layout:
        """The detected planes alone, without what is assumed about a room."""
        planes = self.planes[: self.detected].copy()
        planes[:, 14] = 0
        rest = (self.colours[: self.detected], self.distance[: self.detected], self.sides[:0])
        return Layout(planes, *rest, self.grid_from_world, self.depths, detected=self.detected)

    def __len__(self) -> int:
        return len(self.planes)

    def render_view(
        self, camera: Camera, world_from_camera: np.ndarray, *, mask: np.ndarray | None = None, threads: int = 1
    ) -> PlaneRender:
        """Renders the extrapolated planes from a camera; outdoors only those above the horizon that hide the sky.

        Args:
            camera, world_from_camera: camera and (4, 4) pose of the view.
            mask: (H, W) bool, the pixels to render; None: all.
            threads: number of threads to use.
        """
        shape = (camera.height, camera.width)
        out = PlaneRender(
            np.zeros((*shape, 3), np.float32),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            np.full(shape, -1, np.int16),
        )
        arguments = (
            np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32),
            np.ascontiguousarray(world_from_camera[:3], np.float32),
            np.ones(shape, bool) if mask is None else np.ascontiguousarray(mask),
            self.planes,
            self.colours,
            self.distance,
            self.sides,
            self.grid_from_world,
            self.depths,
            *out,
        )
        block = BLOCK_PX if camera.height * camera.width >= BLOCKS_FROM_PIXELS else 1
        bands = split_range(-(-camera.height // block), threads)
        rows = [(block * start, min(block * stop, camera.height)) for start, stop in bands]
        run_in_threads(cast_rays, [(start, stop, block, *arguments) for start, stop in rows])
        if self.sky is not None and self.room is not None:
            above = camera.rays() @ (world_from_camera[:3, :3].T @ self.room.up).astype(np.float32) > 0
            sky = above & (out.probability < MIN_PLANE_BEFORE_SKY)
            out.colour[sky], out.depth[sky], out.probability[sky], out.plane[sky] = 0, 0, 0, -1
        return out

    def render_surfaces(
        self,
        planes: PlaneRender,
        camera: Camera,
        world_from_camera: np.ndarray,
        *,
        details: bool = True,
        seed: int = 0,
        threads: int = 1,
    ) -> np.ndarray:
        """(H, W, 3) float32 grey levels: the most likely plane of each pixel alone; 0 where there is none.

        Args:
            planes: result of `render_view` with the same camera.
            camera, world_from_camera: camera and (4, 4) pose of the view.
            details: add the details of the surfaces to their light and colour.
            seed: another one places the details elsewhere.
            threads: number of threads to use.
        """
        out = np.zeros((*planes.plane.shape, 3), np.float32)
        intrinsics = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32)
        pose = np.ascontiguousarray(world_from_camera[:3], np.float32)
        arguments = (intrinsics, pose, planes.plane, planes.depth, self.planes, self.colours, out)
        rows = split_range(camera.height, threads)
        run_in_threads(colour_surfaces, [(start, stop, *arguments) for start, stop in rows])
        if details:
            surfaces = (*self.find_details(threads), self.axes, self.planes, planes.plane, planes.depth)
            add_details(*surfaces, camera, world_from_camera, out, seed=seed, threads=threads)
        return out


def estimate_layout(views: Sequence[View]) -> Layout:
    """Estimates the planes of a place; there may be none.

    Args:
        views: views of the memory; only observations with depth are used.
    """
    chosen = _select_observations(views)
    return _layout_from_samples(chosen, [sample_view(view) for view in chosen])


class LayoutEstimator:
    """`estimate_layout` with a cache: each view is sampled once, and an unchanged memory costs nothing."""

    def __init__(self) -> None:
        self._samples: OrderedDict[int, tuple[View, SampledView]] = OrderedDict()
        self._last: tuple[tuple[int, ...], Layout] | None = None

    def __call__(self, views: Sequence[View]) -> Layout:
        """See `estimate_layout`."""
        chosen = _select_observations(views)
        # Views are immutable and kept alive by the entry, so their identity is a safe key.
        key = tuple(id(view) for view in chosen)
        if self._last is None or self._last[0] != key:
            for view in chosen:
                if id(view) not in self._samples:
                    self._samples[id(view)] = view, sample_view(view)
                self._samples.move_to_end(id(view))
            self._last = key, _layout_from_samples(chosen, [self._samples[number][1] for number in key])
            while len(self._samples) > 2 * MAX_VIEWS:
                self._samples.popitem(last=False)
        return self._last[1]


def _select_observations(views: Sequence[View]) -> list[View]:
    """At most `MAX_VIEWS` observations with depth, evenly over time."""
    # Observed pixels of an imagined view are copies. Without them the layout stays the same while views are imagined.
    observations = [view for view in views if view.depth is not None and view.observed is None]
    return [observations[index] for index in evenly_spaced_indices(len(observations), MAX_VIEWS)]


def _layout_from_samples(observations: list[View], views: list[SampledView]) -> Layout:
    parts = [view.samples for view in views if len(view.samples.points)]
    textures: list[PlaneTexture] = []
    inliers: list[np.ndarray] = []
    if parts:
        samples = PlaneSamples.concatenate(parts)
        for plane in detect_planes(samples, np.random.default_rng(0)):
            texture = texture_plane(plane.normal, plane.offset, samples.subset(plane.inliers))
            if texture is not None:
                textures.append(texture)
                inliers.append(plane.inliers)
    if not textures:
        empty = (0, TEXTURE_CELLS, TEXTURE_CELLS)
        arrays = [np.zeros((0, PARAMETERS)), np.zeros((*empty, 3)), np.zeros(empty), np.zeros((0, 5))]
        planes, colours, distance, sides = (array.astype(np.float32) for array in arrays)
        return Layout(
            planes, colours, distance, sides, np.zeros((0, 3, 4), np.float32), np.zeros((0, 1, 1), np.float32)
        )
    depths = np.full((len(views), max(len(view.depth) for view in views), GRID_WIDTH), np.float32(-1))
    for index, view in enumerate(views):
        depths[index, : len(view.depth)] = view.depth
    grid_from_world = np.stack([view.grid_from_world for view in views]).astype(np.float32)
    room = close_room(textures, samples, views, metric=all(view.metric for view in observations))
    planes, colours, distances = (np.stack(column) for column in zip(*textures, strict=True))
    planes = np.concatenate([planes, np.zeros((len(planes), 1), np.float32)], axis=1)
    for plane, distance in zip(planes, distances, strict=True):
        fraction = _unbounded_fraction(plane, distance, grid_from_world, depths) ** BOUNDED_POWER
        plane[13] = max(EXTENT_SCALE * plane[13] * fraction, MIN_EXTENT_M)
    for side in room.sides:
        if side.source >= 0:
            planes[side.source, 14] = side.probability
    unseen = [side for side in room.sides if side.source < 0]
    typical = typical_walls(samples, inliers, room.kinds)
    if unseen:
        profile = wall_profile(samples, [inliers[wall] for wall in typical], room)
        assumed = [assumed_texture(side, room, samples, profile) for side in unseen]
        planes, colours, distances = (
            np.concatenate([known, np.stack(new)])
            for known, new in zip((planes, colours, distances), zip(*assumed, strict=True), strict=True)
        )
    sides = np.array([[*side.normal, side.offset, side.probability] for side in room.sides], np.float32).reshape(-1, 5)
    return Layout(
        *(planes, colours, distances, sides, grid_from_world, depths),
        room=room,
        sky=_sky(observations, views, room),
        axes=np.stack([canonical_axes(p[:3].astype(float), room.up, room.axis) for p in planes]).astype(np.float32),
        seen=SeenSurfaces(observations, textures, room, typical),
        detected=len(textures),
    )


def _sky(observations: list[View], views: list[SampledView], room: Room) -> np.ndarray | None:
    """(SKY_BINS, 3) float32 colour of the sky by elevation; None indoors, or if no view saw it."""
    if not room.outdoors:
        return None
    sums, counts = np.zeros((SKY_BINS, 3)), np.zeros(SKY_BINS)
    for view, sampled in zip(observations, views, strict=True):
        elevation = np.arcsin(np.clip(sampled.directions @ room.up, -1, 1))
        sky = (sampled.depth <= 0) & (elevation > 0)
        image = _reduced(view.image, sampled.depth.shape)
        bins = np.minimum((elevation[sky] / (np.pi / 2) * SKY_BINS).astype(int), SKY_BINS - 1)
        counts += np.bincount(bins, minlength=SKY_BINS)
        sums += np.stack([np.bincount(bins, image[sky][:, c], SKY_BINS) for c in range(3)], axis=-1)
    if not counts.any():
        return None
    means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    known = (counts > 0).astype(np.float32)
    return push_pull(np.repeat(means[:, None], 4, axis=1), np.repeat(known[:, None], 4, axis=1))[:, 0]


def _reduced(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return resize_image(image, shape[1], shape[0]).astype(np.float32)


def _unbounded_fraction(
    plane: np.ndarray, distance: np.ndarray, grid_from_world: np.ndarray, depths: np.ndarray
) -> float:
    """Fraction of a plane's border, just beyond its observed part, that no view observed as free space."""
    cell = float(plane[12])
    rows, columns = np.nonzero((distance > 0) & (distance <= BORDER_CELLS * cell))
    uv = plane[10:12] + (np.stack([columns, rows], axis=1) + 0.5) * cell
    points = plane[3] * plane[:3] + uv @ plane[4:10].reshape(2, 3)
    free = np.zeros(len(points), bool)
    for matrix, depth in zip(grid_from_world, depths, strict=True):
        u, v, w = matrix[:, :3] @ points.T + matrix[:, 3:]
        ahead = w > NEAR_M
        z = np.where(ahead, w, 1)
        column, row = np.floor(u / z + 0.5).astype(int), np.floor(v / z + 0.5).astype(int)
        inside = ahead & (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
        measured = depth[row.clip(0, depth.shape[0] - 1), column.clip(0, depth.shape[1] - 1)]
        free |= inside & ((measured == 0) | (measured > w * FREE_SPACE_RATIO + FREE_SPACE_M))
    return 1 - float(free.mean()) if len(points) else 1.0
