"""Completions of a grid: what may lie where nothing was seen, by a network that learned it from procedural worlds.

A stand-in for imagined views where those take too long, as at every step of an explorer. A small network
(`models.completion_network`) tells how probably each unseen cell is occupied. Each hypothesis (each random seed) is a
draw from that: cells are occupied where their probability exceeds a random field that is smooth over half a metre and
over some metres, so that walls and objects appear and vanish as a whole. The probability itself is calibrated on worlds
with ground truth (`scripts/fit_occupancy.py`).

The network has seen walls along the axes of grids; others are turned so that theirs are, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.special import ndtr

from worldstereo_ros.planning.cells import CellState, load_calibration
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.utils.errors import InputError, first_line
from worldstereo_ros.weights.bundled import bundled_file

if TYPE_CHECKING:  # torch is loaded by the first completion
    from worldstereo_ros.models.completion_network import CompletionNetwork

WEIGHTS_FILE = "completion.safetensors"
CELL_M = 0.1  # edge of the cells that the network knows
MAX_CELLS = 2_000_000  # of a map at that size; larger maps are completed over larger cells
MARGIN_CELLS = 32  # of unseen cells around the grid: where a map ends says nothing of the world
REACH_M = 8.0  # from what was seen free, within which cells are completed
ANGLES = 30  # directions of walls that are tried, over 90 degrees
MAX_HYPOTHESES = 32
SMOOTH_M = (0.3, 1.5)  # standard deviations of the random fields
MIN_CHANCE = 1e-3


def wall_angle(grid: OccupancyGrid) -> float:
    """Direction of the walls in grid axes, radians in -pi/4..pi/4: that along which most obstacles line up."""
    rows, columns = np.nonzero(grid.state == CellState.OBSERVED_OCCUPIED)
    if len(rows) < 10:
        return 0.0
    angles = (np.arange(ANGLES) - ANGLES // 2) * (0.5 * np.pi / ANGLES)
    best, chosen = -1.0, 0.0
    for angle in sorted(angles, key=abs):  # of equally good directions that nearest to the axes
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        score = sum(float((np.bincount(np.rint(v - v.min()).astype(np.int64)) ** 2.0).sum()) for v in (along, across))
        if score > 1.02 * best:
            best, chosen = score, float(angle)
    return chosen


def complete(grid: OccupancyGrid, seeds: Sequence[int] = range(3)) -> OccupancyGrid:
    """The grid with one hypothesis for each random seed; observed and estimated cells are unchanged.

    P(occupied), the mean of the hypotheses, does not depend on the seeds; what each of them says does.

    Args:
        grid: what is known. Hypotheses that it has are replaced.
        seeds: random seeds, different ones. The same seed gives the same completion.

    Raises:
        InputError: there is no seed, one is given twice, or there are more than `MAX_HYPOTHESES`.
    """
    return grid.with_hypotheses(_hypotheses(grid, seeds), called_from=load_calibration().completed_called)


def complete_unknown(grid: OccupancyGrid, seeds: Sequence[int] = range(3)) -> OccupancyGrid:
    """The same as `complete`, but cells that the grid's own hypotheses imagine keep what those say, in all of them."""
    if not grid.imagined.any():
        return complete(grid, seeds)
    calibration = load_calibration()
    each = np.where(grid.imagined, grid.occupied, _hypotheses(grid, seeds))
    called_from = np.where(grid.imagined, calibration.unknown, calibration.completed_called)
    return grid.with_hypotheses(each, called_from=called_from)


def drawn_completions(grid: OccupancyGrid, seeds: Sequence[int]) -> np.ndarray:
    """(K, Y, X) float32 draws: 1 occupied, 0 free, NaN seen, or too far from what was. Raises as `complete`."""
    return _drawn(completion_chances(grid), grid.resolution, seeds)


def completion_chances(grid: OccupancyGrid, *, calibrated: bool = True) -> np.ndarray:
    """(Y, X) float32 P(occupied) of cells that no sensor saw; NaN where one did, and beyond `REACH_M`.

    Args:
        grid: what is known.
        calibrated: False: as the network says, before it is calibrated.
    """
    occupied, free = grid.state == CellState.OBSERVED_OCCUPIED, grid.state == CellState.OBSERVED_FREE
    if not free.any():
        return np.full(free.shape, np.nan, np.float32)
    near = ndimage.distance_transform_edt(~free) * grid.resolution <= REACH_M
    chance = np.clip(_predict(occupied, free, grid.resolution, wall_angle(grid)), MIN_CHANCE, 1 - MIN_CHANCE)
    if calibrated:
        offset, slope = load_calibration().completed
        chance = 1 / (1 + np.exp(-(offset + slope * np.log(chance / (1 - chance)))))
    return np.where(near & ~occupied & ~free, chance, np.nan).astype(np.float32)


