"""Damaged serialised messages: the ROS libraries in a process of their own, and the reader of bags here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import damaged
from fuzz.running import bounded, fuzz
from helpers import recordings
from hypothesis import strategies as st

from worldstereo_ros.io.bags import decoding

CHILD = Path(__file__).parent / "cdr_child.py"


def contents():
    """(index of the type in the child, serialised message)."""
    from builtin_interfaces.msg import Time
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image
    from std_msgs.msg import Header
    from tf2_msgs.msg import TFMessage
    from worldstereo_ros.action import ImaginePath
    from worldstereo_ros.msg import ImaginedView

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.ros.conversions import messages

    header = Header(stamp=Time(sec=5), frame_id="camera")
    image = messages.colour_message(np.zeros((4, 5, 3), np.uint8), header)
    goal = ImaginePath.Goal(prompt="a room")
    transform = TFMessage(transforms=[messages.transform_message(np.eye(4), header, "camera")])
    view = ImaginedView(image=image)
    compressed = CompressedImage(header=header, format="png", data=b"1234")
    info = messages.info_message(Camera.from_fov(5, 4, 1.0), header)
    assert isinstance(image, Image)
    assert isinstance(info, CameraInfo)
    return [bytes(serialize_message(one)) for one in (image, compressed, info, transform, view, goal)]


def test_deserialisation_by_ros():
    pytest.importorskip("rclpy")
    messages = contents()
    child = subprocess.Popen([sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    outcomes = set()

    def check(kind, data):
        with bounded(bytes([kind]) + data, ".cdr"):
            child.stdin.write(bytes([kind]) + len(data).to_bytes(4, "little") + data)
            child.stdin.flush()
            outcome = child.stdout.readline().decode().strip()
            assert outcome, f"the process ended with {child.wait(10)}"
            # A MemoryError would be a length that was believed.
            assert outcome in ("ok", "RMWError", "RCLError", "UnicodeDecodeError"), outcome
            outcomes.add(outcome)

    try:
        for kind, content in enumerate(messages):
            fuzz(check, st.just(kind), damaged(content), examples=15, parts=len(messages))
    finally:
        child.stdin.close()
        child.wait(20)
    assert "ok" in outcomes


def test_deserialisation_of_bags():
    """Messages as the reader of bags decodes them: stamps, frames, and whole messages."""
    store = recordings.STORE
    image = recordings.image_message(recordings.START, np.zeros((4, 5, 3), np.uint8))
    info = recordings.info_message(recordings.START)
    originals = {
        "sensor_msgs/msg/Image": image,
        "sensor_msgs/msg/CameraInfo": info,
        "tf2_msgs/msg/TFMessage": recordings.transforms((recordings.START, "map", "camera", np.eye(4))),
        "nav_msgs/msg/Odometry": recordings.odometry(recordings.START, np.eye(4)),
    }
    types = list(originals)
    serialised = [bytes(store.serialize_cdr(message, kind)) for kind, message in originals.items()]

    def check(kind, data):
        with bounded(data, ".cdr"):
            try:
                decoding.read_stamp(memoryview(data), recordings.START)
                decoding.read_frame_id(memoryview(data))
                message = store.deserialize_cdr(data, types[kind])
            except Exception as error:  # the reader of bags turns all of them into a count, see test_bags
                if isinstance(error, MemoryError | RecursionError | SystemError):
                    raise
                return
            if types[kind] == "sensor_msgs/msg/Image":
                decoding.decode_colour(message)

    strategies = [st.tuples(st.just(kind), damaged(content)) for kind, content in enumerate(serialised)]
    fuzz(lambda pair: check(*pair), st.one_of(strategies), examples=60)
