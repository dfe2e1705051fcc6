#!/usr/bin/env python3
"""Fits what docs/concepts/confidence.md describes and writes worldstereo_ros/weights/confidence.json.

Pipelines imagine frames of worlds of the *validation* split, whose truth is known; nothing is fitted on test worlds or
on recordings. The worlds are seen through cameras with noise and automatic exposure, depth sensors that err, and poses
that are a little off, each world through others, from nearly clean to rather bad: as a robot's would be.
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
from worldstereo_ros.pipelines.confidence import TOLERANCE, ConfidenceModel, Scale, confidence_file, features
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.sensor import SensorNoise, noisy_depth, noisy_image
from worldstereo_ros.world import WorldModel

PROTOCOLS = ("single", "sparse")
VIEWS = 81  # of a walk: far enough for places of which nothing was seen
POSE_METRES, POSE_DEGREES = 0.01, 0.5  # by which given views are off, one standard deviation of the worst sensor
STOPS = 0.3  # by which exposure differs from frame to frame, likewise
PIXELS = 3000  # of a frame
FLOOR = 0.05  # added to an error before its logarithm: below it, one error is as good as another
KNOTS = 12
RIDGE = 1e-2  # on weights, of the number of samples


@dataclass(frozen=True)
class Samples:
    """Pixels of asked frames.

    Attributes:
        evidence: (N, F) what speaks against them. error: (N,) in 0..1. observed: (N,) bool.
        world: (N,) which one they are of.
        spread: (N,) standard deviation over seeds, 0 where there was one.
    """

    evidence: np.ndarray
    error: np.ndarray
    observed: np.ndarray
    world: np.ndarray
    spread: np.ndarray

    def of(self, chosen: np.ndarray) -> Samples:
        """Some of them."""
        return Samples(*(values[chosen] for values in vars(self).values()))


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


class Robot:
    """Sensors that err, always in the same way for one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._bad = self._random.uniform(0, 1)
        self._noise = replace(SensorNoise.draw(Random(seed)), drift=STOPS * self._bad)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 as the robot's camera takes it."""
        return noisy_image(torch.from_numpy(image)[None], self._noise, self._generator)[0].numpy()

    def sees(self, view: View) -> View:
        """A view as the robot remembers it."""
        assert view.depth is not None
        depth = noisy_depth(torch.from_numpy(view.depth)[None], view.camera, self._noise, self._generator)[0].numpy()
        turn = self._random.normal(scale=np.radians(POSE_DEGREES) * self._bad, size=3)
        pose = view.world_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
        pose[:3, 3] += self._random.normal(scale=POSE_METRES * self._bad, size=3)
        return replace(view, image=self.picture(view.image), depth=depth, world_from_camera=pose)


def collect(
    sequence: WorldSequence, pipelines: dict[str, Pipeline], every: int, seed: int, runs: int
) -> Iterator[tuple[str, Samples]]:
    """The samples of each pipeline on one world, for each protocol; models make each view so many times."""
    for protocol in PROTOCOLS:
        task = make_scenario(sequence, protocol, every)
        robot = Robot(seed)
        given, truths = [robot.sees(view) for view in task.observed_views], [robot.picture(view.image) for view in task.target_views]
        for name, pipeline in pipelines.items():
            listening = Listening(pipeline)
            world = WorldModel(listening)
            for view in given:
                world.observe(view)
            for run in range(1 if name == "geometric" else runs):
                for _ in world.imagine(task.path, task.target_views.camera, seed=run):
                    pass
            yield name, sampled(listening.heard, truths, seed)


def sampled(heard: list[tuple[PipelineFrame, np.ndarray]], truths: list[np.ndarray], world: int) -> Samples:
    """Pixels of frames whose truth is known; those of further runs follow the first."""
    parts, random = [], np.random.default_rng(world)
    for number, truth in enumerate(truths):
        frame, evidence = heard[number]
        images = np.stack([other.image for other, _ in heard[number :: len(truths)]]).astype(np.float32)
        spread = cv2.blur(images.std(axis=0).mean(axis=2) / 255, (9, 9))
        error = np.abs(frame.image.astype(np.float32) - truth).mean(axis=2) / 255
        height, width = error.shape
        chosen = random.choice(error.size, min(PIXELS, error.size), replace=False)
        rows, columns = chosen // width, chosen % width
        at = rows * evidence.shape[0] // height, columns * evidence.shape[1] // width
        own = np.full(len(rows), world)
        found, claimed, apart = (values[rows, columns] for values in (error, frame.observed, spread))
        parts.append(Samples(evidence[at], found, claimed, own, apart))
    return together(parts)


