#!/usr/bin/env python3
"""Prints how far the path errors of `vo` and `map` vary by chance: with random parts of the tracks of each clip."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from worldstereo_ros.depth.estimators import SmallDepth
from worldstereo_ros.evaluation.pointmap_data import open_clips
from worldstereo_ros.evaluation.pointmap_metrics import trajectory_errors
from worldstereo_ros.pipelines.pointmaps.dense_depth import predict_depth
from worldstereo_ros.pipelines.pointmaps.estimate import reduce_frame, reduced_camera
from worldstereo_ros.pipelines.pointmaps.motion import estimate_motion
from worldstereo_ros.pipelines.pointmaps.tracks import track_points

METHODS = ("vo", "map")


def main() -> None:
    """Prints a line for each clip and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="as of evaluate --pointmaps --data")
    parser.add_argument("--draws", type=int, default=12, help="random parts of each clip")
    parser.add_argument("--share", type=float, default=0.7, help="of the tracks")
    options = parser.parse_args()
    for clip in open_clips(options.data):
        camera = reduced_camera(clip.camera)
        images = np.stack([reduce_frame(image, camera) for image in clip.images])
        maps, tracks = predict_depth(images, camera, None, SmallDepth()), track_points(images)
        for method in METHODS:
            errors = []
            for seed in range(options.draws):
                kept = np.random.default_rng(seed).random(len(tracks)) < options.share
                some = replace(tracks, pixels=tracks.pixels[kept])
                motion = estimate_motion(some, maps, camera, method=method)
                found = trajectory_errors(motion.world_from_camera, clip.poses)
                errors.append(np.nan if found is None else found.ate)
            print(
                f"{clip.name}, {method}: ATE {np.nanmean(errors):.4f} m, standard deviation {np.nanstd(errors):.4f}, "
                f"{np.nanmin(errors):.4f} to {np.nanmax(errors):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
