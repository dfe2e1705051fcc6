"""Large flat surfaces gone on with: where a floor, a wall or a ceiling would be in places that nobody saw.

Most of what a robot has not seen of a room belongs to surfaces of which it has seen a part. From the depth of the
remembered views planes are found (RANSAC with normals, Fischler and Bolles 1981), each with the colours seen on it,
spread smoothly over the plane. A ray that meets nothing remembered passes through all planes that face it, but for
those that stand where a remembered view looked through. How likely a plane goes on to where the ray meets it falls
with the distance from where it was seen, in measures of how much of it was seen; the nearest that is there is what
the ray shows. The colour is the mean of all that it may be, mixed with the smooth fill as far as it may be none.

That is a guess, and the same from wherever one looks. Nothing of it is ever claimed to be observed. A model with
`layout_channels` is shown it (`show_layout`) and learns how far to follow it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros._compiled import compiled, in_threads, shares
from worldstereo_ros.camera import Camera
from worldstereo_ros.pipelines.filling import push_pull
from worldstereo_ros.pipelines.geometric import Painting
from worldstereo_ros.views import View

SAMPLED = 96  # columns of the grid on which a view's depth is looked at
MOST_SAMPLES = 9000  # of all views together
MOST_VIEWS = 24  # that are looked at, and that may have looked through
MOST_PLANES = 16
LEAST_SHARE = 0.01  # of all samples' weight, for one more plane
TRIALS = 256
SAME_NORMAL = 0.97  # cosine: 14 degrees
REFITS = 6  # of a plane to the samples on it
CAUCHY = 1.5  # median distances from a plane at which a sample counts half
TOLERANCE, TOLERANCE_PER_METRE = 0.02, 0.012  # metres from a plane
FLAT = 0.01  # inverse depth may deviate by this fraction from the plane fitted around it
CELLS = 48  # a plane's picture is so large
LEAST_CELL = 0.04  # metres
MARGIN = 0.35  # of its extent, on each side, to which a plane's picture is gone on with
MEAN_WEIGHT = 0.05  # of the mean colour in a plane's fill
LEAST_AREA = 0.15  # square metres
REACH = 1.2  # sides of a square as large as what was seen of a plane, after which its chance to go on is 1 / e
RING = 2.5  # cells beside what was seen of a plane that are its border
OPEN_POWER = 3.0  # a plane whose border was seen to end all around, as a table's, goes on the less
LEAST_REACH = 1e-3  # metres, of a plane that ends all around
LEAST_CHANCE = 0.02  # below it, a plane is passed over
THROUGH, THROUGH_METRES = 1.08, 0.08  # a view looked through what stands so far before what it measured
NEAR = 0.05  # metres
LEAST_MEASURED = 0.25  # of a sample's pixels; where there are fewer, a view looked into nothing, the sky mostly
FINE = 2  # rays across a pixel of what is shown to the model
MARKS = 4  # numbers of a latent's pixel beside the picture, see `Guess`
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
        in_threads(_follow, [(start, stop, *rest) for start, stop in shares(camera.height, threads)])
        return colour, depth, likely


@dataclass(frozen=True)
class Guess:
    """What the layout says of F views.

    Attributes:
        pictures: (F, 3, H, W) float32 0..1: what memory paints, planes gone on with where it shows nothing.
        marks: (F, MARKS, H / CELL, W / CELL) float32: the share of pixels where a plane may go on; how likely it does;
            the logarithm of its depth over the depth that a smooth fill gives; that of the latter.
    """

    pictures: np.ndarray
    marks: np.ndarray


@dataclass(frozen=True)
class _Samples:
    """N places of the remembered views: (N, 3) points and normals in the world, (N, 3) colours, (N,) weights, (N,)
    metres from plane that still count as on it, and metres to the next sample.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    weights: np.ndarray
    tolerance: np.ndarray
    spacing: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: np.ndarray) -> _Samples:
        return _Samples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


# Samples of a view, the (3, 4) matrix from the world to its grid, its depth on the grid.
_Look = tuple[_Samples, np.ndarray, np.ndarray]


def find_layout(views: Sequence[View]) -> Layout:
    """The planes of what was remembered; there may be none.

    Args:
        views: those that a sensor took, with depth, are looked at.
    """
    return _layout([_look(view) for view in _looked_at(views)])


class LayoutFinder:
    """`find_layout` for who asks again and again: recent views are looked at once, and so is the same memory."""

    def __init__(self) -> None:
        self._looks: OrderedDict[int, tuple[View, _Look]] = OrderedDict()
        self._last: tuple[tuple[int, ...], Layout] | None = None

    def __call__(self, views: Sequence[View]) -> Layout:
        """See `find_layout`."""
        seen = _looked_at(views)
        # Views are immutable and kept alive by the entry, so their identity is a safe key.
        key = tuple(id(view) for view in seen)
        if self._last is None or self._last[0] != key:
            for view in seen:
                if id(view) not in self._looks:
                    self._looks[id(view)] = view, _look(view)
                self._looks.move_to_end(id(view))
            self._last = key, _layout([self._looks[number][1] for number in key])
            while len(self._looks) > 2 * MOST_VIEWS:
                self._looks.popitem(last=False)
        return self._last[1]


