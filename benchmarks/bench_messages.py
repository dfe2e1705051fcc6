"""A cloud of 600 000 points from numpy into a PointCloud2 and back, beside a memcpy of the same bytes.

    python benchmarks/bench_messages.py [--points N]

Both in one process and one run, taking turns; the ratio is what counts. There: points and colours, two arrays as the
memory holds them, into a message that is ready to publish, every coordinate checked to be finite. Back: arrays that
are views of the message's bytes, as a subscriber gets them.
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

LIMIT = 3.0


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function; they take turns, so that what else runs hits all alike."""
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
    as_many_bytes = np.ones(count * 16, np.uint8)
    message = cloud_message(points, colours, header)
    image = random.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)

    def there_and_back() -> None:
        back, back_colours = cloud_arrays(cloud_message(points, colours, header))
        assert back.shape == back_colours.shape == (count, 3)

    def there_and_copied_back() -> None:
        back, back_colours = cloud_arrays(cloud_message(points, colours, header))
        back.copy(), back_colours.copy()

    times = medians(
        {
            "memcpy of the bytes": as_many_bytes.copy,
            "numpy -> PointCloud2": lambda: cloud_message(points, colours, header),
            "PointCloud2 -> numpy": lambda: cloud_arrays(message),
            "there and back": there_and_back,
            "there and copied back": there_and_copied_back,
        },
        options.rounds,
    )
    base = times["memcpy of the bytes"]
    print(f"{count} points, {count * 16 / 1e6:.1f} MB")
    for name, value in times.items():
        print(f"  {name:24s} {value:8.3f} ms   {value / base:6.2f} x memcpy")
    picture = medians(
        {"memcpy of the bytes": image.copy, "numpy -> Image": lambda: messages.colour_message(image, header)}, 30
    )
    print("an image of 1920x1080, 6.2 MB")
    for name, value in picture.items():
        print(f"  {name:24s} {value:8.3f} ms   {value / picture['memcpy of the bytes']:6.2f} x memcpy")
    ratio = times["there and back"] / base
    print(f"there and back: {ratio:.2f} x memcpy, {'within' if ratio <= LIMIT else 'OVER'} {LIMIT:g} x")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
