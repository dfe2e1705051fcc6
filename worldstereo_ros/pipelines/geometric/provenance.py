"""Provenance: which pixels of a warped view may be labelled as observed.

A pixel may be observed only if memory shows observed points there, not imagined ones, and a *supporting view* measured
this very point: the one measured pixel that the point falls on agrees with its depth (5 % + 2 cm). Then reasons to
doubt it are added up, each in units of log-odds of being wrong:

- **Poses are never exact.** How far a view disagrees with others about shared surfaces, as an angle, is its
  registration error. It moves a slanted surface in depth, edges sideways, and the border of what was seen. A view that
  shares too little with others to be checked is assumed to be off, the more so the farther the camera moved from it.
- **One witness** may be wrong, the more so if it did not measure the nearest and the farthest depth within 3 x 3 pixels
  as well: an edge or a gap may lie a pixel beside where it is rendered. Two views count as two witnesses only from two
  viewpoints (`MIN_BASELINE`).
- **Depth is noisy.** Noise within the depth image of the supporting view, and a difference close to the tolerance.
- **Something may stand before it.** Along the line of sight, space that every view which looks there saw only as hidden
  behind a surface, and space that no view saw to be free.

A pixel is observed if its doubts are at most `MAX_DOUBT` and half of the 7 x 7 pixels around pass as well. The weights
are those of a logistic regression on procedural worlds with wrong poses and noisy depth and on two recordings, adjusted
by hand; docs/concepts/provenance.md has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO, rotation_sensitivity
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.pipelines.geometric.registration import MIN_BASELINE
from worldstereo_ros.pipelines.geometric.sight_lines import STRIDE_PX, unknown_lengths
from worldstereo_ros.pipelines.geometric.supporting_views import SupportingView
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

MAX_DOUBT = 4.2
SLANT_DOUBT = 1.6  # per unit of log(1 + displacement in depth by the registration error, in tolerances)
EDGE_DOUBT, EDGE_REACH = 1.6, 4.0  # at a depth edge; decays over so many registration errors
BORDER_DOUBT, BORDER_REACH = 2.5, 2.0  # at the border of what was seen
SINGLE_DOUBT = 0.8  # for one witness
# For one witness that did not measure the nearest or the farthest depth within 3 x 3 pixels: nothing, or another depth.
GAP_DOUBT, STEP_DOUBT = 2.0, 1.0
GAP, STEP, AGREES_AROUND = 0, 1, 2
UNCHECKED_DOUBT = 0.1  # for views that cannot be checked against others
UNKNOWN_DOUBT = 0.4  # instead, if no view of memory can: nothing is known of the poses then
RESIDUAL_DOUBT = 0.2  # at the depth tolerance; grows with the square
UNSEEN_DOUBT, MAX_UNSEEN_M = 0.15, 4.0  # per metre of the line of sight
# Hidden space on the line of sight, relative to the larger of a length and a fraction of the depth; beyond, nothing is
# observed.
HIDDEN_DOUBT, MAX_HIDDEN_M, MAX_HIDDEN_RATIO = 2.0, 0.3, 0.1

EDGE_STEP_RATIO = 0.08  # relative step of depth between neighbouring pixels that is an edge
SMOOTHING_PX = 5  # of the depth in which edges and slant are looked for
NEIGHBOURHOOD_PX, MIN_NEIGHBOURS = 7, 0.5  # window around a pixel, and fraction of it that must pass
MAX_SUPPORTING_VIEWS = 32  # bits of a mask
_FAR = 99.0


def observed_pixels(
    depth: np.ndarray,
    observed: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    supporting_views: list[SupportingView],
    threads: int = 1,
    *,
    poses_known: bool = True,
) -> np.ndarray:
    """(H, W) bool, True where a pixel shows what a sensor observed; see the module for the rules.

    Where no supporting view looks, observed points of memory suffice: the view that measured them may be evicted.

    Args:
        depth: (H, W) float32 metres rendered from memory, 0 = none.
        observed: (H, W) bool, True where memory shows observed points.
        camera, pose: camera and pose of the view; `pose` is world_from_camera.
        supporting_views: observations that may look there, at most `MAX_SUPPORTING_VIEWS`.
        threads: number of threads to use.
        poses_known: whether the registration error of any view of memory was measured.
    """
    depth = np.ascontiguousarray(depth, np.float32)
    candidates = observed & (depth > 0)
    supporting_views = supporting_views[:MAX_SUPPORTING_VIEWS]
    if not supporting_views or not candidates.any():
        return candidates
    evidence = _compare(depth, candidates, camera, pose, supporting_views, threads)
    passed = np.zeros(depth.shape, np.uint8)
    hidden, unseen = unknown_lengths(depth, camera, pose, [(s.view, s.measured) for s in supporting_views])
    # The noise of single pixels is neither slant nor an edge. Half the resolution is enough for both.
    half = np.ascontiguousarray(cv2.medianBlur(depth, SMOOTHING_PX)[::2, ::2])
    slant = rotation_sensitivity(half, camera.fx / 2, camera.fy / 2, reach=2)
    edge, border = _distances(half)
    camera_from_world = invert_pose(pose)
    centres = np.stack([support.view.world_from_camera[:3, 3] for support in supporting_views])
    centres = (centres @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]).astype(np.float32)
    geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32)
    unchecked_doubt = UNCHECKED_DOUBT
    if not poses_known:
        unchecked_doubt = UNKNOWN_DOUBT * min(support.remoteness(pose) for support in supporting_views)
    arrays = (
        depth,
        evidence.agrees,
        evidence.around,
        evidence.error,
        evidence.residual,
        evidence.doubt,
        evidence.checked,
    )
    arguments = (*arrays, slant, edge, border, hidden, unseen, centres, geometry, unchecked_doubt, passed)
    run_in_threads(_add_doubts, [(start, stop, *arguments) for start, stop in split_range(depth.shape[0], threads)])
    # Points beside what a view shows are not those of an evicted view, but lie on its border.
    beside = cv2.dilate(evidence.looks, np.ones((NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX), np.uint8))
    accepted = (passed > 0) | (candidates & (beside == 0))
    window = (NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX)
    return accepted & (cv2.blur(accepted.astype(np.float32), window) > MIN_NEIGHBOURS)


@dataclass(frozen=True)
class _Evidence:
    """What the supporting views say about each pixel, (H, W) arrays; the best of those that agree.

    Attributes:
        looks: uint8, 1 = some supporting view looks there.
        agrees: uint32, one bit for each supporting view that measured the point.
        around: uint8, AGREES_AROUND = one of them measured the nearest and the farthest depth within 3 x 3 pixels, too;
            STEP = it measured another depth there; GAP = it measured nothing.
        checked: uint8, 1 = one of them could be checked against others.
        error: float32 registration error, radians.
        residual: float32 difference in depth, in tolerances.
        doubt: float32, see `sensor_doubt`.
    """

    shape: tuple[int, int]
    looks: np.ndarray = field(init=False)
    agrees: np.ndarray = field(init=False)
    around: np.ndarray = field(init=False)
    checked: np.ndarray = field(init=False)
    error: np.ndarray = field(init=False)
    residual: np.ndarray = field(init=False)
    doubt: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        for name, dtype in (("looks", np.uint8), ("agrees", np.uint32), ("around", np.uint8), ("checked", np.uint8)):
            object.__setattr__(self, name, np.zeros(self.shape, dtype))
        for name in ("error", "residual", "doubt"):
            object.__setattr__(self, name, np.full(self.shape, _FAR, np.float32))


def _compare(
    depth: np.ndarray,
    candidates: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    supporting_views: list[SupportingView],
    threads: int,
) -> _Evidence:
    evidence = _Evidence(depth.shape)
    skip = (~candidates).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    far = cv2.dilate(depth, kernel)
    near = cv2.erode(np.where(depth > 0, depth, np.float32(1e9)), kernel)
    for index, support in enumerate(supporting_views):
        view = support.view
        A, b = pixel_transform(camera, pose, view.camera, view.world_from_camera)
        doubt = np.zeros((1, 1), np.float32) if support.doubt is None else support.doubt
        tolerance = DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M
        settings = np.array([*tolerance, support.error_at(pose), support.checked], np.float32)
        source = (view.depth, support.measured, doubt, np.uint32(1 << index), settings)
        flags = (evidence.looks, evidence.agrees, evidence.around, evidence.checked)
        out = (*flags, evidence.error, evidence.residual, evidence.doubt)
        arguments = (depth, near, far, skip, A, b, *source, *out)
        run_in_threads(_look_up, [(start, stop, *arguments) for start, stop in split_range(depth.shape[0], threads)])
    return evidence


def _distances(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two (h, w) float32 distances in pixels: to the nearest depth edge, and to the border of what memory shows."""
    known = (depth > 0).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    far = cv2.dilate(depth, kernel)
    near = cv2.erode(np.where(known > 0, depth, np.float32(1e9)), kernel)
    edge = (known > 0) & (far > near * (1 + EDGE_STEP_RATIO))
    closed = cv2.morphologyEx(known, cv2.MORPH_CLOSE, kernel)
    return (
        cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 3),
        cv2.distanceTransform(closed, cv2.DIST_L2, 3),
    )


