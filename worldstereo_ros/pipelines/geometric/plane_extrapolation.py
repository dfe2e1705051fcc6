"""Large flat surfaces gone on with: where a floor, a wall or a ceiling would be in places that nobody saw.

Most of what a robot has not seen of a room belongs to surfaces of which it has seen a part. From the depth of the
remembered views planes are found (RANSAC with normals, Fischler and Bolles 1981), each with the colours seen on it,
spread smoothly over the plane. A ray that meets nothing remembered passes through all planes that face it, but for
those that stand where a remembered view looked through. How likely a plane goes on to where the ray meets it falls
with the distance from where it was seen, in measures of how much of it was seen; the nearest that is there is what
the ray shows. The colour is the mean of all that it may be, mixed with the smooth fill as far as it may be none.

That is a guess, and the same from wherever one looks. Nothing of it is ever claimed to be observed. A model with
`layout_channels` is shown it (`render_layout`) and learns how far to follow it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.pipelines.geometric.plane_detection import (
    CELLS,
    SAMPLED,
    DepthSamples,
    find_planes,
    joined,
    look_at,
    paint_plane,
)
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

MOST_VIEWS = 24  # that are looked at, and that may have looked through
REACH = 1.2  # sides of a square as large as what was seen of a plane, after which its chance to go on is 1 / e
RING = 2.5  # cells beside what was seen of a plane that are its border
OPEN_POWER = 3.0  # a plane whose border was seen to end all around, as a table's, goes on the less
LEAST_REACH = 1e-3  # metres, of a plane that ends all around
LEAST_CHANCE = 0.02  # below it, a plane is passed over
THROUGH, THROUGH_METRES = 1.08, 0.08  # a view looked through what stands so far before what it measured
NEAR = 0.05  # metres
FINE = 2  # rays across a pixel of what is shown to the model
PLANE_CHANNELS = 4  # numbers of a latent's pixel beside the picture, see `LayoutRender`
CELL = 8  # pixels of a latent's
SOFT = 5  # pixels over which what is gone on with fades into the smooth fill
MOST_LOG = 2.0  # of the marks that are logarithms
USUAL_DEPTH = 3.0  # metres
AGREES, AGREES_METRES = 0.05, 0.05  # depths of one surface differ by less
SPREAD = 0.05  # how soon a plane's colours are its own again beside what was seen (`push_pull`'s prior_weight)


@dataclass(frozen=True)
class Layout:
    """Planes and what speaks against them; arrays for `_follow`.

    Attributes:
        planes: (K, 14) float32: normal, offset (normal . x = offset), two axes in the plane, the corner of its picture
            in them, the size of a cell, and the metres on which its chance to go on falls to 1 / e; world frame,
            normals face the side seen.
        colours: (K, CELLS, CELLS, 3) float32.
        away: (K, CELLS, CELLS) float32 metres from where the plane was seen.
        views: (V, 3, 4) float32, from the world to the samples of a view: column, row, 1, times depth.
        depths: (V, rows, SAMPLED) float32 metres that were measured there, 0 = none, -1 = there is no such sample.
    """

    planes: np.ndarray
    colours: np.ndarray
    away: np.ndarray
    views: np.ndarray
    depths: np.ndarray

    def __len__(self) -> int:
        return len(self.planes)

    def seen_from(
        self, camera: Camera, world_from_camera: np.ndarray, *, wanted: np.ndarray | None = None, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the planes show of a view.

        Args:
            camera, world_from_camera: of the view.
            wanted: (H, W) bool, the pixels that are asked for; None: all.
            threads: how many it may use.

        Returns:
            The mean colour (H, W, 3) float32 0..255 of the planes that a pixel may show; depth (H, W) float32 metres of
            the likeliest; how likely it shows any of them, (H, W) float32. 0 where there is none.
        """
        colour = np.zeros((camera.height, camera.width, 3), np.float32)
        depth = np.zeros((camera.height, camera.width), np.float32)
        likely = np.zeros_like(depth)
        geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32)
        pose = np.ascontiguousarray(world_from_camera[:3], np.float32)
        asked = np.ones(depth.shape, bool) if wanted is None else np.ascontiguousarray(wanted)
        rest = (
            geometry,
            pose,
            asked,
            self.planes,
            self.colours,
            self.away,
            self.views,
            self.depths,
            colour,
            depth,
            likely,
        )
        run_in_threads(_follow, [(start, stop, *rest) for start, stop in split_range(camera.height, threads)])
        return colour, depth, likely


