#!/usr/bin/env python3
"""Writes photographs of a walk through a procedural world, and their true poses, to reconstruct many at a time.

python scripts/world_photographs.py --out photos --poses poses.npy --count 300
"""

import argparse
import math
from pathlib import Path

import numpy as np

from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.io.images import write_image

CAMERA = Camera.from_fov(480, 360, math.radians(70))


def main() -> None:
    """Renders the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the photographs")
    parser.add_argument("--poses", type=Path, required=True, help="file for the true poses (N, 4, 4)")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--world", type=int, default=2, help="number of the world of the split test")
    options = parser.parse_args()
    sequence = world_sequence("test", options.world, views=options.count, camera=CAMERA)
    options.out.mkdir(parents=True, exist_ok=True)
    for index, view in enumerate(sequence):
        write_image(options.out / f"{index:04d}.jpg", view.image)
    np.save(options.poses, sequence.poses)


if __name__ == "__main__":
    main()
