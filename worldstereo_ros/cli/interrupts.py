"""Ctrl-C and SIGTERM. Imports nothing slow, so that an interruption while the rest is imported is handled, too."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

INTERRUPTED_STATUS, TERMINATED_STATUS = 128 + signal.SIGINT, 128 + signal.SIGTERM
_RETRY_S = 0.05

_signals: list[int] = []  # that asked this process to end


def prepare_process() -> None:
    """Makes the process end cleanly on Ctrl-C and SIGTERM, and print text that its terminal cannot show.

    Both signals raise KeyboardInterrupt in the main thread, so that files are removed and child processes ended. For
    the main program only, before anything slow is imported.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.excepthook = _report_uncaught
    sys.unraisablehook = _retry_lost_interrupt
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Paths need not be UTF-8, and a terminal may be ASCII; neither is a reason to fail.
            stream.reconfigure(errors="backslashreplace")


def _interrupt(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Reports what happens outside of commands, such as an interruption while modules are imported."""
    if not _signals and not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print(describe_interruption(), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(interruption_status())  # the interpreter would end with the signal, and its own message


def _retry_lost_interrupt(unraisable: Any) -> None:
    """Interrupts again if the exception came up where none can be raised, such as in a finaliser, and was lost."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        main = threading.main_thread().ident  # a signal to it also ends a call that waits
        threading.Timer(_RETRY_S, signal.pthread_kill, [main, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)


def was_interrupted() -> bool:
    """Whether a signal asked this process to end."""
    return bool(_signals)


def describe_interruption() -> str:
    """What to print: which of the signals came."""
    return "Terminated." if signal.SIGTERM in _signals else "Interrupted."


def interruption_status() -> int:
    """The exit status, as shells give it: 128 and the number of the signal."""
    return TERMINATED_STATUS if signal.SIGTERM in _signals else INTERRUPTED_STATUS
