"""What the node logs and reports of the depth of its observations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.node import diagnostics
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.worker_events import WorkerEventHandler
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(64, 48, 1.2)
KEY = "depth of the newest observation"


def observation(estimated: bool) -> View:
    image = np.random.default_rng(3).integers(30, 220, (48, 64, 3), dtype=np.uint8)
    mask = np.ones((48, 64), bool) if estimated else None
    return View(image, CAMERA, np.eye(4), np.full((48, 64), 2.0, np.float32), estimated=mask)


@pytest.fixture
def handler():
    """A handler, a function that observes a view, and the lines that the handler logs."""
    lines: list[str] = []

    def about_depth(line: str) -> None:
        if line.startswith("Observations"):
            lines.append(line)

    handler = WorkerEventHandler(NodeDiagnostics(lambda line: None), about_depth)
    world = WorldModel(GeometricPipeline())

    def observe(estimated: bool) -> None:
        world.observe(observation(estimated))
        handler.on_observation_remembered(world, SimpleNamespace(topic="image"))

    return handler, observe, lines


def test_depth_that_comes_and_goes_is_logged_once_in_a_while(handler, monkeypatch):
    """A depth sensor at half the rate of its camera must not fill the log."""
    events, observe, lines = handler
    observe(False)
    assert not lines
    for _ in range(4):
        for estimated in (True, False):
            observe(estimated)
            assert events.memory_status[KEY] == ("estimated" if estimated else "measured")
    assert [line[:21] for line in lines] == ["Observations have no ", "Observations have mea"]
    monkeypatch.setattr(diagnostics, "LOG_PERIOD_S", 0.0)
    observe(True)
    assert len(lines) == 3


@pytest.mark.parametrize("estimated", [True, False])
def test_status_describes_a_loaded_memory(handler, estimated):
    events, _, lines = handler
    world = WorldModel(GeometricPipeline())
    events.on_memory_replaced(world)
    assert events.memory_status[KEY] == "none"
    world.observe(observation(estimated))
    events.on_memory_replaced(world)
    assert events.memory_status[KEY] == ("estimated" if estimated else "measured")
    assert not lines
