#!/usr/bin/env python3
"""Imagine what a robot would see if it turned at the end of a recorded drive: RGB-D images and TF from a bag, no ROS.

python examples/01_imagine_from_bag.py [BAG]

Without a bag, a short drive is recorded in a procedural corridor. The result is in example_out/bag/.
"""

import shutil
import sys
from pathlib import Path

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.bags.write_views import write_views
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.results import write_results
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/bag")


def record_drive(bag: Path) -> Path:
    """Record eight RGB-D frames of a wheeled robot at 10 Hz."""
    scene, camera = make_scene("corridor", seed_of("demo", 1)), Camera.from_fov(320, 240, 1.2)
    poses = make_path(scene, "ground", 8, seed=2)
    start_ns = 1_700_000_000_000_000_000
    shutil.rmtree(bag, ignore_errors=True)
    write_views(bag, [render_view(scene, camera, pose, start_ns + i * 100_000_000) for i, pose in enumerate(poses)])
    return bag


def main() -> None:
    """Observe what the robot saw and imagine a turn to the left at its last pose."""
    OUT.mkdir(parents=True, exist_ok=True)
    bag = Path(sys.argv[1]) if len(sys.argv) > 1 else record_drive(OUT / "drive")
    views = list(read_views(bag, max_views=8))  # the topics are found by their types; read_views has options for each

    world = WorldModel(load_pipeline("small"))
    for view in views:
        world.observe(view)
    print(f"observed {len(views)} views of {bag}: {len(world.cloud)} points")

    path = trajectory("turn", views[-1].world_from_camera, 8, angle=-0.7)
    imagined = list(world.imagine(path, views[-1].camera, remember=True))
    print(f"imagined {len(imagined)} views; the last one is {imagined[-1].observed_fraction:.0%} observed")

    write_results(OUT, imagined, views, world.cloud, title="imagined from a bag")
    print(f"wrote {OUT / 'contact_sheet.png'}, {OUT / 'imagined.mp4'} and {OUT / 'cloud.ply'}")


if __name__ == "__main__":
    main()
