"""Remembered views made ready for look-ups, and what they say about each other."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.exposure import align_exposure
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.imaging.overlap import ABSOLUTE, RELATIVE, Overlap, overlap
from worldstereo_ros.pipelines.geometric.provenance import SupportingView, registration_errors

PREPARED_VIEWS = 64  # views kept ready
EDGE_REACH = 3  # pixels beside a depth edge whose colour may belong to the other side
EDGE_TRUST = 0.03  # weight of such pixels
EDGE_STEP = 0.08  # relative step in depth that is an edge


PARALLAX = 1.0  # pixels by which a wrong depth may move a look without harm
NOMINAL_DEPTH = 2.0  # metres, where nothing at all is rendered
LIMIT = 8  # references of one view
GRID = 20  # about so many looks across and down decide which views serve


@dataclass(frozen=True)
class Reference:
    """A view made ready for look-ups.

    Attributes:
        view: the view.
        depth: (h, w) float32, completed where no sensor measured it.
        known: (h, w) uint8, 1 where a sensor measured the depth: nowhere in an imagined view, whose observed pixels are
            copies, a little blurred, of what other views measured.
        trust: (h, w) float32 in 0..1, low beside depth edges and for imagined pixels.
        number: tells apart all views this shelf has ever seen.
    """

    view: View
    depth: np.ndarray
    known: np.ndarray
    trust: np.ndarray
    number: int


def select_references(
    views: list[View], depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray, limit: int = LIMIT
) -> list[View]:
    """The views that together show most of what a camera looks at; those that show none of it are left out.

    A grid of points of the view is looked up in every remembered view. Views are taken greedily: each one is worth
    what it adds, where a point's second witness is worth half of its first, its third a quarter, and so on.

    Args:
        views: all that are remembered; those without depth are left out.
        depth: (H, W) float32 rendered from memory, 0 = none; filled smoothly for this purpose.
        camera, world_from_camera: of the view to paint.
        limit: how many are taken at most.
    """
    candidates = [view for view in views if view.depth is not None]
    rows = np.linspace(0, camera.height - 1, GRID + 2).round().astype(np.int64)[1:-1]
    columns = np.linspace(0, camera.width - 1, GRID + 2).round().astype(np.int64)[1:-1]
    grid = np.ix_(rows, columns)
    known = (depth[grid] > 0).ravel()
    filled = fill_depth(depth[grid]) if known.any() else np.full((GRID, GRID), NOMINAL_DEPTH, np.float32)
    points = (camera.rays()[grid] * filled[..., None]).reshape(-1, 3)
    points = points @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    worth = np.stack([_worth(view, points, known, world_from_camera) for view in candidates]) if candidates else None
    taken: list[int] = []
    share = np.ones(len(points))
    while worth is not None and len(taken) < min(limit, len(candidates)):
        gain = (worth * share).sum(axis=1)
        gain[taken] = 0
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        taken.append(best)
        share = share * np.where(worth[best] > 0.05, 0.5, 1.0)
    return [candidates[index] for index in sorted(taken)]


def _worth(view: View, points: np.ndarray, known: np.ndarray, world_from_camera: np.ndarray) -> np.ndarray:
    """(N,) how well a view shows each point: 0 not at all, less from another side or from farther away."""
    if view.depth is None:
        return np.zeros(len(points))
    camera = view.camera
    uv, z = project(points, camera, view.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > 0.05) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
    measured = np.zeros(len(points), np.float32)
    measured[inside] = view.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
    apart = float(np.linalg.norm(view.world_from_camera[:3, 3] - world_from_camera[:3, 3]))
    allowed = np.maximum(RELATIVE * z + ABSOLUTE, PARALLAX * measured * z / (camera.fx * max(apart, 1e-6)))
    agrees = inside & (measured > 0) & (np.abs(measured - z) <= allowed)
    # A picture without depth there, or of a place whose depth is only guessed, may still help to paint.
    maybe = inside & ((measured == 0) | ~known)
    one, other = points - world_from_camera[:3, 3], points - view.world_from_camera[:3, 3]
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    if view.observed is not None:  # a copy of what a sensor saw is worth less than the sensor's own picture
        copied = np.zeros(len(points), bool)
        copied[inside] = view.observed[v[inside].astype(np.int64), u[inside].astype(np.int64)]
        agrees, maybe = agrees & ~copied, maybe | (agrees & copied)
    cosine = (one * other).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-9)
    scale = np.minimum(1, lengths[0] / np.maximum(lengths[1], 1e-9))
    return np.where(agrees, 1.0, np.where(maybe, 0.1, 0.0)) * scale * np.clip(0.55 + 0.45 * cosine, 0.1, 1)


class ReferenceCache:
    """Keeps what was worked out about recent references, so that a path pays for each view and pair once.

    Attributes:
        align: bring the references to one exposure.
    """

    def __init__(self, *, align: bool = True) -> None:
        self.align = align
        self._ready: OrderedDict[int, Reference] = OrderedDict()
        self._pairs: dict[tuple[int, int], Overlap | None] = {}
        self._count = 0
        self._last: tuple[tuple[int, ...], np.ndarray, np.ndarray] | None = None

    def prepare(self, views: list[View]) -> tuple[list[Reference], np.ndarray, np.ndarray]:
        """Of views with depth: the references, their (R, 3) gains, and (R,) registration errors in radians."""
        references = [self._reference(view) for view in views]
        pairs: dict[tuple[int, int], Overlap] = {}
        for i, one in enumerate(references):
            for j, other in enumerate(references):
                if i == j:
                    continue
                pair = (one.number, other.number)
                if pair not in self._pairs:
                    self._pairs[pair] = overlap(one.view, other.view)
                common = self._pairs[pair]
                if common is not None:
                    pairs[i, j] = common
        key = tuple(reference.number for reference in references)
        if self._last is None or self._last[0] != key:
            gains = align_exposure(len(references), pairs if self.align else {})
            self._last = (key, gains, registration_errors(len(references), pairs))
        return references, self._last[1], self._last[2]

    def _reference(self, view: View) -> Reference:
        # Views are immutable and kept alive by the entry, so their identity is a safe key.
        ready = self._ready.get(id(view))
        if ready is None:
            self._count += 1
            ready = _make_ready(view, self._count)
            self._ready[id(view)] = ready
            while len(self._ready) > PREPARED_VIEWS:
                gone = self._ready.popitem(last=False)[1].number
                self._pairs = {key: value for key, value in self._pairs.items() if gone not in key}
        self._ready.move_to_end(id(view))
        return ready


def supporting_view(reference: Reference, error: float) -> SupportingView:
    """The reference as a witness of what was observed."""
    return SupportingView(reference.view, reference.known, error)


def _make_ready(view: View, number: int) -> Reference:
    depth = np.ascontiguousarray(view.depth, np.float32)
    observed = view.observed_mask
    known = (depth > 0) & (view.observed is None)
    completed = fill_depth(depth)
    kernel = np.ones((2 * EDGE_REACH + 1,) * 2, np.uint8)
    edge = cv2.dilate(completed, np.ones((3, 3))) > cv2.erode(completed, np.ones((3, 3))) * (1 + EDGE_STEP)
    beside = cv2.dilate(edge.astype(np.uint8), kernel) > 0
    trust = np.where(beside, np.float32(EDGE_TRUST), np.float32(1)) * np.where(
        observed, np.float32(1), np.float32(0.01)
    )
    return Reference(view, completed, known.astype(np.uint8), trust.astype(np.float32), number)
