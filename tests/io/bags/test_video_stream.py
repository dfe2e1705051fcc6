"""H.264 and H.265 topics: frames belong to their messages, whatever is missing or damaged."""

import re
import subprocess
from contextlib import suppress

import numpy as np
import pytest
from helpers.recordings import SECOND, START, TYPES, header, image_message, info_message
from imageio_ffmpeg import get_ffmpeg_exe

from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.bags.files import Bag, BagError, BagWriter
from worldstereo_ros.io.bags.h264_gaps import FrameCounter
from worldstereo_ros.io.bags.topics import find_topics
from worldstereo_ros.io.bags.video_stream import VideoStream, starts_video
from worldstereo_ros.io.bags.views import read_views

WIDTH, HEIGHT, COUNT, KEY_INTERVAL = 128, 96, 12, 5
VIDEO, PACKET = "foxglove_msgs/msg/CompressedVideo", "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
AUD = {"h264": b"\0\0\0\1\x09", "h265": b"\0\0\0\1\x46\1"}  # the unit that starts each frame


def frames():
    """Gradients whose red channel tells the frames apart: 20 levels from one to the next."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return [np.stack([0 * rows + 20 * i, 2 * columns, 2 * rows], -1).astype(np.uint8) for i in range(COUNT)]


def encode(images, codec, more=""):
    """The access units of a video, a key frame every fifth."""
    library = {"h264": "x264", "h265": "x265"}[codec]
    options = f"aud=1:repeat-headers=1:bframes=0:scenecut=0:keyint={KEY_INTERVAL}{more}"
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}"]
    command += ["-i", "-", "-pix_fmt", "yuv420p", "-c:v", f"lib{library}", f"-{library}-params", options, "-crf", "10"]
    command += ["-f", {"h264": "h264", "h265": "hevc"}[codec], "-"]
    data = subprocess.run(
        command, input=b"".join(image.tobytes() for image in images), capture_output=True, check=True
    ).stdout
    starts = [found.start() for found in re.finditer(re.escape(AUD[codec]), data)]
    return [data[first:last] for first, last in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.fixture(scope="module", params=["h264", "h265"])
def video(request):
    units = encode(frames(), request.param)
    assert len(units) == COUNT
    return request.param, units


def decoded(video, packets, wanted):
    """Which of the wanted numbers have their own frame; a wrong frame fails."""
    found = []
    with VideoStream(iter(packets), video[0], "/cam") as stream:
        for number in wanted:
            with suppress(ImageError):
                image = stream.frame(number)
                assert np.abs(image.astype(int) - frames()[number]).mean() < 4
                found.append(number)
    return found


def test_each_message_has_its_frame(video):
    packets = list(enumerate(video[1]))
    assert decoded(video, packets, range(COUNT)) == list(range(COUNT))
    assert decoded(video, packets, [0, 4, 11]) == [0, 4, 11]


def test_frames_before_the_first_key_frame_are_missing(video):
    assert [starts_video(unit, video[0]) for unit in video[1]] == [i % KEY_INTERVAL == 0 for i in range(COUNT)]
    packets = list(enumerate(video[1]))[2:]
    assert decoded(video, packets, range(1, COUNT)) == list(range(5, COUNT))


def test_a_damaged_message_loses_what_depends_on_it_and_shifts_nothing(video):
    units = list(video[1])
    units[6] = units[6][:12] + bytes(20)
    assert decoded(video, enumerate(units), range(COUNT)) == [*range(6), 10, 11]


def test_a_frame_that_was_never_recorded_loses_what_depends_on_it(video):
    """Decoders conceal it: the following frames would be wrong without a word."""
    packets = [(number, unit) for number, unit in enumerate(video[1]) if number != 6]
    assert decoded(video, packets, range(COUNT)) == [*range(6), 10, 11]


def renumbered(units, missing):
    return [unit for number, unit in enumerate(units) if number not in missing]


@pytest.mark.parametrize(("options", "count"), [("", 40), (":ref=4", 40), (":cqm=jvt", 40), (":bframes=2", 0)])
def test_complete_videos_have_no_gap(options, count):
    """Also where frame_num starts over (at 16), in profiles with scaling lists, and with several references."""
    images = (frames() * 4)[:40]
    counter = FrameCounter()
    units = encode(images, "h264", f":keyint=100{options}")
    assert not any(counter.frame_is_missing(unit) for unit in units)
    assert len(units) == 40
    if count:
        counter = FrameCounter()
        gaps = [counter.frame_is_missing(unit) for unit in renumbered(units, {7, 22, 23})]
        assert [number for number, gap in enumerate(gaps) if gap] == [7, 21]


def test_what_is_no_video_has_no_frames(video):
    assert decoded(video, [], range(3)) == []
    assert decoded(video, [(0, bytes(60)), (1, b"\0\0\1\x67" + bytes(40))], range(3)) == []


def test_an_error_of_the_bag_is_passed_on(video):
    def packets():
        yield 0, video[1][0]
        raise BagError("The bag ends in damage.")

    with VideoStream(packets(), video[0], "/cam") as stream, pytest.raises(BagError, match="ends in damage"):
        stream.frame(5)


def record_video(path, units, *, message_type=VIDEO, name="h264", depth=False):
    """A bag of a video topic with its camera_info, and depth if asked for."""
    with BagWriter(path) as writer:
        writer.add_topic(f"/cam/image/{name}", message_type)
        writer.add_topic("/cam/camera_info", "sensor_msgs/msg/CameraInfo")
        if depth:
            writer.add_topic("/cam/depth", "sensor_msgs/msg/Image")
        info = info_message(START, WIDTH, HEIGHT, 100.0)
        writer.write("/cam/camera_info", info, START)
        for i, unit in enumerate(units):
            stamp = START + i * SECOND // 10
            data = np.frombuffer(unit, np.uint8)
            time = header(stamp, "camera_optical").stamp
            if message_type == VIDEO:
                message = writer.message(VIDEO, timestamp=time, frame_id="camera_optical", data=data, format=name)
            else:
                fields = {"width": WIDTH, "height": HEIGHT, "encoding": "libx264", "pts": i, "flags": 0}
                message = writer.message(
                    PACKET, header=header(stamp, "camera_optical"), is_bigendian=False, data=data, **fields
                )
            writer.write(f"/cam/image/{name}", message, stamp)
            if depth:
                metres = np.full((HEIGHT, WIDTH), 1 + 0.1 * i, np.float32)
                writer.write("/cam/depth", image_message(stamp, metres), stamp)
            pose = TYPES["geometry_msgs/msg/PoseStamped"](
                header(stamp, "map"),
                TYPES["geometry_msgs/msg/Pose"](
                    TYPES["geometry_msgs/msg/Point"](0.1 * i, 0.0, 0.0),
                    TYPES["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0),
                ),
            )
            if i == 0:
                writer.add_topic("/pose", "geometry_msgs/msg/PoseStamped")
            writer.write("/pose", pose, stamp)
    return path


@pytest.mark.parametrize("message_type", [VIDEO, PACKET])
def test_a_bag_with_a_video_topic_is_read_like_one_with_images(tmp_path, message_type):
    path = record_video(tmp_path / "bag", encode(frames(), "h264"), message_type=message_type, depth=True)
    with Bag(path) as bag:
        assert find_topics(bag) == ("/cam/image/h264", "/cam/depth")
    views = list(read_views(path, pose_topic="/pose", max_views=4))
    assert len(views) == 4
    for view in views:
        number = round(view.world_from_camera[0, 3] / 0.1)
        assert view.stamp_ns == START + number * SECOND // 10
        assert np.abs(view.image.astype(int) - frames()[number]).mean() < 4
        assert view.depth[0, 0] == pytest.approx(1 + 0.1 * number)


def test_frames_that_cannot_be_decoded_are_left_out_and_counted(tmp_path, caplog):
    path = record_video(tmp_path / "bag", encode(frames(), "h264")[3:])
    views = list(read_views(path, pose_topic="/pose"))
    assert len(views) == COUNT - 5  # the first key frame is the fifth
    assert "2 of the images on '/cam/image/h264' were left out" in caplog.text
    assert "no key frame precedes it" in caplog.text


def test_another_codec_is_named_with_what_converts_it(tmp_path):
    path = record_video(tmp_path / "bag", [b"\x12\x00\x0a\x0b"], name="av1")
    with pytest.raises(BagError, match=r"'/cam/image/av1' is 'av1'; h264 or h265 was expected. .*republish"):
        list(read_views(path, "/cam/image/av1", camera_info_topic="/cam/camera_info", pose_topic="/pose"))
