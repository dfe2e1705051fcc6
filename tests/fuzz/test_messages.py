"""Sensor messages whose fields have the right types and any values, through the node's own classes in this process."""

import array
import io
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz.mutations import damaged
from fuzz.running import bounded, fuzz
from hypothesis import strategies as st
from PIL import Image as PillowImage

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.parameters import make_parameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.subscriptions import Subscriptions
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer
from worldstereo_ros.world import WorldModel

pytestmark = pytest.mark.usefixtures("one_thread")
CAMERA = Camera.from_fov(16, 12, 1.2)
ENCODINGS = [
    "rgb8", "bgr8", "rgba8", "mono8", "mono16", "16UC1", "32FC1", "8UC3", "yuv422", "yuv422_yuy2", "nv12", "nv21",
    "bayer_rggb8", "bayer_gbrg16", "64FC1", "", "rgb8; jpeg compressed", "x" * 300,
]  # fmt: skip
SIZES = st.one_of(st.integers(0, 20), st.sampled_from([2**16, 2**31 - 1, 2**32 - 1, 40_000]))
FLOATS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, 16.0, 12.0])
)
FRAMES = st.sampled_from(["camera", "/camera", "", "map", "é", "a/b", "imagined_camera", "x" * 2000])
HEADERS = st.builds(
    lambda sec, nanosec, frame: Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame),
    st.sampled_from([0, 1, 100, -1, -(2**31), 2**31 - 1]),
    st.sampled_from([0, 1, 999_999_999, 2**32 - 1]),
    FRAMES,
)


class RecordingDiagnostics:
    """What `Subscriptions` needs of the node's diagnostics."""

    def __init__(self):
        self.rejected = []

    def on_message(self, name):
        pass

    def on_rejected(self, name, reason):
        assert reason.strip()
        self.rejected.append(reason)

    def warn(self, text, key=""):
        assert text.strip()

    def last_at(self, name):
        return None

    def is_log_due(self, key):
        return True


class Intake:
    """The node's way from messages to memory, without ROS."""

    def __init__(self, **changes):
        parameters = make_parameters({"min_observation_period": 0.0, "max_image_pixels": 1_000_000, **changes})
        logger = SimpleNamespace(info=str, warning=str, error=str, debug=str)
        node = SimpleNamespace(
            publishers=[],
            create_subscription=lambda kind, name, *_, **__: SimpleNamespace(topic_name=f"/{name}"),
            get_logger=lambda: logger,
        )
        transforms = TransformBuffer()
        transforms.insert("map", "camera", (0, 0, 0), (1, 0, 0, 0), 0, static=True)
        self.diagnostics, self.observations = RecordingDiagnostics(), []
        self.subscriptions = Subscriptions(
            node,
            parameters,
            PoseResolver(transforms, parameters),
            self.diagnostics,
            self.observations.append,
            lambda name, callback: callback,
        )
        self.handlers = {
            "image": self.subscriptions._on_image,
            "image/compressed": self.subscriptions._on_image,
            "camera_info": self.subscriptions._on_info,
            "depth": self.subscriptions._on_depth,
            "panorama": self.subscriptions._on_panorama,
            "pose": self.subscriptions._on_pose,
        }
        self.world = WorldModel(GeometricPipeline())

    def take(self, name, message):
        self.subscriptions._on_message(name, self.handlers[name], message)

    def remember(self):
        while self.observations:
            self.observations.pop(0).remember(self.world)

    def take_valid(self, stamp):
        """A valid view is remembered."""
        header = Header(stamp=Time(sec=stamp), frame_id="camera")
        before = self.world.newest_observation
        image = np.full((12, 16, 3), 90, np.uint8)
        self.take("camera_info", messages.info_message(CAMERA, header))
        self.take("depth", messages.depth_message(np.full((12, 16), 2, np.float32), header))
        self.take("image", messages.colour_message(image, header))
        self.remember()
        assert self.world.newest_observation is not before, self.diagnostics.rejected[-3:]


