"""Which images the node has remembered, as it says on `~/remembered`. Imports no rclpy."""

from __future__ import annotations

import threading
from collections import deque

KEPT_STAMPS = 1000
# After a newer image was remembered: the older one was replaced while it waited, or its message is on its way still.
REPLACED_S = 1.0


class RememberedStamps:
    """The stamps of the newest images that were remembered, from several cameras and clients. Safe between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stamps: deque[int] = deque(maxlen=KEPT_STAMPS)
        self._newest_ns = 0

    @property
    def newest_ns(self) -> int:
        """The newest stamp in nanoseconds; 0 before the first."""
        return self._newest_ns

    def add(self, stamp_ns: int) -> None:
        """Adds the stamp of an image that was remembered."""
        with self._changed:
            self._stamps.append(stamp_ns)
            self._newest_ns = max(self._newest_ns, stamp_ns)
            self._changed.notify_all()

    def wait_for(self, stamp_ns: int, timeout: float) -> bool:
        """Waits until the image of this stamp is remembered.

        Args:
            stamp_ns: its stamp in nanoseconds.
            timeout: seconds.

        Returns:
            False if it is not within `timeout` seconds, or as soon as a newer one has taken its place.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest_ns >= stamp_ns, timeout)
            if self._newest_ns > stamp_ns:
                self._changed.wait_for(lambda: stamp_ns in self._stamps, min(REPLACED_S, timeout))
            return stamp_ns in self._stamps
