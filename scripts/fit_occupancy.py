"""Fits the probabilities of `weights/occupancy.json` on worlds of the validation split, and checks them on others.

    python scripts/fit_occupancy.py [--worlds 12] [--check] [--write]

Robots see about half of each world. Then: how often are cells that were seen free or occupied, or not seen, occupied;
and how does the share of completions in which a cell is occupied map to how often it is. The first four worlds, one of
each kind, are fitted, the next four checked, and so on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from worldstereo_ros.evaluation.exploration_robot import ExploringRobot, coarse, true_occupancy
from worldstereo_ros.evaluation.occupancy_calibration import completion_samples, half_seen, inside, score_completions
from worldstereo_ros.planning.cells import CALIBRATION_FILE, CellState
from worldstereo_ros.planning.completion import MIN_SHARE

FILE = Path(__file__).resolve().parents[1] / "worldstereo_ros" / CALIBRATION_FILE
RIDGE = 1e-3  # of the logistic models


def fit_logistic(features: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Coefficients (1 + F,) of a logistic model of `occupied` (N,) on features (N, F), the offset first."""
    X = np.column_stack([np.ones(len(features)), features])
    y = occupied.astype(np.float64)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = X @ w
        p = 1 / (1 + np.exp(-z))
        value = float(np.mean(np.logaddexp(0, z) - y * z) + RIDGE * (w[1:] ** 2).sum())
        return value, X.T @ (p - y) / len(y) + 2 * RIDGE * np.append(0, w[1:])

    return minimize(loss, np.zeros(X.shape[1]), jac=True).x


def nearly_occupied(robot: ExploringRobot) -> np.ndarray:
    """(Y, X) bool: an object is in the space that the robot needs, or up to a voxel below or above it."""
    shape = robot.grid.robot
    higher = replace(shape, height=shape.height + robot.grid.resolution, max_step=0.5 * shape.max_step)
    return coarse(true_occupancy(robot.scene, replace(robot.grid, robot=higher)), robot.grid)


def rates(robots: list[ExploringRobot]) -> dict[str, float]:
    """How often cells of a state are occupied, with one success and one failure added.

    What was seen occupied may be up to a voxel lower or higher than the space that the robot needs: that is an object,
    and not free.
    """
    out = {}
    for name, state in (
        ("observed_free", CellState.OBSERVED_FREE), ("observed_occupied", CellState.OBSERVED_OCCUPIED),
        ("unknown", CellState.UNKNOWN),
    ):  # fmt: skip
        true = [nearly_occupied(r) if name == "observed_occupied" else r.truth.occupied for r in robots]
        truth = np.concatenate([t[inside(r) & (r.grid.state == state)] for t, r in zip(true, robots, strict=True)])
        out[name] = round(float((truth.sum() + 1) / (len(truth) + 2)), 4)
    return out


def main() -> None:
    """Fits, checks, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--check", action="store_true", help="only print the figures of the values as they are")
    parser.add_argument("--write", action="store_true", help="write the fitted values")
    options = parser.parse_args()
    robots = list(half_seen([("validation", index) for index in range(options.worlds)]))
    # Kinds take turns, so pairs of rounds are split.
    fitted = [robot for index, robot in enumerate(robots) if (index // 4) % 2 == 0]
    checked = [robot for index, robot in enumerate(robots) if (index // 4) % 2 == 1] or robots
    values = json.loads(FILE.read_text(encoding="utf-8"))
    if not options.check:
        share, occupied = (np.concatenate(part) for part in zip(*map(completion_samples, fitted), strict=True))
        share = np.clip(share, MIN_SHARE, 1 - MIN_SHARE)
        model = fit_logistic(np.log(share / (1 - share))[:, None], occupied)
        values |= {**rates(fitted), "completed": [round(float(value), 3) for value in model]}
        print(json.dumps(values))
    if options.write:
        FILE.write_text(json.dumps(values) + "\n", encoding="utf-8")
        print(f"Written to {FILE}; run with --check to see the figures.")
        return
    print("rates on the checked worlds:", rates(checked))
    print(asdict(score_completions(checked)))


if __name__ == "__main__":
    main()
