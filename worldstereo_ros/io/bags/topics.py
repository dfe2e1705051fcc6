"""Which topics of a recording hold the pictures, where nobody says so."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.imaging.codecs import COLOUR_ENCODINGS, DEPTH_ENCODINGS
from worldstereo_ros.io.bags.files import Bag, BagError

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, PATH, TF = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Path", "tf2_msgs/msg/TFMessage"
ODOMETRY, POSE = "nav_msgs/msg/Odometry", "geometry_msgs/msg/PoseStamped"
POSE_COVARIANCE = "geometry_msgs/msg/PoseWithCovarianceStamped"


@dataclass(frozen=True)
class _Stream:
    topic: str
    colour: bool
    frame: str
    size: tuple[int, int] | None  # None = compressed: not looked into


def camera_info_beside(image_topic: str) -> str:
    """Where image transports put the CameraInfo of an image topic."""
    parts = image_topic.split("/")
    if parts[-1] in ("compressed", "compressedDepth") and len(parts) > 2:
        parts.pop()
    return "/".join([*parts[:-1], "camera_info"])


def find_topics(bag: Bag) -> tuple[str, str]:
    """(colour topic, topic of the depth registered to it or "") of an open recording.

    Colour is a topic with colour pictures and a camera_info beside it: raw before compressed, then by name, names with
    "color" or "rgb" first. Depth is a topic of the same frame and size; raw images only.

    Raises:
        BagError: no topic is fit; the sentence names all topics.
    """
    streams = _streams(bag)
    infos = {topic for topic, kind in bag.topics.items() if kind == CAMERA_INFO}
    colour = [s for s in streams if s.colour and camera_info_beside(s.topic) in infos]
    if not colour:
        every = ", ".join(f"{name} ({kind})" for name, kind in sorted(bag.topics.items())) or "none"
        raise BagError(f"{bag.path} has no colour images with a camera_info beside them. Its topics are: {every}.")

    def order(stream: _Stream) -> tuple[bool, bool, str]:
        named = any(word in stream.topic for word in ("color", "colour", "rgb"))
        return stream.size is None, not named, stream.topic

    best = min(colour, key=order)
    fitting = [s for s in streams if not s.colour and s.frame == best.frame and best.size in (None, s.size)]
    return best.topic, min((s.topic for s in fitting), default="")


def _streams(bag: Bag) -> list[_Stream]:
    """What the first message of every image topic is."""
    waiting = {topic for topic, kind in bag.topics.items() if kind in (IMAGE, COMPRESSED)}
    streams = []
    for topic, _, raw in bag.messages(set(waiting)):
        if topic not in waiting:
            continue
        waiting.discard(topic)
        message = bag.decode(topic, raw)
        if bag.topics[topic] == COMPRESSED:
            if "compressedDepth" not in message.format and not topic.endswith("compressedDepth"):
                streams.append(_Stream(topic, True, message.header.frame_id, None))
        elif message.encoding in (*COLOUR_ENCODINGS, *DEPTH_ENCODINGS):
            size = (message.width, message.height)
            streams.append(_Stream(topic, message.encoding in COLOUR_ENCODINGS, message.header.frame_id, size))
        if not waiting:
            break
    return streams
