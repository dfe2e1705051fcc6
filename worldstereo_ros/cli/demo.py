"""`worldstereo demo`: the real node, a robot that drives through a scene, and the images of what the node imagined."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.demo_figures import compute_figures
from worldstereo_ros.cli.demo_node import NODE_NAME, DemoError, check_ros, pipeline_names, run_node, wait_until_ready
from worldstereo_ros.cli.options import INPUT, MODEL, PATH, Out
from worldstereo_ros.cli.recording_options import CameraAxes, DepthUnit, Rectified, Tolerance, check_no_bag_options
from worldstereo_ros.utils.atomic_files import write_text
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import MAP_FILE, RESULT_NAMES
from worldstereo_ros.weights.bundled import BUNDLED, DEFAULT_MODEL, bundled_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from worldstereo_ros.evaluation.demo_scenarios import DemoScenario
    from worldstereo_ros.geometry.views import ImaginedView

OBSERVED_MAP_FILE = "observed.wsmap"  # the memories before the node imagines; removed at the end
DEMO_NAMES = (*RESULT_NAMES, "bag", OBSERVED_MAP_FILE, "figures.json", "node.log")


def demo(
    sequence: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Posed RGB-D sequence to play to the node.",
            show_default="a procedural world",
            rich_help_panel=INPUT,
        ),
    ] = None,
    bag: Annotated[
        Path | None,
        typer.Option(
            metavar="BAG",
            help="RGB-D rosbag (MCAP or SQLite) to play to the node.",
            show_default="a procedural world",
            rich_help_panel=INPUT,
        ),
    ] = None,
    depth_unit: DepthUnit = "auto",
    tolerance: Tolerance = 0.03,
    rectified: Rectified = "auto",
    camera_axes: CameraAxes = "auto",
    scene: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Kind of procedural world: room, corridor, warehouse or lot.",
            rich_help_panel=INPUT,
        ),
    ] = "room",
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed of the procedural world.", rich_help_panel=INPUT)
    ] = 0,
    views: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of views to imagine along the path.", min=2, max=200, rich_help_panel=PATH
        ),
    ] = 24,
    photographs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Only write photographs of the procedural world to this folder, for `worldstereo reconstruct`.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    drive: Annotated[
        bool,
        typer.Option(
            "--drive",
            help="Drive a robot through a corridor by the node's answers alone: it slows down before an unseen corner. "
            "Writes a film, drive.mp4.",
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Pipeline of the node: geometric (no weights), small (bundled model), or a WorldStereo checkpoint "
            "(folder or hub id).",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_MODEL,
    out: Out = Path("demo_out"),
) -> None:
    """Run the node, drive a robot through a scene, imagine the path ahead.

    The output folder holds imagined.mp4, contact_sheet.png, cloud.ply, cloud.png, world.wsmap (the memories),
    figures.json, node.log, and the folders imagined/ and observed/ (posed sequences) and bag/ (an MCAP bag of all that
    was published); with --drive, drive.mp4, drive.png, drive.json (speeds, and where they were limited) and node.log.
    Results of an earlier run there are replaced; a file that no run wrote is never removed.
    """
    if photographs is not None:
        if bag is not None or sequence is not None:
            raise InputError("--photographs takes those of a procedural world; remove --bag and --sequence.")
        _write_photographs(photographs, scene, seed)
        return
    if drive:
        if bag is not None or sequence is not None or scene != "room":
            raise InputError("--drive takes place in a procedural corridor; remove --bag, --sequence and --scene.")
        from worldstereo_ros.cli.demo_drive import run_drive

        run_drive(out, seed=seed, model=model)
        return
    options = {"tolerance": tolerance, "rectified": rectified, "camera_axes": camera_axes}
    if bag is not None and sequence is not None:
        raise InputError("Name one recording: --sequence or --bag.")
    if bag is None:
        check_no_bag_options(options)
        options = {}
    if depth_unit != "auto" and bag is None and sequence is None:
        raise InputError("--depth-unit is of recordings; name one with --bag or --sequence, or remove it.")
    options |= {"depth_unit": depth_unit}
    run_demo(out, sequence=sequence, bag=bag, scene=scene, seed=seed, views=views, model=model, source_options=options)


def _write_photographs(folder: Path, scene: str, seed: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros.reconstruction.sample_photographs import write_sample_photographs

    console = Console()
    with console.status("taking photographs ...") as status:
        files = write_sample_photographs(
            folder, kind=scene, seed=seed, on_photograph=lambda count: status.update(f"taking photographs: {count}")
        )
    console.print(f"{len(files)} photographs of a procedural {escape(scene)} are in {escape(str(folder))}.")
    console.print(f"Reconstruct the place: [bold]worldstereo reconstruct {escape(quote(str(folder)))}[/]")


def run_demo(
    out: Path,
    *,
    sequence: Path | None = None,
    bag: Path | None = None,
    scene: str = "room",
    seed: int = 0,
    views: int = 24,
    model: str = DEFAULT_MODEL,
    source_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs the demo over the real middleware and writes its results to a folder.

    The node runs in a process of its own. The other bundled pipelines imagine the same path from the same memories, in
    this process.

    Args:
        out: output folder, see `io.results_folder.ResultsFolder`; the results of an earlier run in it are replaced.
        sequence: posed RGB-D sequence to play; None for a procedural world.
        bag: rosbag to play; None for a procedural world.
        scene: kind of procedural world, one of `scenes.KINDS`.
        seed: random seed of the procedural world.
        views: number of views to imagine.
        model: pipeline of the node.
        source_options: keyword arguments of `sequence_scenario` or `bag_scenario`.

    Returns:
        The figures, as in figures.json.

    Raises:
        DemoError: ROS 2 is missing, or the node failed.
        InputError: the scene, the sequence or the bag cannot be used, or a file that no run wrote is in the way.
        WriteError: the results cannot be written.
    """
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros.cli.summaries import figures_table
    from worldstereo_ros.geometry.depth_units import check_depth
    from worldstereo_ros.io.results_folder import ResultsFolder

    check_ros()
    console = Console()
    begin = time.monotonic()
    # Before minutes of computing; the node is given an absolute path.
    results = ResultsFolder(out.absolute(), DEMO_NAMES, sources=[sequence, bag])
    with console.status("preparing the scenario ..."):
        scenario = _make_scenario(sequence, bag, scene, seed, views, source_options or {})
    console.print(f"[bold]{escape(scenario.title)}[/]")
    if warning := check_depth(scenario.observed_views, "The depth", "--depth-unit"):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    with results:
        figures = _run_scenario(scenario, results.path, model, console, begin)
    console.print(figures_table(figures))
    sheet, folder = escape(str(out / "contact_sheet.png")), escape(quote(str(out)))
    console.print(f"\nSee [bold]{sheet}[/], and imagined.mp4 and cloud.png beside it.")
    console.print(f"In the browser: [bold]worldstereo view {folder}[/]")
    return figures


