"""How fast exported models are beside torch: the control branch and the autoencoder, both in one run.

    python benchmarks/bench_export.py
    python benchmarks/bench_export.py --device cuda --dtype float16 --layers 20 --dim 1024 --frames 21 --size 480x768

Weights are random. Torch and onnxruntime take turns on the same inputs, and the fastest of each counts: whatever else
runs on the machine only adds. Both attentions of the export are timed.
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
from worldstereo_ros.export.runtime import ExportedAutoencoder, ExportedControlBranch, OnnxRuntimeRunner
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


def race(ways: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest turn of each."""
    best = dict.fromkeys(ways, float("inf"))
    for repeat in range(repeats + 1):  # the first warms up
        for name, work in ways.items():
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
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        control(branch, Path(folder), (1, options.frames, height // 16, width // 16), device, dtype, options, figures)
        halves(autoencoder, Path(folder), (options.frames, height // 8, width // 8), device, options, figures)
    for name, made in figures.items():
        base = made["seconds"]["torch"]
        for way, seconds in made["seconds"].items():
            error = "" if way == "torch" else f"  error {made['error'][way]:.1e}"
            print(f"{name:<10} {way:<32} {seconds:8.4f} s  {base / seconds:5.2f}x{error}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def control(
    branch: ControlBranch,
    folder: Path,
    size: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    options: Any,
    figures: dict[str, Any],
) -> None:
    ways: dict[str, Callable[[], list[torch.Tensor]]] = {}
    given: list[torch.Tensor] = []
    ways["torch"] = lambda: branch(*given)
    for attention in options.attention:
        exported = export_control(branch, folder / f"{attention}.onnx", dtype=dtype, attention=attention)
        runner = OnnxRuntimeRunner(exported.path, device)
        session = ExportedControlBranch(runner, exported.metadata, branch.proj_out)
        if not given:
            given.extend(t.to(device) for t in control_example_inputs(exported.metadata, size, dtype))
        ways[f"onnxruntime, {attention} attention"] = lambda session=session: session(*given)
    want = ways["torch"]()
    errors = {name: difference(way(), want) for name, way in ways.items()}
    figures["control"] = {"seconds": race(ways, options.repeats, device), "error": errors}


def halves(
    model: KeyframeAutoencoder,
    folder: Path,
    size: tuple[int, int, int],
    device: torch.device,
    options: Any,
    figures: dict[str, Any],
) -> None:
    for half in ("encoder", "decoder"):
        exported = export_autoencoder(model, folder / f"{half}.onnx", part=f"autoencoder-{half}")
        session = ExportedAutoencoder.of(model, **{half: OnnxRuntimeRunner(exported.path, device)})
        (given,) = (t.to(device) for t in autoencoder_example_inputs(exported.metadata, size, torch.float32))
        name = "encode" if half == "encoder" else "decode"
        ways = {
            way: lambda call=getattr(owner, name): call(given, batch_size=options.batch)  # noqa: B023 - run at once
            for way, owner in (("torch", model), ("onnxruntime", session))
        }
        error = difference([ways["onnxruntime"]()], [ways["torch"]()])
        seconds = race(ways, options.repeats, device)
        figures[name] = {"seconds": seconds, "error": {"onnxruntime": error}}


def difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(got, want, strict=True))


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
    parser.add_argument("--batch", type=int, default=1, help="pictures through the autoencoder side by side")
    parser.add_argument("--attention", nargs="+", choices=["fused", "standard"], default=["fused", "standard"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
