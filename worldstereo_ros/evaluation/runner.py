"""Runs pipelines and the baseline through the protocols, as a user of `WorldModel` would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from worldstereo_ros.camera import Camera
from worldstereo_ros.datasets import Sequence, open_posed
from worldstereo_ros.depth import HubDepth
from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.baseline import BASELINES, fused_by_tsdf, fused_by_voxels, gathered
from worldstereo_ros.evaluation.protocols import PROTOCOLS, Task, make_task
from worldstereo_ros.evaluation.report import Row, format_table, mean, write_json
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.pipelines.geometric import GeometricPipeline
from worldstereo_ros.pipelines.load import load_pipeline
from worldstereo_ros.views import View
from worldstereo_ros.world import WorldModel

BASELINE = "open3d+telea"
UNALIGNED = "geometric-unaligned"  # without exposure alignment, to see what that step gives
TRUTH_VOXEL = 0.02  # metres, of each frame's part of the ground-truth cloud


@dataclass(frozen=True)
class Shown:
    """One judged view of a pipeline.

    Attributes:
        image: (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 = unknown; None where there is none.
        coverage: fraction of the pixels that memory covered.
        observed: (H, W) bool, True = a sensor saw it; None where the pipeline makes no such claim.
        seconds: that it took.
    """

    image: np.ndarray
    depth: np.ndarray | None
    coverage: float
    observed: np.ndarray | None
    seconds: float


def run(
    data: list[Path],
    protocols: list[str],
    pipelines: list[str],
    *,
    json_file: Path | None = None,
    every: int = 1,
    depth_model: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Evaluates, prints the table, and writes the JSON file if one is named (what `worldstereo evaluate` does)."""
    console = Console()
    with console.status("evaluating") as status:
        rows = evaluate(
            data,
            protocols,
            pipelines,
            every=every,
            depth_model=depth_model,
            device=device,
            progress=status.update,
        )
    # A table is not cut to the width of a terminal that is not there.
    (console if console.is_terminal else Console(width=200)).print(format_table(rows))
    if any(row.frames == 0 for row in rows):
        console.print("Rows without figures: `mono` needs a depth model, and none is named.")
    if json_file is not None:
        write_json(rows, json_file)
    return rows


def evaluate(
    data: list[Path],
    protocols: str | list[str],
    pipelines: list[str],
    *,
    every: int = 1,
    depth_model: str | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """The figures of pipelines on sequences, the baseline always among them.

    Args:
        data: posed sequences with depth, or folders of such.
        protocols: of `PROTOCOLS`.
        pipelines: names: those of `load_pipeline`, `geometric-unaligned`, and the baselines.
        every: ask only every n-th of the frames that are not given.
        depth_model: for `mono`: a depth model of the hub, or its folder. Without one its rows have no figures.
        device: where the pipelines run.
        progress: called with a line of text before each part.

    Raises:
        ValueError: a protocol, pipeline or sequence is not known or lacks something.
    """
    protocols = [protocols] if isinstance(protocols, str) else list(protocols)
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"The protocol '{protocol}' is not known; it is one of {', '.join(PROTOCOLS)}.")
    names = list(dict.fromkeys([BASELINE, *pipelines]))
    sequences = [open_posed(folder) for path in data for folder in _sequences_in(path)]
    loaded = {name: _load(name, device) for name in names if name not in BASELINES}
    estimator = HubDepth(depth_model, device=device) if depth_model and "mono" in protocols else None
    rows: list[Row] = []
    for protocol in protocols:
        for sequence in sequences:
            task = make_task(sequence, protocol, every)
            if protocol == "cloud":
                rows += _cloud_rows(sequence, task, progress)
                continue
            if protocol == "mono":
                if estimator is None:
                    rows += [Row(sequence.path.name, protocol, name, 0) for name in names]
                    continue
                given = [replace(view, depth=estimator(view.image, view.camera)) for view in task.given]
                task = replace(task, given=given)
            truths = list(task.asked)
            # What was seen is decided by true depth, also where depth was not given.
            seeds = [sequence[0]] if protocol == "mono" else task.given
            seen = [metrics.seen_pixels(truth, seeds) for truth in truths]
            for name in names:
                if progress:
                    progress(f"{protocol}, {sequence.path.name}: {name} on {len(truths)} frames")
                shown = (
                    _baseline_views(name, task) if name in BASELINES else _imagined_views(loaded[name], task, device)
                )
                rows.append(_row(sequence.path.name, protocol, name, truths, seen, shown))
    return rows


def _sequences_in(path: Path) -> list[Path]:
    if (path / "poses.txt").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("*/poses.txt") if (file.parent / "depth").is_dir())
    if not found:
        raise ValueError(f"{path} is no posed sequence (poses.txt, frames/, depth/) and no folder of such.")
    return found


