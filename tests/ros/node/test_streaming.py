"""Views of a diffusion model are published one by one while the next ones are made."""

from __future__ import annotations

import threading

import numpy as np
import torch
from helpers.checkpoints import DMD_VARIANT, write_small_checkpoint

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, Job, JobResult
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_events import WorkerEventHandler
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(64, 48, np.radians(70))
VIEWS = 3


class StubPublishers:
    """Records how many views were decoded when each view was published."""

    def __init__(self, decoded: list) -> None:
        self.decoded, self.views = decoded, []

    def publish_view(self, view) -> None:
        self.views.append((view.index, len(self.decoded)))

    def map_due(self) -> bool:
        return False

    def memory_changed(self) -> None:
        pass


def test_first_view_is_published_before_next_one_is_decoded(tmp_path):
    """Of the later ones, each thread makes one ahead."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = WorldStereoPipeline.from_pretrained(write_small_checkpoint(tmp_path / "small", (DMD_VARIANT,)))
    decoded: list = []
    decode = pipeline.autoencoder.decode_latents
    pipeline.autoencoder.decode_latents = lambda latents: (decoded.append(len(latents)), decode(latents))[1]
    world = WorldModel(pipeline)
    image = np.random.default_rng(3).integers(30, 220, (48, 64, 3), dtype=np.uint8)
    world.observe(View(image, CAMERA, np.eye(4), np.full((48, 64), 2.0, np.float32), stamp_ns=1))
    warnings: list[str] = []
    worker_events = WorkerEventHandler(NodeDiagnostics(warnings.append), lambda line: None)
    publishers = StubPublishers(decoded)
    worker_events.publishers = publishers  # type: ignore[assignment]
    worker, ended = Worker(worker_events, lambda world, job: CAMERA), threading.Event()
    results: list[JobResult] = []

    def on_end(result: JobResult) -> None:
        results.append(result)
        ended.set()

    try:
        worker.call(lambda: worker.set_world(world)).result(60)
        poses = trajectory("turn", np.eye(4), VIEWS, angle=1.0)
        worker.submit_path(Job(poses, origin="test", timeout=600.0, on_end=on_end))
        assert ended.wait(600)
    finally:
        worker.stop(60)
        torch.set_num_threads(threads)
    assert results[0].code == ErrorCode.NONE
    assert 0 < results[0].seconds_to_first < results[0].seconds
    assert publishers.views[0] == (0, 1)
    assert [index for index, _ in publishers.views] == list(range(VIEWS))
    assert all(count <= index + pipeline.geometric.threads for index, count in publishers.views)
    assert decoded == [1] * VIEWS
    assert not warnings
