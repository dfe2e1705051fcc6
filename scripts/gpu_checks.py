"""Checks of the CUDA paths, one line of JSON each; `gpu_round.py` runs them.

    python scripts/gpu_checks.py [--device cuda] [--toy] [NAME ...]

Every check compares a result on the device with one on the CPU, or with another way to compute it. On a CPU, and with
`--toy` at small sizes, the same code runs; what needs a GPU is skipped and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(REPOSITORY / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gpu_data_checks as data_checks  # noqa: E402
import gpu_network_checks as network_checks  # noqa: E402
import torch  # noqa: E402
from gpu_place import Place, Skipped, end_with_parent  # noqa: E402

POISONED = 17  # exit status: the device is unusable for this process, and another one should go on

CHECKS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "device": data_checks.check_device,
    "rendering": data_checks.check_rendering,
    "memory": data_checks.check_memory,
    "worlds on the device": data_checks.check_worlds,
    "clips on the device": data_checks.check_clips,
    "small model": data_checks.check_small_model,
    "small model, CUDA graph": data_checks.check_cuda_graph,
    **{f"training, {stage}": data_checks.stage_check(stage) for stage in data_checks.SMOKE_STAGES},
    "loader processes": data_checks.check_loaders,
    "training at full batch": network_checks.check_full_step,
    "training at full batch, compiled": network_checks.check_compiled_step,
    "bfloat16": network_checks.check_bfloat16,
    "float8": network_checks.check_float8,
    "14 B forward": network_checks.check_full_size,
    "loading to the device": network_checks.check_loading,
    "FlexAttention": network_checks.check_flex_attention,
    "onnxruntime": network_checks.check_onnxruntime,
    "TensorRT": network_checks.check_tensorrt,
}


def run_check(name: str, place: Place) -> dict[str, Any]:
    """Runs one check: its name, status (ok, failed, skipped), seconds, figures, and the first line of what happened."""
    start = time.perf_counter()
    found: dict[str, Any] = {"name": name, "status": "ok", "figures": {}, "message": ""}
    try:
        found["figures"] = CHECKS[name](place)
        place.wait()
    except Skipped as reason:
        found |= {"status": "skipped", "message": str(reason)}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        lines = str(error).strip().splitlines() or [""]
        found |= {"status": "failed", "message": f"{type(error).__name__}: {lines[0]}"}
    return {**found, "seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> int:
    """Runs checks; returns 0, or `POISONED`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(CHECKS)}; none: all")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--toy", action="store_true", help="small sizes")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in CHECKS]
    if unknown:
        parser.error(f"there is no check '{unknown[0]}'; the checks are {', '.join(CHECKS)}")
    warnings.filterwarnings("ignore")
    end_with_parent(signal.SIGKILL)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        place = Place(torch.device(device), options.toy, Path(folder))
        for name in options.names or CHECKS:
            print(json.dumps({"begins": name}), flush=True)
            print(json.dumps(run_check(name, place)), flush=True)
            try:
                place.wait()
            except RuntimeError:  # a kernel that failed leaves the device unusable for the whole process
                return POISONED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
