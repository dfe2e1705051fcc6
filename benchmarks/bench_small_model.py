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
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import torch

sys.path.insert(0, str(Path(__file__).parent))
from small_model import (
    TRIES,
    Breakdown,
    GraphedSteps,
    PlainPipeline,
    bytes_of_the_rest,
    flops_of,
    likeness,
    now,
    rates,
    seen,
    use_clock,
    walk,
)

from worldstereo_ros.evaluation.demo_scenarios import DemoScenario, scene_scenario
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel, warm_up

GIVEN = 10  # pictures that the robot took


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
    story = scene_scenario(options.kind, 0, options.views, given=GIVEN, width=size[0], height=size[1])
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


def try_all(world: WorldModel, story: DemoScenario, options: argparse.Namespace) -> dict[str, Any]:
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
    options = parse(arguments)
    use_clock(options.clock)
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