def _run_scenario(scenario: DemoScenario, out: Path, model: str, console: Console, begin: float) -> dict[str, Any]:
    """Runs the node and the other pipelines, writes all results and returns the figures; `begin` is the start."""
    from worldstereo_ros.memory.archive import load_archive
    from worldstereo_ros.ros.client.client import NodeTimeoutError, WorldStereoClient
    from worldstereo_ros.ros.client.recorder import Recorder
    from worldstereo_ros.visualization.results import write_results

    try:
        with (
            run_node(out, {"model": model}) as process,
            WorldStereoClient(NODE_NAME, publish_tf=True) as client,
            Recorder(client, out / "bag"),
        ):
            wait_until_ready(client, model, out / "node.log")
            startup_seconds = time.monotonic() - begin
            _send_observations(client, scenario, process)
            _save_map(client, OBSERVED_MAP_FILE)
            result = _imagine_path(client, scenario)
            if result.error_code:
                raise DemoError(f"The node ended the path with code {result.error_code}: {result.error_msg}")
            if len(result.views) != len(scenario.path):
                raise DemoError(f"{len(result.views)} views arrived, {len(scenario.path)} were expected.")
            _save_map(client, MAP_FILE)
    except NodeTimeoutError as error:
        raise DemoError(f"{error} The node's log is {out / 'node.log'}.") from error
    other_views, other_figures = {}, {}
    for name in _other_pipelines(model):
        try:
            with console.status(f"{name} imagines the same path ..."):
                other_views[name], seconds = _imagine_here(name, out / OBSERVED_MAP_FILE, result.views)
        except (ValueError, RuntimeError) as error:
            raise DemoError(f"The pipeline '{name}' could not imagine the same path: {error}") from error
        other_figures[name] = compute_figures(scenario, other_views[name]) | {"seconds_per_view": round(seconds, 3)}
    (out / OBSERVED_MAP_FILE).unlink()
    with console.status("drawing ..."):
        cloud = load_archive(out / MAP_FILE).cloud
        figures = {"scenario": scenario.title, "model": model, **compute_figures(scenario, result.views)} | {
            "points": len(cloud),
            "points_observed": cloud.observed_count,
            "points_estimated": cloud.estimated_count,
            "seconds_to_first_view": round(result.seconds_to_first, 3),
            "seconds_per_view": round(result.seconds / len(result.views), 3),
            "seconds_until_ready": round(startup_seconds, 1),
            "beside": other_figures,
        }
        write_results(
            out,
            result.views,
            scenario.observed_views,
            cloud,
            scenario.truth,
            title="worldstereo demo",
            subtitle=scenario.title,
            model=model if Path(model).name in other_views else Path(model).name,
            other_models=other_views,
        )
    figures["seconds_in_all"] = round(time.monotonic() - begin, 1)
    write_text(out / "figures.json", json.dumps(figures, indent=1) + "\n")
    return figures


