"""What a recording has that cannot be used: left out, counted, and said once at the end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field


@dataclass
class LeftOut:
    """Counts of messages or parts of them that were left out, by topic and kind.

    Attributes:
        counts: (what, topic) -> number; `what` is plural, such as "transforms".
        reasons: (what, topic) -> why the first of them was left out, a sentence.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, what: str, topic: str, reason: str) -> None:
        """Counts one; the reason of the first of a kind is kept."""
        key = what, topic
        self.counts[key] = self.counts.get(key, 0) + 1
        self.reasons.setdefault(key, reason)

    def first_reason(self, *topics: str) -> str:
        """Why the first message on these topics was left out; empty if none was."""
        return next((reason for (_, topic), reason in self.reasons.items() if topic in topics), "")

    def log(self, logger: logging.Logger) -> None:
        """Logs one warning for each topic and kind, and starts over."""
        for (what, topic), count in self.counts.items():
            which = f"The first: {self.reasons[what, topic]}" if count > 1 else self.reasons[what, topic]
            logger.warning("%d %s on '%s' left out. %s", count, what, topic, which)
        self.counts.clear()
        self.reasons.clear()
