"""Scoring of the views that a pipeline imagines for a scenario."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.calibration import Calibration
from worldstereo_ros.evaluation.contact_sheets import ContactSheets
from worldstereo_ros.evaluation.hole_scores import HoleScores, HoleTruth
from worldstereo_ros.evaluation.hole_sheets import HoleSheets
from worldstereo_ros.evaluation.protocols import Scenario
from worldstereo_ros.evaluation.report import Row, mean
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.closure import closure
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class EvaluatedView:
    """One view of a pipeline.

    Attributes:
        index: its pose in the scenario's path.
        image: (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 = unknown; None if unavailable.
        coverage: fraction of the pixels that memory covers.
        provenance: (H, W) uint8 values of `Provenance`; None if unavailable.
        seconds: computation time.
        steps: denoising steps of its clip; None for pipelines without.
        confidence, depth_confidence: (H, W) float32 in 0..1, see `View`; None if unavailable.
    """

    index: int
    image: np.ndarray
    depth: np.ndarray | None
    coverage: float
    provenance: np.ndarray | None
    seconds: float
    steps: int | None = None
    confidence: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None

    @property
    def observed(self) -> np.ndarray | None:
        """(H, W) bool, True = observed; None if unavailable."""
        return None if self.provenance is None else self.provenance == Provenance.OBSERVED


class Scorer:
    """Computes the metrics of pipelines on one scenario; what they share is computed once.

    Args:
        sequence, protocol: names.
        kind: group of the sequence for calibration.
        scenario: what is evaluated.
        truths: ground truth of `scenario.evaluated`.
        observed_views: the observed views with true depth, which decide which pixels were seen.
        sheets: collects images, if given.
        calibration: collects confidences and errors, if given.
        hole_sheets: collects images of all views, if given.
        with_features: see `HoleTruth`.
        uncovered: (H, W) bool for each pair of the scenario, pixels that the observed views do not cover; None: as a
            world model that observes them finds.
    """

    def __init__(
        self,
        sequence: str,
        protocol: str,
        kind: str,
        scenario: Scenario,
        truths: list[View],
        observed_views: list[View],
        sheets: ContactSheets | None,
        calibration: Calibration | None,
        hole_sheets: HoleSheets | None = None,
        with_features: bool = True,
        uncovered: list[np.ndarray] | None = None,
    ) -> None:
        self.sequence, self.protocol, self.kind = sequence, protocol, kind
        self.scenario, self.truths, self.calibration = scenario, truths, calibration
        self.hole_sheets = hole_sheets
        self.seen = [metrics.seen_pixels(truth, observed_views) for truth in truths]
        self.holes = HoleTruth(truths, self.seen, [view.image for view in scenario.observed_views], with_features)
        self.unseen = self.holes.unseen
        self.uncovered = _uncovered_pixels(scenario) if uncovered is None else uncovered
        self.sheet_section = (
            None
            if sheets is None
            else sheets.add_section(sequence, protocol, scenario.observed_views, truths, self.unseen)
        )

    def __call__(self, pipeline: str, views: Iterator[EvaluatedView]) -> Row:
        """Means over views; precision and recall of observed pixels are over the pixels of all views together."""
        values: dict[str, list[float | None]] = {}
        curves: dict[str, list[float | None]] = {}
        correct = labelled_count = seen_count = 0
        has_provenance = True
        compared = {index for pair in self.scenario.pairs for index in pair} | set(self.scenario.ring)
        images: dict[int, np.ndarray] = {}
        holes = HoleScores(self.holes)
        for view in views:
            values.setdefault("seconds_per_view", []).append(view.seconds)
            values.setdefault("steps", []).append(view.steps)
            if view.index in compared:
                images[view.index] = view.image
            if view.index not in self.scenario.evaluated:
                continue
            number = self.scenario.evaluated.index(view.index)
            truth, seen = self.truths[number], self.seen[number]
            assert truth.depth is not None
            abs_rel, delta = (None, None) if view.depth is None else metrics.depth_error(view.depth, truth.depth)
            of_view = {
                "psnr": metrics.psnr(view.image, truth.image),
                "ssim": metrics.ssim(view.image, truth.image),
                "psnr_seen": metrics.psnr(view.image, truth.image, seen),
                "psnr_unseen": metrics.psnr(view.image, truth.image, self.unseen[number]),
                "coverage": view.coverage,
                "abs_rel": abs_rel,
                "delta_1_25": delta,
            }
            for name, value in of_view.items():
                values.setdefault(name, []).append(value)
            if self.protocol == "loop":
                offset, contrast = metrics.colour_and_contrast(view.image, truth.image)
                for name, value in {"psnr": of_view["psnr"], "offset": offset, "contrast": contrast}.items():
                    curves.setdefault(name, []).append(value)
            holes.add(number, view.image, view.depth, view.provenance, view.confidence, view.depth_confidence)
            if self.hole_sheets is not None and number in holes.swd_of_view:
                name, distance = f"{self.sequence}, {self.protocol} {number + 1}", holes.swd_of_view[number]
                self.hole_sheets.add(pipeline, name, distance, view.image, truth.image, self.unseen[number])
            if self.sheet_section is not None:
                self.sheet_section.add(pipeline, number, view.image)
            labelled = view.observed
            if self.calibration is not None and view.confidence is not None and labelled is not None:
                self.calibration.add(
                    *(self.sequence, self.kind, pipeline, view.image, truth.image, view.confidence, labelled),
                    depth_confidence=view.depth_confidence,
                    depth=view.depth,
                    true_depth=truth.depth,
                )
            if labelled is None:
                has_provenance = False
            else:
                correct += int((labelled & seen).sum())
                labelled_count += int((labelled & (truth.depth > 0)).sum())
                seen_count += int(seen.sum())
        means: dict[str, Any] = {name: mean(of_views) for name, of_views in values.items()}
        return Row(
            self.sequence,
            self.protocol,
            pipeline,
            len(self.truths),
            observed_precision=correct / labelled_count if has_provenance and labelled_count else None,
            observed_recall=correct / seen_count if has_provenance and seen_count else None,
            curves=curves if self.protocol == "loop" else None,
            **(means | holes.metrics() | self._revisit_metrics(images) | self._closure_metrics(images)),
        )

    def _revisit_metrics(self, images: dict[int, np.ndarray]) -> dict[str, float | None]:
        """The second imagination of each pose against the first, over uncovered pixels; empty without pairs."""
        if not images or not self.scenario.pairs:
            return {}
        first, second = (np.concatenate([images[pair[which]] for pair in self.scenario.pairs]) for which in (0, 1))
        mask = np.concatenate(self.uncovered)
        offset, contrast = metrics.colour_and_contrast(second, first, mask)
        psnr = metrics.psnr(second, first, mask)
        return {"psnr_revisited_imagined": psnr, "colour_drift": offset, "contrast_kept": contrast}

    def _closure_metrics(self, images: dict[int, np.ndarray]) -> dict[str, float | None]:
        """Jumps at the joints of a full turn; empty without one."""
        if not images or not self.scenario.ring:
            return {}
        camera, path = self.scenario.target_views.camera, self.scenario.path
        ring = [View(images[index], camera, path[index]) for index in self.scenario.ring]
        found = closure(ring, self.scenario.seam)
        return {} if found is None else {"seam": found.seam, "joint": found.inner}


def _uncovered_pixels(scenario: Scenario) -> list[np.ndarray]:
    """(H, W) bool for each pair of the scenario: pixels that the observed views do not cover."""
    if not scenario.pairs:
        return []
    cloud = observed_world(scenario, GeometricPipeline()).cloud
    poses = scenario.path[[first for first, _ in scenario.pairs]]
    camera = scenario.target_views.camera
    covered = render(cloud.points, cloud.colours, cloud.observed, cloud.spacing, camera, poses).covered
    return list(~covered.numpy())


def observed_world(
    scenario: Scenario, pipeline: Any, device: str = "cpu", depth_estimator: DepthEstimator | None = None
) -> WorldModel:
    """A world model that has observed the scenario's views; those without depth need an estimator."""
    world = WorldModel(pipeline, depth_estimator=depth_estimator, device=device)
    for view in scenario.observed_views:
        world.observe(view)
    return world


def imagined_views(
    pipeline: Pipeline,
    scenario: Scenario,
    device: str,
    depth_estimator: DepthEstimator | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Iterator[EvaluatedView]:
    """Imagines the views of a scenario, in order.

    Args:
        pipeline: generates the views.
        scenario: what is observed and imagined.
        device: device of the pipeline.
        depth_estimator: for observations without depth.
        on_progress: called with a line of text between denoising steps.
    """
    world, camera = observed_world(scenario, pipeline, device, depth_estimator), scenario.target_views.camera
    # The first call compiles loops and prepares references, which is not part of the time of a view.
    next(world.imagine(scenario.path[:1], camera))
    done, steps = 0, None

    def on_step(stage: str, step: int, count: int) -> None:
        nonlocal steps
        if stage == "denoising":
            steps = count
        if on_progress:
            on_progress(f"view {done + 1} of {len(scenario.path)}, {stage} {step + 1} of {count}")

    start = time.perf_counter()
    for leg, poses in enumerate(scenario.legs):
        # Each leg has its own random seed: with the same noise, views would agree without memory.
        for view in world.imagine(poses, camera, seed=leg, remember=scenario.remember, on_step=on_step):
            seconds = time.perf_counter() - start
            yield EvaluatedView(
                index=done,
                image=view.image,
                depth=view.depth,
                coverage=view.coverage,
                provenance=view.provenance,
                seconds=seconds,
                steps=steps,
                confidence=view.confidence,
                depth_confidence=view.depth_confidence,
            )
            done += 1
            start = time.perf_counter()
