"""What `bench_small_model.py` compares and how it measures: a plain loop, changes that were tried, parts, rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from full_size import Graphed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import worldstereo_ros.pipelines.worldstereo.pipeline as module
from worldstereo_ros.evaluation.demo_scenarios import DemoScenario
from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.confidence import ConfidenceModel
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import estimate_layout
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import compose, mix_with_memory, resize_image
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel

PARTS = (
    "rendering",
    "retrieval",
    "warped",
    "conditioning",
    "encoding",
    "transformer",
    "decoding",
    "what was observed",
    "composing",
    "confidence",
)


class PlainPipeline(WorldStereoPipeline):
    """The same model and memory as a straightforward loop: nothing late, nothing side by side, nothing in parts."""

    def _imagine(
        self, conditioning: Conditioning, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        count = len(conditioning.world_from_camera)
        warped_views = [self._memory.warp(conditioning, index) for index in range(count)]
        frames = [self._memory.label_provenance(conditioning, index, warped_views[index]) for index in range(count)]
        with patch.object(module, "ENCODED_AT_ONCE", None):
            layout = estimate_layout(conditioning.references) if self.settings.uses_layout else None
            latents = self._denoise(conditioning, prompt, generator, on_step, warped_views, layout)
        with torch.no_grad():
            decoded = self.autoencoder.decode(latents[:, 1 : len(frames) + 1].transpose(0, 1))
        decoded = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        pictures = decoded.permute(0, 2, 3, 1).cpu().numpy()
        size = (conditioning.camera.width, conditioning.camera.height)
        yield from [
            compose(frame, mix_with_memory(resize_image(picture, *size), warped_views[index], conditioning, index))
            for index, (frame, picture) in enumerate(zip(frames, pictures, strict=True))
        ]


class CoarsePainter(GeometricPipeline):
    """Paints what the model is shown from a quarter of the pixels, and the view itself when it is given away."""

    def warp_all(self, conditioning: Conditioning, on_step: OnStep) -> list[WarpedView]:
        """Of half the width and height."""
        camera = conditioning.camera
        size = (camera.width // 2, camera.height // 2)
        layers = {
            name: getattr(conditioning.renders, name)[:, ::2, ::2].contiguous()
            for name in ("colour", "depth", "covered", "observed")
        }
        coarse = replace(
            conditioning,
            camera=camera.resized(*size),
            renders=replace(conditioning.renders, **layers),
            references=[self._coarse(view, size) for view in conditioning.references],
        )
        full = (conditioning.camera.width, conditioning.camera.height)
        return [
            replace(
                warped,
                image=cv2.resize(warped.image, full, interpolation=cv2.INTER_CUBIC),
                known=cv2.resize(warped.known.astype(np.uint8), full, interpolation=cv2.INTER_NEAREST) > 0,
            )
            for warped in super().warp_all(coarse, on_step)
        ]

    def label_provenance(self, conditioning: Conditioning, index: int, warped: WarpedView) -> PipelineFrame:
        """Of the view painted anew, at its own size."""
        return super().label_provenance(conditioning, index, self.warp(conditioning, index))

    def _coarse(self, view: Any, size: tuple[int, int]) -> Any:
        kept = self.__dict__.setdefault("_kept", {})
        if id(view) not in kept:
            kept[id(view)] = (view, view.resized(*size))
        return kept[id(view)][1]


# --- changes that were tried: each takes a loaded pipeline and changes it ---


def channels_last(pipeline: WorldStereoPipeline) -> None:
    pipeline.autoencoder.to(memory_format=torch.channels_last)


def four_at_a_time(pipeline: WorldStereoPipeline) -> None:
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


def coarse_painting(pipeline: WorldStereoPipeline) -> None:
    pipeline._memory = CoarsePainter(threads=pipeline._memory.threads)


def nothing(pipeline: WorldStereoPipeline) -> None:
    """Of tries whose change is the type of the weights."""


TRIES: dict[str, tuple[Callable[[WorldStereoPipeline], None], str]] = {
    "bfloat16": (nothing, "bfloat16"),
    "int8, linear layers of the blocks": (eight_bits, "float32"),
    "channels last in the autoencoder": (channels_last, "float32"),
    "decoded four at a time": (four_at_a_time, "float32"),
    "fused projections": (fused_projections, "float32"),
    "compiled blocks": (compiled_blocks, "float32"),
    "onnxruntime, control branch": (onnx_control, "float32"),
    "the model's pictures painted coarsely": (coarse_painting, "float32"),
}


class GraphedSteps:
    """The transformer as a CUDA graph in the pipeline's own calls, captured anew where a shape is new."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.kept: dict[Any, Graphed] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)

    def __call__(self, hidden: torch.Tensor, moment: torch.Tensor, words: torch.Tensor, **inputs: Any) -> tuple[Any]:
        """As the transformer with return_dict=False."""
        inputs.pop("return_dict")
        given = {"hidden_states": hidden, "timestep": moment, "encoder_hidden_states": words}
        given |= {name: value for name, value in inputs.items() if value is not None}
        if "ref_index" in given:
            given["ref_index"] = given["ref_index"].cpu()  # read number by number
        key = tuple((name, tuple(tensor.shape)) for name, tensor in given.items())
        key += (tuple(given["ref_index"].tolist()) if "ref_index" in given else (),)
        if key not in self.kept:
            self.kept[key] = Graphed(self.transformer, given)
        return (self.kept[key](**given).clone(),)


