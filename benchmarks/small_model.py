"""Parts of `bench_small_model.py`: a plain loop to compare with, changes to try, timing by part, machine rates."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from full_size import Graphed
from network_floor import Operations, recording

import worldstereo_ros.pipelines.worldstereo.frames as frames
import worldstereo_ros.pipelines.worldstereo.pipeline as module
from worldstereo_ros.evaluation.demo_scenarios import DemoScenario
from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.confidence import ConfidenceModel
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.worldstereo.compositing import compose, mix_with_memory
from worldstereo_ros.pipelines.worldstereo.imagined_depth import complete_frame, render_planes
from worldstereo_ros.pipelines.worldstereo.model_inputs import build_model_inputs
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.pipelines.worldstereo.refinement import fill_frame
from worldstereo_ros.world import WorldModel

PARTS = (
    "rendering",
    "retrieval",
    "warping",
    "conditioning",
    "encoding",
    "transformer",
    "decoding",
    "provenance",
    "composing",
    "confidence",
)


class PlainPipeline(WorldStereoPipeline):
    """The same model and memory as a plain loop: no lazy work, no threads, no batches."""

    def _imagine(
        self, conditioning: Conditioning, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        count = len(conditioning.world_from_camera)
        warped_views = [self.geometric.warp(conditioning, index) for index in range(count)]
        frames = [self.geometric.label_provenance(conditioning, index, warped_views[index]) for index in range(count)]
        all_at_once = partial(build_model_inputs, encode_batch_size=sys.maxsize)
        with patch.object(module, "build_model_inputs", all_at_once):
            layout = estimate_layout(conditioning.references) if self.config.uses_layout else None
            latents = self._denoise(conditioning, prompt, generator, on_step, warped_views, layout)
        with torch.no_grad():
            decoded = self.autoencoder.decode(latents[:, 1 : len(frames) + 1].transpose(0, 1))
        decoded = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        images = decoded.permute(0, 2, 3, 1).cpu().numpy()
        size = (conditioning.camera.width, conditioning.camera.height)
        resized = [resize_image(image, *size, enlarge=cv2.INTER_CUBIC) for image in images]
        composed = [
            compose(frame, mix_with_memory(image, warped_views[index], conditioning, index))
            for index, (frame, image) in enumerate(zip(frames, resized, strict=True))
        ]
        for index, frame in enumerate(composed):
            planes = None
            if layout is not None:
                planes = render_planes(frame, conditioning, index, layout)
                if self.fill == "planes" and self.compose_observed:
                    inputs = (frame, warped_views[index], conditioning, index, layout, planes, self.refiner)
                    frame = fill_frame(*inputs, seed=generator.initial_seed())
            composed[index] = complete_frame(frame, conditioning, index, planes, self.depth)
        yield from composed


# --- changes to try: each takes a loaded pipeline and modifies it ---


def channels_last(pipeline: WorldStereoPipeline) -> None:
    pipeline.autoencoder.to(memory_format=torch.channels_last)


def decode_four_at_a_time(pipeline: WorldStereoPipeline) -> None:
    decode = pipeline.autoencoder.decode_frames
    pipeline.autoencoder.decode_frames = lambda latents: decode(latents, batch_size=4)


def fused_projections(pipeline: WorldStereoPipeline) -> None:
    pipeline.transformer.fuse_qkv_projections()


def compiled_blocks(pipeline: WorldStereoPipeline) -> None:
    pipeline.transformer.compile_repeated_blocks(fullgraph=False)


def onnx_control(pipeline: WorldStereoPipeline) -> None:
    from worldstereo_ros.export.runtime import use_control_backend

    use_control_backend(pipeline.transformer, "onnxruntime")


def eight_bits(pipeline: WorldStereoPipeline) -> None:
    transformer: Any = pipeline.transformer
    parts = [part for block in transformer.blocks for part in (block.attn1, block.attn2, block.ffn)]
    parts += [part for block in transformer.controlnet.controlnet_blocks for part in (block.self_attn, block.ffn)]
    for part in parts:
        torch.ao.quantization.quantize_dynamic(part, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def unchanged(pipeline: WorldStereoPipeline) -> None:
    """For tries that change the dtype of the weights alone."""


TRIES: dict[str, tuple[Callable[[WorldStereoPipeline], None], str]] = {
    "bfloat16": (unchanged, "bfloat16"),
    "int8, linear layers of the blocks": (eight_bits, "float32"),
    "channels last in the autoencoder": (channels_last, "float32"),
    "decoded four at a time": (decode_four_at_a_time, "float32"),
    "fused projections": (fused_projections, "float32"),
    "compiled blocks": (compiled_blocks, "float32"),
    "onnxruntime, control branch": (onnx_control, "float32"),
}


class GraphedSteps:
    """The transformer as a CUDA graph for each set of input shapes."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.graphs: dict[Any, Graphed] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)

    def __call__(self, hidden: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, **inputs: Any) -> tuple[Any]:
        """As the transformer with return_dict=False."""
        inputs.pop("return_dict")
        tensors = {"hidden_states": hidden, "timestep": timestep, "encoder_hidden_states": text}
        tensors |= {name: value for name, value in inputs.items() if value is not None}
        if "ref_index" in tensors:
            tensors["ref_index"] = tensors["ref_index"].cpu()  # read as Python numbers
        key = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        key += (tuple(tensors["ref_index"].tolist()) if "ref_index" in tensors else (),)
        if key not in self.graphs:
            self.graphs[key] = Graphed(self.transformer, tensors)
        return (self.graphs[key](**tensors).clone(),)


