"""The resident memory of a process over time: how it is sampled, and when it counts as flat."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

WARM_UP_S = 120.0  # caches, JIT, the cloud and the bank fill up to their limits
# A leak of what comes with every image or every goal is above this: one of 30 images a second, 96x72 with depth, kept
# each second is 3 MB/min; 500 views of one goal 25 MB. What the allocator keeps and gives back as goals come and go
# moves single samples by tens of megabytes, but hardly the median slope over all pairs of samples: 0.6 MB/min was
# measured over ten minutes with twelve goals.
MAX_SLOPE_MB_PER_MIN = 2.0


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class MemoryCurve:
    """Samples of a process's memory, taken by a thread of its own inside `with`.

    Attributes:
        pid: the process.
        period: seconds between samples.
        seconds, megabytes: the samples; seconds since the start.
    """

    pid: int
    period: float = 1.0
    sample: Callable[[int], float] = resident_megabytes
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def __enter__(self) -> MemoryCurve:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(self.period):
            try:
                megabytes = self.sample(self.pid)
            except (OSError, IndexError):  # the process ended
                return
            self.seconds.append(time.monotonic() - start)
            self.megabytes.append(megabytes)

    def slope(self, after_s: float = WARM_UP_S) -> float:
        """Median slope in MB per minute of all pairs of samples after the warm-up (Theil and Sen)."""
        seconds, megabytes = np.array(self.seconds), np.array(self.megabytes)
        late = seconds >= after_s
        if late.sum() < 10:
            raise ValueError(f"{late.sum()} samples after {after_s:g} s are too few for a slope")
        return float(theilslopes(megabytes[late], seconds[late] / 60)[0])

    def table(self, rows: int = 20) -> str:
        """The curve as text, a line for each part of the time: seconds, least, median and largest megabytes."""
        lines = []
        for part in np.array_split(np.arange(len(self.seconds)), min(rows, len(self.seconds))):
            values = np.array(self.megabytes)[part]
            lines.append(
                f"{self.seconds[part[-1]]:6.0f} s  {values.min():7.1f} {np.median(values):7.1f} {values.max():7.1f} MB"
            )
        return "\n".join(lines)
