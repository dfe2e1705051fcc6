"""Detection of the colour and depth topics, by what their messages hold."""

import io
import logging

import numpy as np
import pytest
from helpers.recordings import START, TYPES, drive, header, image_message, info_message
from PIL import Image

from worldstereo_ros.io.bags.files import Bag, BagError, BagWriter
from worldstereo_ros.io.bags.topics import find_topics
from worldstereo_ros.io.bags.views import read_views

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
RGB, DEPTH = drive()[1][0], drive()[2][0]
MILLIMETRES = np.rint(DEPTH * 1000).astype(np.uint16)


def _encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def _compressed(data: bytes, format: str):
    return TYPES[COMPRESSED](header(START, "camera_optical"), format, np.frombuffer(data, np.uint8))


def _raw(array: np.ndarray, encoding: str, width: int):
    data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    height = len(array)
    return TYPES[IMAGE](header(START, "camera_optical"), height, width, encoding, 0, data.size // height, data)


def _bag(path, *messages, infos=("/cam/camera_info",)):
    """Writes (topic, message) pairs and camera_infos."""
    with BagWriter(path) as writer:
        for topic in infos:
            writer.add_topic(topic, "sensor_msgs/msg/CameraInfo")
            writer.write(topic, info_message(START), START)
        for at, (topic, message) in enumerate(messages):
            writer.add_topic(topic, message.__msgtype__)
            writer.write(topic, message, START + at)
    return path


def _found(path) -> tuple[str, str]:
    with Bag(path) as bag:
        return find_topics(bag)


def _refusal(path) -> str:
    with Bag(path) as bag, pytest.raises(BagError) as caught:
        find_topics(bag)
    return str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "channels"), [("yuv422_yuy2", 2), ("uyvy", 2), ("bayer_rggb8", 1), ("mono16", 2), ("nv12", 1.5)]
)
def test_images_of_every_decoded_encoding_are_colour(tmp_path, encoding, channels):
    height, width = DEPTH.shape
    data = np.zeros((height, round(width * channels)), np.uint8)
    message = TYPES[IMAGE](
        header(START, "camera_optical"), height, width, encoding, 0, width if encoding == "nv12" else data.shape[1],
        data.reshape(-1),
    )  # fmt: skip
    path = _bag(tmp_path / "bag", ("/cam/image_raw", message), ("/cam/depth", image_message(START, DEPTH)))
    assert _found(path) == ("/cam/image_raw", "/cam/depth")
    assert len(list(read_views(path))) == 1


def test_an_encoding_that_is_not_decoded_is_named_with_its_topic(tmp_path):
    path = _bag(tmp_path / "bag", ("/cam/image_raw", _raw(RGB[..., 0], "jpeg2000", RGB.shape[1])))
    refusal = _refusal(path)
    assert "'/cam/image_raw' is not used: its encoding 'jpeg2000' is not decoded" in refusal


def test_images_without_a_camera_info_are_named(tmp_path):
    path = _bag(tmp_path / "bag", ("/cam/image_raw", image_message(START, RGB)), infos=("/other/camera_info",))
    assert "'/cam/image_raw' has no camera_info on '/cam/camera_info'; name it (--camera-info-topic)" in _refusal(path)


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (_encoded(MILLIMETRES), "16UC1; png compressed "),
        (_encoded(MILLIMETRES), "png"),
        (bytes(12) + _encoded(MILLIMETRES), "16UC1; compressedDepth png"),
    ],
)
def test_compressed_depth_is_depth_and_not_colour(tmp_path, data, format):
    path = _bag(
        tmp_path / "bag",
        ("/camera/depth/image_raw/compressed", _compressed(data, format)),
        ("/camera/image_raw/compressed", _compressed(_encoded(RGB), "rgb8; png compressed bgr8")),
        infos=("/camera/camera_info", "/camera/depth/camera_info"),
    )
    assert _found(path) == ("/camera/image_raw/compressed", "/camera/depth/image_raw/compressed")
    (view,) = read_views(path)
    np.testing.assert_array_equal(view.image, RGB)
    np.testing.assert_allclose(view.depth, DEPTH, atol=6e-4)
    alone = _bag(
        tmp_path / "alone",
        ("/camera/depth/image_raw/compressed", _compressed(data, format)),
        infos=("/camera/depth/camera_info",),
    )
    assert "no colour images" in _refusal(alone)


