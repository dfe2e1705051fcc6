"""How far depth from single pictures is off: estimators beside what one would say without looking at the picture.

Every estimator and baseline gives metres. Its errors are taken as they are, and after scale alignment: times the one
number that makes its median that of the truth (Zhou et al., 2017), as a monocular scale is a guess. Means are over
pixels with known depth, then over frames.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimators import NONE, SMALL, DepthEstimator, choose_depth
from worldstereo_ros.evaluation.metrics import depth_error
from worldstereo_ros.evaluation.world_sequences import Posed, open_data
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.images import depth_image
from worldstereo_ros.world import WorldModel

# Metres of a camera that looks level over a floor towards a wall, and of one depth everywhere: what `fit_ground` finds
# over two views each of the first 120 training worlds of config/training/cpu.yaml. No others do better on the like.
HEIGHT, WALL, CONSTANT = 0.67, 2.64, 2.35
NEAREST = 0.2  # metres, of the floor
COLUMN, ABREAST = 260, 6  # pixels across of the sheet's pictures, and how many of them stand side by side at most


class ConstantDepth:
    """The same depth everywhere: the median of the training worlds."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        return np.full(image.shape[:2], CONSTANT, np.float32)


class GroundPlane:
    """A level camera `HEIGHT` above a floor, in front of a wall `WALL` away: guesses, the pose is not looked at."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`."""
        return np.broadcast_to(ground_depth(camera, HEIGHT, WALL)[:, None], image.shape[:2]).astype(np.float32)


def ground_depth(camera: Camera, height: float, wall: float) -> np.ndarray:
    """(H,) metres of each row of a level camera `height` above a floor, in front of a wall `wall` away."""
    below = (np.arange(camera.height) - camera.cy) / camera.fy
    floor = height / np.maximum(below, height / (2 * wall))
    return np.clip(floor, NEAREST, wall).astype(np.float32)


def fit_ground(views: Iterable[tuple[np.ndarray, Camera]]) -> tuple[float, float, float]:
    """(height, wall, constant) in metres that leave the least mean |log(depth / truth)|, on a grid.

    Args:
        views: (H, W) true depth, 0 = unknown, and its camera.
    """
    views = list(views)
    heights, walls = np.geomspace(0.3, 3, 24), np.geomspace(1, 12, 24)
    every = np.concatenate([depth[depth > 0][::7] for depth, _ in views])

    def off(height: float, wall: float) -> float:
        errors = []
        for depth, camera in views:
            said = np.broadcast_to(ground_depth(camera, height, wall)[:, None], depth.shape)
            known = depth > 0
            errors.append(np.abs(np.log(said[known] / depth[known]))[::7])
        return float(np.concatenate(errors).mean())

    _, height, wall = min((off(height, wall), height, wall) for height in heights for wall in walls)
    return float(height), float(wall), float(np.median(every))


BASELINES: dict[str, Callable[[], DepthEstimator]] = {"constant": ConstantDepth, "ground plane": GroundPlane}


@dataclass(frozen=True)
class DepthRow:
    """Errors of one estimator on one sequence, means over frames.

    Attributes:
        sequence, estimator: names.
        frames: how many have an estimate.
        refused: how many have none (a picture of nothing but sky, say).
        abs_rel, delta_1_25: in metres as given: mean |depth / truth - 1|, and the share within a ratio of 1.25.
        aligned_abs_rel, aligned_delta_1_25: after scale alignment.
        scale: median over frames of the factor that alignment takes; 1 = metric.
        seconds: for each frame.
    """

    sequence: str
    estimator: str
    frames: int
    refused: int = 0
    abs_rel: float | None = None
    delta_1_25: float | None = None
    aligned_abs_rel: float | None = None
    aligned_delta_1_25: float | None = None
    scale: float | None = None
    seconds: float | None = None


@dataclass
class _Frames:
    """What one estimator did on one sequence."""

    errors: list[tuple[float, ...]] = field(default_factory=list)
    refused: int = 0

    def row(self, sequence: str, estimator: str) -> DepthRow:
        if not self.errors:
            return DepthRow(sequence, estimator, 0, self.refused)
        table = np.array(self.errors)
        abs_rel, delta, aligned, aligned_delta = (float(n) for n in table[:, :4].mean(axis=0))
        scale, seconds = float(np.median(table[:, 4])), float(table[:, 5].mean())
        return DepthRow(
            sequence, estimator, len(table), self.refused, abs_rel, delta, aligned, aligned_delta, scale, seconds
        )


