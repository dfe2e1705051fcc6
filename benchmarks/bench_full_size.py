"""Time of a clip at the size of the published models, by stage, and its fraction of the GPU's matrix rate.

    python benchmarks/bench_full_size.py                                  # on a GPU: full size, as in the pipeline
    python benchmarks/bench_full_size.py --try all --json full.json       # all switches in turn
    python benchmarks/bench_full_size.py --attention _native_cudnn --compile default --fp8 scaled_mm
    python benchmarks/bench_full_size.py --autoencoder loop               # diffusers' video autoencoder, frame by frame
    python benchmarks/bench_full_size.py --peer                           # the backbone alone beside that of diffusers

Weights are random: time does not depend on them. Stages are timed with an idle device before and after; the fastest of
`--repeats` counts. The matrix rate is measured in the same run. Without a GPU, a toy size tests the script; its figures
say nothing about speed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from full_size import (
    FULL,
    TOY,
    Graphed,
    Size,
    build,
    build_peer,
    count_flops,
    fuse_projections,
    make_inputs,
    matmul_rate,
    use_float8,
)

from worldstereo_ros.models.schedulers import DMDScheduler

SWITCHES = ("attention", "compile", "cuda_graph", "fuse", "fp8", "control_backend", "autoencoder", "vae_batch")
# Switches that differ from the plain run.
TRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "autoencoder in a loop": {"autoencoder": "loop"},
    "cudnn attention": {"attention": "_native_cudnn"},
    "flash attention 3": {"attention": "_flash_3"},
    "fused projections": {"fuse": True},
    "cuda graph": {"cuda_graph": True},
    "compiled": {"compile": "default"},
    "compiled, cudnn attention": {"compile": "default", "attention": "_native_cudnn"},
    "fp8": {"fp8": "scaled_mm", "compile": "default"},
    "fp8, cudnn attention": {"fp8": "scaled_mm", "compile": "default", "attention": "_native_cudnn"},
    "fp8 by torchao": {"fp8": "torchao", "compile": "default"},
}
TARGET = 0.70  # fraction of the matrix rate, in the transformer


class Stopwatch:
    """The fastest time of each stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.best = device, {}

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Times `work` with an idle device before and after."""
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        self.best[stage] = min(self.best.get(stage, float("inf")), time.perf_counter() - start)
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        print("No CUDA GPU: running the toy size, which tests the script and says nothing about speed.")
    if options.threads:
        torch.set_num_threads(options.threads)
    size = FULL if options.size == "full" or (options.size == "auto" and device.type == "cuda") else TOY
    height, width = (int(n) for n in options.resolution.split("x")) if options.resolution else (size.height, size.width)
    size = replace(size, frames=options.frames or size.frames, height=height, width=width)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rate = matmul_rate(device, dtype, 8192 if device.type == "cuda" else 512, 1.0 if device.type == "cuda" else 0.1)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "size": size.name,
        "clip": [size.frames, size.height, size.width],
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_tflops": rate / 1e12,
        "runs": {},
    }
    clip = f"{size.frames} keyframes of {size.height}x{size.width}"
    print(f"{machine}, torch {torch.__version__}, {report['dtype']}, {size.name} size, {clip}, {options.steps} steps")
    print(f"matrix products: {rate / 1e12:.4g} TFLOP/s")
    if options.peer:
        report["peer"] = measure_peer(size, device, dtype, rate, options.repeats)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
        return
    chosen = {name: getattr(options, name) for name in SWITCHES}
    runs = {"options": {}} if not options.tries else TRIES if "all" in options.tries else pick(options.tries)
    for name, change in runs.items():
        switches = {**chosen, **change}
        print(f"\n{name}: {', '.join(f'{k}={v}' for k, v in switches.items() if v not in (None, False, 'none'))}")
        try:
            report["runs"][name] = run(size, device, dtype, rate, switches, options)
        except (RuntimeError, ValueError, ImportError, AttributeError, TypeError) as error:
            # A switch that fails on this machine must not lose the figures of the others.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"  not available: {reason}")
            report["runs"][name] = {"failed": reason}
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if options.json:
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if all("failed" in figures for figures in report["runs"].values()):
        raise SystemExit("No run was possible.")


@torch.inference_mode()
def measure_peer(
    size: Size, device: torch.device, dtype: torch.dtype, rate: float, repeats: int
) -> dict[str, dict[str, float]]:
    """One step of the backbone alone, ours and that of diffusers, with the same random weights and inputs in turn."""
    size = replace(size, control={})
    model, _ = build(size, device, dtype)
    inputs = make_inputs(model, size.frames, size.height, size.width, 0, device, dtype)
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image")
    inputs = {name: inputs[name] for name in names}
    flops = sum(count_flops(model.config, size.frames, size.height, size.width, 0).values())
    models = {"ours": model, "diffusers": build_peer(model)}
    outputs = {name: one(**inputs).sample.float() for name, one in models.items()}  # warms up, too
    stopwatch, peaks = Stopwatch(device), {}
    for _ in range(repeats + 1):
        for name, one in models.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            stopwatch.time(name, lambda one=one: one(**inputs))
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30
    error = float((outputs["ours"] - outputs["diffusers"]).norm() / outputs["diffusers"].norm())
    figures = {}
    for name, seconds in stopwatch.best.items():
        figures[name] = {
            "seconds": seconds,
            "share_of_matmul_rate": flops / seconds / rate,
            "peak_gib": peaks.get(name),
        }
        memory = f", at most {peaks[name]:.1f} GiB" if peaks else ""
        share = f", {flops / seconds / rate:.1%} of the matrix rate" if device.type == "cuda" else ""
        print(f"  {name:<10} {seconds:.4g} s a step{share}{memory}")
    ratio = figures["ours"]["seconds"] / figures["diffusers"]["seconds"]
    print(f"  ratio {ratio:.3f}, relative difference of the results {error:.2g}")
    return {**figures, "compared": {"ratio": ratio, "difference": error}}


@torch.inference_mode()
def run(
    size: Size, device: torch.device, dtype: torch.dtype, rate: float, switches: dict[str, Any], options: Any
) -> dict[str, Any]:
    """Figures of one set of switches, by number of references."""
    transformer, autoencoder = build(size, device, dtype)
    parameters = sum(p.numel() for p in transformer.parameters())
    encode, decode = autoencoder_functions(autoencoder, size, device, dtype, switches)
    if switches["attention"]:
        transformer.set_attention_backend(switches["attention"])
    if switches["fuse"]:
        fuse_projections(transformer)
    if switches["control_backend"] != "torch":
        from worldstereo_ros.export.runtime import use_control_backend

        use_control_backend(transformer, switches["control_backend"])
    if switches["fp8"] != "none":
        print(f"  {use_float8(transformer, switches['fp8'])} linear layers in float8")
    if switches["compile"] != "none":
        transformer.compile_repeated_blocks(fullgraph=False, mode=switches["compile"])
    figures: dict[str, Any] = {"parameters": parameters}
    for references in options.references:
        figures[str(references)] = measure_clip(
            transformer, encode, decode, size, references, device, dtype, rate, switches, options
        )
    return figures


def measure_clip(
    transformer: Any,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    size: Size,
    references: int,
    device: torch.device,
    dtype: torch.dtype,
    rate: float,
    switches: dict[str, Any],
    options: Any,
) -> dict[str, Any]:
    inputs = make_inputs(transformer, size.frames, size.height, size.width, references, device, dtype)
    images = torch.rand(size.frames + references, 3, size.height, size.width, device=device, dtype=dtype) * 2 - 1
    scheduler = DMDScheduler(steps=options.steps)
    stopwatch = Stopwatch(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    forward: Callable[..., torch.Tensor] = lambda **kw: transformer(**kw).sample  # noqa: E731
    forward(**inputs)  # compiles and selects kernels
    if switches["cuda_graph"]:
        if device.type != "cuda":
            raise RuntimeError("CUDA graphs need a CUDA device.")
        forward = Graphed(transformer, inputs)
    sample = None
    for repeat in range(options.repeats + 1):
        if repeat == 1:
            stopwatch.best.clear()  # the first round warms up
        stopwatch.time("encode images", lambda: encode(images))
        scheduler.set_timesteps(device=device)
        sample = torch.randn(1, 16, *inputs["hidden_states"].shape[2:], device=device, dtype=torch.float32)
        condition = inputs["hidden_states"][:, 16:]
        for timestep in scheduler.timesteps:
            hidden = torch.cat((sample.to(dtype), condition), dim=1)
            step = {**inputs, "hidden_states": hidden, "timestep": timestep.expand(1)}
            velocity = stopwatch.time("one step", lambda step=step: forward(**step))
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        stopwatch.time("decode images", lambda z=sample: decode(z[0].transpose(0, 1).to(dtype)))
    return report_clip(references, transformer.config, size, sample, stopwatch, device, rate, options.steps)


def report_clip(
    references: int,
    config: Any,
    size: Size,
    sample: torch.Tensor,
    stopwatch: Stopwatch,
    device: torch.device,
    rate: float,
    steps: int,
) -> dict[str, Any]:
    """Prints and returns the figures of one clip."""
    parts = count_flops(config, size.frames, size.height, size.width, references)
    flops, best = sum(parts.values()), stopwatch.best
    achieved = flops / best["one step"]
    total = best["encode images"] + steps * best["one step"] + best["decode images"]
    figures: dict[str, Any] = {
        "seconds": {**best, "clip": total},
        "tflop_per_step": flops / 1e12,
        "tflop_by_part": {name: count / 1e12 for name, count in parts.items()},
        "tflops": achieved / 1e12,
        "share_of_matmul_rate": achieved / rate,
        "finite": bool(torch.isfinite(sample).all()),
    }
    memory = ""
    if device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        memory = f", at most {figures['peak_gib']:.1f} GiB"
    stages = ", ".join(f"{name} {seconds:.4g} s" for name, seconds in best.items())
    print(f"  {references} references: clip {total:.4g} s ({stages}){memory}")
    target = "reached" if achieved >= TARGET * rate else f"target {TARGET:.0%}"
    share = f"{achieved / rate:.1%} of the matrix rate, {target}" if device.type == "cuda" else "toy"
    print(f"    {flops / 1e12:.4g} TFLOP a step, {achieved / 1e12:.4g} TFLOP/s ({share})")
    if not figures["finite"]:
        print("    the result is not finite: these figures are invalid")
    return figures


def autoencoder_functions(
    flat: Any, size: Size, device: torch.device, dtype: torch.dtype, switches: dict[str, Any]
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Encode and decode of (N, 3, H, W) and (N, 16, h, w): ours in batches, or diffusers' frame by frame."""
    if switches["autoencoder"] == "flat":
        batch = switches["vae_batch"] or None
        return lambda x: flat.encode(x, batch_size=batch), lambda z: flat.decode(z, batch_size=batch)
    from diffusers import AutoencoderKLWan

    wan = AutoencoderKLWan(**size.autoencoder).to(device, dtype).requires_grad_(False).eval()
    return (
        lambda x: torch.cat([wan.encode(one[None, :, None]).latent_dist.mode() for one in x]),
        lambda z: torch.cat([wan.decode(one[None, :, None]).sample for one in z]),
    )


