#!/usr/bin/env python3
"""Reconstruct a place from photographs alone: poses, depth, cloud and mesh.

python examples/09_reconstruct.py [PHOTOGRAPHS]

Without a folder of photographs (or a video), a procedural room is photographed. The result is in example_out/place/;
look at it with `worldstereo view example_out/place`.
"""

import shutil
import sys
from pathlib import Path

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.io.images import write_image
from worldstereo_ros.reconstruction.place import PlaceSettings, reconstruct
from worldstereo_ros.reconstruction.sample_photographs import write_sample_photographs
from worldstereo_ros.visualization.cloud_overview import cloud_overview

PHOTOS, OUT = Path("example_out/photos"), Path("example_out/place")


def take_photographs(folder: Path) -> Path:
    """Write photographs of a procedural room to `folder`, without poses and without depth."""
    shutil.rmtree(folder, ignore_errors=True)
    write_sample_photographs(folder, count=10, size=(320, 240))
    return folder


def main() -> None:
    """Reconstruct the place, say what is known of it, and draw its cloud from above."""
    photos = Path(sys.argv[1]) if len(sys.argv) > 1 else take_photographs(PHOTOS)
    stage = ""

    def show(name: str, what: str, done: int, of: int) -> None:
        nonlocal stage
        if name != stage:
            stage = name
            print(f"{name} ...", flush=True)

    place = reconstruct(photos, OUT, PlaceSettings(splat_seconds=0), show)
    figures = place.figures
    print(f"{figures['registered']} of {figures['images']} photographs are registered")
    for name, reason in place.left_out.items():
        print(f"  left out: {name}: {reason}")
    print(f"{figures['points']} points, {figures['observed_points']} of them confirmed by several photographs")
    print(f"metric: {figures['metric']}")  # nothing in photographs says how long a metre is
    cloud, poses = place.cloud, place.registration.model.world_from_camera
    parts = (cloud.points, cloud.colours, cloud.provenance, cloud.spacing)
    write_image(OUT / "overview.png", cloud_overview(*parts, poses, up=estimate_up_direction(poses), size=(640, 480)))
    print(f"wrote {OUT / 'overview.png'}, {OUT / 'cloud.ply'}, {OUT / 'mesh.glb'} and {OUT / 'splats.ply'}")


if __name__ == "__main__":
    main()
