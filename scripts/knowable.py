#!/usr/bin/env python3
"""How near the truth unseen pixels of worlds could come, if somebody told what is there.

Beside what pipelines show of them: the mean colour of the very object that a pixel shows, as given views have seen it
elsewhere; the mean of its true colours in the view itself; the truth, blurred.
"""

import argparse

import cv2
import numpy as np

from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import WorldSequence, open_worlds
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

LEAST_SEEN = 30  # pixels of an object whose colour counts as known
BLUR = 8.0  # pixels of 240 rows
OBJECTS = "colour of its object, as seen elsewhere"


def colours_of_objects(images: np.ndarray, objects: np.ndarray, least: int) -> dict[int, np.ndarray]:
    """Mean colour of every object that at least so many pixels show."""
    pixels, numbers = images.reshape(-1, 3), objects.reshape(-1)
    found = {int(one): numbers == one for one in np.unique(numbers)}
    return {one: pixels[mask].mean(axis=0) for one, mask in found.items() if mask.sum() >= least}


def pictures(sequence: WorldSequence, protocol: str, every: int) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """The truth, its unseen pixels, and pictures by name, of every asked view; and the share that `OBJECTS` knows."""
    task = make_scenario(sequence, protocol, every)
    assert isinstance(task.target_views, WorldSequence)
    shown = {}
    for name in ("geometric", "small"):
        world = WorldModel(load_pipeline(name))
        for view in task.observed_views:
            world.observe(view)
        shown[name] = [view.image for view in world.imagine(task.path, task.target_views.camera)]
    given = sequence.seen_from(np.stack([view.world_from_camera for view in task.observed_views]))
    images = np.stack([view.image for view in task.observed_views])
    known = colours_of_objects(images, given.instances(), LEAST_SEEN)
    out = []
    for number, (truth, objects) in enumerate(zip(task.target_views, task.target_views.instances(), strict=True)):
        assert truth.depth is not None
        unseen = (truth.depth > 0) & ~metrics.seen_pixels(truth, task.observed_views)
        if unseen.sum() < LEAST_SEEN:
            continue
        told, true = shown["geometric"][number].copy(), truth.image.copy()
        for one, colour in colours_of_objects(truth.image, objects, 1).items():
            true[objects == one] = colour
            if one in known:
                told[objects == one] = known[one]
        images_of = {name: images[number] for name, images in shown.items()}
        images_of |= {OBJECTS: told, "true mean colour of its object": true}
        images_of["truth, blurred"] = cv2.GaussianBlur(truth.image, (0, 0), BLUR * truth.camera.height / 240)
        share = float(np.isin(objects, list(known))[unseen].mean())
        out.append((truth.image, unseen, images_of | {"share": share}))
    return out


def main() -> None:
    """Reads the options, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="worlds:test:4")
    parser.add_argument("--every", type=int, default=12, help="Ask only every n-th frame.")
    options = parser.parse_args()
    for protocol in ("single", "sparse"):
        errors: dict[str, list[float]] = {}
        for sequence in open_worlds(options.data):
            for truth, unseen, shown in pictures(sequence, protocol, options.every):
                for name, image in shown.items():
                    value = image if name == "share" else metrics.psnr(image, truth, unseen)
                    errors.setdefault(name, []).append(float(value or 0))
        print(f"{protocol}, {options.data}, PSNR on unseen pixels of {len(errors['share'])} views:")
        for name, values in errors.items():
            if name != "share":
                print(f"  {name}: {np.mean(values):.2f} dB")
        print(f"  of unseen pixels lie on an object that was seen elsewhere: {np.mean(errors['share']):.0%}")


if __name__ == "__main__":
    main()
