"""`worldstereo pointmaps`: poses, depth and a cloud from one moving camera's video."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, OUTPUT, DepthModel, Device, Out
from worldstereo_ros.cli.recording_options import (
    BaseFrame,
    CameraAxes,
    CameraInfoTopic,
    DepthTopic,
    DepthUnit,
    ImageTopic,
    PoseTopic,
    Rectified,
    Tolerance,
    WorldFrame,
    check_no_bag_options,
)
from worldstereo_ros.utils.errors import InputError

AUTO = "auto"


def pointmaps(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Video, folder of frames or of a posed sequence, or bag."),
    ],
    out: Out = Path("pointmaps_out"),
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="vo (odometry against estimated depth), map (poses, points and depth solved together), small (map, "
            "refined by the point-map network), or auto: small if its weights are installed, else map.",
            rich_help_panel=MODEL,
        ),
    ] = AUTO,
    prior: Annotated[
        str,
        typer.Option(
            metavar="PRIOR",
            help="What the network starts from: tracks, or none (the network alone, as published).",
            rich_help_panel=MODEL,
        ),
    ] = "tracks",
    steps: Annotated[
        int,
        typer.Option(
            metavar="N", help="With --prior none: steps of the sampler.", min=1, max=100, rich_help_panel=MODEL
        ),
    ] = 1,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Point-map network of `worldstereo train pointmaps`.",
            show_default="the bundled one",
            rich_help_panel=MODEL,
        ),
    ] = None,
    depth_model: DepthModel = "",
    device: Device = "cpu",
    every: Annotated[int, typer.Option(metavar="N", help="Use every n-th frame.", min=1, rich_help_panel=INPUT)] = 1,
    frames: Annotated[
        int, typer.Option(metavar="N", help="Use at most so many frames; 0: all.", min=0, rich_help_panel=INPUT)
    ] = 0,
    fov: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Horizontal field of view of a camera without intrinsics.",
            show_default="by EXIF, else by the motion",
            rich_help_panel=INPUT,
        ),
    ] = None,
    ignore_poses: Annotated[
        bool,
        typer.Option("--ignore-poses", help="Estimate poses also if some come along.", rich_help_panel=INPUT),
    ] = False,
    ignore_depth: Annotated[
        bool,
        typer.Option("--ignore-depth", help="Estimate depth also if some comes along.", rich_help_panel=INPUT),
    ] = False,
    odometry: Annotated[
        bool,
        typer.Option(
            "--scale-by-poses",
            help="Estimate poses, and take only the scale from those that come along, as from wheel odometry.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    loops: Annotated[
        bool,
        typer.Option(
            "--loops/--no-loops",
            help="Correct the path where a place is seen again. Given poses are left as they are.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    ply: Annotated[
        bool,
        typer.Option("--ply", help="Also write a cloud of each frame to points/.", rich_help_panel=OUTPUT),
    ] = False,
    mcap: Annotated[
        bool,
        typer.Option(
            "--mcap",
            help="Also write bag/ (MCAP): images, estimated depth, what moves, the path and transforms.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    image_topic: ImageTopic = "",
    depth_topic: DepthTopic = "",
    camera_info_topic: CameraInfoTopic = "",
    pose_topic: PoseTopic = "",
    world_frame: WorldFrame = "",
    base_frame: BaseFrame = "",
    tolerance: Tolerance = 0.03,
    rectified: Rectified = "auto",
    camera_axes: CameraAxes = "auto",
    depth_unit: DepthUnit = "auto",
) -> None:
    """Estimate poses, depth, what moves, and a cloud from the video of one moving camera.

    The output folder is a posed sequence (frames/, depth/, poses.txt, intrinsics.json) with dynamic/ (255: it moves),
    poses_tum.txt, poses_kitti.txt, cloud.ply and world.wsmap (what does not move), and pointmaps.json, which says what
    was found, what failed and why. The first camera is the world. All of it is estimated; lengths are metres only if
    poses or depth came along.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from worldstereo_ros.cli.depth_warning import warn_of_depth
    from worldstereo_ros.cli.pointmap_session import Selection, choose_method, feed, open_stream
    from worldstereo_ros.cli.pointmap_sources import open_frames
    from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
    from worldstereo_ros.io.results_folder import ResultsFolder
    from worldstereo_ros.pipelines.pointmaps.session import SESSION_NAMES, Session
    from worldstereo_ros.reconstruction.sources import is_bag

    if prior not in ("tracks", "none"):
        raise InputError(f"--prior is '{prior}'; tracks or none was expected.")
    if prior == "none" and method not in (AUTO, "small"):
        raise InputError("--prior none is for the network; use --method small, or remove one of them.")
    if steps != 1 and prior != "none":
        raise InputError("--steps is for --prior none: with tracks the network needs one step.")
    if method not in (AUTO, "vo", "map", "small"):
        raise InputError(f"--method is '{method}'; auto, vo, map or small was expected.")
    if depth_model == NONE:
        raise InputError("Point maps need a depth model; remove --depth-model none.")
    if odometry and ignore_poses:
        raise InputError("--scale-by-poses needs the poses that --ignore-poses ignores. Remove one of them.")
    method = "small" if method == AUTO and prior == "none" else choose_method(method, weights)
    bag_options: dict[str, Any] = {
        "image_topic": image_topic,
        "depth_topic": depth_topic,
        "camera_info_topic": camera_info_topic,
        "pose_topic": pose_topic,
        "world_frame": world_frame,
        "base_frame": base_frame,
        "tolerance": tolerance,
        "rectified": rectified,
        "camera_axes": camera_axes,
        "depth_unit": depth_unit,
    }
    from_bag = is_bag(source)
    if not from_bag:
        check_no_bag_options(bag_options, named=False)
    elif fov is not None:
        raise InputError("A bag has intrinsics (camera_info), which --fov would contradict. Remove the option.")
    results = ResultsFolder(out, SESSION_NAMES, sources=[source])
    opened = open_frames(source, fov, bag_options if from_bag else None, depth_unit=depth_unit)
    if odometry and not opened.posed:
        raise InputError(f"{source} has no poses, which --scale-by-poses takes the scale from. Remove the option.")
    estimator = load_depth_estimator(depth_model, device)
    stream = open_stream(opened.camera, method, estimator, device, weights=weights, prior=prior, steps=steps)
    selection = Selection(
        every, most=frames, poses=opened.posed and not ignore_poses and not odometry, scale=odometry,
        depth=not ignore_depth,
    )  # fmt: skip
    console = Console()
    if not ignore_depth:
        measured = ((frame.image, frame.depth, frame.pose) for frame in opened.read())
        warn_of_depth(console, measured, opened.camera, source.name, posed=opened.posed, metric=opened.metric)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Session(close_loops=loops) as session:
        with Progress(*columns, console=console, transient=True) as progress:
            count = None if opened.count is None else min(frames or opened.count, -(-opened.count // every))
            task = progress.add_task("frames", total=count)
            on_frame = lambda done: progress.update(task, completed=done)  # noqa: E731
            _, reference = feed(opened, stream, session, selection, on_frame)
        with results, console.status("writing"):
            summary = session.write(out, odometry=reference, ply=ply, bag=mcap)
    for line in (*opened.notes, *describe(summary), f"Rate: {stream.rate}."):
        console.print(escape(line), highlight=False, soft_wrap=True)
    name = escape(quote(str(out)))
    console.print(f"In the browser: worldstereo view {name}", soft_wrap=True)
    console.print(f"New views of it: worldstereo imagine --map {name} --path between", soft_wrap=True)


def describe(summary: dict[str, Any]) -> list[str]:
    """Sentences about a result, for the console."""
    lines = []
    if not summary["ok"]:
        lines.append(f"NOT OK: the pose of {len(summary['frames_lost'])} of {summary['frames']} frames was not found.")
    written, unit = len(summary["frames_written"]), "m" if summary["metric"] else "units"
    lines.append(
        f"{written} of {summary['frames']} frames written, a path of {summary['path_length']:.2f} {unit}; "
        f"{summary['points']:,} points that do not move. Method: {summary['method']}."
    )
    if summary["shots"] > 1:
        lines.append(f"There are {summary['shots']} shots, each in a world of its own: the longest is written.")
    if summary["metric"]:
        lines.append(f"Lengths are metres, by the {summary['scale_from']}.")
    else:
        lines.append("Lengths are a guess of the depth network, not metres (metric: false).")
    return lines + summary["messages"]
