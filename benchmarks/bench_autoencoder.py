"""Speed of the keyframe autoencoder compared with diffusers' video autoencoder, frame by frame.

    python benchmarks/bench_autoencoder.py
    python benchmarks/bench_autoencoder.py --device cuda --dtype bfloat16 --size 480x768 --frames 21

Weights are random, since time does not depend on them. The variants take turns within one run, and the fastest time of
each is reported: other processes on the machine only add to it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder


def variants(
    wan: AutoencoderKLWan, keyframe_vae: KeyframeAutoencoder, frames: torch.Tensor, batch: int
) -> dict[str, dict[str, Callable[[], torch.Tensor]]]:
    count = frames.shape[2]
    latents = keyframe_vae.encode(frames, batch_size=batch)
    mean, std = (
        torch.tensor(n).view(1, -1, 1, 1, 1).to(frames) for n in (wan.config.latents_mean, wan.config.latents_std)
    )

    def encode() -> torch.Tensor:
        return torch.cat(
            [(wan.encode(frames[:, :, i : i + 1]).latent_dist.mode() - mean) / std for i in range(count)], 2
        )

    def decode() -> torch.Tensor:
        return torch.cat([wan.decode(latents[:, :, i : i + 1] * std + mean).sample for i in range(count)], 2)

    return {
        "encode": {
            "video autoencoder, one by one": encode,
            "keyframe, one by one": lambda: keyframe_vae.encode(frames, batch_size=1),
            f"keyframe, {batch} at a time": lambda: keyframe_vae.encode(frames, batch_size=batch),
        },
        "decode": {
            "video autoencoder, one by one": decode,
            "keyframe, one by one": lambda: keyframe_vae.decode(latents, batch_size=1),
            f"keyframe, {batch} at a time": lambda: keyframe_vae.decode(latents, batch_size=batch),
        },
    }


def seconds(work: Callable[[], torch.Tensor], device: str) -> float:
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", default="64x96", help="height x width in pixels")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--batch", type=int, default=0, help="frames in one batch; 0: all")
    parser.add_argument("--base-dim", type=int, default=96, help="96 is the published width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the default of torch")
    parser.add_argument("--json", default="", help="also write the results to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    height, width = (int(n) for n in options.size.split("x"))
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    wan = torch.nn.Module.to(AutoencoderKLWan(base_dim=options.base_dim).eval(), options.device, dtype)
    keyframe_vae = KeyframeAutoencoder.from_wan(wan)
    frames = (torch.rand(1, 3, options.frames, height, width) * 2 - 1).to(options.device, dtype)

    print(
        f"{options.frames} frames of {height}x{width}, width {options.base_dim}, {options.dtype} on {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    figures = {}
    for task, candidates in variants(wan, keyframe_vae, frames, options.batch or options.frames).items():
        results = {name: work().float() for name, work in candidates.items()}  # warm-up, and outputs to compare
        first = next(iter(results.values()))
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(options.repeats):
            for name, work in candidates.items():
                times[name].append(seconds(work, options.device))
        slowest = min(next(iter(times.values())))
        for name, taken in times.items():
            best = min(taken)
            error = (results[name] - first).abs().max().item()
            figures[f"{task}: {name}"] = {"seconds": best, "times_faster": slowest / best, "max_difference": error}
            print(f"{task}  {name:<30} {best:8.3f} s  {slowest / best:6.2f}x  max difference {error:.1e}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
