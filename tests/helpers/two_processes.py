"""What `test_parallel.py` runs in two processes: writes what the first one found as JSON.

Arguments: folder of a checkpoint, file for the findings.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from helpers.checkpoints import CONTROL, tiny_inputs, tiny_transformer
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.models.checkpoints.loading import parameter_dtype
from worldstereo_ros.pipelines.diffusion import distributed
from worldstereo_ros.pipelines.diffusion.sequence_parallel import enable_sequence_parallel, shard_weights
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel

FROZEN = {**CONTROL, "update_ref": False}
CASES = {
    "references carried on": (CONTROL, {}, {}),
    "references frozen": (FROZEN, {}, {}),
    "no references": (CONTROL, {}, {"ref_index": ()}),
    "paired": (CONTROL, {"reference_attention": "paired"}, {}),
    "backbone alone": (None, {}, {"ref_index": ()}),
}
TOKENS: list[int] = []  # that the feed-forwards of this process worked on


def odd(inputs):
    """The same with 6x6 latents of three keyframes: 27 tokens, which two processes cannot share evenly."""
    sizes = {4: 6, 32: 48}
    return {
        name: torch.randn(*t.shape[:-2], sizes[t.shape[-2]], sizes.get(t.shape[-1], t.shape[-1])) if t.ndim == 5 else t
        for name, t in inputs.items()
    }


@torch.no_grad()
def compare(model, inputs, share):
    alone = model(**inputs, return_dict=False)[0]
    share(model)
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(lambda _m, args: TOKENS.append(args[0].shape[1]))
    together = [model(**inputs, return_dict=False)[0] for _ in range(2)]
    return max(float((alone - t).abs().max()) for t in together) if float(alone.abs().max()) > 0.1 else float("inf")


def both(mesh):
    def share(model):
        shard_weights(model, mesh)
        enable_sequence_parallel(model)

    return share


def imagined(pipeline):
    camera = Camera.from_fov(60, 45, 1.2)
    world = WorldModel(pipeline)
    image = np.random.default_rng(3).integers(30, 220, (45, 60, 3), dtype=np.uint8)
    world.observe(View(image, camera, np.eye(4), np.full((45, 60), 2.0, np.float32), stamp_ns=1))
    views = world.imagine(trajectory("turn", np.eye(4), 2, angle=1.0), camera, prompt="a hall")
    return np.stack([view.image for view in views]).astype(int)


def main() -> None:
    torch.set_num_threads(1)
    checkpoint, file = sys.argv[1:]
    found = {}
    distributed._join("cpu")
    mesh = init_device_mesh("cpu", (2,))
    for name, (control, settings, inputs) in CASES.items():
        model = tiny_transformer(0, control, **settings)
        found[name] = compare(model, tiny_inputs(model, **inputs), enable_sequence_parallel)
    found["tokens"] = TOKENS[0]  # of 4 keyframes and 3 references, 6 tokens each
    model = tiny_transformer()
    enable_sequence_parallel(model)
    model.controlnet = tiny_transformer().controlnet
    try:
        model(**tiny_inputs(model))
    except ValueError as error:
        found["replaced"] = str(error)
    try:
        enable_sequence_parallel(tiny_transformer(0, {**CONTROL, "num_heads": 1}))
    except ValueError as error:
        found["heads"] = str(error)
    torch.manual_seed(0)
    model = tiny_transformer()
    found["uneven"] = compare(model, odd(tiny_inputs(model, frames=3)), enable_sequence_parallel)
    model = tiny_transformer()
    whole = sum(p.numel() for p in model.parameters())
    found["weights"] = compare(model, tiny_inputs(model), lambda m: shard_weights(m, mesh))
    model.reshard()
    found["held"] = sum(p.to_local().numel() for p in model.parameters()) / whole
    model = tiny_transformer()
    for parameter_name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(parameter_name, torch.bfloat16))
    found["mixed types"] = compare(model.requires_grad_(False), tiny_inputs(model), both(mesh))
    model = tiny_transformer()
    found["weights and tokens"] = compare(model, tiny_inputs(model), both(mesh))
    if dist.get_rank() > 0:
        assert distributed.is_worker()
        distributed.run_worker()
        return
    alone = imagined(WorldStereoPipeline.from_pretrained(checkpoint, parallel=False))
    together = imagined(WorldStereoPipeline.from_pretrained(checkpoint))
    found["pipeline"] = int(np.abs(alone - together).max())
    os.environ[distributed.SHARD_WEIGHTS_ENV] = "0"
    distributed.stop_workers()
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
