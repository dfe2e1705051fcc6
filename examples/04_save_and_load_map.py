#!/usr/bin/env python3
"""Save both memories of a world model to a map file, load them into another one, and imagine from there.

python examples/04_save_and_load_map.py

The result is in example_out/map/. The same map works with the node (service ~/load_map) and `worldstereo view`.
"""

from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.point_clouds import write_point_cloud
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.cloud_overview import cloud_overview
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/map")


def main() -> None:
    """Observe, save, load, imagine; check that the loaded map gives the same images."""
    OUT.mkdir(parents=True, exist_ok=True)
    scene, camera = make_scene("room", seed_of("demo", 2)), Camera.from_fov(320, 240, 1.2)
    poses = make_path(scene, "ground", 40, seed=0)[::5]
    pipeline = load_pipeline("geometric")  # needs no weights
    world = WorldModel(pipeline)
    for pose in poses:
        world.observe(render_view(scene, camera, pose))
    world.save(OUT / "room.wsmap")
    size = (OUT / "room.wsmap").stat().st_size
    print(f"saved {len(world.cloud)} points and {len(world.bank)} views: {size / 1e6:.1f} MB")

    loaded = WorldModel(pipeline)
    loaded.load(OUT / "room.wsmap")
    path = trajectory("turn", poses[-1], 6, angle=0.6)
    before = [view.image for view in world.imagine(path, camera)]
    after = [view.image for view in loaded.imagine(path, camera)]
    print(f"the loaded map gives the same images: {np.array_equal(before, after)}")

    cloud = loaded.cloud
    write_point_cloud(cloud, OUT / "room.ply")  # with provenance, confidences and weight of every point
    parts = (cloud.points, cloud.colours, cloud.provenance, cloud.spacing)
    overview = cloud_overview(*parts, poses, up=estimate_up_direction(poses), size=(640, 480))
    write_image(OUT / "overview.png", overview)
    print(f"wrote {OUT / 'room.wsmap'}, {OUT / 'room.ply'} and {OUT / 'overview.png'}")


if __name__ == "__main__":
    main()
