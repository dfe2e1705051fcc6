"""Conversion of 600 000 points from numpy to a PointCloud2 and back, relative to a memcpy of the same bytes.

    python benchmarks/bench_messages.py [--points N]

Both run in turn in one process; only their ratio is meaningful. To the message: points and colours, two arrays as the
cloud memory has them, with a check that every coordinate is finite. Back: arrays that are views of the message's data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.conversions.clouds import cloud_arrays, cloud_message

MAX_RATIO = 3.0  # of the round trip to a memcpy


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function; they run in turn, so that other load affects all of them equally."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=600_000)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    count = options.points
    points = random.normal(size=(count, 3)).astype(np.float32)
    colours = random.integers(0, 256, (count, 3), dtype=np.uint8)
    header = Header(frame_id="map")
    same_bytes = np.ones(count * 16, np.uint8)
    message = cloud_message(points, colours, header)
    image = random.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)

    def round_trip() -> None:
        back, back_colours = cloud_arrays(cloud_message(points, colours, header))
        assert back.shape == back_colours.shape == (count, 3)

    def round_trip_with_copy() -> None:
        back, back_colours = cloud_arrays(cloud_message(points, colours, header))
        back.copy(), back_colours.copy()

    times = medians(
        {
            "memcpy of the bytes": same_bytes.copy,
            "numpy -> PointCloud2": lambda: cloud_message(points, colours, header),
            "PointCloud2 -> numpy": lambda: cloud_arrays(message),
            "round trip": round_trip,
            "round trip with copy": round_trip_with_copy,
        },
        options.rounds,
    )
    base = times["memcpy of the bytes"]
    print(f"{count} points, {count * 16 / 1e6:.1f} MB")
    for name, value in times.items():
        print(f"  {name:24s} {value:8.3f} ms   {value / base:6.2f} x memcpy")
    image_times = medians(
        {"memcpy of the bytes": image.copy, "numpy -> Image": lambda: messages.colour_message(image, header)}, 30
    )
    print("an image of 1920x1080, 6.2 MB")
    for name, value in image_times.items():
        print(f"  {name:24s} {value:8.3f} ms   {value / image_times['memcpy of the bytes']:6.2f} x memcpy")
    ratio = times["round trip"] / base
    print(f"round trip: {ratio:.2f} x memcpy, {'within' if ratio <= MAX_RATIO else 'OVER'} {MAX_RATIO:g} x")
    return 0 if ratio <= MAX_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
