#!/usr/bin/env python3
"""Fits the confidence model (docs/concepts/confidence.md) and writes worldstereo_ros/weights/confidence.json.

Pipelines imagine views of procedural worlds of the *validation* split; nothing is fitted on test worlds or on
recordings. Each world is observed with its own simulated sensors, from nearly noise-free to poor: camera noise and
automatic exposure, depth errors, and pose errors.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import isotonic_regression, lsq_linear
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import WorldSequence, world_sequence
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Conditioning, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE, ConfidenceModel, Scale, confidence_file, features
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.sensor import SensorNoise, noisy_depth, noisy_image
from worldstereo_ros.world import WorldModel

PROTOCOLS = ("single", "sparse")
VIEWS = 81  # of a walk, which then reaches unobserved places
# Standard deviations of the poorest sensor
POSE_M, POSE_DEG = 0.01, 0.5  # of observed poses
EXPOSURE_STOPS = 0.3  # of the exposure between frames
PIXELS = 3000  # samples of a frame
ERROR_FLOOR = 0.05  # added to an error before its logarithm; smaller errors hardly differ
KNOTS = 12
RIDGE = 1e-2  # regularisation of the weights, relative to the number of samples


@dataclass(frozen=True)
class Samples:
    """N pixels of imagined views.

    Attributes:
        features: (N, F), see `confidence.FEATURES`.
        error: (N,) in 0..1.
        observed: (N,) bool, labelled as observed.
        world: (N,) number of the world.
        spread: (N,) standard deviation over random seeds, 0 with a single seed.
    """

    features: np.ndarray
    error: np.ndarray
    observed: np.ndarray
    world: np.ndarray
    spread: np.ndarray

    def subset(self, chosen: np.ndarray) -> Samples:
        """The samples of a mask."""
        return Samples(*(values[chosen] for values in vars(self).values()))


class RecordingPipeline:
    """A pipeline that records its frames and the features of their pixels."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = getattr(pipeline, "selects_references", False)
        self.recorded: list[tuple[PipelineFrame, np.ndarray]] = []

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order."""
        frames = self._pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)
        for index, frame in enumerate(frames):
            self.recorded.append((frame, features(frame, conditioning, index)))
            yield replace(frame, confidence=np.zeros(frame.observed.shape, np.float32))


class NoisySensors:
    """Simulated sensors, deterministic for one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._level = self._random.uniform(0, 1)
        self._noise = replace(SensorNoise.draw(Random(seed)), drift=EXPOSURE_STOPS * self._level)

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 as the camera takes it."""
        return noisy_image(torch.from_numpy(image)[None], self._noise, self._generator)[0].numpy()

    def observe(self, view: View) -> View:
        """A view with errors of image, depth and pose."""
        assert view.depth is not None
        depth = noisy_depth(torch.from_numpy(view.depth)[None], view.camera, self._noise, self._generator)[0].numpy()
        rotation = self._random.normal(scale=np.radians(POSE_DEG) * self._level, size=3)
        pose = view.world_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(rotation).as_matrix()
        pose[:3, 3] += self._random.normal(scale=POSE_M * self._level, size=3)
        return replace(view, image=self.image(view.image), depth=depth, world_from_camera=pose)


def collect(
    sequence: WorldSequence, pipelines: dict[str, Pipeline], every: int, seed: int, runs: int
) -> Iterator[tuple[str, Samples]]:
    """The samples of each pipeline in one world, for each protocol; models imagine each view `runs` times."""
    for protocol in PROTOCOLS:
        scenario = make_scenario(sequence, protocol, every)
        sensors = NoisySensors(seed)
        observations, truths = (
            [sensors.observe(view) for view in scenario.observed_views],
            [sensors.image(view.image) for view in scenario.target_views],
        )
        for name, pipeline in pipelines.items():
            recording = RecordingPipeline(pipeline)
            world = WorldModel(recording)
            for view in observations:
                world.observe(view)
            for run in range(1 if name == "geometric" else runs):
                for _ in world.imagine(scenario.path, scenario.target_views.camera, seed=run):
                    pass
            yield name, sample_pixels(recording.recorded, truths, seed)


def sample_pixels(recorded: list[tuple[PipelineFrame, np.ndarray]], truths: list[np.ndarray], world: int) -> Samples:
    """Samples pixels of frames with ground truth; frames of further runs follow those of the first."""
    parts, random = [], np.random.default_rng(world)
    for number, truth in enumerate(truths):
        frame, values = recorded[number]
        images = np.stack([other.image for other, _ in recorded[number :: len(truths)]]).astype(np.float32)
        spread = cv2.blur(images.std(axis=0).mean(axis=2) / 255, (9, 9))
        error = np.abs(frame.image.astype(np.float32) - truth).mean(axis=2) / 255
        height, width = error.shape
        chosen = random.choice(error.size, min(PIXELS, error.size), replace=False)
        rows, columns = chosen // width, chosen % width
        at = rows * values.shape[0] // height, columns * values.shape[1] // width
        layers = (layer[rows, columns] for layer in (error, frame.observed))
        parts.append(Samples(values[at], *layers, np.full(len(rows), world), spread[rows, columns]))
    return concatenate(parts)


def concatenate(parts: list[Samples]) -> Samples:
    """All samples in one object."""
    return Samples(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def fit_weights(values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(F,) float32 non-negative weights that predict the logarithm of the error."""
    target = np.log(error + ERROR_FLOOR)
    matrix = np.concatenate([values, np.ones((len(target), 1), np.float32)], axis=1).astype(np.float64)
    damping = np.sqrt(RIDGE * len(target)) * np.eye(matrix.shape[1])[:-1]
    lower = np.array([0.0] * values.shape[1] + [-np.inf])
    found = lsq_linear(
        np.concatenate([matrix, damping]), np.concatenate([target, np.zeros(len(damping))]), (lower, np.inf)
    )
    return np.where(found.x[:-1] < 5e-3, 0, found.x[:-1]).astype(np.float32)


