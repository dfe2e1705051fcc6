"""Message types whose images are frames of a video, and what converts them to images."""

from __future__ import annotations

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


def video_advice(type_name: str) -> str:
    """Sentences on a message type that holds video: what it is, and what converts it; empty for other types."""
    if type_name not in _VIDEO_TYPES:
        return ""
    what, transport, package = _VIDEO_TYPES[type_name]
    return f"It is {what}, whose frames are no images of their own. " + _REPUBLISH.format(
        transport=transport, package=package
    )
