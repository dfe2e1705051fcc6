#!/usr/bin/env python3
"""Fits what docs/confidence.md describes and writes worldstereo_ros/weights/confidence.json.

Pipelines imagine frames of worlds of the *validation* split, whose truth is known; nothing is fitted on test worlds or
on recordings. Half of the worlds are seen through a camera and a depth sensor with noise, as a robot's would be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from worldstereo_ros.evaluation.protocols import make_task
from worldstereo_ros.evaluation.worlds import WorldSequence, open_worlds
from worldstereo_ros.pipelines.base import Conditioning, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.pipelines.confidence import FEATURES, TOLERANCE, ConfidenceModel, Scale, confidence_file, features
from worldstereo_ros.pipelines.load import load_pipeline
from worldstereo_ros.world import WorldModel

PROTOCOLS = ("single", "sparse")
PIXELS = 3000  # of a frame
FLOOR = 0.02  # added to an error before its logarithm: below it, one error is as good as another
KNOTS = 12
RIDGE = 1e-3  # on weights, of the number of samples


@dataclass(frozen=True)
class Samples:
    """Pixels of asked frames: evidence (N, F), error (N,) in 0..1, observed (N,) bool."""

    evidence: np.ndarray
    error: np.ndarray
    observed: np.ndarray

    def of(self, chosen: np.ndarray) -> Samples:
        """Some of them."""
        return Samples(self.evidence[chosen], self.error[chosen], self.observed[chosen])


class Listening:
    """A pipeline whose frames are kept with what speaks against their pixels."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = getattr(pipeline, "selects_references", False)
        self.heard: list[tuple[PipelineFrame, np.ndarray]] = []

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order."""
        frames = self._pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)
        for index, frame in enumerate(frames):
            self.heard.append((frame, features(frame, conditioning, index)))
            yield replace(frame, confidence=np.zeros(frame.observed.shape, np.float32))


def collect(sequence: WorldSequence, pipeline: Pipeline, every: int, random: np.random.Generator) -> Iterator[Samples]:
    """The samples of one pipeline on one world, for each protocol."""
    for protocol in PROTOCOLS:
        task = make_task(sequence, protocol, every)
        listening = Listening(pipeline)
        world = WorldModel(listening)
        for view in task.given:
            world.seed(view)
        for _ in world.imagine(task.path, task.asked.camera):
            pass
        for (frame, evidence), truth in zip(listening.heard, task.asked, strict=True):
            error = np.abs(frame.image.astype(np.float32) - truth.image).mean(axis=2) / 255
            height, width = error.shape
            chosen = random.choice(error.size, min(PIXELS, error.size), replace=False)
            rows, columns = chosen // width, chosen % width
            at = rows * evidence.shape[0] // height, columns * evidence.shape[1] // width
            yield Samples(evidence[at], error[rows, columns], frame.observed[rows, columns])


def fit(samples: Samples) -> Scale:
    """Weights that are not negative, for the logarithm of the error; then both functions from their score."""
    target = np.log(samples.error + FLOOR)
    ones = np.ones((len(target), 1), np.float32)
    matrix = np.concatenate([samples.evidence, ones], axis=1).astype(np.float64)
    damping = np.sqrt(RIDGE * len(target)) * np.eye(matrix.shape[1])[:-1]
    least = np.array([0.0] * len(FEATURES) + [-np.inf])
    found = lsq_linear(
        np.concatenate([matrix, damping]), np.concatenate([target, np.zeros(len(damping))]), (least, np.inf)
    )
    weights = np.where(found.x[:-1] < 5e-3, 0, found.x[:-1]).astype(np.float32)
    score = samples.evidence @ weights
    order = np.argsort(score, kind="stable")
    groups = np.array_split(order, KNOTS)
    scores = np.array([score[group].mean() for group in groups])
    error = np.maximum.accumulate([samples.error[group].mean() for group in groups])
    right = np.minimum.accumulate([(samples.error[group] <= TOLERANCE).mean() for group in groups])
    distinct = np.concatenate([[True], np.diff(scores) > 1e-3])
    # Never quite level: of two pixels the doubtful one shall not come out even.
    slope = 1e-4 * np.arange(int(distinct.sum()))
    return Scale(weights, scores[distinct], error[distinct] + slope, np.clip(right[distinct] - slope, 0, 1))


def main() -> None:
    """Collects, fits, writes, and says how well it ranks the pixels it was fitted on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=8, help="of the validation split")
    parser.add_argument("--every", type=int, default=8, help="ask every n-th frame")
    parser.add_argument("--pipeline", action="append", help="geometric, small; default: both")
    options = parser.parse_args()
    names = options.pipeline or ["geometric", "small"]
    console, begin = Console(), time.monotonic()
    pipelines = {name: load_pipeline(name) for name in names}
    random = np.random.default_rng(0)
    found: dict[str, list[Samples]] = {name: [] for name in names}
    for sequence in open_worlds(f"worlds:validation:{options.worlds}"):
        for name, pipeline in pipelines.items():
            found[name].extend(collect(sequence, pipeline, options.every, random))
        console.print(f"{sequence.path.name}: {time.monotonic() - begin:.0f} s", style="dim")
    path = confidence_file()
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pipelines": {}}
    content |= {"tolerance": TOLERANCE, "made_by": "scripts/fit_confidence.py, worlds of the validation split"}
    table = Table(title="On the pixels it was fitted on; see docs/confidence.md for others")
    for heading in ("pipeline", "pixels", "number", "mean error", "right", "rank correlation", "weights"):
        table.add_column(heading, overflow="fold")
    for name, parts in found.items():
        samples = Samples(*(np.concatenate([getattr(part, field) for part in parts]) for field in vars(parts[0])))
        scales = {}
        for kind, chosen in (("imagined", ~samples.observed), ("observed", samples.observed)):
            some = samples.of(chosen)
            scale = scales[kind] = fit(some)
            rank = spearmanr(some.evidence @ scale.weights, some.error).statistic
            table.add_row(
                name,
                kind,
                str(len(some.error)),
                f"{some.error.mean():.3f}",
                f"{(some.error <= TOLERANCE).mean():.2f}",
                f"{rank:.2f}",
                ", ".join(f"{key} {value:.2f}" for key, value in scale.to_dict()["weights"].items()),
            )
        ConfidenceModel(scales["imagined"], scales["observed"])
        content["pipelines"][name] = {kind: scale.to_dict() for kind, scale in scales.items()}
    console.print(table)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"{path} is written, after {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
