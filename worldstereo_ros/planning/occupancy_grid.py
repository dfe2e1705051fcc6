"""The grid that a planner reads: per cell its state, P(occupied), confidence, and the spread of the hypotheses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.planning.cells import CellState, RobotShape, load_calibration
from worldstereo_ros.utils.errors import InputError

MIN_KNOWN_SHARE = 0.5  # of the hypotheses that must say something of a cell for it to be imagined
TRINARY_FREE, TRINARY_OCCUPIED, TRINARY_UNKNOWN = 0, 100, -1
FREE_BELOW, OCCUPIED_FROM = 0.35, 0.65  # P(occupied) of cells that the trinary grid calls free, and occupied


@dataclass(frozen=True)
class OccupancyGrid:
    """Cells (rows along y, columns along x, as in nav_msgs/OccupancyGrid) and what is known of each.

    Attributes:
        state: (Y, X) uint8 values of `CellState`.
        occupied: (Y, X) float32 P(occupied), the mean over the hypotheses where imagined.
        confidence: (Y, X) float32, probability that the state is right; 0 where it is unknown.
        variance: (Y, X) float32 of P(occupied) over the hypotheses; 0 where observed.
        hypotheses: (K, Y, X) float32 P(occupied) of each hypothesis; K = 1 and equal to `occupied` if there are none.
        floor: (Y, X) float32 height of the floor in grid axes, metres; NaN = unknown.
        origin: x and y of the low corner of cell (0, 0) in grid axes, metres.
        resolution: edge of a cell, metres.
        grid_from_world: (3, 3) rotation from world axes to those of the grid, in which z is up.
        robot: the robot whose space was looked at.
        metric: lengths are in metres; False if their unit is arbitrary.
    """

    state: np.ndarray
    occupied: np.ndarray
    confidence: np.ndarray
    variance: np.ndarray
    hypotheses: np.ndarray
    floor: np.ndarray
    origin: tuple[float, float]
    resolution: float
    grid_from_world: np.ndarray
    robot: RobotShape
    metric: bool = True

    @property
    def observed(self) -> np.ndarray:
        """(Y, X) bool: a sensor saw whether the cell is free."""
        return self.state >= CellState.OBSERVED_FREE

    @property
    def called_occupied(self) -> np.ndarray:
        """(Y, X) bool: the state says occupied; an estimated cell is, if that is more likely than not."""
        occupied = (self.state == CellState.OBSERVED_OCCUPIED) | (self.state == CellState.IMAGINED_OCCUPIED)
        return occupied | ((self.state == CellState.ESTIMATED) & (self.occupied >= 0.5))

    @property
    def imagined(self) -> np.ndarray:
        """(Y, X) bool: a model imagined the cell."""
        return (self.state == CellState.IMAGINED_FREE) | (self.state == CellState.IMAGINED_OCCUPIED)

    def cells_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells below or above world points.

        Args:
            points: (N, 3) world points, metres.

        Returns:
            rows (N,), columns (N,), and inside (N,) bool; rows and columns are those of the nearest cell where False.
        """
        flat = (np.asarray(points, np.float64) @ self.grid_from_world.T)[:, :2]
        place = np.floor((flat - np.array(self.origin)) / self.resolution)
        shape = np.array(self.state.shape[::-1])
        inside = ((place >= 0) & (place < shape)).all(axis=1)
        columns, rows = np.clip(place, 0, shape - 1).astype(np.int64).T
        return rows, columns, inside

    def world_points(self, rows: np.ndarray, columns: np.ndarray, height: float = 0.0) -> np.ndarray:
        """(N, 3) world points at the centres of cells, `height` metres above their floor (0 where it is unknown)."""
        x = self.origin[0] + (np.asarray(columns) + 0.5) * self.resolution
        y = self.origin[1] + (np.asarray(rows) + 0.5) * self.resolution
        z = np.nan_to_num(self.floor[rows, columns]).astype(np.float64) + height
        return np.stack([x, y, z], axis=-1) @ self.grid_from_world

    def trinary(self, *, imagined: bool = True) -> np.ndarray:
        """(Y, X) int8 as map_server writes: 0 free, 100 occupied, -1 unknown.

        Args:
            imagined: also call cells free or occupied that are estimated or imagined, where P(occupied) is clear.
        """
        grid = np.full(self.state.shape, TRINARY_UNKNOWN, np.int8)
        if imagined:
            told = self.state != CellState.UNKNOWN
            grid[told & ~self.called_occupied & (self.occupied < FREE_BELOW)] = TRINARY_FREE
            grid[told & (self.occupied >= OCCUPIED_FROM)] = TRINARY_OCCUPIED
        grid[self.state == CellState.OBSERVED_FREE] = TRINARY_FREE
        grid[self.state == CellState.OBSERVED_OCCUPIED] = TRINARY_OCCUPIED
        return grid

    def graded(self) -> np.ndarray:
        """(Y, X) int8: P(occupied) in percent; -1 where nothing is known."""
        return np.where(self.state == CellState.UNKNOWN, -1, np.rint(100 * self.occupied)).astype(np.int8)

    def with_hypotheses(
        self, hypotheses: np.ndarray, *, called_from: float | np.ndarray | None = None
    ) -> OccupancyGrid:
        """The grid with other hypotheses. Cells that were observed or estimated do not change.

        Args:
            hypotheses: (K, Y, X) P(occupied) in 0..1, NaN where a hypothesis says nothing.
            called_from: see `merge_evidence`.

        Raises:
            InputError: another shape, or a value outside 0..1.
        """
        hypotheses = np.asarray(hypotheses, np.float32)
        if hypotheses.ndim != 3 or hypotheses.shape[1:] != self.state.shape:
            raise InputError(f"The hypotheses have shape {hypotheses.shape}; (K, {self.state.shape}) was expected.")
        estimated = np.where(self.state == CellState.ESTIMATED, self.occupied, np.nan)
        return merge_evidence(
            observed_free=self.state == CellState.OBSERVED_FREE,
            observed_occupied=self.state == CellState.OBSERVED_OCCUPIED, estimated=estimated, hypotheses=hypotheses,
            floor=self.floor, origin=self.origin, resolution=self.resolution, grid_from_world=self.grid_from_world,
            robot=self.robot, metric=self.metric, called_from=called_from,
        )  # fmt: skip


