"""Checks the parameters `qos_overrides.TOPIC.subscription.POLICY` that were given at the start.

rclpy reads them when a topic is created, where a wrong value ends the transition of a lifecycle node without a message,
and a wrong name has no effect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from rclpy.qos import HistoryPolicy, ReliabilityPolicy

PREFIX = "qos_overrides."
MAX_DEPTH = 100_000
CHOICES = {
    "reliability": [name.lower() for name in ReliabilityPolicy.__members__ if name != "UNKNOWN"],
    "history": [name.lower() for name in HistoryPolicy.__members__ if name != "UNKNOWN"],
}
POLICIES = (*CHOICES, "depth")


def check_qos_override(name: str, value: object) -> str:
    """Checks the value of one override.

    Args:
        name: full name of the parameter.
        value: as ROS or YAML gives it.

    Returns:
        What is wrong with the value, and which values are allowed; empty if it can be used. Names that are not known
        are not judged; see `unknown_qos_overrides`.
    """
    policy = name.rsplit(".", 1)[-1]
    if policy in CHOICES and not (isinstance(value, str) and value.lower() in CHOICES[policy]):
        similar = difflib.get_close_matches(str(value).lower().replace("-", "_"), CHOICES[policy], n=1)
        hint = f" Did you mean {similar[0]}?" if similar else ""
        return f"The parameter '{name}' is {value!r}; one of {', '.join(CHOICES[policy])} was expected.{hint}"
    if policy == "depth" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DEPTH):
        return f"The parameter '{name}' is {value!r}; an integer between 1 and {MAX_DEPTH} was expected."
    return ""


def unknown_qos_overrides(overrides: Mapping[str, object], topics: Iterable[tuple[str, str]]) -> list[str]:
    """Returns a warning for each override that no topic of the node reads.

    Args:
        overrides: parameters given at the start, by name.
        topics: (resolved topic, "subscription" or "publisher") of the topics that can be overridden.
    """
    known = [f"{PREFIX}{topic}.{kind}.{policy}" for topic, kind in topics for policy in POLICIES]
    warnings = []
    for name in overrides:
        if not name.startswith(PREFIX) or name in known:
            continue
        similar = difflib.get_close_matches(name, known, n=3, cutoff=0.8)
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        warnings.append(f"The parameter '{name}' matches no topic and policy of this node and has no effect.{hint}")
    return warnings
