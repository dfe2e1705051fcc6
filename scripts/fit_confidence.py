#!/usr/bin/env python3
"""Fits the confidence model (docs/concepts/confidence.md) and writes worldstereo_ros/weights/confidence.json.

Pipelines imagine views of procedural worlds of the *validation* split, recorded as `simulated_recordings.py` says;
nothing is fitted on test worlds or on recordings. Two processes can share the work:

    python scripts/fit_confidence.py --worlds 30 --save a.npz
    python scripts/fit_confidence.py --worlds 30 --first 30 --save b.npz
    python scripts/fit_confidence.py --samples a.npz b.npz

With `--keep-functions` nothing is fitted: how well the bundled functions are calibrated on the samples is printed, and
the errors that belong to confidences are measured anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import isotonic_regression, minimize
from scipy.spatial.transform import Rotation
from simulated_recordings import SimulatedRecording

from worldstereo_ros.depth.estimators import SMALL, load_depth_estimator
from worldstereo_ros.evaluation.calibration_metrics import depth_ratio, expected_calibration_error, rank_correlation
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import PERIOD_NS, world_sequence
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Conditioning, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.pipelines.confidence import (
    CLASSES,
    COLOUR_TOLERANCE,
    DEPTH_TOLERANCE,
    FEATURES,
    QUANTITIES,
    Scale,
    StatisticsCache,
    compute_features,
    confidence_file,
    load_confidence,
)
from worldstereo_ros.world import WorldModel

PROTOCOLS = ("single", "sparse", "mono")
MONO_EVERY = 3  # the protocol mono is used in every third world
LONG_WALK, SHORT_WALK = 81, 41  # views; a long walk reaches unobserved places
TARGETS = 4  # views of a walk that are imagined
TURNS_DEG = (180, 90)  # further views of the same places, turned away
REQUESTS = 2  # of the same views, each remembered: the second time, many pixels show what was imagined before
PIXELS = 500  # samples of a class in a frame
QUANTILES = (0.0, 0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92, 0.99)  # of a feature, the knots of its function
RIDGE = 3e-4  # regularisation of the functions' steps
MIN_STEP = 0.01  # of a function over its whole range; smaller ones are left out
POOR_ALONE = 2.0  # weight of poor recordings with one observation, which cannot show how poor they are
FOLDS = 4  # of worlds, in cross-validation
ERROR_KNOTS, TOP_KNOTS = 12, 8  # groups of samples by confidence, and parts of the most confident one


@dataclass(frozen=True)
class Samples:
    """N pixels of imagined views.

    Attributes:
        features: (N, F) float32, see `FEATURES`.
        error: (N,) float32, colour error in 0..1.
        ratio: (N,) float32, see `depth_ratio`; NaN without true depth.
        label: (N,) uint8 index into `CLASSES`.
        world: (N,) int32 number of the world.
        scenario: (N,) int32 number of the world and of the protocol.
        weight: (N,) float32, what a sample stands for: a share of a frame.
        pipeline: (N,) uint8 index of the pipeline.
    """

    features: np.ndarray
    error: np.ndarray
    ratio: np.ndarray
    label: np.ndarray
    world: np.ndarray
    scenario: np.ndarray
    weight: np.ndarray
    pipeline: np.ndarray

    def subset(self, chosen: np.ndarray) -> Samples:
        """The samples of a mask."""
        return Samples(*(getattr(self, field.name)[chosen] for field in fields(self)))


class RecordingPipeline:
    """A pipeline that records its frames and the features of their pixels."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._statistics = pipeline, StatisticsCache()
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = getattr(pipeline, "selects_references", False)
        self.recorded: list[tuple[PipelineFrame, np.ndarray]] = []

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order."""
        frames = self._pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)
        for index, frame in enumerate(frames):
            self.recorded.append((frame, compute_features(frame, conditioning, index, self._statistics)))
            nothing = np.zeros(frame.observed.shape, np.float32)
            yield replace(frame, confidence=nothing, depth_confidence=nothing)


def recording_of(index: int) -> tuple[SimulatedRecording, int]:
    """How world `index` is recorded, and the number of views of the walk: exact, usual, and poor ones take turns."""
    random = np.random.default_rng(index)
    low, high = ((0.0, 0.0), (0.0, 0.5), (0.3, 1.0))[index % 3]
    sensor, clutter = random.uniform(low, high), random.uniform(0.5 * low, high)
    return SimulatedRecording(1000 + index, sensor, clutter), SHORT_WALK if index % 2 else LONG_WALK


def collect(index: int, pipelines: dict[str, Pipeline], estimator) -> Iterator[Samples]:
    """Samples of one world, for each protocol and pipeline. Raises ValueError: the world has no free path."""
    recording, views = recording_of(index)
    sequence = world_sequence("validation", index, views=views)
    for number, protocol in enumerate(PROTOCOLS):
        if protocol == "mono" and index % MONO_EVERY:
            continue
        scenario = make_scenario(sequence, protocol, every=math.ceil((views - 1) / TARGETS))
        last = views * PERIOD_NS
        observed = scenario.true_views or scenario.observed_views
        observations = [recording.observe(view, view.stamp_ns / last) for view in observed]
        if protocol == "mono":
            observations = [replace(view, depth=None) for view in observations]
        times = [view.stamp_ns / last for view in scenario.target_views]
        turned, turned_times = turned_poses(scenario.path, times)
        true_path, times = np.concatenate([scenario.path, turned]), [*times, *turned_times]
        targets = list(sequence.seen_from(true_path))
        images = [recording.image(view, time) for view, time in zip(targets, times, strict=True)]
        path = np.stack([recording.pose(pose, time) for pose, time in zip(true_path, times, strict=True)])
        for which, pipeline in enumerate(pipelines.values()):
            recorder = RecordingPipeline(pipeline)
            world = WorldModel(recorder, depth_estimator=estimator)
            for view in observations:
                world.observe(view)
            for request in range(REQUESTS):
                for _ in world.imagine(path, sequence.camera, seed=request, remember=True):
                    pass
            random = np.random.default_rng(index)
            again = [*zip(targets, images, strict=True)] * REQUESTS
            for (frame, features), (view, image) in zip(recorder.recorded, again, strict=True):
                numbers = (index, len(PROTOCOLS) * index + number, which)
                yield sample_pixels(frame, features, view.depth, image, numbers, random)


def turned_poses(path: np.ndarray, times: list[float]) -> tuple[np.ndarray, list[float]]:
    """(N, 4, 4) some poses of a path, turned about the vertical axis towards what was not observed, and their times."""
    chosen = range(0, len(path), max(1, len(path) // len(TURNS_DEG)))[: len(TURNS_DEG)]
    poses = path[list(chosen)].copy()
    for pose, angle in zip(poses, TURNS_DEG, strict=False):
        pose[:3, :3] = Rotation.from_rotvec([0, 0, math.radians(angle)]).as_matrix() @ pose[:3, :3]
    return poses, [times[index] for index in chosen]


def sample_pixels(
    frame: PipelineFrame,
    features: np.ndarray,
    depth: np.ndarray,
    image: np.ndarray,
    numbers: tuple[int, int, int],
    random: np.random.Generator,
) -> Samples:
    """Samples pixels of a frame with true depth and image, of each class; numbers of the world, scenario, pipeline."""
    error = np.abs(frame.image.astype(np.float32) - image).mean(axis=2) / 255
    ratio = depth_ratio(frame.depth, depth)
    estimated = np.zeros_like(frame.observed) if frame.estimated is None else frame.estimated
    labels = np.select([frame.observed, estimated], [0, 1], 2)
    if frame.far_confidence is not None:
        labels[frame.far_confidence > 0] = -1  # its confidence does not come from the functions
    height, width = error.shape
    parts, weights = [], []
    for label in range(len(CLASSES)):
        candidates = np.flatnonzero(labels == label)
        if len(candidates):
            parts.append(random.choice(candidates, min(PIXELS, len(candidates)), replace=False))
            weights.append(np.full(len(parts[-1]), len(candidates) / error.size / len(parts[-1])))
    chosen = np.concatenate(parts)
    rows, columns = chosen // width, chosen % width
    count = len(chosen)
    return Samples(
        features[rows * features.shape[0] // height, columns * features.shape[1] // width],
        error[rows, columns],
        ratio[rows, columns],
        labels[rows, columns].astype(np.uint8),
        np.full(count, numbers[0], np.int32),
        np.full(count, numbers[1], np.int32),
        np.concatenate(weights).astype(np.float32),
        np.full(count, numbers[2], np.uint8),
    )


def concatenate(parts: list[Samples]) -> Samples:
    """All samples in one object."""
    return Samples(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Samples)))


def balanced_weights(samples: Samples) -> np.ndarray:
    """Weights of the fit: a scenario with four times as many pixels counts twice as much."""
    totals = np.bincount(samples.scenario, samples.weight)
    weight = samples.weight / np.sqrt(totals)[samples.scenario]
    poor = samples.world % 3 == 2  # see `recording_of`
    alone = samples.scenario % len(PROTOCOLS) != PROTOCOLS.index("sparse")
    return np.where(poor & alone, POOR_ALONE * weight, weight)


def quantity_of(samples: Samples, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(known, error, right) of colour or depth: bool, float and bool (N,)."""
    if quantity == "colour":
        return np.ones(len(samples.error), bool), samples.error, samples.error <= COLOUR_TOLERANCE
    return ~np.isnan(samples.ratio), samples.ratio, samples.ratio <= DEPTH_TOLERANCE


