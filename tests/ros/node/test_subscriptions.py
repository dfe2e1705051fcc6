"""What the node takes in: conventions of images and depth, its own output, changes of the camera; in one process."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node import diagnostics, subscriptions
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.subscriptions import Subscriptions
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer

SECOND = 1_000_000_000
CAMERA = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)
OPTICAL = (0.5, -0.5, 0.5, -0.5)  # w x y z: looks along x, up is z


class Intake:
    """The subscriptions of a node whose topics and publishers are given, fed by calls instead of DDS."""

    def __init__(
        self, remap: dict[str, str] | None = None, frame: str = "camera_optical", quaternion=OPTICAL, **values
    ):
        self.warnings: list[str] = []
        self.lines: list[str] = []
        self.observations: list[Observation] = []
        self.callbacks: dict = {}
        self.buffer = buffer = TransformBuffer()
        buffer.insert("map", "base_link", (0, 0, 0), (1, 0, 0, 0), 0, static=True)
        buffer.insert("base_link", frame, (0, 0, 0.5), quaternion, 0, static=True)
        parameters = NodeParameters(sync_timeout=0.0, **values)
        resolver = PoseResolver(buffer, parameters, lambda text, key: self.warnings.append(text))
        self.diagnostics = NodeDiagnostics(self.warnings.append)
        node = SimpleNamespace(
            create_subscription=lambda kind, name, callback, *rest, **options: self._subscribe(
                name, callback, remap or {}
            ),
            publishers=[SimpleNamespace(topic_name="/worldstereo/image")],
            count_publishers=lambda topic: 0,
            get_logger=lambda: SimpleNamespace(info=self.lines.append),
        )
        self.subscriptions = Subscriptions(
            node, parameters, resolver, self.diagnostics, self.observations.append, lambda name, callback: callback
        )

    def _subscribe(self, name: str, callback, remap: dict[str, str]) -> SimpleNamespace:
        self.callbacks[name] = callback
        return SimpleNamespace(topic_name=remap.get(name, f"/{name}"))

    def send(
        self,
        second: int = 1,
        frame: str = "camera_optical",
        info=None,
        depth=None,
        camera=CAMERA,
        names=("camera_info", "depth", "image"),
    ):
        header = Header(stamp=messages.time_message(second * SECOND), frame_id=frame)
        image = np.empty((camera.height, camera.width, 3), np.uint8)
        image[:] = 3 * np.arange(camera.width, dtype=np.uint8)[None, :, None]  # a ramp
        if depth is None:
            depth = messages.depth_message(np.full((camera.height, camera.width), 2.0, np.float32), header)
        depth.header = header
        all_messages = {
            "camera_info": info or messages.info_message(camera, header),
            "depth": depth,
            "image": messages.colour_message(image, header),
        }
        all_messages["camera_info"].header = header
        for name in names:
            self.callbacks[name](all_messages[name])
        self.subscriptions.process_pending()


def raw_info() -> CameraInfo:
    """The camera_info of a lens with distortion, whose rectified images have another focal length."""
    info = messages.info_message(CAMERA, Header())
    info.d = [-0.3, 0.1, 0.0, 0.0, 0.0]
    info.p = [50.0, 0.0, 31.5, 0.0, 0.0, 50.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


# --- rectified images ---


@pytest.mark.parametrize(
    ("topic", "setting", "rectified"),
    [
        ("/camera/image_rect_color", "auto", True),
        ("/camera/image_raw", "auto", False),
        ("/camera/image_raw", "true", True),
        ("/camera/image_rect", "false", False),
    ],
)
def test_rectified_images_are_seen_with_p_and_not_undistorted(topic, setting, rectified):
    intake = Intake({"image": topic}, rectified=setting)
    intake.send(info=raw_info())
    view = intake.observations[0].view(intake.observations[0].info)
    assert view.camera.fx == (50.0 if rectified else 60.0)
    # The ramp of a rectified image is straight, even where borders that the lens did not see were cut off.
    assert (np.diff(view.image[..., 0].astype(int), axis=1) == 3).all() == rectified
    assert topic in intake.lines[0]
    assert ("taken as rectified" in intake.lines[0]) == rectified
    assert ("If they are rectified" in intake.lines[0]) != rectified


def test_camera_info_of_rectified_images_alone_is_accepted():
    """A driver that fills P and leaves K at zero."""
    info = raw_info()
    info.k = [0.0] * 9
    intake = Intake({"image": "/image_rect"})
    intake.send(info=info)
    assert len(intake.observations) == 1
    raw = Intake()
    raw.send(info=info)
    assert not raw.observations
    assert any("not calibrated" in text for text in raw.warnings)


# --- axes ---


def test_body_frame_is_noticed_and_said():
    """Gazebo stamps images with the link's frame: x ahead, z up."""
    intake = Intake(frame="camera_link", quaternion=(1, 0, 0, 0))
    intake.send(frame="camera_link")
    np.testing.assert_allclose(intake.observations[0].world_from_camera[:3, 2], (1, 0, 0), atol=1e-9)
    assert any("body axes" in text and "camera_axes: optical" in text for text in intake.warnings)