def _looked_at(views: Sequence[View]) -> list[View]:
    # What an imagined view has observed is a copy; without it, the layout of a place stays while one imagines there.
    seen = [view for view in views if view.depth is not None and view.observed is None]
    if len(seen) > MOST_VIEWS:
        seen = [seen[index] for index in np.linspace(0, len(seen) - 1, MOST_VIEWS).round().astype(int)]
    return seen


def _layout(looks: list[_Look]) -> Layout:
    parts = [samples for samples, *_ in looks if len(samples)]
    made = []
    if parts:
        samples = _Samples(*(np.concatenate([getattr(p, n) for p in parts]) for n in _Samples.__dataclass_fields__))
        for normal, offset, on in _planes(samples, np.random.default_rng(0)):
            picture = _picture(normal, offset, samples[on])
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
        plane[13] = max(plane[13] * _open_share(plane, far, matrices, depths) ** OPEN_POWER, LEAST_REACH)
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


def show_layout(
    layout: Layout,
    paintings: Sequence[Painting],
    camera: Camera,
    poses: np.ndarray,
) -> Guess:
    """What the layout says of the views of a clip.

    Args:
        layout: of everything remembered.
        paintings: what memory paints of each view, at any size.
        camera: of the model's pictures, with sides in multiples of `CELL`.
        poses: (F, 4, 4) world_from_camera.
    """
    made = [_show(layout, painting, camera, pose) for painting, pose in zip(paintings, np.asarray(poses), strict=True)]
    return Guess(*(np.stack(parts) for parts in zip(*made, strict=True)))


