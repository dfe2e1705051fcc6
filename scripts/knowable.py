#!/usr/bin/env python3
"""Upper bounds of the quality of unseen pixels in procedural worlds.

Compares the pipelines with: the mean colour of the object that a pixel shows, as observed elsewhere; the mean of its
true colours in the view itself; and the blurred ground truth.
"""

import argparse

import cv2
import numpy as np

from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import WorldSequence, open_worlds
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

MIN_PIXELS = 30  # of an object whose colour counts as observed, and of unseen pixels in a view
BLUR_PX = 8.0  # at 240 rows
OBJECTS = "colour of its object, as observed elsewhere"


def colours_of_objects(images: np.ndarray, objects: np.ndarray, min_pixels: int) -> dict[int, np.ndarray]:
    """Mean colour of every object with at least `min_pixels` pixels."""
    pixels, numbers = images.reshape(-1, 3), objects.reshape(-1)
    found = {int(one): numbers == one for one in np.unique(numbers)}
    return {one: pixels[mask].mean(axis=0) for one, mask in found.items() if mask.sum() >= min_pixels}


def images_of_views(sequence: WorldSequence, protocol: str, every: int) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """Ground truth, unseen mask and images by name of each target view; `share`: fraction that `OBJECTS` covers."""
    scenario = make_scenario(sequence, protocol, every)
    assert isinstance(scenario.target_views, WorldSequence)
    imagined = {}
    for name in ("geometric", "small"):
        world = WorldModel(load_pipeline(name))
        for view in scenario.observed_views:
            world.observe(view)
        imagined[name] = [view.image for view in world.imagine(scenario.path, scenario.target_views.camera)]
    observed = sequence.seen_from(np.stack([view.world_from_camera for view in scenario.observed_views]))
    images = np.stack([view.image for view in scenario.observed_views])
    known = colours_of_objects(images, observed.instances(), MIN_PIXELS)
    out = []
    for number, (truth, objects) in enumerate(
        zip(scenario.target_views, scenario.target_views.instances(), strict=True)
    ):
        assert truth.depth is not None
        unseen = (truth.depth > 0) & ~metrics.seen_pixels(truth, scenario.observed_views)
        if unseen.sum() < MIN_PIXELS:
            continue
        from_objects, true = imagined["geometric"][number].copy(), truth.image.copy()
        for one, colour in colours_of_objects(truth.image, objects, 1).items():
            true[objects == one] = colour
            if one in known:
                from_objects[objects == one] = known[one]
        images_of = {name: images[number] for name, images in imagined.items()}
        images_of |= {OBJECTS: from_objects, "true mean colour of its object": true}
        images_of["truth, blurred"] = cv2.GaussianBlur(truth.image, (0, 0), BLUR_PX * truth.camera.height / 240)
        share = float(np.isin(objects, list(known))[unseen].mean())
        out.append((truth.image, unseen, images_of | {"share": share}))
    return out


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="worlds:test:4")
    parser.add_argument("--every", type=int, default=12, help="evaluate every n-th held-out frame")
    options = parser.parse_args()
    for protocol in ("single", "sparse"):
        errors: dict[str, list[float]] = {}
        for sequence in open_worlds(options.data):
            for truth, unseen, images in images_of_views(sequence, protocol, options.every):
                for name, image in images.items():
                    value = image if name == "share" else metrics.psnr(image, truth, unseen)
                    errors.setdefault(name, []).append(float(value or 0))
        print(f"{protocol}, {options.data}, PSNR on unseen pixels of {len(errors['share'])} views:")
        for name, values in errors.items():
            if name != "share":
                print(f"  {name}: {np.mean(values):.2f} dB")
        print(f"  unseen pixels on an object that was observed elsewhere: {np.mean(errors['share']):.0%}")


if __name__ == "__main__":
    main()