@pytest.mark.parametrize(
    ("frame", "quaternion", "setting", "ahead"),
    [
        ("camera_link", (1, 0, 0, 0), "optical", (0, 0, 1)),
        ("camera_link", OPTICAL, "auto", (1, 0, 0)),
        ("camera_optical", OPTICAL, "body", (0, -1, 0)),
        ("camera_optical", (1, 0, 0, 0), "auto", (0, 0, 1)),  # its name says so
    ],
)
def test_axes_by_parameter(frame, quaternion, setting, ahead):
    intake = Intake(frame=frame, quaternion=quaternion, camera_axes=setting)
    intake.send(frame=frame)
    np.testing.assert_allclose(intake.observations[0].world_from_camera[:3, 2], ahead, atol=1e-9)
    said = any("look straight up" in text for text in intake.warnings)
    assert said == (setting == "auto" and frame == "camera_optical" and quaternion[0] == 1)


# --- depth ---


@pytest.mark.parametrize(
    ("unit", "encoding", "stored", "metres"),
    [
        ("auto", "16UC1", 2000, 2.0),
        ("0.1mm", "16UC1", 20000, 2.0),
        ("0.00025", "16UC1", 8000, 2.0),
        ("auto", "32FC1", 2.0, 2.0),
        ("mm", "32FC1", 2000.0, 2.0),
    ],
)
def test_depth_is_read_in_its_unit(unit, encoding, stored, metres):
    values = np.full((48, 64), stored, np.uint16 if encoding == "16UC1" else np.float32)
    depth = Image(height=48, width=64, encoding=encoding, step=64 * values.itemsize, data=messages.bytes_field(values))
    intake = Intake(depth_unit=unit)
    intake.send(depth=depth)
    view = intake.observations[0].view(intake.observations[0].info)
    np.testing.assert_allclose(view.depth, metres, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "word"),
    [((4, 3), "16 times as"), ((64, 36), "registered"), ((48, 48), "registered"), ((3, 3), "21.3 times as")],
)
def test_depth_of_another_shape_is_rejected(size, word):
    width, height = size
    depth = messages.depth_message(np.full((height, width), 2.0, np.float32), Header())
    intake = Intake()
    intake.send(depth=depth)
    assert not intake.observations
    assert any(word in text and f"{width}x{height}" in text for text in intake.warnings)
    assert intake.diagnostics._topics["image"].rejected == 1


@pytest.mark.parametrize("size", [(8, 6), (128, 96), (32, 24), (33, 24)])
def test_depth_of_another_resolution_is_resized(size):
    depth = messages.depth_message(np.full(size[::-1], 2.0, np.float32), Header())
    intake = Intake()
    intake.send(depth=depth)
    assert intake.observations[0].view(intake.observations[0].info).depth.shape == (48, 64)


# --- the node's own output ---


