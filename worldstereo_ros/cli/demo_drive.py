"""`worldstereo demo --drive`: a robot drives by what the node answers, and slows down before an unseen corner."""

from __future__ import annotations

import json
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from worldstereo_ros.cli.demo_node import NODE_NAME, DemoError, check_ros, run_node, wait_until_ready
from worldstereo_ros.utils.atomic_files import write_text

if TYPE_CHECKING:
    from rich.console import Console

    from worldstereo_ros.visualization.drive_recording import DriveRecording

FILM, FIGURES, PICTURE = "drive.mp4", "drive.json", "drive.png"
DRIVE_NAMES = (FILM, FIGURES, PICTURE, "node.log")


def run_drive(out: Path, *, seed: int = 0, model: str, film: bool = True) -> dict[str, Any]:
    """Drives a robot through a corridor with a corner over the real middleware, and writes a film and figures.

    Args:
        out: output folder, see `io.results_folder.ResultsFolder`.
        seed: random seed of the world.
        model: pipeline of the node.
        film: write the film and the picture of it, too.

    Returns:
        The figures, as in drive.json.

    Raises:
        DemoError: ROS 2 or message packages are missing, the node failed, or the robot did not arrive.
        InputError: a file that no run wrote is in the way.
        WriteError: the results cannot be written.
    """
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros.io.results_folder import ResultsFolder

    check_ros("map_msgs", "nav2_msgs")
    console, begin = Console(), time.monotonic()
    results = ResultsFolder(out.absolute(), DRIVE_NAMES)
    with results:
        recording, figures = _drive(results.path, seed, model, console, begin)
        if film:
            _write_film(results.path, recording, figures, console)
        figures["seconds_in_all"] = round(time.monotonic() - begin, 1)
        write_text(results.path / FIGURES, json.dumps(figures, indent=1) + "\n")
    for line in describe(figures):
        console.print(line)
    if film:
        console.print(f"\nSee [bold]{escape(quote(str(out / FILM)))}[/], and {PICTURE} and {FIGURES} beside it.")
    return figures


def _drive(out: Path, seed: int, model: str, console: Console, begin: float) -> tuple[DriveRecording, dict[str, Any]]:
    from rich.markup import escape

    from worldstereo_ros.evaluation.drive_figures import compute_drive_figures
    from worldstereo_ros.ros.client.client import NodeTimeoutError, WorldStereoClient
    from worldstereo_ros.ros.client.drive import BASE_FROM_CAMERA, NODE_PARAMETERS, DriveError, DrivingRobot
    from worldstereo_ros.scenes import seed_of
    from worldstereo_ros.scenes.kinds.corner import corner_world

    title = f"a procedural corridor, seed {seed}"
    console.print(f"[bold]{escape(title)}[/]")
    try:
        with (
            run_node(out, {"model": model, **NODE_PARAMETERS}) as process,
            WorldStereoClient(NODE_NAME, publish_tf=True, base_from_camera=BASE_FROM_CAMERA) as client,
            console.status("starting the node ...") as status,
        ):

            def check() -> None:
                if process.poll() is not None:
                    raise DemoError("The node ended unexpectedly; node.log says why.")

            world = corner_world(seed_of("demo", seed))
            robot = DrivingRobot(
                client,
                world,
                title,
                on_progress=lambda travel, text: status.update(f"driving: {travel:.1f} m, {text}"),
                check=check,
            )
            wait_until_ready(client, model, out / "node.log")
            startup = time.monotonic() - begin
            status.update("looking around ...")
            robot.look_around()
            robot.drive()
    except (NodeTimeoutError, DriveError) as error:
        raise DemoError(f"{error} The node's log is {out / 'node.log'}.") from error
    figures = {"scenario": title, "model": model, **compute_drive_figures(robot.recording, world)}
    return robot.recording, figures | {"seconds_until_ready": round(startup, 1)}


def _write_film(out: Path, recording: DriveRecording, figures: dict[str, Any], console: Console) -> None:
    from worldstereo_ros.io.images import write_image
    from worldstereo_ros.io.video import write_video
    from worldstereo_ros.visualization.drive_film import FPS, DriveFilm

    with console.status("drawing the film ..."):
        film = DriveFilm(recording, describe(figures))
        write_video(out / FILM, film, FPS)
        slow = [index for index, sample in enumerate(recording.samples) if sample.limit < 1]
        write_image(out / PICTURE, film[slow[len(slow) // 6] if slow else len(recording.samples) // 2])


def describe(figures: dict[str, Any]) -> list[str]:
    """What happened, in sentences."""
    lines = [
        f"{figures['travel_m']:.1f} m in {figures['seconds']:.0f} s of the robot's time: "
        f"{figures['top_speed_before_corner']:.2f} m/s before the corner, {figures['speed_at_corner']:.2f} m/s at it."
    ]
    for slow in figures["slow"]:
        where = f", {slow['before_corner_m']:.1f} m before the corner" if slow["before_corner_m"] is not None else ""
        lines.append(
            f"Slow from {slow['from_s']:.1f} s to {slow['until_s']:.1f} s{where}: ~/speed_mask allowed "
            f"{slow['limit']:.0%} of the full speed."
        )
    if not figures["slow"]:
        lines.append("~/speed_mask never limited the speed.")
    if (seen := figures["obstacle_seen"]) is not None:
        lines.append(
            f"What stands behind the corner was seen at {seen['seconds']:.1f} s, {seen['distance_m']:.1f} m away, at "
            f"{seen['speed']:.2f} m/s."
        )
    taken = " -> ".join(path["taken"] for path in figures["paths"])
    lines.append(
        f"Paths: {taken}. Closest to anything: {figures['closest_m']:.2f} m; {figures['collisions']} collisions."
    )
    return lines
