"""Fits the probabilities of `weights/occupancy.json` on worlds of the validation split, and checks them on others.

    python scripts/fit_occupancy.py [--worlds 32] [--models 8] [--floors 8] [--check] [--write]

Robots see about half of each world. Then: how often are cells that were seen free or occupied, or not seen, occupied;
and how does what the network of completions says (`scripts/train_completion.py` trains it) map to how often they are.
The first four worlds, one of each kind, are fitted, the next four checked, and so on. In further worlds a world model
imagines views and estimates depth: how do the confidences of depth map to how often cells are occupied. Every other
pair of a room and a corridor is checked. Floors of several rooms are checked, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.evaluation.calibration_metrics import expected_calibration_error
from worldstereo_ros.evaluation.exploration import world_to_explore
from worldstereo_ros.evaluation.exploration_robot import ExploringRobot, coarse, true_occupancy
from worldstereo_ros.evaluation.occupancy_calibration import (
    best_threshold,
    completion_samples,
    half_seen,
    half_seen_scene,
    inside,
    model_samples,
    score_completions,
)
from worldstereo_ros.evaluation.room_floors import make_floor
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.planning.cells import CALIBRATION_FILE, CellState, probability
from worldstereo_ros.scenes import seed_of

FILE = Path(__file__).resolve().parents[1] / "worldstereo_ros" / "weights" / CALIBRATION_FILE
RIDGE = 1e-3  # of the logistic models
FIRST_MODEL_WORLD = 40  # of those in which a model imagines, a room


def fit_logistic(features: np.ndarray, occupied: np.ndarray, signs: tuple[int, ...]) -> np.ndarray:
    """Coefficients (1 + F,) of a logistic model of `occupied` (N,) on features (N, F), the offset first.

    Each coefficient has the sign that it is given: more evidence for a surface never makes it less likely.
    """
    X = np.column_stack([np.ones(len(features)), features])
    y = occupied.astype(np.float64)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = X @ w
        p = 1 / (1 + np.exp(-z))
        value = float(np.mean(np.logaddexp(0, z) - y * z) + RIDGE * (w[1:] ** 2).sum())
        return value, X.T @ (p - y) / len(y) + 2 * RIDGE * np.append(0, w[1:])

    bounds = [(None, None), *((0, None) if sign > 0 else (None, 0) for sign in signs)]
    return minimize(loss, np.zeros(X.shape[1]), jac=True, bounds=bounds).x


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


Evidence = tuple[np.ndarray, np.ndarray, np.ndarray]


def model_evidence(count: int) -> Iterator[dict[str, Evidence]]:
    """Evidence of the geometric pipeline and of the bundled depth network in rooms and corridors in turn."""
    pipeline, estimator = load_pipeline("geometric"), load_depth_estimator()
    for index in range(count):
        number = FIRST_MODEL_WORLD + 4 * (index // 2) + index % 2
        yield model_samples(world_to_explore("validation", number), pipeline, estimator)


def fit_evidence(name: str, fit: list[Evidence], check: list[Evidence]) -> list[float]:
    """The logistic model of evidence, rounded; prints how well it is calibrated on other worlds."""
    hit, free, occupied = (np.concatenate(part) for part in zip(*fit, strict=True))
    model = [round(float(value), 3) for value in fit_logistic(np.column_stack([hit, free]), occupied, (1, -1))]
    if check:
        hit, free, occupied = (np.concatenate(part) for part in zip(*check, strict=True))
        chance = probability((model[0], model[1], model[2]), hit, free)
        error = expected_calibration_error(chance, occupied.astype(np.float64))
        print(f"{name}: {len(chance)} cells of other worlds, {occupied.mean():.3f} occupied, ECE {error:.4f}")
    return model


def main() -> None:
    """Fits, checks, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--models", type=int, default=8, help="rooms and corridors in which a model imagines; 0 = keep")
    parser.add_argument("--floors", type=int, default=8, help="floors of rooms with doors that are checked")
    parser.add_argument("--check", action="store_true", help="only print the figures of the values as they are")
    parser.add_argument("--write", action="store_true", help="write the fitted values")
    options = parser.parse_args()
    robots = list(half_seen([("validation", index) for index in range(options.worlds)]))
    # Kinds take turns, so pairs of rounds are split.
    fitted = [robot for index, robot in enumerate(robots) if (index // 4) % 2 == 0]
    checked = [robot for index, robot in enumerate(robots) if (index // 4) % 2 == 1] or robots
    values = json.loads(FILE.read_text(encoding="utf-8"))
    if not options.check:
        chance, occupied = (np.concatenate(part) for part in zip(*map(completion_samples, fitted), strict=True))
        model = fit_logistic(np.log(chance / (1 - chance))[:, None], occupied, (1,))
        threshold = best_threshold(fitted)
        called = 1 / (1 + np.exp(-(model[0] + model[1] * np.log(threshold / (1 - threshold)))))
        values |= {
            **rates(fitted), "completed": [round(float(value), 3) for value in model],
            "completed_called": round(float(called), 3),
        }  # fmt: skip
        models = list(model_evidence(options.models))
        for name in ("imagined", "estimated") if models else ():
            fit, check = ([m[name] for n, m in enumerate(models) if n // 2 % 2 == k] for k in (0, 1))
            print(f"{name}: {(model := fit_evidence(name, fit, check))}")
            if name == "imagined":
                values[name] = model
        # Where estimated depth ends says next to nothing of cells of 0.1 m. A robot had better not drive there: the
        # coefficients of estimated cells are set by hand, so that surfaces are probably occupied.
        print(json.dumps(values))
    if options.write:
        FILE.write_text(json.dumps(values) + "\n", encoding="utf-8")
        print(f"Written to {FILE}; run with --check to see the figures.")
        return
    print("rates on the checked worlds:", rates(checked))
    print("checked worlds:", asdict(score_completions(checked)))
    floors = [half_seen_scene(make_floor(seed_of("validation", index))) for index in range(options.floors)]
    print("floors of rooms, on which nothing is fitted:", asdict(score_completions(floors)))


if __name__ == "__main__":
    main()
