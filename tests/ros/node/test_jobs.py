"""Jobs, the mailbox, the synchronizer and the worker, without a node."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobResult, Mailbox
from worldstereo_ros.ros.node.synchronizer import MAX_PENDING, Observation, Synchronizer
from worldstereo_ros.ros.node.worker import MAX_WAITING_VIEWS, Worker
from worldstereo_ros.world import WorldModel

POSES = np.tile(np.eye(4), (3, 1, 1))


def job(results: list | None = None, **options) -> Job:
    values = {"origin": "test", "timeout": 60.0, "on_end": None if results is None else results.append, **options}
    return Job(POSES, **values)


def test_tests_without_a_node_have_no_marker_ros(request):
    assert request.node.get_closest_marker("ros") is None  # `-m "not ros"` runs them


def test_mailbox_keeps_newest_and_counts_dropped():
    box = Mailbox()
    assert box.take() is None
    assert box.put("a") is None
    assert box.put("b") == "a"
    assert box.put("c") == "b"
    assert (box.dropped, box.peek(), box.take(), box.take()) == (2, "c", "c", None)


def test_job_ends_once():
    results: list[JobResult] = []
    work = job(results)
    threads = [
        threading.Thread(target=work.end, args=(JobResult(code),))
        for code in (ErrorCode.TIMEOUT, ErrorCode.CANCELED) * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert work.ended
    with pytest.raises(Cancelled):
        work.raise_if_stopped()


def test_first_stop_reason_is_reported():
    work = job()
    work.request_stop(ErrorCode.SUPERSEDED, "newer")
    work.request_stop(ErrorCode.CANCELED, "client")
    assert work.stop_result() == JobResult(ErrorCode.SUPERSEDED, "newer")


def test_job_stops_after_deadline():
    work = job(timeout=0.0)
    time.sleep(0.01)
    with pytest.raises(Cancelled):
        work.raise_if_stopped()
    assert work.stop_result().code == ErrorCode.TIMEOUT


# --- the synchronizer ---


def stamped(kind, milliseconds: int, frame: str = "camera"):
    return kind(header=Header(stamp=messages.time_message(milliseconds * 1_000_000), frame_id=frame))


def synchronizer(**values) -> Synchronizer:
    out = Synchronizer()
    for name, value in values.items():
        setattr(out, name, value)
    return out


def test_equal_stamps_match_in_any_order():
    for order in ("idc", "cdi", "dci", "icd"):
        sync = synchronizer()
        for letter in order:
            if letter == "i":
                sync.add_image(stamped(Image, 100), "image", 0.0)
            elif letter == "d":
                sync.add_depth(stamped(Image, 100))
            else:
                sync.add_info(stamped(CameraInfo, 100))
        ready, rejected = sync.pop_ready(0.0)
        assert len(ready) == 1, order
        assert not rejected
        assert ready[0].depth is not None
        assert sync.pop_ready(10.0) == ([], [])


def test_nearest_stamp_matches_once_exact_one_is_missed():
    sync = synchronizer(depth_policy="ignored")
    sync.add_image(stamped(Image, 100), "image", 0.0)
    sync.add_info(stamped(CameraInfo, 95))
    assert sync.pop_ready(0.0) == ([], [])
    sync.add_info(stamped(CameraInfo, 110))
    ready, _ = sync.pop_ready(0.0)
    assert messages.nanoseconds(ready[0].info.header.stamp) == 95_000_000


def test_optional_depth_is_skipped_after_timeout():
    sync = synchronizer(timeout=0.3)
    sync.add_info(stamped(CameraInfo, 100))
    sync.add_image(stamped(Image, 100), "image", 0.0)
    sync.add_depth(stamped(Image, 20))  # 80 ms off
    assert sync.pop_ready(0.29) == ([], [])
    ready, _ = sync.pop_ready(0.3)
    assert ready[0].depth is None


def test_missing_required_depth_is_rejected_with_reason():
    sync = synchronizer(depth_policy="required")
    for depth in (None, 20):
        if depth:
            sync.add_depth(stamped(Image, depth))
        sync.add_info(stamped(CameraInfo, 100))
        sync.add_image(stamped(Image, 100), "image", 0.0)
        ready, rejected = sync.pop_ready(1.0)
        assert not ready
        assert ("80.0 ms" if depth else "No depth image received") in rejected[0][1]


def test_auto_depth_is_required_after_first_depth():
    sync = synchronizer(depth_policy="auto")
    for depth, accepted in ((None, True), (20, False)):
        if depth:
            sync.add_depth(stamped(Image, depth))
        sync.add_info(stamped(CameraInfo, 100))
        sync.add_image(stamped(Image, 100), "image", 0.0)
        ready, rejected = sync.pop_ready(1.0)
        assert (len(ready), len(rejected)) == ((1, 0) if accepted else (0, 1))


def test_last_camera_info_of_same_frame_replaces_missing_one():
    sync = synchronizer(depth_policy="ignored")
    sync.add_info(stamped(CameraInfo, 0, "left"))
    sync.add_image(stamped(Image, 5000, "right"), "image", 0.0)
    sync.add_image(stamped(Image, 5000, "left"), "image", 0.0)
    ready, rejected = sync.pop_ready(1.0)
    assert [item.image.header.frame_id for item in ready] == ["left"]
    assert "right" in rejected[0][1]


def test_pending_messages_are_bounded():
    sync = synchronizer()
    dropped = [sync.add_image(stamped(Image, i), "image", 0.0) for i in range(3 * MAX_PENDING)]
    assert sum(item is not None for item in dropped) == 2 * MAX_PENDING
    for i in range(3 * MAX_PENDING):
        sync.add_info(stamped(CameraInfo, i))
        sync.add_depth(stamped(Image, i))
    assert len(sync.pop_ready(0.0)[0]) == MAX_PENDING


def test_discard_after_keeps_earlier_messages():
    sync = synchronizer()
    sync.add_info(stamped(CameraInfo, 100_000))
    sync.add_depth(stamped(Image, 100_000))
    sync.add_depth(stamped(Image, 1000))
    sync.add_info(stamped(CameraInfo, 1000))
    sync.discard_after(1_000_000_000)
    sync.add_image(stamped(Image, 1000), "image", 0.0)
    assert len(sync.pop_ready(0.0)[0]) == 1
    assert sync.pending == (0, 1, 1)


# --- observations ---


def observation_of(image_size, depth_size=None, info_size=None) -> Observation:
    header = Header(frame_id="camera", stamp=Time(sec=1))
    width, height = image_size
    camera = Camera(*(info_size or image_size), 50.0, 50.0, 10.0, 10.0)
    depth = None
    if depth_size:
        depth = messages.depth_message(np.full(depth_size[::-1], 2, np.float32), header)
    image = messages.colour_message(np.zeros((height, width, 3), np.uint8), header)
    return Observation(image, messages.info_message(camera, header), depth, np.eye(4), 1_000_000_000, "image")


def view_of(observation: Observation) -> View:
    return observation.view(observation.info)


def test_observation_converts_to_view():
    view = view_of(observation_of((40, 30), (40, 30)))
    assert (view.camera.width, view.camera.height, view.stamp_ns) == (40, 30, 1_000_000_000)
    assert (view.depth == 2).all()
    assert view.observed is None


def test_depth_is_resized_to_image():
    view = view_of(observation_of((40, 30), (20, 15)))
    assert view.depth.shape == (30, 40)


def test_inconsistent_sizes_raise():
    for observation, word in (
        (observation_of((40, 30), (40, 20)), "registered"),
        (observation_of((40, 30), info_size=(80, 60)), "80x60"),
    ):
        with pytest.raises(ValueError, match=word):
            view_of(observation)


def test_panorama_views_share_one_depth_scale():
    """A depth model has an arbitrary scale per view; in memory all views of a panorama have the same one."""
    scales = itertools.cycle((1.0, 1.6, 0.7))

    def estimator(image, camera):
        return np.full(image.shape[:2], 3 * next(scales), np.float32) / np.linalg.norm(camera.rays(), axis=-1)

    world = WorldModel(GeometricPipeline(), depth_estimator=estimator)
    panorama = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    image = messages.colour_message(panorama, Header(frame_id="camera", stamp=Time(sec=1)))
    pose = np.eye(4)
    pose[:3, 3] = (1, 2, 3)
    Observation(image, None, None, pose, 7, "panorama").remember(world)
    assert len(world.bank) > 8
    assert all(view.stamp_ns == 7 for view in world.bank.views)
    distance = np.linalg.norm(world.cloud.points - pose[:3, 3], axis=1)
    low, high = np.percentile(distance, (5, 95))
    assert high < 1.1 * low


# --- the worker ---


class RecordedEvents:
    """Implements `WorkerEvents` by a list of lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_observation_remembered(self, world, observation) -> None:
        self.lines.append(f"remembered {observation.stamp_ns}")

    def on_observation_rejected(self, topic, reason) -> None:
        self.lines.append(f"rejected {topic}: {reason}")

    def on_view(self, view, job) -> None:
        self.lines.append(f"imagined {job.origin} {view}")

    def between_steps(self, world) -> None:
        pass

    def on_job_ended(self, job, result, seconds) -> None:
        self.lines.append(f"ended {job.origin} {result.code.name}")

    def on_fault(self, where, error) -> None:
        self.lines.append(f"fault {error!r}")


