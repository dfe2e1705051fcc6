"""A point-map output without a node and without DDS, and what comes out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from std_msgs.msg import Header

from helpers.box_room import CAMERA
from helpers.node_harness import CAMERA_FRAME, wait_for
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import make_parameters
from worldstereo_ros.ros.node.pointmaps import PointmapOutput
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer
from worldstereo_ros.world import WorldModel

WINDOW = 6
LIMIT_S = 120.0  # of waits; says nothing about speed


class FakePublisher:
    def __init__(self):
        self.is_activated, self.listeners, self.sent = True, 0, []

    def get_subscription_count(self):
        return self.listeners

    def publish(self, message):
        self.sent.append(message)


class FakeNode:
    def __init__(self):
        self.publishers_by_name = {}

    def create_lifecycle_publisher(self, kind, name, profile, qos_overriding_options):
        return self.publishers_by_name.setdefault(name, FakePublisher())

    def create_publisher(self, kind, name, profile):
        return self.publishers_by_name.setdefault(name, FakePublisher())

    def create_subscription(self, *arguments, **options):
        return None

    def destroy_subscription(self, subscription):
        pass

    destroy_lifecycle_publisher = destroy_publisher = destroy_subscription


class Setup:
    """A point-map output without a node, and what came out of it; with `remembers`, its world model gets the views."""

    def __init__(self, *, remembers=False, **values):
        self.remembers = remembers
        self.logged, self.offered, self.node = [], [], FakeNode()
        self.world = WorldModel(GeometricPipeline(), CloudMemory(max_points=100_000), ViewBank())
        self.parameters = make_parameters(
            {
                "pointmaps.enabled": True, "pointmaps.method": "vo", "pointmaps.window": WINDOW,
                "pointmaps.max_rate": 0.0, "pointmaps.max_gap": 60.0, "device": "cpu",
            } | values
        )  # fmt: skip
        self.diagnostics = NodeDiagnostics(self.logged.append)
        resolver = PoseResolver(TransformBuffer(), self.parameters)
        self.output = PointmapOutput(
            self.node, self.parameters, resolver, self.diagnostics, self.logged.append, self._offer,
            lambda function: function(self.world), lambda name, callback: callback,
        )  # fmt: skip

    def _offer(self, observation):
        self.offered.append(observation)
        if self.remembers:
            observation.remember(self.world)

    def listen(self, *names):
        for name in names:
            self.node.publishers_by_name[name].listeners = 1

    def sent(self, name):
        return self.node.publishers_by_name[name].sent

    def done(self, count):
        assert wait_for(lambda: self.output.status["point maps"] >= count, LIMIT_S), (self.output.status, self.logged)


@contextlib.contextmanager
def outputs() -> Iterator[Callable[..., Setup]]:
    """Gives what opens outputs, with the arguments of `Setup`, and closes them at the end."""
    opened: list[Setup] = []

    def make(**values) -> Setup:
        opened.append(Setup(**values))
        return opened[-1]

    yield make
    for each in opened:
        assert each.output.close()


def observation_of(image: np.ndarray, stamp_ns: int, *, width: int | None = None) -> Observation:
    """An image of the box room's camera without a pose; with `width`, its left part."""
    camera = CAMERA
    if width is not None:
        image, camera = image[:, :width], replace(CAMERA, width=width)
    header = Header(stamp=messages.time_message(stamp_ns), frame_id=CAMERA_FRAME)
    sent, info = messages.colour_message(np.ascontiguousarray(image), header), messages.info_message(camera, header)
    return Observation(sent, info, None, np.eye(4), stamp_ns, "image", needs_depth=False)
