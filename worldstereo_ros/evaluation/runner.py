"""Runs pipelines and baselines through the evaluation protocols, with the public API of `WorldModel`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from worldstereo_ros.depth.estimators import SMALL, DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation import metrics, perceptual
from worldstereo_ros.evaluation.ablations import stage_pipelines
from worldstereo_ros.evaluation.baseline import BASELINES, fuse_by_tsdf, fuse_by_voxels, merge_point_clouds
from worldstereo_ros.evaluation.calibration import Calibration, calibration_table, check_ending
from worldstereo_ros.evaluation.contact_sheets import ContactSheets
from worldstereo_ros.evaluation.given_photographs import POSES, SWEEP
from worldstereo_ros.evaluation.hole_sheets import HoleSheets
from worldstereo_ros.evaluation.inputs import open_inputs, open_whole
from worldstereo_ros.evaluation.output import note_printer, prefixed, print_table, row_recorder
from worldstereo_ros.evaluation.protocols import PROTOCOLS, Scenario, make_scenario
from worldstereo_ros.evaluation.reconstruction_protocols import (
    RECONSTRUCTION_PROTOCOLS,
    PhotoSettings,
    evaluate_photographs,
)
from worldstereo_ros.evaluation.report import Row, format_hole_table, format_table, one_line, write_json
from worldstereo_ros.evaluation.scoring import EvaluatedView, Scorer, imagined_views, observed_world
from worldstereo_ros.evaluation.world_sequences import PosedSequence, WorldSequence
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.utils.errors import InputError

ALWAYS = ("open3d+telea", "constant")  # baselines of every table
TRUTH_VOXEL_M = 0.02  # down-sampling of each frame's part of the ground-truth cloud


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
    with_features: bool = True,
    poses: Sequence[str] = POSES,
    depth_source: str = SWEEP,
) -> list[Row]:
    """Evaluates and prints the table; `worldstereo evaluate` calls it.

    Args:
        data, protocols, pipelines, every, depth_model, device, with_features, poses, depth_source: see `evaluate`.
        stages: a training run's folder; all pipelines of its ablation table are evaluated too (see `ablations`).
        json_file: file for the rows, rewritten after each row, so that an interruption loses none.
        sheet: file for the contact sheet; several sequences or protocols get one file each.
        reliability: file for the calibration: .png for plots, .json for values (see `calibration`).

    Raises:
        InputError: see `evaluate`.
    """
    console = Console()
    if stages is not None:
        pipelines = [*stage_pipelines(stages), *pipelines]
    sheets = ContactSheets() if sheet is not None else None
    if reliability is not None:
        check_ending(reliability)
    hole_sheets = HoleSheets() if sheet is not None else None
    calibration = Calibration() if reliability is not None else None

    record = row_recorder(console, one_line, write_json, json_file)
    with console.status("loading") as status:
        rows = evaluate(
            data,
            protocols,
            pipelines,
            every=every,
            depth_model=depth_model,
            device=device,
            with_features=with_features,
            poses=poses,
            depth_source=depth_source,
            on_note=note_printer(console),
            progress=status.update,
            on_row=lambda row: record([row]),
            sheets=sheets,
            hole_sheets=hole_sheets,
            calibration=calibration,
        )
    print_table(console, format_table(rows))
    holes = format_hole_table(rows)
    if holes is not None:
        print_table(console, holes)
        if with_features and not perceptual.is_available():
            console.print(f"Without patch KID and ST-LPIPS, whose weights are not installed: {perceptual.INSTALL}")
    if any(row.frames == 0 and row.poses for row in rows):
        console.print("Rows without metrics: the poses of the given photographs could not be estimated; see above.")
    if any(row.frames == 0 and not row.poses for row in rows):
        console.print("Rows without metrics: the protocol mono needs a depth model; --depth-model none disables it.")
    if sheets is not None and sheet is not None:
        for file in sheets.write(sheet):
            console.print(f"Contact sheet: [bold]{file}[/]")
    if hole_sheets is not None and sheet is not None:
        for file in hole_sheets.write(sheet):
            console.print(f"Worst, median and best views: [bold]{file}[/]")
    if calibration is not None and reliability is not None:
        calibration.write(reliability)
        print_table(console, calibration_table(calibration.rows()))
        console.print(f"Calibration: [bold]{reliability}[/]")
    return rows


def evaluate(
    data: Sequence[str | Path | PosedSequence],
    protocols: str | list[str],
    pipelines: list[str],
    *,
    every: int = 1,
    depth_model: str = "",
    device: str = "cpu",
    with_features: bool = True,
    poses: Sequence[str] = POSES,
    depth_source: str = SWEEP,
    on_note: Callable[[str], None] | None = None,
    progress: Callable[[str], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    sheets: ContactSheets | None = None,
    hole_sheets: HoleSheets | None = None,
    calibration: Calibration | None = None,
) -> list[Row]:
    """Evaluates pipelines and the baseline on sequences.

    Args:
        data: posed sequences with depth, folders of them, or `worlds:SPLIT:COUNT` (see `world_sequences`).
        protocols: one or several of `PROTOCOLS` and `reconstruction_protocols.RECONSTRUCTION_PROTOCOLS`; the latter
            take sequences without depth, too.
        pipelines: names of `load_pipeline` with options after a `?` (see `pipeline_options`), `geometric-unaligned`, or
            baselines.
        every: evaluate every n-th held-out frame.
        depth_model: depth estimator for the protocol mono, see `depth.load_depth_estimator`; "" for the bundled
            network. With "none" the rows of mono have no metrics.
        device: device of the pipelines.
        with_features: compute patch KID and ST-LPIPS too, see `hole_scores`.
        poses, depth_source: of the photographs that interpolation and extrapolation give, see `PhotoSettings`.
        on_note: called with sentences about damaged frames, about these photographs, and the pose error of each view
            imagined from them.
        progress: called with a line of text before each part, and between denoising steps.
        on_row: called with each row when it is ready.
        sheets: collects images of some frames.
        hole_sheets: collects images of all frames, ordered by how they fill holes.
        calibration: collects predicted and actual errors.

    Raises:
        InputError: a protocol, pipeline or sequence is unknown or unsuitable.
        DatasetError: no frame of a sequence can be read.
    """
    protocols = [protocols] if isinstance(protocols, str) else list(protocols)
    known = (*PROTOCOLS, *RECONSTRUCTION_PROTOCOLS)
    for protocol in protocols:
        if protocol not in known:
            raise InputError(f"The protocol '{protocol}' is unknown; one of {', '.join(known)} was expected.")
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            if on_row:
                on_row(row)

    of_photographs = [protocol for protocol in protocols if protocol in RECONSTRUCTION_PROTOCOLS]
    if of_photographs:
        settings = PhotoSettings(tuple(poses), depth_source, every, device=device, with_features=with_features)
        for row in evaluate_photographs(
            [sequence for one in data for sequence in open_whole(one, on_note, needs_depth=False)],
            *(of_photographs, pipelines, settings, load_depth_estimator(depth_model or SMALL, device)),
            progress=progress,
            on_note=on_note,
            sheets=sheets,
            hole_sheets=hole_sheets,
        ):
            add(row)
    protocols = [protocol for protocol in protocols if protocol in PROTOCOLS]
    if not protocols:
        return rows
    sequences, names, loaded, estimator = open_inputs(
        data, protocols, [*ALWAYS, *pipelines], depth_model, device, on_note
    )
    for protocol in protocols:
        for sequence in sequences:
            if progress:
                progress(f"{protocol}, {sequence.path.name}: loading ground truth")
            scenario = make_scenario(sequence, protocol, every)
            if protocol == "cloud":
                add(*_cloud_rows(sequence, scenario, progress))
                continue
            if protocol == "mono" and estimator is None:
                add(*(Row(sequence.path.name, protocol, name, 0) for name in names))
                continue
            truths = list(scenario.target_views)
            # Seen pixels follow from true depth, even where the pipeline is given none.
            observed = scenario.views_with_depth
            kind = "unseen worlds" if isinstance(sequence, WorldSequence) else "recordings"
            score = Scorer(
                *(sequence.path.name, protocol, kind, scenario, truths, observed, sheets, calibration, hole_sheets),
                with_features=with_features,
            )
            for name in names:
                where = f"{protocol}, {sequence.path.name}: {name}"
                if progress:
                    progress(f"{where} on {len(scenario.path)} views")
                if name in BASELINES:
                    add(score(name, _baseline_views(name, scenario, estimator)))
                    continue
                with loaded.use(name) as pipeline:
                    on_progress = None if progress is None else prefixed(progress, where)
                    add(score(name, imagined_views(pipeline, scenario, device, estimator, on_progress)))
    return rows


def _baseline_views(name: str, scenario: Scenario, estimator: DepthEstimator | None) -> Iterator[EvaluatedView]:
    views = [
        replace(view, depth=estimator(view.image, view.camera)) if view.depth is None and estimator else view
        for view in scenario.observed_views
    ]
    baseline = BASELINES[name](views)
    for index in scenario.evaluated:
        start = time.perf_counter()
        view = baseline(scenario.target_views.camera, scenario.path[index])
        seconds = time.perf_counter() - start
        yield EvaluatedView(index, view.image, view.depth, float((view.depth > 0).mean()), None, seconds)


def _cloud_rows(sequence: PosedSequence, scenario: Scenario, progress: Callable[[str], None] | None) -> list[Row]:
    """The cloud in memory and two fusions by Open3D, against the cloud of all frames."""
    if progress:
        progress(f"cloud, {sequence.path.name}: fusing {len(sequence)} frames")
    truth = np.concatenate(
        [metrics.voxel_downsample(merge_point_clouds([view])[0], TRUTH_VOXEL_M) for view in sequence]
    )

    def memory_points() -> np.ndarray:
        world = observed_world(scenario, GeometricPipeline())
        return world.cloud.points[world.cloud.observed]

    methods: dict[str, Callable[[], np.ndarray]] = {
        "open3d-tsdf": lambda: fuse_by_tsdf(scenario.observed_views),
        "open3d-voxels": lambda: fuse_by_voxels(scenario.observed_views),
        "geometric": memory_points,  # all pipelines have the same memory
    }
    rows = []
    for name, fuse in methods.items():
        start = time.perf_counter()
        points = fuse()
        seconds = (time.perf_counter() - start) / len(scenario.observed_views)
        precision, recall, f1 = metrics.cloud_scores(points, truth)
        scores: dict[str, Any] = {
            "cloud_precision": precision,
            "cloud_recall": recall,
            "cloud_f1": f1,
            "seconds_per_view": seconds,
        }
        rows.append(Row(sequence.path.name, "cloud", name, len(scenario.observed_views), **scores))
    return rows