def state_confidence(state: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Probability that states are right, float32: of an estimated cell the larger one, of an unknown one 0."""
    out = np.maximum(occupied, 1 - occupied)
    out = np.where((state == CellState.IMAGINED_OCCUPIED) | (state == CellState.OBSERVED_OCCUPIED), occupied, out)
    out = np.where((state == CellState.IMAGINED_FREE) | (state == CellState.OBSERVED_FREE), 1 - occupied, out)
    return np.where(state == CellState.UNKNOWN, 0, out).astype(np.float32)


def merge_evidence(
    *,
    observed_free: np.ndarray,
    observed_occupied: np.ndarray,
    estimated: np.ndarray,
    hypotheses: np.ndarray,
    floor: np.ndarray,
    origin: tuple[float, float],
    resolution: float,
    grid_from_world: np.ndarray,
    robot: RobotShape,
    metric: bool = True,
    called_from: float | np.ndarray | None = None,
) -> OccupancyGrid:
    """Combines evidence into a grid: observed before estimated, estimated before imagined.

    Args:
        observed_free, observed_occupied: (Y, X) bool; occupied wins where both are True.
        estimated: (Y, X) P(occupied) by estimates, NaN = none.
        hypotheses: (K, Y, X) P(occupied) by each hypothesis, NaN = it says nothing. K may be 0.
        floor, origin, resolution, grid_from_world, robot, metric: see `OccupancyGrid`.
        called_from: P(occupied), of all cells or (Y, X) of each, above which an imagined cell is called occupied; None:
            the share of all unseen cells that are.

    Raises:
        InputError: a probability is outside 0..1.
    """
    for name, values in {"estimated": estimated, "hypotheses": hypotheses}.items():
        with np.errstate(invalid="ignore"):
            if ((values < 0) | (values > 1)).any():
                raise InputError(f"The {name} have probabilities outside 0..1.")
    calibration = load_calibration()
    observed_free = observed_free & ~observed_occupied
    told = ~np.isnan(hypotheses)
    single = np.full((1, *observed_free.shape), calibration.unknown, np.float32)
    each = np.where(told, hypotheses, np.float32(calibration.unknown)).astype(np.float32) if len(hypotheses) else single
    state = np.zeros(observed_free.shape, np.uint8)
    mean = each.mean(axis=0)
    if len(hypotheses):
        imagined = told.mean(axis=0) >= MIN_KNOWN_SHARE
        # Few cells of imagined views are occupied for sure: those are called so that are more often than others.
        called = mean > (calibration.unknown if called_from is None else called_from)
        state[imagined & called], state[imagined & ~called] = CellState.IMAGINED_OCCUPIED, CellState.IMAGINED_FREE
    layers = (
        (~np.isnan(estimated), CellState.ESTIMATED, np.nan_to_num(estimated)),
        (observed_free, CellState.OBSERVED_FREE, calibration.observed_free),
        (observed_occupied, CellState.OBSERVED_OCCUPIED, calibration.observed_occupied),
    )
    for where, cell_state, value in layers:
        state[where] = cell_state
        each = np.where(where, value, each).astype(np.float32)
    fixed = state >= CellState.ESTIMATED
    occupied = np.where(fixed, each[0], each.mean(axis=0))  # a mean of equal numbers may be off by rounding
    confidence = state_confidence(state, occupied)
    variance = np.where(fixed, 0, each.var(axis=0)).astype(np.float32)
    return OccupancyGrid(
        state, occupied, confidence, variance, each, floor, origin, resolution, grid_from_world, robot, metric
    )
