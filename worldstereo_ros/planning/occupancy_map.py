"""Voxels that say what sensors saw, what models estimate, and what each of several hypotheses imagines.

Three kinds of evidence are kept apart, and the weaker never changes the stronger: log odds of what a sensor measured;
levels of what a model estimated of things that a camera saw; and, for each hypothesis (each random seed of the model),
levels of what it imagined. The axes of the grid are those of the world, turned so that z is up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.geometry.poses import check_poses, estimate_up_direction
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.planning import _voxels_numba
from worldstereo_ros.planning.cells import CellState, check_resolution, load_calibration, probability
from worldstereo_ros.planning.occupancy_grid import state_confidence
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.planning.remembered import RememberedPoints, RememberedWorld
    from worldstereo_ros.world import WorldModel

MAX_VOXELS = 24_000_000  # 9 bytes each, 2 more for each hypothesis
MAX_HYPOTHESES = 32
RESOLUTION_M, MAX_RANGE_M = 0.1, 8.0
PADDING_M = 1.0  # around what is in memory
OUTLIER_PERCENT = 0.1  # of the points on either side that do not extend the map
MAX_RAY_GAP = 0.5  # voxels between rays at the end of their range, from which pixels are skipped


@dataclass(frozen=True)
class PointStates:
    """The states of N points.

    Attributes:
        state: (N,) uint8 values of `CellState`; unknown outside the map.
        occupied: (N,) float32 P(occupied).
        confidence: (N,) float32, probability that the state is right; 0 where it is unknown.
        inside: (N,) bool, True = inside the map.
    """

    state: np.ndarray
    occupied: np.ndarray
    confidence: np.ndarray
    inside: np.ndarray


class OccupancyMap:
    """A bounded grid of voxels with the evidence of observations, estimates and hypotheses. Not thread-safe.

    Args:
        low, high: (3,) corners in grid axes, metres (see `grid_from_world`).
        resolution: edge of a voxel, metres.
        up: (3,) up direction of the world.
        max_range: metres from a camera up to which its depth counts.

    Raises:
        InputError: a number is out of range or not finite, or the map would have more than `MAX_VOXELS`.
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        *,
        resolution: float = RESOLUTION_M,
        up: Sequence[float] | np.ndarray = (0, 0, 1),
        max_range: float = MAX_RANGE_M,
    ) -> None:
        check_resolution(resolution)
        if not 0 < max_range <= 1000:
            raise InputError(f"The range is {max_range} m; more than 0 and at most 1000 was expected.")
        self.resolution, self.max_range = float(resolution), float(max_range)
        self.grid_from_world = level_rotation(up)
        self.metric = True
        self.cameras = np.zeros((0, 3))
        self._turn = 0
        shape, self.low = _checked_shape(low, high, self.resolution)
        self._allocate(shape)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.odds = np.zeros(shape, np.float32)
        self._stamps = np.zeros(shape, np.int32)
        self._estimated: tuple[np.ndarray, np.ndarray] = (np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
        self._hypotheses: list[tuple[np.ndarray, np.ndarray]] = []

    @classmethod
    def from_world(
        cls,
        world: WorldModel | RememberedWorld,
        *,
        resolution: float = RESOLUTION_M,
        up: Sequence[float] | np.ndarray | None = None,
        max_range: float = MAX_RANGE_M,
        include: np.ndarray | None = None,
    ) -> OccupancyMap:
        """Builds the map of what a world model remembers.

        Rays of the views in the bank show what is free; points of the cloud show what is occupied, also those of views
        that the bank no longer has. What was imagined and remembered is the first hypothesis.

        Args:
            world: the world model, or a copy of what it remembers. It is unchanged.
            resolution, max_range: see the class.
            up: (3,) up direction of the world; None: that of the observations' cameras.
            include: (N, 3) world points that the map must contain, such as those of paths.

        Raises:
            InputError: nothing was observed, or the map would be too large.
        """
        views, cloud = world.bank.views, world.cloud
        observed = [view for view in views if view.is_observation]
        if not observed:
            raise InputError("The world model has no observation to make a map of. Observe the place first.")
        poses = np.stack([view.world_from_camera for view in observed])
        up = estimate_up_direction(poses) if up is None else up
        low, high = _extent(cloud, poses[:, :3, 3], level_rotation(up), include)
        occupancy = cls(low, high, resolution=resolution, up=up, max_range=max_range)
        occupancy.metric = world.metric
        for view in observed:
            occupancy.integrate(view)
        imagined = [view for view in views if not view.is_observation]
        remembered = occupancy._new_hypothesis()
        for view in imagined:
            occupancy._trace(view, Provenance.IMAGINED, remembered)
        occupancy._mark(cloud, remembered)
        if not remembered[0].any() and not remembered[1].any():
            occupancy._hypotheses.clear()
        return occupancy

    # --- evidence ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along x, y and z of the grid."""
        return self.odds.shape  # type: ignore[return-value]

    @property
    def hypothesis_count(self) -> int:
        """Number of hypotheses."""
        return len(self._hypotheses)

    def integrate(self, view: View) -> None:
        """Adds what a sensor saw: measured depth as observed, estimated depth as estimated. Without depth, nothing.

        Raises:
            InputError: the view is imagined (see `add_hypothesis`).
        """
        if not view.is_observation:
            raise InputError("The view has imagined pixels; `add_hypothesis` takes those.")
        if view.depth is None:
            return
        self.cameras = np.vstack([self.cameras, view.world_from_camera[:3, 3]])
        self._trace(view, Provenance.OBSERVED, None)
        if view.estimated is not None and view.estimated.any():
            self._trace(view, Provenance.ESTIMATED, self._estimated)

    def add_hypothesis(self, views: Iterable[View]) -> None:
        """Adds one hypothesis: the views that one random seed imagined. What was observed or estimated stays.

        Raises:
            InputError: there are `MAX_HYPOTHESES` already.
        """
        hypothesis = self._new_hypothesis()
        for view in views:
            if view.depth is not None:
                self._trace(view, Provenance.IMAGINED, hypothesis)

    def _new_hypothesis(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._hypotheses) >= MAX_HYPOTHESES:
            raise InputError(f"The map has {MAX_HYPOTHESES} hypotheses already, the most that it keeps.")
        hypothesis = (np.zeros(self.shape, np.uint8), np.zeros(self.shape, np.uint8))
        self._hypotheses.append(hypothesis)
        return hypothesis

    def _trace(self, view: View, which: Provenance, levels: tuple[np.ndarray, np.ndarray] | None) -> None:
        camera, depth = view.camera, view.depth
        assert depth is not None
        pose = np.eye(4)
        pose[:3] = self.grid_from_world @ view.world_from_camera[:3]
        # Pixels whose rays are closer together than voxels say the same.
        stride = max(1, int(MAX_RAY_GAP * self.resolution * max(camera.fx, camera.fy) / self.max_range))
        certain = np.ones(depth.shape, np.float32)
        confidence = certain if which == Provenance.OBSERVED else view.depth_confidence
        if confidence is None:
            confidence = np.full(depth.shape, 0.5, np.float32)
        empty = np.zeros((0, 0, 0), np.uint8)
        hits, free = (empty, empty) if levels is None else levels
        odds = self.odds if levels is None else np.zeros((0, 0, 0), np.float32)
        self._turn += 1
        _voxels_numba.trace_image(
            np.ascontiguousarray(depth, np.float32), view.provenance, np.ascontiguousarray(confidence, np.float32),
            (camera.fx, camera.fy, camera.cx, camera.cy), pose, self.low, self.resolution, self.max_range, stride,
            self._stamps, self._turn, odds, hits, free, int(which),
        )  # fmt: skip

    def _mark(self, cloud: CloudMemory | RememberedPoints, remembered: tuple[np.ndarray, np.ndarray]) -> None:
        if not len(cloud):
            return
        _voxels_numba.mark_points(
            cloud.points, cloud.provenance, cloud.depth_confidence, self.grid_from_world, self.low, self.resolution,
            self.odds, self._estimated[0], remembered[0],
        )  # fmt: skip

    # --- answers -----------------------------------------------------------------------------------------------------

    def to_grid(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) world points in grid axes, metres."""
        return np.asarray(points, np.float64) @ self.grid_from_world.T

    def query(self, points: np.ndarray) -> PointStates:
        """The states of points, whatever their height; no floor is needed.

        Args:
            points: (N, 3) world points, metres.

        Raises:
            InputError: the points have another shape, or are not finite.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise InputError(f"The points have shape {points.shape}; (N, 3) was expected.")
        if not np.isfinite(points).all():
            bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
            raise InputError(f"Point {bad[0]} is not finite ({len(bad)} of {len(points)} are not).")
        scaled = np.clip((self.to_grid(points) - self.low) / self.resolution, -1, max(self.shape))
        place = np.floor(scaled).astype(np.int64)
        inside = ((place >= 0) & (place < self.shape)).all(axis=1)
        index = tuple(place[inside].T)
        state, occupied, confidence = self._voxel_states(index)
        out = PointStates(
            np.zeros(len(points), np.uint8), np.full(len(points), load_calibration().unknown, np.float32),
            np.zeros(len(points), np.float32), inside,
        )  # fmt: skip
        out.state[inside], out.occupied[inside], out.confidence[inside] = state, occupied, confidence
        return out

    def _voxel_states(self, index: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """State, P(occupied) and confidence of the voxels at an index."""
        calibration = load_calibration()
        odds = self.odds[index]
        count = len(odds)
        state = np.zeros(count, np.uint8)
        occupied = np.full(count, calibration.unknown, np.float32)
        if self._hypotheses:
            total, known = np.zeros(count), np.zeros(count)
            for hits, free in self._hypotheses:
                hit, clear = hits[index] / np.float32(255), free[index] / np.float32(255)
                has = (hit > 0) | (clear > 0)
                known += has
                total += np.where(has, probability(calibration.imagined, hit, clear), calibration.unknown)
            mean, told = (total / len(self._hypotheses)).astype(np.float32), known * 2 >= len(self._hypotheses)
            occupied[:] = mean
            called = mean[told] > calibration.unknown
            state[told] = np.where(called, CellState.IMAGINED_OCCUPIED, CellState.IMAGINED_FREE)
        hit, clear = (array[index] / np.float32(255) for array in self._estimated)
        has = (hit > 0) | (clear > 0)
        state[has] = CellState.ESTIMATED
        occupied[has] = probability(calibration.estimated, hit, clear)[has]
        state[odds < 0], occupied[odds < 0] = CellState.OBSERVED_FREE, calibration.observed_free
        state[odds > 0], occupied[odds > 0] = CellState.OBSERVED_OCCUPIED, calibration.observed_occupied
        return state, occupied, state_confidence(state, occupied)

    def surfaces(self) -> np.ndarray:
        """(X, Y, Z) bool: voxels that a sensor saw occupied, or that a model estimates to be."""
        return (self.odds > 0) | ((self.odds == 0) & (self._estimated[0] > 127))

    @property
    def estimated_levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Levels (X, Y, Z) uint8 of the evidence that estimates give: occupied, and free."""
        return self._estimated

    @property
    def hypothesis_levels(self) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """The same of each hypothesis."""
        return self._hypotheses


def level_rotation(up: Sequence[float] | np.ndarray) -> np.ndarray:
    """(3, 3) rotation grid_from_world that turns `up` (3,) to z by the shortest way; the identity for (0, 0, 1).

    Raises:
        InputError: `up` is not finite or has no length.
    """
    up = np.asarray(up, np.float64)
    if up.shape != (3,) or not np.isfinite(up).all() or np.linalg.norm(up) < 1e-9:
        raise InputError(f"The up direction is {up.tolist()}; three finite numbers, not all 0, were expected.")
    up = up / np.linalg.norm(up)
    if up[2] < -0.999999:
        return np.diag([1.0, -1.0, -1.0])
    axis = np.cross(up, [0.0, 0.0, 1.0])
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + up[2])


def _checked_shape(
    low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, resolution: float
) -> tuple[tuple[int, ...], np.ndarray]:
    """The number of voxels, and the low corner rounded to voxels."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if low.shape != (3,) or high.shape != (3,) or not np.isfinite([low, high]).all() or (high <= low).any():
        raise InputError(f"The map reaches from {low.tolist()} to {high.tolist()}; two finite corners were expected.")
    low = np.floor(low / resolution) * resolution
    size = (high - low) / resolution
    if float(np.prod(np.ceil(size))) > MAX_VOXELS:
        edges = " x ".join(f"{edge:.0f}" for edge in high - low)
        raise InputError(
            f"A map of {edges} m has {np.prod(np.ceil(size)):.3g} voxels of {resolution:g} m; at most "
            f"{MAX_VOXELS:.3g} are kept. Give a coarser resolution, or a smaller part of the world."
        )
    return tuple(max(1, int(n)) for n in np.ceil(size - 1e-9)), low


def _extent(
    cloud: CloudMemory | RememberedPoints,
    cameras: np.ndarray,
    grid_from_world: np.ndarray,
    include: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Corners in grid axes of what is in memory, without its outliers."""
    parts = [cameras @ grid_from_world.T]
    if len(cloud):
        points = cloud.points[:: max(1, len(cloud) // 200_000)].astype(np.float64) @ grid_from_world.T
        parts.append(np.percentile(points, [OUTLIER_PERCENT, 100 - OUTLIER_PERCENT], axis=0))
    if include is not None and len(include):
        parts.append(check_points(include) @ grid_from_world.T)
    corners = np.concatenate(parts)
    padding = np.array([PADDING_M, PADDING_M, 0.5 * PADDING_M])
    return corners.min(axis=0) - padding, corners.max(axis=0) + padding


def check_points(points: np.ndarray) -> np.ndarray:
    """(N, 3) float64; raises InputError as `check_poses` does for poses at these points."""
    points = np.asarray(points, np.float64)
    poses = np.tile(np.eye(4), (len(points), 1, 1))
    poses[:, :3, 3] = points
    return check_poses(poses, "The points")[:, :3, 3]
