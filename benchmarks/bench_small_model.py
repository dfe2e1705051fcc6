"""What a path costs with the model that ships: by part, per view, to the first view, beside a plain eager loop.

    python benchmarks/bench_small_model.py --threads 2 --json small.json
    python benchmarks/bench_small_model.py --try all         # one change after the other: ratio and decibels
    python benchmarks/bench_small_model.py --device cuda --dtype bfloat16 --cuda-graph
    python benchmarks/bench_small_model.py --clock process  # seconds of the processor: where others use the machine too

A robot has seen ten pictures of a made-up world and asks for 21 views ahead, of 640x480 and of the model's own size,
through `WorldModel` as a user would. Beside it, in turn within one run, goes the same pipeline written plainly: memory
paints and judges every view, all pictures are encoded at once, all steps taken, all pictures decoded at once, in
float32, and only then the first view exists. Medians.

The floor is what the networks' operations take at the rate of a matrix product of this machine, and what the rest must
read and write at the rate of a copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from full_size import Graphed

import worldstereo_ros.pipelines.worldstereo as module
from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.confidence import ConfidenceModel
from worldstereo_ros.pipelines.geometric import GeometricPipeline, Painting
from worldstereo_ros.pipelines.load import load_pipeline
from worldstereo_ros.pipelines.worldstereo import WorldStereoPipeline, compose
from worldstereo_ros.stories import Story, scene_story
from worldstereo_ros.views import ImaginedView
from worldstereo_ros.world import WorldModel, warm_up

GIVEN = 10  # pictures that the robot took
PARTS = (
    "rendering",
    "retrieval",
    "painting",
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
        paintings = [self._memory.paint(conditioning, index) for index in range(count)]
        frames = [self._memory.claim(conditioning, index, paintings[index]) for index in range(count)]
        with patch.object(module, "ENCODED_AT_ONCE", None):
            latents = self._denoise(conditioning, prompt, generator, on_step, paintings)
        with torch.no_grad():
            decoded = self.autoencoder.decode(latents[:, 1 : len(frames) + 1].transpose(0, 1))
        decoded = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        pictures = decoded.permute(0, 2, 3, 1).cpu().numpy()
        size = (conditioning.camera.width, conditioning.camera.height)
        yield from [
            compose(frame, module._mixed(module._resized(picture, *size), painting))
            for frame, picture, painting in zip(frames, pictures, paintings, strict=True)
        ]


class CoarsePainter(GeometricPipeline):
    """Paints what the model is shown from a quarter of the pixels, and the view itself when it is given away."""

    def paint_all(self, conditioning: Conditioning, on_step: OnStep) -> list[Painting]:
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
                painting,
                image=cv2.resize(painting.image, full, interpolation=cv2.INTER_CUBIC),
                known=cv2.resize(painting.known.astype(np.uint8), full, interpolation=cv2.INTER_NEAREST) > 0,
            )
            for painting in super().paint_all(coarse, on_step)
        ]

    def claim(self, conditioning: Conditioning, index: int, painting: Painting) -> PipelineFrame:
        """Of the view painted anew, at its own size."""
        return super().claim(conditioning, index, self.paint(conditioning, index))

    def _coarse(self, view: Any, size: tuple[int, int]) -> Any:
        kept = self.__dict__.setdefault("_kept", {})
        if id(view) not in kept:
            kept[id(view)] = (view, view.resized(*size))
        return kept[id(view)][1]


_clock = time.perf_counter


def now() -> float:
    """Seconds by the clock that was chosen."""
    return _clock()


# --- changes that were tried: each takes a loaded pipeline and changes it ---


def channels_last(pipeline: WorldStereoPipeline) -> None:
    pipeline.autoencoder.to(memory_format=torch.channels_last)


def four_at_a_time(pipeline: WorldStereoPipeline) -> None:
    decode = pipeline.autoencoder.decode_frames
    pipeline.autoencoder.decode_frames = lambda latents: decode(latents, batch=4)


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
            ("painting", pipeline._memory, "paint_all"),
            ("conditioning", module, "make_keyframes"),
            ("encoding", pipeline.autoencoder, "encode"),
            ("transformer", pipeline, "transformer"),
            ("decoding", pipeline.autoencoder, "_decode"),
            ("what was observed", pipeline._memory, "claim"),
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


def seen(pipeline: WorldStereoPipeline, story: Story, device: torch.device) -> WorldModel:
    world = WorldModel(pipeline, device=device)
    for view in story.given:
        world.seed(view)
    return world


def walk(world: WorldModel, story: Story, path: np.ndarray) -> tuple[float, float, list[ImaginedView]]:
    """Seconds, seconds to the first view, and the views."""
    wait(world.device)
    start, first, views = now(), 0.0, []
    for view in world.imagine(path, story.given[0].camera):
        first = first or now() - start
        views.append(view)
    wait(world.device)
    return now() - start, first, views


def flops_of(world: WorldModel, story: Story) -> float:
    """Operations of the networks along the path, counted by torch as they run."""
    # Of the ways to attend, torch counts the plain one on the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        walk(world, story, story.path)
    return float(counter.get_total_flops())


def bytes_of_the_rest(world: WorldModel, story: Story, references: float) -> float:
    """What memory's part of all views must read and write at least.

    A view: the cloud twice, four layers of it, each reference's picture, depth, mask and trust to paint and its depth
    and mask to judge, and picture, depth and mask of the result.
    """
    pixels = story.given[0].image.shape[0] * story.given[0].image.shape[1]
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


def median(rows: list[tuple[float, float, list[ImaginedView]]], place: int) -> float:
    return statistics.median((row[0], row[1])[place] for row in rows)


def load(options: argparse.Namespace, dtype: str, plain: bool = False) -> WorldStereoPipeline:
    pipeline: Any = load_pipeline(options.model, options.device, dtype=dtype)
    if options.threads:
        pipeline._memory.threads = options.threads
    if plain:
        pipeline.__class__ = PlainPipeline
        pipeline._memory.threads = 1
    return pipeline


def measure(size: tuple[int, int], options: argparse.Namespace, rate: float, copying: float) -> dict[str, Any]:
    """Prints and returns the figures of one size."""
    device = torch.device(options.device)
    story = scene_story(options.kind, 0, options.views, given=GIVEN, width=size[0], height=size[1])
    worlds = {
        "as it is": seen(load(options, options.dtype), story, device),
        "plain": seen(load(options, "float32", plain=True), story, device),
    }
    if options.cuda_graph:
        graphed: Any = load(options, options.dtype)
        graphed.transformer = GraphedSteps(graphed.transformer)
        worlds["CUDA graph"] = seen(graphed, story, device)
    rows: dict[str, list[tuple[float, float, list[ImaginedView]]]] = {}
    failed = {}
    for name, world in list(worlds.items()):
        try:
            warm_up(world.pipeline, device)
            walk(world, story, story.path)
        except RuntimeError as error:
            if name != "CUDA graph":
                raise
            failed[name] = str(error).strip().splitlines()[0]
            del worlds[name]
    for _ in range(options.repeats):
        for name, world in worlds.items():
            rows.setdefault(name, []).append(walk(world, story, story.path))
    world = worlds["as it is"]
    single = statistics.median(walk(world, story, story.path[:1])[0] for _ in range(options.repeats))
    parts = Breakdown(device)
    with parts.watching(world):
        whole, _, _ = walk(world, story, story.path)
    pipeline: Any = world.pipeline
    prepare, asked = pipeline._memory._shelf.prepare, []

    def counted(views: list[Any]) -> Any:
        asked.append(len(views))
        return prepare(views)

    with patch.object(pipeline._memory._shelf, "prepare", counted):
        flops = flops_of(world, story)
    moved = bytes_of_the_rest(world, story, statistics.fmean(asked))
    total, first = median(rows["as it is"], 0), median(rows["as it is"], 1)
    plain, plain_first = median(rows["plain"], 0), median(rows["plain"], 1)
    views = rows["as it is"][0][2]
    networks = sum(parts.seconds[part] for part in ("encoding", "transformer", "decoding"))
    figures: dict[str, Any] = {
        "seconds": total,
        "seconds_per_view": total / options.views,
        "views_per_second": options.views / total,
        "seconds_to_first": first,
        "seconds_of_one_view": single,
        "parts": {**parts.seconds, "rest": whole - sum(parts.seconds.values())},
        "gflop": flops / 1e9,
        "floor_networks_s": flops / rate,
        "floor_rest_s": moved / copying,
        "share_of_matmul_rate": flops / networks / rate,
        "plain_seconds": plain,
        "plain_seconds_to_first": plain_first,
        "beside_plain": total / plain,
        "first_beside_plain": first / plain_first,
        "likeness_to_plain_db": likeness(views, rows["plain"][0][2]),
        "psnr_to_truth_db": likeness(views, story.truth),
    }
    print(f"\n{options.views} views of {size[0]}x{size[1]}, a {options.kind} of which {GIVEN} pictures were seen")
    print(
        f"  {total:.3g} s, {total / options.views:.3g} s a view, the first after {first:.3g} s; one view alone "
        f"{single:.3g} s"
    )
    print(
        f"  plain eager loop: {plain:.3g} s, the first after {plain_first:.3g} s; so {total / plain:.2f} and "
        f"{first / plain_first:.2f} of its time, views alike to {figures['likeness_to_plain_db']:.1f} dB"
    )
    if "CUDA graph" in rows:
        figures["cuda_graph_seconds"] = median(rows["CUDA graph"], 0)
        print(f"  CUDA graph: {figures['cuda_graph_seconds']:.3g} s")
    elif failed:
        figures["cuda_graph_failed"] = failed["CUDA graph"]
        print(f"  CUDA graph: not possible here: {failed['CUDA graph']}")
    print(
        f"  floor: networks {flops / 1e9:.3g} GFLOP, {flops / rate:.3g} s (they take {networks:.3g} s, "
        f"{figures['share_of_matmul_rate']:.0%} of the matrix rate); the rest {moved / 1e9:.3g} GB, "
        f"{moved / copying:.3g} s"
    )
    for part, seconds in sorted(figures["parts"].items(), key=lambda item: -item[1]):
        print(f"    {part:<18} {seconds:7.3f} s {seconds / whole:6.1%}")
    if options.tries:
        figures["tries"] = try_all(world, story, options)
    return figures


def try_all(world: WorldModel, story: Story, options: argparse.Namespace) -> dict[str, Any]:
    """Each change beside the pipeline as it is, in turn: ratios of time, and what it costs in decibels."""
    names = list(TRIES) if "all" in options.tries else options.tries
    truth = None
    found: dict[str, Any] = {}
    for name in names:
        if name not in TRIES:
            raise SystemExit(f"There is no try '{name}'; choose from: {', '.join(TRIES)}, all.")
        change, dtype = TRIES[name]
        try:
            start = now()
            pipeline = load(options, dtype)
            change(pipeline)
            other = seen(pipeline, story, world.device)
            walk(other, story, story.path)
            begun = now() - start
            mine, theirs = [], []
            for _ in range(options.repeats):
                mine.append(walk(world, story, story.path))
                theirs.append(walk(other, story, story.path))
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            found[name] = {"failed": reason}
            print(f"  {name:<40} not possible here: {reason}")
            continue
        truth = likeness(mine[0][2], story.truth) if truth is None else truth
        found[name] = {
            "time": median(theirs, 0) / median(mine, 0),
            "time_to_first": median(theirs, 1) / median(mine, 1),
            "likeness_db": likeness(theirs[0][2], mine[0][2]),
            "psnr_to_truth_db": likeness(theirs[0][2], story.truth) - truth,
            "seconds_to_load_and_warm_up": begun,
        }
        row = found[name]
        print(
            f"  {name:<40} {row['time']:.2f} of the time, {row['time_to_first']:.2f} to the first view; alike to "
            f"{row['likeness_db']:.1f} dB, {row['psnr_to_truth_db']:+.2f} dB against the truth; ready in {begun:.1f} s"
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    global _clock
    options = parse(arguments)
    _clock = time.process_time if options.clock == "process" else time.perf_counter
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here; leave out --device cuda to measure the CPU.")
    if options.cuda_graph and options.device != "cuda":
        raise SystemExit("CUDA graphs need --device cuda.")
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, options.dtype)
    rate, copying = rates(device, dtype)
    machine = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    print(
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.dtype}, model "
        f"{options.model}, {options.clock} clock; matrix products {rate / 1e9:.4g} GFLOP/s, copies "
        f"{copying / 1e9:.3g} GB/s"
    )
    if not on_gpu:
        print("No GPU is measured: that needs --device cuda.")
    report: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "dtype": options.dtype,
        "model": options.model,
        "kind": options.kind,
        "views": options.views,
        "matmul_gflops": rate / 1e9,
        "copy_gb_per_s": copying / 1e9,
        "sizes": {},
    }
    for size in options.sizes:
        width, height = (int(number) for number in size.split("x"))
        report["sizes"][size] = measure((width, height), options, rate, copying)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch, OpenCV and the pipeline choose")
    parser.add_argument("--views", type=int, default=21)
    parser.add_argument("--sizes", nargs="+", default=["640x480", "128x96"], help="WIDTHxHEIGHT of the views")
    parser.add_argument("--kind", default="room", help="of world, see docs/scenes.md")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cuda-graph", action="store_true", help="beside it, a step as one launch")
    parser.add_argument("--try", dest="tries", action="append", default=[], help="a change of TRIES, or all")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here, after every size")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
