"""A reconstruction in a process of its own, so that whoever asks for it can work on, and stop it at any moment.

The mapper and the compiled loops stop nowhere in between, take all processors, and need gigabytes for large sets; a
process gives way to others (`NICENESS`), ends when it is told to or when its parent ends, and leaves no memory behind.
What it completed lies in stages/ of the output, as after Ctrl-C.

    worldstereo_ros.reconstruction.background    reads a request as one line of JSON, answers with lines of JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldstereo_ros.reconstruction.place import PlaceSettings, reconstruct
from worldstereo_ros.utils.errors import InputError, WorldStereoError

NICENESS = 10
STOP_TIMEOUT_S = 2.0  # from the request to end to the kill
KEPT_LINES = 8  # of what the process printed, for a crash
_EVENT = "worldstereo"  # key of the lines that are meant for the parent

Progress = Callable[[str, str, int, int], None]  # as of `place.reconstruct`


class ReconstructionStoppedError(WorldStereoError, RuntimeError):
    """The reconstruction was stopped."""


class ReconstructionFailedError(WorldStereoError, RuntimeError):
    """The photographs give no place; the message says why."""


class BackgroundReconstruction:
    """Starts a reconstruction in a process of its own.

    Args:
        source, out, settings: as of `place.reconstruct`.
    """

    def __init__(self, source: Path, out: Path, settings: PlaceSettings) -> None:
        self._stopped = False
        request = {"source": str(source), "out": str(out), "settings": asdict(settings)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which ends this one
        )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended already; `wait` says how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def wait(self, on_progress: Progress | None = None) -> dict[str, Any]:
        """Waits for the end.

        Args:
            on_progress: called as that of `place.reconstruct`.

        Returns:
            What figures.json holds.

        Raises:
            ReconstructionStoppedError: `stop` was called.
            ReconstructionFailedError: the photographs give no place.
            RuntimeError: the process crashed.
        """
        assert self._process.stdout is not None
        printed: deque[str] = deque(maxlen=KEPT_LINES)
        answer: dict[str, Any] = {}
        for line in self._process.stdout:
            event = _parsed(line)
            if event is None:
                printed.append(line.rstrip())
            elif event[_EVENT] == "progress":
                if on_progress is not None:
                    on_progress(*event["progress"])
            else:
                answer = event
        code = self._process.wait()
        self.close()
        if self._stopped:
            raise ReconstructionStoppedError("The reconstruction was stopped.")
        if answer.get(_EVENT) == "figures":
            return answer["figures"]
        if answer.get(_EVENT) == "error":
            raise ReconstructionFailedError(str(answer["error"]))
        said = " ".join(line for line in printed if line)[-500:]
        raise RuntimeError(f"The process of the reconstruction ended with {code}. {said}".rstrip())

    def stop(self) -> None:
        """Ends the process; `wait` raises then. Safe from any thread, also more than once."""
        self._stopped = True
        if self._process.poll() is None:
            self._process.terminate()
            threading.Timer(STOP_TIMEOUT_S, self._kill).start()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Closes the pipes, which ends the process if it still runs."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the process that is meant for its parent; None for what libraries print."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and _EVENT in event else None


# --- in the process --------------------------------------------------------------------------------------------------


def main() -> None:
    """Carries out the request that stands in the first line of the input, until the input ends."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings = request["settings"]
    for name in ("size", "photographs"):  # JSON has no tuples
        settings[name] = None if settings[name] is None else tuple(settings[name])

    def send(kind: str, content: Any) -> None:
        # A library may have left a line without its end.
        sys.stdout.write(f"\n{json.dumps({_EVENT: kind, kind: content})}\n")
        sys.stdout.flush()

    try:
        place = reconstruct(
            Path(request["source"]),
            Path(request["out"]),
            PlaceSettings(**settings),
            lambda stage, what, done, of: send("progress", (stage, what, done, of)),
        )
        send("figures", place.figures)
    except (WorldStereoError, InputError, MemoryError) as error:
        send("error", str(error) or "There is not enough memory.")


def _end_with_parent() -> None:
    """Ends the process when the parent closes the input, as it does when it is killed."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