def _hypotheses(grid: OccupancyGrid, seeds: Sequence[int]) -> np.ndarray:
    """(K, Y, X) float32 P(occupied) of each hypothesis, whose mean is that of `completion_chances`; NaN as there."""
    chance = completion_chances(grid)
    drawn = _drawn(chance, grid.resolution, seeds)
    return chance + np.minimum(chance, 1 - chance) * (drawn - drawn.mean(axis=0))


def _drawn(chance: np.ndarray, resolution: float, seeds: Sequence[int]) -> np.ndarray:
    if not 1 <= len(seeds) <= MAX_HYPOTHESES or len(set(seeds)) != len(seeds):
        raise InputError(f"The seeds are {list(seeds)}; 1 to {MAX_HYPOTHESES} different numbers were expected.")
    out = []
    for seed in seeds:
        rng, field = np.random.default_rng(int(seed)), np.zeros(chance.shape)
        for smooth in SMOOTH_M:
            one = ndimage.gaussian_filter(rng.standard_normal(chance.shape), smooth / resolution, mode="wrap")
            field += one / max(float(one.std()), 1e-12)
        out.append(np.where(np.isnan(chance), np.nan, chance > ndtr(field / np.sqrt(len(SMOOTH_M)))))
    return np.array(out, np.float32)


def _predict(occupied: np.ndarray, free: np.ndarray, resolution: float, angle: float) -> np.ndarray:
    """(Y, X) float32 P(occupied) as the network says, from cells (Y, X) that were seen, and the direction of walls."""
    shape = np.array(occupied.shape)
    scale = float(min(resolution / CELL_M, np.sqrt(MAX_CELLS / occupied.size)))
    # Turned about the middle of the grid, so that walls run along its axes; then with cells as the network knows them.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # of (row, column)
    size = np.ceil(np.abs(turn) @ shape).astype(int)
    to_middle = 0.5 * (size - 1) - turn @ (0.5 * (shape - 1))
    layers = []
    for mask in (free, occupied):
        if angle != 0:
            turned = ndimage.affine_transform(
                mask.astype(np.float32), turn.T, -turn.T @ to_middle, tuple(size), order=1
            )
            mask = turned > 0.4
        layers.append(np.pad(_resized(mask, scale), MARGIN_CELLS))
    chance = _run(np.stack([layers[0] & ~layers[1], layers[1]]).astype(np.float32))
    if angle == 0 and scale == 1:
        return chance[MARGIN_CELLS : MARGIN_CELLS + shape[0], MARGIN_CELLS : MARGIN_CELLS + shape[1]]
    offset = scale * (to_middle + 0.5) - 0.5 + MARGIN_CELLS
    return ndimage.affine_transform(chance, turn * scale, offset, occupied.shape, order=1, mode="nearest")


def _resized(mask: np.ndarray, scale: float) -> np.ndarray:
    """A mask (Y, X) bool with `scale` times as many cells along each side; what is smaller than a cell fills it."""
    if scale == 1:
        return mask
    shape = [int(np.ceil(n * scale)) for n in mask.shape]
    if scale > 1:
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) / scale).astype(int), m - 1)
            for n, m in zip(shape, mask.shape, strict=True)
        )
        return mask[rows[:, None], columns]
    out = np.zeros(shape, bool)
    rows, columns = np.nonzero(mask)
    out[((rows + 0.5) * scale).astype(int), ((columns + 0.5) * scale).astype(int)] = True
    return out


@cache
def load_network() -> CompletionNetwork:
    """The network with the weights of the package.

    Raises:
        InputError: its file is missing or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from worldstereo_ros.models.completion_network import CompletionNetwork

    file, network = bundled_file(WEIGHTS_FILE), CompletionNetwork()
    try:
        weights = {name: value.to(torch.float32) for name, value in load_file(file).items()}
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"The network of completions ({file}) is missing or damaged: {first_line(error)}. Install the package "
            "again."
        ) from None
    return network.eval()


def _run(seen: np.ndarray) -> np.ndarray:
    """(Y, X) float32 P(occupied) of (2, Y, X) float32: 1 = seen free, 1 = seen occupied."""
    import torch

    from worldstereo_ros.models.completion_network import MULTIPLE

    _, Y, X = seen.shape
    padded = np.pad(seen, ((0, 0), (0, -Y % MULTIPLE), (0, -X % MULTIPLE)))
    with torch.inference_mode():
        chance = torch.sigmoid(load_network()(torch.from_numpy(padded)[None])[0, :Y, :X])
    return np.asarray(chance.numpy())
