"""The QoS profiles of the node and its client."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


# Camera input: best effort matches every driver, reliable or not (REP 2003).
SENSOR = _profile(5, reliable=False)
# Paths and poses: a lost message is a job that never starts.
COMMAND = _profile(10)
# Imagined images: a reliable publisher matches subscribers that ask for reliable (RViz) and best effort (Nav2).
VIEW = _profile(10)
# The client's end of the imagined images, which may come faster than Python reads them.
VIEW_RECEIVER = _profile(64)
CLOUD = _profile(1)
# Maps and markers: a late subscriber receives the last message.
MAP = _profile(1, latched=True)
# The client's end of a topic that tells of each image, of which none may be passed over.
REMEMBERED_RECEIVER = _profile(64, latched=True)
# Requests of actions. ROS's own depth of 10 is less than the clients that may ask at once: further requests, and the
# answers, which every client of a service receives, would be dropped.
REQUESTS = _profile(200)
TF = _profile(100)
TF_STATIC = _profile(100, latched=True)
DIAGNOSTICS = _profile(10)


def describe(profile: QoSProfile) -> str:
    """Describes the profile for the interface table of the documentation."""
    reliability = "reliable" if profile.reliability == ReliabilityPolicy.RELIABLE else "best effort"
    durability = ", transient local" if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL else ""
    return f"{reliability}{durability}, depth {profile.depth}"
