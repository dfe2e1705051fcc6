"""What the node says of points and pixels, over DDS against a node in its own process."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import CAMERA, HEIGHT, NODE, WIDTH, Robot, camera_at, running, scene, wait_for
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray
from worldstereo_ros.msg import ImaginedView
from worldstereo_ros.srv import ImagineView

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.clouds import cloud_arrays

MAPS = {Provenance.OBSERVED: "map", Provenance.ESTIMATED: "map/estimated", Provenance.IMAGINED: "map/imagined"}


@pytest.fixture(scope="module")
def empty():
    """A node with an empty memory; by default depth is estimated until the first depth image arrives."""
    with running() as (node, robot):
        yield node, robot


@pytest.fixture
def fresh():
    """As `empty`, a new process for each test: the node has received no depth image yet."""
    with running() as (node, robot):
        yield node, robot


def subscribe_maps(robot: Robot) -> dict[Provenance, list[PointCloud2]]:
    maps = {kind: robot.subscribe(f"{NODE}/{name}", PointCloud2, qos.MAP) for kind, name in MAPS.items()}
    assert wait_for(lambda: all(maps.values())), "a map was not published"
    return maps


def publish(robot: Robot, *, with_depth: bool, depth_delay: float = 0.0) -> None:
    """Publishes one image as drivers do, without waiting for the node."""
    image, info, depth = robot.view()
    robot.send_tf(0.0, image.header.stamp)
    robot.info.publish(info)
    robot.image.publish(image)
    if with_depth:
        time.sleep(depth_delay)
        robot.depth.publish(depth)


def wait_taken(robot: Robot, count: int) -> None:
    assert wait_for(lambda: robot.observations_taken() >= count), robot.diagnostics()


def wait_widths(robot: Robot, maps: dict[Provenance, list[PointCloud2]]) -> dict[Provenance, int]:
    """Waits until the published maps have the numbers of points that the diagnostics report, and returns these."""

    def agreed() -> dict[Provenance, int] | None:
        values = robot.diagnostics()
        counts = {kind: int(values.get(f"{kind.name.lower()} points", -1)) for kind in maps}
        return counts if all(maps[kind][-1].width == count for kind, count in counts.items()) else None

    time.sleep(0.3)  # diagnostics and maps have a period of 0.1 s
    counts = wait_for(agreed)
    assert counts, (robot.diagnostics(), {kind: received[-1].width for kind, received in maps.items()})
    return counts


def depth_only_count(robot: Robot, maps: dict[Provenance, list[PointCloud2]]) -> int:
    """Number of points in ~/map of a memory that only ever got the measured view."""
    assert robot.call("reset", Trigger.Request()).success
    taken = robot.observations_taken()
    publish(robot, with_depth=True)
    wait_taken(robot, taken + 1)
    return wait_widths(robot, maps)[Provenance.OBSERVED]


def test_measured_depth_replaces_estimated_depth(fresh):
    """A camera whose depth driver comes up later leaves no second surface."""
    node, robot = fresh
    maps = subscribe_maps(robot)
    publish(robot, with_depth=False)
    wait_taken(robot, 1)
    counts = wait_widths(robot, maps)
    assert counts[Provenance.OBSERVED] == counts[Provenance.IMAGINED] == 0
    assert counts[Provenance.ESTIMATED] > 1000
    node.wait_log("Observations have no measured depth")
    assert robot.diagnostics()["depth of the newest observation"] == "estimated"
    assert [field.name for field in maps[Provenance.ESTIMATED][-1].fields] == [
        "x", "y", "z", "rgb", "confidence", "depth_confidence",
    ]  # fmt: skip

    publish(robot, with_depth=True)
    wait_taken(robot, 2)
    counts = wait_widths(robot, maps)
    assert_no_ghost(maps)
    node.wait_log("Observations have measured depth")
    assert counts[Provenance.OBSERVED] == depth_only_count(robot, maps)


def assert_no_ghost(maps: dict[Provenance, list[PointCloud2]]) -> None:
    """No estimated point lies where the camera at the origin measured."""
    points, _ = cloud_arrays(maps[Provenance.ESTIMATED][-1])
    rows, _ = pixels_of(points, CAMERA, camera_at(0.0))
    assert len(rows) == 0, f"{len(rows)} estimated points where the sensor measured all pixels"


def pixels_of(points: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that see points (N, 3) of the world; those outside the image are left out."""
    local = (points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    columns = np.rint(local[:, 0] / local[:, 2] * camera.fx + camera.cx)
    rows = np.rint(local[:, 1] / local[:, 2] * camera.fy + camera.cy)
    inside = (local[:, 2] > 0) & (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    return rows[inside].astype(int), columns[inside].astype(int)


def test_depth_that_starts_while_the_camera_runs(fresh):
    """Images and late depth images in the order of a driver that starts: never both surfaces, whoever wins the race."""
    _, robot = fresh
    maps = subscribe_maps(robot)
    robot.set(sync_timeout=0.15)
    for index in range(8):  # depth starts with the fifth image, and its first message comes after the time-out
        publish(robot, with_depth=index >= 4, depth_delay=0.3 if index == 4 else 0.02)
        time.sleep(0.25)
    assert wait_for(lambda: robot.diagnostics().get("depth of the newest observation") == "measured")
    counts = wait_widths(robot, maps)
    assert_no_ghost(maps)
    assert counts[Provenance.OBSERVED] == depth_only_count(robot, maps)
    # From now on an image that lost its depth is rejected.
    rejected = int(robot.diagnostics().get("image rejected", 0))
    publish(robot, with_depth=False)
    assert wait_for(lambda: int(robot.diagnostics()["image rejected"]) == rejected + 1)
    assert wait_widths(robot, maps)[Provenance.ESTIMATED] == 0


def test_depth_within_the_timeout_is_measured(fresh):
    """An image waits for its depth, so that the first one of a robot that has depth is never estimated."""
    _, robot = fresh
    maps = subscribe_maps(robot)
    publish(robot, with_depth=True, depth_delay=0.1)
    wait_taken(robot, 1)
    counts = wait_widths(robot, maps)
    assert counts[Provenance.OBSERVED] > 1000
    assert counts[Provenance.ESTIMATED] == 0


def test_views_and_clouds_of_estimated_depth(fresh):
    """Nothing is observed in what the node publishes of a camera without depth."""
    _, robot = fresh
    publish(robot, with_depth=False)
    wait_taken(robot, 1)
    received = {
        "view": robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW),
        "provenance": robot.subscribe(f"{NODE}/provenance", Image, qos.VIEW),
        "points": robot.subscribe(f"{NODE}/points", PointCloud2, qos.CLOUD),
        "points/observed": robot.subscribe(f"{NODE}/points/observed", PointCloud2, qos.CLOUD),
        "views": robot.subscribe(f"{NODE}/views", MarkerArray, qos.MAP),
    }
    assert wait_for(lambda: received["views"])
    time.sleep(0.3)  # discovery of the volatile topics
    robot.send_tf(0.0)
    _, result = robot.imagine(robot.goal(length=0.0, poses=1))
    assert wait_for(lambda: all(received.values()))
    assert result.observed_fraction == 0
    assert result.estimated_fraction > 0.5
    view = received["view"][-1]
    classes = messages.grey_array(view.provenance)
    assert not np.asarray(view.observed.data).any()
    assert (classes == Provenance.ESTIMATED).mean() == pytest.approx(view.estimated_fraction, abs=1e-6)
    assert set(np.unique(classes)) <= {Provenance.IMAGINED, Provenance.ESTIMATED}
    assert received["provenance"][-1] == view.provenance
    fields = read_fields(received["points"][-1])
    assert not fields["observed"].any()
    assert set(np.unique(fields["provenance"])) <= {Provenance.IMAGINED, Provenance.ESTIMATED}
    assert received["points/observed"][-1].width == 0
    by_name = {marker.ns: len(marker.points) for marker in received["views"][-1].markers}
    assert (by_name["observed views"], by_name["estimated views"]) == (0, 16)
    answer = robot.call("imagine_view", ImagineView.Request(pose=origin()))
    assert answer.view.observed_fraction == 0
    assert (messages.grey_array(answer.view.provenance) == Provenance.ESTIMATED).mean() > 0.5


def origin() -> PoseStamped:
    pose = PoseStamped(header=Header(frame_id="map"))
    pose.pose.orientation.w = 1.0
    return pose


def read_fields(cloud: PointCloud2) -> dict[str, np.ndarray]:
    """The fields of a cloud beyond its coordinates, by name, read by their offsets."""
    raw = np.frombuffer(cloud.data, np.uint8).reshape(-1, cloud.point_step)
    kinds = {7: ("<f4", 4), 2: ("u1", 1)}
    out = {}
    for field in cloud.fields[4:]:
        kind, size = kinds[field.datatype]
        out[field.name] = raw[:, field.offset : field.offset + size].copy().view(kind)[:, 0]
    return out


def test_points_tell_their_provenance(empty):
    _, robot = empty
    robot.publish_view()
    received = {
        name: robot.subscribe(f"{NODE}/{name}", PointCloud2, qos.CLOUD) for name in ("points", "points/observed")
    }
    time.sleep(0.3)
    robot.send_tf(0.0)
    goal = robot.goal(length=0.0, poses=1)
    goal.path.poses[0].pose.position.y = 0.6  # sideways: a part of the view was never seen
    robot.imagine(goal)
    assert wait_for(lambda: all(received.values()))
    cloud, observed = received["points"][-1], received["points/observed"][-1]
    assert cloud.point_step == 32
    fields = read_fields(cloud)
    assert list(fields) == ["observed", "confidence", "depth_confidence", "provenance"]
    assert {Provenance.IMAGINED, Provenance.OBSERVED} <= set(np.unique(fields["provenance"])) <= set(Provenance)
    np.testing.assert_array_equal(fields["observed"] == 1, fields["provenance"] == Provenance.OBSERVED)
    assert ((fields["depth_confidence"] >= 0) & (fields["depth_confidence"] <= 1)).all()
    mask = fields["observed"] == 1
    assert 0 < mask.sum() == observed.width < cloud.width
    np.testing.assert_allclose(cloud_arrays(observed)[0], cloud_arrays(cloud)[0][mask], atol=1e-5)
    assert (read_fields(observed)["provenance"] == Provenance.OBSERVED).all()


# --- a robot that stands still ---


def shares(views: list) -> list[float]:
    return [view.observed_fraction for view in views]


@pytest.mark.parametrize("path", ["forward", "sideways"])
def test_identical_frames_support_no_more_than_one(empty, path):
    """The share of observed pixels does not grow with the number of frames from one place."""
    _, robot = empty
    views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
    time.sleep(0.3)
    noisy = scene()[1] * (1 + 0.03 * np.random.default_rng(1).standard_normal((HEIGHT, WIDTH)))
    goal = robot.goal(length=0.4 if path == "forward" else 0.0, poses=5)
    if path == "sideways":
        for index, pose in enumerate(goal.path.poses):
            pose.pose.position.y = 0.1 * index
            pose.pose.orientation.w = -1.0  # 0 0 0 1 would be no heading

    def observe() -> None:
        taken = robot.observations_taken()
        image, info, depth = robot.view()
        depth = messages.depth_message(noisy.astype(np.float32), image.header)
        robot.send_tf(0.0, image.header.stamp)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)
        wait_taken(robot, taken + 1)

    def imagine() -> list[float]:
        views.clear()
        robot.imagine(goal)
        assert wait_for(lambda: len(views) == 5)
        return shares(views)

    assert robot.call("reset", Trigger.Request()).success
    observe()
    once = imagine()
    assert 0.1 < np.mean(once[1:]) < 0.97  # there is room to grow
    for _ in range(5):
        observe()
    np.testing.assert_allclose(imagine(), once, atol=0.01)


