"""`worldstereo reconstruct`: from photographs to a place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, OUTPUT, DepthModel, Device
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
    from rich.progress import Progress

    from worldstereo_ros.reconstruction.place import Place

MAX_LISTED = 8  # photographs that were left out, in the console; figures.json has all
MAX_FULL_PIXELS = 1600 * 1600  # working copies are no larger
MIN_FOV_DEG, MAX_FOV_DEG = 5.0, 150.0


def reconstruct(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOGRAPHS",
            help="Folder of photographs, video, bag, saved map, COLMAP model, transforms.json, or posed sequence.",
        ),
    ],
    photographs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Largest number of photographs that are used, spread over the source.",
            min=2,
            max=5000,
            show_default="300; of a video or bag 100",
            rich_help_panel=INPUT,
        ),
    ] = None,
    further: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="PATH",
            help="Further photographs without poses, a file or a folder, registered to the others. Repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    ignore_poses: Annotated[
        bool,
        typer.Option("--ignore-poses", help="Estimate the poses also if some come along.", rich_help_panel=INPUT),
    ] = False,
    pose_source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Poses: photographs (by what they show), pointmaps (of a video, sequence or bag, in its order), or "
            "auto (those that come along, else photographs, else pointmaps where these fail).",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    depth_source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Where neither a sensor nor other photographs tell depth: pointmaps, or auto (pointmaps where the "
            "poses are from there, else --depth-model).",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    fov: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Horizontal field of view of photographs without intrinsics.",
            show_default="by EXIF, else estimated",
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
    geometry: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Depth: sweep (plane sweep), fast (SGBM, six times faster and less complete), or a network with your "
            "own weights on a GPU: pi3:FILE or vggt:FILE.",
            rich_help_panel=MODEL,
        ),
    ] = "sweep",
    depth_model: DepthModel = "",
    device: Device = "cpu",
    size: Annotated[
        str,
        typer.Option(
            metavar="WxH",
            help="Size of the depth images, such as 640x480; full: that of the photographs, up to 1600 pixels.",
            show_default="130,000 pixels, such as 270x480",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    mesh: Annotated[bool, typer.Option("--mesh/--no-mesh", help="Make a mesh.", rich_help_panel=OUTPUT)] = True,
    splats: Annotated[
        bool, typer.Option("--splats/--no-splats", help="Make Gaussian splats.", rich_help_panel=OUTPUT)
    ] = True,
    splat_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long splats are fitted to the photographs; 0: as they follow from the cloud.",
            min=0,
            rich_help_panel=OUTPUT,
        ),
    ] = 240.0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.", rich_help_panel=OUTPUT)] = Path("place"),
) -> None:
    """Reconstruct a place from photographs: poses, depth, point cloud, mesh and Gaussian splats.

    The output folder holds world.wsmap (the memories), cloud.ply, mesh.glb, splats.ply, colmap/ (poses and intrinsics),
    observed/ (the photographs with depth, a posed sequence), and figures.json, which says which photographs were left
    out and why. A run that was interrupted resumes where it stopped: what it computed is in stages/.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from worldstereo_ros.cli.pointmap_photographs import photographs_by_pointmaps
    from worldstereo_ros.cli.sources import FULL_SIZE, parse_size
    from worldstereo_ros.geometry.depth_units import parse_depth_unit
    from worldstereo_ros.io.files import VIDEO_SUFFIXES
    from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS
    from worldstereo_ros.reconstruction.features import RegistrationError
    from worldstereo_ros.reconstruction.place import PlaceSettings
    from worldstereo_ros.reconstruction.place import reconstruct as run
    from worldstereo_ros.reconstruction.sources import is_bag

    console = Console()
    if fov is not None and not MIN_FOV_DEG <= fov <= MAX_FOV_DEG:
        raise InputError(f"The field of view is {fov:g} degrees; {MIN_FOV_DEG:g} to {MAX_FOV_DEG:g} were expected.")
    bag_options = {
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
    if not is_bag(source):
        check_no_bag_options(bag_options, named=False)
        parse_depth_unit(depth_unit)
    if pose_source not in ("auto", "photographs", "pointmaps"):
        raise InputError(f"--pose-source is '{pose_source}'; auto, photographs or pointmaps was expected.")
    if depth_source not in ("auto", "pointmaps"):
        raise InputError(f"--depth-source is '{depth_source}'; auto or pointmaps was expected.")
    if ignore_poses and pose_source == "auto" and depth_source == "pointmaps":
        raise InputError("--ignore-poses takes poses by the photographs; with point maps use --pose-source pointmaps.")
    if depth_model == "none" and "pointmaps" in (pose_source, depth_source):
        raise InputError("Point maps need a depth model; remove --depth-model none.")
    if pose_source == "photographs" and depth_source == "pointmaps":
        raise InputError("Depth of point maps fits their own poses or those that come along, not those of photographs.")
    settings = PlaceSettings(
        max_photographs=photographs,
        use_poses=not ignore_poses and pose_source != "photographs",
        fov=None if fov is None else math.radians(fov),
        size=parse_size(size),
        geometry=geometry,
        depth_model=depth_model,
        device=device,
        mesh=mesh,
        splats=splats,
        splat_seconds=splat_seconds,
        bag_options=bag_options,
        photographs=tuple(str(path) for path in further or ()),
        max_pixels=MAX_FULL_PIXELS if size.lower() == FULL_SIZE else DEFAULT_PIXELS,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        report = _reporter(progress)

        def by_pointmaps() -> Place:
            given = photographs_by_pointmaps(
                source, pose_source=pose_source, depth_source=depth_source, count=photographs, fov=fov,
                depth_model=depth_model, device=device, bag_options=bag_options if is_bag(source) else None,
                depth_unit=depth_unit,
                on_frame=lambda done: report("point maps", "frames", done, 0),
            )  # fmt: skip
            return run(source, out, settings, report, given=given)

        if "pointmaps" in (pose_source, depth_source):
            place = by_pointmaps()
        else:
            try:
                place = run(source, out, settings, report)
            except RegistrationError as error:
                if pose_source != "auto" or not (is_bag(source) or source.suffix.lower() in VIDEO_SUFFIXES):
                    raise
                console.print(f"{escape(str(error))} Poses are estimated by point maps.", highlight=False)
                place = by_pointmaps()
    for line in describe(place):
        console.print(escape(line), highlight=False)
    name = escape(quote(str(out)))
    console.print(f"In the browser: worldstereo view {name}")
    console.print(f"Views between the photographs: worldstereo imagine --map {name} --path between")


def _reporter(progress: Progress) -> Callable[[str, str, int, int], None]:
    """A callback that shows one bar for each stage."""
    tasks: dict[str, Any] = {}

    def report(stage: str, what: str, done: int, of: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=None)
        progress.update(tasks[stage], description=f"{stage}: {what}", completed=done, total=of or None)

    return report


def describe(place: Place) -> list[str]:
    """Sentences about a place, for the console."""
    figures, model = place.figures, place.registration.model
    lines = [f"{figures['registered']} of {figures['images']} photographs are registered."]
    listed = list(place.left_out.items())
    lines += [f"  left out: {name}: {reason}" for name, reason in listed[:MAX_LISTED]]
    if len(listed) > MAX_LISTED:
        lines.append(f"  and {len(listed) - MAX_LISTED} more; figures.json lists them.")
    lines += place.notes
    if not model.metric:
        lines.append("The unit is arbitrary: nothing metric is known, so lengths are not in metres (metric: false).")
    observed, estimated = figures["observed_pixels"], figures["estimated_pixels"]
    lines.append(
        f"{figures['points']:,} points ({figures['observed_points']:,} observed, {figures['estimated_points']:,} "
        f"estimated); {observed:.0%} of the pixels are measured or confirmed by other photographs, {estimated:.0%} "
        "estimated."
    )
    made = [f"{figures['mesh_triangles']:,} triangles"] if figures["mesh_triangles"] else []
    made += [f"{figures['splats']:,} splats"] if figures["splats"] else []
    if made:
        lines.append(f"{' and '.join(made)}.")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in figures["seconds"].items())
    earlier = f" Of an earlier run: {', '.join(figures['resumed'])}." if figures["resumed"] else ""
    lines.append(f"Seconds: {seconds}.{earlier}")
    return lines
