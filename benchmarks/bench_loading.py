"""Host memory and time to load the transformer of a sharded checkpoint, with random weights.

    python benchmarks/bench_loading.py --gib 3                   # on the CPU
    python benchmarks/bench_loading.py --gib 3 --device discard  # host memory of loading to a GPU, without one
    python benchmarks/bench_loading.py --gib 33 --device cuda

The checkpoint has the width of the published models (the largest tensor has 300 MiB) and as many layers as fit into
`--gib`; bfloat16, shards of `--shard-gib`; a toy below 1 GiB. It is loaded by a process of its own with
`load_transformer`. What is reported is the growth of the process's resident memory meanwhile: memory that it holds, and
mapped pages of the files, which the system takes back when it needs them. On the CPU the weights themselves are
subtracted. With `discard` every tensor is dropped as soon as it is checked, as when it has been copied to a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent))
from full_size import FULL, TOY, Size, build

from worldstereo_ros.models.checkpoints import loading
from worldstereo_ros.models.checkpoints.config import VARIANTS
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.saving import save_base, save_variant
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

GOAL_GIB = 1.0  # of host memory beyond the weights that the host itself keeps
PERIOD_S = 0.01  # of reading the resident memory
CONFIG = {
    "model_type": VARIANTS[0],
    "base_model": "base",
    "dmd_steps": 4,
    "nframe": 21,
    "latent_cond_mode": "full_vae",
}


def size_of(gib: float) -> Size:
    """The published width, with as many layers as fit; a toy below 1 GiB."""
    if gib < 1:
        return replace(TOY, backbone={**TOY.backbone, "ffn_dim": 1 << 16, "num_layers": max(1, round(gib * 85))})
    small = replace(FULL, backbone={**FULL.backbone, "num_layers": 1})
    sizes = []
    for layers in (1, 2):
        with torch.device("meta"):
            backbone = {**small.backbone, "num_layers": layers}
            model = WorldStereoTransformer(**backbone, controlnet_cfg=small.control)
        sizes.append(sum(p.numel() for p in model.parameters()) * 2)
    layers = max(1, int((gib * 2**30 - sizes[0]) / (sizes[1] - sizes[0])) + 1)
    return replace(small, backbone={**small.backbone, "num_layers": min(layers, 40)})


def write_checkpoint(root: Path, size: Size, shard_bytes: int) -> int:
    """Writes a checkpoint with its base model; returns the bytes of its tensors."""
    model, _ = build(size, torch.device("cpu"), torch.bfloat16)
    save_base(model, root / "base", dtype=torch.bfloat16, max_shard_bytes=shard_bytes)
    branches = loading.BRANCH_PREFIXES
    save_variant(
        model,
        root / VARIANTS[0],
        CONFIG,
        keep=lambda name: name.startswith(branches),
        dtype=torch.bfloat16,
        max_shard_bytes=shard_bytes,
    )
    return 2 * sum(p.numel() for p in model.parameters())


class ResidentMemory:
    """The largest resident memory of this process in bytes while a block runs, as the growth since its beginning.

    Attributes:
        total, anonymous, mapped: growth of all resident memory, of what the process holds, of mapped file pages.
    """

    def __enter__(self) -> ResidentMemory:
        """Starts to read it."""
        self._first = self._read()
        self.total = self.anonymous = self.mapped = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Stops."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.sample()
            self._ended.wait(PERIOD_S)

    def sample(self) -> None:
        """Reads it now."""
        anonymous, mapped = (now - then for now, then in zip(self._read(), self._first, strict=True))
        self.total = max(self.total, anonymous + mapped)
        self.anonymous, self.mapped = max(self.anonymous, anonymous), max(self.mapped, mapped)

    @staticmethod
    def _read() -> tuple[int, int]:
        fields = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss")
        )
        anonymous, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return anonymous, mapped


def load(root: Path, device: str) -> dict[str, Any]:
    """Loads the checkpoint in this process: bytes of the weights, growth of the memory, seconds."""
    checkpoint = find_checkpoint(root)
    target = "cuda" if device == "cuda" else "cpu"
    if target == "cuda":
        torch.zeros(1, device="cuda")  # the context takes host memory, too
    loading.build_transformer(checkpoint)  # imports what it needs
    discarded: Any = nullcontext()
    if device == "discard":
        discarded = patch.object(loading, "set_parameter", lambda *_: None)
    begin = time.perf_counter()
    with discarded, ResidentMemory() as memory:

        def sample(done: int, total: int) -> None:
            memory.sample()

        model = loading.load_transformer(checkpoint, device=target, dtype=torch.bfloat16, on_progress=sample)
        if target == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    weights = sum(parameter.nbytes for parameter in model.parameters())
    held = weights if device == "cpu" else 0  # what the host keeps
    return {
        "weights": weights,
        "seconds": seconds,
        "anonymous": memory.anonymous - held,
        "mapped": memory.mapped,
        "total": memory.total - held,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    if options.load:
        print(json.dumps(load(options.load, options.device)))
        return {}
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA GPU; use --device discard for the host's part.")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        written = write_checkpoint(Path(folder), size_of(options.gib), int(options.shard_gib * 2**30))
        command = [sys.executable, __file__, "--load", folder, "--device", options.device]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    figures = json.loads(found.stdout.splitlines()[-1])
    figures |= {"device": options.device, "checkpoint": written}
    verdict = "reached" if figures["total"] <= GOAL_GIB * 2**30 else "missed"
    beyond = " beyond the weights" if options.device == "cpu" else ""
    print(
        f"{written / 2**30:.2f} GiB of bfloat16 in shards of {options.shard_gib:g} GiB to {options.device}: "
        f"{figures['seconds']:.1f} s, {written / 1e9 / figures['seconds']:.2f} GB/s"
    )
    print(
        f"host memory{beyond}: at most {figures['total'] / 2**30:.2f} GiB (held {figures['anonymous'] / 2**30:.2f}, "
        f"mapped pages of the files {figures['mapped'] / 2**30:.2f}); goal {GOAL_GIB:g} GiB, {verdict}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return figures


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.2, help="size of the checkpoint; at most that of 14B, 33")
    parser.add_argument("--shard-gib", type=float, default=5.0, help="size of a file")
    parser.add_argument("--device", choices=["cpu", "cuda", "discard"], default="cpu")
    parser.add_argument("--folder", type=Path, default=None, help="for the checkpoint; default: the system's")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures, in bytes, to this file")
    parser.add_argument("--load", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