def cross_validated_rank(values: np.ndarray, error: np.ndarray, world: np.ndarray) -> float:
    """Rank correlation of score and error, each world with weights fitted on all others."""
    score = np.zeros(len(error), np.float32)
    for one in np.unique(world):
        here = world == one
        score[here] = values[here] @ fit_weights(values[~here], error[~here])
    return float(spearmanr(score, error).statistic)


def fit(samples: Samples) -> Scale:
    """Fits the weights and both functions of the score."""
    weights = fit_weights(samples.features, samples.error)
    score = samples.features @ weights
    order = np.argsort(score, kind="stable")
    groups = np.array_split(order, KNOTS)
    scores = np.array([score[group].mean() for group in groups])
    error = isotonic_regression([samples.error[group].mean() for group in groups]).x
    right = isotonic_regression(
        [(samples.error[group] <= COLOUR_TOLERANCE).mean() for group in groups], increasing=False
    ).x
    distinct = np.concatenate([[True], np.diff(scores) > 1e-3])
    # Strictly monotone: of two pixels, the one with the higher score never gets an equal confidence.
    slope = 1e-4 * np.arange(int(distinct.sum()))
    return Scale(weights, scores[distinct], error[distinct] + slope, np.clip(right[distinct] - slope, 0, 1))


def main() -> None:
    """Collects samples, fits, writes, and prints the cross-validated rank correlation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20, help="number of worlds of the validation split")
    parser.add_argument("--every", type=int, default=20, help=f"evaluate every n-th of {VIEWS} frames")
    parser.add_argument("--samples", default="", help="also write the samples: PREFIX-PIPELINE.npz")
    parser.add_argument(
        "--runs",
        type=int,
        default=1,
        help="runs of a model; 2 or more: print what the spread over random seeds would add, and write nothing",
    )
    parser.add_argument("--pipeline", action="append", help="geometric, small; default: both")
    options = parser.parse_args()
    names = options.pipeline or ["geometric", "small"]
    console, begin = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=240)  # without a terminal, do not wrap the table
    pipelines = {name: load_pipeline(name) for name in names}
    found: dict[str, list[Samples]] = {name: [] for name in names}
    for index in range(options.worlds):
        try:
            sequence = world_sequence("validation", index, views=VIEWS)
        except ValueError as error:  # no free path
            console.print(str(error), style="dim")
            continue
        for name, samples in collect(sequence, pipelines, options.every, index, options.runs):
            found[name].append(samples)
        console.print(f"{sequence.path.name}: {time.monotonic() - begin:.0f} s", style="dim")
    path = confidence_file()
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pipelines": {}}
    content |= {"tolerance": COLOUR_TOLERANCE, "made_by": "scripts/fit_confidence.py, worlds of the validation split"}
    table = Table(title="Rank correlation, cross-validated over worlds")
    for heading in ("pipeline", "pixels", "number", "mean error", "right", "rank", "with spread", "weights"):
        table.add_column(heading, overflow="fold")
    for name, parts in found.items():
        samples = concatenate(parts)
        if options.samples:
            np.savez(f"{options.samples}-{name}.npz", **vars(samples))
        scales = {}
        for kind, chosen in (("imagined", ~samples.observed), ("observed", samples.observed)):
            some = samples.subset(chosen)
            scale = scales[kind] = fit(some)
            rank = cross_validated_rank(some.features, some.error, some.world)
            spread = "-"
            if some.spread.any():
                more = np.concatenate([some.features, np.log1p(20 * some.spread)[:, None]], axis=1)
                spread = f"{cross_validated_rank(more, some.error, some.world):.3f}"
            table.add_row(
                name,
                kind,
                str(len(some.error)),
                f"{some.error.mean():.3f}",
                f"{(some.error <= COLOUR_TOLERANCE).mean():.2f}",
                f"{rank:.3f}",
                spread,
                ", ".join(f"{key} {value:.2f}" for key, value in scale.to_dict()["weights"].items()),
            )
        ConfidenceModel(scales["imagined"], scales["observed"])
        content["pipelines"][name] = {kind: scale.to_dict() for kind, scale in scales.items()}
    console.print(table)
    if options.runs > 1:
        return
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"Wrote {path} after {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
