"""Time of a path with the bundled model: by part, per view, to the first view, and against a plain eager loop.

    python benchmarks/bench_small_model.py --threads 2 --json small.json
    python benchmarks/bench_small_model.py --try all         # all changes in turn: time ratio and decibels
    python benchmarks/bench_small_model.py --device cuda --dtype bfloat16 --cuda-graph
    python benchmarks/bench_small_model.py --clock process  # CPU time, for machines under other load

A robot has ten observations of a procedural world and imagines 21 views, at 640x480 and at the model's own size, with
`WorldModel` as a user would. The plain loop runs in turn with it: memory warps all views and labels their provenance,
all images are encoded in one batch, denoised, and decoded in one batch, in float32, before the first view is returned.
Figures are medians.

The floor is the time that the products, convolutions and attentions of the networks take alone (`network_floor`), and
that of the bytes that the rest must read and write at this machine's rate of copies.
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
    best_seconds,
    bytes_of_memory,
    imagine_path,
    make_world,
    mean_psnr,
    now,
    operations_of,
    rates,
    use_clock,
)

from worldstereo_ros.evaluation.demo_scenarios import DemoScenario, scene_scenario
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.references import ReferenceCache
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel, warm_up

OBSERVATIONS = 10


def median(rows: list[tuple[float, float, list[ImaginedView]]], place: int) -> float:
    return statistics.median((row[0], row[1])[place] for row in rows)


def load(options: argparse.Namespace, dtype: str, plain: bool = False) -> WorldStereoPipeline:
    pipeline: Any = load_pipeline(options.model, options.device, dtype=dtype)
    if options.threads:
        pipeline.geometric.threads = options.threads
    if plain:
        pipeline.__class__ = PlainPipeline
        pipeline.geometric.threads = 1
    return pipeline


def measure(size: tuple[int, int], options: argparse.Namespace, copying: float) -> dict[str, Any]:
    """Prints and returns the figures of one size."""
    device = torch.device(options.device)
    scenario = scene_scenario(
        options.kind, 0, options.views, observed_count=OBSERVATIONS, width=size[0], height=size[1]
    )
    worlds = {
        "pipeline": make_world(load(options, options.dtype), scenario, device),
        "plain": make_world(load(options, "float32", plain=True), scenario, device),
    }
    if options.cuda_graph:
        graphed: Any = load(options, options.dtype)
        graphed.transformer = GraphedSteps(graphed.transformer)
        worlds["CUDA graph"] = make_world(graphed, scenario, device)
    rows: dict[str, list[tuple[float, float, list[ImaginedView]]]] = {}
    failed = {}
    for name, world in list(worlds.items()):
        try:
            warm_up(world.pipeline, device)
            imagine_path(world, scenario, scenario.path)
        except RuntimeError as error:
            if name != "CUDA graph":
                raise
            failed[name] = str(error).strip().splitlines()[0]
            del worlds[name]
    for _ in range(options.repeats):
        for name, world in worlds.items():
            rows.setdefault(name, []).append(imagine_path(world, scenario, scenario.path))
    world = worlds["pipeline"]
    single = statistics.median(imagine_path(world, scenario, scenario.path[:1])[0] for _ in range(options.repeats))
    parts = Breakdown(device)
    with parts.watching(world):
        whole, _, _ = imagine_path(world, scenario, scenario.path)
    prepare, reference_counts = ReferenceCache.prepare, []

    def counted(cache: ReferenceCache, views: list[View], *others: Any) -> Any:
        reference_counts.append(len(views))
        return prepare(cache, views, *others)

    with patch.object(ReferenceCache, "prepare", counted):
        operations = operations_of(world, scenario)
    flops, floor = operations.flops, operations.seconds(lambda work: best_seconds(work, device))
    moved = bytes_of_memory(world, scenario, statistics.fmean(reference_counts))
    total, first = median(rows["pipeline"], 0), median(rows["pipeline"], 1)
    plain, plain_first = median(rows["plain"], 0), median(rows["plain"], 1)
    views = rows["pipeline"][0][2]
    networks = sum(parts.seconds[part] for part in ("encoding", "transformer", "decoding"))
    figures: dict[str, Any] = {
        "seconds": total,
        "seconds_per_view": total / options.views,
        "views_per_second": options.views / total,
        "seconds_to_first": first,
        "seconds_of_one_view": single,
        "parts": {**parts.seconds, "rest": whole - sum(parts.seconds.values())},
        "gflop": flops / 1e9,
        "floor_networks_s": floor,
        "floor_rest_s": moved / copying,
        "floor_share_of_networks": floor / networks,
        "plain_seconds": plain,
        "plain_seconds_to_first": plain_first,
        "beside_plain": total / plain,
        "first_beside_plain": first / plain_first,
        "likeness_to_plain_db": mean_psnr(views, rows["plain"][0][2]),
        "psnr_to_truth_db": mean_psnr(views, scenario.truth),
    }
    print(
        f"\n{options.views} views of {size[0]}x{size[1]}, a {options.kind} of which {OBSERVATIONS} views were observed"
    )
    print(
        f"  {total:.3g} s, {total / options.views:.3g} s a view, the first after {first:.3g} s; one view alone "
        f"{single:.3g} s"
    )
    print(
        f"  plain eager loop: {plain:.3g} s, the first after {plain_first:.3g} s; ratios {total / plain:.2f} and "
        f"{first / plain_first:.2f}; PSNR between the two {figures['likeness_to_plain_db']:.1f} dB"
    )
    if "CUDA graph" in rows:
        figures["cuda_graph_seconds"] = median(rows["CUDA graph"], 0)
        print(f"  CUDA graph: {figures['cuda_graph_seconds']:.3g} s")
    elif failed:
        figures["cuda_graph_failed"] = failed["CUDA graph"]
        print(f"  CUDA graph: not available: {failed['CUDA graph']}")
    print(
        f"  floor: the networks' {flops / 1e9:.3g} GFLOP alone {floor:.3g} s, {floor / networks:.0%} of the "
        f"{networks:.3g} s that they take; the rest {moved / 1e9:.3g} GB, {moved / copying:.3g} s"
    )
    for part, seconds in sorted(figures["parts"].items(), key=lambda item: -item[1]):
        print(f"    {part:<18} {seconds:7.3f} s {seconds / whole:6.1%}")
    if options.tries:
        figures["tries"] = try_all(world, scenario, options)
    return figures


def try_all(world: WorldModel, scenario: DemoScenario, options: argparse.Namespace) -> dict[str, Any]:
    """Runs each change in turn with the unchanged pipeline: ratios of time, and differences in decibels."""
    names = list(TRIES) if "all" in options.tries else options.tries
    truth = None
    found: dict[str, Any] = {}
    for name in names:
        if name not in TRIES:
            raise SystemExit(f"'{name}' is unknown; --try takes one of: {', '.join(TRIES)}, all.")
        change, dtype = TRIES[name]
        try:
            start = now()
            pipeline = load(options, dtype)
            change(pipeline)
            other = make_world(pipeline, scenario, world.device)
            imagine_path(other, scenario, scenario.path)
            loading = now() - start
            mine, theirs = [], []
            for _ in range(options.repeats):
                mine.append(imagine_path(world, scenario, scenario.path))
                theirs.append(imagine_path(other, scenario, scenario.path))
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            found[name] = {"failed": reason}
            print(f"  {name:<40} not available: {reason}")
            continue
        truth = mean_psnr(mine[0][2], scenario.truth) if truth is None else truth
        found[name] = {
            "time": median(theirs, 0) / median(mine, 0),
            "time_to_first": median(theirs, 1) / median(mine, 1),
            "likeness_db": mean_psnr(theirs[0][2], mine[0][2]),
            "psnr_to_truth_db": mean_psnr(theirs[0][2], scenario.truth) - truth,
            "seconds_to_load_and_warm_up": loading,
        }
        row = found[name]
        print(
            f"  {name:<40} time ratio {row['time']:.2f}, {row['time_to_first']:.2f} to the first view; PSNR to the "
            f"unchanged views {row['likeness_db']:.1f} dB, to the truth {row['psnr_to_truth_db']:+.2f} dB; ready in "
            f"{loading:.1f} s"
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    use_clock(options.clock)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA GPU; remove --device cuda to measure the CPU.")
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
        print("To measure a GPU, add --device cuda.")
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
        report["sizes"][size] = measure((width, height), options, copying)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0: the defaults of torch, OpenCV and the pipeline")
    parser.add_argument("--views", type=int, default=21)
    parser.add_argument("--sizes", nargs="+", default=["640x480", "128x96"], help="WIDTHxHEIGHT of the views")
    parser.add_argument("--kind", default="room", help="of procedural world, see docs/concepts/procedural_worlds.md")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cuda-graph", action="store_true", help="also measure the transformer as a CUDA graph")
    parser.add_argument(
        "--try", dest="tries", action="append", default=[], help="a change of TRIES in small_model.py, or all"
    )
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures, written after every size")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
