"""What the node logs of its observations and jobs, and what it says of depth in a wrong unit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.node import activity_log
from worldstereo_ros.ros.node.activity_log import JobLog, ObservationLog
from worldstereo_ros.ros.node.jobs import ErrorCode, Job, JobResult
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(64, 48, 1.2)


def room(x: float, camera: Camera = CAMERA, factor: float = 1.0) -> View:
    """Three slanted walls, seen from x to the side; their depth is multiplied by a factor."""
    u = (np.arange(camera.width) - camera.cx) / camera.fx
    walls = [(2.0, 0.7), (2.0, -0.7), (1.8, 0.2)]  # distance and angle: x sin + z cos = distance
    hits = np.array([(d - x * np.sin(a)) / (np.cos(a) + u * np.sin(a)) for d, a in walls])
    depth = np.where(hits > 0, hits, 9.0).min(axis=0).astype(np.float32)
    depth = np.tile(depth * np.float32(factor), (camera.height, 1))
    pose = np.eye(4)
    pose[0, 3] = x
    image = np.random.default_rng(3).integers(30, 220, (camera.height, camera.width, 3), dtype=np.uint8)
    return View(image, camera, pose, depth)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(activity_log, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


# --- observations ---


def test_first_observation_is_logged_then_a_summary_once_in_a_while(clock):
    lines: list[str] = []
    log = ObservationLog(lines.append, lambda text, key: None)
    world = WorldModel(GeometricPipeline())
    world.observe(room(0.0))
    log.on_observation(world, "image")
    points = len(world.cloud)
    assert lines == [f"Remembered the first image of 64x48, from image: {points} points and 1 views in memory."]
    for _ in range(299):  # ten seconds at 30 Hz
        clock.seconds += 1 / 30
        log.on_observation(world, "image")
    assert len(lines) == 1
    clock.seconds += 30
    log.on_observation(world, "image")
    assert len(lines) == 2
    assert lines[1].startswith("Remembered 300 more images: ")
    log.restart()
    log.on_observation(world, "panorama")
    assert lines[2].startswith("Remembered the first image of 64x48, from panorama: ")


@pytest.mark.parametrize("camera", [CAMERA, Camera.from_fov(1000, 240, 1.2)])
@pytest.mark.parametrize(("factor", "word"), [(1.0, ""), (10.0, "10 times too far"), (0.1, "10 times too near")])
def test_depth_in_a_wrong_unit_is_said(camera, factor, word):
    """The warning needs two views: depth that does not agree with the motion of the camera."""
    warnings: list[str] = []
    log = ObservationLog(lambda line: None, lambda text, key: warnings.append(text))
    world = WorldModel(GeometricPipeline())
    for x in (0.0, 0.3):
        world.observe(room(x, camera, factor))
        log.on_observation(world, "image")
    assert bool(warnings) == bool(word)
    if word:
        assert word in warnings[0]
        assert "`depth_unit`" in warnings[0]


# --- jobs ---


def job(origin: str = "imagine_path 1234", views: int = 3) -> Job:
    return Job(np.tile(np.eye(4), (views, 1, 1)), origin=origin, timeout=10.0)


def test_start_and_end_of_a_job_are_logged(clock):
    lines: list[str] = []
    log, first = JobLog(lines.append), job()
    log.on_started(first, CAMERA)
    assert lines == ["Imagining 3 views of 64x48 for imagine_path 1234."]
    first.views_done = 3
    log.on_ended(first, JobResult(), 1.5)
    assert lines[1] == (
        "Imagined 3 views for imagine_path 1234 in 1.50 s (0.500 s per view): 0% of the pixels observed, 0% estimated."
    )
    clock.seconds += 5
    second = job("the topic path", 1)
    log.on_started(second, CAMERA)
    log.on_ended(second, JobResult(ErrorCode.CANCELED, "Canceled by the client."), 0.25)
    assert lines[3] == "Ended with CANCELED after 0.25 s: 0 of 1 view for the topic path."


def test_jobs_that_follow_each_other_fast_do_not_fill_the_log(clock):
    """A replanner at 10 Hz for ten seconds."""
    lines: list[str] = []
    log = JobLog(lines.append)
    for _ in range(100):
        current = job()
        log.on_started(current, CAMERA)
        log.on_ended(current, JobResult(ErrorCode.SUPERSEDED, ""), 0.1)
        clock.seconds += 0.1
    starts = [line for line in lines if line.startswith("Imagining")]
    assert 9 <= len(starts) <= 11
    assert len(lines) == 2 * len(starts)
    assert "(9 jobs since the last one that was logged)" in starts[2] or "(10 jobs since" in starts[2]
