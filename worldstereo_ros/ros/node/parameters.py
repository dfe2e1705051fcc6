"""The node's parameters as one table, `NodeParameters`.

Its fields define the declaration in ROS (`parameter_server.py`), the ranges, the checks, `config/worldstereo.yaml` and
the table in the documentation (`parameter_text.py`). Imports no rclpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from worldstereo_ros.geometry.depth_units import parse_depth_unit
from worldstereo_ros.utils.errors import InputError, WorldStereoError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

Value = bool | int | float | str | list[float]
MIN_VIEW_WIDTH = 16  # pixels
DYNAMIC = ("rectified", "depth_unit")  # strings whose values YAML and `ros2 param set` read as a bool or a number

# When a new value takes effect.
LIVE = "live"  # immediately
CONFIGURE = "configure"  # when the node is configured: clean up, set, configure
START = "start"  # at the start of the process: read-only


class ConfigurationError(WorldStereoError, ValueError):
    """A value is not usable; the message says what to change."""


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
    limits = {"low": low, "high": high, "choices": choices}
    info = {"description": description, "unit": unit, **limits, "applies": applies}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={**info, "default": default})
    return field(default=default, metadata={**info, "default": default})


@dataclass(frozen=True)
class NodeParameters:
    """The value of every parameter; `table` returns the rows with their metadata."""

    # --- model ---
    autostart: bool = _row(True, "Configure and activate the node when it starts.", applies=START)
    model: str = _row(
        DEFAULT_MODEL,
        "Pipeline: geometric (no weights), small (the bundled model), or a WorldStereo checkpoint (a folder or a "
        "Hugging Face hub id).",
        applies=CONFIGURE,
    )
    variant: str = _row(
        "",
        "Variant of a WorldStereo checkpoint: camera, memory or memory-dmd; empty = the available one with the fewest "
        "denoising steps.",
        applies=CONFIGURE,
    )
    dtype: str = _row(
        "auto",
        "Data type of a checkpoint's networks; auto = bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
        applies=CONFIGURE,
    )
    control_backend: str = _row(
        "torch",
        "Runtime of the control branch of a WorldStereo model: torch, onnxruntime (with its CUDA provider on a GPU) or "
        "tensorrt (an engine is built for each size and cached).",
        choices=("torch", "onnxruntime", "tensorrt"),
        applies=CONFIGURE,
    )
    fill: str = _row(
        "auto",
        "What geometric and small show where nothing was seen: smooth colours, planes of a closed room, or auto "
        "(planes for small).",
        choices=("auto", "smooth", "planes"),
        applies=CONFIGURE,
    )
    device: str = _row("auto", "Device: auto (CUDA if available), cpu, cuda or cuda:N.", applies=CONFIGURE)
    depth_source: str = _row(
        "auto",
        "Source of depth: sensor (the topic depth; images without depth are rejected), model (always depth_model; all "
        "points are estimated, none observed), or auto (the topic depth, else depth_model).",
        choices=("auto", "sensor", "model"),
        applies=CONFIGURE,
    )
    depth_model: str = _row(
        "",
        "Depth model for images without a depth image: small (the bundled network), the name or folder of a depth "
        "estimation model, or none (such images are rejected; nothing is estimated); empty = small until the first "
        "depth image arrives, then none. Points of such images are estimated: on ~/map/estimated, never on ~/map.",
        applies=CONFIGURE,
    )

    # --- frames and poses ---
    world_frame: str = _row("map", "Frame of the memories and the maps.", applies=CONFIGURE)
    base_frame: str = _row("base_link", "Frame of the robot.", applies=CONFIGURE)
    camera_frame: str = _row("", "Optical frame of the camera; empty = the frame_id of the images.", applies=CONFIGURE)
    imagined_frame: str = _row(
        "imagined_camera", "Optical frame of the imagined views, published on /tf with each view.", applies=CONFIGURE
    )
    publish_tf: bool = _row(True, "Publish the pose of imagined_frame on /tf.")
    base_to_camera: list[float] = _row(  # noqa: RUF009 - a list becomes a default_factory
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "Pose of the camera's optical frame in base_frame, used if TF has none: x y z in metres and quaternion x y z w "
        "(0 0 0 -0.5 0.5 -0.5 0.5 = at the origin, looking along x). All zero = TF only.",
    )
    path_pose_frame: str = _row(
        "base",
        "Frame whose poses path, pose and imagine_view contain: base (base_frame) or camera (its optical frame).",
        choices=("base", "camera"),
    )
    path_heading: str = _row(
        "auto",
        "Headings of a path: pose (as its poses say), tangent (along the path), or auto (along the path if it moves "
        "and all its orientations are the identity, as plans of NavFn are; the first and the last pose may have one).",
        choices=("auto", "pose", "tangent"),
    )
    path_clearance: float = _row(
        0.05,
        "Distance that the camera keeps from observed surfaces; views whose pose is closer, or is reached only through "
        "such a surface, are reported as blocked.",
        unit="m",
        low=0.001,
        high=10.0,
    )
    pose_source: str = _row(
        "auto",
        "Source of the pose of each image: tf, topic (pose), auto (tf, else topic), or fixed (a robot that never "
        "moves, at the origin of world_frame).",
        choices=("auto", "tf", "topic", "fixed"),
    )
    camera_axes: str = _row(
        "auto",
        "Axes of the frame of the images: optical (z ahead, y down, REP 103), body (x ahead, z up, as Gazebo stamps), "
        "or auto (body, with a warning, if its name does not say optical and optical axes would look straight up).",
        choices=("auto", "optical", "body"),
    )
    tf_cache_time: float = _row(
        10.0, "Time that transforms are kept.", unit="s", low=1.0, high=600.0, applies=CONFIGURE
    )
    tf_timeout: float = _row(0.5, "Time that an image waits for its pose.", unit="s", low=0.0, high=10.0)

    # --- input ---
    rectified: str = _row(
        "auto",
        "The images are rectified, so P of camera_info holds and no distortion is removed: true, false, or auto (true "
        "if the topic's name has the word rect, such as image_rect_color).",
        choices=("auto", "true", "false"),
    )
    depth_unit: str = _row(
        "auto",
        "Unit of the depth images: auto (16UC1 in millimetres, 32FC1 in metres; REP 118), m, mm, 0.1mm, or a number of "
        "metres per stored value.",
    )
    sync_tolerance: float = _row(
        0.02,
        "Maximum difference between the stamps of an image and its depth, camera_info and pose.",
        unit="s",
        low=0.0,
        high=1.0,
    )
    sync_timeout: float = _row(
        0.3, "Time that an image waits for its depth and camera_info.", unit="s", low=0.0, high=10.0
    )
    min_observation_period: float = _row(
        0.0, "Minimum time between two observations; 0 = no limit.", unit="s", low=0.0, high=3600.0
    )
    max_image_pixels: int = _row(
        8_300_000, "Maximum size of an input image; larger ones are rejected.", unit="pixels", low=1, high=64_000_000
    )
    no_input_warning_period: float = _row(
        5.0,
        "Time without an image after which the node logs the topics it subscribes to.",
        unit="s",
        low=0.5,
        high=3600.0,
    )

    # --- memory ---
    voxel_size: float = _row(0.01, "Voxel size of the cloud memory.", unit="m", low=0.001, high=1.0, applies=CONFIGURE)
    max_points: int = _row(
        2_000_000,
        "Maximum number of points in the cloud memory.",
        unit="points",
        low=1000,
        high=50_000_000,
        applies=CONFIGURE,
    )
    max_radius: float = _row(
        0.0,
        "Points farther than this from the newest view are removed; 0 = no limit.",
        unit="m",
        low=0.0,
        high=10_000.0,
        applies=CONFIGURE,
    )
    max_age: float = _row(
        0.0, "Points older than this are removed; 0 = no limit.", unit="s", low=0.0, high=1e7, applies=CONFIGURE
    )
    max_bank_views: int = _row(
        64, "Maximum number of views in the view bank.", unit="views", low=1, high=4096, applies=CONFIGURE
    )
    max_bank_memory: int = _row(
        512,
        "Maximum size of the views in the view bank, for images of any size; 64 views of 640x480 have at most 260 MB.",
        unit="MB",
        low=1,
        high=1_000_000,
        applies=CONFIGURE,
    )
    map_directory: str = _row(
        "", "Folder of save_map, load_map and reconstruct; empty = worldstereo in ROS_HOME (~/.ros).", applies=CONFIGURE
    )
    photograph_directory: str = _row(
        "",
        "Folder of the photographs that a request of reconstruct may name; empty = photographs in map_directory.",
        applies=CONFIGURE,
    )

    # --- jobs ---
    view_width: int = _row(
        0,
        "Width of the imagined views, with the aspect ratio of the observations; 0 = the size of the observations. The "
        "smallest width is 16.",
        unit="pixels",
        low=0,
        high=4096,
    )
    max_views: int = _row(512, "Maximum number of views of a job.", unit="views", low=1, high=100_000)
    max_path_poses: int = _row(20_000, "Maximum number of poses of a path.", unit="poses", low=1, high=1_000_000)
    max_job_pixels: int = _row(
        500_000_000,
        "Maximum size of a job: views x width x height.",
        unit="pixels",
        low=1,
        high=100_000_000_000,
    )
    job_timeout: float = _row(
        300.0, "Time from acceptance after which a job ends with TIMEOUT.", unit="s", low=0.1, high=86_400.0
    )
    reconstruct_timeout: float = _row(
        3600.0,
        "Time from acceptance after which a reconstruction ends with TIMEOUT.",
        unit="s",
        low=1.0,
        high=864_000.0,
    )
    watchdog_grace: float = _row(
        10.0,
        "Time after job_timeout after which a job that does not stop is abandoned and diagnostics report ERROR.",
        unit="s",
        low=0.1,
        high=3600.0,
    )
    path_views: int = _row(
        0, "Views along a path of the topic path; 0 = one per pose.", unit="views", low=0, high=100_000
    )
    path_prompt: str = _row("", "Prompt for paths of the topic path.")
    path_remember: bool = _row(
        False, "Insert views imagined along a path of the topic path into the memories, marked as imagined."
    )

    # --- output ---
    map_period: float = _row(1.0, "Minimum time between two published maps.", unit="s", low=0.05, high=3600.0)
    cloud_points: int = _row(
        600_000,
        "Maximum number of points of a published cloud; larger clouds are subsampled evenly.",
        unit="points",
        low=1000,
        high=10_000_000,
    )
    points_frame: str = _row(
        "base",
        "Frame of ~/points: base (base_frame, at its newest transform) or camera (imagined_frame).",
        choices=("base", "camera"),
    )
    diagnostics_period: float = _row(1.0, "Time between two diagnostics messages.", unit="s", low=0.1, high=60.0)


def table() -> tuple[Field[Any], ...]:
    """Returns the rows: `row.name` and `row.metadata` (default, description, unit, low, high, choices, applies)."""
    return fields(NodeParameters)


def ros_type(row: Field[Any]) -> str:
    """Returns the row's type as ROS names it: bool, integer, double, string or double_array."""
    default = row.metadata["default"]
    if isinstance(default, bool):
        return "bool"
    names = {int: "integer", float: "double", str: "string", list: "double_array"}
    return names[type(default)]


