"""The node's parameters: one table, `NodeParameters`, from which all else is made.

Its fields are the declaration in ROS, the ranges, the checks, `config/worldstereo.yaml` and the table in the
documentation. Nothing here imports rclpy: `declaration.py` does that part.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

Value = bool | int | float | str | list[float]

# When a new value is taken up.
LIVE = "live"  # at once
CONFIGURE = "configure"  # when the node is configured: clean up, set, configure
START = "start"  # read-only


class ConfigurationError(WorldStereoError, ValueError):
    """The node cannot be configured like this; the message says what to change."""


def _row(
    default: Value,
    description: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    applies: str = LIVE,
) -> Any:
    info = {
        "description": description,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
        "applies": applies,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={**info, "default": default})
    return field(default=default, metadata={**info, "default": default})


@dataclass(frozen=True)
class NodeParameters:
    """The value of every parameter. The rows below are the table."""

    # --- the model ------------------------------------------------------------------------------------------------
    autostart: bool = _row(True, "Configure and activate when the node starts.", applies=START)
    model: str = _row(
        DEFAULT_MODEL,
        "What imagines: geometric (memory alone, no weights), small (the model that comes with the package), or a "
        "WorldStereo checkpoint (a folder or a hub id).",
        applies=CONFIGURE,
    )
    variant: str = _row(
        "",
        "Of a checkpoint: camera, memory, memory-dmd; empty = the one with the fewest steps that is there.",
        applies=CONFIGURE,
    )
    dtype: str = _row(
        "auto",
        "Type of a checkpoint's networks; auto = bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
        applies=CONFIGURE,
    )
    control_backend: str = _row(
        "torch",
        "What runs the control branch of a WorldStereo model: torch, onnxruntime (its CUDA provider on a GPU) or "
        "tensorrt (engines are built for each size and kept).",
        choices=("torch", "onnxruntime", "tensorrt"),
        applies=CONFIGURE,
    )
    device: str = _row("auto", "Where it runs: auto (CUDA where there is one), cpu, cuda or cuda:N.", applies=CONFIGURE)
    depth_source: str = _row(
        "auto",
        "Where the depth of a seed comes from: sensor (the depth topic; an image without is refused), "
        "model (depth_model, always), auto (the topic where it brings depth, else depth_model).",
        choices=("auto", "sensor", "model"),
        applies=CONFIGURE,
    )
    depth_model: str = _row(
        "",
        "What gives depth to images without: small (the network that ships), a name or folder of a depth-estimation "
        "model, none (such images are refused); empty = small until the depth topic brings something, then none.",
        applies=CONFIGURE,
    )

    # --- frames and poses -----------------------------------------------------------------------------------------
    world_frame: str = _row("map", "Frame everything is remembered in.", applies=CONFIGURE)
    base_frame: str = _row("base_link", "Frame of the robot, whose poses paths are made of.", applies=CONFIGURE)
    camera_frame: str = _row("", "Optical frame of the camera; empty = the frame_id of the images.", applies=CONFIGURE)
    imagined_frame: str = _row(
        "imagined_camera", "Optical frame of the imagined views, sent on /tf with each of them.", applies=CONFIGURE
    )
    publish_tf: bool = _row(True, "Send the pose of imagined_frame on /tf.")
    base_to_camera: list[float] = _row(  # noqa: RUF009 - a list becomes a default_factory
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "Pose of the camera's optical frame in base_frame where TF has none: x y z and quaternion x y z w "
        "(0 0 0 -0.5 0.5 -0.5 0.5 is a camera in the middle of the robot that looks ahead). All zero = TF must say.",
        unit="m",
    )
    path_pose_frame: str = _row(
        "base",
        "What the poses of path, pose and imagine_view are of: base (base_frame) or camera (its optical axes).",
        choices=("base", "camera"),
    )
    pose_source: str = _row(
        "auto",
        "Where a seed's pose comes from: tf, topic (pose), auto (tf, else topic), or fixed (the robot never moves: "
        "it stands at the origin of world_frame).",
        choices=("auto", "tf", "topic", "fixed"),
    )
    tf_cache_time: float = _row(10.0, "How long transforms are kept.", unit="s", low=1.0, high=600.0, applies=CONFIGURE)
    tf_timeout: float = _row(0.5, "How long an image waits for its pose.", unit="s", low=0.0, high=10.0)

    # --- input ----------------------------------------------------------------------------------------------------
    sync_tolerance: float = _row(
        0.02, "The most that the stamps of one image, depth, camera_info and pose differ.", unit="s", low=0.0, high=1.0
    )
    sync_timeout: float = _row(
        0.3, "How long an image waits for its depth and camera_info.", unit="s", low=0.0, high=10.0
    )
    min_observation_period: float = _row(
        0.0, "Least time between two seeds; 0 = as fast as they go.", unit="s", low=0.0, high=3600.0
    )
    max_image_pixels: int = _row(8_300_000, "Larger images are refused.", unit="pixels", low=1, high=64_000_000)
    no_input_warning_period: float = _row(
        5.0, "After this long without images the node says which topics it listens to.", unit="s", low=0.5, high=3600.0
    )

    # --- memory ---------------------------------------------------------------------------------------------------
    voxel_size: float = _row(0.01, "Grid of the cloud memory.", unit="m", low=0.001, high=1.0, applies=CONFIGURE)
    max_points: int = _row(
        2_000_000, "Most points of the cloud memory.", unit="points", low=1000, high=50_000_000, applies=CONFIGURE
    )
    max_radius: float = _row(
        0.0, "Points farther than this from the newest view are forgotten; 0 = none.", unit="m", low=0.0, high=10_000.0,
        applies=CONFIGURE,
    )  # fmt: skip
    max_age: float = _row(
        0.0, "Points older than this are forgotten; 0 = none.", unit="s", low=0.0, high=1e7, applies=CONFIGURE
    )
    max_bank_views: int = _row(64, "Most views of the bank.", unit="views", low=1, high=4096, applies=CONFIGURE)
    map_directory: str = _row(
        "", "Folder of save_map and load_map; empty = worldstereo in ROS_HOME (~/.ros).", applies=CONFIGURE
    )

    # --- jobs -----------------------------------------------------------------------------------------------------
    view_width: int = _row(
        0,
        "Width of the imagined views, in the seed's shape; 0 = the size of the seed.",
        unit="pixels",
        low=0,
        high=4096,
    )
    max_views: int = _row(512, "Most views a job may ask for.", unit="views", low=1, high=100_000)
    max_path_poses: int = _row(20_000, "Most poses a path may have.", unit="poses", low=1, high=1_000_000)
    max_job_pixels: int = _row(
        500_000_000,
        "Most pixels a job may ask for (views x width x height).",
        unit="pixels",
        low=1,
        high=100_000_000_000,
    )
    job_timeout: float = _row(
        300.0, "A job that is not done by then is ended (TIMEOUT).", unit="s", low=0.1, high=86_400.0
    )
    watchdog_grace: float = _row(
        10.0, "A job that does not even stop so long after its timeout is given up: diagnostics turn ERROR.",
        unit="s", low=0.1, high=3600.0,
    )  # fmt: skip
    path_views: int = _row(
        0, "Views along a path of the path topic; 0 = one a pose.", unit="views", low=0, high=100_000
    )
    path_prompt: str = _row("", "Prompt for paths of the path topic.")
    path_remember: bool = _row(False, "Put views imagined along the path topic into memory, marked imagined.")

    # --- output ---------------------------------------------------------------------------------------------------
    map_period: float = _row(1.0, "Least time between two maps.", unit="s", low=0.05, high=3600.0)
    cloud_points: int = _row(
        600_000,
        "Most points of a published cloud; more are thinned out evenly.",
        unit="points",
        low=1000,
        high=10_000_000,
    )
    points_frame: str = _row(
        "base",
        "Frame of ~/points: base (where the robot is now) or camera (imagined_frame).",
        choices=("base", "camera"),
    )
    diagnostics_period: float = _row(1.0, "Time between two diagnostics.", unit="s", low=0.1, high=60.0)


def table() -> tuple[Field[Any], ...]:
    """The rows of the table in order; `row.name`, `row.metadata` (default, description, unit, low, high, ...)."""
    return fields(NodeParameters)


def kind(row: Field[Any]) -> str:
    """The row's type as ROS names it: bool, integer, double, string, double_array."""
    default = row.metadata["default"]
    if isinstance(default, bool):
        return "bool"
    names = {int: "integer", float: "double", str: "string", list: "double_array"}
    return names[type(default)]


