"""Runs pipelines and the baseline through the protocols, as a user of `WorldModel` would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from worldstereo_ros.depth.estimators import SMALL, choose_depth
from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.ablations import stage_pipelines
from worldstereo_ros.evaluation.baseline import BASELINES, fuse_by_tsdf, fuse_by_voxels, merge_point_clouds
from worldstereo_ros.evaluation.calibration import Reliability, check_ending
from worldstereo_ros.evaluation.calibration import format_table as reliability_table
from worldstereo_ros.evaluation.contact_sheets import Sheets
from worldstereo_ros.evaluation.pipeline_options import Pipelines
from worldstereo_ros.evaluation.protocols import PROTOCOLS, Scenario, make_scenario
from worldstereo_ros.evaluation.report import Row, format_table, mean, one_line, write_json
from worldstereo_ros.evaluation.world_sequences import Posed, WorldSequence, open_data
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.stitching import closure
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

BASELINE = "open3d+telea"
TRUTH_VOXEL = 0.02  # metres, of each frame's part of the ground-truth cloud
WIDTH = 240  # characters of a table that no terminal shows


@dataclass(frozen=True)
class EvaluatedView:
    """One view of a pipeline.

    Attributes:
        index: which pose of the task's path.
        image: (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 = unknown; None where there is none.
        coverage: fraction of the pixels that memory covered.
        observed: (H, W) bool, True = a sensor saw it; None where the pipeline makes no such claim.
        seconds: that it took.
        steps: of denoising, in its clip; None where there is none.
        confidence: (H, W) float32 in 0..1; None where the pipeline makes no such claim.
    """

    index: int
    image: np.ndarray
    depth: np.ndarray | None
    coverage: float
    observed: np.ndarray | None
    seconds: float
    steps: int | None = None
    confidence: np.ndarray | None = None


def run(
    data: Sequence[str | Path],
    protocols: list[str],
    pipelines: list[str],
    *,
    stages: Path | None = None,
    json_file: Path | None = None,
    sheet: Path | None = None,
    reliability: Path | None = None,
    every: int = 1,
    depth_model: str = "",
    device: str = "cpu",
) -> list[Row]:
    """Evaluates and prints the table (what `worldstereo evaluate` does).

    Args:
        data, protocols, pipelines, every, depth_model, device: see `evaluate`.
        stages: a training run's folder, whose pipelines are measured beside `pipelines` (see `stages.py`).
        json_file: where the rows are written; after each of them, so that what was measured outlives an interruption.
        sheet: where the contact sheet is drawn; with several sequences or protocols each has its own beside it.
        reliability: where predicted against actual error is drawn (.png) or written (.json), see `reliability.py`.

    Raises:
        ValueError: see `evaluate`.
    """
    console = Console()
    if stages is not None:
        pipelines = [*stage_pipelines(stages), *pipelines]
    done: list[Row] = []
    sheets = Sheets() if sheet is not None else None
    if reliability is not None:
        check_ending(reliability)
    trust = Reliability() if reliability is not None else None

    def on_row(row: Row) -> None:
        done.append(row)
        console.print(one_line(row), style="dim", highlight=False, soft_wrap=True)
        if json_file is not None:
            write_json(done, json_file)

    with console.status("loading") as status:
        rows = evaluate(
            data,
            protocols,
            pipelines,
            every=every,
            depth_model=depth_model,
            device=device,
            progress=status.update,
            on_row=on_row,
            sheets=sheets,
            trust=trust,
        )
    # A table is not cut to the width of a terminal that is not there.
    (console if console.is_terminal else Console(width=WIDTH)).print(format_table(rows))
    if any(row.frames == 0 for row in rows):
        console.print("Rows without figures: `mono` needs a depth model, and --depth-model none forbids it.")
    if sheets is not None and sheet is not None:
        for file in sheets.write(sheet):
            console.print(f"Look at [bold]{file}[/].")
    if trust is not None and reliability is not None:
        trust.write(reliability)
        (console if console.is_terminal else Console(width=WIDTH)).print(reliability_table(trust.figures()))
        console.print(f"Look at [bold]{reliability}[/].")
    return rows


def evaluate(
    data: Sequence[str | Path | Posed],
    protocols: str | list[str],
    pipelines: list[str],
    *,
    every: int = 1,
    depth_model: str = "",
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    sheets: Sheets | None = None,
    trust: Reliability | None = None,
) -> list[Row]:
    """The figures of pipelines on sequences, the baseline always among them.

    Args:
        data: posed sequences with depth, folders of such, or `worlds:SPLIT:COUNT` (see `worlds.py`).
        protocols: of `PROTOCOLS`.
        pipelines: names: those of `load_pipeline` with options behind a `?` (see `variants.py`),
            `geometric-unaligned`, and the baselines.
        every: ask only every n-th of the frames that are not given.
        depth_model: for `mono`: see `depth.choose_depth`; "" for the network that ships. With "none" its rows have no
            figures.
        device: where the pipelines run.
        progress: called with a line of text before each part, and between the steps of a model.
        on_row: called with each row as soon as it is measured.
        sheets: takes the pictures of some frames.
        trust: takes predicted and actual errors of all asked frames.

    Raises:
        ValueError: a protocol, pipeline or sequence is not known or lacks something.
    """
    protocols = [protocols] if isinstance(protocols, str) else list(protocols)
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise InputError(f"The protocol '{protocol}' is not known; it is one of {', '.join(PROTOCOLS)}.")
    names = list(dict.fromkeys([BASELINE, *pipelines]))
    sequences = [sequence for one in data for sequence in open_data(one)]
    loaded = Pipelines(names, device)
    estimator = choose_depth(depth_model or SMALL, device) if "mono" in protocols else None
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            if on_row:
                on_row(row)

    for protocol in protocols:
        for sequence in sequences:
            if progress:
                progress(f"{protocol}, {sequence.path.name}: truth")
            scenario = make_scenario(sequence, protocol, every)
            if protocol == "cloud":
                add(*_cloud_rows(sequence, scenario, progress))
                continue
            if protocol == "mono":
                if estimator is None:
                    add(*(Row(sequence.path.name, protocol, name, 0) for name in names))
                    continue
                given = [replace(view, depth=estimator(view.image, view.camera)) for view in scenario.observed_views]
                scenario = replace(scenario, observed_views=given)
            truths = list(scenario.target_views)
            # What was seen is decided by true depth, also where depth was not given.
            seeds = [sequence[0]] if protocol == "mono" else scenario.observed_views
            judge = _Scorer(sequence.path.name, protocol, scenario, truths, seeds, sheets, trust)
            judge.kind = "unseen worlds" if isinstance(sequence, WorldSequence) else "recordings"
            for name in names:
                where = f"{protocol}, {sequence.path.name}: {name}"
                if progress:
                    progress(f"{where} on {len(scenario.path)} views")
                if name in BASELINES:
                    add(judge(name, _baseline_views(name, scenario)))
                    continue
                with loaded.use(name) as pipeline:
                    add(judge(name, _imagined_views(pipeline, scenario, device, progress, where)))
    return rows


def _baseline_views(name: str, scenario: Scenario) -> Iterator[EvaluatedView]:
    show = BASELINES[name](scenario.observed_views)
    for index in scenario.evaluated:
        start = time.perf_counter()
        projected = show(_camera(scenario), scenario.path[index])
        seconds = time.perf_counter() - start
        yield EvaluatedView(index, projected.image, projected.depth, float((projected.depth > 0).mean()), None, seconds)


def _imagined_views(
    pipeline: Pipeline, scenario: Scenario, device: str, progress: Callable[[str], None] | None, where: str
) -> Iterator[EvaluatedView]:
    world = _remembering(scenario, pipeline, device)
    # Compiled loops and prepared references are paid for once per place, not per view.
    next(world.imagine(scenario.path[:1], _camera(scenario)))
    done, steps = 0, None

    def on_step(stage: str, step: int, count: int) -> None:
        nonlocal steps
        if stage == "denoising":
            steps = count
        if progress:
            progress(f"{where}, view {done + 1} of {len(scenario.path)}, {stage} {step + 1} of {count}")

    start = time.perf_counter()
    for leg, poses in enumerate(scenario.legs):
        # The way back has noise of its own: the same noise would be a memory of another kind.
        for view in world.imagine(poses, _camera(scenario), seed=leg, remember=scenario.remember, on_step=on_step):
            seconds = time.perf_counter() - start
            yield EvaluatedView(
                done, view.image, view.depth, view.coverage, view.observed_mask, seconds, steps, view.confidence
            )
            done += 1
            start = time.perf_counter()


def _remembering(scenario: Scenario, pipeline: Pipeline, device: str = "cpu") -> WorldModel:
    world = WorldModel(pipeline, device=device)
    for view in scenario.observed_views:
        world.observe(view)
    return world


def _camera(scenario: Scenario) -> Camera:
    return scenario.target_views.camera


class _Scorer:
    """Measures what pipelines show for one task; what does not depend on them is worked out once."""

    def __init__(
        self,
        sequence: str,
        protocol: str,
        scenario: Scenario,
        truths: list[View],
        seeds: list[View],
        sheets: Sheets | None,
        trust: Reliability | None,
    ) -> None:
        self.sequence, self.protocol, self.scenario, self.truths = sequence, protocol, scenario, truths
        self.kind, self.trust = sequence, trust
        self.seen = [metrics.seen_pixels(truth, seeds) for truth in truths]
        self.unseen = [
            (truth.depth > 0) & ~seen
            for truth, seen in zip(truths, self.seen, strict=True)
            if truth.depth is not None  # `seen_pixels` refuses views without
        ]
        self.uncovered = _uncovered(scenario)
        self.block = (
            None if sheets is None else sheets.block(sequence, protocol, scenario.observed_views, truths, self.unseen)
        )

    def __call__(self, pipeline: str, shown: Iterator[EvaluatedView]) -> Row:
        """Means over frames. Provenance is counted over all pixels: most frames of a walk away have no seen pixel."""
        figures: dict[str, list[float | None]] = {}
        curves: dict[str, list[float | None]] = {}
        right = claimed = there = 0
        claims = True
        wanted = {index for pair in self.scenario.pairs for index in pair} | set(self.scenario.ring)
        kept: dict[int, np.ndarray] = {}
        for view in shown:
            figures.setdefault("seconds_per_view", []).append(view.seconds)
            figures.setdefault("steps", []).append(view.steps)
            if view.index in wanted:
                kept[view.index] = view.image
            if view.index not in self.scenario.evaluated:
                continue
            number = self.scenario.evaluated.index(view.index)
            truth, seen = self.truths[number], self.seen[number]
            assert truth.depth is not None
            abs_rel, delta = (None, None) if view.depth is None else metrics.depth_error(view.depth, truth.depth)
            frame = {
                "psnr": metrics.psnr(view.image, truth.image),
                "ssim": metrics.ssim(view.image, truth.image),
                "psnr_seen": metrics.psnr(view.image, truth.image, seen),
                "psnr_unseen": metrics.psnr(view.image, truth.image, self.unseen[number]),
                "coverage": view.coverage,
                "abs_rel": abs_rel,
                "delta_1_25": delta,
            }
            for name, value in frame.items():
                figures.setdefault(name, []).append(value)
            offset, contrast = metrics.colour_and_contrast(view.image, truth.image)
            for name, value in {"psnr": frame["psnr"], "offset": offset, "contrast": contrast}.items():
                curves.setdefault(name, []).append(value)
            if self.block is not None:
                self.block.add(pipeline, number, view.image)
            if self.trust is not None and view.confidence is not None and view.observed is not None:
                picture = view.image, truth.image
                self.trust.add(self.sequence, self.kind, pipeline, *picture, view.confidence, view.observed)
            if view.observed is None:
                claims = False
            else:
                right += int((view.observed & seen).sum())
                claimed += int((view.observed & (truth.depth > 0)).sum())
                there += int(seen.sum())
        means: dict[str, Any] = {name: mean(values) for name, values in figures.items()}
        return Row(
            self.sequence,
            self.protocol,
            pipeline,
            len(self.truths),
            observed_precision=right / claimed if claims and claimed else None,
            observed_recall=right / there if claims and there else None,
            curves=curves if self.protocol == "loop" else None,
            **(means | self._revisited(kept) | self._closed(kept)),
        )

    def _revisited(self, images: dict[int, np.ndarray]) -> dict[str, float | None]:
        """The second imagination against the first, all uncovered pixels of all pairs in one; empty without pairs."""
        if not images or not self.scenario.pairs:
            return {}
        first, second = (np.concatenate([images[pair[which]] for pair in self.scenario.pairs]) for which in (0, 1))
        mask = np.concatenate(self.uncovered)
        offset, contrast = metrics.colour_and_contrast(second, first, mask)
        again = metrics.psnr(second, first, mask)
        return {"psnr_revisited_imagined": again, "colour_drift": offset, "contrast_kept": contrast}

    def _closed(self, images: dict[int, np.ndarray]) -> dict[str, float | None]:
        """How well a turn closes; empty where the task has none."""
        if not images or not self.scenario.ring:
            return {}
        camera, path = _camera(self.scenario), self.scenario.path
        ring = [View(images[index], camera, path[index]) for index in self.scenario.ring]
        closed = closure(ring, self.scenario.seam)
        return {} if closed is None else {"seam": closed.seam, "joint": closed.inner}


def _uncovered(scenario: Scenario) -> list[np.ndarray]:
    """(H, W) bool for each pair of the task: pixels that the remembered seeds do not cover, the same for everybody."""
    if not scenario.pairs:
        return []
    cloud = _remembering(scenario, GeometricPipeline()).cloud
    poses = scenario.path[[first for first, _ in scenario.pairs]]
    covered = render(cloud.points, cloud.colours, cloud.observed, cloud.spacing, _camera(scenario), poses).covered
    return list(~covered.numpy())


def _cloud_rows(sequence: Posed, scenario: Scenario, progress: Callable[[str], None] | None) -> list[Row]:
    """The remembered cloud and Open3D's two fusions of the same frames against the cloud of all frames."""
    if progress:
        progress(f"cloud, {sequence.path.name}: fusing {len(sequence)} frames")
    true = np.concatenate([metrics.voxel_downsample(merge_point_clouds([view])[0], TRUTH_VOXEL) for view in sequence])

    def remembered() -> np.ndarray:
        world = _remembering(scenario, GeometricPipeline())
        return world.cloud.points[world.cloud.observed]

    methods: dict[str, Callable[[], np.ndarray]] = {
        "open3d-tsdf": lambda: fuse_by_tsdf(scenario.observed_views),
        "open3d-voxels": lambda: fuse_by_voxels(scenario.observed_views),
        "geometric": remembered,  # the memory is the same for every pipeline
    }
    rows = []
    for name, fuse in methods.items():
        start = time.perf_counter()
        points = fuse()
        seconds = (time.perf_counter() - start) / len(scenario.observed_views)
        precision, recall, f1 = metrics.cloud_scores(points, true)
        scores: dict[str, Any] = {
            "cloud_precision": precision,
            "cloud_recall": recall,
            "cloud_f1": f1,
            "seconds_per_view": seconds,
        }
        rows.append(Row(sequence.path.name, "cloud", name, len(scenario.observed_views), **scores))
    return rows
