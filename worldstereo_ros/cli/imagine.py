"""`worldstereo imagine`: views along a path through a recording, without ROS."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, PATH, DepthModel, Device, Fill, Model, Out, Prompt, Seed, Variant
from worldstereo_ros.cli.pointmap_geometry import DepthSource, PoseSource, check_sources
from worldstereo_ros.cli.recording_options import (
    BAG,
    BaseFrame,
    CameraAxes,
    CameraInfoTopic,
    DepthTopic,
    DepthUnit,
    ImageTopic,
    PathHeading,
    PathPoseFrame,
    PoseTopic,
    Rectified,
    Tolerance,
    WorldFrame,
)
from worldstereo_ros.cli.segments import Captures, Loop, Segment, Update
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import RESULT_NAMES
from worldstereo_ros.weights.bundled import DEFAULT_MODEL


def imagine(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE",
            help="Posed sequence, WorldStereo example folder, image, or video; omit it with --bag.",
            show_default=False,
        ),
    ] = None,
    observations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of observed frames, evenly spaced.",
            min=1,
            show_default="1",
            rich_help_panel=INPUT,
        ),
    ] = None,
    observe: Annotated[
        str,
        typer.Option(
            metavar="FRAMES",
            help="Numbers of the frames to observe, such as 12 or 0,12,30; of a bag counted from 0.",
            show_default="evenly spaced",
            rich_help_panel=INPUT,
        ),
    ] = "",
    size: Annotated[
        str,
        typer.Option(
            metavar="WxH",
            help="Size to work with, such as 640x480; full: that of the input.",
            show_default="that of the input; large images are reduced",
            rich_help_panel=INPUT,
        ),
    ] = "",
    fov: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Horizontal field of view of an image or video without intrinsics.",
            show_default="by its EXIF, else 60 along the longer side",
            rich_help_panel=INPUT,
        ),
    ] = None,
    pose_source: PoseSource = "auto",
    depth_source: DepthSource = "auto",
    bag: Annotated[
        Path | None,
        typer.Option(metavar="BAG", help="Rosbag (MCAP or SQLite) to use as the source.", rich_help_panel=BAG),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="MAP",
            help="Saved map (.wsmap), or folder with one, to continue from instead of a source.",
            show_default="none",
            rich_help_panel=INPUT,
        ),
    ] = None,
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
    path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Camera path: forward, backward, orbit, left, right, up, turn or spiral from the last observed view; "
            "between, around, spiral-around or dolly, by several observed views; a trajectory of the source; a file "
            "of poses with its convention in the header; a folder with a poses.txt; or a nav_msgs/Path topic of a bag.",
            rich_help_panel=PATH,
        ),
    ] = "forward",
    path_pose_frame: PathPoseFrame = "base",
    path_heading: PathHeading = "auto",
    distance: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="Length of forward, backward, left, right and up; width of spiral.",
            show_default="1",
            rich_help_panel=PATH,
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of views, spread evenly along the path.",
            min=1,
            max=1000,
            show_default="21 along a preset, else one for each pose",
            rich_help_panel=PATH,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what memory alone shows along the path before imagining: .gif, .mp4, or a sheet: .png, .jpg.",
            show_default="none",
            rich_help_panel=PATH,
        ),
    ] = None,
    clearance: Annotated[
        float,
        typer.Option(
            metavar="METRES",
            help="Distance of the path from observed surfaces; poses that are closer are reported as blocked.",
            rich_help_panel=PATH,
        ),
    ] = 0.05,
    loop: Loop = None,
    segment: Segment = None,
    captures: Captures = "visible",
    update: Update = True,
    model: Model = DEFAULT_MODEL,
    variant: Variant = "",
    prompt: Prompt = "",
    seed: Seed = 0,
    depth_model: DepthModel = "",
    device: Device = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Precision of a checkpoint's networks: auto, float32, bfloat16 or float16.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    control_backend: Annotated[
        str,
        typer.Option(
            metavar="BACKEND",
            help="Runtime of a checkpoint's control branch: torch, onnxruntime or tensorrt.",
            rich_help_panel=MODEL,
        ),
    ] = "torch",
    fill: Fill = "auto",
    out: Out = Path("imagine_out"),
) -> None:
    """Imagine views along a path, from a recording, without ROS.

    The output folder holds imagined.mp4, contact_sheet.png, cloud.ply, cloud.png, world.wsmap (the memories), and the
    folders imagined/ and observed/ (posed sequences); results.json says which poses pass through observed surfaces and,
    of the loop, which observed views each view got and where it lies by what it shows.
    """
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros.cli.imagine_path import PathRequest, imagine_path, lacks_depth
    from worldstereo_ros.cli.imagine_source import SourceOptions, check_path_options, open_source
    from worldstereo_ros.cli.maps import check_only_map
    from worldstereo_ros.cli.options import check_model_options
    from worldstereo_ros.cli.paths import choose_path
    from worldstereo_ros.cli.segments import choose_loop
    from worldstereo_ros.cli.sources import parse_frames, parse_size
    from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, NONE, SMALL, load_depth_estimator
    from worldstereo_ros.geometry.depth_units import check_depth
    from worldstereo_ros.io.results_folder import ResultsFolder
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.visualization.path_preview import check_preview

    console = Console()
    parse_size(size)
    check_model_options(model, variant=variant, dtype=dtype, prompt=prompt)
    if observe and observations is not None:
        raise InputError("--observe names the frames and --observations their number; one of the two was expected.")
    if preview is not None:
        check_preview(preview)
    frames = parse_frames(observe) if observe else []
    check_sources(pose_source, depth_source, depth_model)
    given = {"--observe": observe, "--observations": observations, "--size": size, "--fov": fov, "--bag": bag}
    given |= {"--pose-source": pose_source.replace("auto", ""), "--depth-source": depth_source.replace("auto", "")}
    check_only_map(map_file, SOURCE=source, **given)
    if depth_source == "sensor":
        depth_model = "none"
    results = ResultsFolder(
        out, RESULT_NAMES, sources=[source, bag, map_file, path if path and Path(path).is_dir() else None]
    )
    source_options = SourceOptions(
        source,
        bag,
        map_file,
        observations,
        frames,
        size,
        fov,
        pose_source,
        depth_source,
        depth_model,
        {
            "image_topic": image_topic,
            "pose_topic": pose_topic,
            "world_frame": world_frame,
            "base_frame": base_frame,
            "camera_axes": camera_axes,
            "depth_topic": depth_topic,
            "camera_info_topic": camera_info_topic,
            "tolerance": tolerance,
            "rectified": rectified,
            "depth_unit": depth_unit,
        },
        path_pose_frame,
        path_heading,
    )
    archive, recording = open_source(source_options, device=device, console=console)
    observed_views = recording.observed_views
    for note in recording.notes:
        console.print(escape(note), highlight=False)
    if warning := check_depth(observed_views, f"The depth of {recording.name}", "--depth-unit"):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    path_chosen = choose_path(path, recording, views, distance)
    loop_settings = choose_loop(
        loop, segment, captures, update, from_map=archive is not None, observed=len(observed_views)
    )
    check_path_options(source_options, path, recording)
    estimator, estimator_name = None, recording.depth_from or depth_model or BUNDLED_NETWORK
    if archive is None and depth_model != NONE and lacks_depth(recording):
        estimator = load_depth_estimator(depth_model or SMALL, device)
        console.print(f"Depth is missing; estimating it with {escape(depth_model or BUNDLED_NETWORK)}.")
    elif archive is None and depth_model not in ("", NONE):
        console.print(f"All views have measured depth: --depth-model {escape(depth_model)} is not used.")
    pipeline = load_pipeline(model, device, variant=variant, dtype=dtype, control_backend=control_backend, fill=fill)
    request = PathRequest(
        recording, archive, path, path_chosen, loop_settings, model, prompt, seed, clearance, estimator_name
    )
    done = imagine_path(request, pipeline, estimator, console, device=device, preview=preview)
    with results:
        done.write(out)
    sheet = escape(str(out / "contact_sheet.png"))
    console.print(f"See [bold]{sheet}[/]; in the browser: worldstereo view {escape(quote(str(out)))}")
