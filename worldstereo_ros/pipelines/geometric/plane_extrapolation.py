"""Plane extrapolation: how floors, walls and ceilings extend into space that no view observed.

Much of what a robot has not seen of a room belongs to surfaces of which it has seen a part. Planes are detected in the
depth of the observations (`plane_detection.py`), each with the colours observed on it. A ray that meets no remembered
surface passes through all planes that face it, except where an observation saw free space. The probability that a plane
extends to the point where the ray meets it decreases exponentially with the distance from where the plane was observed;
the scale grows with the observed area. The ray shows the nearest plane that exists: its colour is the expectation over
the planes, blended with the smooth fill by the probability that there is none.

The estimate is the same from every viewpoint, and never labelled as observed. Models with `layout_channels` get it as
input (`render_layout`) and learn how far to rely on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.imaging.resizing import resize_image
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
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

MAX_VIEWS = 24  # observations that are sampled for planes and for free space
# Estimation of how far a plane extends
EXTENT_SCALE = 1.2  # distance at which the probability is 1 / e, in sides of a square of the observed area
MIN_EXTENT_M = 1e-3  # the same for a plane that is bounded all around
BORDER_CELLS = 2.5  # width of the border around the observed part that is checked for free space
BOUNDED_POWER = 3.0  # of the unbounded fraction of the border: a table top extends less than a floor
FREE_SPACE_RATIO, FREE_SPACE_M = 1.08, 0.08  # a point this much nearer than the measured depth is in free space
# Ray casting
NEAR_M = 0.05
MIN_PROBABILITY = 0.02  # below, a plane is ignored
# Rendering for the model
SUPERSAMPLING = 2  # rays per pixel, along each side
LATENT_PX = 8  # pixels of a latent, along each side
PLANE_CHANNELS = 4  # see `LayoutRender`
BLEND_PX = 5  # over which extrapolated planes blend into the smooth fill
MAX_LOG_DEPTH = 2.0  # limit of the channels that are logarithms
REFERENCE_DEPTH_M = 3.0  # whose logarithm is 0
DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M = 0.05, 0.05  # two depths within it are of one surface
TEXTURE_PRIOR_WEIGHT = 0.05  # how soon colours return to the texture, away from remembered pixels


class PlaneRender(NamedTuple):
    """What the planes of a layout show of a view; 0 where there is none.

    Attributes:
        colour: (H, W, 3) float32 0..255, mean of the planes that a pixel may show.
        depth: (H, W) float32 metres of the most likely plane.
        probability: (H, W) float32, that the pixel shows one of the planes.
    """

    colour: np.ndarray
    depth: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Layout:
    """K planes of the world, and V sampled observations that show free space.

    Attributes:
        planes: (K, 14) float32: normal, offset (normal . x = offset), two axes in the plane, the texture's corner in
            these axes, the size of a cell, and the distance at which the probability to extend is 1 / e; metres, world
            frame. Normals point to the side that was observed.
        colours: (K, TEXTURE_CELLS, TEXTURE_CELLS, 3) float32, 0..255.
        distance: (K, TEXTURE_CELLS, TEXTURE_CELLS) float32 metres to where the plane was observed.
        grid_from_world: (V, 3, 4) float32, from world points to (column, row, 1) of a sampling grid, times depth.
        depths: (V, rows, GRID_WIDTH) float32 metres on that grid, 0 = none was measured, -1 = outside the view.
    """

    planes: np.ndarray
    colours: np.ndarray
    distance: np.ndarray
    grid_from_world: np.ndarray
    depths: np.ndarray

    def __len__(self) -> int:
        return len(self.planes)

    def render_view(
        self, camera: Camera, world_from_camera: np.ndarray, *, mask: np.ndarray | None = None, threads: int = 1
    ) -> PlaneRender:
        """Renders the extrapolated planes from a camera.

        Args:
            camera, world_from_camera: camera and (4, 4) pose of the view.
            mask: (H, W) bool, the pixels to render; None: all.
            threads: number of threads to use.
        """
        shape = (camera.height, camera.width)
        out = PlaneRender(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        arguments = (
            np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32),
            np.ascontiguousarray(world_from_camera[:3], np.float32),
            np.ones(shape, bool) if mask is None else np.ascontiguousarray(mask),
            self.planes,
            self.colours,
            self.distance,
            self.grid_from_world,
            self.depths,
            *out,
        )
        run_in_threads(_cast_rays, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])
        return out


@dataclass(frozen=True)
class LayoutRender:
    """The layout in F views, as a model takes it.

    Attributes:
        images: (F, 3, H, W) float32 0..1: the warped views, with extrapolated planes blended into their smooth fills.
        plane_channels: (F, PLANE_CHANNELS, H / LATENT_PX, W / LATENT_PX) float32: fraction of the pixels where a known
            plane may extend; the probability that it does; log of its depth over the depth of the smooth fill; log of
            the latter over `REFERENCE_DEPTH_M`.
    """

    images: np.ndarray
    plane_channels: np.ndarray


def estimate_layout(views: Sequence[View]) -> Layout:
    """Estimates the planes of a place; there may be none.

    Args:
        views: views of the memory; only observations with depth are used.
    """
    return _layout_from_samples([sample_view(view) for view in _select_observations(views)])


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
            self._last = key, _layout_from_samples([self._samples[number][1] for number in key])
            while len(self._samples) > 2 * MAX_VIEWS:
                self._samples.popitem(last=False)
        return self._last[1]


def _select_observations(views: Sequence[View]) -> list[View]:
    """At most `MAX_VIEWS` observations with depth, evenly over time."""
    # Observed pixels of an imagined view are copies. Without them the layout stays the same while views are imagined.
    observations = [view for view in views if view.depth is not None and view.observed is None]
    return [observations[index] for index in evenly_spaced_indices(len(observations), MAX_VIEWS)]


def _layout_from_samples(views: list[SampledView]) -> Layout:
    parts = [view.samples for view in views if len(view.samples.points)]
    textures: list[PlaneTexture] = []
    if parts:
        samples = PlaneSamples.concatenate(parts)
        for plane in detect_planes(samples, np.random.default_rng(0)):
            texture = texture_plane(plane.normal, plane.offset, samples.subset(plane.inliers))
            if texture is not None:
                textures.append(texture)
    if not textures:
        empty = (0, TEXTURE_CELLS, TEXTURE_CELLS)
        arrays = np.zeros((0, 14)), np.zeros((*empty, 3)), np.zeros(empty), np.zeros((0, 3, 4)), np.zeros((0, 1, 1))
        return Layout(*(array.astype(np.float32) for array in arrays))
    depths = np.full((len(views), max(len(view.depth) for view in views), GRID_WIDTH), np.float32(-1))
    for index, view in enumerate(views):
        depths[index, : len(view.depth)] = view.depth
    grid_from_world = np.stack([view.grid_from_world for view in views]).astype(np.float32)
    planes, colours, distances = (np.stack(column) for column in zip(*textures, strict=True))
    for plane, distance in zip(planes, distances, strict=True):
        fraction = _unbounded_fraction(plane, distance, grid_from_world, depths) ** BOUNDED_POWER
        plane[13] = max(EXTENT_SCALE * plane[13] * fraction, MIN_EXTENT_M)
    return Layout(planes, colours, distances, grid_from_world, depths)


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


def render_layout(
    layout: Layout,
    warped_views: Sequence[WarpedView],
    camera: Camera,
    poses: np.ndarray,
) -> LayoutRender:
    """Renders the layout into the views of a clip.

    Args:
        layout: layout of the whole memory.
        warped_views: the F views as warped from memory, at any size.
        camera: camera of the model's images; height and width are multiples of `LATENT_PX`.
        poses: (F, 4, 4) world_from_camera.
    """
    parts = [
        _render_one(layout, warped, camera, pose) for warped, pose in zip(warped_views, np.asarray(poses), strict=True)
    ]
    return LayoutRender(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def _render_one(layout: Layout, warped: WarpedView, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image (3, H, W) and the plane channels of one view."""
    fine = camera.resized(camera.width * SUPERSAMPLING, camera.height * SUPERSAMPLING)
    size = (fine.width, fine.height)
    image, valid, filled = warped.image, warped.valid_mask, warped.depth
    if image.shape[:2] != size[::-1]:
        image = resize_image(image, *size)
        valid = cv2.resize(valid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        filled = cv2.resize(filled, size, interpolation=cv2.INTER_NEAREST)
    out, filled_depth = image.astype(np.float32), np.maximum(filled, NEAR_M)
    may_extend, probability, log_ratio = (np.zeros(out.shape[:2], np.float32) for _ in range(3))
    if len(layout) and not valid.all():
        planes = layout.render_view(fine, pose)
        hit = planes.depth > 0
        same_surface = (
            valid & hit & (np.abs(filled - planes.depth) < DEPTH_TOLERANCE_RATIO * planes.depth + DEPTH_TOLERANCE_M)
        )
        # Near remembered pixels of the same plane, the texture takes over their exact colours.
        difference = np.where(same_surface[..., None], out - planes.colour, np.float32(0))
        colour = planes.colour + push_pull(
            difference,
            same_surface.astype(np.float32),
            prior=np.zeros(3, np.float32),
            prior_weight=TEXTURE_PRIOR_WEIGHT,
        )
        share = np.where(valid, 0, cv2.blur(planes.probability, (BLEND_PX, BLEND_PX)))[..., None]
        out += share * (np.where(hit[..., None], colour, out) - out)
        extended = ~valid & hit
        may_extend[extended] = 1
        probability[extended] = planes.probability[extended]
        ratio = np.log(planes.depth[extended] / filled_depth[extended])
        log_ratio[extended] = np.clip(ratio, -MAX_LOG_DEPTH, MAX_LOG_DEPTH)
    log_depth = np.clip(np.log(filled_depth / REFERENCE_DEPTH_M), -MAX_LOG_DEPTH, MAX_LOG_DEPTH)
    channels = np.stack([may_extend, probability, log_ratio, log_depth], axis=-1)
    channels = cv2.resize(
        channels, (camera.width // LATENT_PX, camera.height // LATENT_PX), interpolation=cv2.INTER_AREA
    )
    out = cv2.resize(out, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.clip(out / 255, 0, 1).transpose(2, 0, 1).astype(np.float32), channels.transpose(2, 0, 1)


@compiled
def _cast_rays(
    row0, row1, intrinsics, pose, mask, planes, colours, distance, views, depths, out_colour, out_depth, out_probability
):
    """Casts the rays of rows row0..row1 through all planes that face the camera, the nearest first.

    Args:
        row0, row1: rows to do.
        intrinsics: (4,) float32: 1 / fx, 1 / fy, cx, cy.
        pose: (3, 4) float32 world from camera.
        mask: (H, W) bool, the pixels to do.
        planes, colours, distance, views, depths: attributes of `Layout` (views: `grid_from_world`).
        out_colour: (H, W, 3) float32, out_depth, out_probability: (H, W) float32: zeros, written where a plane is.
    """
    cells = colours.shape[1]
    last = np.float32(cells - 1)
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    ahead = np.empty(len(planes), np.float32)
    for y in range(row0, row1):
        for x in range(out_depth.shape[1]):
            if not mask[y, x]:
                continue
            rx = (np.float32(x) - intrinsics[2]) * intrinsics[0]
            ry = (np.float32(y) - intrinsics[3]) * intrinsics[1]
            dx = pose[0, 0] * rx + pose[0, 1] * ry + pose[0, 2]
            dy = pose[1, 0] * rx + pose[1, 1] * ry + pose[1, 2]
            dz = pose[2, 0] * rx + pose[2, 1] * ry + pose[2, 2]
            for k in range(len(planes)):
                p = planes[k]
                towards = p[0] * dx + p[1] * dy + p[2] * dz
                offset = p[3] - (p[0] * pose[0, 3] + p[1] * pose[1, 3] + p[2] * pose[2, 3])
                ahead[k] = offset / towards if towards < np.float32(-1e-4) else zero
            remaining, most = one, zero
            for _ in range(len(planes)):
                best, z = -1, np.float32(1e9)
                for k in range(len(planes)):
                    if np.float32(NEAR_M) < ahead[k] < z:
                        best, z = k, ahead[k]
                if best < 0 or remaining < np.float32(MIN_PROBABILITY):
                    break
                ahead[best] = zero
                p = planes[best]
                hx, hy, hz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
                u = (p[4] * hx + p[5] * hy + p[6] * hz - p[10]) / p[12] - half
                v = (p[7] * hx + p[8] * hy + p[9] * hz - p[11]) / p[12] - half
                cu, cv = min(max(u, zero), last), min(max(v, zero), last)
                beyond = p[12] * (abs(u - cu) + abs(v - cv))
                beyond += distance[best, int(cv + half), int(cu + half)]
                share = remaining * np.exp(-beyond / p[13])
                if share < np.float32(MIN_PROBABILITY):
                    continue
                free = False
                for i in range(len(views)):
                    m = views[i]
                    w = m[2, 0] * hx + m[2, 1] * hy + m[2, 2] * hz + m[2, 3]
                    if w < np.float32(NEAR_M):
                        continue
                    a = int(np.floor((m[0, 0] * hx + m[0, 1] * hy + m[0, 2] * hz + m[0, 3]) / w + half))
                    b = int(np.floor((m[1, 0] * hx + m[1, 1] * hy + m[1, 2] * hz + m[1, 3]) / w + half))
                    if a < 0 or b < 0 or a >= depths.shape[2] or b >= depths.shape[1]:
                        continue
                    measured = depths[i, b, a]
                    if measured < zero:
                        continue
                    if measured == zero or measured > w * np.float32(FREE_SPACE_RATIO) + np.float32(FREE_SPACE_M):
                        free = True
                        break
                if free:
                    continue
                x0, y0 = min(int(cu), cells - 2), min(int(cv), cells - 2)
                fx, fy = cu - np.float32(x0), cv - np.float32(y0)
                for c in range(3):
                    upper = colours[best, y0, x0, c] * (one - fx) + colours[best, y0, x0 + 1, c] * fx
                    lower = colours[best, y0 + 1, x0, c] * (one - fx) + colours[best, y0 + 1, x0 + 1, c] * fx
                    out_colour[y, x, c] += share * (upper * (one - fy) + lower * fy)
                out_probability[y, x] += share
                remaining -= share
                if share > most:
                    most, out_depth[y, x] = share, z
            if out_probability[y, x] > zero:
                for c in range(3):
                    out_colour[y, x, c] /= out_probability[y, x]
