"""Time of one forward pass with 0, 4 and 8 references, for each mode of attention over references.

    python benchmarks/bench_reference_attention.py
    python benchmarks/bench_reference_attention.py --device cuda --dtype bfloat16 --full-size

The default is the shape of the small model (6 heads of 64, 8 blocks, 21 keyframes of 128x160). Weights are random. The
cases take turns within one run, and the fastest time of each is reported: other processes on the machine only add to
it. The points for `correspondence` are those of a camera that moves sideways along a wall: a keyframe overlaps its own
reference by sixty percent and the others less, and an eighth of it is not rendered.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from worldstereo_ros.models.worldstereo.correspondence import reference_points
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

CASES = (
    ("full", "auto"),
    ("paired", "dense"),
    ("paired", "groups"),
    ("paired", "flex"),
    ("correspondence", "dense"),
    ("correspondence", "groups"),
    ("correspondence", "flex"),
)


def build(full_size: bool, device: str, dtype: torch.dtype, update: bool) -> WorldStereoTransformer:
    heads, width, layers, ffn, text, image = (
        (40, 128, 40, 13824, 4096, 1280) if full_size else (6, 64, 8, 1536, 64, None)
    )
    dim = heads * width
    control = {
        "conv_out_dim": dim,
        "dim": 1024 if full_size else 192,
        "ffn_dim": 4096 if full_size else 768,
        "num_heads": 16 if full_size else 4,
        "num_layers": 20 if full_size else 4,
        "time_embed_dim": dim,
        "add_channels": 7,
        "mid_channels": 64,
        "mask_downsample": 1,
        "update_ref": update,
        "main_camera_embedding": True,
    }
    with torch.device("meta"):
        model = WorldStereoTransformer(
            num_attention_heads=heads,
            attention_head_dim=width,
            num_layers=layers,
            ffn_dim=ffn,
            text_dim=text,
            image_dim=image,
            added_kv_proj_dim=dim if image else None,
            controlnet_cfg=control,
        )
    model = torch.nn.Module.to(model, dtype).to_empty(device=device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def inputs_for(
    model: WorldStereoTransformer,
    frames: int,
    height: int,
    width: int,
    references: int,
    device: str,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    h, w = height // 8, width // 8
    options = {"device": device, "dtype": dtype}
    inputs = {
        "hidden_states": torch.randn(1, 36, frames, h, w, **options),
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_hidden_states": torch.randn(1, 512, model.config.text_dim, **options),
        "render_latent": torch.randn(1, 16, frames, h, w, **options),
        "render_mask": torch.zeros(1, 1, frames, height, width, **options),
        "camera_embedding": torch.randn(1, 6, frames, height, width, **options),
        "camera_qt": torch.randn(1, frames, 7, **options),
    }
    if model.config.image_dim:
        inputs["encoder_hidden_states_image"] = torch.randn(1, 257, model.config.image_dim, **options)
    if references:
        keyframes = torch.linspace(0, frames - 2, references).long()
        depth = torch.full((frames, height, width), 4.0)
        depth[:, : height // 8] = 0  # not rendered
        K = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
        poses = torch.eye(4).repeat(frames, 1, 1)
        poses[:, 0, 3] = torch.linspace(0, 10, frames)
        reference_poses = poses[keyframes + 1].clone()
        reference_poses[:, 0, 3] += 2.0
        points = reference_points(depth, K, poses, K, reference_poses, h // 2, w // 2)
        inputs |= {
            "reference_latent": torch.randn(1, 36, references, h, w, **options),
            "ref_index": keyframes,
            "camera_qt_ref": torch.randn(1, references, 7, **options),
            "reference_points": points[None].to(device),
        }
    return inputs


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--full-size", action="store_true", help="40 blocks of width 5120 at 480x768")
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--references", type=int, nargs="+", default=[4, 8])
    parser.add_argument(
        "--frozen", action="store_true", help="references are not updated from block to block (update_ref: false)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the default of torch")
    parser.add_argument("--json", default="", help="also write the results to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype, device = getattr(torch, options.dtype), options.device
    height, width = (480, 768) if options.full_size else (128, 160)
    model = build(options.full_size, device, dtype, not options.frozen)
    size = (options.frames, height, width)
    no_references = inputs_for(model, *size, 0, device, dtype)

    def forward_seconds(inputs: dict[str, torch.Tensor]) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(**inputs)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # FlexAttention is compiled on CUDA only; on the CPU this would time a fallback that is never used.
    cases = [case for case in CASES if case[1] != "flex" or device.startswith("cuda")]
    times: dict[tuple[int, str, str], list[float]] = {}
    base_times = []
    prepared = {n: inputs_for(model, *size, n, device, dtype) for n in options.references}
    for repeat in range(options.repeats + 1):  # the first warms up
        seconds = forward_seconds(no_references)
        if repeat:
            base_times.append(seconds)
        for count, inputs in prepared.items():
            for mode, implementation in cases:
                model.set_reference_attention(mode, implementation)
                seconds = forward_seconds(inputs)
                if repeat:
                    times.setdefault((count, mode, implementation), []).append(seconds)

    base = min(base_times)
    tokens = options.frames * (height // 16) * (width // 16)
    state = "frozen" if options.frozen else "updated"
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {tokens} target tokens, references "
        f"{state}, {options.dtype} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"no references                              {base:8.3f} s")
    results = {"no references": {"seconds": base}}
    for (count, mode, implementation), measured in times.items():
        best = min(measured)
        each = (best / base - 1) / count
        name = f"{count} references, {mode}, {implementation}"
        results[name] = {"seconds": best, "share_per_reference": each}
        print(f"{name:<42} {best:8.3f} s  {best / base:5.2f}x  {100 * each:+6.2f} % per reference")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
