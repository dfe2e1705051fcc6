"""Latency that the node adds to the pipeline: from sending a goal to receiving its view, minus the pipeline's time.

    python benchmarks/bench_node.py [--goals N] [--width W --height H]

The node runs in its own process, over DDS on this machine. The client adds one observation, then requests single views
one after another. The pipeline's time is `seconds_to_first` of the result; the rest is transport, transforms and
conversion of messages. Prints p50 and p99 in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
from node_process import running_node

DOMAIN = 101  # outside the range that the tests use
WARM_UP_GOALS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goals", type=int, default=150)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    options = parser.parse_args()
    os.environ.update(ROS_DOMAIN_ID=str(DOMAIN), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    with running_node():
        return measure(options)


def measure(options: argparse.Namespace) -> int:
    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.views import View
    from worldstereo_ros.ros.client.client import WorldStereoClient

    random = np.random.default_rng(0)
    shape = (options.height, options.width)
    coarse = random.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]])
    view = View(
        image, Camera.from_fov(options.width, options.height, 1.2), np.eye(4), depth=np.full(shape, 2.0, np.float32)
    )
    total, pipeline = [], []
    with WorldStereoClient(publish_tf=True) as client:
        client.wait_until_ready(60)
        client.add_observation(view)
        for _ in range(options.goals + WARM_UP_GOALS):
            result = client.imagine(np.eye(4)[None])
            if result.error_code or not result.arrivals:
                print(f"A goal failed with error {result.error_code}: {result.error_msg}", file=sys.stderr)
                return 1
            total.append(result.arrivals[0] * 1e3)
            pipeline.append(result.seconds_to_first * 1e3)
    total, pipeline = total[WARM_UP_GOALS:], pipeline[WARM_UP_GOALS:]
    overhead = np.array(total) - np.array(pipeline)
    print(f"{options.goals} goals of one view of {options.width}x{options.height}, milliseconds")
    for name, values in (("goal to view", total), ("pipeline", pipeline), ("node", overhead)):
        print(f"  {name:14s} p50 {np.percentile(values, 50):7.1f}   p99 {np.percentile(values, 99):7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
