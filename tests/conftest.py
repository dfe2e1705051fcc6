"""Where the development data lies, for the tests that want it."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("WORLDSTEREO_SHARED", Path(__file__).resolve().parents[2] / "shared"))


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
