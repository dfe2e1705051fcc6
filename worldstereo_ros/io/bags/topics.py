"""Message types, and detection of the image topics of a bag."""

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
    """An image topic: its name, colour or depth, frame_id and (width, height)."""

    topic: str
    colour: bool
    frame: str
    size: tuple[int, int] | None  # None for compressed images, which are not decoded


def camera_info_beside(image_topic: str) -> str:
    """Returns the `camera_info` topic of an image topic, by the convention of image_transport."""
    parts = image_topic.split("/")
    if parts[-1] in ("compressed", "compressedDepth") and len(parts) > 2:
        parts.pop()
    return "/".join([*parts[:-1], "camera_info"])


def find_topics(bag: Bag) -> tuple[str, str]:
    """Finds the colour topic of an open bag and the depth topic registered to it.

    The colour topic has colour images and a camera_info beside it. Raw topics are preferred to compressed ones, then
    names with "color" or "rgb", then alphabetical order. The depth topic has raw depth images of the same frame and
    size.

    Returns:
        (colour topic, depth topic); "" if there is no depth topic.

    Raises:
        BagError: there is no colour topic; the message lists all topics.
    """
    streams = _streams(bag)
    infos = {topic for topic, kind in bag.topics.items() if kind == CAMERA_INFO}
    colour = [s for s in streams if s.colour and camera_info_beside(s.topic) in infos]
    if not colour:
        every = ", ".join(f"{name} ({kind})" for name, kind in sorted(bag.topics.items())) or "none"
        raise BagError(f"{bag.path} has no colour images with a camera_info beside them. Its topics are: {every}.")

    def rank(stream: _Stream) -> tuple[bool, bool, str]:
        named_colour = any(word in stream.topic for word in ("color", "colour", "rgb"))
        return stream.size is None, not named_colour, stream.topic

    best = min(colour, key=rank)
    registered = [s for s in streams if not s.colour and s.frame == best.frame and best.size in (None, s.size)]
    return best.topic, min((s.topic for s in registered), default="")


def _streams(bag: Bag) -> list[_Stream]:
    """Describes every image topic by its first message."""
    unread = {topic for topic, kind in bag.topics.items() if kind in (IMAGE, COMPRESSED)}
    streams = []
    for topic, _, raw in bag.messages(set(unread)):
        if topic not in unread:
            continue
        unread.discard(topic)
        message = bag.decode(topic, raw)
        if bag.topics[topic] == COMPRESSED:
            if "compressedDepth" not in message.format and not topic.endswith("compressedDepth"):
                streams.append(_Stream(topic, True, message.header.frame_id, None))
        elif message.encoding in (*COLOUR_ENCODINGS, *DEPTH_ENCODINGS):
            size = (message.width, message.height)
            streams.append(_Stream(topic, message.encoding in COLOUR_ENCODINGS, message.header.frame_id, size))
        if not unread:
            break
    return streams