@dataclass(frozen=True)
class LayoutRender:
    """What the layout says of F views.

    Attributes:
        images: (F, 3, H, W) float32 0..1: what memory paints, planes gone on with where it shows nothing.
        plane_channels: (F, PLANE_CHANNELS, H / CELL, W / CELL) float32: fraction of the pixels where a known plane may
            extend; the probability that it does; log of its depth over the depth of a smooth fill; log of the latter.
    """

    images: np.ndarray
    plane_channels: np.ndarray


def estimate_layout(views: Sequence[View]) -> Layout:
    """The planes of what was remembered; there may be none.

    Args:
        views: those that a sensor took, with depth, are looked at.
    """
    return _layout([look_at(view) for view in _looked_at(views)])


class LayoutEstimator:
    """`estimate_layout` for who asks again and again: recent views are looked at once, and so is the same memory."""

    def __init__(self) -> None:
        self._sampled: OrderedDict[int, tuple[View, DepthSamples]] = OrderedDict()
        self._last: tuple[tuple[int, ...], Layout] | None = None

    def __call__(self, views: Sequence[View]) -> Layout:
        """See `estimate_layout`."""
        seen = _looked_at(views)
        # Views are immutable and kept alive by the entry, so their identity is a safe key.
        key = tuple(id(view) for view in seen)
        if self._last is None or self._last[0] != key:
            for view in seen:
                if id(view) not in self._sampled:
                    self._sampled[id(view)] = view, look_at(view)
                self._sampled.move_to_end(id(view))
            self._last = key, _layout([self._sampled[number][1] for number in key])
            while len(self._sampled) > 2 * MOST_VIEWS:
                self._sampled.popitem(last=False)
        return self._last[1]


def _looked_at(views: Sequence[View]) -> list[View]:
    # What an imagined view has observed is a copy; without it, the layout of a place stays while one imagines there.
    seen = [view for view in views if view.depth is not None and view.observed is None]
    if len(seen) > MOST_VIEWS:
        seen = [seen[index] for index in np.linspace(0, len(seen) - 1, MOST_VIEWS).round().astype(int)]
    return seen


def _layout(looks: list[DepthSamples]) -> Layout:
    parts = [samples for samples, *_ in looks if len(samples)]
    made = []
    if parts:
        samples = joined(parts)
        for normal, offset, on in find_planes(samples, np.random.default_rng(0)):
            picture = paint_plane(normal, offset, samples[on])
            if picture is not None:
                made.append(picture)
    if not made:
        square = (0, CELLS, CELLS)
        nothing = np.zeros((0, 14)), np.zeros((*square, 3)), np.zeros(square), np.zeros((0, 3, 4)), np.zeros((0, 1, 1))
        return Layout(*(array.astype(np.float32) for array in nothing))
    depths = np.full((len(looks), max(depth.shape[0] for *_, depth in looks), SAMPLED), np.float32(-1))
    for index, (*_, depth) in enumerate(looks):
        depths[index, : depth.shape[0]] = depth
    matrices = np.stack([matrix for _, matrix, _ in looks]).astype(np.float32)
    planes, colours, away = (np.stack(column) for column in zip(*made, strict=True))
    for plane, far in zip(planes, away, strict=True):
        share = _open_share(plane, far, matrices, depths) ** OPEN_POWER
        plane[13] = max(REACH * plane[13] * share, LEAST_REACH)
    return Layout(planes, colours, away, matrices, depths)


