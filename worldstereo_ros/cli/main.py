"""The `worldstereo` command. Each command imports what it needs, so that `--help` is quick and a missing part hurts
only the command that uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldstereo_ros.cli.errors import fail
from worldstereo_ros.cli.train import app as training
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

app = typer.Typer(
    help="A world model for robots: it remembers what was seen, imagines what was not, and says which is which.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(training, name="train")

Out = Annotated[Path, typer.Option(help="Folder for what is made.")]


@app.command()
def demo(
    out: Out = Path("demo_out"),
    sequence: Annotated[Path | None, typer.Option(help="A posed RGB-D sequence to play to the node.")] = None,
    bag: Annotated[Path | None, typer.Option(help="A rosbag (MCAP or SQLite) to play to the node.")] = None,
    scene: Annotated[str, typer.Option(help="Kind of procedural world: room, corridor, warehouse.")] = "room",
    seed: Annotated[int, typer.Option(help="Seed of the procedural world.")] = 0,
    views: Annotated[int, typer.Option(help="Views to imagine along the path.", min=2, max=200)] = 24,
    model: Annotated[
        str, typer.Option(help="What the node imagines with: geometric, small, or a checkpoint (folder or hub id).")
    ] = DEFAULT_MODEL,
) -> None:
    """Starts the node as a robot would find it, drives through a world, and leaves pictures, a cloud and a bag."""
    from worldstereo_ros.cli.demo import DemoError, run_demo

    try:
        run_demo(out, sequence=sequence, bag=bag, scene=scene, seed=seed, views=views, model=model)
    except (DemoError, ValueError, OSError) as error:
        raise fail(error) from None


@app.command()
def imagine(
    source: Annotated[Path | None, typer.Argument(help="Posed sequence, WorldStereo example folder or image.")] = None,
    bag: Annotated[Path | None, typer.Option(help="A rosbag (MCAP or SQLite) instead.")] = None,
    image_topic: Annotated[str, typer.Option(help="Colour images in the bag; empty: found by type.")] = "",
    depth_topic: Annotated[str, typer.Option(help="Depth images in the bag, registered to colour.")] = "",
    camera_info_topic: Annotated[str, typer.Option(help="Empty: beside the image topic.")] = "",
    pose_topic: Annotated[str, typer.Option(help="PoseStamped or Odometry of the camera; empty: TF.")] = "",
    world_frame: Annotated[str, typer.Option(help="World frame of TF in the bag; empty: its root.")] = "",
    path: Annotated[
        str, typer.Option(help="forward, orbit, left, right, up, turn, a poses.txt, or a topic.")
    ] = "forward",
    distance: Annotated[float, typer.Option(help="Length of a preset path in metres.")] = 1.0,
    views: Annotated[int, typer.Option(help="Views along the path.", min=1, max=1000)] = 21,
    observations: Annotated[int, typer.Option(help="Frames of the source that are given, evenly spaced.", min=1)] = 1,
    depth_model: Annotated[
        str, typer.Option(help="For sources without depth: small (ships, the default), a folder, a hub id, or none.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="A sentence about the place.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the imagination.")] = 0,
    model: Annotated[
        str, typer.Option(help="geometric, small, or a WorldStereo checkpoint: a folder or a hub id.")
    ] = DEFAULT_MODEL,
    variant: Annotated[str, typer.Option(help="Of a checkpoint: camera, memory, memory-dmd.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of a checkpoint: auto, float32, bfloat16, float16.")] = "auto",
    control_backend: Annotated[
        str, typer.Option(help="Runs a checkpoint's control branch: torch, onnxruntime, tensorrt.")
    ] = "torch",
    out: Out = Path("imagine_out"),
) -> None:
    """Imagines views along a path, from a recording, without ROS."""
    from worldstereo_ros.cli.imagine import ImagineRequest, run_imagine

    request = ImagineRequest(
        source=source,
        bag=bag,
        image_topic=image_topic,
        depth_topic=depth_topic,
        camera_info_topic=camera_info_topic,
        pose_topic=pose_topic,
        world_frame=world_frame,
        path=path,
        distance=distance,
        views=views,
        observations=observations,
        depth_model=depth_model,
        prompt=prompt,
        seed=seed,
        model=model,
        variant=variant,
        device=device,
        dtype=dtype,
        control_backend=control_backend,
    )
    try:
        run_imagine(request, out)
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command()
def panorama(
    source: Annotated[Path, typer.Argument(help="An equirectangular picture of the full sphere.")],
    at: Annotated[
        tuple[float, float, float],
        typer.Option(help="Where to stand: metres to the right, down and ahead of where the picture was taken."),
    ] = (0.0, 0.0, 1.0),
    distance: Annotated[
        Path | None, typer.Option(help="Distances along the ray: a 16-bit PNG (mm) or .npy (m); else estimated.")
    ] = None,
    depth_model: Annotated[str, typer.Option(help="Estimates distances; empty: the network that ships.")] = "",
    height: Annotated[int, typer.Option(help="Rows of the imagined panorama.", min=64, max=4096)] = 512,
    prompt: Annotated[str, typer.Option(help="A sentence about the place.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the imagination.")] = 0,
    model: Annotated[
        str, typer.Option(help="geometric, small, or a checkpoint: a folder or a hub id.")
    ] = DEFAULT_MODEL,
    variant: Annotated[str, typer.Option(help="Of a checkpoint: camera, memory, memory-dmd.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Out = Path("panorama_out"),
) -> None:
    """Imagines what is seen all round from another place than the one a panorama was taken at."""
    from worldstereo_ros.cli.panorama import PanoramaRequest, run_panorama

    request = PanoramaRequest(
        source=source,
        at=at,
        distance=distance,
        depth_model=depth_model,
        height=height,
        prompt=prompt,
        seed=seed,
        model=model,
        variant=variant,
        device=device,
    )
    try:
        run_panorama(request, out)
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command()
def evaluate(
    data: Annotated[
        list[str], typer.Option(help="A posed sequence, a folder of them, or worlds:test:8. May be repeated.")
    ],
    protocol: Annotated[
        list[str] | None, typer.Option(help="single, sparse, mono, revisit, loop, panorama, cloud. May be repeated.")
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="geometric, small, a checkpoint (folder or hub id), open3d+telea. May be repeated."),
    ] = None,
    depth: Annotated[
        bool, typer.Option("--depth", help="Measure depth alone: of single pictures, or of what --pipeline imagines.")
    ] = False,
    stages: Annotated[
        Path | None, typer.Option(help="A training run's folder: all pipelines of the table of docs/small_model.md.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here too, each as soon as it is there.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet (PNG or JPEG) here.")] = None,
    reliability: Annotated[
        Path | None, typer.Option(help="Draw predicted against actual error (PNG), or write the figures (JSON).")
    ] = None,
    every: Annotated[int, typer.Option(help="Ask every n-th of the frames that are not given.", min=1)] = 1,
    depth_model: Annotated[
        str, typer.Option(help="For mono and --depth: small (ships, the default), a folder, a hub id, or none.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measures pipelines on real sequences, with the baseline beside them in the same table."""
    try:
        if depth:
            if protocol or stages:
                raise InputError("--depth measures depth alone; leave --protocol and --stages out.")
            from worldstereo_ros.evaluation.depth import run as measure_depth

            measure_depth(
                data,
                depth_model=depth_model,
                every=every,
                json_file=json,
                sheet=sheet,
                pipelines=pipeline or (),
                device=device,
            )
            return
        from worldstereo_ros.evaluation import run

        run(
            data,
            protocol or ["single", "sparse"],
            pipeline or ([] if stages else ["geometric"]),
            stages=stages,
            json_file=json,
            sheet=sheet,
            reliability=reliability,
            every=every,
            depth_model=depth_model,
            device=device,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A saved map, or a model: small, a folder or a hub id.")],
    target: Annotated[Path, typer.Argument(help="A .ply or .pcd file of a map, an .onnx file of a model.")],
    part: Annotated[
        str, typer.Option(help="Of a model: control, autoencoder-encoder or autoencoder-decoder.")
    ] = "control",
    variant: Annotated[str, typer.Option(help="Of a model with several; empty: the fewest steps.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 18 to 23.")] = 20,
    attention: Annotated[
        str, typer.Option(help="fused (onnxruntime's operator) or standard (any runtime, TensorRT).")
    ] = "fused",
    offsets: Annotated[bool, typer.Option(help="Put the projections to the backbone's width inside.")] = False,
) -> None:
    """Writes the cloud of a saved map as PLY or PCD, or a part of a model as ONNX, and checks it."""
    try:
        if target.suffix.lower() == ".onnx":
            from worldstereo_ros.cli.export import export_model

            export_model(
                source,
                target,
                part=part,
                variant=variant or None,
                dtype=dtype,
                opset=opset,
                attention=attention,
                offsets=offsets,
            )
            return
        if Path(source).is_dir():
            raise InputError(f"{source} is a model's folder and {target} no .onnx file; name one that ends in .onnx.")
        from worldstereo_ros.io.point_clouds import write_point_cloud
        from worldstereo_ros.memory.archive import load_archive

        cloud = load_archive(Path(source)).cloud
        write_point_cloud(cloud, target)
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None
    typer.echo(f"{len(cloud)} points written to {target}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="small, or folder or hub id of a WorldStereo checkpoint.")],
    variant: Annotated[str, typer.Option(help="camera, memory, memory-dmd; empty: all that a folder has.")] = "",
) -> None:
    """Says what a checkpoint is, what memory it takes and what is wrong with it; reads headers only."""
    from worldstereo_ros.models import inspect_checkpoint, list_variants
    from worldstereo_ros.pipelines.auto import split_variant

    usable = True
    try:
        model, variant = split_variant(model, variant)
        for number, name in enumerate([variant] if variant else list_variants(model) or [None]):
            report = inspect_checkpoint(model, name)
            typer.echo(("\n" if number else "") + str(report))
            usable = usable and report.usable
    except (ValueError, OSError) as error:
        raise fail(error) from None
    raise typer.Exit(0 if usable else 1)


@app.command()
def view(
    path: Annotated[Path, typer.Argument(help="A saved map, a demo_out folder, a .ply or .pcd, or a posed sequence.")],
    port: Annotated[int, typer.Option(help="Port of the page, on this machine only.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Shows cloud, cameras, path and views in the browser."""
    from worldstereo_ros.visualization.viewer.app import serve

    try:
        serve(path, host=host, port=port)
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command()
def doctor() -> None:
    """Says what is installed, what is missing, and the one thing to do."""
    from worldstereo_ros.cli.doctor import print_report

    raise typer.Exit(0 if print_report() else 1)


def main() -> None:
    """Entry point of the `worldstereo` command."""
    from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count, run_worker, stop_workers

    if is_worker():  # of several processes only the first is the command
        run_worker()
        return
    try:
        app()
    finally:
        if process_count() > 1:
            stop_workers()