def _show(layout: Layout, painting: Painting, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture (3, H, W) and the marks of one view."""
    fine = camera.resized(camera.width * FINE, camera.height * FINE)
    size = (fine.width, fine.height)
    image, known, filled = painting.image, painting.known, painting.depth
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


def _look(view: View) -> _Look:
    """Samples of a view where it is flat, the (3, 4) matrix from the world to its grid, and its depth on the grid."""
    assert view.depth is not None
    camera = view.camera
    size = (SAMPLED, max(4, round(camera.height * SAMPLED / camera.width)))
    small = camera.resized(*size)
    measured = np.where(view.depth > 0, view.depth, 0).astype(np.float32)
    # Means of inverse depth, which is linear over a plane.
    inverse = np.where(measured > 0, 1 / np.where(measured > 0, measured, 1), 0).astype(np.float32)
    shrinks = cv2.INTER_AREA if camera.width > SAMPLED else cv2.INTER_LINEAR
    share = cv2.resize((measured > 0).astype(np.float32), size, interpolation=shrinks)
    inverse = cv2.resize(inverse, size, interpolation=shrinks) / np.maximum(share, 1e-6)
    good = (share > 0.5).astype(np.uint8)
    depth = cv2.resize(measured, size, interpolation=cv2.INTER_NEAREST)
    depth = np.where((depth == 0) & (share > LEAST_MEASURED), 1 / np.maximum(inverse, 1e-3), depth).astype(np.float32)
    whole = cv2.erode(good, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    # 1 / z = m . (x, y, 1) with m = normal / offset, x and y on the plane at one metre: fitted to 5x5 samples.
    ramp, mean = np.arange(-2, 3, dtype=np.float32) / 10, np.full(5, 0.2, np.float32)
    level = cv2.blur(inverse, (5, 5))
    across, down = cv2.sepFilter2D(inverse, cv2.CV_32F, ramp, mean), cv2.sepFilter2D(inverse, cv2.CV_32F, mean, ramp)
    variance = cv2.blur(inverse**2, (5, 5)) - level**2 - 2 * (across**2 + down**2)
    flat = whole & (variance < (FLAT * level) ** 2)
    across, down = across * np.float32(small.fx), down * np.float32(small.fy)
    rays = small.rays()
    vectors = np.stack([across, down, level - across * rays[..., 0] - down * rays[..., 1]], axis=-1)[flat]
    z = 1 / level[flat]
    points = rays[flat] * z[:, None]
    normals = -vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    pose = view.world_from_camera
    colours = cv2.resize(view.image, size, interpolation=cv2.INTER_AREA)[flat].astype(np.float32)
    spacing = z / small.fx
    cosine = np.abs((normals * rays[flat]).sum(axis=1)) / np.linalg.norm(rays[flat], axis=1)
    samples = _Samples(
        points @ pose[:3, :3].T + pose[:3, 3],
        normals @ pose[:3, :3].T,
        colours,
        np.minimum(spacing**2 / np.maximum(cosine, 0.2), 0.02),  # square metres
        TOLERANCE + TOLERANCE_PER_METRE * z,
        spacing,
    )
    matrix = small.matrix @ np.linalg.inv(pose)[:3]
    return samples, matrix, depth


def _planes(samples: _Samples, random: np.random.Generator) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """Normal, offset and the (N,) bool samples of each plane, the largest first."""
    everything = np.arange(len(samples))
    if len(samples) > MOST_SAMPLES:
        everything = np.sort(random.choice(len(samples), MOST_SAMPLES, replace=False))
    thin = samples[everything]
    points, normals = thin.points.astype(np.float32), thin.normals.astype(np.float32)
    offsets = (points * normals).sum(axis=1)
    left = np.ones(len(points), bool)
    total = float(thin.weights.sum())
    found: list[tuple[np.ndarray, float, np.ndarray]] = []
    while len(found) < MOST_PLANES and left.sum() >= 12:
        rest = np.flatnonzero(left)
        tried = rest[random.integers(0, len(rest), TRIALS)]
        distances = np.abs(normals[tried] @ points[rest].T - offsets[tried, None])
        fits = (distances < thin.tolerance[rest]) & (normals[tried] @ normals[rest].T > SAME_NORMAL)
        scores = fits @ thin.weights[rest]
        best = int(scores.argmax())
        normal, offset = normals[tried[best]].astype(np.float64), float(offsets[tried[best]])
        for _ in range(REFITS):
            on = left & _on(thin, normal, offset)
            if on.sum() < 6:
                break
            normal, offset = _fitted(thin.points[on], thin.weights[on], normal, offset)
        on = left & _on(thin, normal, offset)
        if thin.weights[on].sum() < LEAST_SHARE * total or on.sum() < 6:
            break
        left &= ~_on(thin, normal, offset, 1.5)
        found.append((normal, offset, _on(samples, normal, offset)))
    return found


def _on(samples: _Samples, normal: np.ndarray, offset: float, times: float = 1.0) -> np.ndarray:
    near = np.abs(samples.points @ normal - offset) < times * samples.tolerance
    return near & (samples.normals @ normal > SAME_NORMAL)


def _fitted(points: np.ndarray, weights: np.ndarray, normal: np.ndarray, offset: float) -> tuple[np.ndarray, float]:
    """Least squares by area; what lies off the plane, as where two walls meet, counts less (Cauchy's weights)."""
    off = np.abs(points @ normal - offset)
    weights = weights / (1 + (off / max(CAUCHY * float(np.median(off)), 1e-4)) ** 2)
    centre = np.average(points, axis=0, weights=weights)
    around = (points - centre) * np.sqrt(weights)[:, None]
    fitted = np.linalg.eigh(around.T @ around)[1][:, 0]
    fitted = fitted if fitted @ normal > 0 else -fitted
    return fitted, float(fitted @ centre)


def _picture(normal: np.ndarray, offset: float, samples: _Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A plane's row of numbers, colours and distances (see `Layout`); None where too little of it was seen."""
    # Along the samples, wherever the world's axes point.
    around = samples.points - samples.points.mean(axis=0)
    first = np.linalg.eigh(around.T @ around)[1][:, 2]
    first -= (first @ normal) * normal
    if np.linalg.norm(first) < 0.5:  # the samples lie on a line across it, or in one place: no plane
        return None
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(normal, first)])
    at = samples.points @ axes.T
    low, high = np.percentile(at, [1, 99], axis=0)
    extent = float((high - low).max())
    pad = MARGIN * extent
    cell = max((extent + 2 * pad) / CELLS, LEAST_CELL, 1.2 * float(np.median(samples.spacing)))
    corner = (low + high) / 2 - CELLS * cell / 2
    place = np.floor((at - corner) / cell).astype(int)
    inside = ((place >= 0) & (place < CELLS)).all(axis=1)
    if inside.sum() < 6:
        return None
    index = place[inside, 1] * CELLS + place[inside, 0]
    count = np.bincount(index, minlength=CELLS * CELLS).reshape(CELLS, CELLS)
    sums = [np.bincount(index, c, CELLS * CELLS).reshape(CELLS, CELLS) for c in samples.colours[inside].T]
    known = count > 0
    closed = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    area = float(closed.sum()) * cell**2
    if area < LEAST_AREA:
        return None
    means = np.stack(sums, axis=-1) / np.maximum(count, 1)[..., None]
    mean = means[known].mean(axis=0).astype(np.float32)
    colours = push_pull(
        means.astype(np.float32), np.minimum(count, 1).astype(np.float32), prior=mean, prior_weight=MEAN_WEIGHT
    )
    away = cv2.distanceTransform(1 - closed, cv2.DIST_L2, 5) * np.float32(cell)
    numbers = np.concatenate([normal, [offset], axes[0], axes[1], corner, [cell, REACH * area**0.5]])
    return numbers.astype(np.float32), colours, away


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