def _open_share(plane: np.ndarray, away: np.ndarray, matrices: np.ndarray, depths: np.ndarray) -> float:
    """How much of a plane's border may go on: where no view looked through what would come next, 0..1."""
    cell = float(plane[12])
    rows, columns = np.nonzero((away > 0) & (away <= RING * cell))
    at = plane[10:12] + (np.stack([columns, rows], axis=1) + 0.5) * cell
    points = plane[3] * plane[:3] + at @ plane[4:10].reshape(2, 3)
    through = np.zeros(len(points), bool)
    for matrix, depth in zip(matrices, depths, strict=True):
        u, v, w = matrix[:, :3] @ points.T + matrix[:, 3:]
        ahead = w > NEAR
        far = np.where(ahead, w, 1)
        a, b = np.floor(u / far + 0.5).astype(int), np.floor(v / far + 0.5).astype(int)
        inside = ahead & (a >= 0) & (b >= 0) & (a < depth.shape[1]) & (b < depth.shape[0])
        there = depth[b.clip(0, depth.shape[0] - 1), a.clip(0, depth.shape[1] - 1)]
        through |= inside & ((there == 0) | (there > w * THROUGH + THROUGH_METRES))
    return 1 - float(through.mean()) if len(points) else 1.0


def render_layout(
    layout: Layout,
    warped_views: Sequence[WarpedView],
    camera: Camera,
    poses: np.ndarray,
) -> LayoutRender:
    """What the layout says of the views of a clip.

    Args:
        layout: of everything remembered.
        warped_views: what memory paints of each view, at any size.
        camera: of the model's pictures, with sides in multiples of `CELL`.
        poses: (F, 4, 4) world_from_camera.
    """
    made = [_show(layout, warped, camera, pose) for warped, pose in zip(warped_views, np.asarray(poses), strict=True)]
    return LayoutRender(*(np.stack(parts) for parts in zip(*made, strict=True)))