# --- measuring ---


_clock = time.perf_counter


def use_clock(name: str) -> None:
    """`wall`, or `process` for seconds of the processor."""
    global _clock
    _clock = time.process_time if name == "process" else time.perf_counter


def now() -> float:
    """Seconds by the clock that was chosen."""
    return _clock()


class Breakdown:
    """Seconds by part of what runs inside `watching`; a part inside another one is taken off the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._inner: list[float] = []

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, its time counted as a part."""

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
        """Everything that this world does is counted."""
        pipeline: Any = world.pipeline
        places = (
            ("rendering", world, "_render"),
            ("retrieval", world.bank, "retrieve"),
            ("warped", pipeline._memory, "warp_all"),
            ("conditioning", module, "make_keyframes"),
            ("encoding", pipeline.autoencoder, "encode"),
            ("transformer", pipeline, "transformer"),
            ("decoding", pipeline.autoencoder, "_decode"),
            ("what was observed", pipeline._memory, "label_provenance"),
            ("composing", module, "compose"),
        )
        with ExitStack() as stack:
            for part, owner, name in places:
                if name == "transformer":  # called as a module: its forward is replaced
                    owner, name = pipeline.transformer, "forward"
                stack.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            judge = self.timed("confidence", ConfidenceModel.__call__)
            stack.enter_context(patch.object(ConfidenceModel, "__call__", judge))
            yield


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seen(pipeline: WorldStereoPipeline, story: DemoScenario, device: torch.device) -> WorldModel:
    world = WorldModel(pipeline, device=device)
    for view in story.observed_views:
        world.observe(view)
    return world


def walk(world: WorldModel, story: DemoScenario, path: np.ndarray) -> tuple[float, float, list[ImaginedView]]:
    """Seconds, seconds to the first view, and the views."""
    wait(world.device)
    start, first, views = now(), 0.0, []
    for view in world.imagine(path, story.observed_views[0].camera):
        first = first or now() - start
        views.append(view)
    wait(world.device)
    return now() - start, first, views


def flops_of(world: WorldModel, story: DemoScenario) -> float:
    """Operations of the networks along the path, counted by torch as they run."""
    # Of the ways to attend, torch counts the plain one on the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        walk(world, story, story.path)
    return float(counter.get_total_flops())


def bytes_of_the_rest(world: WorldModel, story: DemoScenario, references: float) -> float:
    """What memory's part of all views must read and write at least.

    A view: the cloud twice, four layers of it, each reference's picture, depth, mask and trust to paint and its depth
    and mask to judge, and picture, depth and mask of the result.
    """
    pixels = story.observed_views[0].image.shape[0] * story.observed_views[0].image.shape[1]
    cloud = 2 * len(world.cloud.points) * (12 + 3 + 1 + 4)
    return len(story.path) * (cloud + pixels * (9 + references * (12 + 5) + 2 * 8))


def rate_of(work: Callable[[], Any], amount: float, device: torch.device, seconds: float = 0.5) -> float:
    """The best rate at which this machine does an amount of something."""
    best, spent = float("inf"), 0.0
    while spent < seconds:
        wait(device)
        start = now()
        for _ in range(3):
            work()
        wait(device)
        taken = now() - start
        best, spent = min(best, taken / 3), spent + taken
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


def likeness(views: list[ImaginedView], others: Any) -> float:
    """Mean PSNR of views against views or pictures, dB, 100 at most."""
    pictures = [other.image if isinstance(other, ImaginedView) else other for other in others]
    return statistics.fmean(psnr(a.image, b) or 0.0 for a, b in zip(views, pictures, strict=True))
