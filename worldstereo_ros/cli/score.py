"""`worldstereo score`: several paths on a saved map, with what a model imagines of them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, OUTPUT, PATH, Device, Model
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.planning import PathScores

ROBOT = "Robot"
GUESSED_SCALE = (
    "Nothing that was measured gives the lengths of this map: they are a guess of the depth model, so that clearances "
    "and collisions may be wrong by its error."
)
IMAGINED_WIDTH_PX = 160  # of the views that are imagined: cells are larger than their pixels


def score(
    map_file: Annotated[
        Path, typer.Argument(metavar="MAP", help="Saved map (.wsmap), or output folder of demo or imagine.")
    ],
    paths: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="Camera path: a file of `index tx ty tz qx qy qz qw` lines, a folder of such files, or a posed "
            "sequence. Repeatable.",
            rich_help_panel=PATH,
        ),
    ],
    hypotheses: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="Random seeds to imagine with; 0: only what the map holds.",
            min=0,
            max=32,
            rich_help_panel=MODEL,
        ),
    ] = 1,
    views: Annotated[
        int, typer.Option(metavar="N", help="Views to imagine along each path.", min=1, max=100, rich_help_panel=MODEL)
    ] = 8,
    model: Model = "geometric",
    device: Device = "cpu",
    radius: Annotated[float, typer.Option(metavar="M", help="Radius of the robot.", rich_help_panel=ROBOT)] = 0.2,
    height: Annotated[
        float, typer.Option(metavar="M", help="Its height; what is higher is no obstacle.", rich_help_panel=ROBOT)
    ] = 0.6,
    sensor_range: Annotated[
        float, typer.Option("--range", metavar="M", help="Range of its camera.", rich_help_panel=ROBOT)
    ] = 4.0,
    floor: Annotated[
        float | None,
        typer.Option(metavar="M", help="Height of the floor.", show_default="found by itself", rich_help_panel=INPUT),
    ] = None,
    resolution: Annotated[float, typer.Option(metavar="M", help="Edge of a cell.", rich_help_panel=INPUT)] = 0.1,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores to this JSON file.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Score paths on a map: collision probability, clearance, what is imagined, and what they would show."""
    from rich.console import Console

    from worldstereo_ros.cli.imagine_path import scale_is_given
    from worldstereo_ros.cli.maps import read_map
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.planning import RobotShape, imagine_hypotheses, score_paths, world_grid
    from worldstereo_ros.planning.visibility import Sensor
    from worldstereo_ros.utils.atomic_files import check_writable, write_json
    from worldstereo_ros.world import WorldModel

    robot = RobotShape(radius, height)
    if json is not None:
        check_writable(json)
    archive, recording = read_map(map_file)
    named = _read_paths(paths, archive.bank.metric is not False)
    if archive.bank.metric is False:  # before anything is imagined for nothing
        raise InputError(f"The unit of {recording.name} is arbitrary, not metres; a robot's size means nothing in it.")
    guessed = not scale_is_given(recording.observed_views)
    world = WorldModel(load_pipeline(model, device), archive.cloud, archive.bank, device=device)
    camera = recording.observed_views[-1].camera
    sensor = Sensor.of_camera(camera, sensor_range)
    start = time.perf_counter()
    imagined = []
    if hypotheses:
        width = min(IMAGINED_WIDTH_PX, camera.width)
        small = camera.resized(width, max(1, round(camera.height * width / camera.width)))
        imagined = imagine_hypotheses(world, named, small, seeds=range(hypotheses), views=views)
    seconds_imagining = time.perf_counter() - start
    start = time.perf_counter()
    grid = world_grid(world, named, hypotheses=imagined, robot=robot, resolution=resolution, floor=floor)
    scores = score_paths(grid, named, sensor=sensor)
    seconds = time.perf_counter() - start
    console = Console()
    _print(console, scores)
    if guessed:
        console.print(f"[yellow]{GUESSED_SCALE}[/]", highlight=False)
    console.print(
        f"{len(named)} paths scored in {seconds:.2f} s"
        + (f", after {seconds_imagining:.1f} s of imagining {hypotheses} x {len(named)} paths" if hypotheses else "")
        + ".",
        highlight=False,
    )
    if json is not None:
        content = describe_scores(scores, seconds=seconds, seconds_imagining=seconds_imagining)
        write_json(json, {"scale_is_given": not guessed, **content})


def _read_paths(files: list[Path], metric: bool) -> dict[str, np.ndarray]:
    from worldstereo_ros.io.path_files import read_path_files

    named: dict[str, np.ndarray] = {}
    for file in files:
        for name, path in read_path_files(file).items():
            if name in named:
                raise InputError(f"Two paths are named '{name}'; rename one of their files.")
            if path.metric is not None and path.metric != metric:
                raise InputError(
                    f"The path '{name}' is in {'metres' if path.metric else 'an arbitrary unit'} by "
                    f"{path.metric_from}, and the map is not; the two are not mixed."
                )
            named[name] = path.poses
    return named


def describe_scores(scores: PathScores, **more: float) -> dict[str, Any]:
    """The scores as a dictionary for JSON; null where a number is infinite or was not computed."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return [plain(item) for item in value.tolist()]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{name: plain(value) for name, value in vars(score).items()} for score in scores.scores]
    return {
        "winner": scores.winner.name, "reason": scores.reason, "hypotheses": scores.hypotheses, **more, "paths": rows,
    }  # fmt: skip


def _print(console: Any, scores: PathScores) -> None:
    from rich.table import Table

    table = Table()
    for heading in (
        "path",
        "length m",
        "collision",
        "clearance m",
        "imagined",
        "unknown",
        "gain bits",
        "new m²",
        "score",
    ):
        table.add_column(heading, justify="left" if heading == "path" else "right")
    for index, row in enumerate(scores.scores):
        cells = (
            row.name, f"{row.length:.2f}", f"{row.collision_probability:.2f}", f"{row.clearance:.2f}",
            f"{row.imagined_share:.2f}", f"{row.unknown_share:.2f}", f"{row.information_gain:.0f}",
            f"{row.new_area:.1f}", f"{row.score:.2f}",
        )  # fmt: skip
        table.add_row(*cells, style="bold" if index == scores.best else None)
    console.print(table)
    console.print(scores.reason, highlight=False)
    outside = [f"'{row.name}' ({row.outside})" for row in scores.scores if row.outside]
    if outside:
        console.print(f"Poses outside the map count as unknown: {', '.join(outside)}.", highlight=False)
