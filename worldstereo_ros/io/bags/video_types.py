"""Message types whose images are frames of a video: which are decoded, and what converts the others to images."""

from __future__ import annotations

from typing import Any

_REPUBLISH = (
    "Play the recording through `ros2 run image_transport republish --ros-args -p in_transport:={transport} "
    "-p out_transport:=compressed` ({package}) and record its images."
)
# type -> (video format, transport that decodes it, its package)
_VIDEO_TYPES = {
    "foxglove_msgs/msg/CompressedVideo": ("H.264 or H.265 video", "foxglove", "foxglove_compressed_video_transport"),
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": ("video packets of FFmpeg", "ffmpeg", "ffmpeg_image_transport"),
    "theora_image_transport/msg/Packet": ("Theora video", "theora", "theora_image_transport"),
    "h264_msgs/msg/Packet": ("H.264 video", "h264", "h264_image_transport"),
}

# Message definitions of video types: they are no part of ROS's own interfaces, and those in bags are not compiled.
DECODED_TYPES = {
    "foxglove_msgs/msg/CompressedVideo": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    ),
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
        "bool is_bigendian\nuint8[] data\n"
    ),
}


def video_codec(message: Any) -> str:
    """The codec of a video message: "h264", "h265", or "" for others, which are not decoded."""
    name = str(getattr(message, "format", "") or getattr(message, "encoding", "")).lower()
    if "264" in name or "avc" in name:
        return "h264"
    return "h265" if "265" in name or "hevc" in name else ""


def video_frame_id(message: Any) -> str:
    """The frame_id of a video message."""
    return str(message.header.frame_id if hasattr(message, "header") else message.frame_id)


def video_advice(type_name: str) -> str:
    """Sentences on a message type that holds video: what it is, and what converts it; empty for other types."""
    if type_name not in _VIDEO_TYPES:
        return ""
    what, transport, package = _VIDEO_TYPES[type_name]
    return f"It is {what}, whose frames are no images of their own. " + _REPUBLISH.format(
        transport=transport, package=package
    )
