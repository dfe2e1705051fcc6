"""Recordings that cannot be read: the message says what they are and the one thing to do."""

import sqlite3

import pytest
from helpers.mcap_files import channel, message, schema, write_mcap
from helpers.recordings import record

from worldstereo_ros.io.bags.mcap_contents import read_contents
from worldstereo_ros.io.bags.views import Bag, BagError, read_views

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 26012345\n"


def _refusal(path) -> str:
    with pytest.raises(BagError) as caught, Bag(path):
        pass
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["mcap", "db3"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (POINTER, "a Git LFS pointer to a file of 26012345 bytes, not the file itself. Install git-lfs"),
        ("", "an empty file"),
        ("<!DOCTYPE html><html>", "an HTML page"),
        ("#ROSBAG V2.0\n", "a ROS 1 bag. Convert it"),
        ("\0" * 5000, "filled with zero bytes"),
    ],
)  # fmt: skip
def test_files_that_are_something_else_are_named(tmp_path, suffix, content, sentence):
    file = tmp_path / f"drive.{suffix}"
    file.write_text(content)
    assert sentence in _refusal(file)
    assert "mcap recover" not in _refusal(file)
    assert sentence in _refusal(tmp_path)  # the folder as well


def test_a_pointer_in_a_folder_with_metadata_is_named(tmp_path):
    record(tmp_path / "drive")
    (file,) = (tmp_path / "drive").glob("*.mcap")
    file.write_text(POINTER)
    assert f"Of its file {file.name}: It is a Git LFS pointer" in _refusal(tmp_path / "drive")


def test_ros_1_bags_are_named(tmp_path):
    (tmp_path / "a.bag").write_bytes(b"#ROSBAG V2.0\n")
    assert "It is a ROS 1 bag. Convert it: `pip install rosbags`" in _refusal(tmp_path / "a.bag")
    assert "Of its file a.bag: It is a ROS 1 bag" in _refusal(tmp_path)


def test_mcap_of_ros_1_is_named(tmp_path):
    file = write_mcap(
        tmp_path / "a.mcap", schema("sensor_msgs/Image", "ros1msg"), channel("/cam", "ros1"), profile="ros1"
    )
    assert "messages of ROS 1 (encoding 'ros1'). Convert the .bag" in _refusal(file)


@pytest.mark.parametrize(("encoding", "schema_encoding"), [("protobuf", "protobuf"), ("json", "jsonschema")])
def test_mcap_of_another_encoding_is_named_with_its_topics(tmp_path, encoding, schema_encoding):
    records = schema("foxglove.CompressedImage", schema_encoding), channel("/cam", encoding), message(b"{}")
    refusal = _refusal(write_mcap(tmp_path / "a.mcap", *records, profile=""))
    assert f"encoded as {encoding}, not as CDR" in refusal
    assert "/cam (foxglove.CompressedImage). Convert them" in refusal
    assert "mcap recover" not in refusal


def test_topics_of_another_encoding_among_those_of_ros_2_are_named(tmp_path):
    others = schema("std_msgs/msg/String", "ros2msg"), channel("/chatter", "cdr", number=2)
    records = schema("foxglove.CompressedImage", "jsonschema"), channel("/cam", "json"), *others
    refusal = _refusal(write_mcap(tmp_path / "a.mcap", *records))
    assert "Some of its messages are encoded as json" in refusal
    assert "Leave these topics out: `mcap filter" in refusal
    assert refusal.endswith("-n '/cam'`.")


def test_a_topic_of_another_encoding_does_not_hide_the_rest(tmp_path):
    """Where `rosbags` opens the file, only what is asked for has to be CDR."""
    hello = message(b"\0\1\0\0\3\0\0\0hi\0", number=2)
    records = schema("std_msgs/msg/String", "ros2msg"), channel("/cam", "json"), channel("/chatter", "cdr", number=2)
    with Bag(write_mcap(tmp_path / "a.mcap", *records, message(b"{}"), hello)) as bag:
        assert bag.topics == {"/chatter": "std_msgs/msg/String"}
        assert len(list(bag.messages(["/cam", "/chatter"]))) == 1
        with pytest.raises(BagError, match=r"'/cam' .* are encoded as json, not as CDR"):
            bag.require("/cam", ("sensor_msgs/msg/CompressedImage",), "colour image")


def test_a_cut_off_mcap_is_named(tmp_path):
    record(tmp_path / "drive")
    (file,) = (tmp_path / "drive").glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "ends without the index that closes a recording" in _refusal(file)
    assert f"`mcap recover {file} -o recovered.mcap`" in _refusal(file)


def test_contents_of_a_file_cut_anywhere_are_read_as_far_as_they_go(tmp_path):
    record(tmp_path / "drive")
    (file,) = (tmp_path / "drive").glob("*.mcap")
    whole = file.read_bytes()
    assert read_contents(file).complete
    assert {c.topic for c in read_contents(file).channels} >= {"/cam/image", "/cam/depth"}
    for end in range(0, len(whole), 997):
        file.write_bytes(whole[:end])
        assert not read_contents(file).complete


def test_a_database_that_is_no_recording_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "a.db3") as database:
        database.execute("CREATE TABLE other (number)")
    assert "cannot be read" in _refusal(tmp_path / "a.db3")


# --- recordings in several files ---


def _split(tmp_path):
    """Two files of one recording, without metadata."""
    for part in (0, 1):
        record(tmp_path / str(part))
        (file,) = (tmp_path / str(part)).glob("*.mcap")
        (tmp_path / "both").mkdir(exist_ok=True)
        file.rename(tmp_path / "both" / f"drive_{part}.mcap")
    return tmp_path / "both"


def test_a_folder_with_the_files_of_one_recording_is_one_bag(tmp_path):
    both = _split(tmp_path)
    with Bag(both) as bag:
        assert len(list(bag.messages(["/cam/image"]))) == 10
    assert len(list(read_views(both / "drive_0.mcap"))) == 5


def test_a_folder_with_several_recordings_is_refused(tmp_path):
    both = _split(tmp_path)
    (both / "drive_1.mcap").rename(both / "other.mcap")
    assert "several recordings: drive_0.mcap, other.mcap. Give one of them" in _refusal(both)