# --- measuring ---


_clock = time.perf_counter


def use_clock(name: str) -> None:
    """Chooses wall-clock time (`wall`) or CPU time of this process (`process`)."""
    global _clock
    _clock = time.process_time if name == "process" else time.perf_counter


def now() -> float:
    """Seconds of the chosen clock."""
    return _clock()


class Breakdown:
    """Seconds by part of what runs inside `watching`; a nested part does not count for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._inner: list[float] = []

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `work` to count its time as a part."""

        def run(*arguments: Any, **named: Any) -> Any:
            wait(self.device)
            self._inner.append(0.0)
            start = now()
            try:
                return work(*arguments, **named)
            finally:
                wait(self.device)
                whole = now() - start
                self.seconds[part] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return run

    @contextmanager
    def watching(self, world: WorldModel) -> Iterator[None]:
        """Times the parts of everything that this world model does, in one thread: otherwise several run at once."""
        pipeline: Any = world.pipeline
        places = (
            ("rendering", world, "render_memory"),
            ("retrieval", world.bank, "retrieve"),
            ("warping", pipeline.geometric, "warp"),
            ("conditioning", module, "make_keyframes"),
            ("encoding", pipeline.autoencoder, "encode"),
            ("transformer", pipeline, "transformer"),
            ("decoding", pipeline.autoencoder, "decode_latents"),
            ("provenance", pipeline.geometric, "label_provenance"),
            ("composing", frames, "compose"),
        )
        with ExitStack() as stack:
            stack.enter_context(patch.object(pipeline.geometric, "threads", 1))
            for part, owner, name in places:
                if name == "transformer":  # called as a module: its forward is replaced
                    owner, name = pipeline.transformer, "forward"
                stack.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            confidence = self.timed("confidence", ConfidenceModel.__call__)
            stack.enter_context(patch.object(ConfidenceModel, "__call__", confidence))
            yield


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_world(pipeline: WorldStereoPipeline, scenario: DemoScenario, device: torch.device) -> WorldModel:
    """A world model with the observations of a scenario."""
    world = WorldModel(pipeline, device=device)
    for view in scenario.observed_views:
        world.observe(view)
    return world


def imagine_path(
    world: WorldModel, scenario: DemoScenario, path: np.ndarray
) -> tuple[float, float, list[ImaginedView]]:
    """Imagines a path: seconds, seconds to the first view, and the views."""
    wait(world.device)
    start, first, views = now(), 0.0, []
    for view in world.imagine(path, scenario.observed_views[0].camera):
        first = first or now() - start
        views.append(view)
    wait(world.device)
    return now() - start, first, views


def operations_of(world: WorldModel, scenario: DemoScenario) -> Operations:
    """Operations of the networks along the path, recorded as they run."""
    with recording(world.pipeline) as operations:
        imagine_path(world, scenario, scenario.path)
    return operations


def bytes_of_memory(world: WorldModel, scenario: DemoScenario, references: float) -> float:
    """Bytes that everything but the networks must read and write at least, for all views.

    For each view: the cloud twice, four layers of its rendering, image, depth, mask and weight of each reference for
    warping, their depth and mask for provenance, and image, depth and mask of the result.
    """
    pixels = scenario.observed_views[0].image.shape[0] * scenario.observed_views[0].image.shape[1]
    cloud = 2 * len(world.cloud.points) * (12 + 3 + 1 + 4)
    return len(scenario.path) * (cloud + pixels * (9 + references * (12 + 5) + 2 * 8))


def best_seconds(work: Callable[[], Any], device: torch.device, seconds: float = 0.05) -> float:
    """The least seconds of one call, over at least three calls and this many seconds."""
    best, spent, calls = float("inf"), 0.0, 0
    while spent < seconds or calls < 3:
        wait(device)
        start = now()
        work()
        wait(device)
        elapsed = now() - start
        best, spent, calls = min(best, elapsed), spent + elapsed, calls + 1
    return best


def rate_of(work: Callable[[], Any], amount: float, device: torch.device, seconds: float = 0.5) -> float:
    """The best measured rate, in `amount` per second, of a function."""
    best, spent = float("inf"), 0.0
    while spent < seconds:
        wait(device)
        start = now()
        for _ in range(3):
            work()
        wait(device)
        elapsed = now() - start
        best, spent = min(best, elapsed / 3), spent + elapsed
    return amount / best


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a matrix product on the device, bytes a second of a copy in main memory."""
    side = 8192 if device.type == "cuda" else 1024
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.rand(16 * 2**20)
    target = torch.empty_like(source)
    return (
        rate_of(lambda: torch.nn.functional.linear(one, two), 2 * side**3, device),
        rate_of(lambda: target.copy_(source), 2 * 4 * source.numel(), torch.device("cpu")),
    )


def mean_psnr(views: list[ImaginedView], others: Any) -> float:
    """Mean PSNR in dB of views against other views or images, at most 100."""
    images = [other.image if isinstance(other, ImaginedView) else other for other in others]
    return statistics.fmean(psnr(a.image, b) or 0.0 for a, b in zip(views, images, strict=True))
