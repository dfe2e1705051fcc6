"""Counters and messages of the node for /diagnostics. Safe to use from several threads."""

from __future__ import annotations

import re
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

RECENT_S = 5.0  # how long a rejected message sets the level WARN; a fault sets ERROR for twice as long
LOG_PERIOD_S = 5.0  # minimum time between two log lines with the same key
MAX_LOG_KEYS = 256
MAX_TEXT = 1000  # characters of a message: it may quote a name from a message, which has any length
_NUMBERS = re.compile(r"[\d.]+")


@dataclass
class TopicStats:
    """Counters of one topic; times are those of `time.monotonic()`."""

    count: int = 0
    rejected: int = 0
    last_at: float | None = None
    last_rejection: str = ""
    last_rejection_at: float = -1e9


class NodeDiagnostics:
    """Counts messages, rejections, faults and jobs. Log lines are throttled, counts are not.

    Args:
        warn: logs a line at level warning.

    Attributes:
        problem: a permanent problem (bad configuration, a worker that hangs); empty if there is none.
        notice: something permanent that is no error (another node has the same name); empty if there is none.
        faults: number of unexpected exceptions.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._topics: dict[str, TopicStats] = {}
        self._logged_at: dict[str, float] = {}
        self._view_seconds: deque[float] = deque(maxlen=64)
        self._jobs: Counter[str] = Counter()
        self._last_fault = ""
        self._last_fault_at = -1e9
        self._last_fractions = (0.0, 0.0, 0.0)
        self.problem = ""
        self.notice = ""
        self.faults = 0

    def on_message(self, topic: str) -> None:
        """Counts a message."""
        with self._lock:
            stats = self._topics.setdefault(topic, TopicStats())
            stats.count += 1
            stats.last_at = time.monotonic()

    def on_rejected(self, topic: str, reason: str) -> None:
        """Counts and logs a message that is not usable."""
        reason = _shortened(reason)
        with self._lock:
            stats = self._topics.setdefault(topic, TopicStats())
            stats.rejected += 1
            stats.last_rejection, stats.last_rejection_at = reason, time.monotonic()
        # Reasons that differ in numbers only share a key: a camera may cause sixty of them a second.
        self.warn(f"{topic}: {reason}", key=f"{topic}:{_NUMBERS.sub('', reason)}")

    def on_fault(self, where: str, error: Exception) -> None:
        """Counts and logs an unexpected exception."""
        self.faults += 1
        self._last_fault = _shortened(f"{where}: {type(error).__name__}: {error}")
        self._last_fault_at = time.monotonic()
        self.warn(f"Unexpected error in {self._last_fault}", key=f"fault:{where}:{type(error).__name__}")

    def warn(self, text: str, *, key: str) -> None:
        """Logs a warning, at most once per LOG_PERIOD_S and key."""
        if self.is_log_due(_shortened(key)):
            self._warn(_shortened(text))

    def is_log_due(self, key: str) -> bool:
        """Returns whether a line with this key may be logged now; True at most once per LOG_PERIOD_S and key."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at.get(key, -1e9) < LOG_PERIOD_S:
                return False
            if len(self._logged_at) > MAX_LOG_KEYS:
                self._logged_at.clear()
            self._logged_at[key] = now
            return True

    def on_job_ended(self, code: str, views: int, seconds: float, fractions: tuple[float, float, float]) -> None:
        """Counts a job by the name of its error code.

        Args:
            code: name of the `ErrorCode`.
            views: number of finished views.
            seconds: seconds of work.
            fractions: (coverage, observed fraction, estimated fraction), means over the finished views, 0..1.
        """
        with self._lock:
            self._jobs["succeeded" if code == "NONE" else code.lower()] += 1
            if views:
                self._view_seconds.append(seconds / views)
                self._last_fractions = fractions

    def last_at(self, topic: str) -> float | None:
        """`time.monotonic()` of the last message on a topic; None if there was none."""
        stats = self._topics.get(topic)
        return None if stats is None else stats.last_at

    # --- messages ---

    def statuses(self, name: str, state: str, values: dict[str, object]) -> list[DiagnosticStatus]:
        """Returns the status of the node and the status of its input.

        Args:
            name: fully qualified name of the node.
            state: label of the lifecycle state.
            values: further values of the node's status, by key.
        """
        now = time.monotonic()
        with self._lock:
            topics = dict(self._topics)
            coverage, observed, estimated = self._last_fractions
            node_values = {
                "state": state,
                **values,
                "seconds per view": _mean(self._view_seconds),
                "coverage of the last job": f"{coverage:.3f}",
                "observed fraction of the last job": f"{observed:.3f}",
                "estimated fraction of the last job": f"{estimated:.3f}",
                "faults": self.faults,
                "last fault": self._last_fault,
                "process memory [MB]": f"{resident_megabytes():.0f}",
                **{f"jobs {code}": count for code, count in sorted(self._jobs.items())},
            }
        level, message = DiagnosticStatus.OK, state
        if self.problem:
            level, message = DiagnosticStatus.ERROR, self.problem
        elif now - self._last_fault_at < 2 * RECENT_S:
            level, message = DiagnosticStatus.ERROR, self._last_fault
        elif self.notice:
            level, message = DiagnosticStatus.WARN, self.notice
        return [_status(f"{name}: node", level, message, node_values), self._input_status(name, topics, now)]

    def _input_status(self, name: str, topics: dict[str, TopicStats], now: float) -> DiagnosticStatus:
        level, message = DiagnosticStatus.OK, "receiving input" if topics else "no input yet"
        values: dict[str, object] = {}
        for topic, stats in sorted(topics.items()):
            values[f"{topic} age [s]"] = "never" if stats.last_at is None else f"{now - stats.last_at:.2f}"
            values[f"{topic} messages"] = stats.count
            values[f"{topic} rejected"] = stats.rejected
            if stats.last_rejection:
                values[f"{topic} last rejection"] = stats.last_rejection
            if now - stats.last_rejection_at < RECENT_S:
                level, message = DiagnosticStatus.WARN, f"{topic}: {stats.last_rejection}"
        return _status(f"{name}: input", level, message, values)


def resident_megabytes() -> float:
    """Resident memory of this process in MB; its peak where the system does not report the current value."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - read every second, without a Path object
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _mean(values: deque[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "unknown"


def _status(name: str, level: bytes, message: str, values: dict[str, object]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id="worldstereo")
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return status


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 4]} ..."
