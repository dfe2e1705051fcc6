#!/usr/bin/env python3
"""Imagine the views along a path from one photo without depth: all its distances are estimated, none is observed.

python examples/00_imagine_from_photo.py [PHOTO]

Without a photo, one is rendered in a procedural room. The result is in example_out/photo/.
"""

import sys
from pathlib import Path

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.datasets import open_image
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.results import write_results
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/photo")


def render_photo(path: Path) -> Path:
    """Write a photo of a procedural room to `path`."""
    scene = make_scene("room", seed_of("demo", 0))
    pose = make_path(scene, "handheld", 1, seed=3)[0]
    write_image(path, render_view(scene, Camera.from_fov(320, 240, 1.05), pose).image)
    return path


def main() -> None:
    """Observe the photo, imagine eight views on an arc around what it shows, write them."""
    OUT.mkdir(parents=True, exist_ok=True)
    photo = Path(sys.argv[1]) if len(sys.argv) > 1 else render_photo(OUT / "photo.png")
    view = open_image(photo)[0]  # no intrinsics beside the photo: a horizontal field of view of 60 degrees is assumed

    world = WorldModel(load_pipeline("small"), depth_estimator=load_depth_estimator())
    world.observe(view)  # the bundled network estimates the depth
    remembered = world.newest_observation  # the photo with its depth, which is labelled as estimated
    sure = remembered.depth_confidence[remembered.depth > 0].mean()
    cloud = world.cloud
    print(f"remembered {photo.name}: {cloud.estimated_count} estimated points, {cloud.observed_count} observed")
    print(f"the network claims {sure:.0%} of its distances to be right within 25 %")

    path = trajectory("orbit", view.world_from_camera, 8, angle=0.35, radius=2.5)
    imagined = list(world.imagine(path, view.camera, seed=0, remember=True))
    for each in imagined:
        print(f"view {each.index + 1}/{each.count}: {each.estimated_fraction:.0%} estimated, the rest imagined")

    write_results(OUT, imagined, [remembered], cloud, title="imagined from one photo")
    print(f"wrote {OUT / 'contact_sheet.png'}, {OUT / 'imagined.mp4'} and {OUT / 'cloud.ply'}")


if __name__ == "__main__":
    main()