class StubView:
    coverage = observed_fraction = 0.5
    estimated_fraction = 0.25
    count = 3

    def __init__(self, index: int) -> None:
        self.index, self.blocked = index, index == 1

    def __str__(self) -> str:
        return str(self.index)


class StubWorld:
    """A world model that waits for `gate` before each view."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)

    def imagine(self, poses, camera, *, on_step, **options):
        for index in range(len(poses)):
            assert self.gate.acquire(timeout=10)
            on_step("imagining", index, len(poses))
            yield StubView(index)


@pytest.fixture
def worker_setup():
    events, world = RecordedEvents(), StubWorld()
    worker = Worker(events, lambda world, job: None)
    worker.call(lambda: worker.set_world(world)).result(10)
    yield worker, events, world
    for _ in range(100):
        world.gate.release()
    assert worker.stop(10)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_work_runs_in_order_of_arrival(worker_setup):
    worker, events, world = worker_setup
    results: list[JobResult] = []
    worker.submit_path(job(results, origin="first"))
    wait_until(lambda: worker.running is not None)
    for number in (1, 2, 3):  # while the job runs
        worker.offer_observation(Observation(None, None, None, np.eye(4), number, "image"))
    view = job(results, origin=VIEW_ORIGIN)
    worker.submit_view(view)
    for _ in range(6):
        world.gate.release()
    wait_until(lambda: len(results) == 2 and worker.running is None)
    assert worker.observations_dropped == 2
    lines = [line for line in events.lines if not line.startswith("imagined")]
    assert lines[0] == "ended first NONE"
    assert "NoneType" in lines[1]  # the (invalid) observation, before the view that came after it
    assert lines[2] == f"ended {VIEW_ORIGIN} NONE"
    assert [result.views_done for result in results] == [3, 3]
    assert results[0].coverage == 0.5
    assert results[0].blocked == (False, True, False)


def test_newer_path_supersedes_older_ones(worker_setup):
    worker, _, world = worker_setup
    results: dict[str, list] = {name: [] for name in "abc"}
    worker.submit_path(job(results["a"], origin="a"))
    wait_until(lambda: worker.running is not None)
    worker.submit_path(job(results["b"], origin="b"))
    worker.submit_path(job(results["c"], origin="c"))
    assert results["b"][0].code == ErrorCode.SUPERSEDED  # waiting, so it ends at once
    for _ in range(5):
        world.gate.release()
    wait_until(lambda: results["a"] and results["c"])
    assert results["a"][0].code == ErrorCode.SUPERSEDED
    assert results["c"][0].code == ErrorCode.NONE


def test_waiting_single_views_are_bounded(worker_setup):
    worker, _, _ = worker_setup
    worker.submit_path(job())
    wait_until(lambda: worker.running is not None)
    accepted = [worker.submit_view(job(origin=VIEW_ORIGIN)) for _ in range(MAX_WAITING_VIEWS + 3)]
    assert accepted == [True] * MAX_WAITING_VIEWS + [False] * 3


def test_cancelled_waiting_job_ends_at_once(worker_setup):
    worker, _, world = worker_setup
    results: list[JobResult] = []
    worker.submit_path(job(origin=VIEW_ORIGIN))
    wait_until(lambda: worker.running is not None)
    waiting = job(results)
    worker.submit_path(waiting)
    worker.cancel(waiting, ErrorCode.CANCELED, "requested")
    assert results[0].code == ErrorCode.CANCELED
    for _ in range(3):
        world.gate.release()
    wait_until(lambda: worker.running is None)
    assert len(results) == 1


def test_exception_of_call_is_raised_to_caller(worker_setup):
    worker, events, _ = worker_setup
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(10)
    assert worker.call(lambda: 5).result(10) == 5
    assert not events.lines
