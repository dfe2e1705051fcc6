"""`worldstereo demo`: the node in a process of its own, a robot that shows it a place, and pictures of what came of it.

Everything goes over the real middleware. Left in the folder: imagined.mp4, contact_sheet.png, cloud.ply, cloud.png,
world.wsmap (both memories), bag/ (MCAP of all that was published), imagined/ and given/ (posed sequences),
figures.json and node.log.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worldstereo_ros.evaluation.demo_scenarios import DemoScenario, bag_scenario, scene_scenario, sequence_scenario
from worldstereo_ros.evaluation.metrics import psnr, ssim
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.pipelines.auto import NAMES, load_pipeline
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.resources import find_resource
from worldstereo_ros.visualization.results import MAP_FILE, write_results
from worldstereo_ros.weights.bundled import BUNDLED, DEFAULT_MODEL, bundled_folder
from worldstereo_ros.world import WorldModel

NODE_NAME = "/worldstereo"
SEEN_FILE = "seen.wsmap"  # what the node remembers before it imagines; removed at the end
READY_WITHIN = 60.0, 900.0  # seconds for the pipelines of the package, for other checkpoints


class DemoError(WorldStereoError, RuntimeError):
    """The demo could not be run; the message says why and what to do."""


def run_demo(
    out: Path,
    *,
    sequence: Path | None = None,
    bag: Path | None = None,
    scene: str = "room",
    seed: int = 0,
    views: int = 24,
    model: str = DEFAULT_MODEL,
) -> dict[str, Any]:
    """Runs the whole story and leaves its pictures in `out`.

    Args:
        out: folder; what an earlier demo left there is replaced.
        sequence: a posed RGB-D sequence to play instead of a procedural world.
        bag: a rosbag to play instead.
        scene, seed: kind and number of the procedural world.
        views: how many views are asked for.
        model: pipeline of the node. The others that the package has imagine the same path beside it, without the node.

    Returns:
        The figures, as in figures.json.

    Raises:
        DemoError: ROS is missing, or the node did not do its part.
        ValueError: the sequence or the bag cannot be used.
    """
    try:
        from worldstereo_ros.ros.client.client import NodeSilentError, WorldStereoClient
        from worldstereo_ros.ros.client.recorder import Recorder
    except ImportError as error:
        raise DemoError(
            f"The demo talks to the real node and ROS 2 is not there ({error}). Run `make setup`."
        ) from error

    console = Console()
    begin = time.monotonic()
    with console.status("making the story ..."):
        if sequence is not None:
            scenario = sequence_scenario(sequence, views)
        elif bag is not None:
            scenario = bag_scenario(bag, views)
        else:
            scenario = scene_scenario(scene, seed, views)
    console.print(f"[bold]{scenario.title}[/]")
    out = _prepared(out)
    try:
        with _node(out, model) as process, WorldStereoClient(NODE_NAME) as client, Recorder(client, out / "bag"):
            _wait_until_ready(client, model, out / "node.log")
            ready = time.monotonic() - begin
            _show(client, scenario, process)
            _save(client, SEEN_FILE)
            result = _ask(client, scenario)
            if result.error_code:
                raise DemoError(f"The node ended the path with code {result.error_code}: {result.error_msg}")
            if len(result.views) != len(scenario.path):
                raise DemoError(f"{len(scenario.path)} views were asked for and {len(result.views)} arrived.")
            _save(client, MAP_FILE)
    except NodeSilentError as error:
        raise DemoError(f"{error} Its log is {out / 'node.log'}.") from error
    beside, figures_beside = {}, {}
    for name in _others(model):
        try:
            with console.status(f"{name} imagines the same path ..."):
                beside[name], seconds = _imagine_beside(name, out / SEEN_FILE, result.views)
        except (ValueError, RuntimeError) as error:
            raise DemoError(f"{name} could not imagine the path beside the node: {error}") from error
        figures_beside[name] = _figures(scenario, beside[name]) | {"seconds_per_view": round(seconds, 3)}
    (out / SEEN_FILE).unlink()
    with console.status("drawing ..."):
        cloud = load_archive(out / MAP_FILE).cloud
        figures = {"scenario": scenario.title, "model": model, **_figures(scenario, result.views)} | {
            "points": len(cloud),
            "seconds_to_first_view": round(result.seconds_to_first, 3),
            "seconds_per_view": round(result.seconds / len(result.views), 3),
            "seconds_until_ready": round(ready, 1),
            "beside": figures_beside,
        }
        write_results(
            out,
            result.views,
            scenario.observed_views,
            cloud,
            scenario.truth,
            title="worldstereo_ros: given, remembered, imagined",
            subtitle=scenario.title,
            name=model if Path(model).name in beside else Path(model).name,
            beside=beside,
        )
    figures["seconds_in_all"] = round(time.monotonic() - begin, 1)
    (out / "figures.json").write_text(json.dumps(figures, indent=1))
    _print(console, figures, out)
    return figures


def _prepared(out: Path) -> Path:
    """The folder, made if missing, without what an earlier demo left in it (nothing else is touched)."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("bag", "imagined", "given"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (MAP_FILE, SEEN_FILE, "figures.json", "node.log"):
        (out / name).unlink(missing_ok=True)
    return out