def depth_errors(
    data: Sequence[str | Path | Posed],
    estimators: dict[str, DepthEstimator],
    *,
    every: int = 1,
    progress: Callable[[str], None] = lambda text: None,
    shown: list[tuple[View, dict[str, np.ndarray]]] | None = None,
) -> list[DepthRow]:
    """Errors of estimators and of `BASELINES` on every sequence, single pictures each.

    Args:
        data: see `evaluation.worlds.open_data`.
        estimators: by name.
        every: n-th frames alone.
        progress: called with a line of text.
        shown: gets the middle frame of every sequence, with what each estimator says of it.

    Raises:
        ValueError: a sequence is not known, or none of its frames has depth.
    """
    everyone = {**estimators, **{name: make() for name, make in BASELINES.items()}}
    rows: list[DepthRow] = []
    warm = False
    for sequence in (sequence for one in data for sequence in open_data(one)):
        frames = {name: _Frames() for name in everyone}
        numbers = range(0, len(sequence), every)
        known = 0
        for number in numbers:
            view = sequence[number]
            if view.depth is None or not (view.depth > 0).any():
                continue
            known += 1
            progress(f"{sequence.path.name}: frame {number + 1} of {len(sequence)}")
            said: dict[str, np.ndarray] = {}
            if not warm:  # what the first call prepares is no part of a frame's time
                warm = True
                for estimator in everyone.values():
                    with suppress(DepthError):
                        estimator(view.image, view.camera)
            for name, estimator in everyone.items():
                begin = time.perf_counter()
                try:
                    depth = estimator(view.image, view.camera)
                except DepthError:
                    frames[name].refused += 1
                    continue
                seconds = time.perf_counter() - begin
                errors = errors_of(depth, view.depth)
                if errors is None:
                    frames[name].refused += 1
                    continue
                frames[name].errors.append((*errors, seconds))
                said[name] = depth
            if shown is not None and number == numbers[len(numbers) // 2]:
                shown.append((view, said))
        if not known:
            raise InputError(f"{sequence.path.name} has no depth to compare with.")
        rows += [frames[name].row(sequence.path.name, name) for name in everyone]
    return rows


def imagined_errors(
    data: Sequence[str | Path | Posed],
    pipelines: Sequence[str],
    *,
    every: int = 1,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> list[DepthRow]:
    """Errors of the depth of imagined pixels, which goes into memory with them: those that memory did not cover.

    The first view is given; for each pipeline there is a row of its own depth, and one of what memory knows of the same
    views, filled smoothly.

    Args:
        data: see `evaluation.worlds.open_data`.
        pipelines: of `load_pipeline`.
        every: n-th frames alone are asked.
        device: where the pipelines run.
        progress: called with a line of text.

    Raises:
        ValueError: a pipeline or sequence is not known.
    """
    rows: list[DepthRow] = []
    loaded = {name: load_pipeline(name, device) for name in pipelines}
    for sequence in (sequence for one in data for sequence in open_data(one)):
        asked = sequence.subset(range(every, len(sequence), every))
        for name, pipeline in loaded.items():
            progress(f"{sequence.path.name}: {name} imagines {len(asked)} views")
            frames = {f"{name}, imagined": _Frames(), f"{name}, smooth fill": _Frames()}
            world = WorldModel(pipeline, device=device)
            world.observe(sequence[0])
            begin = time.perf_counter()
            for view, truth in zip(world.imagine(asked.poses, asked.camera), asked, strict=True):
                seconds = time.perf_counter() - begin
                assert view.depth is not None
                assert view.covered is not None
                assert truth.depth is not None
                hole = ~view.covered
                filled = fill_depth(np.where(hole, np.float32(0), view.depth))
                for kept, depth in zip(frames.values(), (view.depth, filled), strict=True):
                    errors = errors_of(np.where(hole, depth, 0), truth.depth)
                    if errors is not None:
                        kept.errors.append((*errors, seconds))
                begin = time.perf_counter()
            rows += [kept.row(sequence.path.name, label) for label, kept in frames.items()]
    return rows


def errors_of(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float, float] | None:
    """(AbsRel, share within 1.25, both after scale alignment, scale) of (H, W) metres; None without common pixels."""
    both = (depth > 0) & (truth > 0)
    if not both.any():
        return None
    scale = float(np.median(truth[both]) / np.median(depth[both]))
    plain, aligned = depth_error(depth, truth), depth_error(depth * np.float32(scale), truth)
    assert plain[0] is not None
    assert aligned[0] is not None
    return plain[0], plain[1], aligned[0], aligned[1], scale


def means(rows: Sequence[DepthRow]) -> list[DepthRow]:
    """One row an estimator over all sequences, each counting the same; none where there is one sequence."""
    if len({row.sequence for row in rows}) < 2:
        return []
    found = []
    for name in dict.fromkeys(row.estimator for row in rows):
        of = [row for row in rows if row.estimator == name and row.frames]

        def mean(key: str, of: list[DepthRow] = of) -> float | None:
            return float(np.mean([getattr(row, key) for row in of])) if of else None

        keys = ("abs_rel", "delta_1_25", "aligned_abs_rel", "aligned_delta_1_25", "scale", "seconds")
        frames, refused = sum(row.frames for row in of), sum(row.refused for row in rows if row.estimator == name)
        found.append(DepthRow("mean", name, frames, refused, *(mean(key) for key in keys)))
    return found


def format_table(rows: Sequence[DepthRow]) -> Table:
    """The rows and their means."""
    table = Table("sequence", "depth of", "frames", "AbsRel", "δ<1.25", "AbsRel aligned", "δ aligned", "scale", "s")
    for row in (*rows, *means(rows)):
        figures = (
            (row.abs_rel, "{:.3f}"), (row.delta_1_25, "{:.3f}"), (row.aligned_abs_rel, "{:.3f}"),
            (row.aligned_delta_1_25, "{:.3f}"), (row.scale, "{:.2f}"), (row.seconds, "{:.3f}"),
        )  # fmt: skip
        count = f"{row.frames} (-{row.refused})" if row.refused else str(row.frames)
        cells = ("-" if value is None else form.format(value) for value, form in figures)
        table.add_row(row.sequence, row.estimator, count, *cells)
    return table


def run(
    data: Sequence[str | Path],
    *,
    depth_model: str = "",
    every: int = 1,
    json_file: Path | None = None,
    sheet: Path | None = None,
    pipelines: Sequence[str] = (),
    device: str = "cpu",
) -> list[DepthRow]:
    """Measures and prints the table (what `worldstereo evaluate --depth` does).

    Args:
        data: see `evaluation.worlds.open_data`.
        depth_model: see `depth.choose_depth`; "" for the network that ships, "none" for the baselines alone.
        every: n-th frames alone.
        json_file: where the rows are written.
        sheet: where pictures, truth and estimates are drawn.
        pipelines: instead of estimators: depth of what these imagine, see `imagined_errors`.
        device: of torch.

    Raises:
        ValueError: a model, or a sequence's depth, cannot be had.
    """
    console = Console()
    if pipelines:
        with console.status("loading") as status:
            rows = imagined_errors(data, pipelines, every=every, device=device, progress=status.update)
        _tell(console, rows, json_file, {"every": every})
        return rows
    estimators: dict[str, DepthEstimator] = {}
    estimator = choose_depth(depth_model or SMALL, device)
    if estimator is not None:
        estimators[depth_model or SMALL] = estimator
    shown: list[tuple[View, dict[str, np.ndarray]]] = []
    with console.status("loading") as status:
        rows = depth_errors(data, estimators, every=every, progress=status.update, shown=shown)
    guesses = {"height": HEIGHT, "wall": WALL, "constant": CONSTANT}
    _tell(console, rows, json_file, {"depth_model": depth_model or SMALL, "every": every, **guesses})
    if sheet is not None:
        draw_sheet(shown, [name for name in estimators if name != NONE] or list(BASELINES), sheet)
        console.print(f"Look at [bold]{sheet}[/].")
    return rows


def _tell(console: Console, rows: list[DepthRow], json_file: Path | None, about: dict[str, Any]) -> None:
    """Prints the table and writes the JSON."""
    (console if console.is_terminal else Console(width=160)).print(format_table(rows))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        content = {**about, "rows": [asdict(row) for row in (*rows, *means(rows))]}
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_sheet(shown: Sequence[tuple[View, dict[str, np.ndarray]]], names: Sequence[str], file: Path) -> None:
    """A column a picture: the picture, its true depth, and below that what each of `names` says, after alignment."""
    columns = []
    rows = max(round(COLUMN * view.camera.height / view.camera.width) for view, _ in shown)
    for view, said in shown:
        assert view.depth is not None
        far = float(np.percentile(view.depth[view.depth > 0], 98))
        cells = [view.image, depth_image(view.depth, far)]
        for name in names:
            depth = said.get(name, np.zeros_like(view.depth))
            errors = errors_of(depth, view.depth)
            cells.append(depth_image(depth * np.float32(errors[4] if errors else 1), far))
        columns.append(np.concatenate([_fitted(cell, rows) for cell in cells]))
    across = -(-len(columns) // -(-len(columns) // ABREAST))  # bands of nearly the same length
    bands = [columns[first : first + across] for first in range(0, len(columns), across)]
    blank = np.full_like(columns[0], 255)
    full = [np.concatenate(band + [blank] * (across - len(band)), axis=1) for band in bands]
    write_image(file, np.concatenate(full))


def _fitted(picture: np.ndarray, rows: int) -> np.ndarray:
    """(rows, COLUMN, 3): as large as fits, on white."""
    factor = min(COLUMN / picture.shape[1], rows / picture.shape[0]) * 0.98
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    cell = np.full((rows, COLUMN, 3), 255, np.uint8)
    y, x = (rows - size[1]) // 2, (COLUMN - size[0]) // 2
    cell[y : y + size[1], x : x + size[0]] = small
    return cell
