"""Trains the network of completions (`planning.completion`) on grids of worlds of the training split.

    python scripts/train_completion.py --folder FOLDER [--worlds 135] [--floors 0] [--steps 1200] [--resume] [--write]

A robot walks through each world; what it had seen when a quarter, 40 %, ... of the cells were seen is kept in FOLDER,
so that the command may be stopped and continued. The network learns the occupancy of the other cells from crops,
turned, mirrored and partly hidden. Cells beyond the bounds of a world count as occupied, with less weight. Without
--write it only prints figures of the validation split. On one core: about 2 s a world and 0.3 s a step. The weights of
the package are of two runs: `--write`, then `--floors 40 --steps 300 --resume --write`; `scripts/fit_occupancy.py
--models 0 --write` fitted their probabilities.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn import functional

from worldstereo_ros.evaluation.exploration import world_to_explore
from worldstereo_ros.evaluation.exploration_robot import ExploringRobot
from worldstereo_ros.evaluation.room_floors import make_floor
from worldstereo_ros.models.completion_network import MULTIPLE, CompletionNetwork
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.completion import CELL_M, MARGIN_CELLS, REACH_M, WEIGHTS_FILE, load_network
from worldstereo_ros.scenes import Scene, make_path, seed_of

FILE = Path(__file__).resolve().parents[1] / "worldstereo_ros" / "weights" / WEIGHTS_FILE
COVERAGES = (0.25, 0.4, 0.55, 0.7, 0.85)  # at which a grid is kept, and that after the first look around
WALK, STRIDE = 400, 3  # poses of a path, of which every third is an observation
CROP, BATCH = 160, 8
SHIFT_CELLS = 50  # of the middle of a crop from a cell that was seen
HIDDEN_SHARE, HIDDEN_CELLS = 0.35, (20, 60)  # of the crops of which only a disk counts as seen, and its radius
BEYOND_WEIGHT = 0.3  # of cells beyond the bounds
FEW_CELLS = 200  # crops with fewer cells to tell count less
LEARNING_RATE, RESUMED_RATE, WEIGHT_DECAY = 4e-3, 1e-3, 1e-3
CHECKED, CHECKED_COVERAGE = 16, 0.55


@dataclass(frozen=True)
class Grids:
    """What a robot had seen of a world at several times, and what is true.

    Attributes:
        states: (T, Y, X) uint8 of `CellState`. coverage: (T,) share of the cells to see that were seen.
        occupied, outside: (Y, X) bool, as in `exploration_robot`.
    """

    states: np.ndarray
    coverage: np.ndarray
    occupied: np.ndarray
    outside: np.ndarray


def load_grids(folder: Path, split: str, index: int, *, floor: bool = False) -> Grids | None:
    """The grids of a world, or of a floor of rooms, from the folder if they are there; None if no robot fits in."""
    file = folder / f"{split}_{'floor_' if floor else ''}{index}.npz"
    if not file.is_file():
        try:
            grids = walk(make_floor(seed_of(split, index)) if floor else world_to_explore(split, index))
        except ValueError:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with (part := file.with_suffix(".part")).open("wb") as out:
            np.savez_compressed(out, **vars(grids))
        part.rename(file)
    with np.load(file) as found:
        return Grids(*(found[name] for name in ("states", "coverage", "occupied", "outside")))


def walk(scene: Scene) -> Grids:
    """Lets a robot walk through a world."""
    robot = ExploringRobot(scene)
    states, coverage = [robot.grid.state.copy()], [robot.coverage]
    for pose in make_path(scene, "ground", WALK, 0)[::STRIDE]:
        due = [share for share in COVERAGES if share > coverage[-1]]
        if not due:
            break
        robot.put(pose)
        if robot.coverage >= due[0]:
            states.append(robot.grid.state.copy())
            coverage.append(robot.coverage)
    return Grids(np.stack(states), np.array(coverage), robot.truth.occupied, robot.outside)


def to_tell(state: np.ndarray) -> np.ndarray:
    """(Y, X) bool: cells that a completion says something of."""
    near = ndimage.distance_transform_edt(state != CellState.OBSERVED_FREE) * CELL_M <= REACH_M
    return near & (state < CellState.OBSERVED_FREE)


def draw_crop(grids: Grids, rng: np.random.Generator) -> np.ndarray:
    """(4, CROP, CROP) float32: seen free, seen occupied, occupied or beyond the bounds, weight."""
    state = grids.states[rng.integers(len(grids.states))]
    rows, columns = np.nonzero(state >= CellState.OBSERVED_FREE)
    if rng.random() < HIDDEN_SHARE:
        n, (i, j) = rng.integers(len(rows)), np.ogrid[: state.shape[0], : state.shape[1]]
        seen = np.hypot(i - rows[n], j - columns[n]) <= rng.uniform(*HIDDEN_CELLS)
        state = np.where(seen, state, CellState.UNKNOWN)
        rows, columns = np.nonzero(state >= CellState.OBSERVED_FREE)
    weight = to_tell(state) * np.where(grids.outside, BEYOND_WEIGHT, 1)
    layers = np.stack(
        [state == CellState.OBSERVED_FREE, state == CellState.OBSERVED_OCCUPIED, grids.occupied | grids.outside, weight]
    ).astype(np.float32)
    n, shift = rng.integers(len(rows)), rng.integers(-SHIFT_CELLS, SHIFT_CELLS + 1, 2)
    layers = np.pad(layers, ((0, 0), *[(CROP, CROP)] * 2))
    top, left = (np.array([rows[n], columns[n]]) + shift + CROP // 2).tolist()
    crop = layers[:, top : top + CROP, left : left + CROP]
    if rng.random() < 0.5:
        crop = crop.transpose(0, 2, 1)
    return np.ascontiguousarray(crop[:, :: rng.choice([1, -1]), :: rng.choice([1, -1])])


def train(network: CompletionNetwork, worlds: Sequence[Grids], steps: int, rate: float, seed: int = 0) -> None:
    """Trains the network in place, with a learning rate of `rate` at most; prints the loss."""
    rng, start, mean = np.random.default_rng(seed), time.monotonic(), 0.0
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    network.train()
    for step in range(steps):
        crops = [draw_crop(worlds[rng.integers(len(worlds))], rng) for _ in range(BATCH)]
        batch = torch.from_numpy(np.stack(crops))
        errors = functional.binary_cross_entropy_with_logits(
            network(batch[:, :2]), batch[:, 2], weight=batch[:, 3], reduction="none"
        )
        loss = (errors.sum((1, 2)) / (batch[:, 3].sum((1, 2)) + FEW_CELLS)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step + 1, 50)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {mean:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    network.eval()


def predict(network: CompletionNetwork, state: np.ndarray) -> np.ndarray:
    """(Y, X) float32 P(occupied) as the network says."""
    seen = np.stack([state == CellState.OBSERVED_FREE, state == CellState.OBSERVED_OCCUPIED]).astype(np.float32)
    padding = [(MARGIN_CELLS, MARGIN_CELLS + -n % MULTIPLE) for n in state.shape]
    with torch.inference_mode():
        chance = torch.sigmoid(network(torch.from_numpy(np.pad(seen, ((0, 0), *padding)))[None])[0]).numpy()
    return np.asarray(chance[MARGIN_CELLS:, MARGIN_CELLS:][: state.shape[0], : state.shape[1]])


def check(network: CompletionNetwork, worlds: Sequence[Grids]) -> str:
    """Figures of completed cells of worlds, about half of which was seen."""
    chance, right = [], []
    for grids in worlds:
        state = grids.states[int(np.argmin(np.abs(grids.coverage - CHECKED_COVERAGE)))]
        where = to_tell(state) & ~grids.outside
        chance.append(predict(network, state)[where])
        right.append(grids.occupied[where])
    p, y = np.concatenate(chance).astype(np.float64).clip(1e-4, 1 - 1e-4), np.concatenate(right)
    loss = -(np.log(p[y]).sum() + np.log(1 - p[~y]).sum()) / len(p)
    overlaps = [f"{t}: {((p > t) & y).sum() / ((p > t) | y).sum():.3f}" for t in (0.2, 0.3, 0.4, 0.5)]
    return f"{len(p)} cells, {y.mean():.3f} occupied, log loss {loss:.4f}, IoU of occupied from {', '.join(overlaps)}"


def main() -> None:
    """Gathers grids, trains, checks, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the grids are kept")
    parser.add_argument("--worlds", type=int, default=135)
    parser.add_argument("--floors", type=int, default=0, help="floors of several rooms besides the worlds")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--resume", action="store_true", help="start from the weights of the package")
    parser.add_argument("--write", action="store_true", help=f"write {WEIGHTS_FILE}")
    options = parser.parse_args()
    torch.manual_seed(0)
    worlds, floors, checked = (
        [grids for i in range(count) if (grids := load_grids(options.folder, split, i, floor=floor)) is not None]
        for split, count, floor in (
            ("training", options.worlds, False), ("training", options.floors, True), ("validation", CHECKED, False)
        )
    )  # fmt: skip
    worlds += floors
    network = load_network() if options.resume else CompletionNetwork()
    print(f"{len(worlds)} worlds, {sum(p.numel() for p in network.parameters())} parameters", flush=True)
    train(network, worlds, options.steps, RESUMED_RATE if options.resume else LEARNING_RATE)
    print("validation:", check(network, checked))
    if options.write:
        FILE.parent.mkdir(exist_ok=True)
        state = {
            name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
        }
        save_file(state, FILE)
        print(f"Written to {FILE}; run scripts/fit_occupancy.py next.")


if __name__ == "__main__":
    main()