def together(parts: list[Samples]) -> Samples:
    """All of them in one."""
    return Samples(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def weigh(evidence: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(F,) float32 weights, none negative, for the logarithm of the error."""
    target = np.log(error + FLOOR)
    matrix = np.concatenate([evidence, np.ones((len(target), 1), np.float32)], axis=1).astype(np.float64)
    damping = np.sqrt(RIDGE * len(target)) * np.eye(matrix.shape[1])[:-1]
    least = np.array([0.0] * evidence.shape[1] + [-np.inf])
    found = lsq_linear(
        np.concatenate([matrix, damping]), np.concatenate([target, np.zeros(len(damping))]), (least, np.inf)
    )
    return np.where(found.x[:-1] < 5e-3, 0, found.x[:-1]).astype(np.float32)


def rank_elsewhere(evidence: np.ndarray, error: np.ndarray, world: np.ndarray) -> float:
    """Rank correlation where each world is judged by weights fitted on all the others."""
    score = np.zeros(len(error), np.float32)
    for one in np.unique(world):
        here = world == one
        score[here] = evidence[here] @ weigh(evidence[~here], error[~here])
    return float(spearmanr(score, error).statistic)


def fit(samples: Samples) -> Scale:
    """The weights, and both functions of the score that they make."""
    weights = weigh(samples.evidence, samples.error)
    score = samples.evidence @ weights
    order = np.argsort(score, kind="stable")
    groups = np.array_split(order, KNOTS)
    scores = np.array([score[group].mean() for group in groups])
    error = isotonic_regression([samples.error[group].mean() for group in groups]).x
    right = isotonic_regression([(samples.error[group] <= TOLERANCE).mean() for group in groups], increasing=False).x
    distinct = np.concatenate([[True], np.diff(scores) > 1e-3])
    # Never quite level: of two pixels the doubtful one shall not come out even.
    slope = 1e-4 * np.arange(int(distinct.sum()))
    return Scale(weights, scores[distinct], error[distinct] + slope, np.clip(right[distinct] - slope, 0, 1))


def main() -> None:
    """Collects, fits, writes, and says how well it ranks pixels of worlds that were left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20, help="of the validation split")
    parser.add_argument("--every", type=int, default=20, help=f"ask every n-th of {VIEWS} frames")
    parser.add_argument("--samples", default="", help="keep the samples too: PREFIX-PIPELINE.npz")
    parser.add_argument(
        "--runs",
        type=int,
        default=1,
        help="of a model; 2 or more: say what the spread over seeds would add, and write nothing",
    )
    parser.add_argument("--pipeline", action="append", help="geometric, small; default: both")
    options = parser.parse_args()
    names = options.pipeline or ["geometric", "small"]
    console, begin = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=240)  # a table is not cut to the width of a terminal that is not there
    pipelines = {name: load_pipeline(name) for name in names}
    found: dict[str, list[Samples]] = {name: [] for name in names}
    for index in range(options.worlds):
        try:
            sequence = world_sequence("validation", index, views=VIEWS)
        except ValueError as error:  # too full to walk in
            console.print(str(error), style="dim")
            continue
        for name, samples in collect(sequence, pipelines, options.every, index, options.runs):
            found[name].append(samples)
        console.print(f"{sequence.path.name}: {time.monotonic() - begin:.0f} s", style="dim")
    path = confidence_file()
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pipelines": {}}
    content |= {"tolerance": TOLERANCE, "made_by": "scripts/fit_confidence.py, worlds of the validation split"}
    table = Table(title="Rank correlation: each world by weights that were fitted on the others")
    for heading in ("pipeline", "pixels", "number", "mean error", "right", "rank", "with spread", "weights"):
        table.add_column(heading, overflow="fold")
    for name, parts in found.items():
        samples = together(parts)
        if options.samples:
            np.savez(f"{options.samples}-{name}.npz", **vars(samples))
        scales = {}
        for kind, chosen in (("imagined", ~samples.observed), ("observed", samples.observed)):
            some = samples.of(chosen)
            scale = scales[kind] = fit(some)
            rank = rank_elsewhere(some.evidence, some.error, some.world)
            spread = "-"
            if some.spread.any():
                more = np.concatenate([some.evidence, np.log1p(20 * some.spread)[:, None]], axis=1)
                spread = f"{rank_elsewhere(more, some.error, some.world):.3f}"
            table.add_row(
                name,
                kind,
                str(len(some.error)),
                f"{some.error.mean():.3f}",
                f"{(some.error <= TOLERANCE).mean():.2f}",
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
    console.print(f"{path} is written, after {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