def fit(features: np.ndarray, right: np.ndarray, error: np.ndarray, weight: np.ndarray) -> Scale:
    """Fits a scale by regularised logistic regression; each function is a sum of ramps with non-negative steps.

    Args:
        features: (N, F) float32.
        right: (N,) bool.
        error: (N,) what the expected error is about.
        weight: (N,) weights of the samples.
    """
    knots, columns, owners = {}, [], []
    for index, name in enumerate(FEATURES):
        found = np.unique(np.round(np.quantile(features[:, index], QUANTILES), 4))
        if len(found) > 1:
            knots[name] = found
            for low, high in itertools.pairwise(found):
                columns.append(np.clip((features[:, index] - low) / (high - low), 0, 1))
                owners.append(name)
    ramps = np.stack([*columns, np.ones(len(features), np.float32)], axis=1).astype(np.float32)
    weight = weight / weight.sum()

    def objective(steps: np.ndarray) -> tuple[float, np.ndarray]:
        score = ramps @ steps.astype(np.float32)
        probability = 1 / (1 + np.exp(np.clip(score, -30, 30)))
        likelihood = np.log(np.maximum(np.where(right, probability, 1 - probability), 1e-12))
        gradient = (weight * (right - probability)).astype(np.float32) @ ramps
        ridge = np.append(steps[:-1], 0)
        return float(RIDGE * ridge @ ridge - weight @ likelihood), gradient.astype(np.float64) + 2 * RIDGE * ridge

    bounds = [(0, None)] * len(owners) + [(None, None)]
    steps = minimize(objective, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x
    functions = {}
    for name, found in knots.items():
        values = np.cumsum([0, *steps[:-1][[owner == name for owner in owners]]])
        if values[-1] >= MIN_STEP:
            functions[name] = found, values
    scale = Scale(float(steps[-1]), functions, np.array([0.5]), np.array([0.0]))
    return replace(scale, **expected_errors(scale(features), np.minimum(error, 10), weight))


def expected_errors(confidence: np.ndarray, error: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """`confidence` and `expected_error` of a scale."""
    *groups, top = np.array_split(np.argsort(confidence, kind="stable"), ERROR_KNOTS)
    groups = [group for group in (*groups, *np.array_split(top, TOP_KNOTS)) if len(group)]
    levels = np.round([np.average(confidence[group], weights=weight[group]) for group in groups], 4)
    errors = isotonic_regression(
        [np.average(error[group], weights=weight[group]) for group in groups], increasing=False
    ).x
    distinct = np.concatenate([[True], np.diff(levels) > 1e-3])
    # Strictly monotone: of two pixels, the one with the higher confidence never has an equal expected error.
    return {"confidence": levels[distinct], "expected_error": errors[distinct] + 1e-4 * np.arange(distinct.sum())[::-1]}


def cross_validate(samples: Samples, quantity: str) -> np.ndarray:
    """(N,) confidence of each sample by a fit on other worlds; NaN where the quantity is unknown."""
    known, error, right = quantity_of(samples, quantity)
    weight = balanced_weights(samples)
    out = np.full(len(error), np.nan, np.float32)
    for fold in range(FOLDS):
        here = samples.world // 3 % FOLDS == fold  # each fold has all qualities of sensors
        train = known & ~here
        scale = fit(samples.features[train], right[train], error[train], weight[train])
        out[known & here] = scale(samples.features[known & here])
    return out


def main() -> None:
    """Collects samples, fits, writes, and prints the cross-validated calibration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=60, help="number of worlds of the validation split")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--save", type=Path, help="write the samples to a file and fit nothing")
    parser.add_argument("--samples", type=Path, nargs="+", default=[], help="fit to samples of these files")
    parser.add_argument("--no-validation", action="store_true", help="skip the cross-validation")
    parser.add_argument("--keep-functions", action="store_true", help="measure the bundled functions, and fit none")
    options = parser.parse_args()
    console, begin = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=200)  # without a terminal, do not wrap the table
    names = ["geometric", "small"]
    parts = []
    for path in options.samples:
        with np.load(path) as content:
            parts.append(Samples(*(content[field.name] for field in fields(Samples))))
    if not parts:
        pipelines, estimator = {name: load_pipeline(name) for name in names}, load_depth_estimator(SMALL)
        for index in range(options.first, options.first + options.worlds):
            try:
                parts.extend(collect(index, pipelines, estimator))
            except ValueError as error:  # no free path
                console.print(str(error), style="dim")
                continue
            console.print(f"world {index}: {time.monotonic() - begin:.0f} s", style="dim")
    samples = concatenate(parts)
    if options.save:
        np.savez(options.save, **{field.name: getattr(samples, field.name) for field in fields(Samples)})
        return
    how = "The bundled functions" if options.keep_functions else "Cross-validated over worlds"
    table = Table(title=f"{how}; ECE: expected calibration error")
    for heading in ("pipeline", "class", "quantity", "pixels", "right", "confidence", "ECE", "rank", "functions"):
        table.add_column(heading, overflow="fold")
    content: dict = {
        "tolerance": {"colour": COLOUR_TOLERANCE, "depth": DEPTH_TOLERANCE},
        "made_by": "scripts/fit_confidence.py, worlds of the validation split",
        "pipelines": {name: {label: {} for label in CLASSES} for name in names},
    }
    for which, name in enumerate(names):
        for label, class_name in enumerate(CLASSES):
            some = samples.subset((samples.pipeline == which) & (samples.label == label))
            for quantity in QUANTITIES:
                known, error, right = quantity_of(some, quantity)
                weight = balanced_weights(some)
                if options.keep_functions:
                    scale = load_confidence(name).scales[class_name][quantity]
                    found = scale(some.features[known])
                    errors = expected_errors(found, np.minimum(error[known], 10), weight[known])
                    scale = replace(scale, **errors)
                else:
                    scale = fit(some.features[known], right[known], error[known], weight[known])
                content["pipelines"][name][class_name][quantity] = scale.to_dict()
                row = [name, class_name, quantity, str(int(known.sum())), f"{right[known].mean():.2f}"]
                if options.keep_functions or not options.no_validation:
                    if not options.keep_functions:
                        found = cross_validate(some, quantity)[known]
                    ece = expected_calibration_error(found, right[known])
                    rank = rank_correlation(found, error[known])
                    row += [f"{found.mean():.2f}", f"{ece:.3f}", "-" if rank is None else f"{rank:.2f}"]
                console.print(*row)
                ranges = {key: values[-1] for key, (_, values) in scale.functions.items()}
                top = sorted(ranges, key=ranges.get, reverse=True)[:8]
                table.add_row(*row, *[""] * (8 - len(row)), ", ".join(f"{key} {ranges[key]:.1f}" for key in top))
    console.print(table)
    path = confidence_file()
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    console.print(f"Wrote {path} after {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
