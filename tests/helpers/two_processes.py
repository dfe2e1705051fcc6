"""Runs in two processes for `test_sequence_parallel.py`; rank 0 writes its measurements as JSON.

Arguments: folder of a checkpoint, JSON file to write.
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
from worldstereo_ros.models.checkpoints.parameters import parameter_dtype
from worldstereo_ros.pipelines.diffusion import distributed
from worldstereo_ros.pipelines.diffusion.sequence_parallel import enable_sequence_parallel, shard_weights
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel

FROZEN_REFERENCES = {**CONTROL, "update_ref": False}
CASES = {
    "references updated": (CONTROL, {}, {}),
    "references frozen": (FROZEN_REFERENCES, {}, {}),
    "no references": (CONTROL, {}, {"ref_index": ()}),
    "paired": (CONTROL, {"reference_attention": "paired"}, {}),
    "backbone alone": (None, {}, {"ref_index": ()}),
}
TOKENS: list[int] = []  # number of tokens in each feed-forward of this process


def with_odd_token_count(inputs):
    """Replaces the latents by 6x6 ones: 27 tokens in three keyframes, not a multiple of two processes."""
    sizes = {4: 6, 32: 48}
    return {
        name: torch.randn(*t.shape[:-2], sizes[t.shape[-2]], sizes.get(t.shape[-1], t.shape[-1])) if t.ndim == 5 else t
        for name, t in inputs.items()
    }


@torch.no_grad()
def max_difference(model, inputs, parallelize):
    """Maximum difference of two parallel forwards from one before the model is parallelized."""
    expected = model(**inputs, return_dict=False)[0]
    parallelize(model)
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(lambda _m, args: TOKENS.append(args[0].shape[1]))
    actual = [model(**inputs, return_dict=False)[0] for _ in range(2)]
    return max(float((expected - t).abs().max()) for t in actual) if float(expected.abs().max()) > 0.1 else float("inf")


def tokens_and_weights(mesh):
    def parallelize(model):
        shard_weights(model, mesh)
        enable_sequence_parallel(model)

    return parallelize


def imagine_images(pipeline):
    camera = Camera.from_fov(60, 45, 1.2)
    world = WorldModel(pipeline)
    image = np.random.default_rng(3).integers(30, 220, (45, 60, 3), dtype=np.uint8)
    world.observe(View(image, camera, np.eye(4), np.full((45, 60), 2.0, np.float32), stamp_ns=1))
    views = world.imagine(trajectory("turn", np.eye(4), 2, angle=1.0), camera, prompt="a hall")
    return np.stack([view.image for view in views]).astype(int)


def main() -> None:
    torch.set_num_threads(1)
    checkpoint, file = sys.argv[1:]
    results = {}
    distributed.init_process_groups("cpu")
    mesh = init_device_mesh("cpu", (2,))
    for name, (control, options, inputs) in CASES.items():
        model = tiny_transformer(0, control, **options)
        results[name] = max_difference(model, tiny_inputs(model, **inputs), enable_sequence_parallel)
    results["tokens"] = TOKENS[0]  # of 4 keyframes and 3 references, 6 tokens each
    model = tiny_transformer()
    enable_sequence_parallel(model)
    model.controlnet = tiny_transformer().controlnet
    try:
        model(**tiny_inputs(model))
    except ValueError as error:
        results["replaced"] = str(error)
    try:
        enable_sequence_parallel(tiny_transformer(0, {**CONTROL, "num_heads": 1}))
    except ValueError as error:
        results["heads"] = str(error)
    torch.manual_seed(0)
    model = tiny_transformer()
    results["uneven"] = max_difference(
        model, with_odd_token_count(tiny_inputs(model, frames=3)), enable_sequence_parallel
    )
    model = tiny_transformer()
    total = sum(p.numel() for p in model.parameters())
    results["weights"] = max_difference(model, tiny_inputs(model), lambda m: shard_weights(m, mesh))
    model.reshard()
    results["held_weights"] = sum(p.to_local().numel() for p in model.parameters()) / total
    model = tiny_transformer()
    for parameter_name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(parameter_name, torch.bfloat16))
    results["mixed types"] = max_difference(model.requires_grad_(False), tiny_inputs(model), tokens_and_weights(mesh))
    model = tiny_transformer()
    results["weights and tokens"] = max_difference(model, tiny_inputs(model), tokens_and_weights(mesh))
    if dist.get_rank() > 0:
        assert distributed.is_worker()
        distributed.run_worker()
        return
    expected = imagine_images(WorldStereoPipeline.from_pretrained(checkpoint, parallel=False))
    actual = imagine_images(WorldStereoPipeline.from_pretrained(checkpoint))
    results["pipeline"] = int(np.abs(expected - actual).max())
    os.environ[distributed.SHARD_WEIGHTS_ENV] = "0"
    distributed.stop_workers()
    Path(file).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
