"""Protocols of unordered photographs: interpolation and extrapolation (AnyRecon, arXiv 2604.19747, section 4), and
every-fifth.

A few photographs of a walk are given, and the others are imagined by the loop (`reconstruction.loop`). Poses of the
given ones are known, or estimated from them alone; these are two rows. Their depth is triangulated (`plane sweep`), or
that of a sensor where it is asked for. Baselines get the same photographs with the same poses and depth.

| protocol | given, of the walk |
| --- | --- |
| interpolation | the first, the one in the middle, the last |
| extrapolation | those at 0, 1/4, 1/2 and 3/4: the last quarter lies beyond |
| every-fifth | all but every fifth, from the first on: what a reconstruction of many photographs shows elsewhere |
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.evaluation import metrics, perceptual
from worldstereo_ros.evaluation.baseline import BASELINES, Baseline
from worldstereo_ros.evaluation.contact_sheets import ContactSheets
from worldstereo_ros.evaluation.given_photographs import (
    FAILURES,
    GIVEN,
    POSES,
    SWEEP,
    GivenPhotographs,
    reconstruct_given,
)
from worldstereo_ros.evaluation.hole_scores import features_of, working_size
from worldstereo_ros.evaluation.hole_sheets import HoleSheets
from worldstereo_ros.evaluation.loop_options import LoopOptions, split_loop_options
from worldstereo_ros.evaluation.pipeline_options import Pipelines
from worldstereo_ros.evaluation.protocols import Scenario
from worldstereo_ros.evaluation.reduced_sequences import ReducedSequence
from worldstereo_ros.evaluation.report import Row
from worldstereo_ros.evaluation.scoring import EvaluatedView, Scorer
from worldstereo_ros.evaluation.splat_baseline import NAME as SPLATS
from worldstereo_ros.evaluation.splat_baseline import PlainSplats
from worldstereo_ros.evaluation.world_sequences import PosedSequence, WorldSequence
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.photos import reduced_size
from worldstereo_ros.pipelines.anyrecon.sequence import MAX_CAPTURES
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS
from worldstereo_ros.reconstruction.fusion import fuse
from worldstereo_ros.reconstruction.loop import LoopView, describe_checks, imagine_place
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

POSITIONS = {"interpolation": (0.0, 0.5, 1.0), "extrapolation": (0.0, 0.25, 0.5, 0.75)}  # of the walk
EVERY_FIFTH, FIFTH = "every-fifth", 5
RECONSTRUCTION_PROTOCOLS = (*POSITIONS, EVERY_FIFTH)
ALWAYS = ("open3d+telea", SPLATS, "constant")  # baselines of these protocols
LOOP_BASELINES: dict[str, Callable[[list[View]], Baseline]] = {**BASELINES, SPLATS: PlainSplats}


@dataclass(frozen=True)
class PhotoSettings:
    """What the protocols give.

    Attributes:
        poses: given, estimated, or both.
        depth_source: sweep, or sensor where the sequence has depth.
        every: evaluate every n-th photograph that is not given.
        max_pixels: larger photographs are reduced to this.
        device: torch device.
        with_features: compute ST-LPIPS and the features of holes.
    """

    poses: tuple[str, ...] = POSES
    depth_source: str = SWEEP
    every: int = 1
    max_pixels: int = DEFAULT_PIXELS
    device: str = "cpu"
    with_features: bool = True


def given_indices(count: int, protocol: str) -> list[int]:
    """Positions of the given photographs in a walk of `count`: of 40 the 1st, 21st and 40th, or 1st, 11th, 21st, 31st,
    or all but the 1st, 6th, 11th and so on.

    Raises:
        InputError: the walk is too short to leave a photograph to imagine.
    """
    if protocol == EVERY_FIFTH:
        indices = [index for index in range(count) if index % FIFTH]
        if len(indices) < 2:
            raise InputError(f"The walk has {count} photographs; {protocol} needs at least 3.")
        return indices
    indices = sorted({min(int(share * count), count - 1) for share in POSITIONS[protocol]})
    if len(indices) < len(POSITIONS[protocol]) or count <= len(indices):
        raise InputError(
            f"The walk has {count} photographs; {protocol} gives {len(POSITIONS[protocol])} of them and needs more."
        )
    return indices


class PhotoEvaluation:
    """Evaluates pipelines on one sequence under one protocol; what they share is computed once.

    Args:
        sequence: posed, with or without depth.
        protocol: one of `RECONSTRUCTION_PROTOCOLS`.
        settings: what is given.
        estimator: depth network for holes.
        sheets, hole_sheets: collect images, if given.

    Raises:
        InputError: the sequence has no poses, several cameras, or too few views.
    """

    def __init__(
        self,
        sequence: PosedSequence,
        protocol: str,
        settings: PhotoSettings,
        estimator: DepthEstimator | None,
        sheets: ContactSheets | None = None,
        hole_sheets: HoleSheets | None = None,
    ) -> None:
        if not sequence.posed:
            raise InputError(f"{sequence.path} has no poses; {protocol} needs the true ones to judge by.")
        cameras = set(getattr(sequence, "cameras", (sequence.camera,)))
        if len(cameras) > 1:
            raise InputError(f"{sequence.path} has {len(cameras)} cameras; {protocol} needs a sequence of one.")
        if settings.depth_source != SWEEP and not sequence.has_depth:
            raise InputError(f"{sequence.path} has no depth; use the depth source {SWEEP}.")
        self.sequence, self.protocol, self.settings, self.estimator = sequence, protocol, settings, estimator
        self._sheets = sheets, hole_sheets
        given = given_indices(len(sequence), protocol)
        self._given = [sequence[index] for index in given]
        asked = [index for index in range(len(sequence)) if index not in given][:: settings.every]
        size = reduced_size((sequence.camera.width, sequence.camera.height), settings.max_pixels)
        reduced = ReducedSequence(sequence, size)
        self._targets = reduced.subset(asked)
        self._truths = list(self._targets)
        # Seen pixels follow from true depth, the same for all rows.
        self._true_views = list(reduced.subset(given))
        self._photographs: dict[tuple[str, bool], GivenPhotographs | str] = {}
        self._scorers: dict[tuple[str, bool], Scorer] = {}
        self._features: dict[int, Any] = {}
        self._covered: dict[int, list[np.ndarray]] = {}  # by the id of the photographs, which are kept

    def rows(
        self,
        name: str,
        pipeline: Callable[[], Any] | None,
        options: LoopOptions,
        on_note: Callable[[str], None] | None = None,
    ) -> Iterator[Row]:
        """One row for given poses and one for estimated ones; without figures where the poses could not be estimated.

        Args:
            name: of the row.
            pipeline: returns a context manager of the pipeline; None for a baseline.
            options: of the loop.
            on_note: called with sentences: the pose error of each view, and what was left out.
        """
        note = on_note or (lambda text: None)
        for poses in self.settings.poses:
            first = (poses, options.shuffle) not in self._photographs
            photographs = self._photographs_of(poses, options.shuffle)
            where = f"{self.protocol}, {self.sequence.path.name}, {poses} poses"
            if isinstance(photographs, str):
                if first:
                    note(f"{where}: {photographs}")
                yield Row(self.sequence.path.name, self.protocol, name, 0, poses=poses)
                continue
            if first:
                for text in photographs.notes:
                    note(f"{where}: {text}")
            scenario = self._scenario(photographs, options.revisit)
            figures: dict[str, list[float]] = {"st_lpips": [], "psnr_covered": []}
            loop: list[LoopView] = []
            if pipeline is None:
                row = self._score(name, poses, options, photographs, scenario, _baseline_views(name, scenario), figures)
            else:
                with pipeline() as used:
                    views = self._imagined(used, photographs, scenario, options, loop, f"{where}, {name}", note)
                    row = self._score(name, poses, options, photographs, scenario, views, figures)
            for text in describe_checks(loop):
                note(f"{where}, {name}: {text}")
            yield replace(
                row,
                poses=poses,
                ate_percent=photographs.ate_percent,
                rotation_degrees=photographs.rotation_degrees,
                st_lpips=_mean(figures["st_lpips"]),
                psnr_covered=_mean(figures["psnr_covered"]),
                drift_pixels=_mean([c.pixels for one in loop if (c := one.check) is not None and c.pixels is not None]),
                drifted=_mean([float(one.check.drifted) for one in loop if one.check is not None]),
            )

    def _photographs_of(self, poses: str, shuffled: bool) -> GivenPhotographs | str:
        """The given photographs with poses and depth, or why there are none."""
        key = poses, shuffled
        if key not in self._photographs:
            order = np.random.default_rng(1).permutation(len(self._given)) if shuffled else range(len(self._given))
            with tempfile.TemporaryDirectory(prefix="worldstereo-") as folder:
                try:
                    self._photographs[key] = reconstruct_given(
                        [self._given[int(index)] for index in order],
                        Path(folder),
                        poses=poses,
                        depth_source=self.settings.depth_source,
                        estimator=self.estimator,
                        max_pixels=self.settings.max_pixels,
                        device=self.settings.device,
                    )
                except FAILURES as error:
                    self._photographs[key] = str(error)
        return self._photographs[key]

    def _scenario(self, photographs: GivenPhotographs, revisit: bool) -> Scenario:
        path = self._targets.poses
        count = len(path)
        scenario = Scenario(photographs.views, self._targets, path, list(range(count)))
        if not revisit:
            return scenario
        pairs = tuple((index, 2 * count - 1 - index) for index in range(count))
        return replace(scenario, path=np.concatenate([path, path[::-1]]), cuts=(count,), pairs=pairs)

    def _score(
        self,
        name: str,
        poses: str,
        options: LoopOptions,
        photographs: GivenPhotographs,
        scenario: Scenario,
        views: Iterator[EvaluatedView],
        figures: dict[str, list[float]],
    ) -> Row:
        key = poses, options.revisit
        if key not in self._scorers:
            kind = "unseen worlds" if isinstance(self.sequence, WorldSequence) else "recordings"
            sheets, hole_sheets = self._sheets if poses == self.settings.poses[0] else (None, None)
            self._scorers[key] = Scorer(
                *(self.sequence.path.name, self.protocol, kind, scenario, self._truths, self._true_views),
                *(sheets, None, hole_sheets),
                with_features=self.settings.with_features,
                uncovered=[~covered for covered in self._covered_by(photographs)] if options.revisit else None,
            )
        return self._scorers[key](name, self._compared(views, self._covered_by(photographs), figures))

    def _covered_by(self, photographs: GivenPhotographs) -> list[np.ndarray]:
        """(H, W) bool of each target: pixels that the photographs' geometry covers, the same for all pipelines."""
        key = id(photographs)
        if key not in self._covered:
            world = WorldModel(GeometricPipeline(), *fuse(photographs.views, device=self.settings.device))
            rendering = world.render_memory(self._targets.camera, self._targets.poses)
            self._covered[key] = list(rendering.covered.cpu().numpy())
        return self._covered[key]

    def _compared(
        self, views: Iterator[EvaluatedView], covered: list[np.ndarray], figures: dict[str, list[float]]
    ) -> Iterator[EvaluatedView]:
        """Passes views on, and collects their ST-LPIPS over the whole frame and their PSNR where memory covers it."""
        wanted = self.settings.with_features and perceptual.is_available()
        for view in views:
            if view.index < len(self._truths):
                inside = metrics.psnr(view.image, self._truths[view.index].image, covered[view.index])
                figures["psnr_covered"] += [] if inside is None else [inside]
            if wanted and view.index < len(self._truths):
                truth = self._truths[view.index].image
                if view.index not in self._features:
                    self._features[view.index] = [maps.half() for maps in features_of(truth)]
                true = [maps.float() for maps in self._features[view.index]]
                width, height = working_size(truth.shape)
                network = perceptual.load_perceptual_network()
                distance = network.distance_map(features_of(view.image), true, (height, width))
                figures["st_lpips"].append(float(distance.mean()))
            yield view

    def _imagined(
        self,
        pipeline: Pipeline,
        photographs: GivenPhotographs,
        scenario: Scenario,
        options: LoopOptions,
        loop: list[LoopView],
        where: str,
        note: Callable[[str], None],
    ) -> Iterator[EvaluatedView]:
        cloud, bank = fuse(photographs.views, device=self.settings.device)
        world = WorldModel(pipeline, cloud, bank, device=self.settings.device)
        camera, count = scenario.target_views.camera, len(scenario.path)
        next(world.imagine(scenario.path[:1], camera))  # compiles loops, which is not part of the time of a view
        steps: int | None = None

        def on_step(stage: str, step: int, of: int) -> None:
            nonlocal steps
            steps = of if stage == "denoising" else steps

        views = imagine_place(
            world,
            scenario.path,
            camera,
            segment=options.segment,
            captures=options.captures,
            limit=MAX_CAPTURES if options.cache else 1,
            update=options.update,
            cuts=scenario.cuts,
            on_step=on_step,
        )
        start = time.perf_counter()
        for index, one in enumerate(views):
            view = one.view
            seconds = time.perf_counter() - start
            loop.append(one)
            note(f"{where}, view {index + 1} of {count}: {one.check}")
            yield EvaluatedView(
                index,
                view.image,
                view.depth,
                view.coverage,
                view.provenance,
                seconds,
                steps,
                view.confidence,
                view.depth_confidence,
            )
            start = time.perf_counter()


