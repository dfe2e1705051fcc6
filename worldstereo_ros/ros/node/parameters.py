"""The node's parameters as one table, `NodeParameters`.

Its fields define the declaration in ROS (`parameter_server.py`), the ranges, the checks, `config/worldstereo.yaml` and
the table in the documentation (`parameter_text.py`). Parameters of one matter, such as `stereo.base`, are a group in a
module of their own. Imports no rclpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldstereo_ros.geometry.depth_units import parse_depth_unit
from worldstereo_ros.ros.node.parameter_rows import (
    CONFIGURE,
    LIVE,
    START,
    ConfigurationError,
    Row,
    Value,
    assemble,
    check_type_and_range,
    group,
    ros_type,
    row,
    rows_of,
)
from worldstereo_ros.ros.node.planning_parameters import AUTO, PlanningParameters
from worldstereo_ros.ros.node.pointmap_parameters import PointmapParameters, check_pointmaps
from worldstereo_ros.ros.node.serve_parameters import ServeParameters, check_serve
from worldstereo_ros.ros.node.stereo_parameters import StereoParameters
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

MIN_VIEW_WIDTH = 16  # pixels
DYNAMIC = (
    "rectified",
    "depth_unit",
    "planning.floor",
)  # strings whose values YAML and `ros2 param set` read as a bool or a number


@dataclass(frozen=True)
class NodeParameters:
    """The value of every parameter; `table` returns the rows with their metadata."""

    # --- model ---
    autostart: bool = row(True, "Configure and activate the node when it starts.", applies=START)
    model: str = row(
        DEFAULT_MODEL,
        "Pipeline: geometric (no weights), small (the bundled model), or a WorldStereo checkpoint (a folder or a "
        "Hugging Face hub id).",
        applies=CONFIGURE,
    )
    variant: str = row(
        "",
        "Variant of a WorldStereo checkpoint: camera, memory or memory-dmd; empty = the available one with the fewest "
        "denoising steps.",
        applies=CONFIGURE,
    )
    dtype: str = row(
        "auto",
        "Data type of a checkpoint's networks; auto = bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
        applies=CONFIGURE,
    )
    control_backend: str = row(
        "torch",
        "Runtime of the control branch of a WorldStereo model: torch, onnxruntime (with its CUDA provider on a GPU) or "
        "tensorrt (an engine is built for each size and cached).",
        choices=("torch", "onnxruntime", "tensorrt"),
        applies=CONFIGURE,
    )
    fill: str = row(
        "auto",
        "What geometric and small show where nothing was seen: smooth colours, planes of a closed room, or auto "
        "(planes for small).",
        choices=("auto", "smooth", "planes"),
        applies=CONFIGURE,
    )
    device: str = row("auto", "Device: auto (CUDA if available), cpu, cuda or cuda:N.", applies=CONFIGURE)
    depth_source: str = row(
        "auto",
        "Source of depth: sensor (the topic depth; images without depth are rejected), model (always depth_model; all "
        "points are estimated, none observed), pointmaps (always by point maps; estimated, too), or auto (the topic "
        "depth, else point maps where the poses are theirs, else depth_model).",
        choices=("auto", "sensor", "model", "pointmaps"),
        applies=CONFIGURE,
    )
    depth_model: str = row(
        "",
        "Depth model for images without a depth image: small (the bundled network), the name or folder of a depth "
        "estimation model, or none (such images are rejected; nothing is estimated); empty = small until the first "
        "depth image arrives, then none. Points of such images are estimated: on ~/map/estimated, never on ~/map.",
        applies=CONFIGURE,
    )

    backend: str = row(
        "local",
        "Where views are imagined: local, or serve (on the server serve.url; here while it does not answer).",
        choices=("local", "serve"),
        applies=CONFIGURE,
    )

    # --- frames and poses ---
    world_frame: str = row("map", "Frame of the memories and the maps.", applies=CONFIGURE)
    base_frame: str = row("base_link", "Frame of the robot.", applies=CONFIGURE)
    camera_frame: str = row("", "Optical frame of the camera; empty = the frame_id of the images.", applies=CONFIGURE)
    imagined_frame: str = row(
        "imagined_camera", "Optical frame of the imagined views, published on /tf with each view.", applies=CONFIGURE
    )
    publish_tf: bool = row(True, "Publish the pose of imagined_frame on /tf.")
    base_to_camera: list[float] = row(  # noqa: RUF009 - a list becomes a default_factory
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "Pose of the camera's optical frame in base_frame, used if TF has none: x y z in metres and quaternion x y z w "
        "(0 0 0 -0.5 0.5 -0.5 0.5 = at the origin, looking along x). All zero = TF only.",
    )
    path_pose_frame: str = row(
        "base",
        "Frame whose poses path, pose and imagine_view contain: base (base_frame) or camera (its optical frame).",
        choices=("base", "camera"),
    )
    path_heading: str = row(
        "auto",
        "Headings of a path: pose (as its poses say), tangent (along the path), or auto (along the path if it moves "
        "and all its orientations are the identity, as plans of NavFn are; the first and the last pose may have one).",
        choices=("auto", "pose", "tangent"),
    )
    path_clearance: float = row(
        0.05,
        "Distance that the camera keeps from observed surfaces; views whose pose is closer, or is reached only through "
        "such a surface, are reported as blocked.",
        unit="m",
        low=0.001,
        high=10.0,
    )
    pose_source: str = row(
        "auto",
        "Source of the pose of each image: tf, topic (pose), fixed (a robot that never moves, at the origin of "
        "world_frame), pointmaps (estimated from the images; world_frame is where base_frame was at first), or auto "
        "(tf, else topic, else, with pointmaps.enabled and while neither gave any pose, point maps).",
        choices=("auto", "tf", "topic", "fixed", "pointmaps"),
    )
    camera_axes: str = row(
        "auto",
        "Axes of the frame of the images: optical (z ahead, y down, REP 103), body (x ahead, z up, as Gazebo stamps), "
        "or auto (body, with a warning, if its name does not say optical and optical axes would look straight up).",
        choices=("auto", "optical", "body"),
    )
    tf_cache_time: float = row(10.0, "Time that transforms are kept.", unit="s", low=1.0, high=600.0, applies=CONFIGURE)
    tf_timeout: float = row(0.5, "Time that an image waits for its pose.", unit="s", low=0.0, high=10.0)

    # --- input ---
    rectified: str = row(
        "auto",
        "The images are rectified, so P of camera_info holds and no distortion is removed: true, false, or auto (true "
        "if the topic's name has the word rect, such as image_rect_color).",
        choices=("auto", "true", "false"),
    )
    depth_unit: str = row(
        "auto",
        "Unit of the depth images: auto (16UC1 in millimetres, 32FC1 in metres; REP 118), m, mm, 0.1mm, or a number of "
        "metres per stored value.",
    )
    sync_tolerance: float = row(
        0.02,
        "Maximum difference between the stamps of an image and its depth, camera_info and pose.",
        unit="s",
        low=0.0,
        high=1.0,
    )
    sync_timeout: float = row(
        0.3, "Time that an image waits for its depth and camera_info.", unit="s", low=0.0, high=10.0
    )
    min_observation_period: float = row(
        0.0, "Minimum time between two observations; 0 = no limit.", unit="s", low=0.0, high=3600.0
    )
    max_image_pixels: int = row(
        8_300_000, "Maximum size of an input image; larger ones are rejected.", unit="pixels", low=1, high=64_000_000
    )
    no_input_warning_period: float = row(
        5.0,
        "Time without an image after which the node logs the topics it subscribes to.",
        unit="s",
        low=0.5,
        high=3600.0,
    )

    # --- memory ---
    voxel_size: float = row(0.01, "Voxel size of the cloud memory.", unit="m", low=0.001, high=1.0, applies=CONFIGURE)
    max_points: int = row(
        2_000_000,
        "Maximum number of points in the cloud memory.",
        unit="points",
        low=1000,
        high=50_000_000,
        applies=CONFIGURE,
    )
    max_radius: float = row(
        0.0,
        "Points farther than this from the newest view are removed; 0 = no limit.",
        unit="m",
        low=0.0,
        high=10_000.0,
        applies=CONFIGURE,
    )
    max_age: float = row(
        0.0, "Points older than this are removed; 0 = no limit.", unit="s", low=0.0, high=1e7, applies=CONFIGURE
    )
    max_bank_views: int = row(
        64, "Maximum number of views in the view bank.", unit="views", low=1, high=4096, applies=CONFIGURE
    )
    max_bank_memory: int = row(
        512,
        "Maximum size of the views in the view bank, for images of any size; 64 views of 640x480 have at most 260 MB.",
        unit="MB",
        low=1,
        high=1_000_000,
        applies=CONFIGURE,
    )
    map_directory: str = row(
        "", "Folder of save_map, load_map and reconstruct; empty = worldstereo in ROS_HOME (~/.ros).", applies=CONFIGURE
    )
    photograph_directory: str = row(
        "",
        "Folder of the photographs that a request of reconstruct may name; empty = photographs in map_directory.",
        applies=CONFIGURE,
    )

    # --- jobs ---
    view_width: int = row(
        0,
        "Width of the imagined views, with the aspect ratio of the observations; 0 = the size of the observations. The "
        "smallest width is 16.",
        unit="pixels",
        low=0,
        high=4096,
    )
    max_views: int = row(512, "Maximum number of views of a job.", unit="views", low=1, high=100_000)
    max_path_poses: int = row(20_000, "Maximum number of poses of a path.", unit="poses", low=1, high=1_000_000)
    max_job_pixels: int = row(
        500_000_000,
        "Maximum size of a job: views x width x height.",
        unit="pixels",
        low=1,
        high=100_000_000_000,
    )
    job_timeout: float = row(
        300.0, "Time from acceptance after which a job ends with TIMEOUT.", unit="s", low=0.1, high=86_400.0
    )
    reconstruct_timeout: float = row(
        3600.0,
        "Time from acceptance after which a reconstruction ends with TIMEOUT.",
        unit="s",
        low=1.0,
        high=864_000.0,
    )
    watchdog_grace: float = row(
        10.0,
        "Time after job_timeout after which a job that does not stop is abandoned and diagnostics report ERROR.",
        unit="s",
        low=0.1,
        high=3600.0,
    )
    path_views: int = row(
        0, "Views along a path of the topic path; 0 = one per pose.", unit="views", low=0, high=100_000
    )
    path_prompt: str = row("", "Prompt for paths of the topic path.")
    path_remember: bool = row(
        False, "Insert views imagined along a path of the topic path into the memories, marked as imagined."
    )

    # --- output ---
    map_period: float = row(1.0, "Minimum time between two published maps.", unit="s", low=0.05, high=3600.0)
    cloud_points: int = row(
        600_000,
        "Maximum number of points of a published cloud; larger clouds are subsampled evenly.",
        unit="points",
        low=1000,
        high=10_000_000,
    )
    points_frame: str = row(
        "base",
        "Frame of ~/points: base (base_frame, at its newest transform) or camera (imagined_frame).",
        choices=("base", "camera"),
    )
    diagnostics_period: float = row(1.0, "Time between two diagnostics messages.", unit="s", low=0.1, high=60.0)

    # --- groups ---
    planning: PlanningParameters = group(PlanningParameters)  # noqa: RUF009 - becomes a default_factory
    serve: ServeParameters = group(ServeParameters)  # noqa: RUF009 - becomes a default_factory
    stereo: StereoParameters = group(StereoParameters)  # noqa: RUF009 - becomes a default_factory
    pointmaps: PointmapParameters = group(PointmapParameters)  # noqa: RUF009 - becomes a default_factory


def table() -> tuple[Row, ...]:
    """Returns the rows: `row.name` and `row.metadata` (default, description, unit, low, high, choices, applies)."""
    return rows_of(NodeParameters)


def check_value(row: Row, value: object) -> Value:
    """Checks a value and converts it to the row's type.

    Args:
        row: row of the table.
        value: as ROS or YAML gives it.

    Raises:
        ConfigurationError: wrong type, out of range, not one of the choices, or not finite.
    """
    if row.name in DYNAMIC and isinstance(value, (bool, int, float)):
        value = str(value).lower()
    checked = check_type_and_range(row, value)
    _check_constraints(row.name, checked)
    return checked


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
    if name == "planning.floor" and value != AUTO:
        try:
            finite = math.isfinite(float(str(value)))
        except ValueError:
            finite = False
        if not finite:
            raise ConfigurationError(
                f"The parameter 'planning.floor' is '{value}'; {AUTO} or a height in metres was expected."
            )
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
    parameters: NodeParameters = assemble(NodeParameters, checked)
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
    if parameters.planning.max_step >= parameters.planning.robot_height:
        raise ConfigurationError(
            f"planning.max_step is {parameters.planning.max_step:g} m and planning.robot_height "
            f"{parameters.planning.robot_height:g} m; a robot higher than its steps was expected."
        )
    if parameters.depth_source == "model" and parameters.depth_model == "none":
        raise ConfigurationError(
            "depth_source is 'model' but depth_model is 'none'; set depth_model, or depth_source to 'auto'."
        )
    check_serve(parameters.backend, parameters.serve)
    check_pointmaps(parameters)
    return parameters


__all__ = [
    "CONFIGURE", "DYNAMIC", "LIVE", "START", "ConfigurationError", "NodeParameters", "Row", "Value", "check_value",
    "make_parameters", "ros_type", "table",
]  # fmt: skip
