#!/usr/bin/env python3
"""Prints whether two parts of a recording that share some frames' places are joined, and how well the joined path fits.

Of each sequence the first 34 frames and those from the 18th on to the 51st are estimated apart, as two shots of one
video, and joined. Parts of different sequences must stay apart.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldstereo_ros.evaluation.pointmap_metrics import trajectory_errors
from worldstereo_ros.evaluation.world_sequences import open_data
from worldstereo_ros.pipelines.pointmaps import Pointmaps, estimate_pointmaps
from worldstereo_ros.pipelines.pointmaps.joining import join_shots
from worldstereo_ros.pipelines.pointmaps.keyframes import Keyframe, make_keyframe

PARTS = (slice(0, 34), slice(17, 51))
STEP = 4  # frames between keyframes


def keyframes_of(maps: Pointmaps, images: list[np.ndarray], first: int, shot: int) -> list[Keyframe]:
    """Keyframes of a shot whose first frame has a number."""
    depth = np.where(maps.dynamic, np.float32(0), maps.depth)
    kept = [f for f in range(0, len(maps), STEP) if maps.frame_ok[f]]
    return [replace(make_keyframe(images[f], depth[f], maps, f, first + f), shot=shot) for f in kept]


def main() -> None:
    """Prints a line for each sequence and each pair of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="posed sequences of at least 40 frames")
    shots: dict[str, list[tuple[Pointmaps, list[np.ndarray]]]] = {}
    for name in parser.parse_args().data:
        (sequence,) = open_data(name, needs_depth=False)
        views = [sequence[row] for row in range(min(len(sequence), PARTS[1].stop))]
        parts = [views[part] for part in PARTS]
        made = [
            (estimate_pointmaps([view.image for view in part], part[0].camera), [view.image for view in part])
            for part in parts
        ]
        shots[Path(name).name] = made
        joined, poses = _join(made[0], made[1])
        apart = [trajectory_errors(maps.poses, _truth(part)) for (maps, _), part in zip(made, parts, strict=True)]
        whole = trajectory_errors(poses, _truth(parts[0] + parts[1])) if joined else None
        shown = ", ".join("-" if each is None else f"{each.ate:.3f}" for each in apart)
        print(
            f"{Path(name).name}: {'joined' if joined else 'apart'}; ATE of the parts {shown} m, of both "
            f"{'-' if whole is None else f'{whole.ate:.3f}'} m",
            flush=True,
        )
    for one, two in itertools.combinations(shots, 2):
        found = sum(_join(a, b)[0] for a in shots[one] for b in shots[two])
        print(f"{one} and {two}: {found} of 4 pairs of parts joined", flush=True)


def _truth(views: list) -> np.ndarray:
    return np.stack([view.world_from_camera for view in views])


def _join(one: tuple[Pointmaps, list[np.ndarray]], two: tuple[Pointmaps, list[np.ndarray]]) -> tuple[bool, np.ndarray]:
    count = len(one[0])
    keyframes = keyframes_of(*one, 0, 0) + keyframes_of(*two, count, 1)
    poses = np.concatenate([one[0].poses, two[0].poses])
    shots = np.repeat([0, 1], [count, len(two[0])])
    found = join_shots(keyframes, poses, np.ones(len(poses)), shots)
    return bool(found.pairs), found.poses


if __name__ == "__main__":
    main()