def test_mono16_is_grey_unless_its_topic_says_depth(tmp_path):
    depth = _raw(MILLIMETRES, "mono16", DEPTH.shape[1])
    path = _bag(tmp_path / "bag", ("/cam/image", image_message(START, RGB)), ("/cam/depth", depth))
    assert _found(path) == ("/cam/image", "/cam/depth")
    grey = _bag(tmp_path / "grey", ("/cam/thermal", depth))
    assert _found(grey) == ("/cam/thermal", "")


def test_depth_as_jpeg_is_not_used_and_said(tmp_path, caplog):
    jpeg = _compressed(_encoded((MILLIMETRES >> 8).astype(np.uint8), "JPEG"), "16UC1; jpeg compressed ")
    path = _bag(tmp_path / "bag", ("/cam/image", image_message(START, RGB)), ("/cam/depth/compressed", jpeg))
    with caplog.at_level(logging.WARNING):
        assert _found(path) == ("/cam/image", "")
    assert "The depth on '/cam/depth/compressed' is not used." in caplog.text
    assert "its 8 bits hold no distances" in caplog.text


def test_depth_that_is_not_named_is_said(tmp_path, caplog):
    path = _bag(
        tmp_path / "bag", ("/cam/image", image_message(START, RGB)), ("/cam/depth", image_message(START, DEPTH))
    )
    for topics, words in (
        ({"image_topic": "/cam/image"}, "The depth on '/cam/depth' is registered to the images on '/cam/image'"),
        ({"image_topic": "/cam/image", "depth_topic": "/cam/depth"}, ""),
        ({}, ""),
    ):
        caplog.clear()
        (view,) = read_views(path, **topics)
        assert (view.depth is None) == bool(words)
        assert words in caplog.text
        assert bool(words) == ("is not used" in caplog.text)


def test_a_damaged_first_message_does_not_hide_its_topic(tmp_path):
    whole = _encoded(RGB, "JPEG")
    path = _bag(
        tmp_path / "bag",
        ("/cam/image/compressed", _compressed(whole[:20], "jpeg")),
        ("/cam/image/compressed", _compressed(whole, "jpeg")),
    )
    assert _found(path) == ("/cam/image/compressed", "")


def test_raw_depth_is_preferred_to_compressed(tmp_path):
    path = _bag(
        tmp_path / "bag",
        ("/cam/a/compressedDepth", _compressed(bytes(12) + _encoded(MILLIMETRES), "16UC1; compressedDepth")),
        ("/cam/depth", image_message(START, DEPTH)),
        ("/cam/image", image_message(START, RGB)),
    )
    assert _found(path) == ("/cam/image", "/cam/depth")


def test_video_topics_are_named_with_what_converts_them(tmp_path):
    from helpers.mcap_files import channel, message, schema, write_mcap

    file = write_mcap(
        tmp_path / "a.mcap",
        schema("foxglove_msgs/msg/CompressedVideo", "ros2msg"),
        channel("/cam/h264", "cdr"),
        message(bytes(60)),
    )
    refusal = _refusal(file)
    assert "'/cam/h264' is not used: It is H.264 or H.265 video" in refusal
    assert "foxglove_compressed_video_transport" in refusal
    file = write_mcap(
        tmp_path / "b.mcap", schema("theora_image_transport/msg/Packet", "ros2msg"), channel("/cam/theora", "cdr"),
        message(bytes(60)),
    )  # fmt: skip
    with pytest.raises(BagError, match=r"has type theora_image_transport/msg/Packet; .* It is Theora video"):
        list(read_views(file, "/cam/theora"))