def check_value(row: Field[Any], value: object) -> Value:
    """Checks a value and converts it to the row's type.

    Args:
        row: row of the table.
        value: as ROS or YAML gives it.

    Raises:
        ConfigurationError: wrong type, out of range, not one of the choices, or not finite.
    """
    name, info, expected = row.name, row.metadata, ros_type(row)
    if expected == "double" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # users write `1` for `1.0`
    if expected == "double_array" and not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in value]
    if name in DYNAMIC and isinstance(value, (bool, int, float)):
        value = str(value).lower()
    type_of = {"bool": bool, "integer": int, "double": float, "string": str, "double_array": list}[expected]
    if not isinstance(value, type_of) or (expected == "integer" and isinstance(value, bool)):
        raise ConfigurationError(f"The parameter '{name}' is {value!r}; a value of type {expected} was expected.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = info["low"], info["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise ConfigurationError(
                f"The parameter '{name}' is {value}; a value between {low} and {high} was expected."
            )
    if info["choices"] and value not in info["choices"]:
        raise ConfigurationError(
            f"The parameter '{name}' is '{value}'; one of {', '.join(info['choices'])} was expected."
        )
    _check_constraints(name, value)
    return value  # type: ignore[return-value]  # `type_of` is chosen at run time


def _check_constraints(name: str, value: object) -> None:
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
    if name == "view_width" and isinstance(value, int) and 0 < value < MIN_VIEW_WIDTH:
        raise ConfigurationError(
            f"The parameter 'view_width' is {value}; 0 (the size of the observations) or at least {MIN_VIEW_WIDTH} "
            "pixels was expected."
        )
    if name == "depth_unit":
        try:
            parse_depth_unit(str(value))
        except InputError as error:
            raise ConfigurationError(f"The parameter 'depth_unit' is '{value}'. {error}") from None
    if name == "model" and not value:
        raise ConfigurationError("The parameter 'model' is empty; the name of a pipeline was expected.")


def make_parameters(values: Mapping[str, object]) -> NodeParameters:
    """Checks values one by one and together.

    Args:
        values: values by name; parameters that are missing have their defaults.

    Raises:
        ConfigurationError: a value is not usable, or two values contradict each other.
    """
    rows = {row.name: row for row in table()}
    checked: dict[str, Any] = {name: check_value(rows[name], value) for name, value in values.items()}
    parameters = NodeParameters(**checked)
    frames = (parameters.world_frame, parameters.base_frame, parameters.imagined_frame)
    if len(set(frames)) < len(frames):
        raise ConfigurationError(
            f"world_frame, base_frame and imagined_frame are {frames}; three different frames were expected."
        )
    if parameters.camera_frame == parameters.imagined_frame:
        raise ConfigurationError(
            f"camera_frame and imagined_frame are both '{parameters.camera_frame}'; two frames were expected, since "
            "images in imagined_frame are the node's own."
        )
    if parameters.depth_source == "model" and parameters.depth_model == "none":
        raise ConfigurationError(
            "depth_source is 'model' but depth_model is 'none'; set depth_model, or depth_source to 'auto'."
        )
    return parameters
