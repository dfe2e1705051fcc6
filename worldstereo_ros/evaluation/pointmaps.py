"""Evaluation of point maps: `worldstereo evaluate --pointmaps`.

Clips of 17 frames of one camera, without depth and poses, are given to each method; poses and depth are compared with
the truth. `small` and `small-no-prior` are evaluated where the weights of their networks are installed; the latter
may have options, as in `small-no-prior?steps=4&weights=runs/pointmaps`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from rich.console import Console

from worldstereo_ros.depth.estimators import NONE, SMALL, DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation.output import note_printer, print_table, row_recorder, write_rows
from worldstereo_ros.evaluation.pointmap_data import PointmapClip, open_clips
from worldstereo_ros.evaluation.pointmap_metrics import (
    depth_errors,
    flow_error,
    motion_scores,
    point_errors,
    trajectory_errors,
)
from worldstereo_ros.evaluation.report import mean
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.pointmaps import Pointmaps, estimate_pointmaps
from worldstereo_ros.pipelines.pointmaps.dynamic import scene_flow
from worldstereo_ros.pipelines.pointmaps.refinement import (
    check_works_without_prior,
    estimate_without_prior,
    is_available,
    load_model,
    refiner_of,
)
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.pointmaps.refinement import Model

NO_PRIOR = "small-no-prior"
METHODS = ("vo", "map", "small", NO_PRIOR)
MAX_STEPS = 100  # of the sampler
POINT_STRIDE_PX = 2
MIN_FLOW_M = 0.005  # of a moving point from one frame to the next


@dataclass(frozen=True)
class PointmapRow:
    """One method on one clip; None where there is no truth, or nothing was found.

    Attributes:
        sequence: name of the clip.
        method: see `METHODS`.
        frames: number of frames.
        ok: the method says that all poses were found; of means, the share of clips.
        ate, rpe_translation, rpe_rotation: metres and degrees, see `pointmap_metrics.trajectory_errors`.
        abs_rel, abs_rel_median, delta_1_25: see `depth_errors`.
        rel_p: see `point_errors`.
        moving_epe: metres, see `flow_error`.
        motion_precision, motion_recall: of the pixels that are said to move, see `motion_scores`.
        seconds: of the whole clip.
        frames_per_second: of them.
        group: the sequence that it is a clip of.
    """

    sequence: str
    method: str
    frames: int
    ok: bool | float
    ate: float | None = None
    rpe_translation: float | None = None
    rpe_rotation: float | None = None
    abs_rel: float | None = None
    abs_rel_median: float | None = None
    delta_1_25: float | None = None
    rel_p: float | None = None
    moving_epe: float | None = None
    motion_precision: float | None = None
    motion_recall: float | None = None
    seconds: float | None = None
    frames_per_second: float | None = None
    group: str = ""


FIGURES = (
    "ate", "rpe_translation", "rpe_rotation", "abs_rel", "abs_rel_median", "delta_1_25", "rel_p", "moving_epe",
    "motion_precision", "motion_recall", "seconds", "frames_per_second",
)  # fmt: skip


def score(maps: Pointmaps, clip: PointmapClip, method: str, seconds: float) -> PointmapRow:
    """Compares point maps with the truth of their clip."""
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    figures |= {"seconds": seconds, "frames_per_second": len(maps) / seconds if seconds > 0 else None}
    trajectory = trajectory_errors(maps.poses, clip.poses)
    if trajectory is not None:
        figures |= {"ate": trajectory.ate, "rpe_translation": trajectory.rpe_translation}
        figures["rpe_rotation"] = trajectory.rpe_rotation
    if clip.depth is not None:
        figures |= _depth_figures(maps, clip, clip.depth)
    return PointmapRow(clip.name, method, len(maps), maps.ok, group=clip.sequence, **figures)


def _depth_figures(maps: Pointmaps, clip: PointmapClip, depth: np.ndarray) -> dict[str, float | None]:
    camera = maps.camera
    size = (camera.width, camera.height)

    def nearest(array: np.ndarray) -> np.ndarray:
        if (array.shape[2], array.shape[1]) == size:
            return array
        return np.stack([cv2.resize(one, size, interpolation=cv2.INTER_NEAREST_EXACT) for one in array])

    truth = nearest(depth)
    figures: dict[str, float | None] = {}
    if (found := depth_errors(maps.depth, truth)) is not None:
        figures |= {
            "abs_rel": found.abs_rel,
            "abs_rel_median": found.abs_rel_median,
            "delta_1_25": found.delta_1_25,
        }
    true_camera = clip.camera.resized(*size)
    first = invert_pose(clip.poses[0])
    points = np.stack([unproject(d, true_camera, first @ p) for d, p in zip(truth, clip.poses, strict=True)])
    points[truth <= 0] = np.nan
    part = np.s_[:, ::POINT_STRIDE_PX, ::POINT_STRIDE_PX]
    relative = point_errors(maps.points[part], points[part])
    if relative is None:
        return figures
    figures["rel_p"] = relative[0]
    if clip.flow is not None and clip.moving is not None:
        images = np.stack([resize_image(image, *size) for image in clip.images])
        flow = np.stack(
            [scene_flow(images, maps.points, maps.dynamic, maps.poses, camera, f) for f in range(len(maps) - 1)]
        )
        true_flow, moving = nearest(clip.flow)[:-1], nearest(clip.moving.astype(np.uint8))[:-1] > 0
        seen = maps.valid[:-1] & (truth[:-1] > 0)
        figures["motion_precision"], figures["motion_recall"] = motion_scores(maps.dynamic[:-1], moving, seen)
        moving &= np.linalg.norm(true_flow, axis=-1) > MIN_FLOW_M
        figures["moving_epe"] = flow_error(flow, true_flow, moving, relative[1])
    return figures


def split_options(method: str) -> tuple[int, Path | None]:
    """Steps of the sampler and folder of the weights (None = the bundled ones) of a method `small-no-prior?...`.

    Raises:
        InputError: an option is unknown or has an invalid value.
    """
    steps, weights = 1, None
    for part in method.partition("?")[2].split("&") if "?" in method else ():
        name, _, value = part.partition("=")
        if name == "steps" and value.isdecimal() and 1 <= int(value) <= MAX_STEPS:
            steps = int(value)
        elif name == "weights" and value:
            weights = Path(value)
        else:
            raise InputError(
                f"The method '{method}' has the option '{part}'; steps=N, with N of 1 to {MAX_STEPS}, or "
                "weights=FOLDER was expected."
            )
    return steps, weights


def evaluate_clip(
    clip: PointmapClip,
    methods: Sequence[str],
    estimator: DepthEstimator,
    models: Mapping[str, Model],
) -> list[PointmapRow]:
    """A row for each method; `models` are the networks of those that need one."""
    rows = []
    for method in methods:
        start = time.perf_counter()
        model = models.get(method)
        if method.startswith(NO_PRIOR):
            assert model is not None
            steps = split_options(method)[0]
            maps = estimate_without_prior(list(clip.images), clip.camera, model, steps=steps)
        else:
            maps = estimate_pointmaps(
                list(clip.images), clip.camera, method=method, estimator=estimator,
                refiner=refiner_of(model) if model is not None and method == "small" else None,
            )  # fmt: skip
        rows.append(score(maps, clip, method, time.perf_counter() - start))
    return rows


def means(rows: Sequence[PointmapRow]) -> list[PointmapRow]:
    """One row for each sequence and method: means over its clips; worlds are one sequence for each kind of path."""
    groups: dict[tuple[str, str], list[PointmapRow]] = {}
    for row in rows:
        groups.setdefault((row.group, row.method), []).append(row)
    return [
        PointmapRow(
            name, method, sum(row.frames for row in group), float(np.mean([row.ok for row in group])), group=name,
            **{figure: mean([getattr(row, figure) for row in group]) for figure in FIGURES},
        )
        for (name, method), group in groups.items()
    ]  # fmt: skip


COLUMNS = [
    Column("sequence", attrgetter("sequence"), label=True, fold=True),
    Column("method", attrgetter("method"), label=True),
    Column("frames", attrgetter("frames")),
    Column("ok", lambda row: float(row.ok), "{:.2f}"),
    Column("ATE m", attrgetter("ate"), "{:.3f}"),
    Column("RPE m", attrgetter("rpe_translation"), "{:.3f}"),
    Column("RPE °", attrgetter("rpe_rotation"), "{:.2f}"),
    Column("AbsRel", attrgetter("abs_rel"), "{:.3f}"),
    Column("median", attrgetter("abs_rel_median"), "{:.3f}"),
    Column("δ<1.25", attrgetter("delta_1_25"), "{:.3f}"),
    Column("Rel^p", attrgetter("rel_p"), "{:.3f}"),
    Column("moving EPE m", attrgetter("moving_epe"), "{:.3f}"),
    Column("precision", attrgetter("motion_precision"), "{:.2f}"),
    Column("recall", attrgetter("motion_recall"), "{:.2f}"),
    Column("s", attrgetter("seconds"), "{:.1f}"),
    Column("frames/s", attrgetter("frames_per_second"), "{:.1f}"),
]


def run_pointmaps(
    data: Sequence[str | Path],
    *,
    methods: Sequence[str] = (),
    depth_model: str = "",
    model: Path | None = None,
    json_file: Path | None = None,
    device: str = "cpu",
) -> list[PointmapRow]:
    """Evaluates point maps and prints the table; `worldstereo evaluate --pointmaps` calls it.

    Args:
        data: see `pointmap_data.open_clips`.
        methods: some of `METHODS`, with options, see `split_options`; empty: all whose weights are installed.
        depth_model: see `load_depth_estimator`; "" for the bundled network.
        model: folder of a point-map network; None for the bundled one.
        json_file: file for the rows, rewritten after each clip, so that an interruption loses none.
        device: torch device.

    Raises:
        InputError: data or a method is unknown, or its weights are missing.
        DatasetError: no frame of a sequence can be read.
    """
    there = {"small": is_available(model), NO_PRIOR: is_available(prior=False)}
    names = list(dict.fromkeys(methods)) or [name for name in METHODS if there.get(name, True)]
    for name in names:
        if name not in METHODS and not name.startswith(f"{NO_PRIOR}?"):
            raise InputError(f"The method '{name}' is unknown; {', '.join(METHODS)} were expected.")
    if depth_model == NONE:
        raise InputError("Point maps need a depth model; remove --depth-model none.")
    networks: dict[str, Model] = {}
    for name in names:
        if name == "small":
            networks[name] = load_model(model, device)
        elif name.startswith(NO_PRIOR):
            networks[name] = load_model(split_options(name)[1], device, prior=False)
            check_works_without_prior(networks[name])
    estimator = load_depth_estimator(depth_model or SMALL, device)
    assert estimator is not None
    console = Console()
    if not methods and (missing := [name for name, is_there in there.items() if not is_there]):
        console.print(f"{' and '.join(missing)}: left out, there are no weights.", style="dim")
    rows: list[PointmapRow] = []
    record = row_recorder(console, _line, _write, json_file)
    for clip in open_clips(data, note_printer(console)):
        new = evaluate_clip(clip, names, estimator, networks)
        rows += new
        record(new)
    if not rows:
        raise InputError("No clip could be made: the worlds have no free path.")
    print_table(console, build_table(means(rows), COLUMNS))
    return rows


def _line(row: PointmapRow) -> str:
    figures = ", ".join(f"{name} {getattr(row, name):.3g}" for name in FIGURES if getattr(row, name) is not None)
    return f"{row.sequence}, {row.method}, {'ok' if row.ok else 'not ok'}: {figures}"


def _write(rows: Sequence[PointmapRow], path: Path) -> None:
    write_rows(path, [asdict(row) for row in rows], [asdict(row) for row in means(rows)])