def test_own_imagined_images_are_not_observed():
    intake = Intake()
    intake.send(frame="imagined_camera")
    assert not intake.observations
    for name in ("image", "depth", "camera_info"):
        assert any(text.startswith(f"{name}: ") and "imagined would be remembered" in text for text in intake.warnings)
        assert intake.diagnostics._topics[name].rejected == 1
    intake.send(second=2)
    assert len(intake.observations) == 1


def test_input_remapped_to_an_own_topic_is_rejected():
    """Whatever frame a relay in between writes."""
    intake = Intake({"image": "/worldstereo/image"})
    intake.send()
    assert not intake.observations
    assert any("/worldstereo/image, which this node publishes" in text for text in intake.warnings)


def test_frame_of_imagined_views_is_that_of_the_parameter():
    intake = Intake(frame="imagined_camera", imagined_frame="ghost")
    intake.send(frame="imagined_camera")
    assert len(intake.observations) == 1
    intake.send(second=2, frame="/ghost")
    assert len(intake.observations) == 1


# --- camera_info that changes ---


def test_camera_that_changes_in_mid_stream_is_used_from_then_on_and_said(monkeypatch):
    monkeypatch.setattr(diagnostics, "LOG_PERIOD_S", 0.0)
    intake = Intake()
    zoomed, smaller = Camera(64, 48, 90.0, 90.0, 31.5, 23.5), Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
    for second, camera in enumerate((CAMERA, CAMERA, zoomed, smaller), start=1):
        intake.send(second=second, camera=camera)
    views = [observation.view(observation.info) for observation in intake.observations]
    assert [(view.camera.width, view.camera.fx) for view in views] == [(64, 60), (64, 60), (64, 90), (32, 30)]
    assert len(intake.lines) == 3
    assert [line.startswith("The camera_info has changed.") for line in intake.lines] == [False, True, True]


def test_image_without_camera_info_takes_the_nearest_one_and_not_the_last():
    """The camera_info of an image before a zoom got lost."""
    intake = Intake()
    zoomed = Camera(64, 48, 90.0, 90.0, 31.5, 23.5)
    intake.send(second=10, names=("camera_info",))
    intake.send(second=20, camera=zoomed, names=("camera_info",))
    intake.send(second=12, names=("depth", "image"))
    intake.send(second=19, names=("depth", "image"))
    assert [observation.info.k[0] for observation in intake.observations] == [60.0, 90.0]


# --- a reset ---


def test_images_that_wait_at_a_reset_are_not_remembered_after_it():
    """One waits for its depth, one for its pose; the camera_info stays for the images that follow."""
    intake = Intake()
    intake.subscriptions.apply(NodeParameters(sync_timeout=9.0, tf_timeout=9.0))
    intake.send(second=1, names=("camera_info", "image"))
    intake.send(second=2, frame="not in TF yet")
    intake.subscriptions.drop_images()
    intake.send(second=1, names=("depth",))
    intake.buffer.insert("map", "not in TF yet", (0, 0, 0), OPTICAL, 0, static=True)
    intake.subscriptions.process_pending()
    assert not intake.observations
    intake.send(second=3)
    assert [observation.stamp_ns for observation in intake.observations] == [3 * SECOND]


# --- no input ---


def test_idle_node_is_quiet(monkeypatch):
    """Images that stop are said once; a node that never got any says so at growing intervals."""
    now = SimpleNamespace(seconds=1000.0)
    clock = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(subscriptions, "time", clock)
    monkeypatch.setattr(diagnostics, "time", clock)
    intake = Intake()

    def idle(seconds: float) -> int:
        before = len(intake.warnings)
        for _ in range(int(seconds)):
            now.seconds += 1
            intake.subscriptions.warn_if_no_input()
        return len(intake.warnings) - before

    assert idle(4) == 0
    assert idle(2) == 1
    assert "No image for 5 s. Subscribed to /image (0 publishers)" in intake.warnings[-1]
    assert idle(28) == 0
    assert idle(3600) == 6
    intake.send()
    assert idle(3600) == 1
    intake.send(second=2)
    assert idle(3600) == 1
