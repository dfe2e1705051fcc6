#!/usr/bin/env python3
"""Writes the picture of docs/guides/reconstruct.md: the cloud of a reconstructed place from above.

worldstereo demo --photographs photos && worldstereo reconstruct photos --out place
python scripts/reconstruct_picture.py place --out docs/images/reconstruct_place.jpg
"""

import argparse
import math
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import look_at
from worldstereo_ros.io.images import write_image
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.rendering.splatting import render

CAMERA = Camera.from_fov(1000, 620, math.radians(55))
YELLOW, TINT = np.array([230, 190, 40], np.float32), 0.45
HEIGHT, BACK = 1.7, 2.0  # of the camera, in sizes of the place


def main() -> None:
    """Renders the cloud and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, help="folder of worldstereo reconstruct")
    parser.add_argument("--out", type=Path, required=True, help="file for the picture, .jpg or .png")
    options = parser.parse_args()
    archive = load_archive(options.place / "world.wsmap")
    cloud, poses = archive.cloud, np.stack([view.world_from_camera for view in archive.bank.views])
    observed = cloud.provenance == Provenance.OBSERVED
    colours = cloud.colours.astype(np.float32)
    colours[~observed] += TINT * (YELLOW - colours[~observed])
    up = estimate_up_direction(poses)
    centre = np.median(cloud.points[observed], axis=0)
    size = float(np.quantile(np.linalg.norm(cloud.points[observed] - centre, axis=1), 0.8))
    back = poses[:, :3, 3].mean(axis=0) - centre
    back -= up * (back @ up)
    position = centre + size * (HEIGHT * up + BACK * back / max(float(np.linalg.norm(back)), 1e-9))
    pose = look_at(position, centre, up=up)
    spacing = np.full(len(cloud), cloud.voxel_size, np.float32)
    shown = render(cloud.points, colours.astype(np.uint8), cloud.provenance, spacing, CAMERA, pose[None])
    image = shown.colour[0].cpu().numpy().copy()
    image[~shown.covered[0].cpu().numpy()] = 252
    write_image(options.out, image)


if __name__ == "__main__":
    main()