@compiled
def _project(rx, ry, rz, d, b0, b1, b2, right, bottom):
    """(depth, row, column) in the source of the point at depth d on the line of sight (rx, ry, rz); row -1: outside.

    Takes and returns scalars alone: passing an array would cost more than the computation.
    """
    z = rz * d + b2
    if d <= np.float32(0.0) or z < np.float32(0.05):
        return z, -1, -1
    inverse = np.float32(1.0) / z
    u = (rx * d + b0) * inverse + np.float32(0.5)
    v = (ry * d + b1) * inverse + np.float32(0.5)
    if not (u >= np.float32(0.0) and v >= np.float32(0.0) and u < right and v < bottom):
        return z, -1, -1
    return z, np.int32(v), np.int32(u)


@compiled
def _look_up(
    row0, row1, depth, near, far, skip, A, b, source_depth, measured, source_doubt, bit, settings, looks, agrees,
    around, checked, error, residual, doubt
):  # fmt: skip
    """Compares rows row0..row1 with one supporting view.

    Args:
        depth, near, far: (H, W) float32 target depth, and its extremes within 3 x 3 pixels.
        skip: (H, W) uint8, 1 = leave out.
        A, b: `pixel_transform` from target to source.
        source_depth: (h, w) float32. measured: (h, w) uint8. source_doubt: (h, w) float32, or (1, 1) for none.
        bit: uint32 mask of this view.
        settings: (4,) float32: depth tolerance, fraction and metres; registration error; 1 if it was checked.
        looks, agrees, around, checked, error, residual, doubt: (H, W) arrays of `_Evidence`, updated.
    """
    bottom, right = np.float32(source_depth.shape[0]), np.float32(source_depth.shape[1])
    b0, b1, b2 = b[0], b[1], b[2]
    relative, absolute = settings[0], settings[1]
    has_doubt = source_doubt.shape[0] > 1
    for y in range(row0, row1):
        fy = np.float32(y)
        for x in range(depth.shape[1]):
            if skip[y, x] != 0:
                continue
            fx = np.float32(x)
            rx = A[0, 0] * fx + A[0, 1] * fy + A[0, 2]
            ry = A[1, 0] * fx + A[1, 1] * fy + A[1, 2]
            rz = A[2, 0] * fx + A[2, 1] * fy + A[2, 2]
            z, q, p = _project(rx, ry, rz, depth[y, x], b0, b1, b2, right, bottom)
            if q < 0:
                continue
            looks[y, x] = 1
            difference = abs(source_depth[q, p] - z) / (relative * z + absolute)
            if measured[q, p] == 0 or difference > np.float32(1.0):
                continue
            agrees[y, x] |= bit
            if settings[3] > np.float32(0.5):
                checked[y, x] = 1
            error[y, x] = min(error[y, x], settings[2])
            residual[y, x] = min(residual[y, x], difference)
            doubt[y, x] = min(doubt[y, x], source_doubt[q, p] if has_doubt else np.float32(0.0))
            if around[y, x] == AGREES_AROUND:
                continue
            found = AGREES_AROUND
            for extreme in range(2):
                d = near[y, x] if extreme == 0 else far[y, x]
                z, q, p = _project(rx, ry, rz, d, b0, b1, b2, right, bottom)
                if q < 0 or measured[q, p] == 0:
                    found = GAP
                elif abs(source_depth[q, p] - z) > relative * z + absolute:
                    found = min(found, STEP)
            around[y, x] = max(around[y, x], found)