def evaluate_photographs(
    sequences: Iterable[PosedSequence],
    protocols: Iterable[str],
    pipelines: Iterable[str],
    settings: PhotoSettings,
    estimator: DepthEstimator | None,
    *,
    progress: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    sheets: ContactSheets | None = None,
    hole_sheets: HoleSheets | None = None,
) -> Iterator[Row]:
    """Rows of the baselines and of pipelines, see `PhotoEvaluation`.

    Args:
        sequences: posed sequences.
        protocols: some of `RECONSTRUCTION_PROTOCOLS`.
        pipelines: names of pipelines with options of their own and of the loop (`loop_options`), or baselines.
        settings: what is given.
        estimator: depth network for holes.
        progress: called with a line of text before each part.
        on_note: see `PhotoEvaluation.rows`.
        sheets, hole_sheets: see `PhotoEvaluation`.

    Raises:
        InputError: a pipeline is unknown or a sequence unsuitable.
    """
    names = list(dict.fromkeys([*ALWAYS, *pipelines]))
    split = {name: split_loop_options(name) for name in names if name not in LOOP_BASELINES}
    loaded = Pipelines([model for model, _ in split.values()], settings.device)
    for protocol in protocols:
        for sequence in sequences:
            if progress:
                progress(f"{protocol}, {sequence.path.name}: poses and depth of the given photographs")
            evaluation = PhotoEvaluation(sequence, protocol, settings, estimator, sheets, hole_sheets)
            for name in names:
                if progress:
                    progress(f"{protocol}, {sequence.path.name}: {name}")
                if name in LOOP_BASELINES:
                    yield from evaluation.rows(name, None, LoopOptions(), on_note)
                    continue
                model, options = split[name]
                yield from evaluation.rows(name, lambda model=model: loaded.use(model), options, on_note)  # type: ignore[misc]


def _baseline_views(name: str, scenario: Scenario) -> Iterator[EvaluatedView]:
    baseline = LOOP_BASELINES[name](scenario.observed_views)
    for index in scenario.evaluated:
        start = time.perf_counter()
        view = baseline(scenario.target_views.camera, scenario.path[index])
        seconds = time.perf_counter() - start
        yield EvaluatedView(index, view.image, view.depth, float((view.depth > 0).mean()), None, seconds)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


__all__ = ["ALWAYS", "GIVEN", "RECONSTRUCTION_PROTOCOLS", "PhotoEvaluation", "PhotoSettings", "evaluate_photographs"]