@contextmanager
def _node(out: Path, model: str) -> Iterator[subprocess.Popen[bytes]]:
    """The node as a process of its own, with its log in a file; ended when the block is left, whatever happened."""
    command = [sys.executable, "-m", "worldstereo_ros.ros.node", "--ros-args", "-r", f"__node:={NODE_NAME[1:]}"]
    for name, value in {"map_directory": out, "model": model, "camera_frame": "camera_optical_frame"}.items():
        command += ["-p", f"{name}:={value}"]
    _set_up_middleware()
    with (out / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _set_up_middleware() -> None:
    """For this process and the node: what the user set stays, what is not set is set for one machine."""
    # Other machines on the network have no business in a demo, unless the user says so.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # Room for whole images in shared memory; without it they go as fragments over UDP, where a busy machine loses them.
    profiles = find_resource("config/fastdds.xml")
    if profiles is not None:
        os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profiles))


def _wait_until_ready(client: Any, model: str, log: Path) -> None:
    """Until the node is active; a node that could not be configured is not waited for.

    Raises:
        DemoError: the node says why it cannot run.
        NodeSilentError: it was not active in time.
    """
    from worldstereo_ros.ros.client.client import NodeSilentError

    deadline = time.monotonic() + READY_WITHIN[model not in NAMES]
    while True:
        try:
            return client.wait_until_ready(2.0)
        except NodeSilentError:
            said = re.search(r"Not configured\. (.*)", log.read_text(errors="replace"))
            if said:
                raise DemoError(f"The node could not be configured. {said[1]}") from None
            if time.monotonic() > deadline:
                raise


def _save(client: Any, name: str) -> None:
    saved, message = client.save_map(name)
    if not saved:
        raise DemoError(f"The node did not save its map: {message}")


def _others(model: str) -> list[str]:
    """The pipelines of this installation beside the one that the node runs."""
    there = [name for name in NAMES if name not in BUNDLED or bundled_folder(name).is_dir()]
    return [name for name in there if name != model]


def _imagine_beside(name: str, seen: Path, views: Sequence[ImaginedView]) -> tuple[list[ImaginedView], float]:
    """What another pipeline makes of the same memory and the same path, and its seconds for a view."""
    from worldstereo_ros.ros.node.world_factory import effective_device

    device = effective_device("auto")
    world = WorldModel(load_pipeline(name, device), device=device)
    world.load(seen)
    begin = time.monotonic()
    path = np.stack([view.world_from_camera for view in views])
    imagined = list(world.imagine(path, views[0].camera, remember=True))
    return imagined, (time.monotonic() - begin) / len(imagined)


def _bar() -> Progress:
    columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))


def _show(client: Any, scenario: DemoScenario, process: subprocess.Popen[bytes]) -> None:
    """Shows every given view to the node, each once the one before is remembered."""
    with _bar() as bar:
        task = bar.add_task("the robot looks around", total=len(scenario.observed_views), note="")
        for view in scenario.observed_views:
            if process.poll() is not None:
                raise DemoError("The node ended by itself; its log says why (node.log).")
            client.add_observation(view)
            bar.advance(task)


def _ask(client: Any, scenario: DemoScenario) -> Any:
    """Sends the path and shows the feedback."""
    with _bar() as bar:
        task = bar.add_task("the node imagines", total=len(scenario.path), note="")

        def on_feedback(feedback: Any) -> None:
            left = f"{feedback.seconds_left:.0f} s left" if feedback.seconds_left >= 0 else ""
            bar.update(task, completed=feedback.views_done, note=f"{feedback.stage} {left}")

        result = client.imagine(scenario.path, on_feedback=on_feedback, remember=True)
        bar.update(task, completed=len(result.views), note="")
    return result


def _figures(scenario: DemoScenario, views: Sequence[ImaginedView]) -> dict[str, Any]:
    """Quality against the truth, whole and by what is said of each pixel; None where nobody knows the truth."""
    figures: dict[str, Any] = {
        "views": len(views),
        "observed_fraction": round(float(np.mean([view.observed_fraction for view in views])), 4),
        "psnr": None,
        "ssim": None,
        "psnr_observed": None,
        "psnr_imagined": None,
    }
    if scenario.truth is None:
        return figures
    rows: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_observed": [], "psnr_imagined": []}
    for view, truth in zip(views, scenario.truth, strict=True):
        rows["ssim"].append(ssim(view.image, truth))
        observed = view.observed_mask
        masks = {"psnr": np.ones_like(observed), "psnr_observed": observed, "psnr_imagined": ~observed}
        for name, mask in masks.items():
            value = psnr(view.image, truth, mask)
            if value is not None and mask.mean() > 0.005:  # a handful of pixels says nothing
                rows[name].append(value)
    return figures | {name: round(float(np.mean(values)), 3) for name, values in rows.items() if values}


def _print(console: Console, figures: dict[str, Any], out: Path) -> None:
    columns = {figures["model"]: figures, **figures["beside"]}
    table = Table("", *columns, box=None, show_header=len(columns) > 1, pad_edge=False)
    words = {
        "views": "views imagined",
        "observed_fraction": "of their pixels observed",
        "psnr": "PSNR, whole frame (dB)",
        "ssim": "SSIM",
        "psnr_observed": "PSNR where it says observed (dB)",
        "psnr_imagined": "PSNR where it says imagined (dB)",
        "points": "points in the cloud",
        "seconds_to_first_view": "seconds to the first view",
        "seconds_per_view": "seconds per view",
        "seconds_in_all": "seconds in all",
    }
    for name, text in words.items():
        if figures.get(name) is not None:
            table.add_row(text, *(str(column.get(name, "")) for column in columns.values()))
    console.print(table)
    console.print(f"\nLook at [bold]{out / 'contact_sheet.png'}[/], imagined.mp4 and cloud.png beside it.")
    console.print(f"In the browser: [bold]worldstereo view {out}[/]")
