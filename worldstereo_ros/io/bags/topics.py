"""Message types, and detection of the image topics of a bag."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from worldstereo_ros.imaging import codecs
from worldstereo_ros.imaging.codecs import COLOUR_ENCODINGS, DEPTH_ENCODINGS, ImageError
from worldstereo_ros.io.bags.files import Bag, BagError
from worldstereo_ros.io.bags.video_types import DECODED_TYPES, video_advice, video_codec, video_frame_id

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, PATH, TF = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Path", "tf2_msgs/msg/TFMessage"
ODOMETRY, POSE = "nav_msgs/msg/Odometry", "geometry_msgs/msg/PoseStamped"
POSE_COVARIANCE = "geometry_msgs/msg/PoseWithCovarianceStamped"
# Last parts of topics that image_transport and its plugins add to the name of the image.
TRANSPORTS = ("compressed", "compressedDepth", "ffmpeg", "h264", "h265", "foxglove", "compressed_video", "video")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stream:
    """An image topic, as its first intact message describes it.

    Attributes:
        topic: name.
        colour: colour or depth.
        frame: frame_id.
        size: (width, height).
        rank: kinds that are preferred have a lower one: images, compressed images, video.
        problem: sentence that says why it is not decoded; empty if it is.
    """

    topic: str
    colour: bool
    frame: str
    size: tuple[int, int]
    rank: int
    problem: str = ""


def camera_info_beside(image_topic: str) -> str:
    """Returns the `camera_info` topic of an image topic, by the convention of image_transport."""
    parts = image_topic.split("/")
    if parts[-1] in TRANSPORTS and len(parts) > 2:
        parts.pop()
    return "/".join([*parts[:-1], "camera_info"])


def find_topics(bag: Bag) -> tuple[str, str]:
    """Finds the colour topic of an open bag and the depth topic registered to it.

    The colour topic has colour images and a camera_info beside it. Raw topics are preferred to compressed ones, then
    names with "color" or "rgb", then alphabetical order. The depth topic has depth images of the same frame and size,
    by the encoding or, for compressed ones, by `codecs.holds_depth`; raw ones are preferred.

    Returns:
        (colour topic, depth topic); "" if there is no depth topic.

    Raises:
        BagError: there is no colour topic; the message says why not of each image topic, and lists all topics.
    """
    streams = _streams(bag)
    infos = {topic for topic, kind in bag.topics.items() if kind == CAMERA_INFO}
    colour = [s for s in streams if s.colour and not s.problem and camera_info_beside(s.topic) in infos]
    if not colour:
        raise BagError(_no_colour(bag, streams))

    def rank(stream: _Stream) -> tuple[int, bool, str]:
        named_colour = any(word in stream.topic for word in ("color", "colour", "rgb"))
        return stream.rank, not named_colour, stream.topic

    best = min(colour, key=rank)
    return best.topic, _registered(streams, best)


def find_depth_topic(bag: Bag, image_topic: str) -> str:
    """Finds the depth topic registered to a colour topic of an open bag, as `find_topics` does; "" if there is none."""
    streams = _streams(bag)
    colour = next((stream for stream in streams if stream.topic == image_topic and stream.colour), None)
    return "" if colour is None else _registered(streams, colour)


def _registered(streams: list[_Stream], colour: _Stream) -> str:
    """The topic of depth registered to the colour images; "" if there is none, or none that can be decoded."""
    registered = [s for s in streams if not s.colour and s.frame == colour.frame and _of_one_size(s, colour)]
    usable = [s for s in registered if not s.problem]
    if registered and not usable:
        logger.warning("The depth on '%s' is not used. %s", registered[0].topic, registered[0].problem)
    return min(usable, key=lambda s: (s.rank, s.topic)).topic if usable else ""


def _no_colour(bag: Bag, streams: list[_Stream]) -> str:
    """The message for a bag without a colour topic."""
    reasons = [f"'{s.topic}' is not used: {s.problem}" for s in streams if s.problem]
    reasons += [
        f"'{s.topic}' has no camera_info on '{camera_info_beside(s.topic)}'; name it (--camera-info-topic) together "
        "with the image topic (--image-topic)."
        for s in streams
        if s.colour and not s.problem
    ]
    described = {stream.topic for stream in streams}
    reasons += [
        f"'{topic}' is not used: {advice}"
        for topic, kind in bag.topics.items()
        if topic not in described and (advice := video_advice(kind))
    ]
    every = ", ".join(f"{name} ({kind})" for name, kind in sorted(bag.topics.items())) or "none"
    return " ".join(
        [f"{bag.path} has no colour images with a camera_info beside them.", *reasons, f"Its topics are: {every}."]
    )


def _streams(bag: Bag) -> list[_Stream]:
    """Describes every image topic by its first message that is intact, or by its last if none is."""
    describe = {IMAGE: _raw, COMPRESSED: _compressed, **dict.fromkeys(DECODED_TYPES, _video)}
    unread = {topic for topic, kind in bag.topics.items() if kind in describe}
    streams: dict[str, _Stream] = {}
    for topic, _, raw in bag.messages(set(unread)):
        if topic not in unread:
            continue
        try:
            message = bag.decode(topic, raw)
        except BagError:
            continue
        streams[topic] = describe[bag.topics[topic]](topic, message)
        if not streams[topic].problem:
            unread.discard(topic)
        if not unread:
            break
    return list(streams.values())


def _raw(topic: str, message: Any) -> _Stream:
    """Describes an Image. mono16 is grey by its definition, and depth by some drivers: their topics say so."""
    encoding = message.encoding
    depth = encoding in DEPTH_ENCODINGS and (encoding not in COLOUR_ENCODINGS or "depth" in topic.lower())
    problem = ""
    if encoding not in (*COLOUR_ENCODINGS, *DEPTH_ENCODINGS):
        problem = f"its encoding '{encoding[:32]}' is not decoded. Convert it first (`image_proc`, `cv_bridge`)."
    return _Stream(topic, not depth, message.header.frame_id, (message.width, message.height), 0, problem)


def _compressed(topic: str, message: Any) -> _Stream:
    """Describes a CompressedImage; its size is in the header of its data."""
    depth, size, problem = codecs.holds_depth(message.format, message.data, topic), (0, 0), ""
    try:
        if depth:
            height, width = codecs.decode_compressed_depth(message.data, message.format).shape
            size = width, height
        else:
            size = codecs.compressed_size(message.data)
    except ImageError as error:
        problem = str(error)
    return _Stream(topic, not depth, message.header.frame_id, size, 1, problem)


def _video(topic: str, message: Any) -> _Stream:
    """Describes a message of a video; the size of its images is known only when it is decoded."""
    problem = "" if video_codec(message) else video_advice(message.__msgtype__)
    return _Stream(topic, True, video_frame_id(message), (0, 0), 2, problem)


def _of_one_size(first: _Stream, second: _Stream) -> bool:
    """Whether the images of two topics may be of one size; (0, 0) is unknown."""
    return first.size == second.size or (0, 0) in (first.size, second.size)
