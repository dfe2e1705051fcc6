"""Every QoS profile of the node, by name. Nothing else in the project makes one."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


# Cameras: best effort matches every driver, reliable or not (REP 2003).
SENSOR = _profile(5, reliable=False)
# A path or a pose that is lost is a job that never starts.
COMMAND = _profile(10)
# Imagined pictures: reliable, so that old RViz (reliable) and new RViz and Nav2 (best effort) both take them.
VIEW = _profile(10)
CLOUD = _profile(1)
# Maps and markers: whoever comes late gets the last one.
MAP = _profile(1, latched=True)
TF = _profile(100)
TF_STATIC = _profile(100, latched=True)
DIAGNOSTICS = _profile(10)


def describe(profile: QoSProfile) -> str:
    """The profile in words, as the interface table of the documentation has it."""
    reliability = "reliable" if profile.reliability == ReliabilityPolicy.RELIABLE else "best effort"
    durability = ", transient local" if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL else ""
    return f"{reliability}{durability}, depth {profile.depth}"
