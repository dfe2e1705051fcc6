"""When a process of a model ends, the others end with a sentence."""

import os
import signal
import socket
import subprocess
import sys

from helpers.paths import HELPERS, REPOSITORY


def test_the_death_of_a_process_ends_the_others():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    waiting, ended = (
        subprocess.Popen(
            [sys.executable, str(HELPERS / "ending_process.py")],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    )
    output, errors = waiting.communicate(timeout=90)
    assert ended.wait(timeout=10) == -signal.SIGKILL
    ended.communicate()
    assert output == "ready\n"
    assert "Process 1 of the model has ended" in errors
    assert waiting.returncode == -signal.SIGTERM
