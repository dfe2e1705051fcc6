#!/usr/bin/env python3
"""Where the true detail in holes lies, and how much of it the small model shows there.

    python scripts/where_detail_is.py --data worlds:test:12

Pixels of holes are told apart by the true object that they show: within a few pixels of an outline or inside, and of an
object that observations show somewhere or of one that no observation shows.
"""

import argparse

import cv2
import numpy as np

from worldstereo_ros.evaluation import hole_metrics, metrics
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import WorldSequence, open_worlds
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

OUTLINE_PX = 3  # at 240 rows
MIN_OBSERVED_PIXELS = 100  # of an object that counts as observed


def energies(sequence: WorldSequence, protocol: str, every: int) -> dict[str, np.ndarray]:
    """(3,) pixels, imagined and true energy of the detail, by the kind of pixel."""
    scenario = make_scenario(sequence, protocol, every)
    assert isinstance(scenario.target_views, WorldSequence)
    world = WorldModel(load_pipeline("small"))
    for view in scenario.observed_views:
        world.observe(view)
    imagined = [view.image for view in world.imagine(scenario.path, scenario.target_views.camera)]
    observed = sequence.seen_from(np.stack([view.world_from_camera for view in scenario.observed_views]))
    numbers, counts = np.unique(observed.instances(), return_counts=True)
    known = numbers[counts >= MIN_OBSERVED_PIXELS]
    sums: dict[str, np.ndarray] = {}
    objects_of_views = scenario.target_views.instances()
    for truth, objects, image in zip(scenario.target_views, objects_of_views, imagined, strict=True):
        assert truth.depth is not None
        seen = metrics.seen_pixels(truth, scenario.observed_views)
        core = hole_metrics.inside(hole_metrics.hole_area((truth.depth > 0) & ~seen, seen))
        radius = max(1, round(OUTLINE_PX * truth.camera.height / 240))
        window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        values = objects.astype(np.float32)
        outline = cv2.dilate(values, window) != cv2.erode(values, window)
        energy = [(hole_metrics.detail(one) ** 2).sum(axis=2) for one in (image, truth.image)]
        is_known = np.isin(objects, known)
        for name, kind in (("outlines", outline), ("insides", ~outline)):
            for what, part in (("observed objects", is_known), ("unobserved objects", ~is_known)):
                mask = core & kind & part
                row = np.array([mask.sum(), *(one[mask].sum(dtype=np.float64) for one in energy)])
                key = f"{name} of {what}"
                sums[key] = sums.get(key, 0) + row
    return sums


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="worlds:test:4")
    parser.add_argument("--every", type=int, default=8, help="evaluate every n-th held-out frame")
    options = parser.parse_args()
    for protocol in ("single", "sparse"):
        total: dict[str, np.ndarray] = {}
        for sequence in open_worlds(options.data):
            for name, row in energies(sequence, protocol, options.every).items():
                total[name] = total.get(name, 0) + row
        whole = np.sum(list(total.values()), axis=0)
        print(f"{protocol}, {options.data}: detail {np.sqrt(whole[1] / whole[2]):.2f} of the truth's")
        for name, row in total.items():
            shares = f"{row[0] / whole[0]:6.1%} of the pixels, {row[2] / whole[2]:6.1%} of the true energy"
            print(f"  {name:<32} {shares}, detail {np.sqrt(row[1] / max(row[2], 1e-12)):.2f}")


if __name__ == "__main__":
    main()
