"""Paths of the repository and the optional development data."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORLDSTEREO_SHARED", REPOSITORY.parent / "shared"))
HELPERS = Path(__file__).resolve().parent
