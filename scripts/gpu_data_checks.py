"""Checks of a GPU: rendering, memory, worlds and training data, the small model, training steps at toy size."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_place import CheckFailed, Place, near

# --- geometry and data ---


def check_device(place: Place) -> dict[str, Any]:
    """The machine, and the rate of a large matrix product."""
    from full_size import matmul_rate

    on_gpu = place.device.type == "cuda"
    rate = matmul_rate(place.device, place.dtype, 8192 if on_gpu else 256, 0.3 if on_gpu else 0.05)
    found: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count(), "tflops": rate / 1e12}
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        found |= {"gpu": torch.cuda.get_device_name(), "gib": total / 2**30, "free_gib": free / 2**30}
    return found


def check_rendering(place: Place) -> dict[str, Any]:
    """A cloud splatted on the device, compared with the CPU."""
    from bench_rendering import CAMERA, room_cloud

    from worldstereo_ros.rendering.splatting import render

    camera = CAMERA.resized(160, 120) if place.toy else CAMERA
    arrays = room_cloud(20_000 if place.toy else 400_000)
    expected = render(*arrays, camera, np.eye(4)[None])

    def splat() -> Any:
        return render(*arrays, camera, np.eye(4)[None], device=place.device, backend="torch")

    found = splat()
    for name, limit in (("colour", 0.01), ("covered", 0.002)):
        differ = float((getattr(found, name).cpu() != getattr(expected, name)).float().mean())
        if differ > limit:
            raise CheckFailed(f"{name} differs from the CPU in {differ:.2%} of the pixels")
    return {"ms": 1e3 * place.seconds(splat)}


def check_memory(place: Place) -> dict[str, Any]:
    """Views warped from memory on the device, compared with the CPU."""
    from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
    from worldstereo_ros.evaluation.metrics import psnr
    from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
    from worldstereo_ros.world import WorldModel

    scenario = scene_scenario("room", 0, 2, observed_count=3, width=160, height=120)
    images = []
    for device in (place.device, torch.device("cpu")):
        world = WorldModel(GeometricPipeline(), device=device)
        for view in scenario.observed_views:
            world.observe(view)
        images.append([view.image for view in world.imagine(scenario.path, scenario.observed_views[0].camera)])
    likeness = min(psnr(one, other) or 99.0 for one, other in zip(*images, strict=True))
    if likeness < 35:
        raise CheckFailed(f"views are {likeness:.1f} dB from those of the CPU")
    return {"likeness_db": likeness}


SMOKE_STAGES = ("autoencoder", "video", "control", "memory", "distill", "finetune", "refine", "depth")


def smoke_config(place: Place) -> Any:
    """The smallest training configuration, on this device, with few worlds."""
    from worldstereo_ros.training.config import read_training_config

    config = read_training_config("smoke")
    worlds = replace(config.worlds, cache_size=2, validation=1, workers=0, loaders=0)
    return replace(config, device=place.device.type, precision="bf16", worlds=worlds)


def smoke_worlds(place: Place, device: torch.device) -> Path:
    """The folder of a few small worlds, rendered where they are missing."""
    from worldstereo_ros.training.data.world_files import render_worlds

    sizes = smoke_config(place).sizes
    for split, count in (("training", 2), ("validation", 1)):
        render_worlds(place.folder / "worlds", split, range(count), sizes, shadow_prob=0.0, device=device)
    return place.folder / "worlds"


def check_worlds(place: Place) -> dict[str, Any]:
    """A world of training views traced on the device, compared with the CPU."""
    from worldstereo_ros.training.data.world_files import render_world

    size = [(32, 48)] if place.toy else [(96, 128)]
    start = time.perf_counter()
    found = render_world("validation", 0, size, shadow_prob=1.0, device=place.device)
    place.wait()
    seconds = time.perf_counter() - start
    small = [(32, 48)]
    if not place.toy:
        found = render_world("validation", 0, small, shadow_prob=1.0, device=place.device)
    expected = render_world("validation", 0, small, shadow_prob=1.0)
    close = torch.isclose(found.depth.float(), expected.depth.float(), rtol=2e-3, atol=2e-3).float().mean()
    difference = (found.image.float() - expected.image.float()).abs().mean()
    if close < 0.99 or difference > 2:
        raise CheckFailed(f"{1 - close:.1%} of the depth differ from the CPU, colours by {difference:.1f} of 255")
    return {"seconds_a_world": seconds}


def check_clips(place: Place) -> dict[str, Any]:
    """Training clips and depth views whose clouds are rendered on the device, compared with the CPU."""
    from worldstereo_ros.training.data.dataset import WorldDataset
    from worldstereo_ros.training.data.depth_sampling import DepthSampler
    from worldstereo_ros.training.data.loaders import ClipSampler

    dataset = WorldDataset(smoke_worlds(place, torch.device("cpu")), "training", 2)
    sampler = ClipSampler(2, 5, renders=True, memory=True, clean=True)
    start = time.perf_counter()
    found = sampler(dataset, np.random.default_rng(1), place.device)
    seconds = (time.perf_counter() - start) / 2
    expected = sampler(dataset, np.random.default_rng(1), torch.device("cpu"))
    near(found.images, expected.images, 1e-6, "images")
    near(found.renders, expected.renders, 0.05, "renders")
    near(found.holes, expected.holes, 0.1, "holes")
    depth = DepthSampler(4)(dataset, np.random.default_rng(0), place.device)
    if depth.images.device.type != place.device.type:
        raise CheckFailed(f"depth views are on {depth.images.device}")
    return {"seconds_a_clip": seconds}


def check_loaders(place: Place) -> dict[str, Any]:
    """A batch from a loader process."""
    from worldstereo_ros.training.data.dataset import WorldDataset
    from worldstereo_ros.training.data.loaders import ClipSampler, PrefetchingStream

    dataset = WorldDataset(smoke_worlds(place, torch.device("cpu")), "training", 2)
    start = time.perf_counter()
    stream = PrefetchingStream(ClipSampler(1, 5, renders=True, memory=True), dataset, [0], place.device, 1)
    try:
        batch = stream.take()
        seconds = time.perf_counter() - start
    finally:
        stream.close()
    if batch is None or not bool(torch.isfinite(batch.images).all()):
        raise CheckFailed("the batch is not finite")
    return {"seconds_to_the_first_batch": seconds}


# --- the small model ---


def _small_world(place: Place, device: torch.device, dtype: str) -> tuple[Any, Any]:
    from small_model import make_world

    from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.world import warm_up

    width, height, views, observed = (128, 96, 3, 2) if place.toy else (640, 480, 21, 10)
    scenario = scene_scenario("room", 0, views, observed_count=observed, width=width, height=height)
    pipeline: Any = load_pipeline("small", device.type, dtype=dtype)
    warm_up(pipeline, device)
    return make_world(pipeline, scenario, device), scenario


def check_small_model(place: Place) -> dict[str, Any]:
    """Views of the bundled model on the device, compared with the CPU in float32."""
    from small_model import imagine_path, mean_psnr

    world, scenario = _small_world(place, place.device, str(place.dtype).removeprefix("torch."))
    imagine_path(world, scenario, scenario.path)
    seconds, first, views = imagine_path(world, scenario, scenario.path)
    on_cpu, _ = _small_world(place, torch.device("cpu"), "float32")
    _, _, expected = imagine_path(on_cpu, scenario, scenario.path)
    likeness = mean_psnr(views, expected)
    if likeness < 25:
        raise CheckFailed(f"views are {likeness:.1f} dB from those of the CPU in float32")
    return {"views_per_second": len(views) / seconds, "seconds_to_first": first, "likeness_db": likeness}


def check_cuda_graph(place: Place) -> dict[str, Any]:
    """The transformer of the bundled model as a CUDA graph, compared with eager execution."""
    place.need_gpu("a CUDA graph")
    from small_model import GraphedSteps, imagine_path, mean_psnr

    world, scenario = _small_world(place, place.device, "bfloat16")
    _, _, expected = imagine_path(world, scenario, scenario.path)
    pipeline: Any = world.pipeline
    pipeline.transformer = GraphedSteps(pipeline.transformer)
    imagine_path(world, scenario, scenario.path)
    seconds, _, views = imagine_path(world, scenario, scenario.path)
    likeness = mean_psnr(views, expected)
    if likeness < 35:
        raise CheckFailed(f"views are {likeness:.1f} dB from those of eager execution")
    return {"views_per_second": len(views) / seconds, "likeness_db": likeness}


# --- training ---


def stage_check(stage: str) -> Callable[[Place], dict[str, Any]]:
    """The check of a stage: two steps, validation and saving, on small worlds; later stages build on earlier ones."""

    def check(place: Place) -> dict[str, Any]:
        from rich.console import Console

        from worldstereo_ros.training.runner import train_stages

        worlds = smoke_worlds(place, torch.device("cpu"))
        run, config = place.folder / "run", smoke_config(place)
        found = train_stages([stage], config, run, steps=2, worlds=worlds, console=Console(quiet=True))[stage]
        if not math.isfinite(found["loss"]):
            raise CheckFailed(f"the validation loss is {found['loss']}")
        return {"loss": found["loss"]}

    return check