def _load(name: str, device: str) -> Pipeline:
    return GeometricPipeline(align=False) if name == UNALIGNED else load_pipeline(name, device)


def _baseline_views(name: str, task: Task) -> Iterator[Shown]:
    show = BASELINES[name](task.given)
    for index in task.judged:
        start = time.perf_counter()
        projected = show(_camera(task), task.path[index])
        seconds = time.perf_counter() - start
        yield Shown(projected.image, projected.depth, float((projected.depth > 0).mean()), None, seconds)


def _imagined_views(pipeline: Pipeline, task: Task, device: str) -> Iterator[Shown]:
    world = WorldModel(pipeline, device=device)
    for view in task.given:
        world.seed(view)
    # Compiled loops and prepared references are paid for once per place, not per view.
    next(world.imagine(task.path[:1], _camera(task)))
    start = time.perf_counter()
    for view in world.imagine(task.path, _camera(task), remember=task.remember):
        seconds = time.perf_counter() - start
        if view.index in task.judged:
            yield Shown(view.image, view.depth, view.coverage, view.observed_mask, seconds)
        start = time.perf_counter()


def _camera(task: Task) -> Camera:
    return task.asked.camera


def _row(
    sequence: str, protocol: str, pipeline: str, truths: list[View], seen: list[np.ndarray], shown: Iterator[Shown]
) -> Row:
    """Means over frames. Provenance is counted over all pixels: most frames of a walk away have no seen pixel."""
    figures: dict[str, list[float | None]] = {}
    right = claimed = there = 0
    claims = True
    for truth, was_seen, view in zip(truths, seen, shown, strict=True):
        assert truth.depth is not None  # `seen_pixels` refuses views without
        known = truth.depth > 0
        abs_rel, delta = (None, None) if view.depth is None else metrics.depth_error(view.depth, truth.depth)
        frame = {
            "psnr": metrics.psnr(view.image, truth.image),
            "ssim": metrics.ssim(view.image, truth.image),
            "psnr_seen": metrics.psnr(view.image, truth.image, was_seen),
            "psnr_unseen": metrics.psnr(view.image, truth.image, known & ~was_seen),
            "coverage": view.coverage,
            "abs_rel": abs_rel,
            "delta_1_25": delta,
            "seconds_per_view": view.seconds,
        }
        for name, value in frame.items():
            figures.setdefault(name, []).append(value)
        if view.observed is None:
            claims = False
        else:
            right += int((view.observed & was_seen).sum())
            claimed += int((view.observed & known).sum())
            there += int(was_seen.sum())
    return Row(
        sequence,
        protocol,
        pipeline,
        len(truths),
        observed_precision=right / claimed if claims and claimed else None,
        observed_recall=right / there if claims and there else None,
        **{name: mean(values) for name, values in figures.items()},
    )


def _cloud_rows(sequence: Sequence, task: Task, progress: Callable[[str], None] | None) -> list[Row]:
    """The remembered cloud and Open3D's two fusions of the same frames against the cloud of all frames."""
    if progress:
        progress(f"cloud, {sequence.path.name}: fusing {len(sequence)} frames")
    true = np.concatenate([metrics.thinned(gathered([view])[0], TRUTH_VOXEL) for view in sequence])

    def remembered() -> np.ndarray:
        world = WorldModel(GeometricPipeline())
        for view in task.given:
            world.seed(view)
        return world.cloud.points[world.cloud.observed]

    methods: dict[str, Callable[[], np.ndarray]] = {
        "open3d-tsdf": lambda: fused_by_tsdf(task.given),
        "open3d-voxels": lambda: fused_by_voxels(task.given),
        "geometric": remembered,  # the memory is the same for every pipeline
    }
    rows = []
    for name, fuse in methods.items():
        start = time.perf_counter()
        points = fuse()
        seconds = (time.perf_counter() - start) / len(task.given)
        precision, recall, f1 = metrics.cloud_scores(points, true)
        scores = {"cloud_precision": precision, "cloud_recall": recall, "cloud_f1": f1, "seconds_per_view": seconds}
        rows.append(Row(sequence.path.name, "cloud", name, len(task.given), **scores))
    return rows
