"""Jobs, the mailbox, the joining of messages and the worker, without a node."""

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
from worldstereo_ros.ros.node.synchronizer import KEPT, Observation, Synchronizer
from worldstereo_ros.ros.node.worker import MAX_WAITING_VIEWS, Worker
from worldstereo_ros.world import WorldModel

POSES = np.tile(np.eye(4), (3, 1, 1))


def job(ends: list | None = None, **options) -> Job:
    values = {"origin": "test", "timeout": 60.0, "on_end": None if ends is None else ends.append, **options}
    return Job(POSES, **values)


def test_mailbox_keeps_the_newest_and_counts():
    box = Mailbox()
    assert box.take() is None
    assert box.put("a") is None
    assert box.put("b") == "a"
    assert box.put("c") == "b"
    assert (box.dropped, box.peek(), box.take(), box.take()) == (2, "c", "c", None)


def test_job_ends_once_whoever_ends_it():
    ends: list[JobResult] = []
    work = job(ends)
    threads = [
        threading.Thread(target=work.end, args=(JobResult(code),))
        for code in (ErrorCode.TIMEOUT, ErrorCode.CANCELED) * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 1
    assert work.ended
    with pytest.raises(Cancelled):
        work.check()


def test_first_reason_to_stop_counts():
    work = job()
    work.stop(ErrorCode.SUPERSEDED, "newer")
    work.stop(ErrorCode.CANCELED, "client")
    assert work.stopped() == JobResult(ErrorCode.SUPERSEDED, "newer")


def test_job_over_its_deadline_stops_itself():
    work = job(timeout=0.0)
    time.sleep(0.01)
    with pytest.raises(Cancelled):
        work.check()
    assert work.stopped().code == ErrorCode.TIMEOUT


# --- joining ---


def stamped(kind, milliseconds: int, frame: str = "camera"):
    return kind(header=Header(stamp=messages.time_message(milliseconds * 1_000_000), frame_id=frame))


def joiner(**values) -> Synchronizer:
    out = Synchronizer()
    for name, value in values.items():
        setattr(out, name, value)
    return out


def test_equal_stamps_join_in_any_order():
    for order in ("idc", "cdi", "dci", "icd"):
        join = joiner()
        for letter in order:
            if letter == "i":
                join.add_image(stamped(Image, 100), "image", 0.0)
            elif letter == "d":
                join.add_depth(stamped(Image, 100))
            else:
                join.add_info(stamped(CameraInfo, 100))
        done, given_up = join.joined(0.0)
        assert len(done) == 1, order
        assert not given_up
        assert done[0].depth is not None
        assert join.joined(10.0) == ([], [])


def test_nearest_is_taken_only_when_the_right_one_cannot_come():
    join = joiner(depth="ignored")
    join.add_image(stamped(Image, 100), "image", 0.0)
    join.add_info(stamped(CameraInfo, 95))
    assert join.joined(0.0) == ([], [])
    join.add_info(stamped(CameraInfo, 110))
    done, _ = join.joined(0.0)
    assert messages.nanoseconds(done[0].info.header.stamp) == 95_000_000


def test_depth_is_waited_for_and_then_done_without():
    join = joiner(wait=0.3)
    join.add_info(stamped(CameraInfo, 100))
    join.add_image(stamped(Image, 100), "image", 0.0)
    join.add_depth(stamped(Image, 20))  # 80 ms off
    assert join.joined(0.29) == ([], [])
    done, _ = join.joined(0.3)
    assert done[0].depth is None


def test_depth_that_is_needed_is_named_when_it_does_not_come():
    join = joiner(depth="needed")
    for depth in (None, 20):
        if depth:
            join.add_depth(stamped(Image, depth))
        join.add_info(stamped(CameraInfo, 100))
        join.add_image(stamped(Image, 100), "image", 0.0)
        done, given_up = join.joined(1.0)
        assert not done
        assert ("80.0 ms" if depth else "No depth has come") in given_up[0][1]


def test_depth_that_came_once_is_needed_from_then_on():
    join = joiner(depth="tried")
    for depth, given in ((None, True), (20, False)):
        if depth:
            join.add_depth(stamped(Image, depth))
        join.add_info(stamped(CameraInfo, 100))
        join.add_image(stamped(Image, 100), "image", 0.0)
        done, given_up = join.joined(1.0)
        assert (len(done), len(given_up)) == ((1, 0) if given else (0, 1))


def test_camera_info_of_the_same_frame_stands_in_and_of_another_does_not():
    join = joiner(depth="ignored")
    join.add_info(stamped(CameraInfo, 0, "left"))
    join.add_image(stamped(Image, 5000, "right"), "image", 0.0)
    join.add_image(stamped(Image, 5000, "left"), "image", 0.0)
    done, given_up = join.joined(1.0)
    assert [item.image.header.frame_id for item in done] == ["left"]
    assert "right" in given_up[0][1]


def test_what_waits_is_bounded():
    join = joiner()
    given_up = [join.add_image(stamped(Image, i), "image", 0.0) for i in range(3 * KEPT)]
    assert sum(item is not None for item in given_up) == 2 * KEPT
    for i in range(3 * KEPT):
        join.add_info(stamped(CameraInfo, i))
        join.add_depth(stamped(Image, i))
    assert len(join.joined(0.0)[0]) == KEPT


def test_time_set_back_keeps_what_came_of_the_new_time():
    join = joiner()
    join.add_info(stamped(CameraInfo, 100_000))
    join.add_depth(stamped(Image, 100_000))
    join.add_depth(stamped(Image, 1000))
    join.add_info(stamped(CameraInfo, 1000))
    join.forget_after(1_000_000_000)
    join.add_image(stamped(Image, 1000), "image", 0.0)
    assert len(join.joined(0.0)[0]) == 1
    assert len(join._infos) == len(join._depths) == 1


# --- seeds ---


def seed_of(image_size, depth_size=None, info_size=None) -> Observation:
    header = Header(frame_id="camera", stamp=Time(sec=1))
    width, height = image_size
    camera = Camera(*(info_size or image_size), 50.0, 50.0, 10.0, 10.0)
    depth = None
    if depth_size:
        depth = messages.depth_message(np.full(depth_size[::-1], 2, np.float32), header)
    image = messages.colour_message(np.zeros((height, width, 3), np.uint8), header)
    return Observation(image, messages.info_message(camera, header), depth, np.eye(4), 1_000_000_000, "image")


def view_of(seed: Observation) -> View:
    return seed.view(seed.info)


def test_seed_becomes_a_view():
    view = view_of(seed_of((40, 30), (40, 30)))
    assert (view.camera.width, view.camera.height, view.stamp_ns) == (40, 30, 1_000_000_000)
    assert (view.depth == 2).all()
    assert view.observed is None


def test_depth_of_the_same_shape_is_fitted():
    view = view_of(seed_of((40, 30), (20, 15)))
    assert view.depth.shape == (30, 40)


def test_sizes_that_disagree_are_refused():
    for seed, word in (
        (seed_of((40, 30), (40, 20)), "registered"),
        (seed_of((40, 30), info_size=(80, 60)), "80x60"),
    ):
        with pytest.raises(ValueError, match=word):
            view_of(seed)


def test_a_panorama_without_depth_is_remembered_in_one_scale():
    """A depth model is right about every view up to a scale; in memory all views of one panorama have the same."""
    scales = itertools.cycle((1.0, 1.6, 0.7))

    def estimator(image, camera):
        return np.full(image.shape[:2], 3 * next(scales), np.float32) / np.linalg.norm(camera.rays(), axis=-1)

    world = WorldModel(GeometricPipeline(), depth_estimator=estimator)
    picture = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    image = messages.colour_message(picture, Header(frame_id="camera", stamp=Time(sec=1)))
    place = np.eye(4)
    place[:3, 3] = (1, 2, 3)
    Observation(image, None, None, place, 7, "panorama").remember(world)
    assert len(world.bank) > 8
    assert all(view.stamp_ns == 7 for view in world.bank.views)
    distance = np.linalg.norm(world.cloud.points - place[:3, 3], axis=1)
    low, high = np.percentile(distance, (5, 95))
    assert high < 1.1 * low


# --- the worker ---


class Told:
    """Events of the worker, written down."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def observation_remembered(self, world, seed) -> None:
        self.lines.append(f"seeded {seed.stamp_ns}")

    def on_rejected(self, topic, sentence) -> None:
        self.lines.append(f"refused {topic}: {sentence}")

    def imagined(self, view, job) -> None:
        self.lines.append(f"imagined {job.origin} {view}")

    def between_steps(self, world) -> None:
        pass

    def ended(self, job, outcome, seconds) -> None:
        self.lines.append(f"ended {job.origin} {outcome.code.name}")

    def fault(self, where, error) -> None:
        self.lines.append(f"fault {error!r}")


class StubView:
    coverage = observed_fraction = 0.5
    count = 3

    def __init__(self, index: int) -> None:
        self.index = index

    def __str__(self) -> str:
        return str(self.index)


class StubWorld:
    """A world that waits at a gate between its views."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.seeds: list = []

    def seed(self, view) -> None:
        self.seeds.append(view)

    def imagine(self, poses, camera, *, on_step, **options):
        for index in range(len(poses)):
            assert self.gate.acquire(timeout=10)
            on_step("imagining", index, len(poses))
            yield StubView(index)


@pytest.fixture
def works():
    told, world = Told(), StubWorld()
    worker = Worker(told, lambda world, job: None)
    worker.call(lambda: worker.adopt(world)).result(10)
    yield worker, told, world
    for _ in range(100):
        world.gate.release()
    assert worker.stop(10)


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_work_is_done_in_the_order_it_came(works):
    worker, told, world = works
    ends: list[JobResult] = []
    worker.submit_path(job(ends, origin="first"))
    until(lambda: worker.running is not None)
    for number in (1, 2, 3):  # while the job runs
        worker.offer_observation(Observation(None, None, None, np.eye(4), number, "image"))
    view = job(ends, origin=VIEW_ORIGIN)
    worker.submit_view(view)
    for _ in range(6):
        world.gate.release()
    until(lambda: len(ends) == 2 and worker.running is None)
    assert worker.observations_dropped == 2
    happened = [line for line in told.lines if not line.startswith("imagined")]
    assert happened[0] == "ended first NONE"
    assert "NoneType" in happened[1]  # the seed's turn, before the view that came after it
    assert happened[2] == f"ended {VIEW_ORIGIN} NONE"
    assert [outcome.views_done for outcome in ends] == [3, 3]
    assert ends[0].coverage == 0.5


def test_newer_path_ends_the_older_ones(works):
    worker, _, world = works
    ends: dict[str, list] = {name: [] for name in "abc"}
    worker.submit_path(job(ends["a"], origin="a"))
    until(lambda: worker.running is not None)
    worker.submit_path(job(ends["b"], origin="b"))
    worker.submit_path(job(ends["c"], origin="c"))
    assert ends["b"][0].code == ErrorCode.SUPERSEDED  # it waited, so it ends at once
    for _ in range(5):
        world.gate.release()
    until(lambda: ends["a"] and ends["c"])
    assert ends["a"][0].code == ErrorCode.SUPERSEDED
    assert ends["c"][0].code == ErrorCode.NONE


def test_waiting_views_are_bounded(works):
    worker, _, _ = works
    worker.submit_path(job())
    until(lambda: worker.running is not None)
    accepted = [worker.submit_view(job(origin=VIEW_ORIGIN)) for _ in range(MAX_WAITING_VIEWS + 3)]
    assert accepted == [True] * MAX_WAITING_VIEWS + [False] * 3


def test_withdrawn_job_ends_at_once_where_it_waits(works):
    worker, _, world = works
    ends: list[JobResult] = []
    worker.submit_path(job(origin=VIEW_ORIGIN))
    until(lambda: worker.running is not None)
    waiting = job(ends)
    worker.submit_path(waiting)
    worker.withdraw(waiting, ErrorCode.CANCELED, "asked")
    assert ends[0].code == ErrorCode.CANCELED
    for _ in range(3):
        world.gate.release()
    until(lambda: worker.running is None)
    assert len(ends) == 1


def test_exception_of_a_call_goes_to_who_called(works):
    worker, told, _ = works
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(10)
    assert worker.call(lambda: 5).result(10) == 5
    assert not told.lines
