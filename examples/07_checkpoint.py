#!/usr/bin/env python3
"""Inspect a WorldStereo checkpoint, load it as a pipeline, and imagine one view with it.

python examples/07_checkpoint.py [CHECKPOINT]

CHECKPOINT is a folder, a hub id such as hanshanxue/WorldStereo:memory-dmd (needs a large GPU and a network), or a model
of the package. Without one it is "small", the bundled model. The result is in example_out/checkpoint/.
"""

import sys
import time
from pathlib import Path

import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.images import write_image
from worldstereo_ros.models.checkpoints.inspection import inspect_checkpoint
from worldstereo_ros.pipelines.auto import load_pipeline, split_variant
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.results import view_contact_sheet
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/checkpoint")


def main() -> None:
    """Inspect, load and run a checkpoint."""
    OUT.mkdir(parents=True, exist_ok=True)
    model = sys.argv[1] if len(sys.argv) > 1 else "small"
    name, variant = split_variant(model)
    report = inspect_checkpoint(name, variant or None)  # reads headers and config.json alone
    print(report)
    if not report.usable:
        sys.exit(f"{model} cannot be loaded: {' '.join(report.problems)}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.perf_counter()
    pipeline = load_pipeline(model, device)
    print(f"loaded {pipeline.name} on {device} in {time.perf_counter() - begin:.1f} s; "
          f"a clip has up to {pipeline.clip_length} views")  # fmt: skip

    scene, camera = make_scene("room", seed_of("demo", 6)), Camera.from_fov(320, 240, 1.2)
    view = render_view(scene, camera, make_path(scene, "handheld", 1, seed=0)[0])
    world = WorldModel(pipeline, device=device)
    world.observe(view)
    imagined = list(world.imagine(trajectory("turn", view.world_from_camera, 4, angle=0.6), camera, prompt="a room"))
    write_image(OUT / "views.png", view_contact_sheet(imagined, [view], title=f"imagined by {model}"))
    print(f"wrote {OUT / 'views.png'}")


if __name__ == "__main__":
    main()
