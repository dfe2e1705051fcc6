"""`worldstereo imagine`: views along a path through a recording, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, PATH, DepthModel, Device, Model, Out, Prompt, Seed, Variant
from worldstereo_ros.cli.recording_options import (
    BAG,
    BaseFrame,
    CameraAxes,
    DepthUnit,
    PathHeading,
    PathPoseFrame,
    Rectified,
    Tolerance,
)
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import MAP_FILE, OBSERVED_FOLDER
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.geometry.views import View


def imagine(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE",
            help="Posed sequence, WorldStereo example folder, or image; omit it with --bag.",
            show_default=False,
        ),
    ] = None,
    observations: Annotated[
        int,
        typer.Option(metavar="N", help="Number of observed frames, evenly spaced.", min=1, rich_help_panel=INPUT),
    ] = 1,
    bag: Annotated[
        Path | None,
        typer.Option(metavar="BAG", help="Rosbag (MCAP or SQLite) to use as the source.", rich_help_panel=BAG),
    ] = None,
    image_topic: Annotated[
        str,
        typer.Option(metavar="TOPIC", help="Colour images.", show_default="first topic of images", rich_help_panel=BAG),
    ] = "",
    depth_topic: Annotated[
        str,
        typer.Option(
            metavar="TOPIC",
            help="Depth images, registered to the colour images.",
            show_default="none",
            rich_help_panel=BAG,
        ),
    ] = "",
    camera_info_topic: Annotated[
        str,
        typer.Option(
            metavar="TOPIC", help="Camera intrinsics.", show_default="beside the image topic", rich_help_panel=BAG
        ),
    ] = "",
    pose_topic: Annotated[
        str,
        typer.Option(
            metavar="TOPIC",
            help="Camera poses, PoseStamped or Odometry.",
            show_default="TF",
            rich_help_panel=BAG,
        ),
    ] = "",
    world_frame: Annotated[
        str,
        typer.Option(
            metavar="FRAME", help="Fixed frame of the poses from TF.", show_default="root of TF", rich_help_panel=BAG
        ),
    ] = "",
    base_frame: BaseFrame = "",
    tolerance: Tolerance = 0.03,
    rectified: Rectified = "auto",
    camera_axes: CameraAxes = "auto",
    depth_unit: DepthUnit = "auto",
    path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Camera path: forward, orbit, left, right, up or turn; a trajectory of the source; a folder with "
            "poses.txt; or a nav_msgs/Path topic of the bag.",
            rich_help_panel=PATH,
        ),
    ] = "forward",
    path_pose_frame: PathPoseFrame = "base",
    path_heading: PathHeading = "auto",
    distance: Annotated[
        float, typer.Option(metavar="METRES", help="Length of a preset path.", rich_help_panel=PATH)
    ] = 1.0,
    views: Annotated[
        int,
        typer.Option(metavar="N", help="Number of views along the path.", min=1, max=1000, rich_help_panel=PATH),
    ] = 21,
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
    out: Out = Path("imagine_out"),
) -> None:
    """Imagine views along a path, from a recording, without ROS.

    The output folder holds imagined.mp4, contact_sheet.png, cloud.ply, cloud.png, world.wsmap (the memories), and the
    folders imagined/ and observed/ (posed sequences).
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    from worldstereo_ros.cli.summaries import estimated_depth_warning, pixel_shares, point_counts
    from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, NONE, SMALL, load_depth_estimator
    from worldstereo_ros.geometry.depth_units import check_depth
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.visualization.results import write_results
    from worldstereo_ros.world import WorldModel

    console = Console()
    if bag is not None and source is None:
        recording = _read_bag(
            bag,
            observations,
            image_topic=image_topic,
            depth_topic=depth_topic,
            camera_info_topic=camera_info_topic,
            pose_topic=pose_topic,
            world_frame=world_frame,
            base_frame=base_frame,
            tolerance=tolerance,
            rectified=rectified,
            camera_axes=camera_axes,
            depth_unit=depth_unit,
            path_pose_frame=path_pose_frame,
            path_heading=path_heading,
        )
    elif source is not None and bag is None:
        recording = _read_source(source, observations, depth_unit, depth_required=depth_model == NONE)
    else:
        raise InputError("Name one source: a folder or image, or a bag with --bag.")
    observed_views = recording.observed_views
    if warning := check_depth(observed_views, f"The depth of {recording.name}", "--depth-unit"):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    estimator, estimator_name = None, depth_model or BUNDLED_NETWORK
    if depth_model != NONE and any(view.depth is None or not view.depth.any() for view in observed_views):
        estimator = load_depth_estimator(depth_model or SMALL, device)
        console.print(f"Depth is missing; estimating it with {estimator_name}.")
    pipeline = load_pipeline(model, device, variant=variant, dtype=dtype, control_backend=control_backend)
    world = WorldModel(pipeline, depth_estimator=estimator, device=device)
    poses = _choose_path(path, recording, views, distance)
    remembered = []
    for view in track(observed_views, description="observing", console=console, disable=len(observed_views) < 4):
        world.observe(view)
        remembered.append(world.newest_observation or view)
    remembered = _with_newest_depth(remembered, world.bank.views)
    observed_count = f"{len(observed_views)} observed view{'s' if len(observed_views) > 1 else ''}"
    console.print(f"[bold]{recording.name}[/]: {observed_count}, {point_counts(world.cloud)}")
    if warning := estimated_depth_warning(remembered, estimator_name):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    imagined = list(
        track(
            world.imagine(
                poses, observed_views[-1].camera, prompt=prompt or recording.prompt, seed=seed, remember=True
            ),
            description="imagining",
            total=len(poses),
            console=console,
        )
    )
    console.print(f"Imagined {len(imagined)} views: {pixel_shares(imagined)}; now {point_counts(world.cloud)}")
    out.mkdir(parents=True, exist_ok=True)
    world.save(out / MAP_FILE)
    estimated_count = sum(bool(view.estimated_mask.any()) for view in remembered)
    note = f" ({estimated_count} with estimated depth)" if estimated_count else ""
    subtitle = f"{recording.name}, {observed_count}{note}, path: {path}"
    # Views that were cropped differ in size, and a sequence has one camera; they are written as they came.
    observed_views = [
        now if now.camera == view.camera else view for now, view in zip(remembered, observed_views, strict=True)
    ]
    write_results(out, imagined, observed_views, world.cloud, title="worldstereo imagine", subtitle=subtitle)
    console.print(f"See [bold]{out / 'contact_sheet.png'}[/]; in the browser: worldstereo view {out}")


