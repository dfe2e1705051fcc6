"""Whether an exported file computes what the torch model does, on sizes that it was not traced on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worldstereo_ros.export.onnx import (
    DTYPES,
    ExportedFile,
    ModelExportError,
    OnStep,
    autoencoder_example,
    control_example,
)
from worldstereo_ros.export.runtime import ExportedAutoencoder, ExportedControlBranch, OnnxRuntimeRunner
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBranch

# (batch, keyframes, token rows, token columns); none is the traced one
CONTROL_SIZES = ((1, 1, 1, 1), (2, 2, 3, 5), (1, 7, 6, 4), (1, 5, 8, 12))
# (pictures, latent rows, latent columns)
AUTOENCODER_SIZES = ((1, 1, 1), (3, 5, 2), (2, 8, 12))
# Largest error over the largest value. Half precision is that of its own rounding through all layers.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class VerificationResult:
    """One size.

    Attributes:
        size: frames and size as in the two tuples above.
        error: largest absolute difference between the two.
        scale: largest absolute value of torch's result.
        torch_seconds: of the torch model.
        runtime_seconds: of onnxruntime.
    """

    size: tuple[int, ...]
    error: float
    scale: float
    torch_seconds: float
    runtime_seconds: float

    def passes(self, dtype: str) -> bool:
        """Whether the error is within `TOLERANCE`: absolute for float32, of the scale for half precision."""
        return self.error <= TOLERANCE[dtype] * (1.0 if dtype == "float32" else max(self.scale, 1.0))


@torch.inference_mode()
def verify(
    exported: ExportedFile,
    model: ControlBranch | KeyframeAutoencoder,
    *,
    sizes: Sequence[tuple[int, ...]] | None = None,
    on_step: OnStep | None = None,
) -> list[VerificationResult]:
    """Runs both in float32 torch and onnxruntime on the CPU.

    Args:
        exported: the file.
        model: what it was made of.
        sizes: see `CONTROL_SIZES` and `AUTOENCODER_SIZES`; None: those.
        on_step: called after each size.

    Raises:
        ModelExportError: onnxruntime is missing or cannot run the file, or a result is not finite.
    """
    about = exported.description
    runner = OnnxRuntimeRunner(exported.path)
    report = on_step or (lambda stage, done, total: None)
    control = about["part"] == "control"
    sizes = sizes or (CONTROL_SIZES if control else AUTOENCODER_SIZES)
    checks = []
    for done, size in enumerate(sizes):
        report("verifying", done, len(sizes))
        if isinstance(model, ControlBranch):
            checks.append(_check_control(model, runner, about, size))
        else:
            checks.append(_check_autoencoder(model, runner, about, size))
    report("verifying", len(sizes), len(sizes))
    return checks


def _check_control(
    branch: ControlBranch, runner: OnnxRuntimeRunner, about: Any, size: tuple[int, ...]
) -> VerificationResult:
    # Rounded to the file's type first, so that both see the same numbers.
    given = [t.float() for t in control_example(about, size, DTYPES[about["dtype"]], seed=1)]
    session = ExportedControlBranch(
        runner, about, branch.proj_out if about["output"] == "states" else None, torch.float32
    )
    start = time.perf_counter()
    want = branch(*given)
    middle = time.perf_counter()
    got = session(*given)
    end = time.perf_counter()
    if about["output"] == "offsets":
        want = [branch.residual(i, state) for i, state in enumerate(want)]
    return _compare(size, want, got, middle - start, end - middle)


def _check_autoencoder(
    model: KeyframeAutoencoder, runner: OnnxRuntimeRunner, about: Any, size: tuple[int, ...]
) -> VerificationResult:
    encoding = about["part"] == "autoencoder-encoder"
    (given,) = autoencoder_example(about, size, DTYPES[about["dtype"]], seed=1)
    session = ExportedAutoencoder.of(model, **{"encoder" if encoding else "decoder": runner})
    start = time.perf_counter()
    want = model.encode(given.float()) if encoding else model.decode(given.float())
    middle = time.perf_counter()
    got = session.encode(given.float()) if encoding else session.decode(given.float())
    return _compare(size, [want], [got], middle - start, time.perf_counter() - middle)


def _compare(
    size: tuple[int, ...], want: list[torch.Tensor], got: list[torch.Tensor], torch_seconds: float, runtime: float
) -> VerificationResult:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in got):
        raise ModelExportError(f"The exported model gives numbers that are not finite at size {size}; use float32.")
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(want, got, strict=True))
    return VerificationResult(size, error, max(float(a.abs().max()) for a in want), torch_seconds, runtime)
