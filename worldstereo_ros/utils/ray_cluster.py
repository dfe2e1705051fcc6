"""Connecting to a Ray cluster, or starting one on this machine; for batches and for the server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from worldstereo_ros.utils.errors import InputError, first_line

AUTO = "auto"
CONNECT_S = 5.0


def connect_ray(ray: Any, address: str, cpus: int | None = None) -> None:
    """Connects this process to a cluster. Handlers of signals, which Ray replaces, are restored.

    Args:
        ray: the module.
        address: empty (a cluster of this machine alone, which is started), auto, HOST:PORT, or ray://HOST:PORT.
        cpus: cores of a cluster that is started; None: those of this machine.

    Raises:
        InputError: no cluster answers at the address, or none could be started.
    """
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if colon and port.isdecimal():
        try:  # Ray itself tries for minutes, and ends the process then
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"No Ray cluster answers at {address} ({reason}). Start one with `ray start --head`, or leave "
                "--address out for a cluster of this machine alone."
            ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing to anyone unless the user wants it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's new default; silences a warning
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            _start(ray, num_cpus=cpus, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises bare ones, too
        ray.shutdown()
        where = "started on this machine" if not address else f"reached at {address}"
        raise InputError(f"No Ray cluster could be {where}: {first_line(error)}.") from error
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                with contextlib.suppress(ValueError):  # not the main thread
                    signal.signal(number, handler)


def _start(ray: Any, **options: Any) -> None:
    """Starts a cluster of this machine alone; once more if Ray gives up, as it does after 30 s on a busy machine."""
    try:
        ray.init(address="local", **options)
    except Exception:
        ray.shutdown()
        ray.init(address="local", **options)