@compiled
def _add_doubts(
    row0, row1, depth, agrees, around, error, residual, sensor_doubts, checked, slant, edge, border, hidden,
    unseen, centres, geometry, unchecked_doubt, out
):  # fmt: skip
    """Sets `out` (H, W) uint8 to 1 in rows row0..row1 where a view agrees and the doubts are small enough.

    Args:
        depth: (H, W) float32 metres.
        agrees, around, error, residual, sensor_doubts, checked: see `_Evidence`.
        slant: (H / 2, W / 2) float32 of `rotation_sensitivity`.
        edge, border: (H / 2, W / 2) float32 pixels of that size, see `_distances`.
        hidden, unseen: float32 metres, see `unknown_lengths`.
        centres: (S, 3) float32 camera centres of the supporting views in the axes of the view.
        geometry: (4,) float32: 1 / fx, 1 / fy, cx, cy of the view.
        unchecked_doubt: where no view that agrees could be checked against others.
    """
    for y in range(row0, row1):
        for x in range(depth.shape[1]):
            v, u = min(y // STRIDE_PX, hidden.shape[0] - 1), min(x // STRIDE_PX, hidden.shape[1] - 1)
            d, e = depth[y, x], error[y, x]
            behind = hidden[v, u] / max(MAX_HIDDEN_M, MAX_HIDDEN_RATIO * d)
            if agrees[y, x] == 0 or behind > 1.0:
                continue
            q, p = y // 2, x // 2
            reach = 0.5 * e / geometry[0]  # pixels of half the resolution
            moved = slant[q, p] * e * d / (DEPTH_TOLERANCE_RATIO * d + DEPTH_TOLERANCE_M)
            doubt = SLANT_DOUBT * math.log1p(moved)
            doubt += EDGE_DOUBT * math.exp(-edge[q, p] / (EDGE_REACH * reach))
            doubt += BORDER_DOUBT * math.exp(-border[q, p] / (BORDER_REACH * reach))
            doubt += RESIDUAL_DOUBT * residual[y, x] * residual[y, x]
            doubt += sensor_doubts[y, x]
            doubt += UNSEEN_DOUBT * min(unseen[v, u], MAX_UNSEEN_M) + HIDDEN_DOUBT * behind
            if checked[y, x] == 0:
                doubt += unchecked_doubt
            if doubt > MAX_DOUBT:
                continue
            single = SINGLE_DOUBT
            if around[y, x] != AGREES_AROUND:
                single += STEP_DOUBT if around[y, x] == STEP else GAP_DOUBT
            if doubt + single > MAX_DOUBT:
                px = (np.float32(x) - geometry[2]) * geometry[0] * d
                py = (np.float32(y) - geometry[3]) * geometry[1] * d
                if not _from_two_viewpoints(px, py, d, agrees[y, x], centres):
                    continue
            out[y, x] = 1


@compiled
def _from_two_viewpoints(px, py, pz, agrees, centres):
    """Whether two of the agreeing views are `MIN_BASELINE` apart, relative to the distance of the point."""
    for i in range(centres.shape[0]):
        if (agrees >> np.uint32(i)) & np.uint32(1) == 0:
            continue
        dx, dy, dz = px - centres[i, 0], py - centres[i, 1], pz - centres[i, 2]
        least = MIN_BASELINE * MIN_BASELINE * (dx * dx + dy * dy + dz * dz)
        for j in range(centres.shape[0]):
            if (agrees >> np.uint32(j)) & np.uint32(1) == 0:
                continue
            bx, by = centres[j, 0] - centres[i, 0], centres[j, 1] - centres[i, 1]
            bz = centres[j, 2] - centres[i, 2]
            if bx * bx + by * by + bz * bz >= least:
                return True
    return False
