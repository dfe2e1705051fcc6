"""Where the development data lies, for the tests that want it."""

import os
import signal
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("WORLDSTEREO_SHARED", Path(__file__).resolve().parents[2] / "shared"))

# A shell that starts something in the background has it ignore Ctrl-C, and so all that it starts; the tests of Ctrl-C
# are to pass there too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the development data sets (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    folder = Path(os.environ.get("WORLDSTEREO_GOLDEN", SHARED / "golden"))
    if not folder.is_dir():
        pytest.skip("the golden reference numbers (../shared/golden) are not on this machine")
    return folder
