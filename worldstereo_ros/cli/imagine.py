"""`worldstereo imagine`: views along a path from a recording, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, NONE, SMALL, choose_depth
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.trajectories import TRAJECTORIES, trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.results import MAP_FILE, write_results
from worldstereo_ros.weights.bundled import DEFAULT_MODEL
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class ImagineRequest:
    """What `worldstereo imagine` was asked; the options of the command line say what each field means."""

    source: Path | None = None
    bag: Path | None = None
    image_topic: str = ""
    depth_topic: str = ""
    camera_info_topic: str = ""
    pose_topic: str = ""
    world_frame: str = ""
    path: str = "forward"
    distance: float = 1.0
    views: int = 21
    observations: int = 1
    depth_model: str = ""
    prompt: str = ""
    seed: int = 0
    model: str = DEFAULT_MODEL
    variant: str = ""
    device: str = "cpu"
    dtype: str = "auto"
    control_backend: str = "torch"


@dataclass(frozen=True)
class _Source:
    """What was recorded: the views given, the paths that come with the recording, and its words."""

    name: str
    given: list[View]
    path_named: Callable[[str], np.ndarray | None]
    prompt: str


def run_imagine(request: ImagineRequest, out: Path) -> list[ImaginedView]:
    """Remembers the source's views, imagines along the path, and leaves pictures, the cloud and the map in `out`.

    Raises:
        ValueError: source, path, model or device cannot be used; the sentence says which and why.
        RuntimeError: the model failed.
    """
    console = Console()
    if (request.source is None) == (request.bag is None):
        raise InputError("Name one source: a folder or image, or a recording with --bag.")
    source = _from_bag(request, request.bag) if request.bag is not None else _from_sequence(request, request.source)
    estimator = None
    if request.depth_model != NONE and any(view.depth is None or not view.depth.any() for view in source.given):
        estimator = choose_depth(request.depth_model or SMALL, request.device)
        console.print(f"Depth, which the source lacks, comes from {request.depth_model or BUNDLED_NETWORK}.")
    pipeline = load_pipeline(
        request.model,
        request.device,
        variant=request.variant,
        dtype=request.dtype,
        control_backend=request.control_backend,
    )
    world = WorldModel(pipeline, depth_estimator=estimator, device=request.device)
    path = _path(request, source)
    for view in track(source.given, description="remembering", console=console, disable=len(source.given) < 4):
        world.observe(view)
    console.print(f"[bold]{source.name}[/]: {len(source.given)} views given, {len(world.cloud)} points remembered")
    imagined = list(
        track(
            world.imagine(
                path,
                source.given[-1].camera,
                prompt=request.prompt or source.prompt,
                seed=request.seed,
                remember=True,
            ),
            description="imagining",
            total=len(path),
            console=console,
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    world.save(out / MAP_FILE)
    subtitle = f"{source.name}, {len(source.given)} views given, path: {request.path}"
    write_results(out, imagined, source.given, world.cloud, title="worldstereo imagine", subtitle=subtitle)
    console.print(f"Look at [bold]{out / 'contact_sheet.png'}[/]; in the browser: worldstereo view {out}")
    return imagined


def _evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers 0 .. count - 1, evenly spaced; the first alone where one is wanted."""
    if wanted == 1:
        return [0]
    return sorted({int(i) for i in np.linspace(0, count - 1, min(wanted, count)).round()})


def _from_sequence(request: ImagineRequest, folder: Path | None) -> _Source:
    assert folder is not None
    sequence = open_sequence(folder)
    if not sequence.posed and len(sequence) > 1:
        raise InputError(f"{folder} has {len(sequence)} frames and no poses; name one of its pictures instead.")
    given = [sequence[i] for i in _evenly(len(sequence), request.observations)]
    if any(view.depth is None for view in given) and request.depth_model == NONE:
        raise InputError(
            f"{folder} has no depth, which the cloud memory needs, and --depth-model none forbids guessing it. Leave "
            "the option out, or name a folder or a hub id of a transformers depth-estimation model."
        )

    def path_named(name: str) -> np.ndarray | None:
        if name in sequence.trajectories:
            return sequence.trajectories[name].world_from_camera
        return None

    return _Source(folder.name, given, path_named, sequence.prompt)


def _from_bag(request: ImagineRequest, bag: Path) -> _Source:
    from worldstereo_ros.io.bags.views import read_path, read_views

    views = list(
        read_views(
            bag,
            image_topic=request.image_topic,
            depth_topic=request.depth_topic,
            camera_info_topic=request.camera_info_topic,
            pose_topic=request.pose_topic,
            world_frame=request.world_frame,
            wanted=request.observations,
        )
    )
    if not views:
        raise InputError(f"{bag} has no picture whose pose is known; see docs/data.md for what a recording needs.")

    def path_named(name: str) -> np.ndarray | None:
        return read_path(bag, name) if name.startswith("/") else None

    return _Source(bag.name, views, path_named, "")


def _path(request: ImagineRequest, source: _Source) -> np.ndarray:
    """(F, 4, 4) the poses to imagine: one that came with the source, a file of poses, or a preset."""
    poses = source.path_named(request.path)
    if poses is None and request.path in TRAJECTORIES:
        start = source.given[-1].world_from_camera
        return trajectory(request.path, start, request.views, distance=request.distance)
    file = Path(request.path)
    if poses is None and file.is_dir():
        poses = open_posed(file).poses
    if poses is None:
        raise InputError(
            f"The path '{request.path}' is none of {', '.join(TRAJECTORIES)}, no path that comes with the source, and "
            "no folder with poses.txt."
        )
    return interpolate_poses(poses, request.views)
