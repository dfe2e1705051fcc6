"""Runs properties on made-up inputs: a few, always the same ones, for CI, or new ones for as long as wanted.

`WORLDSTEREO_FUZZ_SECONDS` is the time of the tests that were selected, with new random inputs, shared evenly by them.
Inputs that fail are kept in `.fuzz/`: by hypothesis, which tries them first the next time, and as files.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from worldstereo_ros.utils.errors import WorldStereoError

SECONDS = float(os.environ.get("WORLDSTEREO_FUZZ_SECONDS", 0))
FOLDER = Path(os.environ.get("WORLDSTEREO_FUZZ_FOLDER", ".fuzz"))
HANG_S = 30  # of a single input that takes milliseconds; no statement about speed
MAX_MEMORY_MB = 256.0  # that a single input of some kilobytes may take, beside what the process has


class _Share:
    """Seconds that each test has."""

    seconds = SECONDS


def share_time(num_tests: int) -> None:
    """Shares the time among the tests that were collected."""
    _Share.seconds = SECONDS / max(1, num_tests)


def fuzz(check: Callable[..., None], *strategies: Any, examples: int = 20, parts: int = 1) -> None:
    """Calls `check` with inputs of the strategies.

    Args:
        check: raises if an input breaks a property.
        strategies: of its arguments.
        examples: number of inputs in CI.
        parts: number of calls of this function in the test, which share its time.
    """
    suppressed = list(HealthCheck)
    if not SECONDS:
        options = settings(
            derandomize=True, max_examples=examples, deadline=None, database=None, suppress_health_check=suppressed,
            phases=[Phase.generate],
        )  # fmt: skip
        options(given(*strategies)(check))()
        return
    options = settings(
        max_examples=200, deadline=None, database=DirectoryBasedExampleDatabase(FOLDER / "examples"),
        suppress_health_check=suppressed, print_blob=True, verbosity=Verbosity.quiet,
    )  # fmt: skip
    end = time.monotonic() + _Share.seconds / parts
    while time.monotonic() < end:  # a round has new random inputs
        options(given(*strategies)(check))()


@contextmanager
def bounded(content: bytes = b"", suffix: str = ".bin", *, max_megabytes: float = MAX_MEMORY_MB) -> Iterator[None]:
    """Fails if the block takes too much memory or never ends, or raises another error than those for users.

    Args:
        content: the input; stored where a time for fuzzing is set and the block fails.
        suffix: of the file for it.
        max_megabytes: additional memory that the block may take at its peak.
    """
    before = _status("VmRSS")
    _reset_peak()
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        try:
            yield
        except WorldStereoError as error:
            if not str(error).strip():
                raise AssertionError("an error without a message") from error
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken = _status("VmHWM") - before
        assert taken <= max_megabytes, f"{taken:.0f} MB for an input of {len(content)} bytes"
    except BaseException:
        if SECONDS:
            _store(content, suffix)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class HangError(BaseException):
    """An input that never ends; no reader takes it for an error of its own."""


def _hang(*_: object) -> None:
    raise HangError(f"no end after {HANG_S} s")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def _store(content: bytes, suffix: str) -> None:
    (FOLDER / "inputs").mkdir(parents=True, exist_ok=True)
    (FOLDER / "inputs" / (hashlib.sha256(content).hexdigest()[:16] + suffix)).write_bytes(content)