def check_value(row: Field[Any], value: object) -> Value:
    """The value in the row's type.

    Raises:
        ConfigurationError: wrong type, out of range, not one of the choices, or not finite.
    """
    name, info, wanted = row.name, row.metadata, kind(row)
    if wanted == "double" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # `1` for `1.0` is what people write
    if wanted == "double_array" and not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in value]
    type_of = {"bool": bool, "integer": int, "double": float, "string": str, "double_array": list}[wanted]
    if not isinstance(value, type_of) or (wanted == "integer" and isinstance(value, bool)):
        raise ConfigurationError(f"The parameter '{name}' is {value!r}; a value of type {wanted} was expected.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = info["low"], info["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise ConfigurationError(f"The parameter '{name}' is {value}; it must lie between {low} and {high}.")
    if info["choices"] and value not in info["choices"]:
        raise ConfigurationError(
            f"The parameter '{name}' is '{value}'; it must be one of {', '.join(info['choices'])}."
        )
    _check_meaning(name, value)
    return value  # type: ignore[return-value]  # `type_of` is chosen at run time


def _check_meaning(name: str, value: object) -> None:
    if name == "base_to_camera" and isinstance(value, list):
        norm = math.sqrt(sum(v * v for v in value[3:])) if len(value) == 7 else 0.0
        unset = len(value) == 7 and not any(value)
        if not unset and (not all(math.isfinite(v) for v in value) or abs(norm - 1) > 0.01):
            raise ConfigurationError(
                f"The parameter 'base_to_camera' is {value}; seven numbers were expected: x y z in metres and a "
                "quaternion x y z w of length 1, or seven zeros."
            )
    if name in ("world_frame", "base_frame", "imagined_frame") and not value:
        raise ConfigurationError(f"The parameter '{name}' is empty; the name of a TF frame was expected.")
    if name == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        raise ConfigurationError(f"The parameter 'device' is '{value}'; auto, cpu, cuda or cuda:N was expected.")
    if name == "model" and not value:
        raise ConfigurationError("The parameter 'model' is empty; the name of a pipeline was expected.")


def make_parameters(values: Mapping[str, object]) -> NodeParameters:
    """Settings of these values, each checked, and all together.

    Raises:
        ConfigurationError: one is wrong, or two do not go together.
    """
    rows = {row.name: row for row in table()}
    checked: dict[str, Any] = {name: check_value(rows[name], value) for name, value in values.items()}
    settings = NodeParameters(**checked)
    frames = (settings.world_frame, settings.base_frame, settings.imagined_frame)
    if len(set(frames)) < len(frames):
        raise ConfigurationError(
            f"world_frame, base_frame and imagined_frame are {frames}; three different frames were expected."
        )
    if settings.depth_source == "model" and settings.depth_model == "none":
        raise ConfigurationError("depth_source is 'model' but depth_model is 'none'; name a model, or use auto.")
    return settings


def map_directory(settings: NodeParameters) -> Path:
    """The folder that save_map and load_map are kept to."""
    if settings.map_directory:
        return Path(settings.map_directory).expanduser()
    return Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "worldstereo"


def yaml_value(value: Value) -> str:
    """A value as YAML writes it for ROS (a double always has its point)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(yaml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value) if "." in repr(value) or "inf" in repr(value) else f"{value:.1f}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def limits(row: Field[Any]) -> str:
    """What values the row takes, in words; empty where any."""
    info = row.metadata
    if info["choices"]:
        return ", ".join(info["choices"])
    if info["low"] is None and info["high"] is None:
        return ""
    return f"{info['low']:g} to {info['high']:g}" if kind(row) == "double" else f"{info['low']} to {info['high']}"


def to_yaml() -> str:
    """The content of `config/worldstereo.yaml`."""
    lines = [
        "# Every parameter of the node with its default. Generated by scripts/write_docs.py from the table in",
        "# worldstereo_ros/ros/node/parameters.py; change it there. Overlays beside this file set only what differs.",
        "/**:",
        "  ros__parameters:",
    ]
    for row in table():
        info = row.metadata
        note = "; ".join(part for part in (limits(row), info["unit"], f"applies: {info['applies']}") if part)
        lines += [f"    # {info['description']} ({note})", f"    {row.name}: {yaml_value(info['default'])}"]
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The parameters as a table for the documentation."""
    lines = ["| parameter | type | default | range | applies | what |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table():
        info = row.metadata
        unit = f" {info['unit']}" if info["unit"] else ""
        allowed = limits(row) + (unit if limits(row) and not info["choices"] else "")
        default = f"`{yaml_value(info['default'])}`{unit}"
        lines.append(
            f"| `{row.name}` | {kind(row)} | {default} | {allowed} | {info['applies']} | {info['description']} |"
        )
    return "\n".join(lines) + "\n"
