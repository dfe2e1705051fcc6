"""`worldstereo stereo`: the other eye of a photograph, a video, a sequence or a bag."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.stereo.conversion import Conversion

STEREO = "Stereo"


def stereo(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Photograph, video, folder of a sequence (frames/, depth/, poses.txt), or bag."
        ),
    ],
    out: Out = Path("stereo_out"),
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="sbs (side by side), half-sbs, tb (left above right), half-tb, anaglyph (red-cyan, Dubois), or "
            "left-right (two files).",
            rich_help_panel=OUTPUT,
        ),
    ] = "sbs",
    base: Annotated[
        float,
        typer.Option(metavar="METRES", help="Distance between the eyes.", rich_help_panel=STEREO),
    ] = 0.065,
    strength: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="Factor on all disparities.", rich_help_panel=STEREO),
    ] = 1.0,
    convergence: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="Distance of what appears on the screen; the made eye is shifted, not turned.",
            show_default="parallel eyes",
            rich_help_panel=STEREO,
        ),
    ] = None,
    eye: Annotated[
        str,
        typer.Option(metavar="EYE", help="The eye to make: right or left.", rich_help_panel=STEREO),
    ] = "right",
    memory: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Past frames that fill what the camera does not see now.",
            min=0,
            max=64,
            rich_help_panel=STEREO,
        ),
    ] = 6,
    depth: Annotated[
        str,
        typer.Option(
            metavar="DEPTH",
            help="auto: measured depth where there is some, else estimated; sensor: measured only; estimated: as if "
            "there were none; pointmaps: by point maps of all frames, which agree with each other.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    depth_model: DepthModel = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="What paints what no frame has seen: geometric (the background beside it), small (the bundled "
            "network), the folder of a training run, or svd:PATH,refiner:PATH (SpatialDreamer on Stable Video "
            "Diffusion and Stable Diffusion 2.1; no trained weights of it exist).",
            rich_help_panel=MODEL,
        ),
    ] = "geometric",
    device: Device = "cpu",
    fov: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Horizontal field of view of a camera without intrinsics.",
            show_default="by EXIF, else assumed",
            rich_help_panel=INPUT,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            metavar="WxH",
            help="Size of each eye, such as 640x480.",
            show_default="that of the source",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    source_map: Annotated[
        bool,
        typer.Option(
            "--source-map",
            help="Also write where each pixel of the made eye comes from: 255 seen, 128 remembered, 0 painted.",
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
    """Make a stereo pair or a stereo video of one camera's images.

    The camera's image is one eye, unchanged. The other one is warped from it by depth; what opens in it is filled from
    past frames that saw it, else from the background beside it, which a network repaints. An interrupted run resumes
    where it stopped.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from worldstereo_ros.cli.depth_warning import warn_of_depth
    from worldstereo_ros.cli.sources import parse_size
    from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
    from worldstereo_ros.pipelines.stereo.conversion import convert
    from worldstereo_ros.pipelines.stereo.frame_sources import open_source
    from worldstereo_ros.pipelines.stereo.painting import load_painter
    from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
    from worldstereo_ros.pipelines.stereo.settings import StereoSettings
    from worldstereo_ros.reconstruction.sources import is_bag
    from worldstereo_ros.utils.atomic_files import check_folder_writable

    if depth not in ("auto", "sensor", "estimated", "pointmaps"):
        raise InputError(f"--depth is '{depth}'; auto, sensor, estimated or pointmaps was expected.")
    if depth == "sensor" and depth_model:
        raise InputError("--depth sensor estimates nothing, and --depth-model is for what does. Remove one of them.")
    settings = StereoSettings(base=base, strength=strength, convergence=convergence, eye=eye.lower(), memory=memory)
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
    painter = load_painter(model, device)
    check_folder_writable(out)
    console = Console()
    with console.status("reading the source"):
        frames = open_source(
            source,
            fov_deg=fov,
            size=parse_size(size),
            measured_depth=depth in ("auto", "sensor"),
            bag_options=bag_options if from_bag else None,
            depth_unit=depth_unit,
        )
    if depth in ("auto", "sensor"):
        measured = ((frame.image, frame.depth, frame.world_from_camera) for frame in frames.read(0))
        warn_of_depth(console, measured, frames.camera, source.name, metric=frames.metric)
    estimator = load_depth_estimator(NONE if depth == "sensor" else depth_model, device)
    estimator_name, kept = depth_model or "small", ExitStack()
    if depth == "pointmaps":
        frames, estimator = _with_pointmaps(frames, estimator, device, console, kept)
        estimator_name = "point maps"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with kept, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("frames", total=frames.count)
        done = convert(
            frames,
            GeometricStereo(frames.camera, settings, painter=painter),
            out,
            layout=layout.lower(),
            estimator=estimator,
            estimator_name=estimator_name,
            source_map=source_map,
            on_frame=lambda count, total: progress.update(task, completed=count, total=total),
        )
    for line in describe(done):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _with_pointmaps(frames: Any, estimator: Any, device: str, console: Any, kept: ExitStack) -> tuple[Any, Any]:
    """The frames, and an estimator that has the depth of their point maps for as long as `kept` is open."""
    from worldstereo_ros.cli.pointmap_depth import stereo_depth
    from worldstereo_ros.pipelines.pointmaps.session import Session

    if frames.single:
        raise InputError("--depth pointmaps needs a video or a sequence; the source is one image. Use auto.")
    if estimator is None:
        raise InputError("--depth pointmaps needs a depth model; remove --depth-model none.")
    session = kept.enter_context(Session())
    with console.status("estimating point maps") as status:
        show = lambda done: status.update(f"estimating point maps: frame {done}")  # noqa: E731
        return stereo_depth(frames, session, estimator, device, show)


def describe(done: Conversion) -> list[str]:
    """Sentences about a conversion, for the console."""
    about = done.description
    lines = [f"Taken up at frame {done.resumed_at}."] if done.resumed_at else []
    shares = about["made_eye_pixels"]
    lines.append(
        f"{about['frames_read']} frames; of the made eye {shares['seen']:.1%} was seen, {shares['remembered']:.1%} "
        f"remembered from other frames, {shares['painted']:.1%} painted."
    )
    if estimated := about["depth"]["estimated_frames"]:
        lines.append(
            f"The depth of {estimated} frames is estimated ({about['depth']['model']}): how strong the effect is "
            "depends on it, and disparities are no measurements."
        )
    if about["cuts"]:
        lines.append(f"{about['cuts']} cuts between shots: nothing is remembered across them.")
    unit = "m" if about["unit"] == "metre" else "units of the depth"
    if unit != "m":
        lines.append(
            "The unit of the depth is arbitrary, not metres, and so is that of the base: choose --base by what you see."
        )
    converged = "" if about["convergence_m"] is None else f" at {about['convergence_m']:g} {unit}"
    lines.append(
        f"Base {about['base_m']:g} {unit}, strength {about['strength']:g}, {about['cameras']} eyes{converged}, "
        f"{about['made_eye']} eye made. Sound: {about['sound']}."
    )
    lines += about["notes"]
    lines += [f"Wrote {path}" for path in done.files]
    return lines
