"""Where views are imagined: on this computer, or by a server. Imports no rclpy."""

from __future__ import annotations

import re
import secrets
import socket
from typing import Any

from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.serve_parameters import SERVE
from worldstereo_ros.world import WorldModel

MAX_HOST_NAME = 40


def make_world(parameters: NodeParameters, pipeline: Pipeline, *memories: Any, **options: Any) -> WorldModel:
    """The world model of the parameter `backend`.

    Args:
        parameters: of the node.
        pipeline: imagines on this computer; with `backend: serve` where the server does not answer.
        memories, options: of `WorldModel`.

    Raises:
        InputError: the token file is not usable.
    """
    if parameters.backend != SERVE:
        return WorldModel(pipeline, *memories, **options)
    from worldstereo_ros.serving.client import ServeClient
    from worldstereo_ros.serving.served_world import ServedWorld
    from worldstereo_ros.serving.tokens import read_token

    chosen = parameters.serve
    token = read_token(chosen.token_file)
    client = ServeClient(chosen.url, token, chosen.robot or _unique_name(), timeout=chosen.timeout)
    return ServedWorld(pipeline, *memories, client=client, **options)


def describe_backend(world: WorldModel) -> str:
    """Who imagined last, for diagnostics."""
    return str(getattr(world, "backend", "local"))


def _unique_name() -> str:
    """A robot id that no other node has, also not on the same host."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()).strip("-")[:MAX_HOST_NAME] or "robot"
    return f"{host}-{secrets.token_hex(4)}"
