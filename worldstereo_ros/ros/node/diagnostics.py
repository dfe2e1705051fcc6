"""What the node knows about its own state, and tells on /diagnostics. Safe to use from several threads."""

from __future__ import annotations

import re
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

RECENT = 5.0  # seconds that a refusal colours the diagnostics
QUIET = 5.0  # seconds between two log lines of the same kind
_NUMBERS = re.compile(r"[\d.]+")


@dataclass
class TopicStats:
    """What came on one topic."""

    count: int = 0
    rejected: int = 0
    last_at: float | None = None
    last_refusal: str = ""
    last_refusal_at: float = -1e9


class NodeDiagnostics:
    """Counts what comes, what is refused and what fails; the log lines are throttled, the counts are not.

    Attributes:
        problem: what is wrong for good (bad configuration, a worker that hangs); empty = nothing.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._topics: dict[str, TopicStats] = {}
        self._said: dict[str, float] = {}
        self._view_seconds: deque[float] = deque(maxlen=64)
        self._outcomes: Counter[str] = Counter()
        self.problem = ""
        self.faults = 0
        self.last_fault = ""
        self.last_fault_at = -1e9
        self.last_coverage = 0.0

    def on_message(self, topic: str) -> None:
        """A message came."""
        with self._lock:
            stats = self._topics.setdefault(topic, TopicStats())
            stats.count += 1
            stats.last_at = time.monotonic()

    def on_rejected(self, topic: str, sentence: str) -> None:
        """A message was not usable."""
        with self._lock:
            stats = self._topics.setdefault(topic, TopicStats())
            stats.rejected += 1
            stats.last_refusal, stats.last_refusal_at = sentence, time.monotonic()
        # The same sentence with other numbers is the same sentence: a camera makes sixty of them a second.
        self.warn(f"{topic}: {sentence}", key=f"{topic}:{_NUMBERS.sub('', sentence)}")

    def fault(self, where: str, error: Exception) -> None:
        """An exception that nobody expected."""
        self.faults += 1
        self.last_fault = f"{where}: {type(error).__name__}: {error}"
        self.last_fault_at = time.monotonic()
        self.warn(f"An error nobody expected in {self.last_fault}", key=f"fault:{where}:{type(error).__name__}")

    def warn(self, sentence: str, *, key: str) -> None:
        """Warns, at most once in a while for each key."""
        now = time.monotonic()
        with self._lock:
            if now - self._said.get(key, -1e9) < QUIET:
                return
            if len(self._said) > 256:
                self._said.clear()
            self._said[key] = now
        self._warn(sentence)

    def job_ended(self, outcome: str, views: int, seconds: float, coverage: float) -> None:
        """A job ended after so many seconds of work."""
        with self._lock:
            self._outcomes[outcome] += 1
            if views:
                self._view_seconds.append(seconds / views)
                self.last_coverage = coverage

    def last_at(self, topic: str) -> float | None:
        """`time.monotonic()` of the last message on a topic, None before the first."""
        stats = self._topics.get(topic)
        return None if stats is None else stats.last_at

    # --- telling --------------------------------------------------------------------------------------------------

    def statuses(self, name: str, state: str, facts: dict[str, object]) -> list[DiagnosticStatus]:
        """The diagnostics: one status of the node, one of its input."""
        now = time.monotonic()
        with self._lock:
            stats = dict(self._topics)
            values = {
                "state": state,
                **facts,
                "seconds per view": _mean(self._view_seconds),
                "coverage of the last job": f"{self.last_coverage:.3f}",
                "faults": self.faults,
                "last fault": self.last_fault,
                "memory of the process [MB]": f"{resident_megabytes():.0f}",
                **{f"jobs {outcome}": count for outcome, count in sorted(self._outcomes.items())},
            }
        level, message = DiagnosticStatus.OK, state
        if self.problem:
            level, message = DiagnosticStatus.ERROR, self.problem
        elif now - self.last_fault_at < 2 * RECENT:
            level, message = DiagnosticStatus.ERROR, self.last_fault
        return [
            _status(f"{name}: node", level, message, values),
            self._input_status(name, stats, now),
        ]

    def _input_status(self, name: str, stats: dict[str, TopicStats], now: float) -> DiagnosticStatus:
        level, message = DiagnosticStatus.OK, "input comes" if stats else "no input yet"
        values: dict[str, object] = {}
        for topic, seen in sorted(stats.items()):
            age = "never" if seen.last_at is None else f"{now - seen.last_at:.2f}"
            values[f"{topic} age [s]"] = age
            values[f"{topic} messages"] = seen.count
            values[f"{topic} refused"] = seen.rejected
            if seen.last_refusal:
                values[f"{topic} last refusal"] = seen.last_refusal
            if now - seen.last_refusal_at < RECENT:
                level, message = DiagnosticStatus.WARN, f"{topic}: {seen.last_refusal}"
        return _status(f"{name}: input", level, message, values)


def resident_megabytes() -> float:
    """Memory of this process that lies in RAM now (at its peak, where the system does not say now)."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - not a file to have a path object of
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _mean(values: deque[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "not known yet"


def _status(name: str, level: bytes, message: str, values: dict[str, object]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id="worldstereo")
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return status
