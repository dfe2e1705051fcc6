"""Bag files: writing and reading messages, topics and types."""

import numpy as np
import pytest
from helpers.recordings import (
    HEIGHT,
    START,
    STORE,
    WIDTH,
    drive,
    header,
    image_message,
    info_message,
    pose_stamped,
    record,
    time_message,
)

from worldstereo_ros.io.bags.files import register_type
from worldstereo_ros.io.bags.views import Bag, BagError, BagWriter


def test_bag_restores_messages_of_this_package(tmp_path):
    name = "worldstereo_ros/msg/ImaginedView"
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/node/view", name)
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        message = writer.message(
            name,
            header=header(START, "map"), observation_stamp=time_message(START - 5), pose=pose_stamped(START, np.eye(4)),
            camera_info=info_message(START), image=image_message(START, image), depth=image_message(START, image),
            observed=image_message(START, image), coverage=0.5, observed_fraction=0.25, estimated_fraction=0.5,
            index=3, count=7, confidence=image_message(START, image), depth_confidence=image_message(START, image),
            provenance=image_message(START, image), blocked=False,
        )  # fmt: skip
        writer.write("/node/view", message, START)
        writer.add_topic("/node/view", name)  # repeated calls are ignored
        with pytest.raises(BagError, match="was declared as"):
            writer.add_topic("/node/view", "sensor_msgs/msg/Image")
    with Bag(tmp_path / "out") as bag:
        assert bag.topics == {"/node/view": name}
        register_type(bag._store, name)
        ((topic, stamp, raw),) = bag.messages(["/node/view"])
        view = bag.decode(topic, raw)
    assert (stamp, view.index, view.count, view.coverage) == (START, 3, 7, 0.5)


def test_write_stores_serialized_messages_unchanged(tmp_path):
    kind = "sensor_msgs/msg/Image"
    raw = bytes(STORE.serialize_cdr(image_message(START, drive()[1][0]), kind))
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/image", kind)
        writer.write("/image", raw, START)
    with Bag(tmp_path / "out") as bag:
        assert [bytes(message) for _, _, message in bag.messages(["/image"])] == [raw]


def test_latched_topics_have_transient_local_durability(tmp_path):
    from rosbags.interfaces import QosDurability
    from rosbags.rosbag2 import Reader

    record(tmp_path / "drive")
    with Reader(tmp_path / "drive") as reader:
        durability = {c.topic: c.ext.offered_qos_profiles[0].durability for c in reader.connections}
    assert durability["/tf_static"] == QosDurability.TRANSIENT_LOCAL
    assert durability["/tf"] == QosDurability.VOLATILE


def test_bag_writer_rejects_invalid_use(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(BagError, match="already exists"):
        BagWriter(tmp_path / "old")
    writer = BagWriter(tmp_path / "new")
    with pytest.raises(BagError, match="was not declared"):
        writer.write("/a", b"", 0)
    for name, sentence in {"nonsense": "is not a message type", "no_such_msgs/msg/Thing": "was not found"}.items():
        with pytest.raises(BagError, match=sentence):
            writer.add_topic("/a", name)
    with pytest.raises(BagError, match="is not a message type"):
        writer.add_topic("/a", "../etc/msg/passwd")
    writer.close()
    writer.close()
    with pytest.raises(BagError, match="is closed"):
        writer.add_topic("/b", "std_msgs/msg/String")
    with pytest.raises(BagError, match="storage 'zip'"):
        BagWriter(tmp_path / "other", storage="zip")


def test_write_accepts_messages_serialized_by_rclpy(tmp_path):
    serialization = pytest.importorskip("rclpy.serialization")
    message_module = pytest.importorskip("worldstereo_ros.msg")
    message = message_module.ImaginedView()
    message.index, message.coverage = 4, 0.75
    message.header.frame_id = "map"
    name = "worldstereo_ros/msg/ImaginedView"
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/view", name)
        writer.write("/view", serialization.serialize_message(message), START)
    with Bag(tmp_path / "out") as bag:
        register_type(bag._store, name)
        ((topic, _, raw),) = bag.messages(["/view"])
        back = bag.decode(topic, raw)
    assert (back.index, back.coverage, back.header.frame_id) == (4, 0.75, "map")