@st.composite
def images(draw):
    """Any sizes, encodings and lengths; about one in three has fields that fit each other."""
    encoding, width, height = draw(st.sampled_from(ENCODINGS)), draw(SIZES), draw(SIZES)
    fits = draw(st.integers(0, 2)) == 0 and width * height <= 10_000
    step = width * draw(st.sampled_from([1, 2, 3, 4])) if fits else draw(st.one_of(SIZES, st.just(3_000_000_000)))
    length = step * height if fits else draw(st.integers(0, 2000))
    fill = draw(st.sampled_from([0, 1, 127, 255]))
    return Image(
        header=draw(HEADERS), height=height, width=width, encoding=encoding,
        is_bigendian=draw(st.sampled_from([0, 1, 255])), step=step, data=array.array("B", bytes([fill]) * length),
    )  # fmt: skip


@st.composite
def infos(draw):
    k = [draw(FLOATS) for _ in range(9)] if draw(st.booleans()) else [14.0, 0, 7.5, 0, 14, 5.5, 0, 0, 1]
    p = [draw(FLOATS) for _ in range(12)] if draw(st.booleans()) else [14.0, 0, 7.5, 0, 0, 14, 5.5, 0, 0, 0, 1, 0]
    return CameraInfo(
        header=draw(HEADERS), width=draw(st.one_of(st.just(16), SIZES)), height=draw(st.one_of(st.just(12), SIZES)),
        distortion_model=draw(st.sampled_from(["", "plumb_bob", "rational_polynomial", "equidistant", "fisheye", "x"])),
        d=draw(st.lists(FLOATS, max_size=14)), k=k, p=p, r=[draw(FLOATS) for _ in range(9)],
        binning_x=draw(SIZES), binning_y=draw(SIZES),
    )  # fmt: skip


@st.composite
def poses(draw):
    numbers = [draw(FLOATS) for _ in range(7)]
    pose = Pose(position=Point(x=numbers[0], y=numbers[1], z=numbers[2]))
    if draw(st.booleans()):
        pose.orientation = Quaternion(x=numbers[3], y=numbers[4], z=numbers[5], w=numbers[6])
    return PoseStamped(header=draw(HEADERS), pose=pose)


def encoded_images():
    """JPEG, PNG, TIFF and others, whole and damaged, under formats that are right or not."""
    contents = []
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        out = io.BytesIO()
        PillowImage.new("RGB", (16, 12), (200, 30, 90)).save(out, kind)
        contents.append(out.getvalue())
    contents += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\n", b"", bytes(12), b"<svg/>"]
    formats = ["jpeg", "png", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth png", "", "tiff", "h264", "é"]
    data = st.sampled_from(contents).flatmap(lambda content: st.one_of(st.just(content), damaged(content)))
    return st.builds(
        lambda header, form, content: CompressedImage(header=header, format=form, data=array.array("B", content)),
        HEADERS, st.sampled_from(formats), data,
    )  # fmt: skip


def test_sensor_messages():
    intake, stamp = Intake(), [0]

    def check(batch):
        with bounded(repr(batch).encode(), ".txt"):
            for name, message in batch:
                intake.take(name, message)
        while intake.observations:
            with bounded():
                intake.observations.pop(0).remember(intake.world)
        assert np.isfinite(intake.world.cloud.points).all()
        stamp[0] += 1
        # The node continues as before: with the stamps of a recording that starts over.
        intake.subscriptions.on_time_jump(0)
        intake.take_valid(1000 + stamp[0])

    pairs = st.one_of(
        st.tuples(st.just("image"), images()),
        st.tuples(st.just("image/compressed"), encoded_images()),
        st.tuples(st.just("depth"), images()),
        st.tuples(st.just("camera_info"), infos()),
        st.tuples(st.just("panorama"), images()),
        st.tuples(st.just("pose"), poses()),
    )
    fuzz(check, st.lists(pairs, min_size=1, max_size=6), examples=60)
    assert len(intake.diagnostics.rejected) > 10


def test_paths():
    transforms = TransformBuffer()
    transforms.insert("map", "camera", (0, 0, 0), (1, 0, 0, 0), 0, static=True)
    resolver = PoseResolver(transforms, make_parameters({}))

    def check(header, stamped):
        with bounded(repr((header, stamped)).encode(), ".txt"):
            result = resolver.path_poses(Path(header=header, poses=stamped), 21)
            assert np.isfinite(result).all()

    fuzz(check, HEADERS, st.lists(poses(), max_size=8), examples=60)
