#!/usr/bin/env python3
"""Imagine the panorama 0.7 m ahead of a given one.

python examples/02_imagine_panorama.py [PANORAMA]

A panorama is equirectangular (twice as wide as high); its distances are estimated. Without one, a panorama with exact
distances is rendered in a procedural room. The result is in example_out/panorama/.
"""

import sys
from pathlib import Path

import numpy as np

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.io.images import read_image, write_image
from worldstereo_ros.panorama.imagine import imagine_panorama, observe_panorama
from worldstereo_ros.panorama.perspective_views import pose_from_angles, rings, stitching_camera
from worldstereo_ros.panorama.stitching import Panorama, panorama_from_views
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.contact_sheet import panorama_sheet
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/panorama")
HEIGHT = 256


def render_panorama() -> Panorama:
    """Stitch a panorama from views all round a place in a procedural room."""
    scene, camera = make_scene("room", seed_of("demo", 5)), stitching_camera(HEIGHT)
    place = make_path(scene, "handheld", 1, seed=0)[0]
    views = [render_view(scene, camera, place @ pose_from_angles(*angles)) for ring in rings(camera) for angles in ring]
    return panorama_from_views(views, HEIGHT, world_from_camera=place, align=False)


def main() -> None:
    """Observe a panorama, imagine one beside it, write both."""
    OUT.mkdir(parents=True, exist_ok=True)
    world = WorldModel(load_pipeline("small"), depth_estimator=load_depth_estimator())
    rendered = None if len(sys.argv) > 1 else render_panorama()
    image, distance = (read_image(Path(sys.argv[1])), None) if rendered is None else (rendered.image, rendered.distance)
    given = observe_panorama(world, image, distance)
    print(f"a panorama of {image.shape[1]}x{image.shape[0]} pixels: {given.points} points in {given.views} views")

    place = np.eye(4)
    place[2, 3] = 0.7  # metres ahead; x is right, y down, z ahead
    result = imagine_panorama(world, place, height=HEIGHT)
    panorama = result.panorama
    print(f"imagined {len(result.views)} views")
    print(f"{panorama.observed.mean():.0%} of the panorama is observed, {panorama.estimated.mean():.0%} estimated")

    write_image(OUT / "panorama.png", result.panorama.image)
    write_image(OUT / "sheet.png", panorama_sheet(image, result))
    print(f"wrote {OUT / 'panorama.png'} and {OUT / 'sheet.png'}")


if __name__ == "__main__":
    main()
