"""The node's interface in words, made from the tables that the node itself is made from."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import QoSProfile

from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.node.diagnostics import RECENT
from worldstereo_ros.ros.node.jobs import ErrorCode
from worldstereo_ros.ros.node.parameters import to_markdown
from worldstereo_ros.ros.node.publishers import OUTPUTS
from worldstereo_ros.ros.node.servers import ACTIONS, COMMANDS, SERVICES
from worldstereo_ros.ros.node.subscriptions import INPUTS

_CODES = {
    ErrorCode.NONE: "all went well",
    ErrorCode.UNKNOWN: "an error nobody expected; the log and the diagnostics name it",
    ErrorCode.INVALID_PATH: "empty, no frame, a number that is not finite, a quaternion that is none",
    ErrorCode.TF_ERROR: "the path's frame or the camera's place on the robot is not known",
    ErrorCode.NO_OBSERVATION: "nothing was seen yet",
    ErrorCode.INACTIVE: "the node is not active, or was deactivated or shut down meanwhile",
    ErrorCode.SUPERSEDED: "a newer path came (the goal ends *aborted*: rclpy has no preempted state)",
    ErrorCode.CANCELED: "the client asked, or the memory was reset",
    ErrorCode.MODEL_ERROR: "the model failed or ran out of memory",
    ErrorCode.TOO_LARGE: "more poses, views or pixels than the parameters allow",
    ErrorCode.TIMEOUT: "not done within `job_timeout`",
}

_HEAD = """\
# The node

<!-- Made by scripts/write_docs.py from the node's own tables. Change them, not this file. -->

    .venv/bin/python -m worldstereo_ros.ros.node --ros-args -p device:=cpu     # environment made by `make setup`
    ros2 launch worldstereo_ros worldstereo.launch.py                          # with a full ROS

The parameter `model` says what imagines: `geometric`, `small`, or a checkpoint ([models](models.md)). With a full ROS
it is an argument too: `model:=small`.

It is a lifecycle node called `worldstereo`. With `autostart` (the default) it configures and activates itself. A bad
configuration is a failed transition with a sentence in the log and in the diagnostics, and never the end of the node:
set the parameter right and configure again.

One worker thread owns the model and the memories. Callbacks only check and hand on, so goals are cancelled between
steps while the model works, and transforms and clocks keep running. Of images the newest wins while the worker is busy
(what was dropped is counted); of paths one runs, one waits, and a newer one supersedes both. Single views wait in line
and supersede nothing.

Names without `~` are relative: remap them to your topics (`-r image:=/camera/color/image_raw`). Every profile can be
overridden with the standard `qos_overrides.*` parameters.

Where images are lost between processes of one machine: Fast DDS keeps 512 kB of shared memory a process, less than one
640x480 image, and sends the rest over UDP in fragments. On a busy machine 5 to 7 of 20 such images arrived. With
`config/fastdds.xml`, in every process that sends images, all 20 did. The launch files set it.

    export FASTRTPS_DEFAULT_PROFILES_FILE=$PWD/config/fastdds.xml
"""

_STAMPS = """\
## Frames and stamps

An imagined view is no measurement. Its pictures carry the time of publication and the frame `imagined_frame`, whose
pose the node sends on `/tf` just before, so that RViz and everything else that asks TF can use them. The stamp of the
newest measurement the view grew from is `observation_stamp` in `~/view`.

`~/points` are in the frame of the robot, at the stamp of its newest transform, so that a costmap can use them as they
are ([Nav2](nav2.md)); where TF knows no robot, they are in `imagined_frame`. Their field `observed` is 1 where a sensor
saw the point and 0 where it was imagined. `~/map` and `~/map/imagined` are in `world_frame`.

The field `confidence` of `~/points` and `~/map/imagined`, and the image `~/confidence` (255 = 1; also in `~/view`,
empty where a pipeline does not say), are the probability that the colour is right within a tenth of its range
([confidence](confidence.md)). In RViz show it with *Color Transformer: Intensity* and *Channel Name: confidence*.

Poses of `path`, `pose` and `~/imagine_view` are those of `base_frame`, or with `path_pose_frame: camera` those of the
camera's optical axes (x right, y down, z forward). Where the camera sits on the robot comes from TF, else from
`base_to_camera`.

A stamp of 0 means now. Stamps that go back by more than two seconds mean that a recording starts over: what waits for
its partner is forgotten, the memories stay.
"""


def node_page() -> str:
    """The content of `docs/node.md`."""
    parts = [_HEAD]
    parts.append(_table("Inputs", ("topic", "type", "QoS", "what"), [_topic(*row) for row in (*INPUTS, *COMMANDS)]))
    parts.append("`/tf` and `/tf_static` are read through tf2_ros where it is installed, else by the node itself.\n")
    extra = [
        (
            "/tf",
            "tf2_msgs/msg/TFMessage",
            qos.describe(qos.TF),
            "`world_frame` to `imagined_frame`, with every view (`publish_tf`)",
        ),
        (
            "/diagnostics",
            "diagnostic_msgs/msg/DiagnosticArray",
            qos.describe(qos.DIAGNOSTICS),
            f"state, input age by topic, drops, seconds per view, memory; WARN for {RECENT:g} s after a refusal, ERROR "
            "after a fault or while the worker hangs",
        ),
    ]
    rows = [_topic(*row) for row in OUTPUTS] + [(f"`{a}`", f"`{b}`", c, d) for a, b, c, d in extra]
    parts.append(_table("Publishers", ("topic", "type", "QoS", "what"), rows))
    parts.append("Nothing is converted for a topic that nobody listens to.\n")
    calls = [(f"`{name}`", f"`{_type_name(kind)}`", what) for name, kind, what in (*ACTIONS, *SERVICES)]
    parts.append(_table("Action and services", ("name", "type", "what"), calls))
    codes = [(str(int(code)), f"`{code.name}`", _CODES[code]) for code in ErrorCode]
    parts.append(_table("Error codes", ("code", "name", "when"), codes))
    parts.append(_STAMPS)
    parts.append(
        "## Parameters\n\n*live*: taken up at once. *configure*: read when the node is configured; clean up, set, "
        "configure. *start*: only at the start.\n\n" + to_markdown()
    )
    return "\n".join(parts)


def _topic(name: str, kind: type, profile: QoSProfile, what: str) -> tuple[str, str, str, str]:
    return f"`{name}`", f"`{_type_name(kind)}`", qos.describe(profile), what


def _type_name(kind: type) -> str:
    package, group = kind.__module__.split(".")[:2]
    return f"{package}/{group}/{kind.__name__}"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"## {title}\n", "| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