@dataclass(frozen=True)
class _Recording:
    """Observed views and the paths that are recorded beside them.

    Attributes:
        name: short name for titles.
        observed_views: the views to observe, in order.
        find_path: returns the (F, 4, 4) poses of a recorded path by name, None where there is none.
        prompt: text prompt that comes with the recording, may be empty.
    """

    name: str
    observed_views: list[View]
    find_path: Callable[[str], np.ndarray | None]
    prompt: str


def _with_newest_depth(remembered: list[View], bank_views: list[View]) -> list[View]:
    """The remembered views; those whose estimated depth was corrected by later measurements as they are now."""
    newest = {id(view.image): view for view in bank_views}  # a correction keeps the image
    return [newest.get(id(view.image), view) for view in remembered]


def _read_source(folder: Path, observations: int, depth_unit: str, *, depth_required: bool) -> _Recording:
    """Evenly spaced views of a posed sequence, an example folder or an image."""
    from worldstereo_ros.geometry.depth_units import parse_depth_unit
    from worldstereo_ros.io.datasets import open_sequence
    from worldstereo_ros.utils.indices import evenly_spaced_indices

    sequence = open_sequence(folder)
    if (metres_per_count := parse_depth_unit(depth_unit)) is not None:
        sequence = replace(sequence, depth_scale=1 / metres_per_count)
    if not sequence.posed and len(sequence) > 1:
        raise InputError(f"{folder} has {len(sequence)} frames and no poses; name one of its images instead.")
    observed_views = [sequence[i] for i in evenly_spaced_indices(len(sequence), observations)]
    if not all(view.is_observation for view in observed_views):
        raise InputError(
            f"{folder} holds imagined views, which are no observations. Name a recording, such as the folder "
            f"{OBSERVED_FOLDER}/ of the same results."
        )
    if depth_required and any(view.depth is None for view in observed_views):
        raise InputError(
            f"{folder} has no depth, which the cloud memory needs, and --depth-model none disables its estimation. "
            "Remove the option, or name a folder or a hub id of a transformers depth-estimation model."
        )

    def find_path(name: str) -> np.ndarray | None:
        if name in sequence.trajectories:
            return sequence.trajectories[name].world_from_camera
        return None

    return _Recording(folder.name, observed_views, find_path, sequence.prompt)


def _read_bag(bag: Path, observations: int, path_pose_frame: str, path_heading: str, **options: Any) -> _Recording:
    """Evenly spaced views of a bag, and its paths; `options` are those of `read_views`."""
    from worldstereo_ros.io.bags.views import read_path, read_views

    views = list(read_views(bag, **options, max_views=observations))
    shared = ("image_topic", "pose_topic", "world_frame", "base_frame", "camera_axes")

    def find_path(name: str) -> np.ndarray | None:
        if not name.startswith("/") or Path(name).is_dir():
            return None
        same = {key: options[key] for key in shared}
        return read_path(bag, name, **same, pose_frame=path_pose_frame, heading=path_heading)

    return _Recording(bag.name, views, find_path, "")


def _choose_path(name: str, recording: _Recording, views: int, distance: float) -> np.ndarray:
    """(F, 4, 4) world_from_camera poses to imagine: a recorded path, a preset, or a file of poses."""
    from worldstereo_ros.geometry.poses import interpolate_poses
    from worldstereo_ros.geometry.trajectories import TRAJECTORIES, trajectory
    from worldstereo_ros.io.posed_sequences import open_posed

    poses = recording.find_path(name)
    if poses is None and name in TRAJECTORIES:
        start = recording.observed_views[-1].world_from_camera
        return trajectory(name, start, views, distance=distance)
    folder = Path(name)
    if poses is None and folder.is_dir():
        poses = open_posed(folder).poses
    if poses is None:
        raise InputError(
            f"The path '{name}' is not a preset ({', '.join(TRAJECTORIES)}), not a path of the source, and not a "
            "folder with poses.txt."
        )
    return interpolate_poses(poses, views)
