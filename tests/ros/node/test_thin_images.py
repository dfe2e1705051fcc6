"""Images of 1 to 3 pixels across are remembered, and goals after them end with their views; in one process."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from std_msgs.msg import Header

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, Job, JobResult
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_events import WorkerEventHandler
from worldstereo_ros.world import WorldModel


def observation(width: int, height: int) -> Observation:
    camera, header = Camera(width, height, 80.0, 80.0, width / 2, height / 2), Header(frame_id="camera_optical")
    image = np.random.default_rng(3).integers(30, 220, (height, width, 3), dtype=np.uint8)
    depth = messages.depth_message(np.full((height, width), 2.0, np.float32), header)
    return Observation(
        messages.colour_message(image, header), messages.info_message(camera, header), depth, np.eye(4), 1, "image"
    )


@pytest.mark.parametrize("view_width", [0, 32])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2000, 1), (2000, 2), (1, 50), (3, 200)])
def test_thin_image_is_no_fault(size, view_width):
    warnings: list[str] = []
    events = WorkerEventHandler(NodeDiagnostics(warnings.append), lambda line: None)
    events.apply(NodeParameters(view_width=view_width))
    worker, world = Worker(events, events.camera_for), WorldModel(GeometricPipeline())
    try:
        worker.call(lambda: worker.set_world(world)).result(60)
        for width, height in (size, (64, 48)):
            worker.call(lambda width=width, height=height: observation(width, height).remember(world)).result(60)
            ended, results = threading.Event(), []

            def on_end(result: JobResult, results=results, ended=ended) -> None:
                results.append(result)
                ended.set()

            poses = np.tile(np.eye(4), (2, 1, 1))
            poses[1, 2, 3] = 0.3
            worker.submit_path(Job(poses, origin="test", timeout=60.0, on_end=on_end))
            assert ended.wait(60)
            assert results[0].code == ErrorCode.NONE, results[0].message
            assert results[0].views_done == 2
    finally:
        worker.stop(10)
    assert not warnings