# --- recordings ---

RECORDINGS = ("rgbd_tum_fr3_cabinet", "rgbd_hololens_office_a")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDINGS)
def test_recording_whose_depth_starts_late(shared_data, name):
    view = open_sequence(shared_data / name)[0]
    with running() as (_, robot), WorldStereoClient(NODE, publish_tf=True) as client:
        client.wait_until_ready()
        maps = subscribe_maps(robot)
        client.add_observation(dataclasses.replace(view, depth=None))
        counts = wait_widths(robot, maps)
        assert counts[Provenance.OBSERVED] == 0
        assert counts[Provenance.ESTIMATED] > 10_000
        client.add_observation(view)
        counts = wait_widths(robot, maps)
        # Estimated points are left where the sensor measured nothing, and only there.
        points, _ = cloud_arrays(maps[Provenance.ESTIMATED][-1])
        rows, columns = pixels_of(points, view.camera, view.world_from_camera)
        assert (view.depth[rows, columns] > 0).sum() < 1e-3 * counts[Provenance.OBSERVED]
        assert client.reset()[0]
        client.add_observation(view)
        assert wait_widths(robot, maps)[Provenance.OBSERVED] == counts[Provenance.OBSERVED]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDINGS)
def test_parked_robot_on_recordings(shared_data, name):
    sequence = open_sequence(shared_data / name)
    path = np.stack([sequence[index].world_from_camera for index in range(1, min(len(sequence), 32), 6)])
    with running({"view_width": 320}) as (_, robot), WorldStereoClient(NODE, publish_tf=True) as client:
        client.wait_until_ready()
        client.add_observation(sequence[0])
        once = shares(client.imagine(path).views)
        assert 0.05 < once[0] < 0.95
        for _ in range(5):
            client.add_observation(sequence[0])
        wait_taken(robot, 6)
        np.testing.assert_allclose(shares(client.imagine(path).views), once, atol=0.01)
