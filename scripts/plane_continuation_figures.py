"""Prints how right depth is that planes continue into holes of photographs (`reconstruction.plane_continuation`).

Four photographs of each world of the validation split, and three and four of the fox, are given with their poses and
without depth. Estimated pixels are compared with the truth: that of the world, or what all photographs of the fox
confirm. The second table is what the confidence of `plane_continuation` was read from.

    python scripts/plane_continuation_figures.py --fox DIR/multiview_fox
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.evaluation.given_photographs import FAILURES, reconstruct_given
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.reconstruction import dense
from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS
from worldstereo_ros.reconstruction.plane_continuation import MAX_CHANGE
from worldstereo_ros.utils.errors import InputError

EXTRAPOLATION, INTERPOLATION = (0, 0.25, 0.5, 0.75), (0, 0.5, 1)
CHANGES = (0, 0.05, 0.1, 0.2, 0.3, MAX_CHANGE)


class Pixels(NamedTuple):
    """Estimated pixels (N,) of a set of photographs: depth without and with planes, and the truth."""

    network: np.ndarray
    planes: np.ndarray
    truth: np.ndarray


def reconstruct(views: Sequence[View], *, planes: bool) -> list[View]:
    """The photographs with depth, in the order of `order_captures`."""
    kept = dense.find_planes  # nothing that is published leaves planes out
    if not planes:
        dense.find_planes = lambda observed, seed=0: []
    try:
        with tempfile.TemporaryDirectory() as folder:
            return reconstruct_given(
                views, Path(folder), estimator=load_depth_estimator("small"), max_pixels=DEFAULT_PIXELS
            ).views
    finally:
        dense.find_planes = kept


def matched(views: Sequence[View], poses: np.ndarray) -> Iterator[tuple[int, View]]:
    """Index of the pose of each view, and the view."""
    for view in views:
        yield int(np.linalg.norm(poses - view.world_from_camera, axis=(1, 2)).argmin()), view


def compare(views: Sequence[View], true_depth: dict[int, np.ndarray], poses: np.ndarray) -> Pixels:
    """The estimated pixels of some photographs whose true depth is known, by the index of their pose."""
    plain = dict(matched(reconstruct(views, planes=False), poses))
    found = []
    for index, view in matched(reconstruct(views, planes=True), poses):
        before, truth = plain[index], true_depth.get(index)
        if truth is None or not (view.observed_mask & (view.depth > 0)).any():
            continue  # nothing of it was confirmed, so that no plane can continue
        both = view.estimated_mask & before.estimated_mask & (truth > 0)
        found.append((before.depth[both], view.depth[both], truth[both]))
    if not found:
        raise InputError("The photographs confirm nothing of each other.")
    return Pixels(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def of_worlds(count: int) -> list[Pixels]:
    """Worlds whose photographs confirm something of each other."""
    out = []
    for number in range(count):
        sequence = world_sequence("validation", number)
        views = [sequence[round(place * (len(sequence) - 1))] for place in EXTRAPOLATION]
        poses = np.stack([view.world_from_camera for view in views])
        try:
            out.append(compare(views, {row: view.depth for row, view in enumerate(views)}, poses))
        except FAILURES as error:
            print(f"validation world {number} is left out. {error}")
    return out


def of_fox(folder: Path) -> list[Pixels]:
    """Four and three photographs, beside what all confirm."""
    sequence = open_sequence(folder)
    every = [sequence[index] for index in range(len(sequence))]
    all_poses = np.stack([view.world_from_camera for view in every])
    truth = {
        index: np.where(view.estimated_mask, 0, view.depth)
        for index, view in matched(reconstruct(every, planes=False), all_poses)
    }
    sets = []
    for places in (EXTRAPOLATION, INTERPOLATION):
        rows = [round(place * (len(every) - 1)) for place in places]
        sets.append(compare([every[row] for row in rows], truth, all_poses))
    return sets


def print_errors(name: str, sets: Sequence[Pixels]) -> None:
    """Means over sets."""
    for which in ("network", "planes"):
        errors = [np.abs(getattr(one, which) / one.truth - 1) for one in sets]
        figures = np.mean([((e < 0.05).mean(), (e < 0.1).mean(), np.median(e)) for e in errors], axis=0)
        print(f"{name}, {which}: within 5 % {figures[0]:.0%}, within 10 % {figures[1]:.0%}, median {figures[2]:.3f}")


def print_confidence(sets: Sequence[Pixels]) -> None:
    """How often depth that a plane changed is right, by how much it was changed."""
    network, planes, truth = (np.concatenate(arrays) for arrays in zip(*sets, strict=True))
    change = np.abs(np.log(planes / network))
    right = np.maximum(planes / truth, truth / planes) < DEPTH_TOLERANCE
    for low, high in pairwise(CHANGES):
        some = (change > low) & (change <= high)
        print(f"changed by {low:g} to {high:g}: {right[some].mean():.0%} of {some.sum()} pixels are right")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=6, help="worlds of the validation split")
    parser.add_argument("--fox", type=Path, help="folder of multiview_fox")
    options = parser.parse_args()
    worlds = of_worlds(options.worlds)
    print_errors(f"{len(worlds)} worlds", worlds)
    print_confidence(worlds)
    if options.fox is not None:
        print_errors("fox", of_fox(options.fox))


if __name__ == "__main__":
    main()
