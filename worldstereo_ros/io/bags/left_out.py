"""What a recording has that cannot be used: left out, counted, and said once at the end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field


@dataclass
class LeftOut:
    """Counts of messages or parts of them that were left out, by what they are, topic and kind of the reason.

    Attributes:
        counts: (what, topic, kind) -> number; `what` is plural, such as "transforms".
        reasons: the same keys -> why the first of them was left out, a sentence.
    """

    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    reasons: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def add(self, what: str, topic: str, reason: str, *, kind: str = "invalid") -> None:
        """Counts one; the reason of the first of a kind is kept."""
        key = what, topic, kind
        self.counts[key] = self.counts.get(key, 0) + 1
        self.reasons.setdefault(key, reason)

    def first_reason(self, *topics: str) -> str:
        """Why the first message on these topics was left out; empty if none was."""
        return next((reason for (_, topic, _), reason in self.reasons.items() if topic in topics), "")

    def log(self, logger: logging.Logger) -> None:
        """Logs one warning for each topic and kind, and starts over."""
        for key, count in self.counts.items():
            what, topic, _ = key
            verb, first = ("were", "The first: ") if count > 1 else ("was", "")
            logger.warning("%d of the %s on '%s' %s left out. %s%s", count, what, topic, verb, first, self.reasons[key])
        self.counts.clear()
        self.reasons.clear()
