"""Runs the node with point maps of the walk of `drifting_walk`, whose path drifts by a known amount."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import drifting_walk
from worldstereo_ros.ros.node.main import main
from worldstereo_ros.ros.node.pointmap_estimator import StreamFactory

if __name__ == "__main__":
    StreamFactory.open = drifting_walk.open_stream
    main()
