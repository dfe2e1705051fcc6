#!/usr/bin/env python3
"""Writes the picture of docs/guides/reconstruct_node.md: a photograph without a pose, and what the map shows from the
pose that was found for it, before the photograph was added to the map.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.reconstruction.placed_views import placed_view
from worldstereo_ros.reconstruction.placement import PhotographPlacer
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.images import depth_image
from worldstereo_ros.world import WorldModel

ROBOT = Camera.from_fov(480, 360, math.radians(70))
TELEPHONE = Camera.from_fov(270, 360, math.radians(45))
POSES, EVERY, BETWEEN = 17, 4, 6  # along the path; each fourth is the robot's, one between is the telephone's


def main() -> None:
    """Places the photograph, prints the error of its pose, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the picture, .jpg or .png")
    options = parser.parse_args()
    scene = make_scene("room", seed_of("demo", 0))
    poses = make_path(scene, "orbit", POSES, seed_of("demo", 0))
    world = WorldModel(GeometricPipeline())
    for pose in poses[::EVERY]:
        world.observe(render_view(scene, ROBOT, pose))
    photograph = render_view(scene, TELEPHONE, poses[BETWEEN])
    captures = world.bank.views
    placement = PhotographPlacer().place(photograph.image, TELEPHONE, captures)
    if placement.world_from_camera is None:
        raise SystemExit(placement.reason)
    error = np.linalg.norm(placement.world_from_camera[:3, 3] - poses[BETWEEN][:3, 3])
    print(f"{len(placement.points)} of {placement.compared} points agree; the position is off by {error:.4f} m")
    remembered = world.render_memory(TELEPHONE, placement.world_from_camera[None])
    view = placed_view(photograph.image, TELEPHONE, placement, captures)
    assert view.depth is not None
    columns = captures[1].image, photograph.image, remembered.colour[0].cpu().numpy(), depth_image(view.depth)
    gap = np.full((TELEPHONE.height, 8, 3), 255, np.uint8)
    write_image(options.out, np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=1))


if __name__ == "__main__":
    main()