def _show(layout: Layout, warped: WarpedView, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture (3, H, W) and the marks of one view."""
    fine = camera.resized(camera.width * FINE, camera.height * FINE)
    size = (fine.width, fine.height)
    image, known, filled = warped.image, warped.known, warped.depth
    if image.shape[:2] != size[::-1]:
        shrinks = fine.width < image.shape[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        known = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        filled = cv2.resize(filled, size, interpolation=cv2.INTER_NEAREST)
    picture, far = image.astype(np.float32), np.maximum(filled, NEAR)
    hit, likely, ratio = (np.zeros(picture.shape[:2], np.float32) for _ in range(3))
    if len(layout) and not known.all():
        colour, depth, chance = layout.seen_from(fine, pose)
        there = depth > 0
        agrees = known & there & (np.abs(filled - depth) < AGREES * depth + AGREES_METRES)
        off = np.where(agrees[..., None], picture - colour, np.float32(0))
        colour += push_pull(off, agrees.astype(np.float32), prior=np.zeros(3, np.float32), prior_weight=SPREAD)
        share = np.where(known, 0, cv2.blur(chance, (SOFT, SOFT)))[..., None]
        picture += share * (np.where(there[..., None], colour, picture) - picture)
        gone_on = ~known & there
        hit[gone_on] = 1
        likely[gone_on] = chance[gone_on]
        ratio[gone_on] = np.clip(np.log(depth[gone_on] / far[gone_on]), -MOST_LOG, MOST_LOG)
    marks = np.stack([hit, likely, ratio, np.clip(np.log(far / USUAL_DEPTH), -MOST_LOG, MOST_LOG)], axis=-1)
    marks = cv2.resize(marks, (camera.width // CELL, camera.height // CELL), interpolation=cv2.INTER_AREA)
    picture = cv2.resize(picture, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.clip(picture / 255, 0, 1).transpose(2, 0, 1).astype(np.float32), marks.transpose(2, 0, 1)


@compiled
def _follow(row0, row1, geometry, pose, asked, planes, colours, away, views, depths, out, found, likely):
    """Follows the rays of rows row0..row1 to the nearest plane that may be there.

    Args:
        row0, row1: rows to do.
        geometry: (4,) float32: 1 / fx, 1 / fy, cx, cy.
        pose: (3, 4) float32 world from camera.
        asked: (H, W) bool, which pixels.
        planes, colours, away, views, depths: of `Layout`.
        out: (H, W, 3) float32, found, likely: (H, W) float32: zeros, written where there is one.
    """
    cells = colours.shape[1]
    last = np.float32(cells - 1)
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    distance = np.empty(len(planes), np.float32)
    for y in range(row0, row1):
        for x in range(found.shape[1]):
            if not asked[y, x]:
                continue
            rx = (np.float32(x) - geometry[2]) * geometry[0]
            ry = (np.float32(y) - geometry[3]) * geometry[1]
            dx = pose[0, 0] * rx + pose[0, 1] * ry + pose[0, 2]
            dy = pose[1, 0] * rx + pose[1, 1] * ry + pose[1, 2]
            dz = pose[2, 0] * rx + pose[2, 1] * ry + pose[2, 2]
            for k in range(len(planes)):
                p = planes[k]
                towards = p[0] * dx + p[1] * dy + p[2] * dz
                before = p[3] - (p[0] * pose[0, 3] + p[1] * pose[1, 3] + p[2] * pose[2, 3])
                distance[k] = before / towards if towards < np.float32(-1e-4) else zero
            left, most = one, zero
            for _ in range(len(planes)):
                best, z = -1, np.float32(1e9)
                for k in range(len(planes)):
                    if np.float32(NEAR) < distance[k] < z:
                        best, z = k, distance[k]
                if best < 0 or left < np.float32(LEAST_CHANCE):
                    break
                distance[best] = zero
                p = planes[best]
                hx, hy, hz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
                u = (p[4] * hx + p[5] * hy + p[6] * hz - p[10]) / p[12] - half
                v = (p[7] * hx + p[8] * hy + p[9] * hz - p[11]) / p[12] - half
                cu, cv = min(max(u, zero), last), min(max(v, zero), last)
                beyond = p[12] * (abs(u - cu) + abs(v - cv))
                beyond += away[best, int(cv + half), int(cu + half)]
                share = left * np.exp(-beyond / p[13])
                if share < np.float32(LEAST_CHANCE):
                    continue
                through = False
                for i in range(len(views)):
                    m = views[i]
                    w = m[2, 0] * hx + m[2, 1] * hy + m[2, 2] * hz + m[2, 3]
                    if w < np.float32(NEAR):
                        continue
                    a = int(np.floor((m[0, 0] * hx + m[0, 1] * hy + m[0, 2] * hz + m[0, 3]) / w + half))
                    b = int(np.floor((m[1, 0] * hx + m[1, 1] * hy + m[1, 2] * hz + m[1, 3]) / w + half))
                    if a < 0 or b < 0 or a >= depths.shape[2] or b >= depths.shape[1]:
                        continue
                    there = depths[i, b, a]
                    if there < zero:
                        continue
                    if there == zero or there > w * np.float32(THROUGH) + np.float32(THROUGH_METRES):
                        through = True
                        break
                if through:
                    continue
                x0, y0 = min(int(cu), cells - 2), min(int(cv), cells - 2)
                fx, fy = cu - np.float32(x0), cv - np.float32(y0)
                for c in range(3):
                    upper = colours[best, y0, x0, c] * (one - fx) + colours[best, y0, x0 + 1, c] * fx
                    lower = colours[best, y0 + 1, x0, c] * (one - fx) + colours[best, y0 + 1, x0 + 1, c] * fx
                    out[y, x, c] += share * (upper * (one - fy) + lower * fy)
                likely[y, x] += share
                left -= share
                if share > most:
                    most, found[y, x] = share, z
            if likely[y, x] > zero:
                for c in range(3):
                    out[y, x, c] /= likely[y, x]
