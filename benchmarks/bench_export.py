"""Speed of exported models compared with torch: the control branch and the autoencoder, in one run.

    python benchmarks/bench_export.py
    python benchmarks/bench_export.py --device cuda --dtype float16 --layers 20 --dim 1024 --frames 21 --size 480x768

Weights are random. Torch and onnxruntime take turns on the same inputs, and the fastest time of each is reported: other
processes on the machine only add to it. Both attention implementations of the export are timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldstereo_ros.export.metadata import DTYPES, autoencoder_example_inputs, control_example_inputs
from worldstereo_ros.export.onnx import export_autoencoder, export_control
from worldstereo_ros.export.runners import OnnxRuntimeRunner
from worldstereo_ros.export.runtime import ExportedAutoencoder, ExportedControlBranch
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBranch


def build_control(dim: int, layers: int, width: int) -> ControlBranch:
    settings = {
        "conv_out_dim": width,
        "dim": dim,
        "ffn_dim": 4 * dim,
        "num_heads": max(1, dim // 64),
        "num_layers": layers,
        "time_embed_dim": width,
        "add_channels": 7,
        "mid_channels": 64,
        "mask_downsample": 1,
    }
    branch = ControlBranch(settings, 36, width, (1, 2, 2))
    for name, parameter in branch.named_parameters():
        norm = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if norm else 0.0, 0.02)
    return branch.requires_grad_(False).eval()


def fastest_seconds(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest run of each variant."""
    best = dict.fromkeys(variants, float("inf"))
    for repeat in range(repeats + 1):  # the first warms up
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    height, width = (int(n) for n in options.size.split("x"))
    torch.manual_seed(0)
    branch = build_control(options.dim, options.layers, options.width).to(device, dtype)
    autoencoder = KeyframeAutoencoder(base_dim=options.base_dim).eval().requires_grad_(False).to(device)
    print(
        f"control branch of {options.layers} blocks of width {options.dim}, autoencoder of base {options.base_dim}, "
        f"{options.frames} frames of {height}x{width}, {options.dtype} on {device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        time_control(
            branch, Path(folder), (1, options.frames, height // 16, width // 16), device, dtype, options, results
        )
        time_autoencoder(autoencoder, Path(folder), (options.frames, height // 8, width // 8), device, options, results)
    for name, result in results.items():
        base = result["seconds"]["torch"]
        for variant, seconds in result["seconds"].items():
            error = "" if variant == "torch" else f"  error {result['error'][variant]:.1e}"
            print(f"{name:<10} {variant:<32} {seconds:8.4f} s  {base / seconds:5.2f}x{error}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


def time_control(
    branch: ControlBranch,
    folder: Path,
    size: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    options: Any,
    results: dict[str, Any],
) -> None:
    variants: dict[str, Callable[[], list[torch.Tensor]]] = {}
    inputs: list[torch.Tensor] = []
    variants["torch"] = lambda: branch(*inputs)
    for attention in options.attention:
        exported = export_control(branch, folder / f"{attention}.onnx", dtype=dtype, attention=attention)
        runner = OnnxRuntimeRunner(exported.path, device)
        session = ExportedControlBranch(runner, exported.metadata, branch.proj_out)
        if not inputs:
            inputs.extend(t.to(device) for t in control_example_inputs(exported.metadata, size, dtype))
        variants[f"onnxruntime, {attention} attention"] = lambda session=session: session(*inputs)
    expected = variants["torch"]()
    errors = {name: max_difference(work(), expected) for name, work in variants.items()}
    results["control"] = {"seconds": fastest_seconds(variants, options.repeats, device), "error": errors}


def time_autoencoder(
    model: KeyframeAutoencoder,
    folder: Path,
    size: tuple[int, int, int],
    device: torch.device,
    options: Any,
    results: dict[str, Any],
) -> None:
    for part in ("encoder", "decoder"):
        exported = export_autoencoder(model, folder / f"{part}.onnx", part=f"autoencoder-{part}")
        session = ExportedAutoencoder.of(model, **{part: OnnxRuntimeRunner(exported.path, device)})
        (inputs,) = (t.to(device) for t in autoencoder_example_inputs(exported.metadata, size, torch.float32))
        name = "encode" if part == "encoder" else "decode"
        variants = {
            variant: lambda call=getattr(owner, name): call(inputs, batch_size=options.batch)  # noqa: B023 - run at once
            for variant, owner in (("torch", model), ("onnxruntime", session))
        }
        error = max_difference([variants["onnxruntime"]()], [variants["torch"]()])
        seconds = fastest_seconds(variants, options.repeats, device)
        results[name] = {"seconds": seconds, "error": {"onnxruntime": error}}


def max_difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(actual, expected, strict=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the control branch")
    parser.add_argument("--dim", type=int, default=256, help="width of the control branch")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512, help="of the backbone")
    parser.add_argument("--base-dim", type=int, default=32, help="of the autoencoder; 96 in the published one")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--size", default="128x160", help="HEIGHTxWIDTH, multiples of 16")
    parser.add_argument("--batch", type=int, default=1, help="frames in one batch of the autoencoder")
    parser.add_argument("--attention", nargs="+", choices=["fused", "standard"], default=["fused", "standard"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the default of torch")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