def _make_scenario(
    sequence: Path | None, bag: Path | None, scene: str, seed: int, views: int, source_options: Mapping[str, Any]
) -> DemoScenario:
    from worldstereo_ros.evaluation.demo_scenarios import bag_scenario, scene_scenario, sequence_scenario

    if sequence is not None:
        return sequence_scenario(sequence, views, **source_options)
    if bag is not None:
        return bag_scenario(bag, views, **source_options)
    return scene_scenario(scene, seed, views)


def _save_map(client: Any, name: str) -> None:
    saved, message = client.save_map(name)
    if not saved:
        raise DemoError(f"The node did not save its map: {message}")


def _other_pipelines(model: str) -> list[str]:
    """Names of the installed pipelines other than the node's."""
    installed = [name for name in pipeline_names() if name not in BUNDLED or bundled_folder(name).is_dir()]
    return [name for name in installed if name != model]


def _imagine_here(name: str, observed_map: Path, views: Sequence[ImaginedView]) -> tuple[list[ImaginedView], float]:
    """Imagines the path of `views` from a saved map in this process; returns the views and the seconds per view."""
    import numpy as np

    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.ros.node.world_factory import effective_device
    from worldstereo_ros.world import WorldModel

    device = effective_device("auto")
    world = WorldModel(load_pipeline(name, device), device=device)
    world.load(observed_map)
    begin = time.monotonic()
    path = np.stack([view.world_from_camera for view in views])
    imagined = list(world.imagine(path, views[0].camera, remember=True))
    return imagined, (time.monotonic() - begin) / len(imagined)


def _progress_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))


def _send_observations(client: Any, scenario: DemoScenario, process: subprocess.Popen[bytes]) -> None:
    """Publishes the observed views one by one; each waits until the node remembers the one before."""
    with _progress_bar() as bar:
        task = bar.add_task("observing", total=len(scenario.observed_views), note="")
        for view in scenario.observed_views:
            if process.poll() is not None:
                raise DemoError("The node ended unexpectedly; node.log says why.")
            client.add_observation(view)
            bar.advance(task)


def _imagine_path(client: Any, scenario: DemoScenario) -> Any:
    """Sends the path as an action goal, shows the feedback, and returns the result."""
    with _progress_bar() as bar:
        task = bar.add_task("imagining", total=len(scenario.path), note="")

        def on_feedback(feedback: Any) -> None:
            remaining = f"{feedback.seconds_left:.0f} s left" if feedback.seconds_left >= 0 else ""
            bar.update(task, completed=feedback.views_done, note=f"{feedback.stage} {remaining}")

        result = client.imagine(scenario.path, on_feedback=on_feedback, remember=True)
        bar.update(task, completed=len(result.views), note="")
    return result