def pick(names: list[str]) -> dict[str, dict[str, Any]]:
    unknown = [name for name in names if name not in TRIES]
    if unknown:
        raise SystemExit(f"'{unknown[0]}' is unknown; --try takes one of: {', '.join(TRIES)}, all.")
    return {name: TRIES[name] for name in names}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="", help="cpu or cuda; empty: cuda if available")
    parser.add_argument("--size", choices=["auto", "full", "toy"], default="auto")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="")
    parser.add_argument("--frames", type=int, default=0, help="0: those of the size")
    parser.add_argument("--resolution", default="", help="HEIGHTxWIDTH, multiples of 16; empty: that of the size")
    parser.add_argument("--references", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the default of torch")
    parser.add_argument("--attention", default="", help="a backend of diffusers: native, _native_cudnn, _flash_3, ...")
    parser.add_argument(
        "--compile",
        default="none",
        choices=["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    )
    parser.add_argument("--cuda-graph", action="store_true", help="run the transformer as a CUDA graph")
    parser.add_argument("--fuse", action="store_true", help="query, key and value in one product")
    parser.add_argument("--fp8", choices=["none", "scaled_mm", "torchao"], default="none")
    parser.add_argument("--control-backend", choices=["torch", "onnxruntime", "tensorrt"], default="torch")
    parser.add_argument("--autoencoder", choices=["flat", "loop"], default="flat")
    parser.add_argument("--vae-batch", type=int, default=0, help="images that are encoded together; 0: all")
    parser.add_argument("--try", dest="tries", action="append", default=[], help="a named set of switches, or all")
    parser.add_argument("--peer", action="store_true", help="only the backbone, beside that of diffusers")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures, written after every run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
