"""References: which remembered views a camera is warped from, prepared for look-ups and cached."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.view_overlap import near_identical, newest_view
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.exposure import align_exposure
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO, Overlap, measure_overlap
from worldstereo_ros.pipelines.geometric.registration import NeighbourOverlaps, Registration, measure_registration
from worldstereo_ros.pipelines.geometric.supporting_views import SupportingView, sensor_doubt

CACHE_SIZE = 64  # prepared views
EDGE_MARGIN_PX = 3  # pixels beside a depth edge whose colour may belong to the other side
EDGE_WEIGHT = 0.03  # of such pixels
IMAGINED_WEIGHT = 0.01  # of imagined pixels
EDGE_STEP_RATIO = 0.08  # relative step in depth that is an edge

MAX_PARALLAX_PX = 1.0  # displacement by a wrong depth that does no harm
NOMINAL_DEPTH_M = 2.0  # where nothing at all is rendered
MAX_REFERENCES = 8  # of one view
GRID_SIZE = 20  # points across and down that are looked up to select references


@dataclass(frozen=True)
class Reference:
    """A remembered view prepared for look-ups.

    Attributes:
        view: the view.
        depth: (h, w) float32 metres, completed where no sensor measured it.
        measured: (h, w) uint8, 1 where a sensor measured the depth. 0 everywhere in imagined views: their observed
            pixels are slightly blurred copies of what other views measured.
        given: (h, w) uint8, 1 where the depth was measured, or estimated by a model. 0 everywhere in imagined views.
        weight: (h, w) float32 in 0..1, low beside depth edges and for imagined pixels.
        doubt: (h, w) float32, doubt about the measured depth (`supporting_views.sensor_doubt`).
        number: unique among all views that the cache has prepared.
    """

    view: View
    depth: np.ndarray
    measured: np.ndarray
    given: np.ndarray
    weight: np.ndarray
    doubt: np.ndarray
    number: int


def select_references(
    views: list[View], depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray, limit: int = MAX_REFERENCES
) -> list[View]:
    """Selects the views that together show most of what a camera sees; views that show none of it are left out.

    A grid of points is looked up in every view. Selection is greedy: the second view that shows a point counts half as
    much for it as the first, the third a quarter, and so on. Of near-identical views (`geometry/view_overlap.py`), such
    as those of a parked robot, only the newest is selected.

    Args:
        views: all views of memory; those without depth are ignored.
        depth: (H, W) float32 metres rendered from memory, 0 = none; filled smoothly for the look-up.
        camera, world_from_camera: camera and (4, 4) pose of the view to warp.
        limit: maximum number of references.

    Returns:
        The selected views, in the order of `views`.
    """
    candidates = [view for view in views if view.depth is not None]
    rows = np.linspace(0, camera.height - 1, GRID_SIZE + 2).round().astype(np.int64)[1:-1]
    columns = np.linspace(0, camera.width - 1, GRID_SIZE + 2).round().astype(np.int64)[1:-1]
    grid = np.ix_(rows, columns)
    rendered = (depth[grid] > 0).ravel()
    filled = fill_depth(depth[grid]) if rendered.any() else np.full((GRID_SIZE, GRID_SIZE), NOMINAL_DEPTH_M, np.float32)
    points = (camera.rays()[grid] * filled[..., None]).reshape(-1, 3)
    points = points @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    if not candidates:
        return []
    scores = np.stack([_visibility_scores(view, points, rendered, world_from_camera) for view in candidates])
    selected: list[int] = []
    discount, available = np.ones(len(points)), np.ones(len(candidates), bool)
    while len(selected) < min(limit, len(candidates)):
        gain = (scores * discount).sum(axis=1) * available
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        group = np.flatnonzero(near_identical(candidates[best], candidates) & available)
        best = int(group[newest_view([candidates[index] for index in group])])
        selected.append(best)
        available[group] = False
        available &= ~near_identical(candidates[best], candidates)
        discount = discount * np.where(scores[best] > 0.05, 0.5, 1.0)
    return [candidates[index] for index in sorted(selected)]


def _visibility_scores(
    view: View, points: np.ndarray, rendered: np.ndarray, world_from_camera: np.ndarray
) -> np.ndarray:
    """(N,) how well a view shows each point, 0..1: 0 not at all, less from another direction or from farther away."""
    if view.depth is None:
        return np.zeros(len(points))
    camera = view.camera
    uv, z = project(points, camera, view.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > 0.05) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
    measured = np.zeros(len(points), np.float32)
    measured[inside] = view.depth[v[inside].astype(np.int64), u[inside].astype(np.int64)]
    baseline = float(np.linalg.norm(view.world_from_camera[:3, 3] - world_from_camera[:3, 3]))
    allowed = np.maximum(
        DEPTH_TOLERANCE_RATIO * z + DEPTH_TOLERANCE_M,
        MAX_PARALLAX_PX * measured * z / (camera.fx * max(baseline, 1e-6)),
    )
    agrees = inside & (measured > 0) & (np.abs(measured - z) <= allowed)
    # An image without depth there, or whose depth there is only filled, may still contribute colour.
    uncertain = inside & ((measured == 0) | ~rendered)
    from_target, from_view = points - world_from_camera[:3, 3], points - view.world_from_camera[:3, 3]
    lengths = np.linalg.norm(from_target, axis=1), np.linalg.norm(from_view, axis=1)
    if view.observed is not None:  # prefer the observation itself to a copy of it in an imagined view
        copied = np.zeros(len(points), bool)
        copied[inside] = view.observed[v[inside].astype(np.int64), u[inside].astype(np.int64)]
        agrees, uncertain = agrees & ~copied, uncertain | (agrees & copied)
    cosine = (from_target * from_view).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-9)
    scale = np.minimum(1, lengths[0] / np.maximum(lengths[1], 1e-9))
    return np.where(agrees, 1.0, np.where(uncertain, 0.1, 0.0)) * scale * np.clip(0.55 + 0.45 * cosine, 0.1, 1)


class ReferenceCache:
    """Caches prepared references and their overlaps, so that a path computes each view and each pair once.

    Attributes:
        align: align the exposure of the references.
    """

    def __init__(self, *, align: bool = True) -> None:
        self.align = align
        self._prepared: OrderedDict[int, Reference] = OrderedDict()
        self._pairs: dict[tuple[int, int], Overlap | None] = {}
        self._count = 0
        self._neighbours = NeighbourOverlaps()
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None

    def prepare(self, views: list[View], memory: list[View]) -> tuple[list[Reference], np.ndarray, Registration]:
        """Prepares R views with depth.

        Args:
            views: the selected views.
            memory: all views of memory, among which more is known of registration errors.

        Returns:
            The references, their exposure gains (R, 3), and their registration errors.
        """
        references = [self._reference(view) for view in views]
        pairs: dict[tuple[int, int], Overlap] = {}
        for i, one in enumerate(references):
            for j, other in enumerate(references):
                if i == j:
                    continue
                pair = (one.number, other.number)
                if pair not in self._pairs:
                    self._pairs[pair] = measure_overlap(one.view, other.view)
                shared = self._pairs[pair]
                if shared is not None:
                    pairs[i, j] = shared
        key = tuple(reference.number for reference in references)
        if self._last is None or self._last[0] != key:
            gains = align_exposure(len(references), pairs if self.align else {})
            self._last = (key, gains)
        registration = measure_registration(views, pairs, self._neighbours(memory))
        return references, self._last[1], registration

    def _reference(self, view: View) -> Reference:
        # Views are immutable and kept alive by the entry, so their identity is a safe key.
        reference = self._prepared.get(id(view))
        if reference is None:
            self._count += 1
            reference = _prepare(view, self._count)
            self._prepared[id(view)] = reference
            while len(self._prepared) > CACHE_SIZE:
                evicted = self._prepared.popitem(last=False)[1].number
                self._pairs = {key: value for key, value in self._pairs.items() if evicted not in key}
        self._prepared.move_to_end(id(view))
        return reference


def supporting_view(reference: Reference, registration_error: float, checked: bool) -> SupportingView:
    """The reference as evidence for what was observed."""
    return SupportingView(reference.view, reference.measured, registration_error, checked, reference.doubt)


def _prepare(view: View, number: int) -> Reference:
    depth = np.ascontiguousarray(view.depth, np.float32)
    given = (depth > 0) & view.is_observation
    measured = given & ~view.estimated_mask
    completed = fill_depth(depth)
    kernel = np.ones((2 * EDGE_MARGIN_PX + 1,) * 2, np.uint8)
    edge = cv2.dilate(completed, np.ones((3, 3))) > cv2.erode(completed, np.ones((3, 3))) * (1 + EDGE_STEP_RATIO)
    near_edge = cv2.dilate(edge.astype(np.uint8), kernel) > 0
    weight = np.where(near_edge, np.float32(EDGE_WEIGHT), np.float32(1)) * np.where(
        view.observed_mask, np.float32(1), np.float32(IMAGINED_WEIGHT)
    )
    measured = measured.astype(np.uint8)
    doubt = sensor_doubt(depth) if measured.any() else np.zeros(depth.shape, np.float32)
    return Reference(view, completed, measured, given.astype(np.uint8), weight.astype(np.float32), doubt, number)
